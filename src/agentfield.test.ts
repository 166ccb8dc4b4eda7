import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from 'bun:test'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { HurriedClock } from './lib/test-clock.ts'
import { eventually } from './lib/test-eventually.ts'
import { openTestClient, type TestClient, whyNot } from './test-client.ts'
import { deploy } from './test-hosting.ts'

/** Agents that are deployed here, by the API of AgentField, on real machines. */

setDefaultTimeout(120_000)
const why = await whyNot()

/** A node that says it is somewhere else, or no node at all. */
const program = `
const { AGENTFIELD_SERVER, HOST, PORT, BL_NAME } = process.env
const post = (path, body) =>
  fetch(AGENTFIELD_SERVER + '/api/v1' + path, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify(body),
  })
// While the platform starts anew, what is asked of it may break off.
const remembers = async (key) => (await post('/memory/get', { key, scope: 'global' }).catch(() => null))?.ok === true
const later = (id, work) => {
  work().then((result) => post('/executions/' + id + '/status', { status: 'succeeded', result }))
  return new Response(null, { status: 202 })
}
Bun.serve({
  hostname: HOST,
  port: Number(PORT),
  async fetch(request) {
    const { pathname } = new URL(request.url)
    const id = request.headers.get('x-execution-id')
    const input = await request.text()
    if (pathname === '/reasoners/now') return Response.json({ input: JSON.parse(input), by: BL_NAME })
    if (pathname === '/reasoners/later') {
      return later(id, async () => {
        while (!(await remembers('go'))) await Bun.sleep(20)
        return { by: BL_NAME }
      })
    }
    if (pathname === '/reasoners/never') return new Response(null, { status: 202 })
    if (pathname.startsWith('/_internal/executions/')) {
      await post('/memory/set', { key: 'called_off', data: pathname.split('/')[3], scope: 'global' })
      return Response.json({ cancelled: true })
    }
    return Response.json({ path: pathname, input, run: request.headers.get('x-run-id') })
  },
})
if (BL_NAME === 'planner') {
  await post('/nodes/register', {
    id: 'planner',
    base_url: 'http://10.9.9.9:' + PORT,
    instance_id: crypto.randomUUID(),
    lifecycle_status: 'ready',
    reasoners: ['now', 'later', 'never'].map((id) => ({ id })),
  })
}
`
const files = {
  'package.json': '{"name": "program", "scripts": {"start": "bun index.ts"}}',
  'index.ts': program,
}

describe.skipIf(why !== '')('agents that are deployed', () => {
  const clock = new HurriedClock()
  const dataDir = mkdtempSync(join(tmpdir(), 'hutch-agentfield-'))
  let client: TestClient

  beforeAll(async () => {
    client = await openTestClient({ dataDir, clock })
    await deploy(client, 'agents', 'planner', files)
    await deploy(client, 'agents', 'plain', files)
  })
  afterAll(async () => {
    await client?.[Symbol.asyncDispose]()
    rmSync(dataDir, { recursive: true, force: true })
  })

  const ask = async (path: string, json?: object) => {
    const response = await client.request(`/api/v1${path}`, {
      ...(json === undefined ? {} : { method: 'POST', body: JSON.stringify(json) }),
      headers: { 'content-type': 'application/json' },
    })
    const text = await response.text()
    return JSON.parse(text || '{}') as { execution_id: string; status: string; [field: string]: unknown }
  }
  /** Starts what waits until somebody remembers `go`. */
  const begin = async () => {
    const { execution_id: id } = await ask('/execute/async/planner.later', {})
    await eventually(
      'it is worked on',
      () => client.platform.executions.get('main', id)?.status === 'waiting',
    )
    return id
  }
  /** Long enough for who does nothing to sleep and to go; then there is `go`. */
  const hurry = async () => {
    for (let minutes = 0; minutes < 30; minutes++) clock.advance(60_000)
    await ask('/memory/set', { key: 'go', data: true, scope: 'global' })
  }
  const isReady = (name: string) =>
    eventually(`${name} registered`, async () => (await ask(`/nodes/${name}`)).lifecycle_status === 'ready')

  test('are nodes once their program registers, called in their instance whatever address it gives', async () => {
    // An instance is made by the first request that needs one.
    await client.request(`/${client.platform.credentials.workspace}/agents/planner/`)
    await isReady('planner')
    expect(await ask('/execute/planner.now', { input: { a: 1 } })).toMatchObject({
      status: 'succeeded',
      result: { input: { a: 1 }, by: 'planner' },
    })
  })

  test('stay awake while they work on what they report later, also when the platform starts anew meanwhile', async () => {
    const first = await begin()
    await hurry()
    await eventually('it is reported', async () => (await ask(`/executions/${first}`)).status === 'succeeded')
    await ask('/memory/delete', { key: 'go', scope: 'global' })

    const second = await begin()
    await client.platform.close({ keepInstances: true })
    await client[Symbol.asyncDispose]()
    client = await openTestClient({ dataDir, clock, logLevel: 'info' })
    expect(await ask(`/executions/${second}`)).toMatchObject({ status: 'running' })
    await hurry()
    await eventually(
      'it is reported',
      async () => (await ask(`/executions/${second}`)).status === 'succeeded',
    )
  })

  test('hear that their work is called off', async () => {
    const { execution_id: id } = await ask('/execute/async/planner.never', {})
    await eventually(
      'it is worked on',
      () => client.platform.executions.get('main', id)?.status === 'waiting',
    )
    expect((await ask(`/executions/${id}/cancel`, {})).status).toBe('cancelled')
    await eventually('its program heard of it', async () => {
      return (await ask('/memory/get', { key: 'called_off', scope: 'global' })).data === id
    })
  })

  test('that are no nodes get the input of whatever is called of them', async () => {
    const run = { path: '/', input: '{"inputs":"hi"}', run: expect.stringMatching(/^run_/) }
    expect(await ask('/execute/plain.chat', { input: { inputs: 'hi' } })).toMatchObject({
      status: 'succeeded',
      result: run,
    })
    expect(await ask('/reasoners/plain.chat', { input: { inputs: 'hi' } })).toMatchObject({
      result: { path: '/', run: null },
      node_id: 'plain',
    })
  })
})
