import { afterAll, beforeAll, beforeEach, expect, test } from 'bun:test'
import { Client } from '@modelcontextprotocol/sdk/client/index.js'
import { StreamableHTTPClientTransport } from '@modelcontextprotocol/sdk/client/streamableHttp.js'
import { z } from 'zod'
import { PlatformError } from '../../errors.ts'
import type { Logger } from '../../lib/log.ts'
import { eventually } from '../../lib/test-eventually.ts'
import { WholeBody } from '../whole-body.ts'
import { CallCancelled, McpServer, mcpTool, type ToolCall } from './index.ts'
import { protocolVersions } from './wire.ts'

/** The protocol, over tools that only answer or wait. */

const logged: string[] = []
const log: Logger = { debug() {}, info() {}, warn() {}, error: (message) => void logged.push(message) }

/** Calls of `wait`, which end when they are aborted or let go. */
let waiting: { call: ToolCall; letGo: () => void }[] = []

const mcp = new McpServer<{ hidden: boolean }>({
  name: 'test',
  title: 'Test',
  version: '1.0.0',
  instructions: 'Nothing here is real.',
  bodyBytesMax: 4000,
  log,
  tools: [
    mcpTool({
      name: 'wait',
      title: 'Wait',
      description: 'Waits until it is told not to',
      input: z.object({}),
      output: z.object({ waited: z.boolean() }),
      annotations: {},
      run: (_, __: { hidden: boolean }, call) =>
        new Promise((resolve, reject) => {
          call.signal.addEventListener('abort', () => reject(call.signal.reason))
          waiting.push({ call, letGo: () => resolve({ waited: true }) })
        }),
    }),
    mcpTool({
      name: 'fail',
      title: 'Fail',
      description: 'Fails as it is told to',
      input: z.object({ publicly: z.boolean() }),
      output: z.object({}),
      annotations: {},
      async run({ publicly }) {
        throw publicly
          ? new PlatformError('not_found', 'no such thing')
          : new Error('the password is hunter2')
      },
    }),
    mcpTool({
      name: 'hidden',
      title: 'Hidden',
      description: 'Is not always listed',
      input: z.object({}),
      output: z.object({}),
      annotations: {},
      available: ({ hidden }: { hidden: boolean }) => !hidden,
      run: async () => ({}),
    }),
  ],
})

let server: ReturnType<typeof Bun.serve>
let url: string
let credentialed = true

beforeAll(() => {
  server = Bun.serve({
    port: 0,
    hostname: '127.0.0.1',
    async fetch(request) {
      const context = { hidden: request.headers.has('x-hidden') }
      const { signal } = request
      const whole = new WholeBody(request, null)
      const answer = await mcp.handle({ request, whole, signal, context, place: 'here', credentialed })
      if (answer instanceof Response) return answer
      const body = new ReadableStream<Uint8Array>({
        async start(controller) {
          for await (const text of answer.messages) controller.enqueue(new TextEncoder().encode(text))
          controller.close()
        },
      })
      return new Response(body, { headers: answer.headers })
    },
  })
  url = `http://127.0.0.1:${server.port}/mcp`
})

afterAll(() => server.stop(true))

beforeEach(() => {
  credentialed = true
  waiting = []
  logged.length = 0
})

const both = 'application/json, text/event-stream'

function post(message: unknown, headers: Record<string, string> = {}): Promise<Response> {
  const body = typeof message === 'string' ? message : JSON.stringify(message)
  return fetch(url, {
    method: 'POST',
    headers: { 'content-type': 'application/json', accept: both, ...headers },
    body,
  })
}

const request = (method: string, params: object = {}, id: string | number = 1) => ({
  jsonrpc: '2.0',
  id,
  method,
  params,
})

async function errorOf(response: Response): Promise<{ status: number; code: number; message: string }> {
  const { error } = (await response.json()) as { error: { code: number; message: string } }
  return { status: response.status, ...error }
}

test('a client and the server agree on a version: its own, or the newest there is', async () => {
  for (const version of protocolVersions) {
    const response = await post(request('initialize', { protocolVersion: version, capabilities: {} }))
    expect(response.headers.get('mcp-session-id')).toMatch(/^[0-9a-f]{32}$/)
    expect(await response.json()).toMatchObject({
      id: 1,
      result: {
        protocolVersion: version,
        capabilities: { tools: {} },
        serverInfo: { name: 'test', version: '1.0.0' },
        instructions: 'Nothing here is real.',
      },
    })
  }
  const unknown = await post(request('initialize', { protocolVersion: '1999-01-01' }))
  expect(((await unknown.json()) as { result: object }).result).toMatchObject({
    protocolVersion: protocolVersions[0],
  })
  expect(await errorOf(await post(request('ping'), { 'mcp-protocol-version': '1999-01-01' }))).toMatchObject({
    status: 400,
    message: expect.stringContaining('MCP-Protocol-Version'),
  })
})

