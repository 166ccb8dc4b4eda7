import { afterAll, beforeAll, expect, test } from 'bun:test'
import type { Attempt, AttemptOutcome, NewExecution } from '../../executions/index.ts'
import { createPlatform, type Platform, temporaryDataDir } from '../../platform.ts'
import { fakeRuntime } from '../../runtimes/fake/index.ts'

interface Begun {
  attempt: Attempt
  signal: AbortSignal
  end(outcome: AttemptOutcome): void
}

let platform: Platform
const begun: Begun[] = []
const waiting: (() => void)[] = []
const bytes = (text: string) => new TextEncoder().encode(text)

beforeAll(async () => {
  platform = await createPlatform({
    dataDir: temporaryDataDir,
    runtime: fakeRuntime(),
    port: 0,
    logLevel: 'error',
  })
  const run = (attempt: Attempt, signal: AbortSignal) =>
    new Promise<AttemptOutcome>((end, fail) => {
      signal.addEventListener('abort', () => fail(signal.reason), { once: true })
      begun.push({ attempt, signal, end })
      for (const wake of waiting.splice(0)) wake()
    })
  platform.executions.runner('probe', run, { runningMax: 10 })
  platform.executions.runner('secret', run, { runningMax: 10, hidden: true })
})
afterAll(() => platform.close())

/** The attempt of this one; waits for it. */
async function attemptOf(id: string): Promise<Begun> {
  for (;;) {
    const found = begun.find(({ attempt }) => attempt.execution.id === id)
    if (found) return found
    await new Promise<void>((resolve) => waiting.push(resolve))
  }
}

async function accept(given: Partial<NewExecution> = {}): Promise<string> {
  const { execution } = await platform.executions.accept({
    workspace: 'main',
    source: 'probe',
    target: { kind: 'agent', name: 'echo' },
    input: bytes('hello'),
    timeoutMs: 600_000,
    ...given,
  })
  return execution.id
}

async function done(
  outcome: Partial<AttemptOutcome> = {},
  given: Partial<NewExecution> = {},
): Promise<string> {
  const id = await accept(given)
  const { end } = await attemptOf(id)
  end({ status: 'succeeded', result: bytes('"hi"'), type: 'application/json', ...outcome } as AttemptOutcome)
  await platform.executions.ended('main', id, { timeoutMs: 600_000 })
  return id
}

const failed = {
  status: 'failed',
  error: { code: 'agent_error', message: 'it broke' },
  retry: false,
} as const

function request(path: string, init: RequestInit & { json?: object } = {}): Promise<Response> {
  const { json, ...rest } = init
  return platform.request(path, {
    ...rest,
    headers: {
      authorization: `Bearer ${platform.credentials.apiKey}`,
      'x-blaxel-workspace': 'main',
      ...(json ? { 'content-type': 'application/json' } : {}),
      ...(init.headers as Record<string, string>),
    },
    ...(json ? { body: JSON.stringify(json) } : {}),
  })
}

async function json<Body>(path: string, init?: Parameters<typeof request>[1]): Promise<Body> {
  const response = await request(path, init)
  const body = (await response.json()) as Body
  expect([path, response.ok, body]).toEqual([path, true, body])
  return body
}

type View = Record<string, unknown> & { id: string; status: string }
interface Listed {
  data: View[]
  meta: { hasMore: boolean; nextCursor: string }
}
const ids = ({ data }: Listed) => data.map(({ id }) => id)

test('an execution is shown with what came of it', async () => {
  const id = await done({ note: { tokens: 3 } }, { labels: { trigger: 'http-async' } })
  const shown = await json<View>(`/v0/executions/${id}`)
  expect(shown).toMatchObject({
    source: 'probe',
    target: { kind: 'agent', name: 'echo' },
    status: 'succeeded',
    labels: { trigger: 'http-async' },
    note: { tokens: 3 },
    attempts: 1,
    result: { bytes: 4, type: 'application/json' },
    error: null,
    timeoutSeconds: 600,
  })
  expect(await json<object>(`/v0/executions/${id}/result`)).toEqual({
    type: 'application/json',
    encoding: 'utf8',
    data: '"hi"',
  })
  expect(await json<object>(`/v0/executions/${id}/input`)).toMatchObject({ data: 'hello' })
  const raw = await request(`/v0/executions/${id}/result?raw=true`)
  expect([
    raw.headers.get('content-type'),
    raw.headers.get('content-security-policy'),
    await raw.text(),
  ]).toEqual(['application/json', 'sandbox', '"hi"'])
  expect((await request('/v0/executions/none')).status).toBe(404)
  expect((await request('/v0/executions/none/result')).status).toBe(404)
})

test('what is no text comes as base64', async () => {
  const id = await done({ result: new Uint8Array([0xff, 0x00]) } as Partial<AttemptOutcome>)
  expect(await json<object>(`/v0/executions/${id}/result`)).toMatchObject({
    encoding: 'base64',
    data: '/wA=',
  })
})

