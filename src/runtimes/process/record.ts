import { z } from 'zod'
import { RecordFile } from '../record-file.ts'

export const handleVersion = 1

export const recordSchema = z.strictObject({
  bootId: z.string(),
  guest: z.strictObject({ pid: z.int().positive(), startTime: z.number() }),
  /** Set when the wanted working directory could not be made. */
  workingDir: z.strictObject({ from: z.string(), to: z.string() }).nullable(),
})
export type ProcessRecord = z.infer<typeof recordSchema>

export const recordFile = new RecordFile(recordSchema)
