import { buildEventTypes } from '../lib/build-event-types.ts'
import type { Clock } from '../lib/clock.ts'
import type { ProjectSettings } from '../lib/project-settings.ts'
import type { DeploymentKind } from './kinds.ts'
import {
  type DeploymentBody,
  isUnderWay,
  pruned,
  type Revision,
  revisionOf,
  type StoredDeployment,
  withEvent,
  withRevision,
} from './record.ts'
import type { DeploymentRecords } from './records.ts'
import type { DeploymentSealing } from './sealing.ts'
import { builtTaskSettings } from './task-settings.ts'

export interface BuildOwner {
  workspace: string
  kind: string
  name: string
  /** The revision's id. */
  tag: string
}

export interface DeploymentBuild {
  owner: BuildOwner
  uploadedAt: number | null
}

export interface BuiltImage {
  image: string
  settings: Pick<ProjectSettings, 'env' | 'transport' | 'runtime'>
}

/** What becomes of a revision as its code comes and is built. Each may be called again after a crash. */
export class BuildEvents {
  readonly #records: DeploymentRecords
  readonly #sealing: DeploymentSealing
  readonly #clock: Clock
  readonly #settle: (deployment: StoredDeployment) => void

  constructor(options: {
    records: DeploymentRecords
    sealing: DeploymentSealing
    clock: Clock
    /** A revision can be brought up, or an image is left over. */
    settle: (deployment: StoredDeployment) => void
  }) {
    this.#records = options.records
    this.#sealing = options.sealing
    this.#clock = options.clock
    this.#settle = options.settle
  }

  async building(build: DeploymentBuild): Promise<void> {
    await this.#change(build, (body, revision) => {
      if (revision.phase !== 'uploading') return null
      const building = withRevision(body, revision.id, (one) => ({
        ...one,
        phase: 'building',
        uploadedAt: build.uploadedAt ?? this.#clock.now(),
      }))
      return withEvent(building, this.#clock.now(), {
        type: buildEventTypes.started,
        status: 'BUILDING',
        revision: revision.id,
        message: 'The code is here, and is being built',
      })
    })
  }

  async built(build: DeploymentBuild, result: BuiltImage): Promise<void> {
    const { settings, image } = result
    const transport = settings.transport ?? settings.runtime.transport
    const changed = await this.#change(build, (body, revision) => {
      if (revision.phase !== 'uploading' && revision.phase !== 'building') return null
      const deploying = withRevision(body, revision.id, (one) => ({
        ...one,
        phase: 'deploying',
        uploadedAt: one.uploadedAt ?? build.uploadedAt ?? this.#clock.now(),
        image,
        built: {
          sealedEnv: this.#sealing.sealBuiltEnv(body.uid, one.id, settings.env),
          ...(transport === undefined ? {} : { transport }),
          ...(build.owner.kind === 'job' ? { task: builtTaskSettings(settings.runtime) } : {}),
        },
      }))
      return withEvent(deploying, this.#clock.now(), {
        type: 'deployment',
        status: 'DEPLOYING',
        revision: revision.id,
        message: 'Built; the revision is being brought up',
      })
    })
    if (changed) this.#settle(changed)
  }

  /** Also of one whose code never came. */
  async failed(build: DeploymentBuild, message: string): Promise<void> {
    const { kind, name, tag } = build.owner
    const changed = await this.#change(build, (body, revision) => {
      if (!isUnderWay(revision) || revision.phase === 'deploying') return null
      const failed = {
        ...withRevision(body, revision.id, (one) => ({ ...one, phase: 'failed' as const })),
        // A build that is called off, or cut off by a crash, may have come as far as its image.
        leftoverImages: [...body.leftoverImages, `${kind}/${name}:${tag}`],
      }
      const { active } = body.traffic
      return pruned(
        withEvent(failed, this.#clock.now(), {
          type: revision.phase === 'building' ? buildEventTypes.failed : 'deployment',
          status: 'FAILED',
          revision: revision.id,
          message: active === null ? message : `${message}\nThe revision ${active} goes on serving.`,
        }),
      )
    })
    if (changed) this.#settle(changed)
  }

  /** What must not be in the log of a build. */
  async redact({ owner }: DeploymentBuild): Promise<string[]> {
    const found = await this.#records.get(owner.workspace, owner.kind as DeploymentKind, owner.name)
    const revision = found && revisionOf(found.body, owner.tag)
    return found && revision ? Object.values(this.#sealing.revisionEnv(found.body.uid, revision)) : []
  }

  /** Null when the revision is gone, or `change` left it as it is. */
  async #change(
    { owner }: DeploymentBuild,
    change: (body: DeploymentBody, revision: Revision) => DeploymentBody | null,
  ): Promise<StoredDeployment | null> {
    const found = await this.#records.get(owner.workspace, owner.kind as DeploymentKind, owner.name)
    if (!found) return null
    const changed = await this.#records.change(found, (body) => {
      const revision = revisionOf(body, owner.tag)
      return revision === undefined || body.state === 'deleting' ? null : change(body, revision)
    })
    return changed.version === found.version ? null : changed
  }
}
