import { afterEach, beforeEach, describe, expect, test } from 'bun:test'
import { gzipSync } from 'node:zlib'
import { eventually } from '../../../lib/test-eventually.ts'
import { unusedPorts } from '../../../lib/test-ports.ts'
import { TestControlPlane, type Told } from './test-control-plane.ts'
import { idIn, later, TestNode } from './test-node.ts'

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
async function nodeThat(handlers: Handlers, options: { id?: string; port?: number } = {}): Promise<TestNode> {
  const node = new TestNode(plane, handlers, options)
  nodes.push(node)
  await node.register()
  return node
}

describe('a call that waits', () => {
  test('gets the result, and the node gets the input and whose work it is', async () => {
    const node = await nodeThat({
      greet: ({ body }) => Response.json({ greeting: `Hello, ${(body as { name: string }).name}!` }),
    })
    const response = await plane.request('/execute/hello-world.greet', {
      json: { input: { name: 'Alice' } },
      headers: {
        'X-Run-ID': 'run_1',
        'X-Parent-Execution-ID': 'exec_0',
        'X-Session-ID': 's',
        'X-Actor-ID': 'ann',
      },
    })
    expect(response.status).toBe(200)
    const body = (await response.json()) as Told
    expect(body).toEqual({
      execution_id: expect.stringMatching(/^exec_20260101_000000_[0-9a-z]{8}$/),
      run_id: 'run_1',
      status: 'succeeded',
      result: { greeting: 'Hello, Alice!' },
      duration_ms: 0,
      finished_at: '2026-01-01T00:00:00Z',
    })
    expect(response.headers.get('x-execution-id')).toBe(body.execution_id)
    expect(response.headers.get('x-run-id')).toBe('run_1')
    expect(node.calls).toMatchObject([
      {
        path: '/reasoners/greet',
        body: { name: 'Alice' },
        headers: {
          'x-run-id': 'run_1',
          'x-workflow-id': 'run_1',
          'x-execution-id': body.execution_id,
          'x-parent-execution-id': 'exec_0',
          'x-session-id': 's',
          'x-actor-id': 'ann',
        },
      },
    ])
    expect(await plane.told(body.execution_id)).toMatchObject({
      target: 'hello-world.greet',
      type: 'reasoner',
    })
  })

  test('of a skill is a call of a skill; a result that is no JSON is a text, and none is null', async () => {
    const node = await nodeThat({
      add: () => Response.json(3),
      say: () => new Response('plain'),
      nothing: () => new Response(null, { status: 204 }),
    })
    await node.register('p1', { reasoners: [{ id: 'say' }, { id: 'nothing' }] })
    expect((await plane.execute('hello-world.add')).body.result).toBe(3)
    expect(node.calls[0]?.path).toBe('/skills/add')
    expect((await plane.execute('hello-world.say')).body.result).toBe('plain')
    expect((await plane.execute('hello-world.nothing')).body.result).toBeNull()
  })

  test('is answered with what a node packed unasked, unless it unfolds to too much', async () => {
    const packed = (bytes: Uint8Array) => () =>
      new Response(bytes as BodyInit, { headers: { 'content-encoding': 'gzip' } })
    const node = await nodeThat({
      pack: packed(gzipSync('{"is":"packed"}')),
      bomb: packed(gzipSync(Buffer.alloc(17 * 1024 * 1024))),
    })
    expect((await plane.execute('hello-world.pack')).body.result).toEqual({ is: 'packed' })
    expect(node.calls[0]?.headers['accept-encoding']).toBe('identity')
    expect(await plane.execute('hello-world.bomb')).toMatchObject({
      status: 504,
      body: { error: expect.stringContaining('answered with more than') },
    })
  })

  test('of a function that is started for each call tells it what to do', async () => {
    const node = await nodeThat({
      execute: ({ body }) => {
        const { input, reasoner } = body as { input: { a: number }; reasoner?: string }
        return reasoner === 'double'
          ? Response.json({ statusCode: 200, body: { is: input.a * 2 } })
          : Response.json({ statusCode: 404, body: { error: 'no such function' } })
      },
    })
    await node.register('', {
      base_url: undefined,
      invocation_url: node.url,
      deployment_type: 'serverless',
      reasoners: [{ id: 'double' }, { id: 'triple' }],
    })
    plane.clock.advance(3_600_000)
    expect((await plane.ask('/nodes/hello-world')).body).toMatchObject({ health_status: 'active' })
    const { body } = await plane.execute('hello-world.double', { a: 4 }, { 'X-Session-ID': 's' })
    expect(body).toMatchObject({ status: 'succeeded', result: { is: 8 } })
    expect(node.calls[0]).toMatchObject({
      path: '/execute',
      body: {
        path: '/execute/double',
        target: 'double',
        type: 'reasoner',
        execution_context: { execution_id: body.execution_id, run_id: body.run_id, session_id: 's' },
      },
    })
    expect(await plane.execute('hello-world.triple', { a: 4 })).toMatchObject({
      status: 404,
      body: { error: expect.stringContaining('no such function') },
    })
  })

  test('goes on to wait for a node that reports later, once or more, and tells of no other end', async () => {
    const node = await nodeThat({ think: later })
    const waiting = plane.execute('hello-world.think')
    await eventually('the node was asked', () => node.calls.length === 1)
    const id = idIn(node.calls[0])
    await eventually('the node took it up', async () => (await plane.told(id)).status === 'running')
    expect((await plane.report(id, { status: 'running', progress: { done: 0.5 } })).status).toBe(200)
    expect(await plane.told(id)).toMatchObject({ status: 'running', progress: { done: 0.5 } })
    const json = { status: 'completed', result: { deep: true }, duration_ms: 12.4, usage: { tokens: 7 } }
    expect((await plane.report(id, json)).status).toBe(200)
    expect(await waiting).toMatchObject({
      status: 200,
      body: { execution_id: id, status: 'succeeded', result: { deep: true }, duration_ms: 12 },
    })
    expect((await plane.report(id, json)).status).toBe(200)
    expect(await plane.report(id, { status: 'failed', error: 'no' })).toMatchObject({ status: 409 })
    expect(await plane.told(id)).toMatchObject({ status: 'succeeded', usage: { tokens: 7 } })
  })

  test('hears of a report that came before the node said that it reports', async () => {
    await nodeThat({
      quick: async (call) => {
        await plane.report(idIn(call), { status: 'succeeded', result: 1 })
        return later()
      },
    })
    expect(await plane.execute('hello-world.quick')).toMatchObject({ status: 200, body: { result: 1 } })
  })

  test('ends after 90 seconds, and the node hears that it is called off', async () => {
    const node = await nodeThat({ slow: later, stuck: () => new Promise<Response>(() => {}) })
    for (const [name, at] of [
      ['slow', 1],
      ['stuck', 2],
    ] as const) {
      const waiting = plane.execute(`hello-world.${name}`)
      await eventually(
        'the node was asked',
        () => node.calls.filter(({ path }) => path.endsWith(name)).length === 1,
      )
      const id = idIn(node.calls.findLast(({ path }) => path.endsWith(name)))
      await eventually('it runs', async () => (await plane.told(id)).status === 'running')
      await plane.clock.turn(90_000)
      expect(await waiting).toMatchObject({
        status: 504,
        body: {
          error: 'Agent timeout',
          details: 'Execution exceeded 90 second limit',
          error_category: 'agent_timeout',
          execution_id: id,
          status: 'timeout',
        },
      })
      await eventually('the node was told', () => node.calledOff.length === at)
      expect(node.calledOff.at(-1)).toBe(id)
    }
  })
})

