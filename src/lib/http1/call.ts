import type { AnswerHead } from './answer-head.ts'
import { AnswerReader, type AnswerSink } from './answer-reader.ts'
import type { Connection, ConnectionUser } from './connection.ts'

/** A request as it goes over the wire. */
export interface OutgoingRequest {
  method: string
  /** Request line and headers with the empty line after them, one character a byte (latin1). */
  head: string
  body: ReadableStream<Uint8Array> | null
  /** As the head says it; null: in chunks. */
  bodyBytes: number | null
}

/** The connection broke before the answer was complete. */
export class BrokenConnection extends Error {}

/** Of an answer, until its reader catches up. */
const queuedBytesMax = 512 * 1024
/** Pieces of a request up to this are written together, larger ones are not copied for that. */
const joinedBytesMax = 16 * 1024
const lastChunk = Buffer.from('0\r\n\r\n')

/** One request and its answer. */
export class Call implements AnswerSink, ConnectionUser {
  /** Resolves with the head of the answer. @throws BrokenConnection, BadAnswer, what the body of the request threw, or it was aborted with */
  readonly answered: Promise<AnswerHead>
  readonly #request: OutgoingRequest
  readonly #reader: AnswerReader
  readonly #resolve: (head: AnswerHead) => void
  readonly #reject: (error: unknown) => void
  #connection: Connection | null = null
  #body: ReadableStreamDefaultReader<Uint8Array> | null = null
  /** All of the request is with the kernel. */
  #sent = false
  #persistent = false
  #failure: { error: unknown } | null = null
  #dialling: AbortController | null = null
  #queue: Uint8Array[] = []
  #queuedBytes = 0
  #wake: (() => void) | null = null

  constructor(request: OutgoingRequest) {
    this.#request = request
    this.#reader = new AnswerReader(request.method, this)
    const { promise, resolve, reject } = Promise.withResolvers<AnswerHead>()
    this.answered = promise
    this.#resolve = resolve
    this.#reject = reject
  }

