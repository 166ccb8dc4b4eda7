import { afterEach, beforeEach, describe, expect, test } from 'bun:test'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { eventually } from '../../../lib/test-eventually.ts'
import { TestControlPlane } from './test-control-plane.ts'
import { later, TestNode } from './test-node.ts'

let plane: TestControlPlane
const nodes: TestNode[] = []

beforeEach(async () => {
  plane = await TestControlPlane.open()
})
afterEach(async () => {
  await plane[Symbol.asyncDispose]()
  for (const node of nodes.splice(0)) await node[Symbol.asyncDispose]()
})

type Handlers = ConstructorParameters<typeof TestNode>[1]
async function nodeThat(handlers: Handlers, options: { id?: string } = {}): Promise<TestNode> {
  const node = new TestNode(plane, handlers, options)
  nodes.push(node)
  await node.register()
  return node
}

describe('a webhook', () => {
  const secret = 'your-webhook-secret-key'
  /** Answers with these statuses, the last one from then on. */
  const receiver = (...statuses: number[]) => {
    const got: { headers: Headers; text: string }[] = []
    const server = Bun.serve({
      hostname: '127.0.0.1',
      port: 0,
      async fetch(request) {
        got.push({ headers: request.headers, text: await request.text() })
        return new Response('seen', { status: statuses[Math.min(got.length, statuses.length) - 1] ?? 200 })
      },
    })
    return {
      got,
      url: `http://127.0.0.1:${server.port}/hook`,
      [Symbol.asyncDispose]: () => server.stop(true),
    }
  }

  test('is told what came of it, signed, until it has heard it', async () => {
    await nodeThat({ analyze: () => Response.json({ analysis: 'x' }) })
    await using hook = receiver(500, 200)
    const webhook = { url: hook.url, secret, headers: { 'X-Custom-ID': 'request-123' } }
    const { status, body } = await plane.executeLater('hello-world.analyze', {
      input: { topic: 'x' },
      webhook,
    })
    expect([status, body.webhook_registered]).toEqual([202, true])
    const id = body.execution_id
    await plane.ended(id)
    await eventually('it was told', () => hook.got.length === 1)
    await eventually(
      'that failed',
      async () => ((await plane.told(id)).webhook_events as unknown[])?.length === 1,
    )
    await plane.clock.turn(7_000)
    await eventually('it was told again', () => hook.got.length === 2)
    for (const { headers, text } of hook.got) {
      const expected = new Bun.CryptoHasher('sha256', secret).update(text).digest('hex')
      expect(headers.get('x-agentfield-signature')).toBe(`sha256=${expected}`)
      expect(headers.get('x-custom-id')).toBe('request-123')
      expect(text).toBe(hook.got[0]?.text ?? '')
    }
    expect(JSON.parse(hook.got[0]?.text ?? '')).toEqual({
      event: 'execution.completed',
      execution_id: id,
      run_id: body.run_id,
      workflow_id: body.run_id,
      status: 'succeeded',
      target: 'hello-world.analyze',
      type: 'reasoner',
      duration_ms: 0,
      result: { analysis: 'x' },
      timestamp: '2026-01-01T00:00:00Z',
      completed_at: '2026-01-01T00:00:00Z',
    })
    const events = await eventually('both attempts are told', async () => {
      const found = (await plane.told(id)).webhook_events as unknown[]
      return found.length === 2 ? found : null
    })
    expect(await plane.told(id)).toMatchObject({ webhook_registered: true })
    expect(events).toMatchObject([
      { attempt: 1, http_status: 500, status: 'failed', event_type: 'execution.completed' },
      { attempt: 2, http_status: 200, status: 'delivered', response_body: 'seen', execution_id: id },
    ])
    const sent = JSON.parse(hook.got[0]?.text ?? '')
    expect(events.map((event) => (event as { payload: unknown }).payload)).toEqual([sent, sent])
  })

  test('hears of failures, of those that were called off too', async () => {
    await nodeThat({ broken: () => Response.json({ error: 'LLM limit' }, { status: 500 }), think: later })
    await using hook = receiver(200)
    const webhook = { url: hook.url }
    await plane.executeLater('hello-world.broken', { webhook })
    await eventually('it was told', () => hook.got.length === 1)
    expect(hook.got[0]?.headers.has('x-agentfield-signature')).toBeFalse()
    const message = expect.stringContaining('LLM limit')
    expect(JSON.parse(hook.got[0]?.text ?? '')).toMatchObject({
      event: 'execution.failed',
      status: 'failed',
      error: message,
      error_message: message,
    })
    const { execution_id: id } = (await plane.executeLater('hello-world.think', { webhook })).body
    await plane.ask(`/executions/${id}/cancel`, { json: { reason: 'enough' } })
    await eventually('it was told again', () => hook.got.length === 2)
    expect(JSON.parse(hook.got[1]?.text ?? '')).toMatchObject({
      event: 'execution.failed',
      execution_id: id,
      status: 'cancelled',
      error: 'enough',
    })
  })

  test('that cannot be is told at once, and the work is done all the same', async () => {
    await nodeThat({ greet: () => Response.json('hi') })
    const headers = Object.fromEntries(Array.from({ length: 21 }, (_, at) => [`x-${at}`, 'y']))
    const url = 'http://127.0.0.1:9/hook'
    for (const [webhook, message] of [
      [{ url: 'ftp://example.com' }, 'http'],
      [{ url: 'http://me:pw@127.0.0.1:9/' }, 'user name'],
      [{ url: 'http://10.1.2.3/' }, 'private'],
      [{ url: 'nowhere' }, 'nowhere'],
      [{}, 'url'],
      ['http://127.0.0.1:9', 'object'],
      [{ url, headers }, 'webhook.headers: 21'],
      [{ url, headers: { x: 'y'.repeat(513) } }, '512'],
      [{ url, secret: 's'.repeat(4097) }, '4096'],
    ] as const) {
      const { status, body } = await plane.executeLater('hello-world.greet', { webhook })
      expect([status, body.webhook_registered, body.webhook_error]).toEqual([
        202,
        false,
        expect.stringContaining(message),
      ])
      expect((await plane.ended(body.execution_id)).status).toBe('succeeded')
    }
    // What is deployed has nothing to send to this machine.
    const key = await plane.workload('agent', 'planner')
    const { body } = await plane.ask('/execute/async/hello-world.greet', { json: { webhook: { url } }, key })
    expect(body).toMatchObject({
      webhook_registered: false,
      webhook_error: expect.stringContaining('private'),
    })
    const sync = await plane.ask('/execute/hello-world.greet', { json: { webhook: { url: 'nowhere' } } })
    expect(sync).toMatchObject({ status: 200, body: { webhook_registered: false } })
  })
})

