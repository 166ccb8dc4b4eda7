import type { Logger } from '../lib/log.ts'
import type { OutputRecord } from '../spec/guest.ts'
import type { OutputNotice } from './codec.ts'
import { FrameType, FrameWriter } from './frame.ts'
import type { OutputLog } from './output.ts'
import type { Requests } from './requests.ts'

/** A reader says how far it is after this many bytes, so that the process need not wait for the next round. */
const acknowledgeBytes = 1024 * 1024
const floodBytes = 64 * 1024
const floodPauseMs = 1

/** All local readers of one process's output are one follower to the guest. */
interface Follower {
  readers: Set<FollowReader>
  endOffset: number
  eof: boolean
  /** An ATTACH was sent and not yet answered by OUTPUT: the guest may announce once. */
  armed: boolean
  acknowledged: number
}

interface FollowReader {
  position: number
  wake: () => void
}

/**
 * Readers that go on reading what processes write: from the log on disk, and the guest announces that there is more. It
 * is told how far the slowest of them is.
 */
export class OutputFollowers {
  readonly #followers = new Map<number, Follower>()
  readonly #requests: Requests
  readonly #isEnded: (id: number) => boolean
  readonly #log: Logger

  constructor(options: { requests: Requests; isEnded: (id: number) => boolean; log: Logger }) {
    this.#requests = options.requests
    this.#isEnded = options.isEnded
    this.#log = options.log
  }

  get size(): number {
    return this.#followers.size
  }

  /** Ends when the process ended and all that it wrote was read. */
  async *follow(id: number, log: OutputLog, signal?: AbortSignal): AsyncGenerator<OutputRecord[]> {
    let announced = Promise.withResolvers<void>()
    const reader: FollowReader = { position: log.position, wake: () => announced.resolve() }
    const follower = this.#followers.get(id) ?? {
      readers: new Set(),
      endOffset: 0,
      eof: false,
      armed: false,
      acknowledged: -1,
    }
    this.#followers.set(id, follower)
    follower.readers.add(reader)
    signal?.addEventListener('abort', reader.wake, { once: true })
    try {
      await this.#attach(id, follower)
      for (;;) {
        announced = Promise.withResolvers<void>()
        const roundStart = log.position
        // Asked before reading, so that what is written in between is announced and read in the next round.
        const ended = this.#isEnded(id) || follower.eof
        for await (const records of log.read()) {
          signal?.throwIfAborted()
          yield records
          reader.position = log.position
          if (reader.position - follower.acknowledged >= acknowledgeBytes) await this.#attach(id, follower)
        }
        signal?.throwIfAborted()
        reader.position = log.position
        if (ended) return
        // A flood is taken in larger pieces: asking for each small one costs more than the bytes do.
        if (log.position - roundStart >= floodBytes) await Bun.sleep(floodPauseMs)
        if (!follower.armed) await this.#attach(id, follower)
        if (this.#isEnded(id) || follower.eof || follower.endOffset > log.position) continue
        if (this.#requests.failure) throw this.#requests.failure
        await announced.promise
        signal?.throwIfAborted()
        if (this.#requests.failure) throw this.#requests.failure
      }
    } finally {
      signal?.removeEventListener('abort', reader.wake)
      follower.readers.delete(reader)
      if (follower.readers.size === 0 && this.#followers.get(id) === follower) {
        this.#followers.delete(id)
        this.#requests
          .request(id, new FrameWriter(FrameType.detach, id).finish(), FrameType.ok)
          .catch((error) => this.#log.debug('detach failed', { error: String(error) }))
      }
    }
  }

  /** The guest announced more. False: nobody asked for that. */
  announced(id: number, notice: OutputNotice): boolean {
    const follower = this.#followers.get(id)
    if (!follower?.armed) return false
    follower.armed = false
    follower.endOffset = notice.endOffset
    follower.eof ||= notice.eof
    wake(follower)
    return true
  }

  /** The process ended, or something else is to be looked at. */
  wake(id: number): void {
    const follower = this.#followers.get(id)
    if (follower) wake(follower)
  }

  /** They find out themselves why. */
  wakeAll(): void {
    for (const follower of this.#followers.values()) wake(follower)
  }

  /** The guest knows of no follower any more, and only of these processes. */
  reconnected(exists: (id: number) => boolean): void {
    for (const [id, follower] of this.#followers) {
      follower.armed = false
      wake(follower)
      if (!exists(id)) follower.eof = true
    }
  }

  /** Tells the guest what the slowest reader has, and lets it announce once more. */
  async #attach(id: number, follower: Follower): Promise<void> {
    let consumed = Number.MAX_SAFE_INTEGER
    for (const reader of follower.readers) consumed = Math.min(consumed, reader.position)
    follower.acknowledged = consumed
    follower.armed = true
    const frame = new FrameWriter(FrameType.attach, id).u64(consumed).finish()
    const answer = await this.#requests.request(id, frame, FrameType.ok)
    // Already gone (ESRCH): it ended, and what it wrote is read without the guest.
    if (answer.type === FrameType.error) follower.eof = true
  }
}

function wake(follower: Follower): void {
  for (const reader of follower.readers) reader.wake()
}