  /** Aborted when it is given up before it has a connection. */
  whileDialled(): AbortSignal {
    this.#dialling = new AbortController()
    if (this.#failure !== null) this.#dialling.abort()
    return this.#dialling.signal
  }

  /** From here on it has this connection, until it gives it back. */
  goBy(connection: Connection): void {
    if (this.#failure !== null) {
      connection.leave(true)
      return
    }
    this.#connection = connection
    connection.serve(this)
    const { head, body } = this.#request
    if (body !== null) void this.#sendBody(connection, Buffer.from(head, 'latin1'), body)
    else {
      const waiting = connection.writeText(head)
      this.#sent = waiting === null
      waiting?.then(() => {
        this.#sent = true
      })
    }
  }

  /** Gives up. Idempotent, and nothing once the answer is complete. */
  abort(error: unknown): void {
    if (this.#failure !== null || this.#reader.over) return
    this.#failure = { error }
    this.#reject(error)
    void this.#body?.cancel(error).catch(() => {})
    this.#dialling?.abort()
    this.#connection?.close()
    this.#queue = []
    this.#wakeUp()
  }

  /** All of the body, if all of it is here: once, instead of `read`. */
  whole(): Uint8Array | null {
    if (!this.#reader.over) return null
    const [first = noBytes, ...others] = this.#queue
    this.#queue = []
    return others.length === 0 ? first : Buffer.concat([first, ...others])
  }

  /** All of the body, waited for: for one that is known to be small. @throws as `answered` */
  async bytes(): Promise<Uint8Array> {
    const pieces: Uint8Array[] = []
    for (let piece = await this.read(); !piece.done; piece = await this.read()) pieces.push(piece.value)
    const [first = noBytes] = pieces
    return pieces.length < 2 ? first : Buffer.concat(pieces)
  }

  /** The next piece of the body; whoever reads it may keep it. @throws as `answered` */
  async read(): Promise<{ done: false; value: Uint8Array } | { done: true; value: undefined }> {
    for (;;) {
      const value = this.#queue.shift()
      if (value !== undefined) {
        this.#queuedBytes -= value.byteLength
        if (this.#queue.length === 0 && !this.#reader.over) this.#connection?.resume()
        return { done: false, value }
      }
      if (this.#failure !== null) throw this.#failure.error
      if (this.#reader.over) return { done: true, value: undefined }
      await new Promise<void>((resolve) => {
        this.#wake = resolve
      })
    }
  }

  /** Nobody wants the rest. */
  async cancel(reason?: unknown): Promise<void> {
    this.abort(reason)
  }

  received(chunk: Buffer): void {
    let used: number
    try {
      used = this.#reader.push(chunk)
    } catch (error) {
      this.abort(error)
      return
    }
    if (this.#reader.over) this.#leave(used === chunk.length)
    this.#wakeUp()
  }

  broke(error: unknown): void {
    this.#connection = null
    if (this.#reader.over) return
    try {
      // Torn off is no end.
      if (error === undefined) this.#reader.close()
    } catch {
      // Told below.
    }
    if (this.#reader.over) this.#leave(false)
    else this.abort(new BrokenConnection('the connection ended', { cause: error }))
    this.#wakeUp()
  }

  head(head: AnswerHead): void {
    this.#persistent = head.persistent
    this.#resolve(head)
  }

  body(bytes: Uint8Array): void {
    this.#queue.push(bytes)
    this.#queuedBytes += bytes.byteLength
    if (this.#queuedBytes > queuedBytesMax) this.#connection?.pause()
  }

  end(): void {
    // What is to be done then is done once the rest of the chunk was looked at.
  }

  /** The answer is complete. A request that was not wanted to its end is not sent to its end. */
  #leave(atItsEnd: boolean): void {
    if (!this.#sent) void this.#body?.cancel().catch(() => {})
    this.#connection?.leave(atItsEnd && this.#persistent && this.#sent)
    this.#connection = null
  }

  async #sendBody(
    connection: Connection,
    head: Uint8Array,
    stream: ReadableStream<Uint8Array>,
  ): Promise<void> {
    const reader = stream.getReader()
    this.#body = reader
    // What came together with the head of the request leaves together with it; what did not is not waited for.
    let unsent: Uint8Array | null = head
    let sending: Promise<void> | null = null
    const immediate = setImmediate(() => {
      sending = connection.write(head)
      unsent = null
    })
    try {
      let left = this.#request.bodyBytes
      for (;;) {
        const { done, value } = await reader.read()
        clearImmediate(immediate)
        if (sending !== null) await sending
        sending = null
        if (this.#failure !== null || this.#reader.over) return
        if (left !== null) left -= value?.byteLength ?? 0
        if (left !== null && (left < 0 || (done && left > 0)))
          throw new Error('a body is not as long as it said')
        for (const piece of piecesOf(unsent, value, left === null)) await connection.write(piece)
        unsent = null
        if (done || left === 0) break
      }
      this.#sent = true
    } catch (error) {
      this.abort(error)
      void reader.cancel(error).catch(() => {})
    } finally {
      clearImmediate(immediate)
    }
  }

  #wakeUp(): void {
    const wake = this.#wake
    this.#wake = null
    wake?.()
  }
}

const noBytes = new Uint8Array(0)

/** What is written for a chunk of a body, undefined for its end, after a head that was not written yet. */
function piecesOf(head: Uint8Array | null, chunk: Uint8Array | undefined, inChunks: boolean): Uint8Array[] {
  const pieces: Uint8Array[] = head === null ? [] : [head]
  if (chunk === undefined) {
    if (inChunks) pieces.push(lastChunk)
  } else if (chunk.byteLength > 0) {
    if (inChunks) pieces.push(Buffer.from(`${chunk.byteLength.toString(16)}\r\n`, 'latin1'))
    pieces.push(chunk)
    if (inChunks) pieces.push(lineEnd)
  }
  if (pieces.length < 2 || (chunk?.byteLength ?? 0) > joinedBytesMax) return pieces
  return [Buffer.concat(pieces)]
}

const lineEnd = Buffer.from('\r\n')
