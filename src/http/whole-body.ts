import { parseJson, refuseForms, textIn, tooLarge } from './body.ts'
import { type BodyPlace, type LargeBodies, smallBodyBytesMax } from './large-bodies.ts'

/** Where a body is read, and who sends it. Null: it is there already, or is small. */
export interface ReadingRoom {
  bodies: LargeBodies
  sender: string
}

/** The body of a request, for whoever wants all of it at once. */
export class WholeBody {
  /** What it says, where it was parsed for the handler: until it is `used`. */
  said: unknown = undefined
  readonly #request: Request
  readonly #room: ReadingRoom | null
  #place: BodyPlace | null = null

  constructor(request: Request, room: ReadingRoom | null) {
    this.#request = request
    this.#room = room
  }

  /**
   * Read once there is room for it, which it keeps until `used`, though not for long.
   * @throws body_too_large, too_many_requests
   */
  async bytes(bytesMax: number): Promise<Uint8Array> {
    const request = this.#request
    const length = request.headers.get('content-length')
    const declared = length === null ? null : Number(length)
    if (declared !== null && declared > bytesMax) throw tooLarge(bytesMax, `${declared} bytes`)
    if (request.body === null) return new Uint8Array()
    if (declared !== null && (this.#room === null || declared <= smallBodyBytesMax)) {
      const bytes = await request.bytes()
      if (bytes.byteLength > bytesMax) throw tooLarge(bytesMax, 'more')
      return bytes
    }
    const chunks = request.body.getReader()
    try {
      return await this.#collected(chunks, declared, bytesMax)
    } catch (error) {
      // The rest is not waited for: the answer goes out while the client may still be sending.
      chunks.cancel().catch(() => {})
      this.used()
      throw error
    }
  }

  /** @throws as `bytes`, and bad_request for what is not UTF-8 */
  async text(bytesMax: number): Promise<string> {
    const bytes = await this.bytes(bytesMax)
    const text = textIn(bytes)
    // Given back at once: what waits for the collector is memory, too, and its rounds are far between.
    if (bytes.buffer instanceof ArrayBuffer) bytes.buffer.transfer(0)
    return text
  }

  /** Undefined when it is empty. @throws as `text`, and unsupported_media_type */
  async json(bytesMax: number): Promise<unknown> {
    refuseForms(this.#request)
    const text = await this.text(bytesMax)
    return text.trim() === '' ? undefined : parseJson(text)
  }

  /** As it comes, for whoever holds so much of it until it is `used`. @throws too_many_requests */
  async streamed(bytesHeld: number): Promise<ReadableStream<Uint8Array>> {
    const body = this.#request.body ?? new Blob().stream()
    if (this.#room === null) return body
    const chunks = body.getReader()
    await this.#enter(bytesHeld, chunks)
    const pull = async (controller: ReadableStreamDefaultController<Uint8Array>) => {
      const { done, value } = await chunks.read()
      this.#place?.signal.throwIfAborted()
      if (done) return controller.close()
      this.#place?.came(value.byteLength)
      controller.enqueue(value)
    }
    return new ReadableStream({ pull, cancel: () => chunks.cancel() })
  }

  /** Nobody holds it any more; called when the request was answered, or sooner by who waits long for its answer. */
  used(): void {
    this.said = undefined
    this.#place?.[Symbol.dispose]()
  }

  async #collected(
    chunks: ReadableStreamDefaultReader<Uint8Array>,
    declared: number | null,
    bytesMax: number,
  ): Promise<Uint8Array> {
    const parts: Uint8Array[] = []
    let whole: Uint8Array | null = null
    if (declared !== null) {
      await this.#enter(declared, chunks)
      whole = new Uint8Array(declared)
    }
    let size = 0
    for (;;) {
      const { done, value } = await chunks.read()
      this.#place?.signal.throwIfAborted()
      if (done) break
      if (size + value.byteLength > (declared ?? bytesMax)) throw tooLarge(bytesMax, 'more')
      if (whole) whole.set(value, size)
      else parts.push(value)
      size += value.byteLength
      // Nobody knows how much more there is.
      if (this.#place === null && size > smallBodyBytesMax) await this.#enter(bytesMax, chunks)
      this.#place?.came(value.byteLength)
    }
    this.#place?.whole()
    return whole?.subarray(0, size) ?? joined(parts, size)
  }

  async #enter(bytes: number, chunks: { cancel(): Promise<void> }): Promise<void> {
    if (this.#room === null) return
    const place = await this.#room.bodies.enter(bytes, this.#room.sender, this.#request.signal)
    this.#place = place
    place.signal.addEventListener('abort', () => chunks.cancel().catch(() => {}), { once: true })
  }
}

/** Emptied on the way, so that little of it is there twice. */
function joined(parts: Uint8Array[], size: number): Uint8Array {
  if (parts.length === 1) return parts[0]!
  const whole = new Uint8Array(size)
  let at = 0
  for (const [index, part] of parts.entries()) {
    whole.set(part, at)
    at += part.byteLength
    parts[index] = new Uint8Array()
  }
  return whole
}
