import { PlatformError } from '../errors.ts'
import type { Background } from '../lib/background.ts'
import type { Clock } from '../lib/clock.ts'
import type { Logger } from '../lib/log.ts'
import type { Semaphore } from '../lib/semaphore.ts'
import type { Instance, Runtime } from '../spec/runtime.ts'
import type { Store } from '../spec/store.ts'
import type { InstanceChanges } from './changes.ts'
import type { Entry } from './entry.ts'
import { type InstanceRecord, instanceKey, runningRecord, runtimeSpec } from './record.ts'
import type { RestRecords } from './rest.ts'

/** Unexpected ends within `restartWindowMs` before an instance is given up. */
export const restartsMax = 5
const restartWindowMs = 60_000
const restartBackoffMsMin = 200
export const restartBackoffMsMax = 10_000

/** Instances that run are watched; one that ends by itself is started again from its files, or given up. */
export class InstanceRestarts {
  readonly #store: Store
  readonly #runtime: Runtime
  readonly #rests: RestRecords
  readonly #changes: InstanceChanges
  readonly #upkeep: Semaphore
  readonly #background: Background
  readonly #clock: Clock
  readonly #log: Logger

  constructor(options: {
    store: Store
    runtime: Runtime
    rests: RestRecords
    changes: InstanceChanges
    upkeep: Semaphore
    background: Background
    clock: Clock
    log: Logger
  }) {
    this.#store = options.store
    this.#runtime = options.runtime
    this.#rests = options.rests
    this.#changes = options.changes
    this.#upkeep = options.upkeep
    this.#background = options.background
    this.#clock = options.clock
    this.#log = options.log
  }

  /** It runs on this machine from now on. */
  settle(entry: Entry, instance: Instance): void {
    entry.instance = instance
    entry.ready = Promise.resolve(instance)
    if (entry.state === 'starting') entry.state = 'running'
    // One that goes on resting keeps what is recorded of its last use.
    if (!instance.frozen) this.#rests.remove(entry.id)
    this.watch(entry, instance)
  }

  watch(entry: Entry, instance: Instance): void {
    if (entry.state === 'running') entry.activity.runsOn(instance)
    void instance.exited.then((exit) => {
      if (entry.instance !== instance || entry.state !== 'running' || this.#background.closing.aborted) return
      this.#log.warn('an instance ended by itself', { instance: entry.id, owner: entry.owner.name, ...exit })
      this.#changes.tell(entry, { type: 'exited', exit })
      entry.instance = null
      entry.activity.runsOn(null)
      const now = this.#clock.monotonic()
      entry.exits = entry.exits.filter((at) => now - at < restartWindowMs)
      entry.exits.push(now)
      void instance[Symbol.asyncDispose]().catch(() => {})
      if (entry.spec.ephemeral) {
        entry.ready = this.again(entry)
        entry.ready.catch(() => {})
      } else this.begin(entry, entry.exits.length - 1)
    })
  }

  /** Of one that does not run: started again from its files, unless they are worth nothing. @throws as `restart` */
  async again(entry: Entry): Promise<Instance> {
    if (!entry.spec.ephemeral) return await this.restart(entry, 0)
    if (entry.state === 'starting' || entry.state === 'running') entry.state = 'failed'
    throw new PlatformError('workload_unavailable', 'the instance has ended')
  }

  /** Starts it again in the background; `entry.ready` settles after. `attempt` 0 starts at once. */
  begin(entry: Entry, attempt: number): void {
    entry.state = 'starting'
    const ready = this.#background.track(this.restart(entry, attempt))
    entry.ready = ready
    ready.catch(() => {})
  }

  /** @throws workload_unavailable when it is given up, workload_not_found when it is to end */
  async restart(entry: Entry, firstAttempt: number): Promise<Instance> {
    let reason = 'it ended too often'
    for (let attempt = firstAttempt; attempt < restartsMax; attempt++) {
      if (attempt > 0) await this.#backOff(entry, attempt)
      this.#background.refuseWhenClosing()
      if (entry.state === 'ending')
        throw new PlatformError('workload_not_found', 'this instance is being removed')
      try {
        const instance = await this.#upkeep.run(() =>
          this.#runtime.restart(runtimeSpec(entry.id, entry.spec)),
        )
        await this.#record(entry, instance)
        this.settle(entry, instance)
        this.#changes.tell(entry, { type: 'restarted' })
        return instance
      } catch (error) {
        this.#log.error('an instance could not be started again', { instance: entry.id, attempt, error })
        reason = PlatformError.is(error) ? error.message : 'it could not be started again'
        if (PlatformError.is(error) && error.code === 'not_found') break
      }
    }
    if (entry.state === 'starting') entry.state = 'failed'
    this.#changes.tell(entry, { type: 'failed', reason })
    throw new PlatformError('workload_unavailable', `the instance does not run: ${reason}`)
  }

  async #backOff(entry: Entry, attempt: number): Promise<void> {
    const ms = Math.min(restartBackoffMsMin * 2 ** (attempt - 1), restartBackoffMsMax)
    const cut = AbortSignal.any([this.#background.closing, entry.ending.signal])
    await this.#clock.sleep(ms, cut).catch(() => {})
  }

  async #record(entry: Entry, instance: Instance): Promise<void> {
    try {
      const updated = await this.#store.update<InstanceRecord>(
        instanceKey(entry.owner, entry.id),
        entry.version,
        { body: runningRecord(entry, instance.handle) },
      )
      entry.version = updated.version
    } catch (error) {
      await instance.stop().catch(() => {})
      await instance[Symbol.asyncDispose]().catch(() => {})
      throw error
    }
  }
}
