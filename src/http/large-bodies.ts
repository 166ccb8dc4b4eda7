import { PlatformError } from '../errors.ts'
import { ByteRoom } from '../lib/byte-room.ts'
import type { Clock } from '../lib/clock.ts'

/** Up to here a body is read without asking for room. */
export const smallBodyBytesMax = 128 * 1024
/** Larger ones have a room of their own, so that the many do not wait for the few. */
const commonBodyBytesMax = 8 * 1024 * 1024
const roomBytesMax = 32 * 1024 * 1024
/** Of one who sends them, of what others leave: something stays free for the next, however many want everything. */
const senderPart = 1 / 2
/** Bun has up to 1.3 MiB of each already. */
const waitingMax = 448
/** One who fills its places leaves as many for all others. */
const senderWaitingMax = 224
/** How slowly a body that has its room may come while others wait for theirs. */
const senderMsMin = 10_000
const senderBytesPerMs = 256
const lookAgainMs = 1000
/** After it came, what is made of it may take so long while it counts: nobody waits for a program, or for a reader. */
const usedMsMax = 10_000

/** Room that was taken for a body. */
export interface BodyPlace extends Disposable {
  /** To be told of what came of it. Aborts when it came too slowly, with the reason. */
  came(bytes: number): void
  readonly signal: AbortSignal
  /** All of it came. */
  whole(): void
}

/**
 * Bodies that are read whole, and that together take no more memory than they have room for: who sends a large one waits until
 * there is some, and the connection holds back the bytes meanwhile.
 */
export class LargeBodies {
  readonly #clock: Clock
  readonly #common = roomFor('large requests are on their way')
  readonly #largest = roomFor('very large requests are on their way')

  constructor(clock: Clock) {
    this.#clock = clock
  }

  /** Once there is room. `sender`: who is to leave room for others; `left`: it is gone. @throws too_many_requests */
  async enter(bytes: number, sender: string, left?: AbortSignal): Promise<BodyPlace> {
    const room = bytes <= commonBodyBytesMax ? this.#common : this.#largest
    await room.take(bytes, sender, left)
    let isIn = true
    const leave = () => {
      if (isIn) room.leave(bytes, sender)
      isIn = false
      over.abort()
    }
    const over = new AbortController()
    const late = new AbortController()
    let cameBytes = 0
    let isWhole = false
    const watch = async () => {
      const beganAt = this.#clock.monotonic()
      await this.#clock.sleep(senderMsMin, over.signal)
      while (!isWhole) {
        const isSlow = this.#clock.monotonic() - beganAt > senderMsMin + cameBytes / senderBytesPerMs
        if (isSlow && room.waiting > 0) return late.abort(tooSlow())
        await this.#clock.sleep(lookAgainMs, over.signal)
      }
    }
    watch().catch(() => {})
    return {
      signal: late.signal,
      came(count) {
        cameBytes += count
      },
      whole: () => {
        if (isWhole) return
        isWhole = true
        this.#clock.sleep(usedMsMax, over.signal).then(leave, () => {})
      },
      [Symbol.dispose]: leave,
    }
  }
}

function roomFor(what: string): ByteRoom {
  return new ByteRoom({
    bytesMax: roomBytesMax,
    waitingMax,
    what,
    holderPart: senderPart,
    holderWaitingMax: senderWaitingMax,
  })
}

function tooSlow(): PlatformError {
  const message = 'the body came slowly and others wait to send theirs: try again'
  return new PlatformError('too_many_requests', message, { retryAfterSeconds: 5 })
}