describe('called off', () => {
  test('by its id, the node is told once, and it stays so', async () => {
    const node = await nodeThat({ think: later })
    const id = (await plane.executeLater('hello-world.think')).body.execution_id
    await eventually(
      'it runs',
      async () => (await plane.told(id)).status === 'running' && node.calls.length === 1,
    )
    expect(await plane.ask(`/executions/${id}/cancel`, { json: { reason: 'enough' } })).toEqual({
      status: 200,
      body: {
        execution_id: id,
        previous_status: 'running',
        status: 'cancelled',
        reason: 'enough',
        cancelled_at: '2026-01-01T00:00:00Z',
      },
    })
    await eventually('the node was told', () => node.calledOff.length === 1)
    expect(node.calledOff).toEqual([id])
    expect(await plane.ask(`/executions/${id}/cancel`, { method: 'POST' })).toMatchObject({
      status: 409,
      body: { error: 'invalid_state', message: expect.stringContaining('cancelled') },
    })
    // What the node says to that is the same once more; anything else comes too late.
    expect(
      (await plane.report(id, { status: 'cancelled', error: 'cancelled_by_control_plane' })).status,
    ).toBe(200)
    expect((await plane.report(id, { status: 'succeeded', result: 1 })).status).toBe(409)
    expect(await plane.told(id)).toMatchObject({ status: 'cancelled', status_reason: 'enough' })
    expect(node.calledOff.length).toBe(1)
    expect((await plane.ask('/executions/exec_3/cancel', { method: 'POST' })).status).toBe(404)
  })

  test('with all of its run', async () => {
    const node = await nodeThat({ think: later })
    const headers = { 'X-Run-ID': 'run_1' }
    const ids = await Promise.all(
      [1, 2, 3].map(
        async () => (await plane.executeLater('hello-world.think', {}, headers)).body.execution_id,
      ),
    )
    const other = (await plane.executeLater('hello-world.think')).body.execution_id
    await eventually('all were asked for', () => node.calls.length === 4)
    const { body } = await plane.ask('/workflows/run_1/cancel-tree', { method: 'POST' })
    expect((body as { cancelled: string[] }).cancelled.toSorted()).toEqual(ids.toSorted())
    expect((await plane.told(other)).status).toBe('running')
    const { body: listed } = await plane.ask('/executions?run_id=run_1&status=cancelled')
    expect(listed).toMatchObject({ count: 3 })
  })
})

