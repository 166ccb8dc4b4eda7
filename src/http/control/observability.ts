import { z } from 'zod'
import { PlatformError } from '../../errors.ts'
import { merged } from '../../lib/merged.ts'
import type { Sandboxes } from '../../sandboxes/index.ts'
import {
  type LogFilter,
  type LogKind,
  type LogLine,
  type Logs,
  logKinds,
  logStreams,
  type SeverityName,
  severityNumbers,
  timestampOf,
} from '../../telemetry/index.ts'
import { flag } from '../flag.ts'
import { type Route, route } from '../route.ts'
import { keptAlive } from '../run/bodies.ts'

const linesMax = 1000
const workloadsMax = 50
/** Who watches a build begins to look when it is under way already, and asks for what came since. */
const watchedEarlierUs = 120_000_000
const keepaliveMs = 30_000

const optional = z.string().max(1000).optional()
const count = z.coerce.number().int().min(0)

const logLine = z.lazy(() =>
  z.object({
    timestamp: z.string(),
    message: z.string(),
    severity: z.number(),
    trace_id: z.string(),
    /** build, stdout, stderr or platform. */
    stream: z.string(),
    revision: z.string().optional(),
    instance: z.string().optional(),
    execution: z.string().optional(),
    task: z.string().optional(),
  }),
)

interface LogSources {
  logs: Logs
  /** What processes of sandboxes write is kept where they run. */
  sandboxes: Pick<Sandboxes, 'output'>
}

/** Logs of workloads and of their builds. */
export function observabilityRoutes(sources: LogSources): Route[] {
  return [
    route({
      method: 'GET',
      path: '/v0/observability/logs',
      access: 'write',
      errors: 'control',
      tag: 'observability',
      summary: 'Read the logs of workloads, newest first, builds included',
      query: z.object({
        resourceType: z.string(),
        workloadIds: z.string().max(10_000),
        start: optional,
        end: optional,
        severity: optional,
        search: optional,
        limit: count.max(linesMax).optional(),
        offset: count.optional(),
        stream: z.string().max(100).optional(),
        revision: optional,
        instance: optional,
        /** Of a job: of one execution, and of one task of it, by its number. */
        executionId: optional,
        taskId: optional,
        /** Oldest first, and on: NDJSON, or events where text/event-stream is asked for. */
        follow: flag,
        /** Of what there is already, when following; default all since `start`. */
        last: count.optional(),
        /** What follows says nothing here yet, or the same always. */
        type: optional,
        traceId: optional,
        interval: optional,
        workspace: optional,
      }),
      answer: z.lazy(() =>
        z.record(z.string(), z.object({ logs: z.array(logLine), totalCount: z.number() })),
      ),
      async handle({ workspace, query, request }) {
        const kind = kindOf(query.resourceType)
        const names = [...new Set(query.workloadIds.split(',').map((name) => name.trim()))]
        if (names.length > workloadsMax) {
          throw new PlatformError(
            'bad_request',
            `workloadIds: ${names.length} names, at most ${workloadsMax}`,
          )
        }
        if (query.follow) return follow(sources, { workspace, kind, names }, query, request)
        const page = { limit: query.limit ?? linesMax, offset: query.offset ?? 0 }
        const answer: Record<string, object> = {}
        for (const name of names) {
          const workload = { workspace, kind, name }
          const { lines, total } = await read(sources, workload, query, page, request.signal)
          answer[name] = { logs: lines.map(lineView), totalCount: total }
        }
        return answer
      },
    }),
  ]
}

/** One record a line; the connection's end is the follower's. */
function follow(
  { logs, sandboxes }: LogSources,
  { workspace, kind, names }: { workspace: string; kind: LogKind; names: string[] },
  asked: Asked & { last?: number | undefined },
  request: Request,
): Response {
  const [name = '', ...more] = names
  if (more.length > 0) {
    throw new PlatformError('bad_request', `workloadIds: ${names.length} names; one workload can be followed`)
  }
  const events = (request.headers.get('accept') ?? '').includes('text/event-stream')
  const gone = new AbortController()
  const signal = AbortSignal.any([request.signal, gone.signal])
  const { last = Number.POSITIVE_INFINITY } = asked
  const filter = filterOf(asked)
  const said = logs.follow({ workspace, kind, name }, { ...filter, last }, signal)
  const written = () => newest(sandboxes.output.follow(workspace, name, filter, signal), last)
  const lines = kind === 'sandboxes' ? merged(said, written()) : said
  const text = events ? ': keepalive\n\n' : '{"type":"keepalive"}\n'
  const body = keptAlive(recordsOf(lines, events), { text, everyMs: keepaliveMs }, () => gone.abort())
  const type = events ? 'text/event-stream' : 'application/x-ndjson'
  return new Response(body, { headers: { 'content-type': type, 'cache-control': 'no-cache' } })
}

interface Asked {
  start?: string | undefined
  end?: string | undefined
  severity?: string | undefined
  search?: string | undefined
  stream?: string | undefined
  revision?: string | undefined
  instance?: string | undefined
  executionId?: string | undefined
  taskId?: string | undefined
}

/** One by one, of the first batch the last `last`. */
async function* newest(batches: AsyncIterable<LogLine[]>, last: number): AsyncGenerator<LogLine> {
  let kept = last
  for await (const batch of batches) {
    yield* batch.slice(kept > 0 ? -kept : batch.length)
    kept = Number.POSITIVE_INFINITY
  }
}

