import { isDeepStrictEqual } from 'node:util'
import { badRequest } from '../lib/checks.ts'
import type { Clock } from '../lib/clock.ts'
import { sameEnv } from '../lib/environment.ts'
import { randomText } from '../lib/ids.ts'
import { snapshotReference } from '../sandboxes/index.ts'
import type { DeploymentDraft } from './draft.ts'
import type { DeploymentImages, ImageFacts } from './images.ts'
import { type DeploymentKind, kindFacts } from './kinds.ts'
import { type DeploymentBody, numberOf, type Revision } from './record.ts'
import { trafficOfNew } from './routing.ts'
import type { DeploymentSealing } from './sealing.ts'
import { taskLimits } from './task-settings.ts'

/** What a revision is asked with, besides its draft. */
export interface RevisionWanted {
  workspace: string
  kind: DeploymentKind
  actor: string
  upload: boolean
  snapshotId?: string
}

/** Decides whether a change makes a revision, and which. */
export class NextRevisions {
  readonly #images: Pick<DeploymentImages, 'look'>
  readonly #sealing: DeploymentSealing
  readonly #clock: Clock

  constructor(options: {
    images: Pick<DeploymentImages, 'look'>
    sealing: DeploymentSealing
    clock: Clock
  }) {
    this.#images = options.images
    this.#sealing = options.sealing
    this.#clock = options.clock
  }

  /** The revision that is to be made; null when nothing that a revision holds changed. @throws bad_request */
  async next(asked: RevisionWanted, body: DeploymentBody, draft: DeploymentDraft): Promise<Revision | null> {
    const { workspace, kind, actor, upload } = asked
    const now = this.#clock.now()
    const newest = body.revisions.findLast(({ phase }) => phase !== 'failed' && phase !== 'uploading')
    const snapshotId = upload ? undefined : (asked.snapshotId ?? snapshotOf(newest, draft.spec.image))
    const named = draft.spec.image ?? newest?.image ?? newest?.source
    const source = upload ? undefined : snapshotId === undefined ? named : snapshotReference(snapshotId)
    if (!upload && source === undefined) return null
    const image = source === undefined ? null : await this.#images.look(workspace, source)
    if (image?.registry && kind === 'application') {
      throw badRequest(
        `spec.image: ${JSON.stringify(source)} is of a registry; an application takes an image of the workspace: bring it here first (hutch images pull), or deploy from source`,
      )
    }
    if (
      !upload &&
      asked.snapshotId === undefined &&
      newest !== undefined &&
      image !== null &&
      !this.#differs(body, newest, draft, source, image)
    ) {
      return null
    }
    const id = `${kindFacts[kind].revisionPrefix}${randomText(12)}`
    const origin = body.revisions.find((one) => one.image !== undefined && one.image === source)
    const { memoryMb, minScale, maxScale, port, transport, task, envs } = draft.spec
    const last = body.revisions.at(-1)
    return {
      id,
      number: last === undefined ? 1 : numberOf(body, last) + 1,
      createdAt: now,
      createdBy: actor,
      phase: upload ? 'uploading' : 'deploying',
      spec: {
        image: origin ? origin.spec.image : upload ? null : (draft.spec.image ?? source ?? null),
        memoryMb,
        minScale,
        maxScale,
        envs,
        ...(port === undefined ? {} : { port }),
        ...(transport === undefined ? {} : { transport }),
        ...(task === undefined ? {} : { task }),
      },
      sealedEnv: this.#sealing.sealRevisionEnv(body.uid, id, draft.env),
      traffic: trafficOfNew(body, draft.routing),
      ...(source === undefined ? {} : { source }),
      ...(snapshotId === undefined ? {} : { snapshotId }),
      ...(image?.registry && !draft.skipBuild ? { fresh: true } : {}),
      ...(draft.dockerConfig === undefined
        ? {}
        : { sealedDockerConfig: this.#sealing.sealDockerConfig(body.uid, id, draft.dockerConfig) }),
      ...(origin?.built ? { built: this.#builtAgain(body.uid, origin, id) } : {}),
    }
  }

  /** What the code of a revision says, for another one that stands on the same image. */
  #builtAgain(uid: string, origin: Revision, id: string): NonNullable<Revision['built']> {
    return {
      ...origin.built,
      sealedEnv: this.#sealing.sealBuiltEnv(uid, id, this.#sealing.builtEnv(uid, origin)),
    }
  }

  #differs(
    body: DeploymentBody,
    newest: Revision,
    draft: DeploymentDraft,
    source: string | undefined,
    image: ImageFacts,
  ): boolean {
    const { spec } = newest
    const sameImage = source === newest.image || source === newest.source || source === spec.image
    // A tag here may have been given to another image since.
    const moved =
      !image.registry &&
      newest.digest !== undefined &&
      image.digest !== null &&
      image.digest !== newest.digest
    return (
      !sameImage ||
      moved ||
      spec.memoryMb !== draft.spec.memoryMb ||
      spec.minScale !== draft.spec.minScale ||
      spec.maxScale !== draft.spec.maxScale ||
      spec.port !== draft.spec.port ||
      spec.transport !== draft.spec.transport ||
      // By what holds: who sends back what he read changes nothing.
      !isDeepStrictEqual(
        taskLimits(spec.task, newest.built?.task),
        taskLimits(draft.spec.task, newest.built?.task),
      ) ||
      !sameEnv(this.#sealing.revisionEnv(body.uid, newest), draft.env) ||
      this.#isAskedAnew(body, draft, image)
    )
  }

  /** The same once more, all of it: whoever says that of a registry's image wants what its tag is by now. */
  #isAskedAnew(body: DeploymentBody, draft: DeploymentDraft, image: { registry: boolean }): boolean {
    if (!image.registry || draft.skipBuild || draft.routing) return false
    const { labels, spec, displayName } = body
    return (
      JSON.stringify([labels, displayName, spec]) ===
      JSON.stringify([draft.labels, draft.displayName, draft.spec])
    )
  }
}

/** The snapshot that a revision's files are of, for another one whose image is called as before. */
function snapshotOf(newest: Revision | undefined, image: string | null): string | undefined {
  return image === null || image === newest?.spec.image ? newest?.snapshotId : undefined
}
