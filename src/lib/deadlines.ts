import type { Clock } from './clock.ts'
import type { Logger } from './log.ts'

/** A wall clock may jump: every deadline is looked at again at least this often. */
const lookAgainMs = 30_000
const dueAgainMs = 5_000

/**
 * One timer for many deadlines of the wall clock. `due` is called once a deadline passed, then the deadline is gone
 * unless `due` sets it again; when `due` throws it is tried again later.
 */
export class Deadlines implements Disposable {
  readonly #at = new Map<string, number>()
  readonly #clock: Clock
  readonly #log: Logger
  readonly #due: (key: string) => Promise<void>
  #wake: AbortController | null = null
  /** When the running sleep ends, by the wall clock. */
  #sleepsUntil = 0
  #closed = false

  constructor(options: { clock: Clock; log: Logger; due: (key: string) => Promise<void> }) {
    this.#clock = options.clock
    this.#log = options.log
    this.#due = options.due
  }

  get(key: string): number | undefined {
    return this.#at.get(key)
  }

  set(key: string, atMs: number): void {
    if (this.#closed) return
    this.#at.set(key, atMs)
    if (this.#wake === null) void this.#run()
    else if (atMs < this.#sleepsUntil) this.#wake.abort()
  }

  delete(key: string): void {
    this.#at.delete(key)
  }

  /** The loop lives only while there is a deadline, so that an idle platform sleeps without timers. */
  async #run(): Promise<void> {
    while (!this.#closed && this.#at.size > 0) {
      this.#wake = new AbortController()
      const now = this.#clock.now()
      let next = now + lookAgainMs
      const passed: string[] = []
      for (const [key, at] of this.#at) {
        if (at <= now) passed.push(key)
        else if (at < next) next = at
      }
      if (passed.length > 0) {
        for (const key of passed) this.#at.delete(key)
        for (const key of passed) void this.#call(key)
        continue
      }
      this.#sleepsUntil = next
      await this.#clock.sleep(next - now, this.#wake.signal).catch(() => {})
    }
    this.#wake = null
  }

  async #call(key: string): Promise<void> {
    try {
      await this.#due(key)
    } catch (error) {
      this.#log.error('a deadline could not be handled, it is tried again', { key, error })
      if (!this.#at.has(key)) this.set(key, this.#clock.now() + dueAgainMs)
    }
  }

  [Symbol.dispose](): void {
    this.#closed = true
    this.#at.clear()
    this.#wake?.abort()
  }
}
