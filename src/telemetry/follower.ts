import { isWanted, type LogFilter } from './filter.ts'
import type { LogLine } from './line.ts'

/** Lines that wait for a slow reader. */
const linesWaitingMax = 10_000
const charsWaitingMax = 4 * 1024 * 1024

/** Somebody who is given lines as they come. */
export class LogFollower implements Disposable {
  readonly #filter: LogFilter
  readonly #left: () => void
  #waiting: LogLine[] = []
  #chars = 0
  #leftOut = 0
  #ended = false
  #gone = false
  #wake: (() => void) | null = null

  /** `left` is called once. */
  constructor(filter: LogFilter, left: () => void) {
    this.#filter = filter
    this.#left = left
  }

  offer(line: LogLine): void {
    if (this.#ended || !isWanted(line, this.#filter)) return
    if (this.#waiting.length >= linesWaitingMax || this.#chars >= charsWaitingMax) {
      this.#leftOut++
      return
    }
    this.#waiting.push(line)
    this.#chars += line.message.length
    this.#wake?.()
  }

  /** What waits is still given. */
  end(): void {
    this.#ended = true
    this.#wake?.()
  }

  async *lines(): AsyncGenerator<LogLine> {
    for (;;) {
      const lines = this.#waiting
      const leftOut = this.#leftOut
      this.#waiting = []
      this.#chars = this.#leftOut = 0
      yield* lines
      if (leftOut > 0) yield gap(lines.at(-1)?.atUs ?? 0, leftOut)
      if (this.#waiting.length > 0 || this.#leftOut > 0) continue
      if (this.#ended) return
      await new Promise<void>((resolve) => {
        this.#wake = resolve
      })
      this.#wake = null
    }
  }

  [Symbol.dispose](): void {
    this.end()
    if (!this.#gone) this.#left()
    this.#gone = true
  }
}

function gap(atUs: number, lines: number): LogLine {
  return {
    atUs,
    stream: 'platform',
    severity: 'WARNING',
    revision: '',
    instance: '',
    execution: '',
    task: '',
    message: `[... ${lines} lines are left out: they came faster than they were read ...]`,
  }
}