describe('a node that starts anew', () => {
  test('has lost what it was working on, and nothing that another works on', async () => {
    const node = await nodeThat({ think: later, stuck: () => new Promise<Response>(() => {}) })
    const other = await nodeThat({ think: later }, { id: 'other' })
    const [lost, stuck, kept] = await Promise.all(
      ['hello-world.think', 'hello-world.stuck', 'other.think'].map(
        async (target) => (await plane.executeLater(target)).body.execution_id,
      ),
    )
    await eventually('all were asked for', () => node.calls.length === 2 && other.calls.length === 1)
    for (const id of [lost, kept])
      await eventually('it is worked on', async () => {
        return (await plane.platform.executions.get('main', id ?? ''))?.status === 'waiting'
      })
    await node.register('p1')
    expect((await plane.told(lost ?? '')).status).toBe('running')
    await node.register('p2')
    for (const id of [lost, stuck])
      expect(await plane.ended(id ?? '')).toMatchObject({
        status: 'failed',
        status_reason: 'agent_restart_orphaned',
        error: expect.stringContaining('agent_restart_orphaned'),
      })
    expect((await plane.told(kept ?? '')).status).toBe('running')
    // Nobody is called off who is not there any more.
    expect(node.calledOff).toEqual([])
    // A sign of life tells it as well, where the registration got lost.
    const next = (await plane.executeLater('hello-world.think')).body.execution_id
    await eventually(
      'it is worked on',
      () => plane.platform.executions.get('main', next)?.status === 'waiting',
    )
    await plane.ask('/nodes/hello-world/heartbeat', { json: { status: 'ready', instance_id: 'p3' } })
    expect(await plane.ended(next)).toMatchObject({ status_reason: 'agent_restart_orphaned' })
  })
})

test('what is worked on goes on over a restart of the platform, and its report is heard then', async () => {
  const dataDir = mkdtempSync(join(tmpdir(), 'hutch-agentfield-'))
  const before = plane
  try {
    plane = await TestControlPlane.open({ dataDir })
    await using node = new TestNode(plane, { think: later })
    await node.register()
    const id = (await plane.executeLater('hello-world.think')).body.execution_id
    await plane.takenUp(id)
    await plane[Symbol.asyncDispose]()
    plane = await TestControlPlane.open({ dataDir })
    expect((await plane.ask('/nodes/hello-world')).body).toMatchObject({ health_status: 'active' })
    expect((await plane.told(id)).status).toBe('running')
    expect((await plane.report(id, { status: 'succeeded', result: { done: true } })).status).toBe(200)
    expect(await plane.told(id)).toMatchObject({ status: 'succeeded', result: { done: true } })
    expect(node.calls.length).toBe(1)
  } finally {
    await plane[Symbol.asyncDispose]()
    plane = before
    rmSync(dataDir, { recursive: true, force: true })
  }
})

