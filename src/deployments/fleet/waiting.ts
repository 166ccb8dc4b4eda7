import type { Member } from './member.ts'

interface Waiter {
  resolve(member: Member): void
  reject(error: unknown): void
  fits(member: Member): boolean
}

/** Requests that wait for an instance, oldest first. */
export class WaitingRequests {
  readonly #waiters = new Set<Waiter>()

  get size(): number {
    return this.#waiters.size
  }

  /** @throws what `rejectAll` is given, the signal's reason */
  async wait(signal: AbortSignal | undefined, fits: (member: Member) => boolean): Promise<Member> {
    const { promise, resolve, reject } = Promise.withResolvers<Member>()
    const waiter: Waiter = { resolve, reject, fits }
    this.#waiters.add(waiter)
    const onAbort = () => {
      this.#waiters.delete(waiter)
      reject(signal?.reason)
    }
    signal?.addEventListener('abort', onAbort, { once: true })
    try {
      return await promise
    } finally {
      this.#waiters.delete(waiter)
      signal?.removeEventListener('abort', onAbort)
    }
  }

  /** Gives an instance to all whom it fits. Each is counted by its lease, a moment later. */
  giveTo(member: Member): void {
    for (const waiter of this.#waiters) {
      if (!waiter.fits(member)) continue
      this.#waiters.delete(waiter)
      waiter.resolve(member)
    }
  }

  rejectAll(error: unknown): void {
    for (const waiter of this.#waiters) waiter.reject(error)
    this.#waiters.clear()
  }
}
