import type { Background } from '../lib/background.ts'
import type { Clock } from '../lib/clock.ts'
import type { Logger } from '../lib/log.ts'
import type { Semaphore } from '../lib/semaphore.ts'
import type { Runtime } from '../spec/runtime.ts'
import type { Store } from '../spec/store.ts'
import type { Commit, Entry } from './entry.ts'
import { type InstanceOwner, type InstanceRecord, instanceKey } from './record.ts'
import type { RestRecords } from './rest.ts'
import type { InstanceRestarts } from './restarts.ts'
import type { InstanceTable } from './table.ts'

const destroyAttemptsMax = 6
const destroyBackoffMsMin = 100

/** How instances end for good, with their files. */
export class InstanceRemoval {
  readonly #store: Store
  readonly #runtime: Runtime
  readonly #table: InstanceTable
  readonly #rests: RestRecords
  readonly #restarts: InstanceRestarts
  readonly #upkeep: Semaphore
  readonly #background: Background
  readonly #clock: Clock
  readonly #log: Logger

  constructor(options: {
    store: Store
    runtime: Runtime
    table: InstanceTable
    rests: RestRecords
    restarts: InstanceRestarts
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
    this.#upkeep = options.upkeep
    this.#background = options.background
    this.#clock = options.clock
    this.#log = options.log
  }

  /**
   * Resolves once `commit` did; `gone` when nothing is left. On an instance that is ending already it tries again what
   * failed, without `commit`. @throws what `commit` throws: then the instance lives on
   */
  async destroy(entry: Entry, commit: Commit): Promise<{ gone: Promise<void> }> {
    if (entry.state !== 'ending') await this.#markEnding(entry, commit)
    if (entry.gone === null) {
      entry.gone = this.finish(entry.id, entry.owner, entry)
      entry.gone.catch(() => {
        entry.gone = null
      })
    }
    return { gone: entry.gone }
  }

  async #markEnding(entry: Entry, commit: Commit): Promise<void> {
    const before = entry.state
    entry.state = 'ending'
    entry.activity.runsOn(null)
    entry.ending.abort()
    await entry.ready.catch(() => {})
    try {
      await commit(
        {
          op: 'update',
          key: instanceKey(entry.owner, entry.id),
          expectedVersion: entry.version,
          change: { body: { state: 'destroying', owner: entry.owner } satisfies InstanceRecord },
        },
        entry.id,
      )
    } catch (error) {
      entry.ending = new AbortController()
      if (before === 'archived') entry.state = before
      else if (entry.instance === null) this.#restarts.begin(entry, 0)
      else {
        entry.state = 'running'
        entry.activity.runsOn(entry.instance)
      }
      throw error
    }
  }

  /** Takes away what is left of one whose record says that it is to go. */
  finish(id: string, owner: InstanceOwner, entry?: Entry): Promise<void> {
    return this.#background.track(this.#finish(id, owner, entry))
  }

  async #finish(id: string, owner: InstanceOwner, entry: Entry | undefined): Promise<void> {
    for (let attempt = 1; ; attempt++) {
      try {
        await this.#upkeep.run(() => this.#runtime.destroy(id))
        break
      } catch (error) {
        if (attempt >= destroyAttemptsMax || this.#background.closing.aborted) {
          // The record stays `destroying`: the next start goes on.
          this.#log.error('an instance could not be removed', { instance: id, attempt, error })
          throw error
        }
        await this.#clock
          .sleep(destroyBackoffMsMin * 2 ** (attempt - 1), this.#background.closing)
          .catch(() => {})
      }
    }
    // Only now: a driver learns of the end through the instance's own channels.
    await entry?.instance?.[Symbol.asyncDispose]().catch(() => {})
    await this.#store.remove(instanceKey(owner, id))
    this.#rests.remove(id)
    this.#table.delete(id)
  }
}
