/**
 * The frames spoken with the helper (docs/guest-protocol.md), as they lie on the wire. The other end is not trusted:
 * every length, count, type and left-over byte is checked, and whatever does not fit is a ProtocolError, after which the
 * connection is closed.
 */

export const protocolVersion = 1
export const frameHeaderBytes = 12
export const framePayloadBytesMax = 1 << 20

export const FrameType = {
  hello: 1,
  helloOk: 2,
  error: 3,
  ok: 4,
  ping: 5,
  pong: 6,
  spawn: 16,
  spawned: 17,
  signal: 18,
  list: 19,
  item: 20,
  end: 21,
  exit: 22,
  forget: 23,
  attach: 24,
  detach: 25,
  output: 26,
  stdin: 27,
  closeStdin: 28,
  resize: 29,
  shutdown: 30,
  adopt: 31,
  adopted: 32,
  descriptors: 33,
  descriptorsOk: 34,
  stat: 64,
  entryOk: 65,
  readdir: 66,
  entries: 67,
  read: 68,
  data: 69,
  write: 70,
  abort: 71,
  mkdir: 72,
  remove: 73,
  rename: 74,
  chmod: 75,
  realpath: 76,
  path: 77,
  append: 78,
  renameNew: 79,
  walk: 80,
  found: 81,
  search: 82,
  matches: 83,
  summary: 84,
  watch: 85,
  changes: 86,
  copy: 87,
  chown: 88,
  open: 90,
  opened: 91,
  listen: 96,
  probe: 97,
  status: 98,
  guest: 99,
  kill: 100,
  egress: 101,
  connect: 102,
  refuse: 103,
  query: 104,
  answer: 105,
  settle: 106,
  reach: 107,
  depart: 108,
  sockets: 112,
  socket: 113,
  descent: 114,
  dial: 120,
  unpackDirectory: 144,
  unpackFile: 145,
  unpackData: 146,
  unpackSymlink: 147,
  unpackLink: 148,
  unpackFifo: 149,
  unpackAttributes: 150,
  unpackXattr: 151,
  unpackTimes: 152,
  unpackWhiteout: 153,
  unpackOpaque: 154,
  unpackFinish: 155,
  launch: 128,
  launched: 129,
  cancelLaunch: 130,
} as const

export type FrameType = (typeof FrameType)[keyof typeof FrameType]

type PayloadLimits = Partial<Record<number, number>>

const anyLimits: PayloadLimits = {
  [FrameType.helloOk]: 12,
  [FrameType.error]: 8 + 1024,
  [FrameType.ok]: 0,
  [FrameType.ping]: 0,
  [FrameType.pong]: 0,
}

/** The longest payload of each type that the host accepts on each kind of connection; no other type is accepted. */
export const receivedLimits = {
  control: {
    ...anyLimits,
    [FrameType.spawned]: 12,
    [FrameType.descriptorsOk]: 17,
    [FrameType.item]: 37,
    [FrameType.end]: 0,
    [FrameType.exit]: 37,
    [FrameType.output]: 17,
  },
  files: {
    ...anyLimits,
    [FrameType.end]: 0,
    [FrameType.entryOk]: 16 * 1024,
    [FrameType.entries]: framePayloadBytesMax,
    [FrameType.data]: framePayloadBytesMax,
    [FrameType.path]: 16 * 1024,
    [FrameType.found]: framePayloadBytesMax,
    [FrameType.matches]: framePayloadBytesMax,
    [FrameType.summary]: 25,
    [FrameType.changes]: framePayloadBytesMax,
    [FrameType.opened]: 0,
  },
  keeper: { ...anyLimits, [FrameType.guest]: 5, [FrameType.connect]: 20, [FrameType.query]: 1500 },
  dialler: anyLimits,
  sockets: { ...anyLimits, [FrameType.socket]: 256, [FrameType.descent]: 8 + 16 * 8 },
  launcher: { [FrameType.error]: 8 + 1024, [FrameType.launched]: 25 },
} as const satisfies Record<string, PayloadLimits>

/** The other end broke the protocol. Its message is private: callers turn it into a PlatformError. */
export class ProtocolError extends Error {
  override readonly name = 'ProtocolError'
}

export interface Frame {
  type: number
  id: number
  /** A view: keep it only as long as the chunk it came in may live. */
  payload: Uint8Array
}

const emptyBytes = new Uint8Array(0)

/**
 * Cuts a byte stream into frames. Holds at most one incomplete frame; a frame that lies whole in one chunk is not
 * copied. Frames of the type `inPieces` are passed on as they come, each piece as a frame of its own: never held, never
 * copied. Throws ProtocolError, and is useless after that.
 */
export class FrameReader {
  #header = new Uint8Array(new ArrayBuffer(frameHeaderBytes))
  #headerView = new DataView(this.#header.buffer)
  #headerBytes = 0
  #payload: Uint8Array | null = null
  #payloadBytes = 0
  #payloadLength = 0
  #type = 0
  #id = 0

  constructor(
    private readonly bytesMax: PayloadLimits,
    private readonly inPieces: FrameType | null = null,
  ) {}

  /** Bytes of an incomplete frame that are held. */
  get heldBytes(): number {
    return this.#headerBytes + this.#payloadBytes
  }

