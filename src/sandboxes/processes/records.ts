import { renameSync, writeFileSync } from 'node:fs'
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

/** One small JSON file a process, replaced as a whole. Readable by the owner alone: it may hold an environment. */
export class ProcessRecords {
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
        records.push(processRecord.parse(JSON.parse(await readFile(path, 'utf8'))))
      } catch (error) {
        this.log.warn('a process record that cannot be read was dropped', { file, error: String(error) })
        await rm(path, { force: true })
      }
    }
    return records.sort((a, b) => a.id - b.id)
  }

  /** On return the file is there for any process of this host that looks: it survives hutch, not loss of power. */
  save(record: ProcessRecord): void {
    const path = this.path(record.id)
    writeFileSync(`${path}.new`, JSON.stringify(record), { mode: 0o600 })
    renameSync(`${path}.new`, path)
  }

  /** When the directory was made. */
  async createdAt(): Promise<number> {
    const { birthtimeMs, ctimeMs } = await stat(this.dir)
    return birthtimeMs > 0 ? birthtimeMs : ctimeMs
  }

  async remove(id: number): Promise<void> {
    await rm(this.path(id), { force: true })
  }

  private path(id: number): string {
    return join(this.dir, `${id}.json`)
  }
}
