import type { Execution } from './execution.ts'

/** Who waits for the end of which execution. */
export class Ends {
  readonly #waiting = new Map<string, Set<(execution: Execution | null) => void>>()

  wait(id: string): { ended: Promise<Execution | null>; stop(): void } {
    const { promise, resolve } = Promise.withResolvers<Execution | null>()
    const waiting = this.#waiting.get(id) ?? new Set()
    waiting.add(resolve)
    this.#waiting.set(id, waiting)
    return {
      ended: promise,
      stop: () => {
        waiting.delete(resolve)
        if (waiting.size === 0 && this.#waiting.get(id) === waiting) this.#waiting.delete(id)
      },
    }
  }

  tell(execution: Execution): void {
    for (const resolve of this.#waiting.get(execution.id) ?? []) resolve(execution)
    this.#waiting.delete(execution.id)
  }

  close(): void {
    for (const waiting of this.#waiting.values()) for (const resolve of waiting) resolve(null)
    this.#waiting.clear()
  }
}
