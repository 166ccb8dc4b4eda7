import { afterAll, afterEach, beforeAll, beforeEach, expect, test } from 'bun:test'
import { gzipSync } from 'node:zlib'
import { PlatformError } from '../../errors.ts'
import type { Execution } from '../../executions/index.ts'
import { silentLogger } from '../../lib/log.ts'
import { FakeClock } from '../../lib/test-clock.ts'
import type { Instance } from '../../spec/runtime.ts'
import type { AgentCall, AgentRequest } from '../../triggers/index.ts'
import { LargeAnswers } from '../large-answers.ts'
import { LazyMcpBridge } from '../mcp/index.ts'
import { type HttpServer, startServer } from '../server.ts'
import { TestPlatform } from '../testing/test-platform.ts'
import { type AgentPlane, agentRunRoutes } from './agents.ts'
import { ApplicationGateway } from './applications.ts'
import { Exchanges } from './exchanges.ts'
import { type FunctionPlane, functionRunRoutes } from './functions.ts'
import { agentCaller } from './later.ts'

const port = 3000
const clock = new FakeClock()
const exchanges = new Exchanges({ clock })
let platform: TestPlatform
let server: HttpServer
let program: Bun.Server<string>
/** What the program does with a request. */
let answer: (request: Request) => Response | Promise<Response>
let leases = 0
let cookies: (string | null)[] = []
let setCookie: string | null = null
/** Instances of "crashing" that ended and are taken for running ones. */
let ended = 0
const kept: AgentCall[] = []
const later: AgentPlane['later'] = {
  async accept(call) {
    kept.push(call)
    return { execution: { id: 'execution-1' } as Execution, existing: false }
  },
}
/** Somebody waits for an instance of "slow". */
const slowly = Promise.withResolvers<void>()

const deployments: FunctionPlane['deployments'] & AgentPlane['deployments'] = {
  acquireInstance: async () => null,
  passage: (_workspace, _kind, name, { isAsync }) => ({
    later: isAsync ? { trigger: null } : null,
    path: null,
    ...(name === 'hurried' ? { tries: { retries: 2, timeoutMs: 30_000 } } : {}),
  }),
  isOpen: (workspace, kind, name) => `${workspace} ${kind}` === 'main application' || name === 'open',
  async acquire(_workspace, kind, name, { cookie }, caller) {
    if (name === 'missing') throw new PlatformError('workload_not_found', `there is no ${kind} "missing"`)
    if (name === 'off') throw new PlatformError('workload_unavailable', `the ${kind} "off" is deactivated`)
    if (name === 'slow') {
      slowly.resolve()
      await new Promise((_, reject) =>
        caller?.signal.addEventListener('abort', () => reject(caller.signal.reason)),
      )
    }
    cookies.push(cookie)
    leases++
    let held = true
    const gone = name === 'down' || (name === 'crashing' && ended-- > 0)
    return {
      setCookie,
      revisionId: 'rev-one',
      transport: null,
      lease: {
        instance: {
          id: 'instance',
          address: async () => ({ origin: `http://127.0.0.1:${gone ? 1 : program.port}` }),
          listening: async () => !gone,
        } as unknown as Instance,
        port,
        program: { argv: [], env: {}, workingDir: '/' },
        ...(gone && name === 'crashing' ? { ended: Promise.resolve() } : {}),
        asConnection: () => ({ touch() {} }),
        [Symbol.dispose]() {
          if (held) leases--
          held = false
        },
      },
    }
  },
}

beforeAll(async () => {
  const plane = { deployments, exchanges }
  const functions = {
    ...plane,
    bridge: new LazyMcpBridge({ clock, log: silentLogger }),
    logs: { append() {} },
  }
  const applications = new ApplicationGateway({ ...plane, domains: ['localhost'] })
  platform = await TestPlatform.open({
    routes: [
      ...agentRunRoutes({ ...plane, later }),
      ...functionRunRoutes(functions),
      ...applications.routes(),
    ],
    app: { serveHost: (request, host, context) => applications.serveHost(request, host, context) },
  })
  server = startServer({ app: platform.app, port: 0, log: platform.log })
  program = Bun.serve<string>({
    port: 0,
    hostname: '127.0.0.1',
    idleTimeout: 0,
    async fetch(request, self) {
      const data = new URL(request.url).pathname
      if (request.headers.get('upgrade') && self.upgrade(request, { data })) return
      return await answer(request)
    },
    websocket: {
      message: (socket, message) => void socket.send(`${socket.data} ${message}`),
    },
  })
})

