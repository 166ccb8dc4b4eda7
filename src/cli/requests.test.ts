import { afterAll, beforeEach, describe, expect, test } from 'bun:test'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { TestPlatform } from './test-platform.ts'

// run, chat, logs, fork and share as people type them, against a scripted platform.

const platform = new TestPlatform()
const directory = mkdtempSync(join(tmpdir(), 'hutch-requests-'))
afterAll(() => {
  platform[Symbol.dispose]()
  rmSync(directory, { recursive: true, force: true })
})
beforeEach(() => {
  platform.seen.length = 0
})

/** An agent `hello` that answers with this. */
function agent(respond: (body: string) => Response): void {
  platform.answer = ({ path, body }) => {
    if (path === '/v0/agents/hello') {
      const url = `${platform.origin}/main/agents/hello`
      return Response.json({ metadata: { name: 'hello', url }, spec: {}, status: 'DEPLOYED' })
    }
    return path.startsWith('/main/agents/hello') ? respond(body) : null
  }
}

function stream(type: string, pieces: string[]): Response {
  const body = new ReadableStream<Uint8Array>({
    start(controller) {
      for (const piece of pieces) controller.enqueue(new TextEncoder().encode(piece))
      controller.close()
    },
  })
  return new Response(body, { headers: { 'content-type': type } })
}

test('what answers later is told with the command that says what came of it', async () => {
  agent(() => Response.json({ success: true }, { status: 202, headers: { 'x-hutch-execution': 'one' } }))
  const { code, stdout, stderr } = await platform.run(['run', 'agent', 'hello', '--params', 'async=true'])
  expect([code, JSON.parse(stdout)]).toEqual([0, { success: true }])
  expect(stderr).toContain('next: hutch get execution one')
})

test('lines of several tasks of a job tell which said them', async () => {
  const line = {
    timestamp: '2030-01-01T00:00:02.000Z',
    message: 'hi',
    severity: 9,
    stream: 'stdout',
    task: '3',
  }
  platform.answer = ({ path }) =>
    path.startsWith('/v0/observability/logs')
      ? Response.json({ work: { logs: [line], totalCount: 1 } })
      : Response.json({ metadata: { name: 'work' } })
  const of = async (...words: string[]) =>
    (await platform.run(['logs', 'job', 'work', '-u', ...words])).stdout
  expect(await of()).toBe('2030-01-01T00:00:02.000Z [task 3] hi\n')
  expect(await of('one', '3')).toBe('2030-01-01T00:00:02.000Z hi\n')
  expect(await of('--no-timestamps')).toBe('hi\n')
})

test('what a node that is not deployed logs of its executions is read', async () => {
  const line = { timestamp: '2030-01-01T00:00:02.000Z', message: 'greeting', severity: 9, stream: 'stdout' }
  platform.answer = ({ path }) =>
    path.startsWith('/v0/observability/logs')
      ? Response.json({ 'far.executions': { logs: [line], totalCount: 1 } })
      : null
  const { code, stdout } = await platform.run(['logs', 'agent', 'far.executions', '--no-timestamps'])
  expect([code, stdout]).toEqual([0, 'greeting\n'])
  const logged = { ts: 'x', level: 'warning', message: 'slow', reasoner_id: 'greet', attributes: { ms: 7 } }
  line.message = JSON.stringify({ ...logged, parent_execution_id: null })
  const said = await platform.run(['logs', 'agent', 'far.executions', '--no-timestamps'])
  expect(said.stdout).toBe('greet: slow  ms=7\n')
  const whole = await platform.run(['logs', 'agent', 'far.executions', '--json'])
  expect(JSON.parse(whole.stdout).message).toBe(line.message)
})

test('run sends what is asked to the address that the platform names', async () => {
  agent(() => Response.json({ answer: [1] }))
  const { code, stdout } = await platform.run([
    ...[
      'run',
      'agent',
      'hello',
      '-d',
      '{"inputs":"x"}',
      '--path',
      '/deep',
      '--params',
      'a=1=2',
      '--params',
      'b=',
    ],
    ...['--header', 'X-User: me: too'],
  ])
  expect([code, stdout]).toEqual([0, '{\n  "answer": [\n    1\n  ]\n}\n'])
  const [, asked] = platform.seen
  expect(asked).toMatchObject({
    method: 'POST',
    path: '/main/agents/hello/deep?a=1%3D2&b=',
    body: '{"inputs":"x"}',
  })
  expect(asked?.headers.get('x-user')).toBe('me: too')
  expect(asked?.headers.get('content-type')).toBe('application/json')
  expect(asked?.headers.get('x-blaxel-authorization')).toBe('Bearer test-key')
})

