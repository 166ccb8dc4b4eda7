import type { Clock } from './clock.ts'
import type { Logger } from './log.ts'

/**
 * Calls `due` for each item that stayed for `afterMs`, then the item is gone. Every item stays equally long, so that
 * the oldest is always the first: any number of items costs one timer, and moving one costs nothing. Time is that of
 * the clock that never goes back.
 */
export class Lingering<Item> implements Disposable {
  readonly #since = new Map<Item, number>()
  readonly #afterMs: number
  readonly #clock: Clock
  readonly #log: Logger
  readonly #due: (item: Item) => void
  readonly #closing = new AbortController()
  #running = false

  constructor(options: { afterMs: number; clock: Clock; log: Logger; due: (item: Item) => void }) {
    this.#afterMs = options.afterMs
    this.#clock = options.clock
    this.#log = options.log
    this.#due = options.due
  }

  get size(): number {
    return this.#since.size
  }

  has(item: Item): boolean {
    return this.#since.has(item)
  }

  /** It stays from now on, whether it did before or not. */
  add(item: Item): void {
    if (this.#closing.signal.aborted) return
    this.#since.delete(item)
    this.#since.set(item, this.#clock.monotonic())
    if (!this.#running) void this.#run()
  }

  delete(item: Item): void {
    this.#since.delete(item)
  }

  /** The loop lives only while there is an item, so that an idle platform sleeps without timers. */
  async #run(): Promise<void> {
    this.#running = true
    for (;;) {
      const [first] = this.#since
      if (first === undefined || this.#closing.signal.aborted) break
      const [item, since] = first
      const leftMs = since + this.#afterMs - this.#clock.monotonic()
      if (leftMs > 0) {
        await this.#clock.sleep(leftMs, this.#closing.signal).catch(() => {})
        continue
      }
      this.#since.delete(item)
      try {
        this.#due(item)
      } catch (error) {
        this.#log.error('what was due could not be done', { error })
      }
    }
    this.#running = false
  }

  [Symbol.dispose](): void {
    this.#closing.abort()
    this.#since.clear()
  }
}
