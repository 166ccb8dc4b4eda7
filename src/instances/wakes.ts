import { availableParallelism } from 'node:os'
import type { Clock } from '../lib/clock.ts'
import { Lingering } from '../lib/lingering.ts'
import type { Logger } from '../lib/log.ts'
import { Semaphore } from '../lib/semaphore.ts'

/** More machines that were just woken only take the processors, and what is in their caches, from each other. */
const wakingPerProcessor = 4
/** A place goes to the next after so long, answered or not: nobody waits for what takes its time. */
const placeMs = 5

/**
 * Places for machines from their waking to their first answer. Of a hundred that are woken at once the first ones answer
 * early, and all of them sooner than if all ran at the same time. First come first served.
 */
export class Wakes implements Disposable {
  readonly #places: Semaphore
  readonly #taken = new Set<Disposable>()
  readonly #overdue: Lingering<Disposable>
  #closed = false

  constructor(options: { clock: Clock; log: Logger; placesMax?: number }) {
    this.#places = new Semaphore({
      concurrencyMax: options.placesMax ?? wakingPerProcessor * availableParallelism(),
      // As many wait as there are instances.
      waitingMax: Number.POSITIVE_INFINITY,
      what: 'instances are being woken',
    })
    this.#overdue = new Lingering({
      afterMs: placeMs,
      clock: options.clock,
      log: options.log,
      due: (place) => this.#leave(place),
    })
  }

  /** Waits for a place. Disposing it gives it back early. */
  async enter(): Promise<Disposable> {
    const place = await this.#places.acquire()
    if (this.#closed) {
      place[Symbol.dispose]()
    } else {
      this.#taken.add(place)
      this.#overdue.add(place)
    }
    return { [Symbol.dispose]: () => this.#leave(place) }
  }

  #leave(place: Disposable): void {
    this.#taken.delete(place)
    this.#overdue.delete(place)
    place[Symbol.dispose]()
  }

  /** From then on nobody waits. */
  [Symbol.dispose](): void {
    this.#closed = true
    this.#overdue[Symbol.dispose]()
    for (const place of this.#taken) place[Symbol.dispose]()
    this.#taken.clear()
  }
}
