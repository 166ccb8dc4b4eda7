/** The images that revisions stand on. */
import type { DeploymentKind } from './kinds.ts'

export interface ImageTarget {
  type: DeploymentKind
  name: string
  tag: string
}

export interface ImageFacts {
  registry: boolean
  /** Null when it is not known: what is not here yet, and the platform's own images. */
  digest: string | null
}

export interface PinnedImage {
  /** Under the tag that it was pinned to, or as it was asked for where it is one of the platform's own. */
  reference: string
  digest: string
  ports: number[]
}

export interface DeploymentImages {
  /** What a reference is, by now. @throws bad_request for an image that is unknown, or of a registry that is not allowed */
  look(workspace: string, reference: string): Promise<ImageFacts>
  /**
   * Gives an image a tag that nothing else moves, after pulling it where it is a registry's: `fresh`, also when it is
   * here already.
   * @throws bad_request, and what pulling throws
   */
  pin(
    workspace: string,
    reference: string,
    target: ImageTarget,
    options: { dockerConfig?: string; fresh: boolean },
  ): Promise<PinnedImage>
  /** @throws not_found, bad_request while something stands on it */
  remove(workspace: string, type: string, name: string, tag: string): Promise<unknown>
}
