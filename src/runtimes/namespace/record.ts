import { z } from 'zod'
import type { ProcessIdentity } from '../../guest/index.ts'
import { RecordFile } from '../record-file.ts'

export const handleVersion = 1

/** Chosen by the caller, and a name of directories and groups here. */
export const instanceIdPattern = /^[a-z0-9]{12,40}$/

const identity = z.strictObject({ pid: z.int().positive(), startTime: z.number() })

const groups = z.array(
  z.strictObject({
    version: z.union([z.literal(1), z.literal(2)]),
    dir: z.string(),
    controllers: z.array(z.enum(['memory', 'cpu', 'pids'])),
    freezes: z.boolean(),
  }),
)

/** What is needed to take an instance away, written before there is anything to take away. */
const recordSchema = z.strictObject({
  bootId: z.string(),
  uidBase: z.int().nullable(),
  disk: z.enum(['loop', 'dir']),
  groups,
  /** For its share of the processors. */
  memoryMb: z.int().positive().optional(),
})
export type InstanceRecord = z.infer<typeof recordSchema>

/** State of a handle: the record, and which processes it is. */
const stateSchema = z.strictObject({ ...recordSchema.shape, guest: identity, keeper: identity })
export interface InstanceState extends InstanceRecord {
  guest: ProcessIdentity
  keeper: ProcessIdentity
}

export const recordFile = new RecordFile(recordSchema)

export function parseState(state: unknown): InstanceState | null {
  const parsed = stateSchema.safeParse(state)
  return parsed.success ? parsed.data : null
}