test('lists are pages, filtered by what is asked for', async () => {
  const labels = { batch: 'list' }
  const first = await done({}, { labels })
  const second = await done(failed, { labels, target: { kind: 'agent', name: 'other' } })
  const third = await accept({ labels, runAt: Date.now() + 3_600_000 })
  const listed = (query: string) => json<Listed>(`/v0/executions?label=batch=list&${query}`)
  expect(ids(await listed(''))).toEqual([third, second, first])
  expect(ids(await listed('sort=oldest&status=succeeded,failed'))).toEqual([first, second])
  expect(ids(await listed('sort=createdAt:asc&status=succeeded,failed'))).toEqual([first, second])
  expect(ids(await listed('target=agent/other'))).toEqual([second])
  expect(ids(await listed('source=probe&until=2020-01-01'))).toEqual([])
  expect(ids(await json<Listed>('/v0/agents/other/executions'))).toEqual([second])
  const page = await listed('limit=2')
  expect([ids(page), page.meta.hasMore]).toEqual([[third, second], true])
  const rest = await listed(`limit=2&cursor=${page.meta.nextCursor}`)
  expect([ids(rest), rest.meta]).toEqual([[first], { hasMore: false, nextCursor: '' }])
  for (const wrong of [
    'status=done',
    'target=echo',
    'label=x',
    'since=yesterday',
    'cursor=x',
    'limit=0',
    'source=x',
  ])
    expect([wrong, (await request(`/v0/executions?${wrong}`)).status]).toEqual([wrong, 400])
  await json(`/v0/executions/${third}`, { method: 'DELETE' })
  expect((await request(`/v0/executions/${third}`)).status).toBe(404)
})

test('what belongs to a hidden source is shown nowhere', async () => {
  const id = await accept({ source: 'secret' })
  await attemptOf(id)
  expect(ids(await json<Listed>('/v0/executions'))).not.toContain(id)
  expect((await request('/v0/executions?source=secret')).status).toBe(400)
  expect((await request(`/v0/executions/${id}`)).status).toBe(404)
  expect((await request(`/v0/executions/${id}/cancel`, { method: 'POST' })).status).toBe(404)
})

test('one is cancelled, once, and its runner hears of it', async () => {
  const id = await accept()
  const { signal } = await attemptOf(id)
  const path = `/v0/executions/${id}/cancel`
  const cancelled = await json<View>(path, { method: 'POST', json: { reason: 'enough' } })
  expect(cancelled).toMatchObject({ status: 'cancelled', statusReason: 'enough', previousStatus: 'running' })
  expect(signal.aborted).toBe(true)
  expect((await request(path, { method: 'POST' })).status).toBe(409)
})

test('one is done once more, and many that failed', async () => {
  const id = await done(failed, { labels: { batch: 'replay' } })
  const response = await request(`/v0/executions/${id}/replay`, { method: 'POST' })
  expect(response.status).toBe(202)
  const again = (await response.json()) as View
  expect(again.labels).toEqual({ batch: 'replay', replayOf: id })
  const { end } = await attemptOf(again.id)
  const running = await request(`/v0/executions/${again.id}/replay`, { method: 'POST' })
  expect(running.status).toBe(409)
  end({ status: 'succeeded', result: bytes(''), type: 'text/plain' })
  await platform.executions.ended('main', again.id, { timeoutMs: 600_000 })
  const many = await json<{ replayed: number; executions: string[] }>('/v0/executions/replay', {
    method: 'POST',
    json: { label: 'batch=replay' },
  })
  expect(many.replayed).toBe(1)
  const dead = await json<{ replayed: number }>('/v0/executions/replay', {
    method: 'POST',
    json: { label: 'batch=replay', dead: true },
  })
  expect(dead.replayed).toBe(0)
  await json(`/v0/executions/${many.executions[0]}`, { method: 'DELETE' })
})

test('one is followed until it ended, and again from where the connection broke', async () => {
  const id = await accept()
  const { attempt, end } = await attemptOf(id)
  const follow = (headers: Record<string, string> = {}) =>
    request(`/v0/executions/${id}/events`, { headers: { accept: 'text/event-stream', ...headers } })
  const stream = await follow()
  expect(stream.headers.get('content-type')).toBe('text/event-stream')
  attempt.note({ said: 'half' })
  end({ status: 'succeeded', result: bytes(''), type: 'text/plain' })
  const events = eventsOf(await stream.text())
  expect(events.map(({ type }) => type)).toEqual(['state', 'progress', 'ended'])
  expect(events[1]?.progress).toEqual({ said: 'half' })
  const again = eventsOf(await (await follow({ 'last-event-id': String(events[1]?.number) })).text())
  expect(again).toEqual(events.slice(2))
  // One that has seen the end, or whose events are kept no more, is told how it is.
  const seen = eventsOf(await (await follow({ 'last-event-id': String(events[2]?.number) })).text())
  expect(seen.map(({ type, execution }) => [type, execution.status])).toEqual([['state', 'succeeded']])
  const over = eventsOf(await (await follow()).text())
  expect(over.map(({ type, execution }) => [type, execution.status])).toEqual([['state', 'succeeded']])
  const kept = await json<{ data: { type: string }[] }>(`/v0/executions/${id}/events`)
  expect(kept.data.map(({ type }) => type)).toEqual(['created', 'started', 'progress', 'ended'])
})

interface Event {
  type: string
  number: number
  progress?: object
  execution: View
}

function eventsOf(text: string): Event[] {
  return [...text.matchAll(/^data: (.*)$/gm)].map(([, data]) => JSON.parse(data!) as Event)
}

test('how much waits and was done is told to people and to Prometheus', async () => {
  const id = await accept({ runAt: Date.now() + 3_600_000 })
  const { sources } = await json<{ sources: Record<string, number>[] }>('/v0/executions/metrics')
  expect(sources.find(({ source }) => String(source) === 'probe')).toMatchObject({ waiting: 1, running: 0 })
  const text = await (await request('/metrics')).text()
  expect(text).toContain('hutch_executions_waiting{workspace="main",source="probe"} 1\n')
  expect(text).toMatch(
    /hutch_executions_ended_total\{workspace="main",source="probe",status="succeeded"\} [1-9]/,
  )
  expect((await platform.request('/metrics')).status).toBe(401)
  await json(`/v0/executions/${id}`, { method: 'DELETE' })
})
