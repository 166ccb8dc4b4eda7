import { z } from 'zod'
import { PlatformError } from '../../../errors.ts'
import {
  type Execution,
  type ExecutionEvent,
  type ExecutionReport,
  type ExecutionStatus,
  type Executions,
  executionStatuses,
} from '../../../executions/index.ts'
import type { Clock } from '../../../lib/clock.ts'
import type { ExecutionNote, Nodes, Notes } from '../../../nodes/index.ts'
import type { Logs } from '../../../telemetry/index.ts'
import { parseWith, readJson } from '../../body.ts'
import { jsonBodyBytesMax, type Route, route } from '../../route.ts'
import { eventStream } from '../event-stream.ts'
import { innerSource, runSource } from './runs.ts'
import { refuseStrangers } from './strangers.ts'
import { executionView, innerId, shownId, statusOf, targetNameOf } from './view.ts'
import type { Webhooks } from './webhooks.ts'
import { jsonOf, tag, timeText } from './wire.ts'

const reportBytesMax = 17 * 1024 * 1024
const idsAtOnceMax = 1000
const noteCharactersMax = 16 * 1024
const listLimitDefault = 50
const listLimitMax = 200
const cancelledAtOnceMax = 1000
const logEntriesMax = 1000
const logLinesMax = 1000

export interface ExecutionRouteOptions {
  executions: Executions
  nodes: Nodes
  notes: Notes
  webhooks: Webhooks
  logs: Logs
  clock: Clock
}

const reason = z.object({ reason: z.string().max(1024).nullish() })

const report = z.object({
  status: z.string().min(1),
  result: z.unknown().optional(),
  error: z.unknown().optional(),
  error_details: z.unknown().optional(),
  error_status_code: z.int().min(400).max(599).nullish(),
  status_reason: z.string().nullish(),
  duration_ms: z.number().min(0).nullish(),
  progress: z.unknown().optional(),
  usage: z.unknown().optional(),
})