test('the real client connects, pings, lists and ends its session', async () => {
  const client = new Client({ name: 'test', version: '1' })
  const transport = new StreamableHTTPClientTransport(new URL(url))
  await client.connect(transport)
  await client.ping()
  expect(client.getServerVersion()).toMatchObject({ name: 'test', title: 'Test' })
  expect((await client.listTools()).tools.map(({ name }) => name)).toEqual(['wait', 'fail', 'hidden'])
  const session = transport.sessionId!
  await transport.terminateSession()
  const after = await post(request('ping'), { 'mcp-session-id': session })
  expect(await errorOf(after)).toMatchObject({ status: 404, message: 'Session not found' })
  await client.close()
})

test('a session that this process never heard of goes on, so that a restart is not noticed', async () => {
  const response = await post(request('ping'), { 'mcp-session-id': 'from-an-earlier-life' })
  expect(await response.json()).toEqual({ jsonrpc: '2.0', id: 1, result: {} })
})

test('notifications and answers are taken without one', async () => {
  for (const message of [
    { jsonrpc: '2.0', method: 'notifications/initialized' },
    { jsonrpc: '2.0', id: 7, result: {} },
    { jsonrpc: '2.0', method: 'notifications/cancelled', params: { requestId: 'nothing' } },
  ]) {
    const response = await post(message)
    expect([response.status, await response.text()]).toEqual([202, ''])
  }
})

test('what is not a message is refused with what is wrong', async () => {
  expect(await errorOf(await post('{'))).toMatchObject({ status: 400, code: -32700 })
  expect(await errorOf(await post({ id: 1, method: 'ping' }))).toMatchObject({ status: 400, code: -32600 })
  expect(await errorOf(await post({ jsonrpc: '2.0', id: 1 }))).toMatchObject({ status: 400, code: -32600 })
  expect(await errorOf(await post(request('resources/list')))).toMatchObject({ status: 200, code: -32601 })
  expect(await errorOf(await post(request('tools/list', { cursor: 'x' })))).toMatchObject({
    status: 200,
    code: -32602,
  })
  expect(await errorOf(await post(request('ping', { pad: 'x'.repeat(4000) })))).toMatchObject({ status: 413 })
  expect(await errorOf(await post(request('ping'), { 'content-type': 'text/plain' }))).toMatchObject({
    status: 415,
  })
  expect(await errorOf(await post(request('ping'), { accept: 'text/html' }))).toMatchObject({ status: 406 })
  expect(await errorOf(await post(request('ping'), { 'mcp-session-id': 'a b' }))).toMatchObject({
    status: 400,
  })
})

test('there is no stream to listen to, and no session to end without its id', async () => {
  const listening = await fetch(url, { headers: { accept: 'text/event-stream' } })
  expect([listening.status, listening.headers.get('allow')]).toEqual([405, 'POST, DELETE'])
  expect(listening.headers.get('content-type')).toBe('application/json')
  expect((await fetch(url, { method: 'DELETE' })).status).toBe(404)
})

test('several messages in one body are answered in the versions that had them', async () => {
  const batch = [request('ping', {}, 'a'), { jsonrpc: '2.0', method: 'x' }, request('nothing', {}, 'b')]
  expect(await (await post(batch)).json()).toMatchObject([
    { id: 'a', result: {} },
    { id: 'b', error: { code: -32601 } },
  ])
  expect((await post(batch, { 'mcp-protocol-version': '2025-06-18' })).status).toBe(400)
  expect((await post([])).status).toBe(400)
  expect((await post(Array(33).fill({ jsonrpc: '2.0', method: 'x' }))).status).toBe(400)
})

test('a failure that is public is told to the model, any other only to the log', async () => {
  const fail = (publicly: unknown) => post(request('tools/call', { name: 'fail', arguments: { publicly } }))
  const told = async (response: Promise<Response>) =>
    ((await (await response).json()) as { result: { isError: boolean; content: { text: string }[] } }).result
  expect(await told(fail(true))).toMatchObject({ isError: true, content: [{ text: 'no such thing' }] })
  expect(await told(fail('x'))).toMatchObject({
    isError: true,
    content: [{ text: 'publicly: "x" must be a boolean' }],
  })
  const secret = await told(fail(false))
  expect(JSON.stringify(secret)).not.toContain('hunter2')
  expect(secret.isError).toBe(true)
  expect(logged).toEqual(['a tool failed'])
})