afterAll(async () => {
  exchanges[Symbol.dispose]()
  await server.stop()
  await program.stop(true)
  await platform[Symbol.asyncDispose]()
})

beforeEach(() => {
  cookies = []
  setCookie = null
  answer = async (request) =>
    Response.json({
      method: request.method,
      path: new URL(request.url).pathname + new URL(request.url).search,
      headers: Object.fromEntries(request.headers),
      body: await request.text(),
    })
})

afterEach(async () => {
  while (leases > 0) await new Promise((resolve) => setImmediate(resolve))
})

interface Echo {
  method: string
  path: string
  headers: Record<string, string>
  body: string
}

const ask = (path: string, init: RequestInit = {}, key: string | null = platform.adminKey) =>
  fetch(`${server.url}${path}`, {
    ...init,
    headers: { ...(key === null ? {} : { authorization: `Bearer ${key}` }), ...init.headers },
  })
const echo = async (path: string, init?: RequestInit, key?: string | null) =>
  (await (await ask(path, init, key)).json()) as Echo
const failure = async (response: Response) =>
  ((await response.json()) as { error: { code: string; message: string; origin: string } }).error

test('a request reaches the program as it was sent, but for the credential', async () => {
  const seen = await echo('/main/agents/hello/deep/%2Fpath?x=1&y', {
    method: 'PUT',
    body: 'some text',
    headers: {
      'x-own': 'kept',
      'x-blaxel-authorization': 'Bearer nothing',
      'x-api-key': 'of-the-program',
      cookie: 'a=b',
    },
  }).catch(() => null)
  expect(seen).toMatchObject({ error: { code: 'AUTHENTICATION_FAILED' } })
  const { method, path, headers, body } = await echo('/main/agents/hello/deep/%2Fpath?x=1&y', {
    method: 'PUT',
    body: 'some text',
    headers: { 'x-own': 'kept', 'x-api-key': 'of-the-program', cookie: 'a=b', 'user-agent': 'tester' },
  })
  expect({ method, path, body }).toEqual({ method: 'PUT', path: '/deep/%2Fpath?x=1&y', body: 'some text' })
  expect(headers).toMatchObject({
    'x-own': 'kept',
    'x-api-key': 'of-the-program',
    cookie: 'a=b',
    'user-agent': 'tester',
    'content-length': '9',
    'x-forwarded-prefix': '/main/agents/hello',
  })
  expect(headers).not.toHaveProperty('authorization')
  for (const header of ['x-blaxel-authorization', 'x-api-key']) {
    const sent = await echo(
      '/main/agents/hello',
      { headers: { [header]: header === 'x-api-key' ? platform.adminKey : `Bearer ${platform.adminKey}` } },
      null,
    )
    expect(sent.path).toBe('/')
    expect(JSON.stringify(sent)).not.toContain(platform.adminKey)
  }
})

test.each(['agents', 'functions'])('%s are private unless they are public', async (plural) => {
  for (const name of ['hello', 'missing']) {
    const refused = await ask(`/main/${plural}/${name}`, {}, null)
    expect(refused.status).toBe(401)
    expect(refused.headers.get('x-blaxel-error-code')).toBe('AUTHENTICATION_REQUIRED')
  }
  const own = { authorization: 'Bearer its-own' }
  const open = await ask(`/main/${plural}/open/x`, { method: 'POST', headers: own }, null)
  expect(((await open.json()) as Echo).headers).toMatchObject(own)
  expect((await ask(`/other/${plural}/hello`)).status).toBe(403)
})

test('what is not there, or does not run, is told of as clients of the cloud know it', async () => {
  const missing = await ask('/main/agents/missing')
  expect(missing.status).toBe(404)
  expect(await failure(missing)).toMatchObject({ code: 'WORKLOAD_NOT_FOUND', origin: 'platform' })
  const off = await ask('/main/functions/off/mcp', { method: 'POST' })
  expect(off.status).toBe(404)
  expect(await failure(off)).toMatchObject({
    code: 'WORKLOAD_UNAVAILABLE',
    retryable: true,
    action: expect.stringContaining('backoff'),
  })
  const down = await ask('/main/agents/down')
  expect(down.status).toBe(502)
  expect(await failure(down)).toMatchObject({
    message: expect.stringContaining('the agent "down" does not listen'),
  })
})