describe('who says how something ended', () => {
  test('is the program itself, and no other that is deployed', async () => {
    const node = await nodeThat({ think: later })
    const id = (await plane.executeLater('hello-world.think')).body.execution_id
    await eventually('it was asked for', () => node.calls.length === 1)
    const stranger = await plane.workload('agent', 'stranger')
    expect((await plane.report(id, { status: 'succeeded' }, { key: stranger })).status).toBe(403)
    const forged = [
      [`/executions/${id}/logs`, { entries: ['forged'] }],
      [`/executions/note?execution_id=${id}`, { message: 'forged' }],
    ] as const
    for (const [path, json] of forged)
      expect((await plane.ask(path, { json, key: stranger })).status).toBe(403)
    for (const status of ['fine', 'constructor', '__proto__'])
      expect((await plane.report(id, { status })).status).toBe(400)
    expect((await plane.report('exec_3', { status: 'succeeded' })).status).toBe(404)
    const failure = {
      status: 'error',
      error: { message: 'no' },
      error_details: { at: 3 },
      error_status_code: 418,
    }
    expect((await plane.report(id, failure)).status).toBe(200)
    expect(await plane.told(id)).toMatchObject({ status: 'failed', error: 'no', error_details: { at: 3 } })
  })
})

test('what agents note down, log and call within themselves is of their execution', async () => {
  await nodeThat({ greet: () => Response.json('hi') })
  const id = (await plane.execute('hello-world.greet', {}, { 'X-Run-ID': 'run_1' })).body.execution_id
  const note = (path: string, json: object, executionId = id) =>
    plane.platform.request(path, {
      method: 'POST',
      headers: {
        'x-api-key': plane.platform.credentials.apiKey,
        'x-execution-id': executionId,
        'content-type': 'application/json',
      },
      body: JSON.stringify(json),
    })
  const added = await note('/api/v1/executions/note', { message: ' started ', tags: ['Debug'] })
  expect(await added.json()).toEqual({
    success: true,
    note: { message: 'started', tags: ['Debug'], timestamp: '2026-01-01T00:00:00.000Z' },
    message: 'Note added successfully',
  })
  plane.clock.advance(10)
  expect((await note('/api/ui/v1/executions/note', { message: 'done' })).status).toBe(200)
  expect((await note('/api/v1/executions/note', { message: ' ' })).status).toBe(400)
  expect((await note('/api/v1/executions/note', { message: 'x' }, 'exec_3')).status).toBe(404)
  expect((await plane.ask(`/executions/${id}/notes`)).body).toMatchObject({
    total: 2,
    notes: [{ message: 'started' }, { message: 'done' }],
  })
  expect((await plane.ask(`/executions/${id}/notes?tags=debug,x`)).body).toMatchObject({ total: 1 })

  const entries = [{ level: 'info', message: 'first' }, 'second']
  expect((await plane.ask(`/executions/${id}/logs`, { json: { entries } })).status).toBe(200)
  expect((await plane.ask(`/executions/${id}/logs`)).body).toMatchObject({
    entries: [{ level: 'info', message: 'first' }, { message: 'second' }],
  })

  const inner = {
    execution_id: 'exec_of_its_own',
    run_id: 'run_1',
    reasoner_id: 'sub',
    agent_node_id: 'hello-world',
    parent_execution_id: id,
  }
  await plane.ask('/workflow/executions', { json: inner })
  const event = (json: object) => plane.ask('/workflow/executions/events', { json: { ...inner, ...json } })
  expect((await event({ status: 'running', input_data: { a: 1 } })).status).toBe(200)
  expect(await plane.told('exec_of_its_own')).toMatchObject({
    target: 'hello-world.sub',
    parent_execution_id: id,
  })
  expect((await event({ status: 'succeeded', result: [1], duration_ms: 5 })).status).toBe(200)
  expect((await event({ status: 'succeeded', result: [2] })).status).toBe(200)
  expect(await plane.told('exec_of_its_own')).toMatchObject({
    status: 'succeeded',
    result: [1],
    duration_ms: 5,
  })
  const long = { execution_id: 'exec_of_another', agent_node_id: `_${'n'.repeat(240)}/../é` }
  expect((await event({ ...long, status: 'succeeded' })).status).toBe(200)
  expect((await plane.ask('/executions/exec_of_another/logs', { json: { entries } })).status).toBe(200)
  expect((await plane.ask('/executions/exec_of_another/logs')).body).toMatchObject({
    entries: [{ level: 'info', message: 'first' }, { message: 'second' }],
  })
  // Of what was called from here that is a repetition.
  expect((await event({ execution_id: id, status: 'failed', error: 'x' })).status).toBe(200)
  expect((await plane.told(id)).status).toBe('succeeded')
  expect((await plane.ask('/executions?run_id=run_1')).body).toMatchObject({ count: 3 })
})

