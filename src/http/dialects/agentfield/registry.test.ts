import { afterEach, beforeEach, describe, expect, test } from 'bun:test'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { TestControlPlane } from './test-control-plane.ts'

let plane: TestControlPlane
beforeEach(async () => {
  plane = await TestControlPlane.open()
})
afterEach(() => plane[Symbol.asyncDispose]())

const greet = {
  id: 'greet',
  description: 'Says "hello" & <more>',
  input_schema: { type: 'object' },
  output_schema: { type: 'string' },
  tags: ['nice'],
}
const node = {
  id: 'hello-world',
  base_url: 'http://127.0.0.1:8001/',
  version: '1.0.0',
  instance_id: 'p1',
  reasoners: [greet],
  skills: [{ id: 'add', input_schema: {}, proposed_tags: ['math'] }],
  communication_config: { protocols: ['http'], heartbeat_interval: '2s' },
  lifecycle_status: 'ready',
}
const register = (changes: object = {}, asked: { key?: string } = {}) =>
  plane.ask('/nodes/register', { json: { ...node, ...changes }, ...asked })
const shown = async (id = 'hello-world') => (await plane.ask(`/nodes/${id}`)).body as Record<string, unknown>

describe('nodes', () => {
  test('register, and are told where they are called', async () => {
    expect(await register()).toEqual({
      status: 201,
      body: {
        success: true,
        message: 'Node registered successfully',
        node_id: 'hello-world',
        resolved_base_url: 'http://127.0.0.1:8001',
        callback_discovery: {
          mode: 'first',
          preferred: 'http://127.0.0.1:8001',
          resolved: 'http://127.0.0.1:8001',
          candidates: ['http://127.0.0.1:8001'],
        },
      },
    })
    expect(await shown()).toMatchObject({
      id: 'hello-world',
      health_status: 'active',
      lifecycle_status: 'ready',
      reasoners: [{ id: 'greet', input_schema: { type: 'object' }, tags: ['nice'] }],
      skills: [{ id: 'add', tags: ['math'] }],
      last_heartbeat: '2026-01-01T00:00:00Z',
    })
    expect((await plane.ask('/nodes', { json: { ...node, id: 'other' } })).status).toBe(201)
    expect((await plane.ask('/nodes')).body).toMatchObject({ count: 2 })
  })

  test('are away after a silence, and here again with the next sign of life', async () => {
    await register()
    plane.clock.advance(15_001)
    expect((await shown()).health_status).toBe('inactive')
    expect(await plane.ask('/nodes/hello-world/heartbeat', { method: 'POST' })).toEqual({
      status: 200,
      body: { success: true, message: 'heartbeat received', timestamp: '2026-01-01T00:00:15Z' },
    })
    expect((await shown()).health_status).toBe('active')
    await plane.ask('/nodes/hello-world/heartbeat', { json: { status: 'degraded' } })
    expect(await shown()).toMatchObject({ health_status: 'degraded', lifecycle_status: 'degraded' })
    expect((await plane.ask('/nodes/nobody/heartbeat', { method: 'POST' })).status).toBe(404)
  })

  test('that say how they are need no other sign for five minutes', async () => {
    await register()
    const renewed = await plane.ask('/nodes/hello-world/status', {
      method: 'PATCH',
      json: { phase: 'ready', health_score: 80 },
    })
    expect(renewed.body).toEqual({ lease_seconds: 300, next_lease_renewal: '2026-01-01T00:05:00Z' })
    plane.clock.advance(299_000)
    expect(await shown()).toMatchObject({ health_status: 'active', health_score: 80 })
    plane.clock.advance(1_000)
    expect((await shown()).health_status).toBe('inactive')
    const wrong = await plane.ask('/nodes/hello-world/status', { method: 'PATCH', json: { phase: 'fine' } })
    expect(wrong).toMatchObject({ status: 400, body: { error: expect.stringContaining('"fine"') } })
  })

  test('that stop are away at once, and back when they register again', async () => {
    await register()
    expect((await plane.ask('/nodes/hello-world/shutdown', { method: 'POST' })).status).toBe(202)
    expect(await shown()).toMatchObject({ health_status: 'inactive', lifecycle_status: 'offline' })
    await register()
    expect((await shown()).health_status).toBe('active')
    expect((await plane.ask('/nodes/hello-world', { method: 'DELETE' })).status).toBe(200)
    expect((await plane.ask('/nodes/hello-world')).status).toBe(404)
  })

  test('of no name, no address or one that may not be dialled are refused, with the reason', async () => {
    for (const [changes, message] of [
      [{ id: 'a.b' }, 'id: "a.b"'],
      [{ base_url: undefined }, 'base_url: missing'],
      [{ base_url: 'ftp://127.0.0.1' }, 'http or https'],
      [{ base_url: 'http://me:pw@127.0.0.1' }, 'without a user name'],
      [{ base_url: 'http://10.1.2.3:8001' }, 'private address'],
    ] as const) {
      const { status, body } = await register(changes)
      expect([status, (body as { error: string }).error]).toEqual([400, expect.stringContaining(message)])
    }
  })

  test('offer addresses of a bounded length, whose last slashes are left out', async () => {
    const slow = `http://127.0.0.1:8001${'/'.repeat(2000)}x`
    const candidates = Array.from({ length: 500 }, () => slow)
    const callback_discovery = { candidates, callback_candidates: [...candidates, `${slow}y/`] }
    const { status, body } = await register({ base_url: 'http://127.0.0.1:8001///', callback_discovery })
    expect(status).toBe(201)
    expect(body).toMatchObject({
      resolved_base_url: 'http://127.0.0.1:8001',
      callback_discovery: { candidates: ['http://127.0.0.1:8001', slow, `${slow}y`] },
    })
    const long = await register({ base_url: `http://127.0.0.1:8001/${'x'.repeat(2048)}` })
    expect(long).toMatchObject({ status: 400, body: { error: expect.stringContaining('base_url') } })
  })

  test('of a workspace have bounds for what they say of themselves, also after a restart', async () => {
    const dataDir = mkdtempSync(join(tmpdir(), 'hutch-agentfield-'))
    const before = plane
    try {
      plane = await TestControlPlane.open({ dataDir })
      const metadata = 'x'.repeat(1_900_000)
      const statuses = async (ids: string[]) => {
        const all: number[] = []
        for (const id of ids) all.push((await register({ id, metadata })).status)
        return all
      }
      const ids = Array.from({ length: 17 }, (_, at) => `n${at}`)
      expect(await statuses(ids)).toEqual(ids.map(() => 201))
      expect(await register({ id: 'one-more', metadata })).toMatchObject({
        status: 402,
        body: { error: expect.stringContaining('describe less') },
      })
      await plane[Symbol.asyncDispose]()
      plane = await TestControlPlane.open({ dataDir })
      expect(await statuses(['n3', 'one-more'])).toEqual([201, 402])
      expect((await register({ id: 'small' })).status).toBe(201)
      await plane.ask('/nodes/n3', { method: 'DELETE' })
      expect(await statuses(['one-more'])).toEqual([201])
    } finally {
      await plane[Symbol.asyncDispose]()
      plane = before
      rmSync(dataDir, { recursive: true, force: true })
    }
  })

  test('of this machine are called there, when what they like best may not be dialled', async () => {
    const candidates = ['http://10.1.2.3:8001', 'http://host.invalid:8001', 'http://localhost:8001']
    const { body } = await register({ base_url: candidates[0], callback_discovery: { candidates } })
    expect(body).toMatchObject({ resolved_base_url: 'http://localhost:8001' })
  })

  test('on this machine are not taken where others can connect to the platform', async () => {
    await using open = await TestControlPlane.open({ hosts: ['0.0.0.0'] })
    const { status, body } = await open.ask('/nodes/register', { json: node })
    expect([status, (body as { error: string }).error]).toEqual([400, expect.stringContaining('private')])
  })

  test('of a deployed program are its instance, whatever address it gives, and take no name of others', async () => {
    const own = await plane.workload('agent', 'planner')
    const { status, body } = await register({ base_url: 'http://10.9.9.9:8001' }, { key: own })
    expect(status).toBe(201)
    expect(body).toMatchObject({ callback_discovery: { mode: 'instance' } })
    plane.clock.advance(3_000_000)
    // Its instance may sleep: the platform knows that it is there.
    expect((await shown()).health_status).toBe('active')
    await register({ id: 'billing' })
    const stolen = await register({ id: 'billing' }, { key: own })
    expect(stolen).toMatchObject({ status: 409, body: { error: expect.stringContaining('somebody else') } })
    const other = await plane.workload('agent', 'stranger')
    expect((await register({}, { key: other })).status).toBe(409)
    for (const [path, json] of [
      ['heartbeat', {}],
      ['shutdown', {}],
    ] as const)
      expect((await plane.ask(`/nodes/billing/${path}`, { json, key: own })).status).toBe(403)
    expect((await plane.ask('/nodes/hello-world/heartbeat', { json: {}, key: own })).status).toBe(200)
    // A name that nobody had goes to whoever comes with it, until it is that of an agent.
    expect((await register({ id: 'later' }, { key: own })).status).toBe(201)
    expect((await register({ id: 'later' }, { key: other })).status).toBe(409)
    const named = await plane.workload('agent', 'later')
    expect((await register({ id: 'later' }, { key: named })).status).toBe(201)
    expect((await register({ id: 'later' }, { key: own })).status).toBe(409)
    // What was tried on somebody's own machine is deployed, once it ended there.
    const tried = { id: 'tried', base_url: 'http://localhost:8001' }
    expect((await register(tried)).status).toBe(201)
    const deployed = await plane.workload('agent', 'tried')
    expect((await register({ id: 'tried' }, { key: deployed })).status).toBe(409)
    expect((await plane.ask('/nodes/tried/shutdown', { json: {} })).status).toBe(202)
    expect((await register({ id: 'tried' }, { key: own })).status).toBe(409)
    const taken = await register({ id: 'tried' }, { key: deployed })
    expect(taken).toMatchObject({ status: 201, body: { callback_discovery: { mode: 'instance' } } })
    const task = await plane.workload('job', 'nightly')
    expect((await register({ id: 'mine' }, { key: task })).status).toBe(403)
  })
})