test('a POST with async=true is kept, and answered at once', async () => {
  const sent = await ask('/main/agents/hello/deep/down?x=1&async=true&y=2', {
    method: 'POST',
    body: 'work',
    headers: { 'idempotency-key': 'once', 'x-thread': '7' },
  })
  expect(sent.status).toBe(202)
  expect(sent.headers.get('x-hutch-execution')).toBe('execution-1')
  expect(await sent.json()).toEqual({ success: true })
  const [{ request, turn: _, ...call }] = kept.splice(0) as [AgentCall]
  expect(call).toEqual({ workspace: 'main', name: 'hello', trigger: null, idempotencyKey: 'once' })
  expect(request).toMatchObject({
    method: 'POST',
    path: '/deep/down',
    search: '?x=1&y=2',
    prefix: '/main/agents/hello',
  })
  expect(Buffer.from(request.body).toString()).toBe('work')
  const headers = Object.fromEntries(request.headers)
  expect(headers).toMatchObject({ 'x-thread': '7' })
  expect(Object.keys(headers).filter((name) => /auth|encoding|content-length|connection/.test(name))).toEqual(
    [],
  )
  const read = await ask('/main/agents/hello?async=true')
  expect([read.status, (await failure(read)).message]).toEqual([400, expect.stringContaining('only a POST')])
  expect(kept).toEqual([])
})

test('what was kept is asked as every other request is, and its answer told whole', async () => {
  const call = agentCaller({
    plane: () => ({ deployments, exchanges }),
    answers: new LargeAnswers(clock),
    clock,
    log: silentLogger,
  })
  const request: AgentRequest = {
    method: 'POST',
    path: '/work',
    search: '?deep=1',
    headers: [['x-thread', '7']],
    origin: 'http://localhost:4400',
    prefix: '/main/agents/hello',
    body: Buffer.from('input'),
  }
  const asked = (name: string, signal = new AbortController().signal) =>
    call({ workspace: 'main', name }, request, 'execution-1', signal)
  const echoed = await asked('hello')
  expect(echoed).toMatchObject({ status: 200, failure: null, retry: false, retryAfterMs: null })
  expect(JSON.parse(Buffer.from(echoed.body).toString())).toMatchObject({
    method: 'POST',
    path: '/work?deep=1',
    headers: { 'x-thread': '7', 'x-hutch-execution': 'execution-1', 'content-length': '5' },
    body: 'input',
  })
  answer = () => new Response('later', { status: 503, headers: { 'retry-after': '7' } })
  expect(await asked('hello')).toMatchObject({ status: 503, failure: null, retry: true, retryAfterMs: 7000 })
  // A program may pack its answer though nobody asked for that.
  const packed = (bytes: Uint8Array) => () =>
    new Response(bytes as BodyInit, { headers: { 'content-encoding': 'gzip', 'content-type': 'text/plain' } })
  answer = packed(gzipSync('plain text'))
  const unpacked = await asked('hello')
  expect([unpacked.type, Buffer.from(unpacked.body).toString()]).toEqual(['text/plain', 'plain text'])
  // Whatever pieces it comes in.
  const large = Buffer.from(Array.from({ length: 400_000 }, (_, count) => `line ${count}\n`).join(''))
  for (const whole of [() => new Response(large), packed(gzipSync(large, { level: 0 }))]) {
    answer = whole
    const kept = await asked('hello')
    expect([kept.failure, Buffer.compare(kept.body, large)]).toEqual([null, 0])
  }
  answer = packed(gzipSync(Buffer.alloc(9 * 1024 * 1024)))
  expect(await asked('hello')).toMatchObject({ status: 502, failure: { code: 'answer_too_large' } })
  answer = packed(Buffer.from('no gzip'))
  expect(await asked('hello')).toMatchObject({
    failure: { code: 'bad_gateway', message: expect.stringContaining('gzip') },
  })
  answer = () => new Response(new Uint8Array(9 * 1024 * 1024))
  expect(await asked('hello')).toMatchObject({
    status: 502,
    failure: { code: 'answer_too_large' },
    retry: false,
  })
  answer = () =>
    new Response(
      new ReadableStream({
        start: (sending) => sending.enqueue('x'.repeat(1024 * 1024)),
        pull: (sending) => sending.error(new Error('the program dies')),
      }),
    )
  expect(await asked('hello')).toMatchObject({
    status: 502,
    failure: { code: 'bad_gateway' },
    retry: true,
    notAsked: false,
  })
  expect(await asked('missing')).toMatchObject({
    status: 404,
    failure: { code: 'workload_not_found' },
    retry: false,
    notAsked: false,
  })
  expect(await asked('off')).toMatchObject({ failure: { code: 'workload_unavailable' }, notAsked: true })
  expect(await asked('down')).toMatchObject({ status: 502, failure: { code: 'bad_gateway' }, retry: true })

  const stopped = new AbortController()
  const reached = Promise.withResolvers<AbortSignal>()
  answer = async ({ signal }) => {
    reached.resolve(signal)
    await new Promise((resolve) => signal.addEventListener('abort', resolve))
    return new Response()
  }
  const cancelled = asked('hello', stopped.signal).then(null, (error: unknown) => error)
  const inside = await reached.promise
  stopped.abort('cancelled')
  await clock.turn(200)
  expect(await cancelled).toBe('cancelled')
  if (!inside.aborted) await new Promise((resolve) => inside.addEventListener('abort', resolve))
})

