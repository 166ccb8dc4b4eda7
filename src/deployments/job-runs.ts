import { PlatformError } from '../errors.ts'
import type { Clock } from '../lib/clock.ts'
import { revisionOf } from './record.ts'
import type { DeploymentRecords } from './records.ts'
import type { DeploymentSealing } from './sealing.ts'
import { failureOf, statusOf } from './status.ts'
import { type TaskLimits, taskLimits } from './task-settings.ts'
import { pick } from './traffic.ts'

/** A revision of a job as it is to be run, complete: what becomes of the job afterwards does not change it. */
export interface JobRun {
  revisionId: string
  labels: Record<string, string>
  image: string
  /** In precedence order already; BL_* come on top. */
  env: Record<string, string>
  memoryMb: number
  limits: TaskLimits
}

/** Which revision of a job an execution is of. */
export class JobRuns {
  readonly #records: DeploymentRecords
  readonly #sealing: DeploymentSealing
  readonly #clock: Clock
  readonly #random: () => number

  constructor(options: {
    records: DeploymentRecords
    sealing: DeploymentSealing
    clock: Clock
    /** In [0, 1). */
    random: () => number
  }) {
    this.#records = options.records
    this.#sealing = options.sealing
    this.#clock = options.clock
    this.#random = options.random
  }

  /** @throws not_found, conflict while there is nothing that could be run */
  async of(workspace: string, name: string): Promise<JobRun> {
    const { body } = await this.#records.require(workspace, 'job', name)
    if (body.state === 'deleting') throw new PlatformError('conflict', `the job "${name}" is being deleted`)
    if (body.state !== 'active') {
      throw new PlatformError(
        'conflict',
        `the job "${name}" is deactivated: activate it first (spec.enabled)`,
      )
    }
    const revision = revisionOf(body, pick(body.traffic, null, this.#random()))
    if (revision?.image === undefined) {
      const failure = failureOf(body)
      const why =
        failure === null
          ? `its status is ${statusOf(body, this.#clock.now())}`
          : `its deployment failed: ${failure}`
      throw new PlatformError('conflict', `the job "${name}" cannot be run yet: ${why}`)
    }
    const sealing = this.#sealing
    return {
      revisionId: revision.id,
      labels: body.labels,
      image: revision.image,
      env: { ...sealing.builtEnv(body.uid, revision), ...sealing.revisionEnv(body.uid, revision) },
      memoryMb: revision.spec.memoryMb,
      limits: taskLimits(revision.spec.task, revision.built?.task),
    }
  }
}