test('an application, which has a host of its own, is asked by its path', async () => {
  platform.answer = ({ path }) =>
    path.startsWith('/v0/')
      ? Response.json({
          metadata: { name: 'site', workspace: 'main', url: 'http://site-main.app.localhost:1' },
          spec: {},
        })
      : new Response('page')
  expect((await platform.run(['run', 'app', 'site', '--method', 'GET', '--path', '/a'])).stdout).toBe(
    'page\n',
  )
  expect(platform.log.at(-1)).toBe('GET /main/applications/site/a')
})

test('run takes its body from a file or standard input, and no two at once', async () => {
  agent((body) => new Response(`got ${body}`))
  writeFileSync(join(directory, 'in.json'), '{"a":1}')
  expect((await platform.run(['run', 'ag', 'hello', '-f', 'in.json'], { cwd: directory })).stdout).toBe(
    'got {"a":1}\n',
  )
  expect((await platform.run(['run', 'ag', 'hello', '-f', '-'], { stdin: 'typed' })).stdout).toBe(
    'got typed\n',
  )
  const both = await platform.run(['run', 'ag', 'hello', '-f', 'x', '-d', 'y'])
  expect([both.code, both.stderr]).toEqual([2, expect.stringContaining('only one of')])
})

test.each([
  [
    'text/event-stream',
    [
      'event: x\ndata: {"choices":[{"delta":{"content":"Hel',
      'lo"}}]}\n\n',
      'data: {"choices":[{"delta":{}}]}\n\ndata: [DONE]\n\n',
    ],
    'Hello\n',
  ],
  ['text/event-stream; charset=utf-8', ['data: plain\n\ndata: words\n\n'], 'plain\nwords\n'],
  // What the cloud's templates send.
  ['text/event-stream', ['It', ' is\nsun', 'ny: very'], 'It is\nsunny: very\n'],
  ['text/event-stream', ['\n\n', ': ping\n\n', 'data: a\n\n'], 'a\n'],
  ['text/event-stream', ['hi'], 'hi\n'],
  ['application/x-ndjson', ['{"text":"a"}\n{"content":"b"}\n{"other":1}\n'], 'ab{"other":1}\n'],
])('a stream of %s is read for what it says', async (type, pieces, said) => {
  agent(() => stream(type, pieces))
  expect((await platform.run(['run', 'agent', 'hello', '-d', '{}'])).stdout).toBe(said)
})

test('an answer that is an error is printed, and the exit code says so', async () => {
  agent(() => Response.json({ error: 'no such thing' }, { status: 422 }))
  const { code, stdout, stderr } = await platform.run(['run', 'agent', 'hello', '--method', 'get'])
  expect([code, JSON.parse(stdout)]).toEqual([1, { error: 'no such thing' }])
  expect(stderr).toContain('422')
  const whole = await platform.run(['run', 'agent', 'hello', '-o', 'json'])
  expect(JSON.parse(whole.stdout)).toMatchObject({ status: 422, body: { error: 'no such thing' } })
  const none = await platform.run(['run', 'agent', 'nobody'])
  expect([none.code, none.stderr]).toEqual([1, expect.stringContaining('hutch get agents')])
})

test('what the platform itself refuses is told in its words', async () => {
  const refusal = { error: { code: 'WORKLOAD_UNAVAILABLE', message: 'it is not served', origin: 'platform' } }
  agent(() => Response.json(refusal, { status: 404, headers: { 'x-blaxel-source': 'platform' } }))
  const ran = await platform.run(['run', 'agent', 'hello'])
  expect([ran.code, ran.stdout, ran.stderr]).toEqual([
    1,
    '',
    expect.stringContaining('error: it is not served\n'),
  ])
  expect(ran.stderr).toContain('hutch get agent hello')
  const chatted = await platform.run(['chat', 'hello'], { stdin: 'one\ntwo\n' })
  expect([chatted.code, chatted.stderr]).toEqual([1, 'error: 404: it is not served\n'])
})

test('run gives up after its timeout', async () => {
  agent(() => stream('text/plain', []))
  const answer = platform.answer
  const { promise, resolve } = Promise.withResolvers<null>()
  platform.answer = (request) => (request.path.startsWith('/main') ? promise : answer(request))
  const { code, stderr } = await platform.run(['run', 'agent', 'hello', '--timeout', '1'])
  resolve(null)
  expect([code, stderr]).toEqual([1, expect.stringContaining('within 1 s')])
  expect(stderr).toContain('hutch logs agent hello')
})