test('an answer that has not begun by the timeout of its trigger is given up', async () => {
  const reached = Promise.withResolvers<AbortSignal>()
  answer = async ({ signal }) => {
    reached.resolve(signal)
    await new Promise((resolve) => signal.addEventListener('abort', resolve))
    return new Response()
  }
  const asked = ask('/main/agents/hurried', { method: 'POST', body: 'slow' })
  const inside = await reached.promise
  await clock.turn(30_000)
  await clock.turn(200)
  const late = await asked
  expect([late.status, (await failure(late)).message]).toEqual([504, expect.stringContaining('30 seconds')])
  if (!inside.aborted) await new Promise((resolve) => inside.addEventListener('abort', resolve))
})

test('a request that may be sent twice goes to another instance when its own has just ended, once', async () => {
  answer = () => new Response('here')
  ended = 1
  const got = await ask('/main/agents/crashing')
  expect([got.status, await got.text(), leases]).toEqual([200, 'here', 0])
  ended = 1
  expect((await ask('/main/agents/crashing', { method: 'POST', body: 'x' })).status).toBe(502)
  ended = 2
  expect((await ask('/main/agents/crashing')).status).toBe(502)
  expect([ended, leases]).toEqual([0, 0])
})

test('an answer is streamed as it comes', async () => {
  const chunks = Promise.withResolvers<ReadableStreamDefaultController<string>>()
  answer = () =>
    new Response(new ReadableStream<string>({ start: (controller) => chunks.resolve(controller) }), {
      headers: { 'content-type': 'text/event-stream' },
    })
  const asked = ask('/main/agents/hello')
  const controller = await chunks.promise
  controller.enqueue('data: one\n\n')
  const reader = (await asked).body!.pipeThrough(new TextDecoderStream()).getReader()
  expect((await reader.read()).value).toBe('data: one\n\n')
  controller.enqueue('data: two\n\n')
  expect((await reader.read()).value).toBe('data: two\n\n')
  controller.close()
  expect((await reader.read()).done).toBe(true)
})

test('without data for 100 seconds the endpoint closes, and each chunk begins that time anew', async () => {
  const begun = Promise.withResolvers<void>()
  answer = (request) => {
    begun.resolve()
    return new Promise((resolve) => request.signal.addEventListener('abort', () => resolve(new Response())))
  }
  const silent = ask('/main/agents/hello', { method: 'POST', body: 'x' })
  await begun.promise
  clock.advance(100_000)
  const cut = await silent
  expect(cut.status).toBe(504)
  expect(await failure(cut)).toMatchObject({
    code: 'GATEWAY_TIMEOUT',
    message: expect.stringContaining('100 seconds'),
  })

  const chunks = Promise.withResolvers<ReadableStreamDefaultController<string>>()
  answer = () =>
    new Response(new ReadableStream<string>({ start: (controller) => chunks.resolve(controller) }))
  const asked = ask('/main/agents/hello')
  const controller = await chunks.promise
  controller.enqueue('one ')
  const reader = (await asked).body!.pipeThrough(new TextDecoderStream()).getReader()
  expect((await reader.read()).value).toBe('one ')
  for (const word of ['two ', 'three ']) {
    clock.advance(99_000)
    controller.enqueue(word)
    expect((await reader.read()).value).toBe(word)
  }
  clock.advance(100_000)
  await expect(reader.read()).rejects.toThrow()
})

