import { readFileSync, renameSync, writeFileSync } from 'node:fs'
import { z } from 'zod'

export const handleVersion = 1

export const recordSchema = z.strictObject({
  bootId: z.string(),
  guest: z.strictObject({ pid: z.int().positive(), startTime: z.number() }),
  /** Set when the wanted working directory could not be made. */
  workingDir: z.strictObject({ from: z.string(), to: z.string() }).nullable(),
})
export type ProcessRecord = z.infer<typeof recordSchema>

const recordName = 'instance.json'

export function writeRecord(dir: string, record: ProcessRecord): void {
  writeFileSync(`${dir}/${recordName}.new`, JSON.stringify(record), { mode: 0o600 })
  renameSync(`${dir}/${recordName}.new`, `${dir}/${recordName}`)
}

export function readRecord(dir: string): ProcessRecord | null {
  try {
    return recordSchema.parse(JSON.parse(readFileSync(`${dir}/${recordName}`, 'utf8')))
  } catch {
    return null
  }
}
