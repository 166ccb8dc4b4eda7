import { z } from 'zod'
import type { Execution, ExecutionEvent, ExecutionStatus, Executions } from '../../../executions/index.ts'
import { type Route, route } from '../../route.ts'
import { eventStream } from '../event-stream.ts'
import { requireExecution } from './lookup.ts'
import { runSource } from './sources.ts'
import { shownId, statusOf, targetNameOf } from './view.ts'
import { tag, timeText } from './wire.ts'

/** Executions followed, one or all. */
export function eventRoutes({ executions }: { executions: Executions }): Route[] {
  const shared = { access: 'read', errors: 'agentfield', tag, keyless: true } as const
  return [
    route({
      ...shared,
      method: 'GET',
      path: '/api/v1/executions/{executionId}/events',
      summary: 'Follow an execution until it ended',
      query: z.object({ from: z.coerce.number().int().min(0).optional() }),
      handle({ workspace, params, query, request }) {
        const execution = requireExecution(executions, workspace, params.executionId)
        const gone = new AbortController()
        const signal = AbortSignal.any([request.signal, gone.signal])
        const { id } = execution
        const changes = executions.watch({ workspace, id }, signal, query.from)
        return eventStream(eventsOf(executions, execution, changes, query.from), () => gone.abort())
      },
    }),
    ...(['/api/v1/executions/events', '/api/ui/v1/executions/events'] as const).map((path) =>
      route({
        ...shared,
        method: 'GET',
        path,
        summary: 'Follow all executions',
        handle({ workspace, request }) {
          const gone = new AbortController()
          const signal = AbortSignal.any([request.signal, gone.signal])
          const changes = executions.watch({ workspace, source: runSource }, signal)
          return eventStream(
            (async function* () {
              for await (const change of changes) yield eventOf(change)
            })(),
            () => gone.abort(),
          )
        },
      }),
    ),
  ]
}

async function* eventsOf(
  executions: Executions,
  before: Execution,
  changes: AsyncIterable<ExecutionEvent>,
  from: number | undefined,
): AsyncGenerator<{ id?: string; data: object }> {
  // As it is now: what changes from here on is told by `changes`.
  const now = executions.get(before.workspace, before.id) ?? before
  if (now.endedAt !== null) {
    yield { data: eventView('ended', now, now.endedAt) }
    return
  }
  if (from === undefined) yield { data: eventView('updated', now, now.startedAt ?? now.acceptedAt) }
  for await (const change of changes) {
    yield eventOf(change)
    if (change.type === 'ended') return
  }
}

function eventOf({ number, type, execution, at, progress }: ExecutionEvent) {
  return { id: String(number), data: eventView(type, execution, at, progress) }
}

function eventView(
  type: ExecutionEvent['type'],
  execution: Execution,
  at: number,
  progress?: Record<string, unknown>,
) {
  const status = statusOf(execution)
  return {
    type: eventTypeOf(type, execution.status),
    execution_id: shownId(execution),
    workflow_id: execution.labels.run ?? '',
    run_id: execution.labels.run ?? '',
    agent_node_id: execution.target.name,
    status,
    timestamp: timeText(at),
    data: {
      target: targetNameOf(execution),
      ...(execution.error === null ? {} : { error: execution.error.message }),
      ...(execution.statusReason === null ? {} : { status_reason: execution.statusReason }),
      ...(progress === undefined && execution.note.progress === undefined
        ? {}
        : { progress: progress ?? execution.note.progress }),
    },
  }
}

function eventTypeOf(type: ExecutionEvent['type'], status: ExecutionStatus): string {
  if (type === 'created') return 'execution_created'
  if (type === 'started') return 'execution_started'
  if (type !== 'ended') return 'execution_updated'
  if (status === 'succeeded') return 'execution_completed'
  return status === 'cancelled' ? 'execution_cancelled' : 'execution_failed'
}
