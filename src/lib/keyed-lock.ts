import { abortable } from './abortable.ts'

/** Serialises work per key, first come first served. Keys nobody works on take no memory. */
export class KeyedLock {
  /** The last work of each key, whether it succeeded or not. */
  readonly #last = new Map<string, Promise<void>>()

  /** Keys that are worked on or waited for. */
  get size(): number {
    return this.#last.size
  }

  isHeld(key: string): boolean {
    return this.#last.has(key)
  }

  /**
   * Runs `work` when all earlier work of `key` is over; a failure of that is its own caller's affair. Work that takes
   * its own key again waits for itself for ever. The signal ends the wait, with its reason, and not the work.
   */
  async run<Result>(
    key: string,
    work: () => Promise<Result> | Result,
    signal?: AbortSignal,
  ): Promise<Result> {
    const { promise, resolve } = Promise.withResolvers<void>()
    const before = this.#last.get(key)
    this.#last.set(key, promise)
    const end = () => {
      if (this.#last.get(key) === promise) this.#last.delete(key)
      resolve()
    }
    try {
      if (before !== undefined && signal) await abortable(before, signal)
      else await before
    } catch (error) {
      // Who comes behind goes on waiting for who is before.
      void before?.then(end)
      throw error
    }
    try {
      signal?.throwIfAborted()
      return await work()
    } finally {
      end()
    }
  }
}
