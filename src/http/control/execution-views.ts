import { z } from 'zod'
import { PlatformError } from '../../errors.ts'
import {
  type Execution,
  type ExecutionEvent,
  type ExecutionFilter,
  type ExecutionStatus,
  executionStatuses,
} from '../../executions/index.ts'

const time = z.string().nullable()

export const executionSchema = z.lazy(() =>
  z.object({
    id: z.string(),
    workspace: z.string(),
    source: z.string(),
    target: z.object({ kind: z.string(), name: z.string() }),
    status: z.enum(executionStatuses),
    statusReason: z.string().nullable(),
    stopping: z.enum(['cancelled', 'timed_out']).nullable(),
    parent: z.string().nullable(),
    index: z.number().nullable(),
    parts: z.number().nullable(),
    labels: z.record(z.string(), z.string()),
    attempts: z.number(),
    attemptsMax: z.number(),
    dead: z.boolean(),
    priority: z.number(),
    acceptedAt: z.string(),
    runAt: z.string(),
    startedAt: time,
    endedAt: time,
    durationMs: z.number().nullable(),
    timeoutSeconds: z.number(),
    error: z.object({ code: z.string(), message: z.string(), details: z.unknown() }).partial().nullable(),
    result: z.object({ bytes: z.number(), type: z.string().nullable() }).nullable(),
    note: z.record(z.string(), z.unknown()),
  }),
)

export const eventSchema = z.lazy(() =>
  z.object({
    number: z.number(),
    at: z.string(),
    type: z.enum(['state', 'created', 'started', 'progress', 'updated', 'ended']),
    execution: executionSchema,
    progress: z.record(z.string(), z.unknown()).optional(),
  }),
)

const iso = (ms: number) => new Date(ms).toISOString()
const isoOrNull = (ms: number | null) => (ms === null ? null : iso(ms))

export function executionView(execution: Execution): z.input<typeof executionSchema> {
  const { group, isDead, timeoutMs, startedAt, endedAt, resultBytes, resultType, ...rest } = execution
  const { acceptedAt, runAt, ...shared } = rest
  return {
    ...shared,
    note: toldNote(rest.note),
    parent: group,
    dead: isDead,
    acceptedAt: iso(acceptedAt),
    runAt: iso(runAt),
    startedAt: isoOrNull(startedAt),
    endedAt: isoOrNull(endedAt),
    durationMs: startedAt === null || endedAt === null ? null : endedAt - startedAt,
    timeoutSeconds: timeoutMs / 1000,
    result: resultBytes > 0 || resultType !== null ? { bytes: resultBytes, type: resultType } : null,
  }
}

/** Without what its source keeps there for itself: sealed, or to tell whether a request is the same. */
function toldNote({ sealed: _, digest: __, ...note }: Execution['note']): Execution['note'] {
  return note
}

export function eventView({ number, at, type, execution, progress }: ExecutionEvent) {
  return {
    number,
    at: iso(at),
    type,
    execution: executionView(execution),
    ...(progress ? { progress } : {}),
  }
}

export const filterQuery = z.object({
  /** Who accepted it: agent, job, agentfield, xpander. */
  source: z.string().max(64).optional(),
  /** KIND/NAME, such as agent/mine. */
  target: z.string().max(1024).optional(),
  /** One, or several with commas. */
  status: z.string().max(200).optional(),
  /** The parts of this one. */
  parent: z.string().max(1024).optional(),
  /** NAME=VALUE, several with commas. */
  label: z.string().max(4096).optional(),
  since: z.string().max(64).optional(),
  until: z.string().max(64).optional(),
})

/** @throws bad_request */
export function filterOf(query: z.output<typeof filterQuery>): ExecutionFilter {
  const { source, target, status, parent, label, since, until } = query
  return {
    ...(source ? { source } : {}),
    ...(target ? { target: targetOf(target) } : {}),
    ...(status ? { status: statusesOf(status) } : {}),
    ...(parent ? { group: parent } : {}),
    ...(label ? { labels: labelsOf(label) } : {}),
    ...(since ? { since: timeOf('since', since) } : {}),
    ...(until ? { until: timeOf('until', until) } : {}),
  }
}

function targetOf(text: string): { kind: string; name: string } {
  const slash = text.indexOf('/')
  if (slash > 0 && slash < text.length - 1) return { kind: text.slice(0, slash), name: text.slice(slash + 1) }
  throw new PlatformError('bad_request', `target: ${shown(text)} is not KIND/NAME, such as agent/mine`)
}

function statusesOf(text: string): ExecutionStatus[] {
  return text.split(',').map((word) => {
    const status = executionStatuses.find((one) => one === word.trim())
    if (status) return status
    throw new PlatformError(
      'bad_request',
      `status: ${shown(word)} is not one of ${executionStatuses.join(', ')}`,
    )
  })
}

function labelsOf(text: string): Record<string, string> {
  return Object.fromEntries(
    text.split(',').map((pair) => {
      const equals = pair.indexOf('=')
      if (equals > 0) return [pair.slice(0, equals).trim(), pair.slice(equals + 1)]
      throw new PlatformError('bad_request', `label: ${shown(pair)} is not NAME=VALUE`)
    }),
  )
}

function timeOf(field: string, text: string): number {
  const ms = Date.parse(text)
  if (!Number.isNaN(ms)) return ms
  throw new PlatformError('bad_request', `${field}: ${shown(text)} is not a time like 2030-12-31T23:59:59Z`)
}

function shown(text: string): string {
  return JSON.stringify(text.slice(0, 60))
}
