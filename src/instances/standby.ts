import type { Clock } from '../lib/clock.ts'
import { Lingering } from '../lib/lingering.ts'
import type { Logger } from '../lib/log.ts'
import { Semaphore } from '../lib/semaphore.ts'
import type { Activity, ConnectionHold } from './activity.ts'
import { Wakes } from './wakes.ts'

/** What is frozen at once, and whose memory is given back at once: both are work of the kernel's. */
const freezesMax = 8
const reclaimsMax = 1

export interface StandbyTimes {
  /** Without use, until an instance is frozen; null: never. */
  freezeAfterMs: number | null
  /** Frozen, until its memory is given back to the host; null: never. */
  reclaimAfterMs: number | null
  /** Without a word on it, until an open connection counts as use no more; null: it always does. */
  connectionIdleMs?: number | null
}

/** Puts instances to rest that nobody uses: first their processors, later their memory. */
export class Standby implements Disposable {
  readonly #idle: Lingering<Activity> | null
  readonly #frozen: Lingering<Activity> | null
  readonly #connections: Lingering<ConnectionHold> | null
  readonly #freezes = limit(freezesMax, 'instances are being frozen')
  readonly #reclaims = limit(reclaimsMax, 'memory of instances is being given back')
  readonly #wakes: Wakes

  constructor({ clock, log, ...times }: StandbyTimes & { clock: Clock; log: Logger }) {
    this.#wakes = new Wakes({ clock, log })
    const after = <Item>(afterMs: number | null, due: (item: Item) => void) =>
      afterMs === null ? null : new Lingering<Item>({ afterMs, clock, log, due })
    this.#idle = after<Activity>(times.freezeAfterMs, (activity) => {
      void this.#freezes.run(() => activity.freeze())
    })
    this.#frozen = after<Activity>(times.reclaimAfterMs, (activity) => {
      void this.#reclaims.run(() => activity.reclaim())
    })
    this.#connections = after<ConnectionHold>(times.connectionIdleMs ?? null, (connection) =>
      connection.lapse(),
    )
  }

  /** Something was said on a connection. */
  spoke(connection: ConnectionHold): void {
    this.#connections?.add(connection)
  }

  ended(connection: ConnectionHold): void {
    this.#connections?.delete(connection)
  }

  /** Waits until a machine may be woken. Disposed once it answered, or is given to the next all the same. */
  wakePlace(): Promise<Disposable> {
    return this.#wakes.enter()
  }

  /** Nobody uses it, and it is awake. */
  idle(activity: Activity): void {
    this.#idle?.add(activity)
  }

  frozen(activity: Activity): void {
    this.#frozen?.add(activity)
  }

  /** Used, or gone. */
  forget(activity: Activity): void {
    this.#idle?.delete(activity)
    this.#frozen?.delete(activity)
  }

  [Symbol.dispose](): void {
    this.#idle?.[Symbol.dispose]()
    this.#frozen?.[Symbol.dispose]()
    this.#connections?.[Symbol.dispose]()
    this.#wakes[Symbol.dispose]()
  }
}

function limit(concurrencyMax: number, what: string): Semaphore {
  // As many wait as there are instances.
  return new Semaphore({ concurrencyMax, waitingMax: Number.POSITIVE_INFINITY, what })
}