test('what hutch serve serves is asked without the platform, and without its key', async () => {
  platform.answer = () => Response.json('from here')
  const port = new URL(platform.origin).port
  const env = { BL_API_URL: '', BL_API_KEY: '' }
  const ran = await platform.run(['run', 'agent', 'hello', '--local', '-p', port, '-d', '{}'], { env })
  expect([ran.code, ran.stdout]).toEqual([0, '"from here"\n'])
  expect(platform.seen[0]?.headers.get('x-blaxel-authorization')).toBeNull()
})

test('chat sends each line, and keeps to one conversation', async () => {
  agent((body) =>
    stream('text/event-stream', [`data: {"content":"you said ${JSON.parse(body).inputs}"}\n\n`]),
  )
  const { code, stdout } = await platform.run(['chat', 'hello', '--header', 'x-user: me'], {
    stdin: 'one\n\ntwo\n',
  })
  expect([code, stdout]).toEqual([0, 'you said one\nyou said two\n'])
  const asked = platform.seen.filter(({ path }) => path.startsWith('/main'))
  expect(asked.map(({ path }) => path)).toEqual(Array(2).fill('/main/agents/hello/?stream=true'))
  const json = await platform.run(['chat', 'hello', '--json'], { stdin: 'three\n' })
  expect(JSON.parse(json.stdout)).toEqual({ inputs: 'three', status: 200, answer: 'you said three' })
  const [one, two] = asked.map(({ headers }) => headers.get('x-blaxel-thread-id'))
  expect([one === two, one?.length, asked[0]?.headers.get('x-user')]).toEqual([true, 36, 'me'])
})

test('a mistyped agent is told of before the first question, and chat ends', async () => {
  platform.answer = () => null
  const { shown, child } = platform.onTerminal(['chat', 'helo'])
  expect(await child.exited).toBe(1)
  expect(shown()).toContain('hutch get agents')
  expect(shown()).not.toContain('you>')
})

test('chat without a line says so, and a mistyped agent is told of all the same', async () => {
  agent(() => new Response('never'))
  const silent = await platform.run(['chat', 'hello'], { stdin: '' })
  expect([silent.code, silent.stdout, silent.stderr]).toEqual([
    0,
    '',
    'nothing was asked: no line came on standard input\n',
  ])
  const nobody = await platform.run(['chat', 'nobody'], { stdin: '' })
  expect([nobody.code, nobody.stderr]).toEqual([1, expect.stringContaining('hutch get agents')])
})

test('on a terminal a question that fails does not end the conversation', async () => {
  agent(() => Response.json({}))
  const chat = platform.onTerminal(['chat', 'hello'])
  await chat.until(/you> /)
  platform.answer = () => null
  chat.type('one\r')
  await chat.until(/error: [\s\S]*you> /)
  chat.type('\x04')
  expect(await chat.child.exited).toBe(0)
})

const line = (second: number, message: string, severity = 9, stream = 'stdout') => ({
  timestamp: `2030-01-01T00:00:0${second}.123456Z`,
  message,
  severity,
  stream,
})

test('logs are printed oldest first, page after page', async () => {
  const all = Array.from({ length: 1500 }, (_, index) => line(index % 10, `line ${1499 - index}`))
  platform.answer = ({ path }) => {
    if (path === '/v0/agents/hello') return Response.json({})
    const query = new URL(path, platform.origin).searchParams
    const from = Number(query.get('offset'))
    return Response.json({ hello: { logs: all.slice(from, from + 1000), totalCount: all.length } })
  }
  const { code, stdout } = await platform.run(['logs', 'agent', 'hello', '--no-timestamps', '-p', '2d'])
  const lines = stdout.trimEnd().split('\n')
  expect([code, lines.length, lines[0], lines.at(-1)]).toEqual([0, 1500, 'line 0', 'line 1499'])
  expect(platform.log[1]).toContain('resourceType=agents')
  expect(platform.log[1]).toContain('workloadIds=hello')
})

test('logs say when and from where, and cannot reach the terminal', async () => {
  platform.answer = ({ path }) =>
    path === '/v0/functions/hello'
      ? Response.json({})
      : Response.json({ hello: { logs: [line(2, 'bad \x1b[2J', 17), line(1, 'built', 9, 'build')] } })
  const { stdout } = await platform.run([
    'logs',
    'mcp',
    'hello',
    '--utc',
    '--search',
    'b',
    '--severity',
    'ERROR',
  ])
  expect(stdout).toBe('2030-01-01T00:00:01.123Z [build] built\n2030-01-01T00:00:02.123Z bad \\x1b[2J\n')
  const json = await platform.run(['logs', 'mcp', 'hello', '--json'])
  expect(json.stdout.split('\n').map((text) => text && JSON.parse(text).message)).toEqual([
    'built',
    'bad \x1b[2J',
    '',
  ])
})

