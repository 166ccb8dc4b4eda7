/** A delivery as it rests: an execution whose input is the body, and whose note is the rest. */
import { z } from 'zod'
import { type Execution, type ExecutionStatus, executionNoteBytesMax } from '../executions/index.ts'
import { type DeliveryDialect, deliveryDialects } from './dialects.ts'

export const deliverySource = 'delivery'

const attemptsMax = 24

export interface DeliveryAttempt {
  at: string
  /** Of the answer; null: there was none. */
  status: number | null
  latencyMs: number
  /** Beginning of the answer's body. */
  bodyExcerpt: string
  error: string | null
}

export interface DeliveryNote {
  /** The same in every attempt, also those by hand: `webhook-id`. */
  deliveryId: string
  executionId: string
  dialect: DeliveryDialect
  url: string
  headers: Record<string, string>
  /** Sealed; newest first. Those that `secretsOf` finds count in their place. */
  secrets: string[]
  /** Where the secrets of the moment are found. */
  signer: Record<string, string> | null
  /** Given by who may have requests made to this machine. */
  loopback: boolean
  createdAt: string
  /** All of them, also those before it was sent again by hand; the last that there is room for. */
  attempts: DeliveryAttempt[]
}

export function noteOf({ note }: Execution): DeliveryNote {
  return note as unknown as DeliveryNote
}

/** With one more: the newest stay, as many as the note has room for, whatever receivers answer. */
export function withAttempt(note: DeliveryNote, attempt: DeliveryAttempt): DeliveryAttempt[] {
  const attempts = [...note.attempts, attempt].slice(-attemptsMax)
  while (attempts.length > 1 && bytesOf({ ...note, attempts }) > executionNoteBytesMax) attempts.shift()
  return attempts
}

function bytesOf(note: DeliveryNote): number {
  return Buffer.byteLength(JSON.stringify(note))
}

const deliveryStatuses = ['pending', 'delivered', 'failed'] as const

export const deliverySchema = z.object({
  id: z.string(),
  executionId: z.string(),
  dialect: z.enum(deliveryDialects),
  url: z.string(),
  status: z.enum(deliveryStatuses),
  attempts: z.array(
    z.object({
      at: z.string(),
      status: z.number().nullable(),
      latencyMs: z.number(),
      bodyExcerpt: z.string(),
      error: z.string().nullable(),
    }),
  ),
  createdAt: z.string(),
  /** While it waits for it. */
  nextAttemptAt: z.string().optional(),
})
export type DeliveryView = z.output<typeof deliverySchema>

export function deliveryView(execution: Execution): DeliveryView {
  const { deliveryId, executionId, dialect, url, attempts, createdAt } = noteOf(execution)
  const status = statusOf(execution.status)
  return {
    id: deliveryId,
    executionId,
    dialect,
    url,
    status,
    attempts,
    createdAt,
    ...(execution.status === 'queued' ? { nextAttemptAt: new Date(execution.runAt).toISOString() } : {}),
  }
}

function statusOf(status: ExecutionStatus): DeliveryView['status'] {
  if (status === 'succeeded') return 'delivered'
  return status === 'queued' || status === 'running' || status === 'waiting' ? 'pending' : 'failed'
}