test('an upload of a known length that takes its time is no silence, and the program is told its length', async () => {
  const bytes = 300_000
  const told = Promise.withResolvers<string | null>()
  const came = [Promise.withResolvers<void>(), Promise.withResolvers<void>()]
  answer = async (request) => {
    told.resolve(request.headers.get('content-length'))
    let read = 0
    for await (const chunk of request.body!) {
      read += chunk.byteLength
      if (read >= bytes / 3) came[0]!.resolve()
      if (read >= (bytes * 2) / 3) came[1]!.resolve()
    }
    return new Response(String(read))
  }
  const parts = Promise.withResolvers<ReadableStreamDefaultController<Uint8Array>>()
  const asked = ask('/main/agents/hello', {
    method: 'POST',
    headers: { 'content-length': String(bytes) },
    body: new ReadableStream<Uint8Array>({ start: (controller) => parts.resolve(controller) }),
  })
  const controller = await parts.promise
  for (const arrived of came) {
    controller.enqueue(new Uint8Array(bytes / 3))
    await arrived.promise
    clock.advance(99_000)
  }
  controller.enqueue(new Uint8Array(bytes / 3))
  controller.close()
  const response = await asked
  expect(await told.promise).toBe(String(bytes))
  expect([response.status, await response.text()]).toEqual([200, String(bytes)])
})

test('a client that leaves ends its request, before the answer began as after', async () => {
  const [asked, left] = [Promise.withResolvers<void>(), Promise.withResolvers<void>()]
  answer = (request) => {
    request.signal.addEventListener('abort', () => left.resolve())
    asked.resolve()
    return new Promise(() => {})
  }
  const leaving = new AbortController()
  const silent = ask('/main/agents/hello', { signal: leaving.signal })
  await asked.promise
  clock.advance(100)
  leaving.abort()
  await expect(silent).rejects.toThrow()
  await left.promise

  const cancelled = Promise.withResolvers<void>()
  answer = () =>
    new Response(
      new ReadableStream<string>({
        start: (controller) => controller.enqueue('begun'),
        cancel: () => cancelled.resolve(),
      }),
    )
  const reader = (await ask('/main/agents/hello')).body!.getReader()
  await reader.read()
  await reader.cancel()
  await cancelled.promise
})

test('a start that takes too long for the endpoint is told of, and what takes 15 minutes in all is cut', async () => {
  const slow = ask('/main/agents/slow')
  await slowly.promise
  clock.advance(100_000)
  expect((await slow).status).toBe(504)

  const chunks = Promise.withResolvers<ReadableStreamDefaultController<string>>()
  answer = () =>
    new Response(new ReadableStream<string>({ start: (controller) => chunks.resolve(controller) }))
  const asked = ask('/main/agents/hello')
  const controller = await chunks.promise
  controller.enqueue('.')
  const reader = (await asked).body!.getReader()
  await reader.read()
  for (let minute = 1; minute < 15; minute++) {
    clock.advance(60_000)
    controller.enqueue('.')
    await reader.read()
  }
  clock.advance(60_000)
  await expect(reader.read()).rejects.toThrow()
})

test('neither limit is for the event stream of an MCP server, nor for applications', async () => {
  for (const [path, headers] of [
    ['/main/functions/hello/mcp', { accept: 'text/event-stream' }],
    ['/main/applications/hello/events', {}],
  ] as const) {
    const chunks = Promise.withResolvers<ReadableStreamDefaultController<string>>()
    answer = () =>
      new Response(new ReadableStream<string>({ start: (controller) => chunks.resolve(controller) }))
    const asked = ask(path, { headers })
    const controller = await chunks.promise
    controller.enqueue(':\n')
    const reader = (await asked).body!.getReader()
    await reader.read()
    clock.advance(60 * 60_000)
    controller.enqueue('data: late\n\n')
    expect(new TextDecoder().decode((await reader.read()).value)).toBe('data: late\n\n')
    controller.close()
    await reader.read()
  }
})

