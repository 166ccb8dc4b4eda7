import { readFileSync, renameSync, writeFileSync } from 'node:fs'
import { writeFile } from 'node:fs/promises'
import type { z } from 'zod'

/** What a driver knows of an instance, in the instance's directory. */
export class RecordFile<Record> {
  readonly #schema: z.ZodType<Record>

  constructor(schema: z.ZodType<Record>) {
    this.#schema = schema
  }

  /** The first record of an instance. One that a crash cut off is as none: nothing was made for the instance yet. */
  async create(dir: string, record: Record): Promise<void> {
    await writeFile(pathIn(dir), JSON.stringify(record), { mode: 0o600, flag: 'wx' })
  }

  /** Replaced whole, so that a crash leaves the old one or the new one. */
  write(dir: string, record: Record): void {
    writeFileSync(`${pathIn(dir)}.new`, JSON.stringify(record), { mode: 0o600 })
    renameSync(`${pathIn(dir)}.new`, pathIn(dir))
  }

  /** Null when the instance never got as far as having one. */
  read(dir: string): Record | null {
    try {
      return this.#schema.parse(JSON.parse(readFileSync(pathIn(dir), 'utf8')))
    } catch {
      return null
    }
  }
}

function pathIn(dir: string): string {
  return `${dir}/instance.json`
}
