import { type AnswerHead, BadAnswer, type Framing, headersMax, parseHead } from './answer-head.ts'

/** Of a head together with those of the interim answers before it. */
export const headBytesMax = 64 * 1024
/** Size lines of chunks, with whatever extends them. */
const chunkLineBytesMax = 1024
const trailerBytesMax = 16 * 1024
const chunkDigitsMax = 13
const lineFeed = 0x0a
const carriageReturn = 0x0d
const sizePattern = /^([0-9A-Fa-f]+)[ \t]*(?:;[\t\x20-\x7e\x80-\xff]*)?$/
const trailerPattern = /^(?:[\t\r\n\x20-\x7e\x80-\xff])*$/
const nothing = Buffer.alloc(0)

/** Is told of an answer as it comes. */
export interface AnswerSink {
  head(head: AnswerHead): void
  body(bytes: Uint8Array): void
  /** All of it came. */
  end(): void
}

type State = 'head' | 'body' | 'chunk-size' | 'chunk' | 'chunk-end' | 'trailer' | 'over'

/**
 * One answer of HTTP/1, read from bytes however they are cut. Interim answers are passed over; trailers are dropped. What it
 * keeps is bounded: the beginning of a head, a size line or a trailer; bodies pass through.
 */
export class AnswerReader {
  readonly #method: string
  readonly #sink: AnswerSink
  #state: State = 'head'
  #kept: Buffer = nothing
  #headBytes = 0
  #framing: Framing = { kind: 'none' }
  /** Of the body, or of the chunk. */
  #leftBytes = 0
  #trailerBytes = 0

  constructor(method: string, sink: AnswerSink) {
    this.#method = method
    this.#sink = sink
  }

  /** All of the answer came. */
  get over(): boolean {
    return this.#state === 'over'
  }

  /** Bytes that came; how many of them belong to this answer. @throws BadAnswer */
  push(chunk: Buffer): number {
    let bytes = chunk
    const before = this.#kept.length
    if (before > 0) {
      bytes = Buffer.concat([this.#kept, chunk])
      this.#kept = nothing
    }
    let at = 0
    while (this.#state !== 'over' && at < bytes.length) {
      const next = this.#step(bytes, at)
      if (next === null) {
        this.#kept = bytes.subarray(at)
        return chunk.length
      }
      at = next
    }
    return at - before
  }

  /** The connection ended. @throws BadAnswer in the middle of an answer */
  close(): void {
    if (this.#state === 'over') return
    if (this.#framing.kind !== 'close' || this.#state !== 'body') throw new BadAnswer('it broke off')
    this.#end()
  }

  /** Where the next step begins; null when more bytes are needed. */
  #step(bytes: Buffer, at: number): number | null {
    switch (this.#state) {
      case 'head':
        return this.#head(bytes, at)
      case 'body':
      case 'chunk':
        return this.#pass(bytes, at)
      case 'chunk-size':
        return this.#chunkSize(bytes, at)
      case 'chunk-end':
        if (bytes.length - at < 2) return null
        if (bytes[at] !== carriageReturn || bytes[at + 1] !== lineFeed)
          throw new BadAnswer('a chunk of its body does not end where it says')
        this.#state = 'chunk-size'
        return at + 2
      case 'trailer':
        return this.#trailer(bytes, at)
      case 'over':
        return at
    }
  }

  #head(bytes: Buffer, at: number): number | null {
    const [textEnd, next] = endOfHead(bytes, at)
    const length = (next < 0 ? bytes.length : next) - at
    if (this.#headBytes + length > headBytesMax) throw new BadAnswer(`its head is over ${headBytesMax} bytes`)
    if (next < 0) return null
    this.#headBytes += length
    const head = parseHead(bytes.toString('latin1', at, textEnd), this.#method)
    if (head.status === 101) throw new BadAnswer('it changes the protocol, which nobody asked for')
    if (head.status < 200) return next
    this.#framing = head.framing
    this.#sink.head(head)
    switch (head.framing.kind) {
      case 'none':
        this.#end()
        break
      case 'length':
        this.#leftBytes = head.framing.bytes
        if (this.#leftBytes === 0) this.#end()
        else this.#state = 'body'
        break
      case 'chunked':
        this.#state = 'chunk-size'
        break
      case 'close':
        this.#leftBytes = Number.POSITIVE_INFINITY
        this.#state = 'body'
    }
    return next
  }

  #pass(bytes: Buffer, at: number): number {
    const end = Math.min(bytes.length, at + this.#leftBytes)
    this.#leftBytes -= end - at
    this.#sink.body(bytes.subarray(at, end))
    if (this.#leftBytes === 0) {
      if (this.#state === 'chunk') this.#state = 'chunk-end'
      else this.#end()
    }
    return end
  }

  #chunkSize(bytes: Buffer, at: number): number | null {
    const end = lineEnd(bytes, at, chunkLineBytesMax)
    if (end === null) return null
    const digits = sizePattern.exec(bytes.toString('latin1', at, end))?.[1]
    if (digits === undefined || digits.length > chunkDigitsMax)
      throw new BadAnswer('a chunk of its body has no size')
    this.#leftBytes = Number.parseInt(digits, 16)
    this.#state = this.#leftBytes === 0 ? 'trailer' : 'chunk'
    return end + 2
  }

  #trailer(bytes: Buffer, at: number): number | null {
    const end = lineEnd(bytes, at, trailerBytesMax - this.#trailerBytes)
    if (end === null) return null
    this.#trailerBytes += end + 2 - at
    if (end === at) this.#end()
    else if (!trailerPattern.test(bytes.toString('latin1', at, end)))
      throw new BadAnswer('its trailer has characters that do not belong there')
    return end + 2
  }

  #end(): void {
    this.#state = 'over'
    this.#sink.end()
  }
}

/**
 * Where the text of a head ends, and where what follows it begins; [-1, -1] while it goes on. Lines may end by a line feed alone.
 * @throws BadAnswer
 */
function endOfHead(bytes: Buffer, at: number): [number, number] {
  for (let from = at, lines = 0; ; lines++) {
    if (lines > headersMax + 1) throw new BadAnswer(`it has more than ${headersMax} headers`)
    const feed = bytes.indexOf(lineFeed, from)
    if (feed < 0) return [-1, -1]
    const textEnd = feed > at && bytes[feed - 1] === carriageReturn ? feed - 1 : feed
    if (bytes[feed + 1] === lineFeed) return [textEnd, feed + 2]
    if (bytes[feed + 1] === carriageReturn && bytes[feed + 2] === lineFeed) return [textEnd, feed + 3]
    from = feed + 1
  }
}

/** Where a line ends that is to end by both characters; null while it goes on. @throws BadAnswer */
function lineEnd(bytes: Buffer, at: number, bytesMax: number): number | null {
  const feed = bytes.indexOf(lineFeed, at)
  if ((feed < 0 ? bytes.length : feed) - at > bytesMax) throw new BadAnswer('a line of its body is too long')
  if (feed < 0) return null
  if (feed === at || bytes[feed - 1] !== carriageReturn)
    throw new BadAnswer('a line of its body does not end as one')
  return feed - 1
}
