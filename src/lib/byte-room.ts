import { PlatformError } from '../errors.ts'

export interface ByteRoomOptions {
  /** In all; one that is larger than that enters alone. */
  bytesMax: number
  /** How many may wait; the next one is refused. */
  waitingMax: number
  /** What is counted, for the refusal: `requests are being accepted`. */
  what: string
}

/** Room for so many bytes at once; whoever finds none waits, first come first served. */
export class ByteRoom {
  readonly #options: ByteRoomOptions
  #held = 0
  readonly #waiting: { bytes: number; enter: () => void }[] = []

  constructor(options: ByteRoomOptions) {
    this.#options = options
  }

  /** Null: there is room, and it is taken. Else resolves once it is. @throws too_many_requests */
  take(bytes: number): Promise<void> | null {
    const { waitingMax, what } = this.#options
    if (this.#waiting.length === 0 && this.#fits(bytes)) {
      this.#held += bytes
      return null
    }
    if (this.#waiting.length >= waitingMax) {
      throw new PlatformError('too_many_requests', `too many ${what}: try again in a second`, {
        retryAfterSeconds: 1,
      })
    }
    return new Promise((enter) => this.#waiting.push({ bytes, enter }))
  }

  /** Gives back what was taken. */
  leave(bytes: number): void {
    this.#held -= bytes
    for (let next = this.#waiting[0]; next && this.#fits(next.bytes); next = this.#waiting[0]) {
      this.#waiting.shift()
      this.#held += next.bytes
      next.enter()
    }
  }

  #fits(bytes: number): boolean {
    return this.#held === 0 || this.#held + bytes <= this.#options.bytesMax
  }
}
