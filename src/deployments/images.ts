/** The images that revisions stand on. */
import type { Images, ResolvedImage } from '../images/index.ts'
import type { Snapshots } from '../sandboxes/index.ts'
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
  /** Whether it is gone, or never was a revision's own; false while something stands on it. */
  release(
    workspace: string,
    reference: string,
    target: { type: DeploymentKind; name: string },
  ): Promise<boolean>
}

/** Images of the catalogue, and snapshots where they stand for one. */
export class RevisionImages implements DeploymentImages {
  readonly #images: Pick<Images, 'look' | 'pin' | 'unpin' | 'resolve'>
  readonly #snapshots: Pick<Snapshots, 'image' | 'letGo'>
  readonly #userOf: (workspace: string, reference: string) => string | null

  constructor(options: {
    images: Pick<Images, 'look' | 'pin' | 'unpin' | 'resolve'>
    snapshots: Pick<Snapshots, 'image' | 'letGo'>
    /** Which deployment stands on an image, or is to; null: none. */
    userOf: (workspace: string, reference: string) => string | null
  }) {
    this.#images = options.images
    this.#snapshots = options.snapshots
    this.#userOf = options.userOf
  }

  /** For who starts instances. */
  async resolve(workspace: string, reference: string, signal?: AbortSignal): Promise<ResolvedImage> {
    return (
      (await this.#snapshots.image(workspace, reference)) ??
      (await this.#images.resolve(workspace, reference, signal))
    )
  }

  async look(workspace: string, reference: string): Promise<ImageFacts> {
    using snapshot = await this.#snapshots.image(workspace, reference)
    if (snapshot) return { registry: false, digest: null }
    return await this.#images.look(workspace, reference)
  }

  async pin(
    workspace: string,
    reference: string,
    target: ImageTarget,
    options: { dockerConfig?: string; fresh: boolean },
  ): Promise<PinnedImage> {
    using snapshot = await this.#snapshots.image(workspace, reference)
    if (!snapshot) return await this.#images.pin(workspace, reference, target, options)
    return { reference, digest: snapshot.root.digest, ports: [] }
  }

  async release(
    workspace: string,
    reference: string,
    { type, name }: { type: DeploymentKind; name: string },
  ): Promise<boolean> {
    // Another one is to be made of it, or stands on it.
    if (this.#userOf(workspace, reference) !== null) return false
    const own = `${type}/${name}:`
    if (reference.startsWith(own))
      await this.#images.unpin(workspace, { type, name, tag: reference.slice(own.length) })
    else await this.#snapshots.letGo(workspace, reference)
    return true
  }
}
