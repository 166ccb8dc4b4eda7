import { PlatformError } from '../errors.ts'

export interface SemaphoreOptions {
  /** How many hold it at once. */
  concurrencyMax: number
  /** How many may wait; the next one is refused. */
  waitingMax: number
  /** What is counted, for the refusal: `sandboxes are being created`. */
  what: string
}

/** Bounded concurrency with a bounded queue, first come first served. */
export class Semaphore {
  readonly #options: SemaphoreOptions
  #held = 0
  /** In order of arrival; removal of one that gave up is by key. */
  readonly #waiting = new Set<() => void>()

  constructor(options: SemaphoreOptions) {
    if (!(options.concurrencyMax >= 1) || !(options.waitingMax >= 0)) {
      throw new RangeError('a semaphore needs room for one, and none or more waiting')
    }
    this.#options = options
  }

  get held(): number {
    return this.#held
  }

  get waiting(): number {
    return this.#waiting.size
  }

  /**
   * Waits for a place; disposing gives it back, once.
   * @throws too_many_requests when too many wait; the signal's reason when it aborts first
   */
  async acquire(signal?: AbortSignal): Promise<Disposable> {
    signal?.throwIfAborted()
    const { concurrencyMax, waitingMax, what } = this.#options
    if (this.#held < concurrencyMax) {
      this.#held++
    } else if (this.#waiting.size >= waitingMax) {
      throw new PlatformError('too_many_requests', `too many ${what}: try again in a second`, {
        retryAfterSeconds: 1,
      })
    } else {
      // Whoever leaves hands over the place, so `held` stays as it is.
      await this.#wait(signal)
    }
    let holding = true
    return {
      [Symbol.dispose]: () => {
        if (!holding) return
        holding = false
        this.#leave()
      },
    }
  }

  /** Runs `work` in a place. */
  async run<Result>(work: () => Promise<Result> | Result, signal?: AbortSignal): Promise<Result> {
    using _place = await this.acquire(signal)
    return await work()
  }

  #wait(signal: AbortSignal | undefined): Promise<void> {
    return new Promise((resolve, reject) => {
      const onAbort = () => {
        this.#waiting.delete(enter)
        reject(signal?.reason)
      }
      const enter = () => {
        signal?.removeEventListener('abort', onAbort)
        resolve()
      }
      this.#waiting.add(enter)
      signal?.addEventListener('abort', onAbort, { once: true })
    })
  }

  #leave(): void {
    for (const enter of this.#waiting) {
      this.#waiting.delete(enter)
      enter()
      return
    }
    this.#held--
  }
}