test('logs that are followed come as they are said', async () => {
  const { promise, resolve } = Promise.withResolvers<void>()
  platform.answer = ({ path }) => {
    if (path === '/v0/agents/hello') return Response.json({})
    const body = new ReadableStream<Uint8Array>({
      async start(controller) {
        const send = (record: object) =>
          controller.enqueue(new TextEncoder().encode(`${JSON.stringify(record)}\n`))
        send(line(1, 'first'))
        send({ type: 'keepalive' })
        await promise
        send(line(2, 'second'))
        controller.close()
      },
    })
    return new Response(body, { headers: { 'content-type': 'application/x-ndjson' } })
  }
  const child = platform.spawn(['logs', 'agent', 'hello', '-f', '--no-timestamps'])
  let said = ''
  for await (const chunk of child.stdout) {
    said += new TextDecoder().decode(chunk)
    if (said === 'first\n') resolve()
  }
  const told = await new Response(child.stderr).text()
  expect([await child.exited, said]).toEqual([1, 'first\nsecond\n'])
  expect(told).toContain('the platform ended the stream')
  expect(told).toContain('try:   hutch status')
  expect(platform.log[1]).toContain('follow=true')
})

test('logs that are followed end well when what says them was deleted', async () => {
  let asked = 0
  platform.answer = ({ path }) => {
    if (path === '/v0/agents/hello') return asked++ === 0 ? Response.json({}) : null
    return new Response('', { headers: { 'content-type': 'application/x-ndjson' } })
  }
  const { code, stderr } = await platform.run(['logs', 'agent', 'hello', '-f'])
  expect([code, stderr]).toEqual([0, 'agent hello was deleted\n'])
})

test('a connection that is lost is told of as that, whatever was being read', async () => {
  // Half of what it says is to come: then nobody is there any more.
  using server = Bun.listen({
    hostname: '127.0.0.1',
    port: 0,
    socket: {
      data(socket) {
        socket.end('HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{')
      },
    },
  })
  const env = { BL_API_URL: `http://127.0.0.1:${server.port}/v0` }
  for (const words of [
    ['get', 'agents'],
    ['logs', 'agent', 'far.executions', '-f'],
    ['sandbox', 'exec', 'box', '--', 'true'],
  ]) {
    const { code, stderr } = await platform.run(words, { env })
    expect([code, stderr]).toEqual([
      1,
      'error: the connection to the platform was lost\ntry:   hutch status\n',
    ])
  }
})

test('a terminal that the platform leaves is told of as a connection that was lost', async () => {
  using server = Bun.serve({
    hostname: '127.0.0.1',
    port: 0,
    fetch(request, server) {
      if (server.upgrade(request)) return undefined
      const url = `http://127.0.0.1:${server.port}/main/sandboxes/box`
      return Response.json({ metadata: { name: 'box', url }, spec: {}, status: 'DEPLOYED' })
    },
    websocket: {
      open: (socket) => socket.close(1001, 'Server closed'),
      message() {},
    },
  })
  const env = { BL_API_URL: `http://127.0.0.1:${server.port}/v0` }
  const { code, stderr } = await platform.run(['sandbox', 'connect', 'box'], { env })
  expect([code, stderr]).toEqual([1, 'error: the connection to the platform was lost\ntry:   hutch status\n'])
})

test.each([
  [['logs', 'agent', 'hello', '--start', 'soon'], 2, 'is no time like'],
  [['logs', 'agent', 'hello', '-p', 'x'], 2, '--period must be a duration'],
  [['logs', 'agent', 'nobody'], 1, 'hutch get agents'],
  [['logs', 'preview', 'x'], 2, 'there are agents, functions, applications, jobs, sandboxes'],
  [['run', 'agent', 'hello', '--header', 'x'], 2, "is not 'NAME: VALUE'"],
  [['run', 'agent', 'hello', '-p', '1'], 2, '--port is for --local'],
  [['share', 'image', 'agent/x:1', '-w', 'team'], 2, 'an image is shared whole'],
  [['share', 'image', 'agent/x'], 2, '--workspace says with which workspace'],
  [['fork', 'app/x', 'y'], 2, 'what is forked is a sandbox'],
])('%j is answered with what would be right', async (words, code, message) => {
  agent(() => new Response('ok'))
  const ran = await platform.run(words)
  expect([ran.code, ran.stderr]).toEqual([code, expect.stringContaining(message)])
})

