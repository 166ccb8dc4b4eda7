import { PlatformError } from '../errors.ts'

export interface ByteRoomOptions {
  /** In all; one that is larger than that enters alone. */
  bytesMax: number
  /** How many may wait; the next one is refused. */
  waitingMax: number
  /** Of one holder, where holders are told apart. Default as many as of all. */
  holderWaitingMax?: number
  /** What of the room one holder may have, of what others leave. Default all of it. */
  holderPart?: number
  /** What is counted, for the refusal: `requests are being accepted`. */
  what: string
}

interface Waiting {
  bytes: number
  enter: () => void
}

/**
 * Room for so many bytes at once; whoever finds none waits. Holders come in by turns, each of them first come first served;
 * what is larger than its holder's part enters when that holder has nothing in it.
 */
export class ByteRoom {
  readonly #options: ByteRoomOptions
  #held = 0
  readonly #heldBy = new Map<string, number>()
  /** By holder, in the order of their turns. */
  readonly #waiting = new Map<string, Waiting[]>()
  #waitingInAll = 0

  constructor(options: ByteRoomOptions) {
    this.#options = options
  }

  get waiting(): number {
    return this.#waitingInAll
  }

  /** Null: there is room, and it is taken. Else resolves once it is; `signal`: nobody waits for it. @throws too_many_requests, its reason */
  take(bytes: number, holder = '', signal?: AbortSignal): Promise<void> | null {
    signal?.throwIfAborted()
    const { waitingMax, holderWaitingMax = waitingMax, what } = this.#options
    // Whoever waits for the room is not passed by; whoever waits for its own holder's part is.
    const line = this.#waiting.get(holder)
    if (line === undefined && this.tryTake(bytes, holder)) return null
    if (this.#waitingInAll >= waitingMax || (line?.length ?? 0) >= holderWaitingMax) {
      throw new PlatformError('too_many_requests', `too many ${what}: try again in a second`, {
        retryAfterSeconds: 1,
      })
    }
    this.#waitingInAll++
    return new Promise((resolve, reject) => {
      const onAbort = () => {
        this.#forget(waiting, holder)
        reject(signal?.reason)
      }
      const enter = () => {
        signal?.removeEventListener('abort', onAbort)
        resolve()
      }
      const waiting = { bytes, enter }
      if (line === undefined) this.#waiting.set(holder, [waiting])
      else line.push(waiting)
      signal?.addEventListener('abort', onAbort, { once: true })
    })
  }

  /** Whether there is room, which then is taken. */
  tryTake(bytes: number, holder = ''): boolean {
    if (!this.#mayEnter(bytes, holder) || this.#isAwaited()) return false
    this.#enter(bytes, holder)
    return true
  }

  /** Gives back what was taken. */
  leave(bytes: number, holder = ''): void {
    this.#held -= bytes
    const left = (this.#heldBy.get(holder) ?? 0) - bytes
    if (left > 0) this.#heldBy.set(holder, left)
    else this.#heldBy.delete(holder)
    this.#admitAll()
  }

  /** Those behind it may enter now. */
  #forget(waiting: Waiting, holder: string): void {
    const line = (this.#waiting.get(holder) ?? []).filter((one) => one !== waiting)
    if (line.length > 0) this.#waiting.set(holder, line)
    else this.#waiting.delete(holder)
    this.#waitingInAll--
    this.#admitAll()
  }

  #admitAll(): void {
    for (let next = this.#next(); next !== null; next = this.#next()) this.#admit(next)
  }

  #mayEnter(bytes: number, holder: string): boolean {
    const { bytesMax } = this.#options
    if (this.#held > 0 && this.#held + bytes > bytesMax) return false
    return this.#hasPart(bytes, holder)
  }

  #hasPart(bytes: number, holder: string): boolean {
    const { bytesMax, holderPart = 1 } = this.#options
    const held = this.#heldBy.get(holder) ?? 0
    return held === 0 || held + bytes <= (bytesMax - this.#held + held) * holderPart
  }

  /** The first in turn waits for the room itself, which those behind it would take from it for ever. */
  #isAwaited(): boolean {
    for (const [holder, [first]] of this.#waiting) {
      if (first !== undefined && this.#hasPart(first.bytes, holder)) return true
    }
    return false
  }

  /** Whose turn it is; null: nobody's, as long as nobody leaves. */
  #next(): string | null {
    for (const [holder, [first]] of this.#waiting) {
      if (first === undefined || !this.#hasPart(first.bytes, holder)) continue
      return this.#mayEnter(first.bytes, holder) ? holder : null
    }
    return null
  }

  #admit(holder: string): void {
    const line = this.#waiting.get(holder) ?? []
    const first = line.shift()
    this.#waiting.delete(holder)
    if (line.length > 0) this.#waiting.set(holder, line)
    if (first === undefined) return
    this.#waitingInAll--
    this.#enter(first.bytes, holder)
    first.enter()
  }

  #enter(bytes: number, holder: string): void {
    this.#held += bytes
    this.#heldBy.set(holder, (this.#heldBy.get(holder) ?? 0) + bytes)
  }
}
