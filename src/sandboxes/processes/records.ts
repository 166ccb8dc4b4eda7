import { appendFileSync, renameSync, unlinkSync, writeFileSync } from 'node:fs'
import { chmod, mkdir, readdir, readFile, rm, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { z } from 'zod'
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
    })
    .nullable(),
})

/** What is remembered of a process beyond the guest's knowledge: enough to go on after hutch was killed. */
export type ProcessRecord = z.infer<typeof processRecord>

/** Of one file; then it is written anew. */
const linesMax = 16

/**
 * One small file a process, a line of JSON for each state it was in; the last whole line counts. Appending costs a
 * fraction of replacing the file, and a line that a crash cut off is as if it had not been written. Readable by the
 * owner alone: it may hold an environment.
 */
export class ProcessRecords {
  /** Lines of the files that may be appended to: those known to end with a whole one, and to hold no environment. */
  private readonly lines = new Map<number, number>()

  constructor(
    private readonly dir: string,
    private readonly log: Logger,
  ) {}

  async load(): Promise<ProcessRecord[]> {
    await mkdir(this.dir, { recursive: true, mode: 0o700 })
    await chmod(this.dir, 0o700)
    const records: ProcessRecord[] = []
    for (const file of await readdir(this.dir)) {
      const path = join(this.dir, file)
      if (!/^\d+\.json$/.test(file)) {
        if (file.endsWith('.new')) await rm(path, { force: true })
        continue
      }
      try {
        records.push(lastRecord(await readFile(path, 'utf8')))
      } catch (error) {
        this.log.warn('a process record that cannot be read was dropped', { file, error: String(error) })
        await rm(path, { force: true })
      }
    }
    return records.sort((a, b) => a.id - b.id)
  }

  /** On return the file is there for any process of this host that looks: it survives hutch, not loss of power. */
  save(record: ProcessRecord): void {
    const { id } = record
    const path = this.path(id)
    const line = `${JSON.stringify(record)}\n`
    const lines = this.lines.get(id)
    // Until this call has returned nothing is known to be right about the file.
    this.lines.delete(id)
    if (lines !== undefined && lines < linesMax && record.env === null) {
      appendFileSync(path, line, { mode: 0o600 })
      this.lines.set(id, lines + 1)
      return
    }
    if (lines !== undefined || !this.create(path, line)) {
      writeFileSync(`${path}.new`, line, { mode: 0o600 })
      renameSync(`${path}.new`, path)
    }
    if (record.env === null) this.lines.set(id, 1)
  }

  /** False when there is a file already. Without a rename: a new record that a crash cuts off never started anything. */
  private create(path: string, line: string): boolean {
    try {
      writeFileSync(path, line, { mode: 0o600, flag: 'wx' })
      return true
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'EEXIST') return false
      throw error
    }
  }

  /** When the directory was made. */
  async createdAt(): Promise<number> {
    const { birthtimeMs, ctimeMs } = await stat(this.dir)
    return birthtimeMs > 0 ? birthtimeMs : ctimeMs
  }

  async remove(id: number): Promise<void> {
    this.lines.delete(id)
    try {
      unlinkSync(this.path(id))
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error
    }
  }

  private path(id: number): string {
    return join(this.dir, `${id}.json`)
  }
}

function lastRecord(text: string): ProcessRecord {
  const lines = text.split('\n').filter((line) => line !== '')
  const last = lines.pop() ?? ''
  try {
    return processRecord.parse(JSON.parse(last))
  } catch (error) {
    // Cut off in the middle: what stood before it still holds.
    const before = lines.pop()
    if (before === undefined) throw error
    return processRecord.parse(JSON.parse(before))
  }
}
