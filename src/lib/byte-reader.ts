import { PlatformError } from '../errors.ts'

/** A stream of chunks, read in pieces of one's own choice. What fits into the present chunk costs no turn of the loop. */
export class ByteReader {
  readonly #source: AsyncIterator<Uint8Array>
  #chunk: Uint8Array = new Uint8Array(0)
  #at = 0
  #ended = false
  /** Taken so far. */
  offset = 0

  constructor(source: AsyncIterable<Uint8Array>) {
    this.#source = source[Symbol.asyncIterator]()
  }

  /** Exactly `length` bytes, or null when fewer are at hand: then `read` has them. */
  take(length: number): Uint8Array | null {
    if (this.#chunk.length - this.#at < length) return null
    const bytes = this.#chunk.subarray(this.#at, this.#at + length)
    this.#at += length
    this.offset += length
    return bytes
  }

  /** Exactly `length` bytes. @throws unprocessable when the stream ends before */
  async read(length: number): Promise<Uint8Array> {
    const whole = this.take(length)
    if (whole) return whole
    const bytes = new Uint8Array(length)
    for (let filled = 0; filled < length; ) {
      const part = await this.some(length - filled)
      if (part === null) throw endedEarly()
      bytes.set(part, filled)
      filled += part.length
    }
    return bytes
  }

  /** Between 1 and `lengthMax` bytes; null at the end. A view: valid until the next read. */
  async some(lengthMax: number): Promise<Uint8Array | null> {
    if (!(await this.fill())) return null
    const length = Math.min(lengthMax, this.#chunk.length - this.#at)
    const bytes = this.#chunk.subarray(this.#at, this.#at + length)
    this.#at += length
    this.offset += length
    return bytes
  }

  async skip(length: number): Promise<void> {
    for (let left = length; left > 0; ) {
      const part = await this.some(left)
      if (part === null) throw endedEarly()
      left -= part.length
    }
  }

  /** Whether there is at least one byte more. */
  async fill(): Promise<boolean> {
    while (this.#at === this.#chunk.length && !this.#ended) {
      const { done, value } = await this.#source.next()
      this.#chunk = done ? new Uint8Array(0) : value
      this.#at = 0
      this.#ended = done === true
    }
    return !this.#ended
  }

  /** Lets go of the source. */
  async cancel(): Promise<void> {
    this.#ended = true
    await this.#source.return?.()
  }
}

function endedEarly(): PlatformError {
  return new PlatformError('unprocessable', 'the archive ends in the middle of an entry')
}
