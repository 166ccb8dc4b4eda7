import { PlatformError } from '../errors.ts'
import type { Clock } from '../lib/clock.ts'
import type { Logger } from '../lib/log.ts'
import { Activity } from './activity.ts'
import type { Entry } from './entry.ts'
import type { RestRecords } from './rest.ts'
import type { Standby } from './standby.ts'

type Known = Omit<Entry, 'ending' | 'gone' | 'activity' | 'exits'>

/** Every instance that is known, by id. */
export class InstanceTable {
  readonly #standby: Standby
  readonly #rests: RestRecords
  readonly #clock: Clock
  readonly #log: Logger
  readonly #entries = new Map<string, Entry>()

  constructor(options: { standby: Standby; rests: RestRecords; clock: Clock; log: Logger }) {
    this.#standby = options.standby
    this.#rests = options.rests
    this.#clock = options.clock
    this.#log = options.log
  }

  /** Not in the table yet. */
  entryOf(known: Known): Entry {
    const { id, owner } = known
    const activity = new Activity({
      instanceId: id,
      standby: this.#standby,
      clock: this.#clock,
      log: this.#log,
      lastUsedAt: this.#rests.lastUsedAt(id) ?? this.#clock.now(),
      onRest: (lastUsedAt) => this.#rests.add(owner, id, lastUsedAt),
      onWake: () => this.#rests.woke(id),
    })
    return { ...known, ending: new AbortController(), gone: null, activity, exits: [] }
  }

  add(entry: Entry): void {
    this.#entries.set(entry.id, entry)
  }

  get(id: string): Entry | undefined {
    return this.#entries.get(id)
  }

  /** @throws not_found */
  require(id: string): Entry {
    const entry = this.#entries.get(id)
    if (entry === undefined) throw new PlatformError('not_found', `there is no instance ${id}`)
    return entry
  }

  delete(id: string): void {
    this.#entries.delete(id)
  }

  every(): Entry[] {
    return [...this.#entries.values()]
  }

  clear(): void {
    this.#entries.clear()
  }
}