test('a request that says it is too large is refused, and one that does not say is cut', async () => {
  const declared = await platform.app.fetch(
    new Request('http://localhost:4400/main/agents/hello', {
      method: 'POST',
      headers: { authorization: `Bearer ${platform.adminKey}`, 'content-length': String(2 ** 40) },
      body: 'x',
    }),
  )
  expect(declared.status).toBe(413)
  expect(await failure(declared)).toMatchObject({ code: 'REQUEST_ENTITY_TOO_LARGE' })
  const chunk = new Uint8Array(16 * 2 ** 20)
  let sent = 0
  answer = async (request) => {
    for await (const _ of request.body ?? []) {
    }
    return new Response('read')
  }
  const body = new ReadableStream<Uint8Array>({
    pull(controller) {
      sent += chunk.length
      if (sent > 2 ** 40) controller.close()
      else controller.enqueue(chunk)
    },
  })
  const endless = await platform.app.fetch(
    new Request('http://localhost:4400/main/agents/hello', {
      method: 'POST',
      headers: { authorization: `Bearer ${platform.adminKey}` },
      body,
    }),
  )
  expect(endless.status).toBe(413)
  expect(sent).toBeLessThan(2 ** 30)
})

test('a WebSocket is joined with the program', async () => {
  const Client = WebSocket as unknown as new (url: string, init: object) => WebSocket
  const socket = new Client(`${server.url.replace('http', 'ws')}/main/agents/hello/talk`, {
    headers: { authorization: `Bearer ${platform.adminKey}` },
  })
  const heard = Promise.withResolvers<string>()
  socket.addEventListener('message', ({ data }) => heard.resolve(String(data)))
  socket.addEventListener('open', () => socket.send('hello'))
  expect(await heard.promise).toBe('/talk hello')
  socket.close()
})

test('who is to stay with a revision gets a cookie, and brings it', async () => {
  setCookie = 'hutch-revision-agent-hello=rev-one; Path=/main/agents/hello; HttpOnly'
  const cookie = 'a=b; hutch-revision-agent-hello=rev-two; c=d'
  const first = await ask('/main/agents/hello', { headers: { cookie } })
  expect(first.headers.getSetCookie()).toEqual([setCookie])
  expect(cookies).toEqual([cookie])
  expect(((await first.json()) as Echo).headers.cookie).toBe('a=b; c=d')
  const alone = { headers: { cookie: 'hutch-revision-agent-hello=rev-two' } }
  expect((await echo('/main/agents/hello', alone)).headers).not.toHaveProperty('cookie')
})

test('an application is reached by its host name as by its path', async () => {
  const { port: front } = new URL(server.url)
  const host = `my-app-main.app.localhost:${front}`
  const byHost = (path: string) => fetch(`${server.url}${path}`, { headers: { host } })
  const answered = await byHost('/deep/path?x=1')
  const seen = (await answered.json()) as Echo
  expect(seen.path).toBe('/deep/path?x=1')
  expect(seen.headers).toMatchObject({ host, 'x-forwarded-host': host })
  expect(seen.headers).not.toHaveProperty('x-forwarded-prefix')
  expect(answered.headers.get('content-security-policy')).toBeNull()
  const none = await fetch(server.url, { headers: { host: `my-app-other.app.localhost:${front}` } })
  const accept = 'text/html,application/xhtml+xml,*/*;q=0.8'
  const page = await fetch(server.url, { headers: { host: `my-app-other.app.localhost:${front}`, accept } })
  expect([page.status, page.headers.get('content-type')]).toEqual([404, 'text/html; charset=utf-8'])
  expect(await page.text()).toContain('<h1>No such application</h1>')
  expect(none.status).toBe(404)
  const path = await ask('/main/applications/my-app/deep', {}, null)
  expect(path.headers.get('content-security-policy')).toBe('sandbox')
  expect(((await path.json()) as Echo).path).toBe('/deep')
})