describe('what cannot be called', () => {
  test('is refused by name, and with the kind of failure', async () => {
    const node = await nodeThat({
      greet: () => Response.json({}),
      refuse: () => Response.json({ detail: 'name: missing' }, { status: 422 }),
      broken: () => Response.json({ error: 'a bug' }, { status: 500 }),
      busy: () => new Response(null, { status: 429 }),
      elsewhere: () => Response.redirect('http://127.0.0.1:1/'),
    })
    for (const [target, status, category, message] of [
      ['hello-world', 400, undefined, 'invalid target'],
      ['a.b.c', 400, undefined, 'invalid target'],
      ['nobody.greet', 400, 'target_not_found', "node 'nobody' not found"],
      ['hello-world.nothing', 400, 'target_not_found', "'nothing' not found on node 'hello-world'"],
      ['hello-world.refuse', 422, 'agent_error', 'name: missing'],
      ['hello-world.broken', 502, 'agent_error', 'a bug'],
      ['hello-world.busy', 429, 'concurrency_limit', '429'],
      ['hello-world.elsewhere', 502, 'bad_response', '302'],
    ] as const) {
      const { status: answered, body } = await plane.execute(target)
      expect([target, answered, body.error_category, body.error]).toEqual([
        target,
        status,
        category,
        expect.stringContaining(message),
      ])
    }
    await plane.ask('/nodes/hello-world/shutdown', { method: 'POST' })
    expect(await plane.execute('hello-world.greet')).toMatchObject({
      status: 503,
      body: { error_category: 'node_unavailable' },
    })
    await node.register('p1', { base_url: `http://127.0.0.1:${unusedPorts()}` })
    expect(await plane.execute('hello-world.greet')).toMatchObject({
      status: 504,
      body: { error_category: 'agent_unreachable', status: 'failed' },
    })
  })

  test('is refused for a body that is too large, or no JSON', async () => {
    await nodeThat({ greet: () => Response.json({}) })
    const asked = { method: 'POST', headers: { 'content-type': 'application/json' } }
    const tooLarge = `{"input": "${'x'.repeat(32 * 1024 * 1024)}"}`
    expect((await plane.ask('/execute/hello-world.greet', { ...asked, body: tooLarge })).status).toBe(413)
    expect((await plane.ask('/execute/hello-world.greet', { ...asked, body: '{"input"' })).status).toBe(400)
    expect((await plane.ask('/execute/hello-world.greet', asked)).status).toBe(200)
    expect((await plane.execute('hello-world.greet', {}, { 'X-Run-ID': 'r'.repeat(300) })).status).toBe(400)
  })
})

