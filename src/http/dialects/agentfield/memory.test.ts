import { afterEach, beforeEach, expect, test } from 'bun:test'
import { TestControlPlane } from './test-control-plane.ts'

let plane: TestControlPlane
beforeEach(async () => {
  plane = await TestControlPlane.open()
})
afterEach(() => plane[Symbol.asyncDispose]())

const run = { 'X-Workflow-ID': 'run-1' }
const all = { ...run, 'X-Session-ID': 's1', 'X-Actor-ID': 'ann', 'X-Agent-Node-ID': 'planner' }
const set = (key: string, data: unknown, headers: Record<string, string> = {}, scope?: string) =>
  plane.ask('/memory/set', { json: { key, data, ...(scope ? { scope } : {}) }, headers })
const get = (key: string, headers: Record<string, string> = {}, scope?: string) =>
  plane.ask('/memory/get', { json: { key, ...(scope ? { scope } : {}) }, headers })

test('a value is of the narrowest scope that the request speaks of, and found from there outwards', async () => {
  expect(await set('k', 'everywhere')).toEqual({
    status: 200,
    body: {
      scope: 'global',
      scope_id: 'global',
      key: 'k',
      data: 'everywhere',
      created_at: '2026-01-01T00:00:00.000Z',
      updated_at: '2026-01-01T00:00:00.000Z',
    },
  })
  await set('k', 'of the run', all)
  await set('k', 'of ann', { 'X-Actor-ID': 'ann' })
  const found = async (headers: Record<string, string>, scope?: string) =>
    ((await get('k', headers, scope)).body as { data: string }).data
  expect(await found(all)).toBe('of the run')
  expect(await found({ 'X-Session-ID': 's1', 'X-Actor-ID': 'ann' })).toBe('of ann')
  expect(await found({ 'X-Session-ID': 's1' })).toBe('everywhere')
  expect(await found(all, 'global')).toBe('everywhere')
  expect((await get('k', all, 'session')).status).toBe(404)
  expect((await plane.ask('/memory/delete', { json: { key: 'k' }, headers: all })).status).toBe(204)
  expect(await found(all)).toBe('of ann')
})

test('a scope is listed with its values; one that nobody says which is refused', async () => {
  for (const key of ['b', 'a']) await set(key, { of: key }, all, 'session')
  expect((await plane.ask('/memory/list?scope=session', { headers: all })).body).toMatchObject([
    { key: 'a', scope_id: 's1', data: { of: 'a' } },
    { key: 'b' },
  ])
  expect((await plane.ask('/memory/list?scope=global')).body).toEqual([])
  const unsaid = await get('a', {}, 'session')
  expect(unsaid).toMatchObject({ status: 400, body: { error: expect.stringContaining('x-session-id') } })
  expect((await plane.ask('/memory/list')).status).toBe(400)
  expect((await get('a', {}, 'galaxy')).status).toBe(400)
  expect(await plane.ask('/memory/set', { json: { key: 'a' } })).toMatchObject({
    status: 400,
    body: { error: expect.stringContaining('data') },
  })
  expect((await set('a', null)).status).toBe(200)
})

test('programs in sandboxes recall and do not change what others remember', async () => {
  await set('k', 1)
  const sandbox = await plane.workload('sandbox', 'box')
  expect((await plane.ask('/memory/get', { json: { key: 'k' }, key: sandbox })).status).toBe(200)
  expect((await plane.ask('/memory/set', { json: { key: 'k', data: 2 }, key: sandbox })).status).toBe(403)
})

test('vectors are found by likeness', async () => {
  for (const [key, embedding] of [
    ['cat', [1, 0.1]],
    ['dog', [0.9, 0.3]],
    ['car', [0, 1]],
  ] as const) {
    const json = { key, embedding, metadata: { is: key }, scope: 'global' }
    expect((await plane.ask('/memory/vector/set', { json })).status).toBe(200)
  }
  const search = async (json: object) =>
    (await plane.ask('/memory/vector/search', { json: { scope: 'global', ...json } })).body
  expect(await search({ query_embedding: [1, 0], top_k: 2 })).toMatchObject([
    { key: 'cat', metadata: { is: 'cat' }, score: expect.any(Number), distance: expect.any(Number) },
    { key: 'dog' },
  ])
  expect(await search({ query_embedding: [1, 0], filters: { is: 'car' } })).toMatchObject([{ key: 'car' }])
  expect((await plane.ask('/memory/vector/car')).body).toMatchObject({ key: 'car', dimensions: 2 })
  expect((await plane.ask('/memory/vector/delete', { json: { key: 'car' } })).status).toBe(204)
  expect((await plane.ask('/memory/vector/car', { method: 'DELETE' })).status).toBe(404)
})

test('changes are told by WebSocket and as events, those that were asked for, and by their history', async () => {
  const { url } = await plane.platform.listen()
  const { apiKey } = plane.platform.credentials
  const socketUrl = `${url.replace('http', 'ws')}/api/v1/memory/events/ws?patterns=user_*&scope=session`
  const socket = new WebSocket(socketUrl, { headers: { 'x-api-key': apiKey } } as never)
  const heard = Promise.withResolvers<unknown>()
  socket.addEventListener('message', ({ data }) => heard.resolve(JSON.parse(String(data))))
  await new Promise((resolve) => socket.addEventListener('open', resolve, { once: true }))
  const stop = new AbortController()
  const events = await fetch(`${url}/api/v1/memory/events/sse?patterns=other`, {
    headers: { 'x-api-key': apiKey },
    signal: stop.signal,
  })

  await set('user_name', 'unwanted', run)
  await set('user_name', 'Ann', all, 'session')
  await set('other', 2, run)

  expect(await heard.promise).toMatchObject({
    type: 'memory_change',
    scope: 'session',
    scope_id: 's1',
    key: 'user_name',
    action: 'set',
    data: 'Ann',
    timestamp: '2026-01-01T00:00:00.000Z',
    metadata: { agent_id: 'planner', actor_id: 'ann', workflow_id: 'run-1' },
  })
  socket.close()
  let text = ''
  const decoder = new TextDecoder()
  for await (const chunk of events.body ?? []) {
    text += decoder.decode(chunk)
    if (text.includes('"other"')) break
  }
  stop.abort()
  expect(text).toContain('event: message\ndata: {')
  expect(text).not.toContain('user_name')

  const history = await plane.ask('/memory/events/history?patterns=user_*&limit=1')
  expect(history.body).toMatchObject([{ key: 'user_name', data: 'Ann' }])
  plane.clock.advance(1000)
  const since = new Date(plane.clock.now()).toISOString()
  expect((await plane.ask(`/memory/events/history?since=${since}`)).body).toEqual([])
  expect((await plane.ask('/memory/events/history?since=yesterday')).status).toBe(400)
})
