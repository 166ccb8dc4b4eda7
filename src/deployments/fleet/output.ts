import type { Logger } from '../../lib/log.ts'
import { LineCutter } from '../../sandboxes/processes.ts'
import type { Guest } from '../../spec/guest.ts'

/** Of what a program wrote last, for whoever asks why it ended. */
const keptLinesMax = 20
const keptLineCharsMax = 500
/** A line that never ends is passed on in pieces of so many characters. */
const lineCharsMax = 16 * 1024

export type LineSink = (line: string, stream: 'stdout' | 'stderr', at: number) => void

/** Reads what a process writes, line by line, for as long as it runs or somebody wants it. */
export class ProgramOutput implements Disposable {
  /** Resolves when all of it was read. Never rejects. */
  readonly read: Promise<void>
  readonly #closing = new AbortController()
  readonly #kept: string[] = []

  constructor(options: { guest: Guest; processId: number; after: number; sink: LineSink; log: Logger }) {
    this.read = this.#read(options).catch((error) => {
      if (this.#closing.signal.aborted) return
      options.log.debug('what a program writes cannot be read any more', { error: String(error) })
    })
  }

  /** The last lines of both streams together. */
  get lastLines(): string[] {
    return [...this.#kept]
  }

  async #read({
    guest,
    processId,
    after,
    sink,
  }: ConstructorParameters<typeof ProgramOutput>[0]): Promise<void> {
    const cutter = new LineCutter()
    const { signal } = this.#closing
    const pass = (pieces: Buffer[], stream: 'stdout' | 'stderr', at: number) => {
      for (const piece of pieces) {
        const text = piece.toString()
        for (const line of (text.endsWith('\n') ? text.slice(0, -1) : text).split('\n')) {
          this.#pass(line.endsWith('\r') ? line.slice(0, -1) : line, stream, at, sink)
        }
      }
    }
    let lastAt = after
    for await (const records of guest.processes.output(processId, {
      follow: true,
      reuseMemory: true,
      signal,
    })) {
      for (const { kind, data, at } of records) {
        // What an earlier life of the platform passed on already.
        if (kind === 'truncated' || at <= after) continue
        lastAt = at
        pass(cutter.push(kind, data), kind, at)
      }
    }
    for (const stream of ['stdout', 'stderr'] as const) pass(cutter.end(stream), stream, lastAt)
  }

  #pass(line: string, stream: 'stdout' | 'stderr', at: number, sink: LineSink): void {
    this.#kept.push(line.slice(0, keptLineCharsMax))
    if (this.#kept.length > keptLinesMax) this.#kept.shift()
    for (let start = 0; start === 0 || start < line.length; start += lineCharsMax) {
      sink(line.slice(start, start + lineCharsMax), stream, at)
    }
  }

  [Symbol.dispose](): void {
    this.#closing.abort()
  }
}
