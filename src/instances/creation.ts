import type { Background } from '../lib/background.ts'
import type { Clock } from '../lib/clock.ts'
import { sortableId } from '../lib/ids.ts'
import type { Logger } from '../lib/log.ts'
import { Semaphore } from '../lib/semaphore.ts'
import type { Instance, Runtime } from '../spec/runtime.ts'
import type { Commit } from './entry.ts'
import { type InstanceOwner, instanceKey, type NewInstance, runningRecord, runtimeSpec } from './record.ts'
import type { InstanceRestarts } from './restarts.ts'
import type { InstanceSealing } from './sealing.ts'
import type { InstanceTable } from './table.ts'

/** Launches under way at once: more only makes each of them slower. */
export const launchConcurrencyMax = 16
const launchQueueMax = 1024
/** Of those that are made from snapshots: their files are copied first. */
const copiesMax = 4
const copyTimeoutMsMax = 30 * 60_000

/** What only the files of an instance tell. */
export type FoundInside = Pick<NewInstance, 'user' | 'programAsRoot'>

/** What is to be made, for whom. */
export interface Creation {
  owner: InstanceOwner
  spec: NewInstance | Promise<NewInstance>
  /** Called once it runs, with the step that records it. */
  commit: Commit
  /** Sees it before that. What it answers is part of the spec from then on. */
  check?: (instance: Instance, spec: NewInstance) => Promise<FoundInside>
}

/** How instances come: recorded once they run, so that what a crash leaves before that is known by having no record. */
export class InstanceCreation {
  readonly #runtime: Runtime
  readonly #table: InstanceTable
  readonly #restarts: InstanceRestarts
  readonly #sealing: InstanceSealing
  readonly #background: Background
  readonly #clock: Clock
  readonly #log: Logger
  readonly #launches = new Semaphore({
    concurrencyMax: launchConcurrencyMax,
    waitingMax: launchQueueMax,
    what: 'instances are being started',
  })
  readonly #copies = new Semaphore({
    concurrencyMax: copiesMax,
    waitingMax: launchQueueMax,
    what: 'instances are being made from snapshots',
  })

  constructor(options: {
    runtime: Runtime
    table: InstanceTable
    restarts: InstanceRestarts
    sealing: InstanceSealing
    background: Background
    clock: Clock
    log: Logger
  }) {
    this.#runtime = options.runtime
    this.#table = options.table
    this.#restarts = options.restarts
    this.#sealing = options.sealing
    this.#background = options.background
    this.#clock = options.clock
    this.#log = options.log
  }

  /** When this rejects, also because `commit` did, nothing is left of the instance. */
  async create({ owner, spec: wanted, commit, check }: Creation): Promise<Instance> {
    const id = sortableId(this.#clock.now())
    if (wanted instanceof Promise) wanted.catch(() => {})
    this.#background.refuseWhenClosing()
    let instance: Instance | null = null
    try {
      // Where its files come from is of no account once it has them.
      const { snapshotId, withMemory, ...spec } = await wanted
      const sealedEnv = this.#sealing.seal(id, spec.env)
      instance = await (snapshotId === undefined ? this.#launches : this.#copies).run(() => {
        this.#background.refuseWhenClosing()
        return this.#runtime.create(
          snapshotId === undefined
            ? runtimeSpec(id, spec)
            : {
                ...{ ...spec, id, snapshotId, signal: AbortSignal.timeout(copyTimeoutMsMax) },
                ...(withMemory ? { withMemory } : {}),
              },
        )
      })
      const entry = this.#table.entryOf({
        id,
        owner,
        spec,
        sealedEnv,
        version: 1,
        instance,
        ready: Promise.resolve(instance),
        state: 'running',
      })
      Object.assign(spec, await check?.(instance, spec))
      // Known before it is recorded, so that whoever reads the record finds it.
      this.#table.add(entry)
      const body = runningRecord(entry, instance.handle)
      await commit({ op: 'create', input: { ...instanceKey(owner, id), body } }, id)
      this.#restarts.watch(entry, instance)
      return instance
    } catch (error) {
      this.#table.get(id)?.activity.runsOn(null)
      this.#table.delete(id)
      await this.#undo(id, instance)
      throw error
    }
  }

  async #undo(id: string, instance: Instance | null): Promise<void> {
    if (instance === null) return
    try {
      await instance[Symbol.asyncDispose]().catch(() => {})
      await this.#runtime.destroy(id)
    } catch (error) {
      // No record knows it: the next start removes what is left.
      this.#log.error('could not take back a failed launch', { instance: id, error })
    }
  }
}
