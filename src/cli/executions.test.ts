import { afterAll, beforeEach, expect, test } from 'bun:test'
import { TestPlatform } from './test-platform.ts'

// Executions as people look at them, against a scripted platform.

const platform = new TestPlatform()
afterAll(() => platform[Symbol.dispose]())
beforeEach(() => {
  platform.seen.length = 0
})

const execution = (id: string, given: object = {}) => ({
  id,
  workspace: 'main',
  source: 'agent',
  target: { kind: 'agent', name: 'mine' },
  status: 'succeeded',
  statusReason: null,
  stopping: null,
  parent: null,
  index: null,
  parts: null,
  labels: { trigger: 'http-async' },
  attempts: 1,
  attemptsMax: 3,
  dead: false,
  priority: 0,
  acceptedAt: '2030-01-01T00:00:00.000Z',
  runAt: '2030-01-01T00:00:00.000Z',
  startedAt: '2030-01-01T00:00:01.000Z',
  endedAt: '2030-01-01T00:00:03.500Z',
  durationMs: 2500,
  timeoutSeconds: 900,
  error: null,
  result: { bytes: 5, type: 'text/plain' },
  note: {},
  ...given,
})
const failed = execution('two', {
  ...{ status: 'failed', dead: true, attempts: 3, result: null },
  error: { code: 'agent_error', message: 'it broke\x1b[2J' },
})

function serve(): void {
  platform.answer = ({ method, path }) => {
    if (method === 'POST' && path.endsWith('/replay')) {
      const many = path === '/v0/executions/replay'
      return Response.json(many ? { replayed: 1, executions: ['again'] } : execution('again'))
    }
    if (method === 'POST') return Response.json(execution('one', { status: 'cancelled' }))
    if (path.startsWith('/v0/executions?')) {
      const first = !path.includes('cursor=')
      const data = first ? [execution('one'), failed] : [execution('three')]
      return Response.json({ data, meta: { hasMore: first, nextCursor: first ? 'newest.7' : '' } })
    }
    if (path === '/v0/executions/one/result') {
      return Response.json({ type: 'text/plain', encoding: 'utf8', data: 'hello' })
    }
    if (path.startsWith('/v0/executions/one/events')) {
      const event = (type: string, of: object) => `event: ${type}\ndata: ${JSON.stringify(of)}\n\n`
      const at = '2030-01-01T00:00:00.000Z'
      return new Response(
        event('state', {
          at,
          type: 'state',
          number: 0,
          execution: execution('one', { endedAt: null, status: 'running' }),
        }) +
          event('progress', {
            at,
            type: 'progress',
            number: 1,
            execution: execution('one'),
            progress: { done: 1 },
          }) +
          event('ended', { at, type: 'ended', number: 2, execution: failed }),
        { headers: { 'content-type': 'text/event-stream' } },
      )
    }
    if (path === '/v0/executions/metrics') {
      const rates = { acceptedPerSecond: 2.5, startedPerSecond: 0, endedPerSecond: 1 }
      const totals = { acceptedTotal: 9, startedTotal: 8, retriedTotal: 0, endedTotal: { succeeded: 7 } }
      const depth = { waiting: 2, running: 1, reported: 0, oldestWaitingMs: 90_000 }
      return Response.json({ sources: [{ source: 'agent', ...depth, ...totals, ...rates }] })
    }
    if (path === '/v0/executions/one') return Response.json(execution('one'))
    if (path === '/v0/executions/two') return Response.json(failed)
    if (path.startsWith('/v0/observability/logs')) {
      const line = {
        timestamp: '2030-01-01T00:00:02.000Z',
        message: 'working',
        severity: 9,
        stream: 'stdout',
      }
      const name = new URLSearchParams(path).get('workloadIds') ?? ''
      return Response.json({ [name]: { logs: path.includes('offset=0') ? [line] : [], totalCount: 1 } })
    }
    return null
  }
}

