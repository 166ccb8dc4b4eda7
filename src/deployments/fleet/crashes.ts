import { PlatformError } from '../../errors.ts'
import type { Clock } from '../../lib/clock.ts'

const backoffMsMin = 500
const backoffMsMax = 60_000
/** In a row, until the deployment's owner is told. */
const crashesTold = 3

/** Instances of a revision that ended by themselves, or never began, in a row: the next one waits twice as long after each. */
export class Crashes {
  #count = 0
  #last: PlatformError | null = null
  /** By the monotonic clock: not before. */
  #startAt = Number.NEGATIVE_INFINITY
  readonly #clock: Clock
  readonly #title: () => string
  readonly #told: (message: string) => void

  constructor(options: {
    clock: Clock
    /** What crashes, for messages. */
    title: () => string
    /** Called with what the owner of the deployment is to know. */
    told: (message: string) => void
  }) {
    this.#clock = options.clock
    this.#title = options.title
    this.#told = options.told
  }

  get count(): number {
    return this.#count
  }

  /** What the last one said; null when there was none. */
  get lastMessage(): string | null {
    return this.#last?.message ?? null
  }

  /** Until the next start; zero or less: now. */
  get waitMs(): number {
    return this.#startAt - this.#clock.monotonic()
  }

  /** One held: those before it do not count any more. */
  forget(): void {
    this.#count = 0
  }

  note(error: unknown): void {
    this.#count++
    this.#last = PlatformError.is(error)
      ? error
      : new PlatformError('unprocessable', `${this.#title()} could not be started`, { cause: error })
    if (isWorthTelling(this.#count))
      this.#told(`Crashed ${this.#count} times in a row. ${this.#last.message}`)
    const waitMs = Math.min(backoffMsMin * 2 ** (this.#count - 1), backoffMsMax)
    this.#startAt = this.#clock.monotonic() + waitMs
  }

  /** What a request is told that would have to wait so long. */
  unavailable(waitMs: number): PlatformError {
    const seconds = Math.ceil(waitMs / 1000)
    return new PlatformError(
      'workload_unavailable',
      `${this.#last?.message ?? `${this.#title()} does not run`}\nIt ended ${this.#count} times in a row ` +
        `and is started again in ${seconds} s at the earliest.`,
      { retryAfterSeconds: seconds, ...(this.#last === null ? {} : { cause: this.#last }) },
    )
  }
}

/** Ever more seldom: 3, 6, 12, 24 ... in a row. */
function isWorthTelling(crashes: number): boolean {
  const doublings = Math.log2(crashes / crashesTold)
  return doublings >= 0 && Number.isInteger(doublings)
}
