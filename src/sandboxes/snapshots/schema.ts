/** The wire shapes of snapshots and forks. */
import { z } from 'zod'
import { defined } from '../../lib/defined.ts'
import { envSchema, portSchema } from '../schema.ts'
import type { StoredSnapshot } from './record.ts'

export const snapshotSchema = z.lazy(() =>
  z.object({
    workspace: z.string(),
    id: z.string(),
    name: z.string(),
    /** As `source.name`, for older clients. */
    sandboxName: z.string(),
    source: z.object({ kind: z.literal('sandbox'), name: z.string(), deleted: z.boolean() }),
    spec: z.object({
      image: z.string(),
      memory: z.number(),
      ports: z.array(portSchema).optional(),
      region: z.string().optional(),
      generation: z.string().optional(),
    }),
    createdAt: z.string(),
    createdBy: z.string(),
    status: z.enum(['pending', 'ready', 'failed']),
    /** In bytes, on the disk of the host; once it is ready. */
    size: z.number().optional(),
    /** Memory of its programs is in it; absent where none ran. */
    memoryKept: z.boolean().optional(),
    /** Why it failed. */
    reason: z.string().optional(),
  }),
)
export type SnapshotView = z.output<typeof snapshotSchema>

export const sandboxSnapshotInputSchema = z.looseObject({ name: z.string().nullish() })

export const snapshotInputSchema = z.lazy(() =>
  sandboxSnapshotInputSchema.extend({
    source: z.looseObject({ name: z.string(), kind: z.enum(['sandbox']).nullish() }),
  }),
)

/** Some clients write `target_name` and `type`, or leave the type out and mean a sandbox. */
export const forkInputSchema = z.lazy(() =>
  z.looseObject({
    targetName: z.string().nullish(),
    target_name: z.string().nullish(),
    targetType: z.string().nullish(),
    type: z.string().nullish(),
    snapshotId: z.string().nullish(),
    port: z.number().int().nullish(),
    /** Of applications. */
    memory: z.number().int().nullish(),
    envs: z.array(envSchema).nullish(),
    traffic: z.number().nullish(),
    customDomain: z.string().nullish(),
    prefix: z.string().nullish(),
  }),
)
export type ForkInput = z.output<typeof forkInputSchema>

export const forkAnswerSchema = z.lazy(() =>
  z.object({
    type: z.enum(['sandbox', 'application']),
    name: z.string(),
    snapshotId: z.string(),
  }),
)
export type ForkAnswer = z.output<typeof forkAnswerSchema>

export const restoreAnswerSchema = z.lazy(() => z.object({ name: z.string(), snapshotId: z.string() }))

export function snapshotView(
  { workspace, createdAt, body }: StoredSnapshot,
  options: { deleted: boolean; region: string | undefined },
): SnapshotView {
  const { image, memoryMb, ports, generation, region = options.region } = body.spec
  return {
    workspace,
    id: body.id,
    name: body.name,
    sandboxName: body.source.name,
    source: { kind: 'sandbox', name: body.source.name, deleted: options.deleted },
    spec: {
      image,
      memory: memoryMb,
      ...(ports ? { ports: ports as SnapshotView['spec']['ports'] } : {}),
      ...(region === undefined ? {} : { region }),
      ...(generation === undefined ? {} : { generation }),
    },
    createdAt: new Date(createdAt).toISOString(),
    createdBy: body.createdBy,
    status: body.status,
    ...defined({ size: body.bytes, memoryKept: body.memoryKept, reason: body.reason }),
  }
}
