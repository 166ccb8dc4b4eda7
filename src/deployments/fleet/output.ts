import type { Clock } from '../../lib/clock.ts'
import type { Logger } from '../../lib/log.ts'
import { Pace } from '../../lib/pace.ts'
import { LineCutter } from '../../sandboxes/processes.ts'
import type { Guest } from '../../spec/guest.ts'

/** Of what a program wrote last, for whoever asks why it ended. */
const keptLinesMax = 20
const keptLineCharsMax = 500
/** A line that never ends is passed on in pieces of so many characters. */
const lineCharsMax = 16 * 1024
/** What one program may say; one that says more waits. Its last 32 MiB lie between it and that. */
const bytesPerSecondMax = 512 * 1024
const burstBytesMax = 2 * 1024 * 1024

export type LineSink = (line: string, stream: 'stdout' | 'stderr', at: number) => void

/** Reads what a process writes, line by line, for as long as it runs or somebody wants it. */
export class ProgramOutput implements Disposable {
  /** Resolves when all of it was read. Never rejects. */
  readonly read: Promise<void>
  readonly #closing = new AbortController()
  readonly #kept: string[] = []

  constructor(options: {
    guest: Guest
    processId: number
    after: number
    sink: LineSink
    clock: Clock
    log: Logger
  }) {
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
    clock,
  }: ConstructorParameters<typeof ProgramOutput>[0]): Promise<void> {
    const cutter = new LineCutter()
    const { signal } = this.#closing
    const pace = new Pace({ perSecond: bytesPerSecondMax, burst: burstBytesMax, clock })
    const pass = async (pieces: Buffer[], stream: 'stdout' | 'stderr', at: number) => {
      for (const piece of pieces) {
        const text = piece.toString()
        for (const line of (text.endsWith('\n') ? text.slice(0, -1) : text).split('\n')) {
          this.#pass(line.endsWith('\r') ? line.slice(0, -1) : line, stream, at, sink)
          const wait = pace.pass(line.length, signal)
          if (wait !== null) await wait
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
        await pass(cutter.push(kind, data), kind, at)
      }
    }
    for (const stream of ['stdout', 'stderr'] as const) await pass(cutter.end(stream), stream, lastAt)
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
