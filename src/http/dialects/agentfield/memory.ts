import { z } from 'zod'
import { PlatformError } from '../../../errors.ts'
import type { Logger } from '../../../lib/log.ts'
import { onceEach } from '../../../lib/once-each.ts'
import {
  type ChangeFilter,
  type Memory,
  type MemoryAuthor,
  type MemoryChange,
  type MemoryPlace,
  type MemoryScope,
  type MemoryValue,
  type MemoryVector,
  memoryScopes,
} from '../../../memory/index.ts'
import { type Route, route, type Socket } from '../../route.ts'
import { eventStreamOf } from '../event-stream.ts'
import { streamOf, tag } from './wire.ts'

const key = z.string().min(1)
const scope = z.enum(memoryScopes).nullish()
const foundDefault = 10
/** The data, and what it is wrapped in. */
const bodyBytesMax = 5 * 1024 * 1024
const patternsMax = 100
/** Nobody listens to a socket that is closed by this: come back, and read what was missed from the history. */
const tryAgainLater = 1013

const headerOf: Record<MemoryScope, readonly string[]> = {
  workflow: ['x-workflow-id', 'x-run-id'],
  session: ['x-session-id'],
  actor: ['x-actor-id'],
  global: [],
}

const eventsQuery = z.object({
  scope: z.enum(memoryScopes).optional(),
  scope_id: z.string().optional(),
  patterns: z.string().optional(),
})

