import { z } from 'zod'
import { PlatformError } from '../../errors.ts'
import type { Execution, ExecutionEvent, Executions } from '../../executions/index.ts'
import { flag } from '../flag.ts'
import { type Route, route } from '../route.ts'
import { keptAlive, untyped } from '../run/bodies.ts'
import {
  eventSchema,
  eventView,
  executionSchema,
  executionView,
  filterOf,
  filterQuery,
} from './execution-views.ts'
import { metricsRoutes } from './metrics.ts'

const limitMax = 200
const keepaliveMs = 15_000
const shared = { access: 'deployed', errors: 'control', tag: 'executions' } as const

const listQuery = filterQuery.extend({
  limit: z.coerce.number().int().min(1).max(limitMax).optional(),
  cursor: z.string().max(100).optional(),
  /** `index`: the parts of one, in their order. The others also as lists of resources say it. */
  sort: z.enum(['newest', 'oldest', 'index', 'createdAt:desc', 'createdAt:asc']).optional(),
})
const orders = {
  newest: 'newest',
  oldest: 'oldest',
  index: 'index',
  'createdAt:desc': 'newest',
  'createdAt:asc': 'oldest',
} as const
const list = z.lazy(() =>
  z.object({
    data: z.array(executionSchema),
    meta: z.object({ hasMore: z.boolean(), nextCursor: z.string() }),
  }),
)

/** Work that was accepted to be done later, of whatever kind: looked at, followed, cancelled, done again. */
export function executionRoutes({ executions }: { executions: Executions }): Route[] {
  return [
    ...readingRoutes(executions),
    ...changingRoutes(executions),
    ...eventRoutes(executions),
    ...metricsRoutes(executions),
  ]
}

function readingRoutes(executions: Executions): Route[] {
  const page = async (workspace: string, query: z.output<typeof listQuery>, filter = filterOf(query)) => {
    const { limit, cursor, sort } = query
    requireShown(executions, filter.source)
    const { data, nextCursor } = await executions.search(workspace, filter, {
      ...(limit === undefined ? {} : { limit }),
      ...(cursor === undefined ? {} : { cursor }),
      ...(sort === undefined ? {} : { sort: orders[sort] }),
    })
    return { data: data.map(executionView), meta: { hasMore: nextCursor !== '', nextCursor } }
  }
  return [
    route({
      ...shared,
      method: 'GET',
      path: '/v0/executions',
      summary: 'List executions, the newest first',
      query: listQuery,
      answer: list,
      handle: ({ workspace, query }) => page(workspace, query),
    }),
    route({
      ...shared,
      method: 'GET',
      path: '/v0/agents/{agentName}/executions',
      summary: 'List executions of an agent, the newest first',
      query: listQuery,
      answer: list,
      handle: ({ workspace, query, params }) =>
        page(workspace, query, { ...filterOf(query), target: { kind: 'agent', name: params.agentName } }),
    }),
    route({
      ...shared,
      method: 'GET',
      path: '/v0/executions/{executionId}',
      summary: 'Get an execution; of one with parts, how many are in which state',
      answer: z.lazy(() =>
        executionSchema.unwrap().extend({ counts: z.record(z.string(), z.number()).optional() }),
      ),
      handle({ workspace, params }) {
        const execution = known(executions, workspace, params.executionId)
        const counts = execution.parts === null ? {} : { counts: executions.counts(execution.id) }
        return { ...executionView(execution), ...counts }
      },
    }),
    ...(['input', 'result'] as const).map((which) =>
      route({
        ...shared,
        method: 'GET',
        path: `/v0/executions/{executionId}/${which}`,
        summary: `Get the ${which} of an execution: as text or base64, or the bytes alone with raw=true`,
        query: z.object({ raw: flag }),
        answer: z.lazy(() =>
          z.object({
            type: z.string().nullable(),
            encoding: z.enum(['utf8', 'base64']),
            data: z.string(),
          }),
        ),
        handle({ workspace, params, query }) {
          const execution = known(executions, workspace, (params as { executionId: string }).executionId)
          const bytes = executions[which](workspace, execution.id)
          if (bytes === null) {
            throw new PlatformError('not_found', `the execution "${execution.id}" has no ${which}`)
          }
          const type = which === 'result' ? execution.resultType : null
          if (!query.raw) return { type, ...textOf(bytes) }
          // What somebody's program said is nobody's page.
          const headers = { 'content-security-policy': 'sandbox', ...(type ? { 'content-type': type } : {}) }
          return new Response(untyped(bytes), { headers })
        },
      }),
    ),
  ]
}

function changingRoutes(executions: Executions): Route[] {
  return [
    route({
      ...shared,
      method: 'POST',
      path: '/v0/executions/{executionId}/cancel',
      summary: 'Stop an execution',
      body: z.object({ reason: z.string().max(1000).optional() }).optional(),
      answer: z.lazy(() => executionSchema.unwrap().extend({ previousStatus: z.string() })),
      async handle({ workspace, params, body }) {
        const { id } = known(executions, workspace, params.executionId)
        const { previous, execution } = await executions.cancel(workspace, id, body?.reason)
        return { ...executionView(execution), previousStatus: previous }
      },
    }),
    route({
      ...shared,
      method: 'POST',
      path: '/v0/executions/{executionId}/replay',
      summary: 'Do once more what an execution was to do, as a new one',
      successStatus: 202,
      acceptedAnswer: executionSchema,
      async handle({ workspace, params }) {
        const { id } = known(executions, workspace, params.executionId)
        return Response.json(executionView(await executions.replay(workspace, id)), { status: 202 })
      },
    }),
    route({
      ...shared,
      method: 'POST',
      path: '/v0/executions/replay',
      summary: 'Do once more what executions were to do that ended so: the newest thousand at most',
      body: filterQuery.extend({
        /** Only those that were given up after all their attempts. */
        dead: z.boolean().optional(),
      }),
      answer: z.lazy(() => z.object({ replayed: z.number(), executions: z.array(z.string()) })),
      async handle({ workspace, body }) {
        const filter = filterOf(body)
        requireShown(executions, filter.source)
        const which = ({ isDead }: Execution) => body.dead !== true || isDead
        const replayed = await executions.replayMany(
          workspace,
          { status: ['failed', 'timed_out', 'cancelled'], ...filter },
          which,
        )
        return { replayed: replayed.length, executions: replayed.map(({ id }) => id) }
      },
    }),
    route({
      ...shared,
      method: 'DELETE',
      path: '/v0/executions/{executionId}',
      access: 'write',
      summary: 'Forget an execution, after it was stopped',
      answer: executionSchema,
      async handle({ workspace, params }) {
        const execution = known(executions, workspace, params.executionId)
        await executions.remove(workspace, execution.id)
        return executionView(execution)
      },
    }),
  ]
}

