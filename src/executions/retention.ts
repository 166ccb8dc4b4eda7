import type { Clock } from '../lib/clock.ts'
import type { Logger } from '../lib/log.ts'
import type { Queue } from '../spec/queue.ts'

const lookEveryMs = 60_000
/** Removed in one commit, so that what is accepted meanwhile waits for no more than this. */
const stepMax = 50
/** Between two steps: most of the time is others'. */
const pauseMs = 20
/** From here on what ended makes room for what comes. */
const fullShare = 0.8

export interface RetentionOptions {
  queue: Queue
  clock: Clock
  log: Logger
  keptMs: number
  /** Of one workspace. */
  keptMax: number
  /** What all of it may take on disk: well before that the oldest go sooner. */
  bytesMax: number
  /** Looked at as often. */
  also(): Promise<void>
}

/** Takes away what ended long ago, and the oldest of what is too much, in small steps. */
export class Retention {
  readonly #options: RetentionOptions
  readonly #closing = new AbortController()
  #loop: Promise<void> | null = null

  constructor(options: RetentionOptions) {
    this.#options = options
  }

  open(): void {
    this.#loop ??= this.#run()
  }

  async close(): Promise<void> {
    this.#closing.abort()
    await this.#loop
  }

  async #run(): Promise<void> {
    const { clock, log } = this.#options
    const { signal } = this.#closing
    for (;;) {
      // A start has better things to do.
      await clock.sleep(lookEveryMs, signal).catch(() => {})
      if (signal.aborted) return
      try {
        await this.#sweep(signal)
        await this.#options.also()
      } catch (error) {
        if (!signal.aborted) log.error('executions: what is old could not be removed', { error })
      }
    }
  }

  async #sweep(signal: AbortSignal): Promise<void> {
    const { queue, clock, keptMs, keptMax, bytesMax } = this.#options
    while (!signal.aborted) {
      const endedBefore = Math.trunc(clock.now() - keptMs)
      if ((await queue.prune({ endedBefore, keptMax, limit: stepMax })) < stepMax) break
      await clock.sleep(pauseMs, signal).catch(() => {})
    }
    while (!signal.aborted && queue.bytes() > bytesMax * fullShare) {
      const endedBefore = Math.trunc(clock.now()) + 1
      if ((await queue.prune({ endedBefore, keptMax, limit: stepMax })) === 0) return
      await clock.sleep(pauseMs, signal).catch(() => {})
    }
  }
}
