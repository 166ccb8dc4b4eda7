import { z } from 'zod'
import { PlatformError } from '../../../errors.ts'
import type { ExecutionReport } from '../../../executions/index.ts'
import { jsonOf } from './wire.ts'

/** As agents say how far they are, or how something ended. */
export const reportSchema = z.lazy(() =>
  z.object({
    status: z.string().min(1),
    result: z.unknown().optional(),
    error: z.unknown().optional(),
    error_details: z.unknown().optional(),
    error_status_code: z.int().min(400).max(599).nullish(),
    status_reason: z.string().nullish(),
    duration_ms: z.number().min(0).nullish(),
    progress: z.unknown().optional(),
    usage: z.unknown().optional(),
  }),
)

const statusWords: Record<string, NonNullable<ExecutionReport['status']>> = {
  pending: 'running',
  queued: 'running',
  running: 'running',
  in_progress: 'running',
  processing: 'running',
  waiting: 'waiting',
  paused: 'waiting',
  awaiting_approval: 'waiting',
  awaiting_human: 'waiting',
  approval_pending: 'waiting',
  succeeded: 'succeeded',
  success: 'succeeded',
  successful: 'succeeded',
  completed: 'succeeded',
  complete: 'succeeded',
  done: 'succeeded',
  ok: 'succeeded',
  failed: 'failed',
  failure: 'failed',
  error: 'failed',
  errored: 'failed',
  cancelled: 'cancelled',
  canceled: 'cancelled',
  cancel: 'cancelled',
  timeout: 'timed_out',
  timed_out: 'timed_out',
}

export function statusSaid(word: string): NonNullable<ExecutionReport['status']> {
  const said = word.trim().toLowerCase()
  const status = Object.hasOwn(statusWords, said) ? statusWords[said] : undefined
  if (status !== undefined) return status
  throw new PlatformError('bad_request', `status: "${word.slice(0, 40)}" is no status of an execution`)
}

/** What an agent says, as the platform keeps it. @throws bad_request */
export function reportOf(said: z.output<typeof reportSchema>): ExecutionReport {
  const status = statusSaid(said.status)
  const hasEnded = status !== 'running' && status !== 'waiting'
  const failed = hasEnded && status !== 'succeeded'
  const message = messageOf(said.error)
  return {
    status,
    ...(said.status_reason ? { statusReason: said.status_reason } : {}),
    ...(hasEnded && (said.result !== undefined || status === 'succeeded')
      ? { result: jsonOf(said.result ?? null), type: 'application/json' }
      : {}),
    ...(failed && (message !== '' || status === 'failed')
      ? {
          error: {
            code: status === 'timed_out' ? 'timeout' : 'agent_error',
            message: message || 'the agent reported a failure without a reason',
            ...(said.error_details == null ? {} : { details: said.error_details }),
          },
        }
      : {}),
    note: {
      ...(hasEnded ? { told: true } : {}),
      awaiting: status === 'waiting' ? true : null,
      ...(said.duration_ms == null ? {} : { duration_ms: Math.round(said.duration_ms) }),
      ...(said.progress === undefined ? {} : { progress: said.progress }),
      ...(said.usage === undefined ? {} : { usage: said.usage }),
      ...(said.error_status_code == null ? {} : { http_status: said.error_status_code }),
    },
  }
}

function messageOf(error: unknown): string {
  if (typeof error === 'string') return error
  if (error === undefined || error === null) return ''
  const { message } = error as { message?: unknown }
  return typeof message === 'string' ? message : JSON.stringify(error)
}