test('a call is cancelled by its session, and by nobody else', async () => {
  const session = { 'mcp-session-id': 'mine' }
  const call = post(request('tools/call', { name: 'wait' }, 5), session)
  await eventually(() => waiting.length === 1)
  const { signal } = waiting[0]!.call
  const cancel = {
    jsonrpc: '2.0',
    method: 'notifications/cancelled',
    params: { requestId: 5, reason: 'bored' },
  }
  await post(cancel)
  await post(cancel, { 'mcp-session-id': 'another' })
  await post({ ...cancel, params: { requestId: '5' } }, session)
  expect(signal.aborted).toBe(false)
  await post(cancel, session)
  expect(signal.reason).toBeInstanceOf(CallCancelled)
  const response = await call
  expect([response.status, await response.text()]).toEqual([202, ''])
  expect(mcp.callsUnderWay).toBe(0)
})

test('ending a session ends its calls', async () => {
  const call = post(request('tools/call', { name: 'wait' }), { 'mcp-session-id': 'short' })
  await eventually(() => waiting.length === 1)
  const ended = await fetch(url, { method: 'DELETE', headers: { 'mcp-session-id': 'short' } })
  expect(ended.status).toBe(204)
  expect((await call).status).toBe(202)
  expect(waiting[0]!.call.signal.reason).toBeInstanceOf(CallCancelled)
})

test('a client that goes away ends its call', async () => {
  const gone = new AbortController()
  const call = fetch(url, {
    method: 'POST',
    headers: { 'content-type': 'application/json', accept: both },
    body: JSON.stringify(request('tools/call', { name: 'wait' })),
    signal: gone.signal,
  })
  call.catch(() => {})
  await eventually(() => waiting.length === 1)
  gone.abort()
  await eventually(() => waiting[0]!.call.signal.aborted)
  expect(waiting[0]!.call.signal.reason).not.toBeInstanceOf(CallCancelled)
  await eventually(() => mcp.callsUnderWay === 0)
  expect(logged).toEqual([])
})

test('progress is a stream of events, in front of the answer', async () => {
  const call = post(request('tools/call', { name: 'wait', _meta: { progressToken: 'p' } }))
  await eventually(() => waiting.length === 1)
  waiting[0]!.call.progress!({ progress: 1, total: 2, message: 'half' })
  waiting[0]!.call.progress!({ progress: 2, message: 'too soon after the first' })
  waiting[0]!.letGo()
  const response = await call
  expect(response.headers.get('content-type')).toBe('text/event-stream')
  const events = (await response.text()).trim().split('\n\n')
  const messages = events.map((event) => JSON.parse(event.replace('event: message\ndata: ', '')))
  expect(messages).toMatchObject([
    { method: 'notifications/progress', params: { progressToken: 'p', progress: 1, message: 'half' } },
    { id: 1, result: { structuredContent: { waited: true } } },
  ])
  const unasked = post(request('tools/call', { name: 'wait' }))
  await eventually(() => waiting.length === 2)
  expect(waiting[1]!.call.progress).toBeNull()
  waiting[1]!.letGo()
  expect((await unasked).headers.get('content-type')).toBe('application/json')
})

test('calls of one place are bounded', async () => {
  // In few bodies, since connections are bounded too.
  const bodies = Array.from({ length: 8 }, (_, body) =>
    post(Array.from({ length: 32 }, (_, at) => request('tools/call', { name: 'wait' }, `${body}-${at}`))),
  )
  await eventually(() => waiting.length === 256)
  const refused = await post(request('tools/call', { name: 'wait' }, 'one more'))
  expect(await refused.json()).toMatchObject({ result: { isError: true } })
  for (const { letGo } of waiting) letGo()
  for (const body of bodies) expect(await (await body).json()).toHaveLength(32)
  expect(mcp.callsUnderWay).toBe(0)
})

test('a tool that lacks something is not listed, and still says what it lacks', async () => {
  const listed = async (headers: Record<string, string>) =>
    ((await (await post(request('tools/list'), headers)).json()) as { result: { tools: { name: string }[] } })
      .result.tools
  expect((await listed({})).map(({ name }) => name)).toContain('hidden')
  expect((await listed({ 'x-hidden': '1' })).map(({ name }) => name)).not.toContain('hidden')
  expect(
    await (await post(request('tools/call', { name: 'hidden' }), { 'x-hidden': '1' })).json(),
  ).toMatchObject({ result: { structuredContent: {} } })
})

test('where nobody proved who they are, pages of other origins are turned away', async () => {
  credentialed = false
  const from = async (origin: string) => (await post(request('ping'), { origin })).status
  expect(await from('https://evil.example')).toBe(403)
  expect(await from('null')).toBe(403)
  // A name that was made to resolve to here proves nothing by matching the Host.
  expect((await post(request('ping'), { origin: 'http://evil.example', host: 'evil.example' })).status).toBe(
    403,
  )
  expect(await from('http://localhost:3000')).toBe(200)
  expect(await from('http://127.0.0.1:6274')).toBe(200)
  expect((await post(request('ping'))).status).toBe(200)
  credentialed = true
  expect(await from('https://console.example')).toBe(200)
})