test('a list says what each is for, how it stands, and why; and how to go on', async () => {
  serve()
  const { code, stdout, stderr } = await platform.run(['get', 'executions', 'agents', 'mine', '--limit', '2'])
  expect(code).toBe(0)
  expect(platform.log).toEqual(['GET /v0/executions?target=agent%2Fmine&limit=2'])
  const [head = '', first = '', second = ''] = stdout.split('\n')
  expect(head).toMatch(/^ID {3}SOURCE {2}TARGET {6}STATUS +ATTEMPT +AGE +TOOK +REASON$/)
  expect(first).toMatch(/^one +agent +agent\/mine +succeeded +1\/3 .* 2500 ms +-$/)
  expect(second).toContain('failed (dead)')
  expect(second).toContain('it broke\\x1b[2J')
  expect(stderr).toContain('hutch get executions agents mine --limit 2 --cursor newest.7')
})

test('what is asked of nobody, or of what has no executions, is told how to be asked', async () => {
  platform.answer = () => Response.json({ data: [], meta: { hasMore: false, nextCursor: '', total: 0 } })
  const unnamed = await platform.run(['get', 'executions', 'agent'])
  expect([unnamed.code, unnamed.stderr]).toEqual([
    2,
    expect.stringContaining('usage: hutch get executions agent NAME'),
  ])
  const other = await platform.run(['get', 'executions', 'sandbox', 'box'])
  expect([other.code, other.stderr]).toEqual([2, expect.stringContaining('agent, job, node have')])
  expect(platform.log).toEqual([])
  const none = await platform.run(['get', 'executions', 'node', 'one'])
  expect([none.code, none.stderr]).toEqual([0, expect.stringContaining('no executions of node/one')])
})

test('a refusal about an execution of a job, or a task of it, names the command that lists them', async () => {
  platform.answer = () => Response.json({ error: 'there is none', code: 404 }, { status: 404 })
  const execution = await platform.run(['get', 'job', 'mine', 'execution', 'one'])
  expect(execution.stderr).toContain('hutch get job mine executions')
  const task = await platform.run(['get', 'job', 'mine', 'execution', 'one', 'task', '7'])
  expect(task.stderr).toContain('hutch get job mine execution one')
})

test('a table of tasks says why one failed', async () => {
  const task = { index: 0, status: 'failed', conditions: [{ reason: 'timeout' }], attempts: 1 }
  platform.answer = () =>
    Response.json({ metadata: { id: 'one', job: 'mine' }, status: 'failed', tasks: [task] })
  const { stdout } = await platform.run(['get', 'job', 'mine', 'execution', 'one'])
  expect(stdout).toMatch(/^0 +failed +- +1 +- +timeout$/m)
})

test('all pages are read where all are asked for', async () => {
  serve()
  const { stdout } = await platform.run(['get', 'executions', '--all', '--json', '--status', 'failed'])
  expect((JSON.parse(stdout) as { id: string }[]).map(({ id }) => id)).toEqual(['one', 'two', 'three'])
  expect(platform.log[1]).toBe('GET /v0/executions?status=failed&limit=200&cursor=newest.7')
})

test('one is told in lines, with what came of it', async () => {
  serve()
  const { stdout } = await platform.run(['get', 'execution', 'one'])
  expect(stdout).toContain('status       succeeded\n')
  expect(stdout).toContain('labels       trigger=http-async\n')
  expect(stdout).toContain('took         2500 ms\n')
  expect(stdout).toContain('result       5 B, text/plain\n             hello\n')
  const none = await platform.run(['get', 'execution', 'none'])
  expect([none.code, none.stderr.includes('hutch get executions')]).toEqual([1, true])
})

test('one of a job is told in words, its timeout as each task has it', async () => {
  const note = {
    revisionId: 'rev-1',
    parallelism: 2,
    timeoutSeconds: 5,
    maxRetries: 1,
    memoryOverrideMb: null,
  }
  const counts = { queued: 0, running: 1, succeeded: 2, failed: 0, retried: 1 }
  const given = { parts: 3, result: null, timeoutSeconds: 2_592_000, runAt: '2029-12-31T23:59:59.996Z' }
  const target = { kind: 'job', name: 'work' }
  platform.answer = () =>
    Response.json({
      ...execution('one', { ...given, target, note: { ...note, envOverride: ['A', 'B'], counts } }),
      counts,
    })
  const { stdout } = await platform.run(['get', 'execution', 'one'])
  expect(stdout).toContain('parts        1 running, 2 succeeded; 1 tried again\n')
  expect(stdout).toContain('at once      2\nretries      1\nvariables    A, B\n')
  expect(stdout).toContain('timeout      5s for each part\n')
  for (const raw of ['note', '{', 'null', '30d', 'due']) expect(stdout).not.toContain(raw)
})

