import type { Clock } from '../../lib/clock.ts'
import type { Logger } from '../../lib/log.ts'
import { WorkerThread } from '../../lib/worker-thread.ts'
import type { FromFolder, ToFolder } from './protocol.ts'

/** Pages, 32 MiB: from there on the log is folded into the database. A page that is written often is in it often, and folded once. */
const foldFromPagesDefault = 8192
/** While so few are folded commits wait, so that the log can begin anew after. */
const lastPagesMax = 1024
/** 128 MiB: commits wait for the folding, however much is left. */
const logPagesMax = 32_768
const alongPassesMax = 4
/** Somebody else reads from the log, or it failed: it is tried again when the log is so much longer, or after a while. */
const againAfterPages = 2048
const againAfterMs = 1000

export interface LogFoldingOptions {
  path: string
  clock: Clock
  log: Logger
  startWorker: () => Bun.Worker
  foldFromPages?: number
  /** Commits may begin, if they had to wait. */
  onFree(): void
}

/**
 * When the log is folded into the database: by a thread of its own, while commits go on. These make the log longer; so
 * once little is left they wait for a few milliseconds, and the next commit finds nothing in the log that is needed, and
 * begins it anew.
 */
export class LogFolding {
  readonly #options: LogFoldingOptions
  readonly #thread: WorkerThread<ToFolder, Exclude<FromFolder, { type: 'closed' }>>
  #logPages = 0
  #isCommitting = false
  #isFolding = false
  /** The next pass, or the one under way, is one that commits wait for. */
  #isLast = false
  #passes = 0
  #againFromPages = 0
  #againAt = 0
  #hasFailed = false
  #onOver: (() => void) | null = null
  #isClosing = false

  constructor(options: LogFoldingOptions) {
    this.#options = options
    this.#thread = new WorkerThread({
      start: options.startWorker,
      onMessage: (message) => {
        if (message.type === 'folded') this.#folded(message.left)
        else this.#failed(message.detail)
      },
      onDied: (reason) => {
        if (this.#isFolding) this.#failed(reason)
      },
    })
  }

  /** No commit may begin: `onFree` says when. */
  get commitsWait(): boolean {
    return this.#isLast
  }

  commitBegins(): void {
    this.#isCommitting = true
  }

  /** `logPages`: how long the log is now; null: nobody knows. */
  commitEnds(logPages: number | null): void {
    this.#isCommitting = false
    this.#logPages = logPages ?? this.#logPages
    if (this.#isFolding || this.#isClosing) return
    const { clock, foldFromPages = foldFromPagesDefault } = this.#options
    const isAgain = this.#logPages >= this.#againFromPages || clock.monotonic() >= this.#againAt
    if (this.#isLast || (this.#logPages >= foldFromPages && isAgain)) this.#fold()
  }

  /** Ends the thread, and its connection. */
  async close(): Promise<void> {
    this.#isClosing = true
    if (this.#isFolding) await new Promise<void>((resolve) => (this.#onOver = resolve))
    await this.#thread.close({ type: 'close' })
  }

  #fold(): void {
    this.#isFolding = true
    this.#passes++
    this.#thread.works()
    this.#thread.send({ type: 'fold', path: this.#options.path })
  }

  #folded(left: number): void {
    this.#isFolding = false
    this.#hasFailed = false
    const isOver = this.#isLast || left === 0 || this.#isClosing
    this.#isLast = !isOver && (left <= lastPagesMax || this.#logPages >= logPagesMax)
    if (isOver || (!this.#isLast && this.#passes >= alongPassesMax)) this.#over(left)
    else if (!this.#isLast || !this.#isCommitting) this.#fold()
  }

  #failed(detail: string): void {
    this.#isFolding = false
    const { log } = this.#options
    const message = 'store: the log could not be folded into the database, it is tried again'
    log[this.#hasFailed ? 'debug' : 'warn'](message, { detail })
    this.#hasFailed = true
    this.#over(1)
  }

  #over(left: number): void {
    this.#isLast = false
    this.#passes = 0
    this.#againFromPages = left === 0 ? 0 : this.#logPages + againAfterPages
    this.#againAt = left === 0 ? 0 : this.#options.clock.monotonic() + againAfterMs
    this.#thread.rests()
    this.#onOver?.()
    this.#options.onFree()
  }
}