test('images are shared and taken back, sandboxes forked into applications', async () => {
  platform.answer = () => Response.json({ name: 'web' })
  expect((await platform.run(['share', 'image', 'agent/x', '--workspace', 'team'])).stdout).toBe(
    'agent/x is shared with team\n',
  )
  expect((await platform.run(['unshare', 'image', 'agent/x', '-w', 'team'])).code).toBe(0)
  expect(
    (await platform.run(['fork', 'sbx/box', 'app/web', '--port', '3000', '--traffic', '20'])).stdout,
  ).toBe('application/web\n')
  expect(platform.seen.map(({ method, path, body }) => [method, path, body])).toEqual([
    ['POST', '/v0/images/agent/x/share', '{"targetWorkspace":"team"}'],
    ['DELETE', '/v0/images/agent/x/share/team', ''],
    [
      'POST',
      '/v0/sandboxes/box/fork',
      '{"targetName":"web","targetType":"application","traffic":20,"port":3000}',
    ],
  ])
  // The other workspace is where it goes, not where we are.
  expect(platform.seen[0]?.headers.get('x-blaxel-workspace')).toBe('main')
})

describe('traffic', () => {
  const revisions = ['rev-1', 'rev-2', 'rev-3']

  /** An agent whose requests go where they were last led to, at the second look. */
  function agentWithRevisions(): void {
    let routing: { active: string; canary?: string | null; canaryPercent?: number } = { active: 'rev-2' }
    let looks = 0
    platform.answer = ({ method, path, body }) => {
      if (method === 'PUT') {
        const asked = JSON.parse(body).spec.revision
        if (asked.active === 'rev-9')
          return Response.json({ error: 'spec.revision.active: "rev-9" is not there' }, { status: 400 })
        routing = asked
        looks = 0
      }
      if (path.includes('/revisions')) {
        const share = routing.canary ? (routing.canaryPercent ?? 0) : 0
        const now = ++looks < 2 ? -1 : share
        return Response.json(
          revisions.map((id) => ({
            id,
            createdAt: `2030-01-0${id.at(-1)}`,
            status: id === 'rev-3' ? 'FAILED' : 'DEPLOYED',
            trafficPercent: id === routing.active ? 100 - now : id === routing.canary ? now : 0,
          })),
        )
      }
      return Response.json({
        metadata: { name: 'hello' },
        spec: { runtime: { memory: 1 }, revision: routing },
      })
    }
  }

  test.each([
    [['rev-1'], { active: 'rev-1', canary: null }],
    [['rev-1', '20%'], { active: 'rev-2', canary: 'rev-1', canaryPercent: 20 }],
    [['rev-1', '0'], { active: 'rev-2', canary: null }],
  ])('%j is asked for, with all else as it was, and waited for', async (words, revision) => {
    agentWithRevisions()
    const { code, stdout } = await platform.run(['traffic', 'agent', 'hello', ...words])
    expect([code, stdout]).toEqual([0, expect.stringContaining('of the requests to hello go to rev-1')])
    const put = platform.seen.find(({ method }) => method === 'PUT')
    expect(JSON.parse(put?.body ?? '')).toEqual({
      metadata: { name: 'hello' },
      spec: { runtime: { memory: 1 }, revision },
    })
  })

  test('a rollback goes to the revision before the one that serves, or to the one that is named', async () => {
    agentWithRevisions()
    const back = await platform.run(['rollback', 'agent', 'hello'])
    expect([back.code, back.stdout]).toEqual([0, 'all requests to hello go to rev-1\n'])
    const again = await platform.run(['rollback', 'agent', 'hello'])
    expect([again.code, again.stderr]).toEqual([1, expect.stringContaining('no revision before rev-1')])
    const named = await platform.run(['rollback', 'agent', 'hello', 'rev-2', '--json'])
    expect(JSON.parse(named.stdout)).toMatchObject({ revision: 'rev-2', percent: 100 })
  })

  test('a revision that is not there is answered with where they are listed', async () => {
    agentWithRevisions()
    const { code, stderr } = await platform.run(['traffic', 'agent', 'hello', 'rev-9'])
    expect([code, stderr]).toEqual([1, expect.stringContaining('REVISION: "rev-9" is not there')])
    expect(stderr).toContain('hutch get agent hello revisions')
    const wrong = await platform.run(['traffic', 'agent', 'hello', 'rev-1', 'much'])
    expect([wrong.code, wrong.stderr]).toEqual([2, expect.stringContaining('no whole number')])
  })
})