/** What agents remember together, `/api/v1/memory`. */
export function memoryRoutes({ memory, log }: { memory: Memory; log: Logger }): Route[] {
  const shared = { errors: 'agentfield', tag, keyless: true } as const
  const forgetVector = async (
    workspace: string,
    headers: Headers,
    asked: { key: string; scope?: MemoryScope | null | undefined },
  ) => {
    const removed = await memory.vectors.remove(workspace, placeOf(headers, asked.scope), asked.key)
    if (!removed) throw unknown(asked.key)
    return new Response(null, { status: 204 })
  }
  return [
    route({
      ...shared,
      method: 'POST',
      path: '/api/v1/memory/set',
      access: 'deployed',
      summary: 'Remember a value',
      body: z.object({ key, data: z.unknown().refine((data) => data !== undefined, 'must be there'), scope }),
      bodyBytesMax,
      handle: async ({ workspace, request, body }) =>
        valueView(
          await memory.set(
            workspace,
            placeOf(request.headers, body.scope),
            body.key,
            body.data,
            authorOf(request.headers),
          ),
        ),
    }),
    route({
      ...shared,
      method: 'POST',
      path: '/api/v1/memory/get',
      access: 'read',
      summary: 'Recall a value: of the scope that is named, else of the narrowest that has it',
      body: z.object({ key, scope }),
      async handle({ workspace, request, body }) {
        const places = body.scope ? [placeOf(request.headers, body.scope)] : placesOf(request.headers)
        for (const place of places) {
          const found = await memory.get(workspace, place, body.key)
          if (found !== null) return valueView(found)
        }
        throw unknown(body.key)
      },
    }),
    route({
      ...shared,
      method: 'POST',
      path: '/api/v1/memory/delete',
      access: 'deployed',
      summary: 'Forget a value',
      body: z.object({ key, scope }),
      async handle({ workspace, request, body }) {
        const { headers } = request
        const removed = await memory.remove(
          workspace,
          placeOf(headers, body.scope),
          body.key,
          authorOf(headers),
        )
        if (!removed) throw unknown(body.key)
        return new Response(null, { status: 204 })
      },
    }),
    route({
      ...shared,
      method: 'GET',
      path: '/api/v1/memory/list',
      access: 'read',
      summary: 'List what a scope remembers',
      query: z.object({ scope: z.enum(memoryScopes) }),
      handle({ workspace, request, query }) {
        const values = memory.list(workspace, placeOf(request.headers, query.scope))
        // Streamed: all of it may be more than is good to hold at once.
        return new Response(streamOf(arrayOf(values)), {
          headers: { 'content-type': 'application/json' },
        })
      },
    }),
    route({
      ...shared,
      method: 'POST',
      path: '/api/v1/memory/vector/set',
      access: 'deployed',
      summary: 'Remember a vector',
      body: z.object({
        key,
        embedding: z.array(z.number()),
        metadata: z.record(z.string(), z.unknown()).nullish(),
        scope,
      }),
      handle: async ({ workspace, request, body }) => {
        const { embedding, metadata } = body
        const place = placeOf(request.headers, body.scope)
        const vector = { embedding, metadata: metadata ?? {} }
        return vectorView(await memory.vectors.set(workspace, place, body.key, vector))
      },
    }),
    route({
      ...shared,
      method: 'POST',
      path: '/api/v1/memory/vector/search',
      access: 'read',
      summary: 'Find the vectors of a scope that point most nearly the same way',
      body: z.object({
        query_embedding: z.array(z.number()),
        top_k: z.int().min(1).max(1000).nullish(),
        filters: z.record(z.string(), z.unknown()).nullish(),
        scope,
      }),
      async handle({ workspace, request, body }) {
        const found = await memory.vectors.search(workspace, placeOf(request.headers, body.scope), {
          embedding: body.query_embedding,
          limit: body.top_k ?? foundDefault,
          filters: body.filters ?? {},
        })
        return found.map((one) => ({ ...vectorView(one), score: one.cosine, distance: 1 - one.cosine }))
      },
    }),
    route({
      ...shared,
      method: 'POST',
      path: '/api/v1/memory/vector/delete',
      access: 'deployed',
      summary: 'Forget a vector',
      body: z.object({ key, scope }),
      handle: ({ workspace, request, body }) => forgetVector(workspace, request.headers, body),
    }),
    route({
      ...shared,
      method: 'DELETE',
      path: '/api/v1/memory/vector/{key}',
      access: 'deployed',
      summary: 'Forget a vector',
      query: z.object({ scope }),
      handle: ({ workspace, request, params, query }) =>
        forgetVector(workspace, request.headers, { key: params.key, scope: query.scope }),
    }),
    route({
      ...shared,
      method: 'GET',
      path: '/api/v1/memory/vector/{key}',
      access: 'read',
      summary: 'Say whether a vector is remembered, and with which metadata',
      query: z.object({ scope }),
      async handle({ workspace, request, params, query }) {
        const place = placeOf(request.headers, query.scope)
        const found = await memory.vectors.get(workspace, place, params.key)
        if (found === null) throw unknown(params.key)
        return vectorView(found)
      },
    }),
    route({
      ...shared,
      method: 'GET',
      path: '/api/v1/memory/events/history',
      access: 'read',
      summary: 'List what changed, the newest last',
      query: eventsQuery.extend({
        since: z.string().optional(),
        limit: z.coerce.number().int().min(1).max(1000).optional(),
      }),
      async handle({ workspace, query }) {
        const changes = await memory.history(workspace, {
          ...filterOf(query),
          ...(query.since === undefined ? {} : { sinceMs: timeOf(query.since) }),
          ...(query.limit === undefined ? {} : { limit: query.limit }),
        })
        return Response.json(changes.map(changeView))
      },
    }),
    route({
      ...shared,
      method: 'GET',
      path: '/api/v1/memory/events/sse',
      access: 'read',
      summary: 'Follow what changes, as events',
      query: eventsQuery,
      handle({ workspace, request, query }) {
        const gone = new AbortController()
        const signal = AbortSignal.any([request.signal, gone.signal])
        const changes = memory.follow(workspace, filterOf(query), signal)
        return eventStreamOf(
          (async function* () {
            for await (const change of changes) yield eventOf(change)
          })(),
          () => gone.abort(),
        )
      },
    }),
    route({
      ...shared,
      method: 'GET',
      path: '/api/v1/memory/events/ws',
      access: 'read',
      summary: 'Follow what changes, by WebSocket',
      queryToken: true,
      query: eventsQuery.extend({ token: z.string().optional() }),
      handle({ workspace, query, upgrade }) {
        if (upgrade === null) throw new PlatformError('bad_request', 'this address is for WebSockets')
        const gone = new AbortController()
        const changes = memory.follow(workspace, filterOf(query), gone.signal)
        let drained = Promise.withResolvers<void>()
        const send = async (socket: Socket) => {
          for await (const change of changes) {
            if (socket.send(textOf(change))) continue
            await drained.promise
          }
          if (!gone.signal.aborted) socket.close(tryAgainLater, 'too far behind: read the history')
        }
        return upgrade({
          open: (socket) =>
            void send(socket).catch((error) => log.warn('changes of memory cannot be told', { error })),
          message() {},
          drain() {
            drained.resolve()
            drained = Promise.withResolvers()
          },
          close() {
            gone.abort()
            drained.resolve()
          },
        })
      },
    }),
  ]
}