function eventRoutes(executions: Executions): Route[] {
  const query = z.object({
    /** Events after this number, as far as they are kept. */
    from: z.coerce.number().int().min(0).optional(),
    source: z.string().max(64).optional(),
    /** Of one with parts: theirs too. */
    parts: flag,
  })
  const answer = z.object({ data: z.array(eventSchema) })
  const summary = 'followed where text/event-stream is asked for; else what is kept of the latest events'
  return [
    route({
      ...shared,
      method: 'GET',
      path: '/v0/executions/events',
      summary: `What happens to executions, ${summary}`,
      query,
      answer,
      handle({ workspace, query: asked, request }) {
        requireShown(executions, asked.source)
        const filter = { workspace, ...(asked.source ? { source: asked.source } : {}) }
        return answerEvents(executions, filter, sinceOf(asked.from, request), request, null)
      },
    }),
    route({
      ...shared,
      method: 'GET',
      path: '/v0/executions/{executionId}/events',
      summary: `What happens to an execution, until it ended, ${summary}`,
      query,
      answer,
      handle({ workspace, params, query: asked, request }) {
        const { id } = known(executions, workspace, params.executionId)
        const filter = { workspace, ...(asked.parts ? { group: id } : { id }) }
        return answerEvents(executions, filter, sinceOf(asked.from, request), request, id)
      },
    }),
  ]
}

/** `until`: the execution with whose end it is over; what it is now comes first, where nobody said what it knows. */
async function answerEvents(
  executions: Executions,
  filter: { workspace: string; id?: string; group?: string; source?: string },
  since: number | undefined,
  request: Request,
  until: string | null,
): Promise<Response | object> {
  const gone = new AbortController()
  const streamed = (request.headers.get('accept') ?? '').includes('text/event-stream')
  if (!streamed) {
    const data: object[] = []
    for (const event of executions.happened(filter, since ?? 0)) data.push(eventView(event))
    return { data }
  }
  const signal = AbortSignal.any([request.signal, gone.signal])
  const events = executions.watch(filter, signal, since)
  const now = until === null ? null : executions.get(filter.workspace, until)
  const isOver = now !== null && now.endedAt !== null
  const willEnd = ({ type, execution }: ExecutionEvent) => type === 'ended' && execution.id === until
  const tellsEnd = since !== undefined && executions.happened(filter, since).some(willEnd)
  // Whoever comes back is told what it missed; where that is not kept any more, how it is now.
  const state = since === undefined || (isOver && !tellsEnd) ? now : null
  const body = keptAlive(
    recordsOf(events, state, until, isOver && !tellsEnd),
    { text: ': keepalive\n\n', everyMs: keepaliveMs },
    () => gone.abort(),
  )
  return new Response(body, {
    headers: { 'content-type': 'text/event-stream', 'cache-control': 'no-cache' },
  })
}

async function* recordsOf(
  events: AsyncIterable<ExecutionEvent>,
  now: Execution | null,
  until: string | null,
  isOver: boolean,
): AsyncGenerator<string> {
  if (now)
    yield record('state', {
      at: new Date().toISOString(),
      type: 'state',
      number: 0,
      execution: executionView(now),
    })
  if (isOver) return
  for await (const event of events) {
    yield record(event.type, eventView(event), event.number)
    if (event.type === 'ended' && event.execution.id === until) return
  }
}

function record(type: string, data: object, number?: number): string {
  return `${number === undefined ? '' : `id: ${number}\n`}event: ${type}\ndata: ${JSON.stringify(data)}\n\n`
}

function sinceOf(from: number | undefined, request: Request): number | undefined {
  const last = request.headers.get('last-event-id')
  return from ?? (last !== null && /^\d{1,16}$/.test(last) ? Number(last) : undefined)
}

/** @throws not_found */
function known(executions: Executions, workspace: string, id: string): Execution {
  const execution = executions.get(workspace, id)
  if (execution && executions.isShown(execution)) return execution
  throw new PlatformError('not_found', `the execution "${id.slice(0, 200)}" does not exist`)
}

/** @throws bad_request */
function requireShown(executions: Executions, source: string | readonly string[] | undefined): void {
  const shown = executions.shownSources()
  if (source === undefined || shown.includes(String(source))) return
  const message = `source: ${JSON.stringify(String(source).slice(0, 60))} is not one of ${shown.join(', ')}`
  throw new PlatformError('bad_request', message)
}

function textOf(bytes: Uint8Array): { encoding: 'utf8' | 'base64'; data: string } {
  try {
    return { encoding: 'utf8', data: new TextDecoder('utf-8', { fatal: true }).decode(bytes) }
  } catch {
    return { encoding: 'base64', data: Buffer.from(bytes).toString('base64') }
  }
}
