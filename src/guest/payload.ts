import { ProtocolError } from './frame.ts'

export const listItemsMax = 65_536

const utf8 = new TextDecoder('utf-8', { fatal: false, ignoreBOM: true })

/** Reads the fields of one payload; `end()` refuses what is left over. */
export class PayloadReader {
  #view: DataView
  #at = 0

  constructor(private readonly bytes: Uint8Array) {
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  }

  #take(length: number): number {
    const at = this.#at
    if (length > this.bytes.length - at) throw new ProtocolError('payload is too short')
    this.#at = at + length
    return at
  }

  u8(): number {
    return this.#view.getUint8(this.#take(1))
  }

  u16(): number {
    return this.#view.getUint16(this.#take(2), true)
  }

  u32(): number {
    return this.#view.getUint32(this.#take(4), true)
  }

  /** As a number: what does not fit in 53 bits is refused. */
  u64(): number {
    const value = this.#u64Rounded()
    if (value > Number.MAX_SAFE_INTEGER) throw new ProtocolError('number is too large')
    return value
  }

  /** As a number, cut to `limit`: for what a sandbox may set as it likes, a file's size for one. */
  u64Clamped(limit: number): number {
    return Math.min(this.#u64Rounded(), limit)
  }

  i64Clamped(limit: number): number {
    const at = this.#take(8)
    const value = this.#view.getInt32(at + 4, true) * 2 ** 32 + this.#view.getUint32(at, true)
    return Math.max(-limit, Math.min(value, limit))
  }

  /** Exact up to 2^53, and above that still above it. */
  #u64Rounded(): number {
    const at = this.#take(8)
    return this.#view.getUint32(at + 4, true) * 2 ** 32 + this.#view.getUint32(at, true)
  }

  /** All 64 bits, for what is compared and never counted with. */
  u64Exact(): bigint {
    return this.#view.getBigUint64(this.#take(8), true)
  }

  str(): string {
    const length = this.u32()
    const at = this.#take(length)
    const bytes = this.bytes.subarray(at, at + length)
    if (bytes.includes(0)) throw new ProtocolError('string contains NUL')
    return utf8.decode(bytes)
  }

  sized(): Uint8Array {
    const length = this.u32()
    const at = this.#take(length)
    return this.bytes.subarray(at, at + length)
  }

  /** Each item takes at least `itemBytesMin`, which bounds the count by the payload. */
  list<Item>(itemBytesMin: number, item: (reader: PayloadReader) => Item): Item[] {
    const count = this.u32()
    if (count > listItemsMax || count * itemBytesMin > this.bytes.length - this.#at) {
      throw new ProtocolError(`list announces ${count} items`)
    }
    const items: Item[] = []
    for (let i = 0; i < count; i++) items.push(item(this))
    return items
  }

  rest(): Uint8Array {
    const rest = this.bytes.subarray(this.#at)
    this.#at = this.bytes.length
    return rest
  }

  end(): void {
    if (this.#at !== this.bytes.length) throw new ProtocolError('payload has bytes left over')
  }
}