describe('discovery', () => {
  beforeEach(async () => {
    await register()
    await register({ id: 'other', reasoners: [{ id: 'think', tags: ['slow'] }], skills: [] })
  })
  const discover = async (query = '') => (await plane.ask(`/discovery/capabilities${query}`)).body

  test('tells what there is to call, and by which name', async () => {
    expect(await discover('?include_input_schema=true')).toEqual({
      discovered_at: '2026-01-01T00:00:00Z',
      total_agents: 2,
      total_reasoners: 2,
      total_skills: 1,
      pagination: { limit: 100, offset: 0, has_more: false },
      capabilities: [
        {
          agent_id: 'hello-world',
          base_url: 'http://127.0.0.1:8001',
          version: '1.0.0',
          health_status: 'active',
          deployment_type: 'long_running',
          last_heartbeat: '2026-01-01T00:00:00Z',
          reasoners: [
            {
              id: 'greet',
              description: greet.description,
              tags: ['nice'],
              input_schema: { type: 'object' },
              invocation_target: 'hello-world.greet',
            },
          ],
          skills: [{ id: 'add', tags: ['math'], input_schema: {}, invocation_target: 'hello-world.add' }],
        },
        expect.objectContaining({ agent_id: 'other', skills: [] }),
      ],
    })
  })

  test('is narrowed by agent, name, tag, health and page', async () => {
    const targets = async (query: string) => {
      const { capabilities } = (await discover(query)) as {
        capabilities: Record<'reasoners' | 'skills', { invocation_target: string }[]>[]
      }
      return capabilities.flatMap((one) =>
        [...one.reasoners, ...one.skills].map((it) => it.invocation_target),
      )
    }
    expect(await targets('?agent=other')).toEqual(['other.think'])
    expect(await targets('?agent_ids=other,hello-world&reasoner=gr*')).toEqual(['hello-world.greet'])
    expect(await targets('?tags=math,slow')).toEqual(['hello-world.add', 'other.think'])
    expect(await targets('?skill=add')).toEqual(['hello-world.add'])
    expect(await targets('?health_status=inactive')).toEqual([])
    expect(await targets('?limit=1&offset=1')).toEqual(['other.think'])
    expect(await discover('?limit=1')).toMatchObject({ pagination: { has_more: true } })
  })

  test('comes as a short list, and as XML', async () => {
    expect(await discover('?format=compact')).toEqual({
      discovered_at: '2026-01-01T00:00:00Z',
      reasoners: [
        { id: 'greet', agent_id: 'hello-world', target: 'hello-world.greet', tags: ['nice'] },
        { id: 'think', agent_id: 'other', target: 'other.think', tags: ['slow'] },
      ],
      skills: [{ id: 'add', agent_id: 'hello-world', target: 'hello-world.add', tags: ['math'] }],
    })
    const response = await plane.request('/discovery/capabilities?format=xml&agent=hello-world')
    expect(response.headers.get('content-type')).toStartWith('application/xml')
    expect(await response.text()).toBe(
      '<?xml version="1.0" encoding="UTF-8"?>\n' +
        '<discovery discovered_at="2026-01-01T00:00:00Z">' +
        '<summary total_agents="1" total_reasoners="1" total_skills="1"/><capabilities>' +
        '<agent id="hello-world" base_url="http://127.0.0.1:8001" version="1.0.0" health_status="active" ' +
        'deployment_type="long_running" last_heartbeat="2026-01-01T00:00:00Z">' +
        '<reasoners><reasoner id="greet" target="hello-world.greet">' +
        '<description>Says &quot;hello&quot; &amp; &lt;more&gt;</description>' +
        '<tags><tag>nice</tag></tags></reasoner></reasoners>' +
        '<skills><skill id="add" target="hello-world.add"><tags><tag>math</tag></tags></skill></skills>' +
        '</agent></capabilities></discovery>\n',
    )
  })

  test('lists all reasoners', async () => {
    expect((await plane.ask('/reasoners')).body).toMatchObject({
      total: 2,
      online_count: 2,
      reasoners: [
        { reasoner_id: 'hello-world.greet', node_status: 'active' },
        { reasoner_id: 'other.think' },
      ],
    })
  })
})