test('an execution is followed until it ended', async () => {
  const node = await nodeThat({ think: later })
  const { url } = await plane.platform.listen()
  const id = (await plane.executeLater('hello-world.think')).body.execution_id
  await plane.takenUp(id)
  const key = { 'x-api-key': plane.platform.credentials.apiKey }
  const follow = async () => {
    const response = await fetch(`${url}/api/v1/executions/${id}/events`, { headers: key })
    const text = await response.text()
    return text.split('\n').flatMap((line) => (line.startsWith('data: ') ? [JSON.parse(line.slice(6))] : []))
  }
  const everything = new AbortController()
  const all = await fetch(`${url}/api/ui/v1/executions/events`, { headers: key, signal: everything.signal })
  const following = follow()
  await eventually('the first event is there', async () => {
    await plane.report(id, { status: 'running', progress: { step: 1 } })
    await plane.report(id, { status: 'succeeded', result: 1 })
    return true
  })
  const events = await following
  expect(events.at(-1)).toEqual({
    type: 'execution_completed',
    execution_id: id,
    workflow_id: expect.stringMatching(/^run_/),
    run_id: expect.stringMatching(/^run_/),
    agent_node_id: 'hello-world',
    status: 'succeeded',
    timestamp: '2026-01-01T00:00:00Z',
    data: { target: 'hello-world.think', progress: { step: 1 } },
  })
  // One that is over is told as it ended.
  expect(await follow()).toMatchObject([{ type: 'execution_completed' }])
  let heard = ''
  for await (const chunk of all.body ?? []) {
    heard += new TextDecoder().decode(chunk)
    if (heard.includes('execution_completed')) break
  }
  everything.abort()
  expect(node.calls.length).toBe(1)
})

test('the earlier way to call passes the answer on, and names no run that a node would report of', async () => {
  const node = await nodeThat({
    greet: ({ headers }) =>
      'x-execution-id' in headers || 'x-run-id' in headers ? later() : Response.json({ hi: 1 }),
    broken: () => Response.json({ error: 'a bug' }, { status: 500 }),
  })
  const call = (target: string) =>
    plane.ask(`/reasoners/${target}`, { json: { input: { a: 1 } }, headers: { 'X-Run-ID': 'run_1' } })
  expect(await call('hello-world.greet')).toEqual({
    status: 200,
    body: { result: { hi: 1 }, node_id: 'hello-world', duration_ms: 0, timestamp: '2026-01-01T00:00:00Z' },
  })
  expect(node.calls[0]).toMatchObject({ path: '/reasoners/greet', body: { a: 1 } })
  expect((await call('nobody.greet')).status).toBe(404)
  expect((await call('hello-world.broken')).status).toBe(502)
  expect((await plane.ask('/executions')).body).toMatchObject({ count: 0 })
})