/** What became of what was called, and what agents say of it. */
export function executionRoutes(options: ExecutionRouteOptions): Route[] {
  const { executions, nodes, notes, webhooks, logs, clock } = options
  const shared = { errors: 'agentfield', tag, keyless: true } as const

  const view = (execution: Execution) => {
    const events = webhooks.events(execution)
    return {
      ...executionView(execution, executions.result(execution.workspace, execution.id)),
      webhook_registered: execution.note.webhook === true,
      ...(events.length === 0 ? {} : { webhook_events: events }),
    }
  }
  const find = (workspace: string, id: string) => findExecution(executions, workspace, id)
  const require = (workspace: string, id: string) => {
    const found = find(workspace, id)
    if (found === null) throw unknownExecution()
    return found
  }
  const addNote = async (workspace: string, request: Request, url: URL) => {
    const given = await readJson(request, jsonBodyBytesMax)
    const { message, tags } = parseWith(
      z.object({
        message: z.string().trim().min(1).max(noteCharactersMax),
        tags: z.array(z.string().max(256)).max(64).nullish(),
      }),
      given,
      'body',
    )
    const id = request.headers.get('x-execution-id') || url.searchParams.get('execution_id')
    if (!id) throw new PlatformError('bad_request', 'X-Execution-ID: missing: which execution is it of?')
    const execution = require(workspace, id)
    const note = await notes.add(workspace, execution.id, { message, tags: tags ?? [] })
    return { success: true, note: noteView(note), message: 'Note added successfully' }
  }

  return [
    route({
      ...shared,
      method: 'GET',
      path: '/api/v1/executions',
      access: 'read',
      summary: 'List executions, the newest first',
      query: z.object({
        run_id: z.string().optional(),
        workflow_id: z.string().optional(),
        session_id: z.string().optional(),
        actor_id: z.string().optional(),
        agent_node_id: z.string().optional(),
        status: z.string().optional(),
        limit: z.coerce.number().int().min(1).max(listLimitMax).optional(),
        cursor: z.string().optional(),
      }),
      handle({ workspace, query }) {
        const run = query.run_id ?? query.workflow_id
        const page = executions.list(
          workspace,
          {
            source: [runSource, innerSource],
            labels: {
              ...(run === undefined ? {} : { run }),
              ...(query.session_id === undefined ? {} : { session: query.session_id }),
              ...(query.actor_id === undefined ? {} : { actor: query.actor_id }),
            },
            ...(query.agent_node_id === undefined
              ? {}
              : { target: { kind: 'node', name: query.agent_node_id } }),
            ...(query.status === undefined ? {} : { status: statusesOf(query.status) }),
          },
          {
            limit: query.limit ?? listLimitDefault,
            ...(query.cursor === undefined ? {} : { cursor: query.cursor }),
          },
        )
        // What came of each is told by each: results may be large.
        const listed = page.data.map((one) => executionView(one, null))
        return { executions: listed, count: listed.length, next_cursor: page.nextCursor }
      },
    }),
    route({
      ...shared,
      method: 'GET',
      path: '/api/v1/executions/{executionId}',
      access: 'read',
      summary: 'Say what became of an execution',
      handle: ({ workspace, params }) => view(require(workspace, params.executionId)),
    }),
    route({
      ...shared,
      method: 'POST',
      path: '/api/v1/executions/batch-status',
      access: 'read',
      summary: 'Say what became of many executions, by id',
      body: z.object({ execution_ids: z.array(z.string()).min(1).max(idsAtOnceMax) }),
      handle({ workspace, body }) {
        const entries = body.execution_ids.map((id) => {
          const found = find(workspace, id)
          return [id, found === null ? { execution_id: id, status: 'not_found' } : view(found)] as const
        })
        return Object.fromEntries(entries)
      },
    }),
    route({
      ...shared,
      method: 'POST',
      path: '/api/v1/executions/{executionId}/status',
      access: 'deployed',
      summary: 'Say how far an execution is, or how it ended: for the node that works on it',
      body: report,
      bodyBytesMax: reportBytesMax,
      async handle({ workspace, principal, params, body }) {
        const execution = require(workspace, params.executionId)
        await refuseStrangers(principal, workspace, execution.target.name, nodes)
        return view(await executions.report(workspace, execution.id, reportOf(body)))
      },
    }),
    route({
      ...shared,
      method: 'POST',
      path: '/api/v1/agents/{nodeId}/executions/{executionId}/awaiter-status',
      access: 'deployed',
      summary: 'Say that an execution waits for what it called, or goes on',
      body: z.object({ status: z.enum(['waiting', 'running']), reason: z.string().max(1024).nullish() }),
      async handle({ workspace, principal, params, body }) {
        const execution = require(workspace, params.executionId)
        await refuseStrangers(principal, workspace, execution.target.name, nodes)
        const { status, reason: why } = body
        const reported = await executions.report(workspace, execution.id, {
          status,
          note: { awaiting: status === 'waiting' ? true : null },
          ...(why ? { statusReason: why } : {}),
        })
        return { execution_id: shownId(reported), status: statusOf(reported) }
      },
    }),
    route({
      ...shared,
      method: 'POST',
      path: '/api/v1/executions/{executionId}/cancel',
      access: 'deployed',
      summary: 'Call an execution off; its node is told',
      async handle({ workspace, params, request }) {
        const { reason: why } = parseWith(reason, (await readJson(request, jsonBodyBytesMax)) ?? {}, 'body')
        const execution = require(workspace, params.executionId)
        if (execution.endedAt !== null) throw notInThisState(execution)
        try {
          const { previous, execution: cancelled } = await executions.cancel(
            workspace,
            execution.id,
            why || undefined,
          )
          return {
            execution_id: shownId(cancelled),
            previous_status: statusOf({ ...execution, status: previous }),
            status: statusOf(cancelled),
            ...(why ? { reason: why } : {}),
            cancelled_at: timeText(cancelled.endedAt ?? clock.now()),
          }
        } catch (error) {
          if (!PlatformError.is(error) || error.code !== 'conflict') throw error
          throw notInThisState(require(workspace, params.executionId))
        }
      },
    }),
    route({
      ...shared,
      method: 'POST',
      path: '/api/v1/workflows/{runId}/cancel-tree',
      access: 'deployed',
      summary: 'Call off everything of a run that goes on',
      async handle({ workspace, params, request }) {
        const { reason: why } = parseWith(reason, (await readJson(request, jsonBodyBytesMax)) ?? {}, 'body')
        const cancelled: string[] = []
        const filter = {
          source: [runSource, innerSource],
          labels: { run: params.runId },
          status: ['queued', 'running', 'waiting'] as const,
        }
        for (let page = first(); page.length > 0 && cancelled.length < cancelledAtOnceMax; page = first()) {
          for (const { id } of page) {
            const one = await executions.cancel(workspace, id, why || undefined).catch(unlessConflict)
            if (one) cancelled.push(shownId(one.execution))
          }
        }
        function first() {
          return executions.list(workspace, filter, { limit: listLimitMax }).data
        }
        return { workflow_id: params.runId, cancelled, cancelled_count: cancelled.length }
      },
    }),
    route({
      ...shared,
      method: 'GET',
      path: '/api/v1/executions/{executionId}/events',
      access: 'read',
      summary: 'Follow an execution until it ended',
      query: z.object({ from: z.coerce.number().int().min(0).optional() }),
      handle({ workspace, params, query, request }) {
        const execution = require(workspace, params.executionId)
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
        access: 'read',
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
    ...(['/api/v1/executions/note', '/api/ui/v1/executions/note'] as const).map((path) =>
      route({
        ...shared,
        method: 'POST',
        path,
        access: 'deployed',
        summary: 'Write something down beside an execution',
        handle: ({ workspace, request, url }) => addNote(workspace, request, url),
      }),
    ),
    route({
      ...shared,
      method: 'GET',
      path: '/api/v1/executions/{executionId}/notes',
      access: 'read',
      summary: 'List what was written down beside an execution',
      query: z.object({ tags: z.string().optional() }),
      async handle({ workspace, params, query }) {
        const { id } = require(workspace, params.executionId)
        const wanted = wordsOf(query.tags)
        const all = await notes.list(workspace, id)
        const found = all.filter(
          ({ tags }) => wanted.length === 0 || tags.some((one) => wanted.includes(one.trim().toLowerCase())),
        )
        return { execution_id: params.executionId, notes: found.map(noteView), total: found.length }
      },
    }),
    route({
      ...shared,
      method: 'POST',
      path: '/api/v1/executions/{executionId}/logs',
      access: 'deployed',
      summary: 'Keep lines that an agent logs while it works on an execution',
      body: z.object({ entries: z.array(z.unknown()).max(logEntriesMax) }),
      handle({ workspace, params, body }) {
        const source = { ...logOf(require(workspace, params.executionId)), stream: 'stdout' } as const
        for (const entry of body.entries)
          logs.append(source, typeof entry === 'string' ? entry : JSON.stringify(entry))
        return { success: true, accepted: body.entries.length }
      },
    }),
    route({
      ...shared,
      method: 'GET',
      path: '/api/v1/executions/{executionId}/logs',
      access: 'read',
      summary: 'List what an agent logged while it worked on an execution, the oldest first',
      async handle({ workspace, params, request }) {
        const { instance, ...workload } = logOf(require(workspace, params.executionId))
        const { lines } = await logs.query(workload, { instance, limit: logLinesMax }, request.signal)
        return {
          execution_id: params.executionId,
          entries: lines.toReversed().map(({ message }) => entryOf(message)),
        }
      },
    }),
  ]
}

/** One of this protocol's, or one that an agent told of by its own name for it. */
export function findExecution(executions: Executions, workspace: string, id: string): Execution | null {
  const found = executions.get(workspace, id) ?? executions.get(workspace, innerId(workspace, id))
  return found !== null && (found.source === runSource || found.source === innerSource) ? found : null
}

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
  const status = statusWords[word.trim().toLowerCase()]
  if (status !== undefined) return status
  throw new PlatformError('bad_request', `status: "${word.slice(0, 40)}" is no status of an execution`)
}

/** What an agent says, as the platform keeps it. @throws bad_request */
export function reportOf(said: z.output<typeof report>): ExecutionReport {
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

function statusesOf(text: string): ExecutionStatus[] {
  return wordsOf(text).flatMap((word): ExecutionStatus[] => {
    if (word === 'queued' || word === 'pending') return ['queued']
    const said = statusSaid(word)
    return said === 'running' ? ['running', 'waiting'] : executionStatuses.filter((one) => one === said)
  })
}

function wordsOf(text: string | undefined): string[] {
  return (text ?? '').split(',').flatMap((word) => word.trim().toLowerCase() || [])
}

function noteView({ message, tags, at }: ExecutionNote) {
  return { message, tags, timestamp: new Date(at).toISOString() }
}

/** Beside the logs of an agent that is deployed, which has the same lines in its own output. */
function logOf({ workspace, id, target }: Execution) {
  const name = `${target.name.toLowerCase().replace(/[^a-z0-9_-]/g, '-')}.executions`
  const instance = id
    .slice(id.lastIndexOf('/') + 1)
    .replace(/[^\w.:-]/g, '-')
    .slice(0, 128)
  return { workspace, kind: 'agents', name, instance } as const
}

function entryOf(message: string): unknown {
  try {
    return JSON.parse(message)
  } catch {
    return { message }
  }
}

function unknownExecution(): PlatformError {
  return new PlatformError('not_found', 'execution not found')
}

function notInThisState(execution: Execution): PlatformError {
  return new PlatformError('conflict', `execution is in terminal state '${statusOf(execution)}'`, {
    details: { error: 'invalid_state' },
  })
}

/** It ended in this moment. */
function unlessConflict(error: unknown): null {
  if (PlatformError.is(error) && error.code === 'conflict') return null
  throw error
}
