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
   * its own key again waits for itself for ever.
   */
  async run<Result>(key: string, work: () => Promise<Result> | Result): Promise<Result> {
    const { promise, resolve } = Promise.withResolvers<void>()
    const before = this.#last.get(key)
    this.#last.set(key, promise)
    try {
      await before
      return await work()
    } finally {
      if (this.#last.get(key) === promise) this.#last.delete(key)
      resolve()
    }
  }
}
