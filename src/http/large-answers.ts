import { PlatformError } from '../errors.ts'
import { ByteRoom } from '../lib/byte-room.ts'
import type { Clock } from '../lib/clock.ts'

/** Up to here an answer is kept without asking for room. */
const smallBytesMax = 256 * 1024
const roomBytesMax = 64 * 1024 * 1024
/** Of one program, of what others leave. */
const programPart = 1 / 2
/** As many as may be under way at once, of everything. */
const waitingMax = 4096
/** How slowly an answer that has its room may come while others wait for theirs. */
const slowMsMin = 60_000
const slowBytesPerMs = 16
const lookAgainMs = 1000

export interface KeptAnswer {
  /** That may be kept: asked for where nobody says how long it is. */
  bytesMax: number
  /** Which program answers: it leaves room for others. */
  program: string
  signal: AbortSignal
}

/**
 * Answers of programs that are kept whole, and that together take no more memory than they have room for: a large one is read
 * once there is some, and its program waits meanwhile.
 */
export class LargeAnswers {
  readonly #clock: Clock
  readonly #room = new ByteRoom({
    bytesMax: roomBytesMax,
    waitingMax,
    holderPart: programPart,
    what: 'large answers are on their way',
  })

  constructor(clock: Clock) {
    this.#clock = clock
  }

  /**
   * The same answer, which has its room until it was read. @throws while it is read: bad_gateway when it came too slowly, and
   * the signal's reason
   */
  kept(response: Response, kept: KeptAnswer): Response {
    const { status, statusText, headers, body } = response
    if (body === null) return response
    const declared = headers.has('content-encoding') ? null : headers.get('content-length')
    const bytes = declared === null ? null : Number(declared)
    return new Response(this.#passing(body, bytes, kept), { status, statusText, headers })
  }

  #passing(
    body: ReadableStream<Uint8Array>,
    declared: number | null,
    { bytesMax, program, signal }: KeptAnswer,
  ): ReadableStream<Uint8Array> {
    const pieces = body.getReader()
    const over = new AbortController()
    let held = 0
    let came = 0
    let late: PlatformError | null = null
    const enter = async (bytes: number) => {
      await this.#room.take(bytes, program, signal)
      held = bytes
      if (over.signal.aborted) leave()
      void watch()
    }
    const leave = () => {
      over.abort()
      if (held > 0) this.#room.leave(held, program)
      held = 0
    }
    const watch = async () => {
      const beganAt = this.#clock.monotonic()
      try {
        for (let waitMs = slowMsMin; ; waitMs = lookAgainMs) {
          await this.#clock.sleep(waitMs, over.signal)
          const isSlow = this.#clock.monotonic() - beganAt >= slowMsMin + came / slowBytesPerMs
          if (isSlow && this.#room.waiting > 0) break
        }
      } catch {
        return
      }
      late = new PlatformError('bad_gateway', 'the answer came slowly, and others waited to be heard')
      await pieces.cancel().catch(() => {})
    }
    const pull = async (controller: ReadableStreamDefaultController<Uint8Array>) => {
      try {
        if (came === 0 && declared !== null && declared > smallBytesMax)
          await enter(Math.min(declared, bytesMax))
        const { done, value } = await pieces.read()
        if (late !== null) throw late
        if (done) {
          leave()
          return controller.close()
        }
        came += value.byteLength
        // Nobody knows how much more there is.
        if (held === 0 && came > smallBytesMax) await enter(bytesMax)
        controller.enqueue(value)
      } catch (error) {
        leave()
        pieces.cancel().catch(() => {})
        throw error
      }
    }
    const cancel = async () => {
      leave()
      await pieces.cancel().catch(() => {})
    }
    return new ReadableStream({ pull, cancel }, { highWaterMark: 0 })
  }
}
