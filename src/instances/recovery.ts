import { PlatformError } from '../errors.ts'
import type { Background } from '../lib/background.ts'
import type { Clock } from '../lib/clock.ts'
import type { Logger } from '../lib/log.ts'
import { Semaphore } from '../lib/semaphore.ts'
import type { Instance, InstanceHandle, Runtime } from '../spec/runtime.ts'
import type { Resource, Store } from '../spec/store.ts'
import type { InstanceChanges } from './changes.ts'
import type { Entry } from './entry.ts'
import { everyInstanceRecord, type InstanceRecord } from './record.ts'
import type { InstanceRemoval } from './removal.ts'
import type { RestRecords } from './rest.ts'
import type { InstanceRestarts } from './restarts.ts'
import type { InstanceSealing } from './sealing.ts'
import type { InstanceTable } from './table.ts'

const adoptionConcurrencyMax = 256
/** How long a start of the platform waits for instances that do not answer at once. */
export const recoveryWaitMsMax = 250

/** What an earlier life of the platform left: recorded instances are taken up, everything else is removed. */
export class InstanceRecovery {
  readonly #store: Store
  readonly #runtime: Runtime
  readonly #table: InstanceTable
  readonly #rests: RestRecords
  readonly #restarts: InstanceRestarts
  readonly #removal: InstanceRemoval
  readonly #changes: InstanceChanges
  readonly #sealing: InstanceSealing
  readonly #upkeep: Semaphore
  readonly #background: Background
  readonly #clock: Clock
  readonly #log: Logger
  /** Apart from the others: those that do not answer must not hold up those that do. */
  readonly #adoptions = new Semaphore({
    concurrencyMax: adoptionConcurrencyMax,
    waitingMax: Number.POSITIVE_INFINITY,
    what: 'instances are being looked for',
  })

  constructor(options: {
    store: Store
    runtime: Runtime
    table: InstanceTable
    rests: RestRecords
    restarts: InstanceRestarts
    removal: InstanceRemoval
    changes: InstanceChanges
    sealing: InstanceSealing
    upkeep: Semaphore
    background: Background
    clock: Clock
    log: Logger
  }) {
    this.#store = options.store
    this.#runtime = options.runtime
    this.#table = options.table
    this.#rests = options.rests
    this.#restarts = options.restarts
    this.#removal = options.removal
    this.#changes = options.changes
    this.#sealing = options.sealing
    this.#upkeep = options.upkeep
    this.#background = options.background
    this.#clock = options.clock
    this.#log = options.log
  }

  async run(): Promise<void> {
    await this.#rests.load()
    const recorded = new Set<string>()
    const underway: Promise<unknown>[] = []
    for await (const resource of everyInstanceRecord(this.#store)) {
      recorded.add(resource.name)
      underway.push(this.#takeUp(resource))
    }
    this.#rests.removeExcept(recorded)
    const orphans = (await this.#runtime.list()).filter((id) => !recorded.has(id))
    for (const id of orphans) underway.push(this.#removeOrphan(id))
    const done = new AbortController()
    await Promise.race([
      Promise.all(underway),
      this.#clock.sleep(recoveryWaitMsMax, done.signal).catch(() => {}),
    ])
    done.abort()
  }

  async #removeOrphan(id: string): Promise<void> {
    this.#log.warn('removing an instance that no record knows', { instance: id })
    await this.#background
      .track(this.#upkeep.run(() => this.#runtime.destroy(id)))
      .catch((error) => this.#log.error('an orphan could not be removed', { instance: id, error }))
  }

  async #takeUp(resource: Resource<InstanceRecord>): Promise<void> {
    const { name: id, body: record } = resource
    if (record.state === 'creating' || record.state === 'destroying') {
      await this.#removal.finish(id, record.owner).catch(() => {})
      return
    }
    const entry = this.#table.entryOf({
      id,
      owner: record.owner,
      spec: { ...record.spec, env: {} },
      sealedEnv: record.env,
      version: resource.version,
      instance: null,
      ready: notStarted,
      state: record.state === 'running' ? 'starting' : record.state,
    })
    this.#table.add(entry)
    try {
      entry.spec.env = this.#sealing.open(id, record.env)
    } catch (error) {
      this.#log.error('the environment of an instance cannot be decrypted', { instance: id, error })
      entry.state = 'failed'
      this.#changes.tell(entry, {
        type: 'failed',
        reason: 'its environment cannot be decrypted with this secret.key',
      })
      return
    }
    // Its owner knows what is to be done about it.
    if (record.state !== 'running') return
    const adoption = this.#adopt(entry, record.handle)
    const ready = adoption.then((adopted) => adopted ?? this.#restarts.again(entry))
    entry.ready = this.#background.track(ready)
    entry.ready.catch(() => {})
    await adoption
  }

  /** Null when it does not run any more, or cannot be reached. */
  async #adopt(entry: Entry, handle: InstanceHandle): Promise<Instance | null> {
    let instance: Instance | null = null
    try {
      instance = await this.#adoptions.run(() => this.#runtime.recover(handle))
    } catch (error) {
      this.#log.warn('an instance could not be adopted, it is started again', { instance: entry.id, error })
      return null
    }
    if (instance !== null) this.#restarts.settle(entry, instance)
    return instance
  }
}

const notStarted = Promise.reject(new PlatformError('workload_unavailable', 'the instance does not run'))
notStarted.catch(() => {})
