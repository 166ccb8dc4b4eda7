/** What became of a turn, from what became of its execution and back. */
import type { AttemptOutcome, Execution, ExecutionReport } from '../executions/index.ts'
import { JsonSchema } from '../lib/json-schema/index.ts'
import type { Json, ThreadBody, ThreadStatus } from './record.ts'

/** Of an execution that its client ended, and not its program. */
export const stoppedReason = 'stopped'
/** Failures that are the answer's fault; whatever else went wrong is an error. */
const failedCodes = new Set(['agent_failed', 'output_schema'])

/** How a turn stands once its execution ended; `result`: what was kept of its answer. */
export function endedTurn(
  { status, error, statusReason }: Execution,
  result: string | null,
): {
  status: ThreadStatus
  result: string | null
  internalStatus: string | null
  isManuallyStopped: boolean
} {
  const reason = error?.message ?? statusReason
  switch (status) {
    case 'succeeded':
      return { status: 'completed', result: result ?? '', internalStatus: null, isManuallyStopped: false }
    case 'cancelled':
      return {
        status: 'stopped',
        result,
        internalStatus: null,
        isManuallyStopped: statusReason === stoppedReason,
      }
    case 'timed_out':
      return {
        status: 'error',
        result: reason ?? 'it took too long',
        internalStatus: 'timeout',
        isManuallyStopped: false,
      }
    default:
      return {
        status: failedCodes.has(error?.code ?? '') ? 'failed' : 'error',
        result: error?.code === 'agent_failed' ? (result ?? reason) : reason,
        internalStatus: error?.code ?? null,
        isManuallyStopped: false,
      }
  }
}

/** Why a result is not what its client asked for; null: it is. */
function schemaProblem({ options }: Pick<ThreadBody, 'options'>, result: string): string | null {
  const schema = options.output_schema
  if (!isSchema(schema)) return null
  let value: unknown
  try {
    value = JSON.parse(result)
  } catch {
    return 'The result does not fit output_schema: it is not JSON'
  }
  const problem = new JsonSchema(schema).check(value)
  return problem === null ? null : `The result does not fit output_schema: ${problem}`
}

/** An empty one asks for nothing. */
export function isSchema(schema: Json | undefined): schema is { [key: string]: Json } {
  return (
    typeof schema === 'object' && schema !== null && !Array.isArray(schema) && Object.keys(schema).length > 0
  )
}

/** Of an answer that is there. */
export function answered(body: ThreadBody, result: string): AttemptOutcome {
  const problem = schemaProblem(body, result)
  if (problem === null) {
    return { status: 'succeeded', result: Buffer.from(result), type: 'text/plain; charset=utf-8' }
  }
  return {
    status: 'failed',
    error: { code: 'output_schema', message: problem },
    retry: false,
    result: Buffer.from(result),
    type: 'text/plain; charset=utf-8',
  }
}

/** What its program says of how it ended, as the execution is told. */
export function endReport(body: ThreadBody, status: ThreadStatus, result: string | null): ExecutionReport {
  const kept = result === null ? {} : { result: Buffer.from(result), type: 'text/plain; charset=utf-8' }
  switch (status) {
    case 'completed': {
      const problem = schemaProblem(body, result ?? '')
      return problem === null
        ? { status: 'succeeded', result: Buffer.from(result ?? ''), type: 'text/plain; charset=utf-8' }
        : { status: 'failed', error: { code: 'output_schema', message: problem }, ...kept }
    }
    case 'stopped':
      return { status: 'cancelled', statusReason: 'stopped by its program', ...kept }
    case 'failed':
      return { status: 'failed', error: { code: 'agent_failed', message: result ?? 'it failed' }, ...kept }
    default:
      return { status: 'failed', error: { code: 'agent_error', message: result ?? 'it failed' }, ...kept }
  }
}
