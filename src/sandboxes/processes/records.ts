import { appendFileSync, mkdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs'
import { dirname } from 'node:path'
import { z } from 'zod'
import type { Clock } from '../../lib/clock.ts'
import type { Logger } from '../../lib/log.ts'

const run = z.object({
  /** The guest's process id. */
  id: z.number().int().positive(),
  /** Said in the log behind the run's output, when another run follows. */
  note: z.string().nullable(),
})

const processRecord = z.object({
  version: z.literal(1),
  /** Id of the first run: names the file. */
  id: z.number().int().positive(),
  name: z.string(),
  command: z.string(),
  /** Of the image's own program, which no shell starts. */
  argv: z.array(z.string()).optional(),
  /** As it was asked for; '' when it was not. */
  workingDir: z.string(),
  /** Of the request; kept only while a restart may need it. */
  env: z.record(z.string(), z.string()).nullable(),
  stdin: z.boolean(),
  keepAlive: z.boolean(),
  restartOnFailure: z.boolean(),
  maxRestarts: z.number().int(),
  restartCount: z.number().int(),
  /** When it is killed, in milliseconds since the epoch. */
  deadlineAt: z.number().nullable(),
  /** Of the first run: stays the same over restarts. Null until it runs. */
  pid: z.number().int().nullable(),
  startedAt: z.number(),
  /** Oldest first; the last is the current one. */
  runs: z.array(run).min(1),
  /** What was asked of it. */
  intent: z.enum(['stop', 'kill', 'timeout']).nullable(),
  ended: z
    .object({
      at: z.number(),
      exitCode: z.number().int(),
      status: z.enum(['completed', 'failed', 'killed', 'stopped']),
      /** Which ended it; absent in older ones, too. */
      signal: z.number().int().optional(),
      /** The kernel ended it, or a program of it, for want of memory. */
      outOfMemory: z.literal(true).optional(),
    })
    .nullable(),
})

/** What is remembered of a process beyond the guest's knowledge: enough to go on after hutch was killed. */
export type ProcessRecord = z.infer<typeof processRecord>

const header = z.object({ version: z.literal(1), openedAt: z.number() })
const removal = z.object({ version: z.literal(1), id: z.number().int(), removed: z.literal(true) })

/** Lines that no longer count, beyond as many as do; then the file is written anew. */
const spareLinesMax = 256

/**
 * One file a sandbox, a line of JSON for each state a process was in: the last one of a process counts. Appending to
 * one file costs a hundredth of making a file for each process. A line that a crash cut off is as if it had not been
 * written. Readable by the owner alone, since a line may hold an environment; once that is of no use it is gone.
 */
export class ProcessRecords {
  /** What counts, by process. */
  private readonly current = new Map<number, { line: string; private: boolean }>()
  private openedAt: number
  private readonly startedAt: number | undefined
  private lines = 0
  /** The file may end in a part of a line: it is written anew before anything is added. */
  private torn = true

  constructor(
    private readonly path: string,
    private readonly clock: Clock,
    private readonly log: Logger,
    startedAt?: number,
  ) {
    this.openedAt = startedAt ?? clock.now()
    this.startedAt = startedAt
  }

  /**
   * `openedAt`: when this sandbox was first opened, in milliseconds since the epoch. `isNew`: nothing was ever recorded,
   * and so no process started. The file is made with the first record: most of what a sandbox costs is files.
   */
  load(): { openedAt: number; records: ProcessRecord[]; isNew: boolean } {
    const records = new Map<number, ProcessRecord>()
    this.openedAt = this.startedAt ?? this.clock.now()
    const text = this.read()
    if (text === null) {
      mkdirSync(dirname(this.path), { recursive: true, mode: 0o700 })
      this.torn = false
      return { openedAt: this.openedAt, records: [], isNew: true }
    }
    const lines = text.split('\n').filter((line) => line !== '')
    for (const [index, line] of lines.entries()) {
      const parsed = parseLine(line)
      if (parsed === null) {
        // The last one may have been cut off by a crash; nobody was told of what it said.
        const cutOff = index === lines.length - 1
        if (!cutOff) this.log.warn('a process record that cannot be read was dropped', { path: this.path })
      } else if ('openedAt' in parsed) {
        this.openedAt = parsed.openedAt
      } else if ('removed' in parsed) {
        records.delete(parsed.id)
        this.current.delete(parsed.id)
      } else {
        records.set(parsed.id, parsed)
        this.current.set(parsed.id, { line, private: parsed.env !== null })
      }
    }
    this.lines = lines.length
    this.torn = !text.endsWith('\n')
    const inOrder = [...records.values()].sort((a, b) => a.id - b.id)
    return { openedAt: this.openedAt, records: inOrder, isNew: false }
  }

  /** On return the record is there for any process of this host that looks: it survives hutch, not loss of power. */
  save(record: ProcessRecord): void {
    const line = JSON.stringify(record)
    const before = this.current.get(record.id)
    this.current.set(record.id, { line, private: record.env !== null })
    // An environment that is no longer needed must not stay in an older line.
    if (before?.private) this.rewrite()
    else this.append(line)
  }

  remove(id: number): void {
    const before = this.current.get(id)
    if (!before) return
    this.current.delete(id)
    if (before.private) this.rewrite()
    else this.append(JSON.stringify({ version: 1, id, removed: true }))
  }

  private append(line: string): void {
    if (this.torn || this.lines > 2 * this.current.size + spareLinesMax) {
      this.rewrite()
      return
    }
    const text = this.lines === 0 ? `${this.header()}\n${line}\n` : `${line}\n`
    this.torn = true
    appendFileSync(this.path, text, { mode: 0o600 })
    this.torn = false
    this.lines += this.lines === 0 ? 2 : 1
  }

  private rewrite(): void {
    const lines = [this.header(), ...[...this.current.values()].map(({ line }) => line)]
    writeFileSync(`${this.path}.new`, `${lines.join('\n')}\n`, { mode: 0o600 })
    renameSync(`${this.path}.new`, this.path)
    this.lines = lines.length
    this.torn = false
  }

  private header(): string {
    return JSON.stringify({ version: 1, openedAt: this.openedAt })
  }

  private read(): string | null {
    try {
      return readFileSync(this.path, 'utf8')
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'ENOENT') return null
      throw error
    }
  }
}

function parseLine(line: string): z.output<typeof header> | z.output<typeof removal> | ProcessRecord | null {
  try {
    const value = JSON.parse(line)
    if ('openedAt' in value) return header.parse(value)
    return 'removed' in value ? removal.parse(value) : processRecord.parse(value)
  } catch {
    return null
  }
}