test('what SDKs ask of the web of trust is refused in a way that they go on after', async () => {
  for (const [method, path] of [
    ['POST', '/did/register'],
    ['GET', '/did/resolve/did:web:x'],
    ['POST', '/execution/vc'],
  ] as const) {
    const { status, body } = await plane.ask(path, { method })
    expect([status, (body as { error: string }).error]).toEqual([
      404,
      expect.stringContaining('go on without'),
    ])
  }
})

describe('programs of this host without a key', () => {
  const health = (url: string, headers: Record<string, string> = {}) =>
    fetch(`${url}/api/v1/nodes`, { headers }).then(({ status }) => status)

  test('are let in where the operator says so, and nobody else with them', async () => {
    await using open = await TestControlPlane.open({ keylessWorkspace: 'main' })
    const { url } = await open.platform.listen()
    expect(await health(url)).toBe(200)
    // A page of strangers, in a browser of this host, and who comes by a proxy.
    expect(await health(url, { origin: 'http://evil.example' })).toBe(401)
    expect(await health(url, { 'sec-fetch-site': 'cross-site' })).toBe(401)
    expect(await health(url, { 'x-forwarded-for': '203.0.113.9' })).toBe(401)
    expect(await health(url, { 'x-api-key': 'wrong' })).toBe(401)
    const elsewhere = await fetch(`${url}/v0/sandboxes`)
    expect(elsewhere.status).toBe(401)
    const refused = await open.ask('/nodes', { key: null })
    expect(refused).toMatchObject({
      status: 401,
      body: { error: expect.stringContaining('--keyless-workspace') },
    })
  })

  test('are not let in otherwise, and never where others can connect', async () => {
    const { url } = await plane.platform.listen()
    expect(await health(url)).toBe(401)
    const refused = await TestControlPlane.open({ keylessWorkspace: 'main', hosts: ['0.0.0.0'] }).then(
      () => '',
      (error) => error.message,
    )
    expect(refused).toContain('keylessWorkspace')
  })
})