async function read(
  { logs, sandboxes }: LogSources,
  workload: { workspace: string; kind: LogKind; name: string },
  asked: Asked,
  page: { limit: number; offset: number },
  signal: AbortSignal,
): Promise<{ lines: LogLine[]; total: number }> {
  if (workload.kind === 'sandboxes') {
    const { workspace, name } = workload
    const written = await sandboxes.output.lines(workspace, name, filterOf(asked), signal)
    const end = page.offset + page.limit
    const said = await queryWatched(logs, workload, asked, { limit: end, offset: 0 }, signal)
    const lines = [...said.lines, ...written.reverse()].sort((left, right) => right.atUs - left.atUs)
    return { lines: lines.slice(page.offset, end), total: said.total + written.length }
  }
  return await queryWatched(logs, workload, asked, page, signal)
}

async function queryWatched(
  logs: Logs,
  workload: { workspace: string; kind: LogKind; name: string },
  asked: Asked,
  page: { limit: number; offset: number },
  signal: AbortSignal,
): Promise<{ lines: LogLine[]; total: number }> {
  const filter = filterOf(asked)
  const found = await logs.query(workload, { ...filter, ...page }, signal)
  // The word that watchers of builds alone send.
  const watches = /(^|,)all(,|$)/i.test(asked.severity ?? '')
  if (!watches || filter.fromUs === undefined) return found
  const builds = new Set(['build'] as const)
  const [newest] = (await logs.query(workload, { streams: builds, limit: 1 }, signal)).lines
  if (newest === undefined) return found
  const earlier = await logs.query(
    workload,
    {
      ...filter,
      streams: builds,
      revision: newest.revision,
      fromUs: filter.fromUs - watchedEarlierUs,
      toUs: filter.fromUs - 1,
      limit: page.limit - found.lines.length,
      offset: Math.max(0, page.offset - found.total),
    },
    signal,
  )
  return { lines: [...found.lines, ...earlier.lines], total: found.total + earlier.total }
}

function filterOf(asked: Asked): LogFilter {
  const { start, end, severity, search, stream, revision, instance, executionId, taskId } = asked
  const severities = severitiesOf(severity)
  return {
    ...(start ? { fromUs: timeOf('start', start).firstUs } : {}),
    ...(end ? { toUs: timeOf('end', end).lastUs } : {}),
    ...(severities ? { severities } : {}),
    ...(search ? { search } : {}),
    ...(stream ? { streams: streamsOf(stream) } : {}),
    ...(revision ? { revision } : {}),
    ...(instance ? { instance } : {}),
    ...(executionId ? { execution: executionId } : {}),
    // Also as the task is called.
    ...(taskId ? { task: taskId.replace(/^task-/, '') } : {}),
  }
}

/** Null: all of them. */
function severitiesOf(text: string | undefined): ReadonlySet<SeverityName> | null {
  const words = (text ?? '').split(',').flatMap((word) => word.trim().toUpperCase() || [])
  if (words.length === 0 || words.includes('ALL')) return null
  return new Set(
    words.map((word) => {
      const name = word === 'WARN' ? 'WARNING' : word
      if (Object.hasOwn(severityNumbers, name)) return name as SeverityName
      const known = Object.keys(severityNumbers).join(', ')
      throw new PlatformError('bad_request', `severity: "${word.slice(0, 40)}" is not one of ${known}`)
    }),
  )
}

function streamsOf(text: string): NonNullable<LogFilter['streams']> {
  return new Set(
    text.split(',').map((word) => {
      const stream = logStreams.find((one) => one === word.trim())
      if (stream !== undefined) return stream
      throw new PlatformError(
        'bad_request',
        `stream: "${word.slice(0, 40)}" is not one of ${logStreams.join(', ')}`,
      )
    }),
  )
}

/** One that names no part of a second stands for all of that second; one without a zone is in UTC. */
function timeOf(field: string, text: string): { firstUs: number; lastUs: number } {
  const match = /^\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:?\d\d)?)?$/.exec(text)
  const dated = text.length === 10 ? `${text}T00:00:00` : text.replace(' ', 'T')
  const ms = match === null ? Number.NaN : Date.parse(match[2] === undefined ? `${dated}Z` : dated)
  if (Number.isNaN(ms)) {
    const shown = JSON.stringify(text.slice(0, 60))
    throw new PlatformError('bad_request', `${field}: ${shown} is not a time like 2030-12-31T23:59:59Z`)
  }
  const fraction = match?.[1]
  if (fraction === undefined) return { firstUs: ms * 1000, lastUs: ms * 1000 + 999_999 }
  const us = Math.floor(ms / 1000) * 1_000_000 + Number(fraction.slice(1, 7).padEnd(6, '0'))
  return { firstUs: us, lastUs: us }
}

const kinds: Record<string, LogKind> = {
  ...Object.fromEntries(
    logKinds.flatMap((kind) => [[kind, kind] as const, [kind.replace(/s$/, ''), kind] as const]),
  ),
  sandbox: 'sandboxes',
}

function kindOf(text: string): LogKind {
  const said = text.toLowerCase()
  const kind = Object.hasOwn(kinds, said) ? kinds[said] : undefined
  if (kind !== undefined) return kind
  throw new PlatformError(
    'bad_request',
    `resourceType: "${text.slice(0, 40)}" has no logs; these have: ${logKinds.join(', ')}`,
  )
}

function lineView(line: LogLine) {
  const { atUs, message, severity, stream, revision, instance, execution, task } = line
  return {
    timestamp: timestampOf(atUs),
    message,
    severity: severityNumbers[severity],
    trace_id: '',
    stream,
    ...(revision === '' ? {} : { revision }),
    ...(instance === '' ? {} : { instance }),
    ...(execution === '' ? {} : { execution, task }),
  }
}

async function* recordsOf(lines: AsyncIterable<LogLine>, events: boolean): AsyncGenerator<string> {
  for await (const line of lines) {
    const record = JSON.stringify({ type: 'line', ...lineView(line), level: line.severity })
    yield events ? `data: ${record}\n\n` : `${record}\n`
  }
}