describe('a call that does not wait', () => {
  test('is accepted, asked for one by one and many at once', async () => {
    const gate = Promise.withResolvers<void>()
    const node = await nodeThat({
      analyze: async () => {
        await gate.promise
        return Response.json({ summary: 'short' })
      },
      broken: () => Response.json({ error: 'timeout' }, { status: 500 }),
    })
    const { status, body } = await plane.executeLater('hello-world.analyze', { input: { url: 'x' } })
    expect(status).toBe(202)
    expect(body).toEqual({
      execution_id: expect.stringMatching(/^exec_/),
      run_id: expect.stringMatching(/^run_20260101_000000_[0-9a-z]{8}$/),
      workflow_id: body.run_id,
      status: 'queued',
      target: 'hello-world.analyze',
      type: 'reasoner',
      created_at: '2026-01-01T00:00:00Z',
      enqueued_at: '2026-01-01T00:00:00Z',
      webhook_registered: false,
    })
    await eventually('the node was asked', () => node.calls.length === 1)
    expect(await plane.told(body.execution_id)).toMatchObject({
      status: 'running',
      started_at: '2026-01-01T00:00:00Z',
    })
    gate.resolve()
    expect(await plane.ended(body.execution_id)).toMatchObject({
      status: 'succeeded',
      result: { summary: 'short' },
      completed_at: '2026-01-01T00:00:00Z',
      duration_ms: 0,
    })
    const failed = (await plane.executeLater('hello-world.broken')).body
    await plane.ended(failed.execution_id)
    const { body: many } = await plane.ask('/executions/batch-status', {
      json: { execution_ids: [body.execution_id, failed.execution_id, 'exec_3'] },
    })
    expect(many).toMatchObject({
      [body.execution_id]: { status: 'succeeded', result: { summary: 'short' } },
      [failed.execution_id]: { status: 'failed', error: expect.stringContaining('timeout') },
      exec_3: { status: 'not_found' },
    })
    expect(await plane.ask('/executions/exec_3')).toMatchObject({
      status: 404,
      body: { error: 'execution not found' },
    })
  })

  test('outlives a node that is away, and reaches it once it is back', async () => {
    const port = unusedPorts()
    const away = await nodeThat({ greet: () => Response.json('hi') }, { port })
    await away[Symbol.asyncDispose]()
    const { body } = await plane.executeLater('hello-world.greet')
    await eventually('it was tried', async () => {
      const { status, error } = (await plane.platform.executions.get('main', body.execution_id)) ?? {}
      return status === 'queued' && error?.code === 'agent_unreachable'
    })
    nodes.push(new TestNode(plane, { greet: () => Response.json('hi') }, { port }))
    await plane.clock.turn(2_000)
    expect(await plane.ended(body.execution_id)).toMatchObject({ status: 'succeeded', result: 'hi' })
  })

  test('gives a node that is busy minutes, however soon it says to come again', async () => {
    await nodeThat({ greet: () => new Response(null, { status: 503, headers: { 'retry-after': '0' } }) })
    const { body } = await plane.executeLater('hello-world.greet')
    for (const [tried, waitsMs] of [1000, 2000, 4000, 8000].entries()) {
      const before = await eventually(`attempt ${tried + 1} is over`, () => {
        const found = plane.platform.executions.get('main', body.execution_id)
        return found?.status === 'queued' && found.attempts === tried + 1 ? found : null
      })
      expect(before.runAt - plane.clock.now()).toBe(waitsMs)
      await plane.clock.turn(waitsMs)
    }
  })

  test('is not done twice where a node dies with it', async () => {
    let asked = 0
    const node = await nodeThat({
      greet: async () => {
        asked++
        await node[Symbol.asyncDispose]()
        return Response.json('too late')
      },
    })
    const { body } = await plane.executeLater('hello-world.greet')
    expect(await plane.ended(body.execution_id)).toMatchObject({
      status: 'failed',
      error_category: 'agent_unreachable',
    })
    expect(plane.platform.executions.get('main', body.execution_id)?.attempts).toBe(1)
    expect(asked).toBe(1)
  })

  test('under a key that was used is the one that there is, or refused when it is another', async () => {
    const node = await nodeThat({ greet: () => Response.json('hi') })
    const headers = { 'Idempotency-Key': 'k1' }
    const first = await plane.executeLater('hello-world.greet', { input: { a: 1 } }, headers)
    const again = await plane.executeLater('hello-world.greet', { input: { a: 1 } }, headers)
    expect(again.body.execution_id).toBe(first.body.execution_id)
    expect(await plane.executeLater('hello-world.greet', { input: { a: 2 } }, headers)).toMatchObject({
      status: 409,
      body: { error: 'Idempotency-Key: "k1" came with another request before' },
    })
    await plane.ended(first.body.execution_id)
    expect(node.calls.length).toBe(1)
  })

  test('is not called off by who waits for it with the same key', async () => {
    // However far the clock gets until whoever waits has heard.
    await using patient = await TestControlPlane.open({ agentfieldAsyncSeconds: 2_592_000 })
    await using node = new TestNode(patient, { think: later })
    await node.register()
    const headers = { 'Idempotency-Key': 'k2' }
    const { execution_id: id } = (await patient.executeLater('hello-world.think', { input: {} }, headers))
      .body
    await patient.takenUp(id)
    const heard: { answer?: Awaited<ReturnType<typeof patient.execute>> } = {}
    const waiting = patient.execute('hello-world.think', {}, headers).then((answer) => {
      heard.answer = answer
    })
    await eventually('it is answered', async () => {
      await patient.clock.turn(10_000)
      return heard.answer !== undefined
    })
    await waiting
    expect(heard.answer).toMatchObject({
      status: 504,
      body: {
        execution_id: id,
        status: 'running',
        error: 'Agent timeout',
        message: expect.stringContaining('it goes on'),
      },
    })
    expect([(await patient.told(id)).status, node.calledOff]).toEqual(['running', []])
    await patient.report(id, { status: 'succeeded', result: 1 })
    expect((await patient.execute('hello-world.think', {}, headers)).body).toMatchObject({ result: 1 })
  })

  test('waits for its turn where one node works on so many at once', async () => {
    await using limited = await TestControlPlane.open({ agentfieldNodeMax: 1 })
    const before = plane
    plane = limited
    try {
      await using node = new TestNode(limited, { think: later })
      await node.register()
      const first = (await plane.executeLater('hello-world.think')).body.execution_id
      await eventually('the first was asked for', () => node.calls.length === 1)
      await eventually('and taken up', async () => (await plane.told(first)).status === 'running')
      const second = (await plane.executeLater('hello-world.think')).body.execution_id
      expect((await plane.told(second)).status).toBe('queued')
      await plane.report(first, { status: 'succeeded' })
      await eventually('the second was asked for', () => node.calls.length === 2)
      expect(idIn(node.calls[1])).toBe(second)
    } finally {
      plane = before
    }
  })
})