/** The scope that is named, else the narrowest that the request speaks of. @throws bad_request */
function placeOf(headers: Headers, named: MemoryScope | null | undefined): MemoryPlace {
  if (!named) return placesOf(headers)[0]!
  const scopeId = idOf(headers, named)
  if (scopeId !== null) return { scope: named, scopeId }
  throw new PlatformError(
    'bad_request',
    `scope: "${named}" needs the header ${headerOf[named][0]}, which says which ${named}`,
  )
}

/** The scopes a request speaks of, the narrowest first. */
function placesOf(headers: Headers): MemoryPlace[] {
  return memoryScopes.flatMap((one) => {
    // A run is a workflow to who names the scope; a value that belongs nowhere else is global.
    if (one === 'workflow' && !headers.get('x-workflow-id')) return []
    const scopeId = idOf(headers, one)
    return scopeId === null ? [] : [{ scope: one, scopeId }]
  })
}

function idOf(headers: Headers, named: MemoryScope): string | null {
  if (named === 'global') return 'global'
  for (const header of headerOf[named]) {
    const value = headers.get(header)
    if (value) return value
  }
  return null
}

function authorOf(headers: Headers): MemoryAuthor {
  const said = (header: string) => (headers.get(header) ?? '').slice(0, 256)
  return {
    agentId: said('x-agent-node-id'),
    actorId: said('x-actor-id'),
    workflowId: said('x-workflow-id'),
  }
}

function filterOf(query: z.output<typeof eventsQuery>): ChangeFilter {
  const patterns = (query.patterns ?? '').split(',').filter((pattern) => pattern !== '')
  if (patterns.length > patternsMax) {
    throw new PlatformError('bad_request', `patterns: ${patterns.length}, more than ${patternsMax}`)
  }
  return {
    ...(query.scope === undefined ? {} : { scope: query.scope }),
    ...(query.scope_id ? { scopeId: query.scope_id } : {}),
    ...(patterns.length === 0 ? {} : { patterns }),
  }
}

function timeOf(text: string): number {
  // What a client did not encode: a plus that became a space.
  const ms = Date.parse(text.replace(' ', '+'))
  if (!Number.isNaN(ms)) return ms
  throw new PlatformError('bad_request', `since: "${text.slice(0, 60)}" is no time like 2030-12-31T23:59:59Z`)
}

async function* arrayOf(values: AsyncIterable<MemoryValue>): AsyncGenerator<Uint8Array> {
  const encoder = new TextEncoder()
  let before = '['
  for await (const value of values) {
    yield encoder.encode(before + JSON.stringify(valueView(value)))
    before = ','
  }
  yield encoder.encode(before === '[' ? '[]' : ']')
}

function valueView({ scope, scopeId, key, data, createdAt, updatedAt }: MemoryValue) {
  return { scope, scope_id: scopeId, key, data, ...timesView(createdAt, updatedAt) }
}

function vectorView({ scope, scopeId, key, dimensions, metadata, createdAt, updatedAt }: MemoryVector) {
  return { scope, scope_id: scopeId, key, dimensions, metadata, ...timesView(createdAt, updatedAt) }
}

function timesView(createdAt: number, updatedAt: number) {
  return { created_at: new Date(createdAt).toISOString(), updated_at: new Date(updatedAt).toISOString() }
}

function changeView({ id, at, scope, scopeId, key, action, data, previousData, author }: MemoryChange) {
  return {
    id,
    type: 'memory_change',
    timestamp: new Date(at).toISOString(),
    scope,
    scope_id: scopeId,
    key,
    action,
    ...(data === undefined ? {} : { data }),
    ...(previousData === undefined ? {} : { previous_data: previousData }),
    metadata: { agent_id: author.agentId, actor_id: author.actorId, workflow_id: author.workflowId },
  }
}

/** However many are told of it. */
const textOf = onceEach((change: MemoryChange) => JSON.stringify(changeView(change)))
const eventOf = onceEach((change: MemoryChange) => Buffer.from(`event: message\ndata: ${textOf(change)}\n\n`))

function unknown(key: string): PlatformError {
  return new PlatformError('not_found', `nothing is remembered under "${key.slice(0, 60)}" there`)
}
