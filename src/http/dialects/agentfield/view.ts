import type { Execution, ExecutionStatus } from '../../../executions/index.ts'
import { textOf, timeText } from './wire.ts'

const statusNames: Record<ExecutionStatus, string> = {
  queued: 'queued',
  running: 'running',
  // Its agent has it and reports later; to who asks that is no difference.
  waiting: 'running',
  succeeded: 'succeeded',
  failed: 'failed',
  cancelled: 'cancelled',
  timed_out: 'timeout',
}

/** As this protocol says it; an agent that waits for somebody says so itself. */
export function statusOf({ status, note }: Execution): string {
  return status === 'waiting' && note.awaiting === true ? 'waiting' : statusNames[status]
}

const errorCategories: Record<string, string> = {
  timeout: 'agent_timeout',
  target_not_found: 'target_not_found',
  node_unavailable: 'node_unavailable',
  agent_unreachable: 'agent_unreachable',
  concurrency_limit: 'concurrency_limit',
  bad_response: 'bad_response',
  internal: 'internal_error',
}

export function errorCategoryOf({ error, status }: Execution): string {
  if (status === 'timed_out') return 'agent_timeout'
  return errorCategories[error?.code ?? ''] ?? 'agent_error'
}

/** As who calls it names it. */
export function targetNameOf({ target, labels }: Execution): string {
  return `${target.name}.${labels.reasoner ?? ''}`
}

/** What an agent calls an execution of its own, which the platform keeps under the workspace's name. */
export function innerId(workspace: string, id: string): string {
  return `${workspace}/${id}`
}

export function shownId({ id, workspace }: Execution): string {
  return id.startsWith(`${workspace}/`) ? id.slice(workspace.length + 1) : id
}

export function durationMsOf({ startedAt, acceptedAt, endedAt, note }: Execution): number | null {
  if (typeof note.duration_ms === 'number') return note.duration_ms
  return endedAt === null ? null : Math.max(0, endedAt - (startedAt ?? acceptedAt))
}

export function resultOf(result: Uint8Array | null): unknown {
  if (result === null || result.length === 0) return undefined
  try {
    return JSON.parse(textOf(result))
  } catch {
    return textOf(result)
  }
}

/** An execution as who asks for it is told. */
export function executionView(execution: Execution, result: Uint8Array | null) {
  const { labels, statusReason, error, startedAt, acceptedAt, endedAt, note } = execution
  const value = resultOf(result)
  const durationMs = durationMsOf(execution)
  return {
    execution_id: shownId(execution),
    run_id: labels.run ?? '',
    workflow_id: labels.run ?? '',
    ...(labels.parent === undefined ? {} : { parent_execution_id: labels.parent }),
    target: targetNameOf(execution),
    type: labels.type ?? 'reasoner',
    node_id: execution.target.name,
    status: statusOf(execution),
    ...(statusReason === null ? {} : { status_reason: statusReason }),
    ...(value === undefined ? {} : { result: value }),
    ...failureView(execution),
    ...(note.progress === undefined ? {} : { progress: note.progress }),
    ...(note.usage === undefined ? {} : { usage: note.usage }),
    created_at: timeText(acceptedAt),
    started_at: timeText(startedAt ?? acceptedAt),
    ...(endedAt === null ? {} : { completed_at: timeText(endedAt) }),
    ...(durationMs === null ? {} : { duration_ms: durationMs }),
    ...(error === null ? {} : { error_category: errorCategoryOf(execution) }),
  }
}

/** Why it did not succeed, in both spellings. */
export function failureView(execution: Execution): object {
  const { status, error, statusReason, endedAt } = execution
  if (endedAt === null || status === 'succeeded') return {}
  const message = error?.message ?? statusReason ?? statusNames[status]
  const details = error?.details
  return {
    error: message,
    error_message: message,
    ...(details === undefined || details === null ? {} : { error_details: details }),
  }
}