  *push(chunk: Uint8Array): Generator<Frame> {
    let at = 0
    while (at < chunk.length) {
      if (this.#headerBytes < frameHeaderBytes) {
        const take = Math.min(frameHeaderBytes - this.#headerBytes, chunk.length - at)
        this.#header.set(chunk.subarray(at, at + take), this.#headerBytes)
        this.#headerBytes += take
        at += take
        if (this.#headerBytes < frameHeaderBytes) return
        this.#parseHeader()
      }
      const missing = this.#payloadLength - this.#payloadBytes
      const take = Math.min(missing, chunk.length - at)
      let payload: Uint8Array
      if (this.#payload === null && take === missing) {
        payload = take === 0 ? emptyBytes : chunk.subarray(at, at + take)
        at += take
      } else {
        if (take === 0) return
        if (this.#type === this.inPieces) {
          this.#payloadLength -= take
          yield { type: this.#type, id: this.#id, payload: chunk.subarray(at, at + take) }
          at += take
          continue
        }
        this.#payload ??= new Uint8Array(this.#payloadLength)
        this.#payload.set(chunk.subarray(at, at + take), this.#payloadBytes)
        this.#payloadBytes += take
        at += take
        if (this.#payloadBytes < this.#payloadLength) return
        payload = this.#payload
      }
      const frame = { type: this.#type, id: this.#id, payload }
      this.#headerBytes = 0
      this.#payload = null
      this.#payloadBytes = 0
      this.#payloadLength = 0
      yield frame
    }
  }

  #parseHeader() {
    const header = this.#headerView
    const length = header.getUint32(0, true)
    this.#type = header.getUint8(4)
    this.#id = header.getUint32(8, true)
    if ((header.getUint32(4, true) & 0xffffff00) !== 0)
      throw new ProtocolError('reserved header bytes are not zero')
    const bytesMax = this.bytesMax[this.#type]
    if (bytesMax === undefined) throw new ProtocolError(`unexpected frame type ${this.#type}`)
    if (length > bytesMax) {
      throw new ProtocolError(`frame of type ${this.#type} announces ${length} bytes, at most ${bytesMax}`)
    }
    this.#payloadLength = length
  }
}

const utf8Encoder = new TextEncoder()

/** Thrown for a request that does not fit a frame; the caller names what was too long. */
export class FrameTooLargeError extends Error {
  override readonly name = 'FrameTooLargeError'
}

/** Builds one frame, header included. */
export class FrameWriter {
  #bytes: Uint8Array
  #view: DataView
  #at = frameHeaderBytes

  constructor(
    private readonly type: FrameType,
    private readonly id: number,
    expectedBytes = 52,
  ) {
    // Over a buffer of its own: asked for the buffer of a small array, the engine makes it anew.
    const buffer = new ArrayBuffer(frameHeaderBytes + expectedBytes)
    this.#bytes = new Uint8Array(buffer)
    this.#view = new DataView(buffer)
  }

  #reserve(length: number): number {
    const at = this.#at
    const needed = at + length
    if (needed > frameHeaderBytes + framePayloadBytesMax) throw new FrameTooLargeError('frame is too large')
    if (needed > this.#bytes.length) {
      const grown = new Uint8Array(Math.max(needed, this.#bytes.length * 2))
      grown.set(this.#bytes)
      this.#bytes = grown
      this.#view = new DataView(grown.buffer)
    }
    this.#at = needed
    return at
  }

  u8(value: number): this {
    this.#view.setUint8(this.#reserve(1), value)
    return this
  }

  u16(value: number): this {
    const at = this.#reserve(2)
    this.#view.setUint16(at, value, true)
    return this
  }

  u32(value: number): this {
    const at = this.#reserve(4)
    this.#view.setUint32(at, value, true)
    return this
  }

  u64(value: number | bigint): this {
    const at = this.#reserve(8)
    if (typeof value === 'bigint') {
      this.#view.setBigUint64(at, value, true)
    } else {
      this.#view.setUint32(at, value % 2 ** 32, true)
      this.#view.setUint32(at + 4, Math.floor(value / 2 ** 32), true)
    }
    return this
  }

  /** The caller has checked that there is no NUL in it. */
  str(value: string): this {
    const encoded = utf8Encoder.encode(value)
    this.u32(encoded.length)
    const at = this.#reserve(encoded.length)
    this.#bytes.set(encoded, at)
    return this
  }

  strings(values: readonly string[]): this {
    this.u32(values.length)
    for (const value of values) this.str(value)
    return this
  }

  raw(value: Uint8Array): this {
    const at = this.#reserve(value.length)
    this.#bytes.set(value, at)
    return this
  }

  finish(): Uint8Array {
    this.#view.setUint32(0, this.#at - frameHeaderBytes, true)
    this.#view.setUint8(4, this.type)
    this.#view.setUint32(8, this.id, true)
    return this.#bytes.subarray(0, this.#at)
  }
}

/** The header of a frame whose payload is written separately, so that bulk data is not copied. */
export function frameHeader(type: FrameType, id: number, length: number): Uint8Array {
  const header = new Uint8Array(new ArrayBuffer(frameHeaderBytes))
  const view = new DataView(header.buffer)
  view.setUint32(0, length, true)
  view.setUint8(4, type)
  view.setUint32(8, id, true)
  return header
}
