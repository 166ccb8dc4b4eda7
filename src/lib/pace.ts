import type { Clock } from './clock.ts'

/** What one more thing costs, however small it is. */
const costPerThing = 64
/** Things that pass before everybody else has a turn. */
const thingsAtOnceMax = 128

export interface PaceOptions {
  /** Bytes, of which each thing costs some more than it has. */
  perSecond: number
  /** That may pass at once, after a time of quiet. */
  burst: number
  clock: Pick<Clock, 'monotonic' | 'sleep'>
}

/**
 * For who reads what hostile programs write, as fast as they like: between two things it lets others have their turn, and those that
 * come too fast wait. Whoever waits reads nothing, so that the program waits, too.
 */
export class Pace {
  readonly #options: PaceOptions
  #left: number
  #at: number
  #things = 0

  constructor(options: PaceOptions) {
    this.#options = options
    this.#left = options.burst
    this.#at = options.clock.monotonic()
  }

  /** Null: go on. Else what is to be awaited before. It rejects with the signal's reason. */
  pass(bytes: number, signal: AbortSignal, things = 1): Promise<void> | null {
    const { perSecond, clock } = this.#options
    this.#left -= bytes + things * costPerThing
    this.#things += things
    if (this.#things < thingsAtOnceMax) return null
    this.#things = 0
    this.#refill()
    if (this.#left >= 0) return new Promise((resolve) => setImmediate(resolve))
    return clock.sleep((-this.#left / perSecond) * 1000, signal)
  }

  #refill(): void {
    const { perSecond, burst, clock } = this.#options
    const now = clock.monotonic()
    this.#left = Math.min(burst, this.#left + ((now - this.#at) / 1000) * perSecond)
    this.#at = now
  }
}
