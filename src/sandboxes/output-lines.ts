import { PlatformError } from '../errors.ts'
import type { Clock } from '../lib/clock.ts'
import { isWanted, type LogFilter, type LogLine, logLine } from '../telemetry/index.ts'
import type { SandboxLease, SandboxLeases } from './leases.ts'
import { LineCutter } from './processes.ts'

/** Of lines that are kept while they are looked for; the oldest go first. */
const charsMax = 16 * 1024 * 1024
/** Of output that is read at once, the newest processes first. */
const readBytesMax = 64 * 1024 * 1024
const followEveryMs = 1_000

interface Reader {
  offset: number
  cutter: LineCutter
  /** Of the line before; of those in one millisecond each has a microsecond of its own. */
  lastUs: number
}

/** What processes of sandboxes wrote, as lines of a log. */
export class SandboxOutput {
  readonly #leases: Pick<SandboxLeases, 'acquire' | 'acquireAsIs' | 'isResting'>
  readonly #clock: Clock

  constructor({ leases, clock }: { leases: SandboxLeases; clock: Clock }) {
    this.#leases = leases
    this.#clock = clock
  }

  /** Oldest first; none of a sandbox that does not run. Wakes it. */
  async lines(workspace: string, name: string, filter: LogFilter, signal?: AbortSignal): Promise<LogLine[]> {
    return await this.#look('acquire', [workspace, name, signal], new OutputLines(filter))
  }

  /** What there is, then what comes, every second, oldest first. A sandbox is woken once, and falls asleep meanwhile. */
  async *follow(
    workspace: string,
    name: string,
    filter: LogFilter,
    signal: AbortSignal,
  ): AsyncGenerator<LogLine[]> {
    const output = new OutputLines(filter)
    for (let first = true; !signal.aborted; first = false) {
      if (first || !this.#leases.isResting(workspace, name)) {
        const lines = await this.#look(first ? 'acquire' : 'acquireAsIs', [workspace, name, signal], output)
        if (lines.length > 0) yield lines
      }
      await this.#clock.sleep(followEveryMs, signal).catch(() => {})
    }
  }

  async #look(
    take: 'acquire' | 'acquireAsIs',
    [workspace, name, signal]: [string, string, AbortSignal | undefined],
    output: OutputLines,
  ): Promise<LogLine[]> {
    using lease = await this.#leases[take](workspace, name, signal).catch(whenThereIsOne)
    return lease === null ? [] : await output.read(lease, signal)
  }
}

/** Of one that does not run there is nothing to be read. */
function whenThereIsOne(error: unknown): null {
  if (PlatformError.is(error) && !['internal', 'unavailable'].includes(error.code)) return null
  throw error
}

/** Line by line, with when. Each look goes on where the one before ended. */
class OutputLines {
  readonly #filter: LogFilter
  readonly #readers = new Map<number, Reader>()

  constructor(filter: LogFilter) {
    this.#filter = filter
  }

  /** What is new, oldest first. */
  async read({ instance, processes }: SandboxLease, signal?: AbortSignal): Promise<LogLine[]> {
    const found: LogLine[] = []
    let budget = readBytesMax
    for (const { id, ended } of processes.runs()) {
      if (budget <= 0) break
      const reader = this.#readers.get(id) ?? { offset: 0, cutter: new LineCutter(), lastUs: 0 }
      this.#readers.set(id, reader)
      const lines: LogLine[] = []
      try {
        for await (const batch of instance.guest.processes.output(id, {
          fromOffset: reader.offset,
          ...(signal ? { signal } : {}),
        }))
          for (const record of batch) {
            reader.offset = record.endOffset
            const { kind, at } = record
            if (kind === 'truncated') continue
            budget -= record.data.length
            this.#add(lines, reader, { kind, at }, reader.cutter.push(kind, record.data))
          }
      } catch {
        // Output of a machine that was started again is gone.
        continue
      }
      if (ended)
        for (const kind of ['stdout', 'stderr'] as const)
          this.#add(lines, reader, { kind, at: ended.at }, reader.cutter.end(kind))
      found.push(...lines)
    }
    return found.sort((left, right) => left.atUs - right.atUs)
  }

  #add(
    lines: LogLine[],
    reader: Reader,
    { kind: stream, at }: { kind: 'stdout' | 'stderr'; at: number },
    pieces: Buffer[],
  ): void {
    for (const piece of pieces)
      for (const message of piece.toString('utf8', 0, piece.length - 1).split('\n')) {
        reader.lastUs = Math.max(Math.round(at * 1000), reader.lastUs + 1)
        const line = logLine({ atUs: reader.lastUs, stream, message })
        if (isWanted(line, this.#filter)) lines.push(line)
      }
    dropOldest(lines)
  }
}

function dropOldest(lines: LogLine[]): void {
  let chars = 0
  for (let at = lines.length - 1; at >= 0; at--) {
    chars += lines[at]!.message.length
    if (chars > charsMax) return void lines.splice(0, at + 1)
  }
}