test('a call of a node is told with what the node was to do', async () => {
  const given = { target: { kind: 'node', name: 'far' }, labels: { reasoner: 'greet', run: 'r' } }
  platform.answer = () =>
    Response.json({ data: [execution('one', given)], meta: { hasMore: false, nextCursor: '' } })
  expect((await platform.run(['get', 'executions'])).stdout).toContain(' node/far.greet ')
})

test('a list that is watched says nothing of further pages', async () => {
  serve()
  const child = platform.spawn(['get', 'executions', '--limit', '2', '--watch'])
  let said = ''
  for await (const chunk of child.stdout) {
    said += new TextDecoder().decode(chunk)
    if (said.includes('it broke')) child.kill()
  }
  expect(await new Response(child.stderr).text()).toBe('')
})

test('its log is what happened to it and what its target said meanwhile, in order', async () => {
  serve()
  const { stdout } = await platform.run(['logs', 'execution', 'one', '--utc'])
  expect(stdout.trimEnd().split('\n')).toEqual([
    '2030-01-01T00:00:00.000Z [execution] accepted for agent mine',
    '2030-01-01T00:00:01.000Z [execution] started',
    '2030-01-01T00:00:02.000Z working',
    '2030-01-01T00:00:03.500Z [execution] succeeded, 5 bytes of text/plain',
  ])
  const asked = platform.log.find((line) => line.includes('/observability/logs'))
  expect(asked).toContain('workloadIds=mine')
  // Their lines are of no execution.
  expect(asked).not.toContain('executionId')
  expect(asked).toContain('start=2029-12-31T23%3A59%3A59.000Z')
})

test('of a task of a job only its own lines are asked for, as its client calls them', async () => {
  const target = { kind: 'job', name: 'mine' }
  const given = { source: 'job-task', target, parent: 'main/mine/nightly', index: 3 }
  platform.answer = ({ path }) => {
    if (path === '/v0/executions/part') return Response.json(execution('part', given))
    return path.startsWith('/v0/observability/logs') ? Response.json({}) : null
  }
  expect((await platform.run(['logs', 'execution', 'part'])).code).toBe(0)
  const asked = platform.log.find((line) => line.includes('/observability/logs'))
  expect(asked).toContain('resourceType=jobs')
  expect(asked).toContain('executionId=nightly&taskId=3')
})

test('it is followed until it ended', async () => {
  serve()
  const { code, stdout } = await platform.run(['logs', 'execution', 'one', '-f', '--no-timestamps'])
  expect(code).toBe(0)
  expect(stdout.trimEnd().split('\n')).toEqual([
    '[execution] running',
    '[execution] progress: done=1',
    '[execution] failed, given up: it broke\\x1b[2J',
  ])
})

test('executions are cancelled and done once more, by id or by what they have in common', async () => {
  serve()
  const cancelled = await platform.run(['executions', 'cancel', 'one', '--reason', 'enough'])
  expect(cancelled.stdout).toBe('one cancelled\n')
  expect(platform.seen.at(-1)?.body).toBe('{"reason":"enough"}')
  expect((await platform.run(['executions', 'replay', 'two'])).stdout).toBe('again\n')
  const many = await platform.run(['executions', 'replay', '--dead', '--target', 'agent/mine', '--json'])
  expect(JSON.parse(many.stdout)).toEqual(['again'])
  expect(JSON.parse(platform.seen.at(-1)?.body ?? '')).toEqual({ dead: true, target: 'agent/mine' })
  expect((await platform.run(['executions', 'replay'])).code).toBe(2)
  expect((await platform.run(['executions', 'replay', 'one', '--dead'])).code).toBe(2)
})

test('how much waits is told', async () => {
  serve()
  const { stdout } = await platform.run(['executions', 'metrics'])
  expect(stdout.split('\n')[1]).toMatch(/^agent +2 +1 +0 +90s +2.5\/s +1\/s +7 succeeded$/)
})
