import { PlatformError } from '../errors.ts'
import { ByteRoom } from '../lib/byte-room.ts'
import type { Clock } from '../lib/clock.ts'
import { tooLarge } from './body.ts'

/** Up to here a body is read without asking for room. */
const smallBytesMax = 128 * 1024
const roomBytesMax = 32 * 1024 * 1024
const waitingMax = 500
/** How slowly a body that has its room may come while others wait for theirs. */
const senderMsMin = 10_000
const senderBytesPerMs = 64
const lookAgainMs = 1000

/**
 * Bodies that are read whole, and that together take no more memory than they have room for: who sends a large one waits until
 * there is some, and the connection holds back the bytes meanwhile.
 */
export class LargeBodies {
  readonly #clock: Clock
  readonly #room = new ByteRoom({
    ...{ bytesMax: roomBytesMax, waitingMax, what: 'large requests are on their way' },
  })
  #waiting = 0

  constructor(clock: Clock) {
    this.#clock = clock
  }

  /** The body keeps its room until `use` is over. @throws body_too_large, too_many_requests, what `use` throws */
  async read<Result>(
    request: Request,
    bytesMax: number,
    use: (body: Uint8Array) => Promise<Result>,
  ): Promise<Result> {
    const length = request.headers.get('content-length')
    const declared = length === null ? null : Number(length)
    if (declared !== null && declared > bytesMax) throw tooLarge(bytesMax, `${declared} bytes`)
    // Asked for before anybody waits: what is not asked for Bun takes from the connection, all of it.
    const { body } = request
    if (body === null) return await use(new Uint8Array())
    const chunks = body.getReader()
    const over = new AbortController()
    let held = 0
    const enter = async (bytes: number) => {
      await this.#enter(bytes)
      held = bytes
      void this.#hurry(chunks, bytes, over)
    }
    try {
      if (declared !== null && declared > smallBytesMax) await enter(declared)
      const parts: Uint8Array[] = []
      const whole = declared === null ? null : new Uint8Array(declared)
      let size = 0
      for (;;) {
        const { done, value } = await chunks.read()
        over.signal.throwIfAborted()
        if (done) break
        if (size + value.byteLength > (declared ?? bytesMax)) throw tooLarge(bytesMax, 'more')
        if (whole) whole.set(value, size)
        else parts.push(value)
        size += value.byteLength
        // Nobody knows how much more there is.
        if (held === 0 && size > smallBytesMax) await enter(bytesMax)
      }
      over.abort()
      return await use(whole?.subarray(0, size) ?? joined(parts, size))
    } catch (error) {
      // The rest is not waited for: the answer goes out while the client may still be sending.
      chunks.cancel().catch(() => {})
      throw error
    } finally {
      over.abort()
      if (held > 0) this.#room.leave(held)
    }
  }

  async #enter(bytes: number): Promise<void> {
    const entering = this.#room.take(bytes)
    if (entering === null) return
    this.#waiting++
    await entering
    this.#waiting--
  }

  /** Whoever sends more slowly than others would have to wait for gives its room back. */
  async #hurry(chunks: { cancel(): Promise<void> }, bytes: number, over: AbortController): Promise<void> {
    try {
      await this.#clock.sleep(senderMsMin + bytes / senderBytesPerMs, over.signal)
      while (this.#waiting === 0) await this.#clock.sleep(lookAgainMs, over.signal)
    } catch {
      return
    }
    over.abort(
      new PlatformError(
        'too_many_requests',
        'the body came slowly and others wait to send theirs: try again',
        {
          retryAfterSeconds: 5,
        },
      ),
    )
    await chunks.cancel()
  }
}

/** Emptied on the way, so that little of it is there twice. */
function joined(parts: Uint8Array[], size: number): Uint8Array {
  const whole = new Uint8Array(size)
  let at = 0
  for (const [index, part] of parts.entries()) {
    whole.set(part, at)
    at += part.byteLength
    parts[index] = new Uint8Array()
  }
  return whole
}
