import { PlatformError } from '../errors.ts'

/** Work of one part of the platform that goes on behind answers, and that its stop waits for. */
export class Background {
  readonly #work = new Set<Promise<unknown>>()
  readonly #closing = new AbortController()
  readonly #failed: (error: unknown) => void

  /** `failed` is called when work failed that nobody waits for. */
  constructor(failed: (error: unknown) => void) {
    this.#failed = failed
  }

  /** Aborted, with the error that requests are refused with from then on, by `close`. */
  get closing(): AbortSignal {
    return this.#closing.signal
  }

  /** @throws unavailable */
  refuseWhenClosing(): void {
    if (this.#closing.signal.aborted) throw this.#closing.signal.reason
  }

  /** The caller waits for it too, and hears of its failure. */
  track<Result>(work: Promise<Result>): Promise<Result> {
    this.#work.add(work)
    const done = () => this.#work.delete(work)
    work.then(done, done)
    return work
  }

  /** Nobody waits for it. */
  run(work: Promise<unknown>): void {
    void this.track(work.catch(this.#failed))
  }

  /** Resolves when nothing is under way. */
  async settled(): Promise<void> {
    while (this.#work.size > 0) await Promise.allSettled(this.#work)
  }

  /** Calls off what looks at `closing`; `settled` waits for the rest. Idempotent. */
  close(): void {
    this.#closing.abort(
      new PlatformError('unavailable', 'the platform is stopping', { retryAfterSeconds: 5 }),
    )
  }
}
