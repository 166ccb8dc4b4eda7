import { afterAll, beforeAll, beforeEach, expect, test } from 'bun:test'
import { Client } from '@modelcontextprotocol/sdk/client/index.js'
import { StreamableHTTPClientTransport } from '@modelcontextprotocol/sdk/client/streamableHttp.js'
import {
  CreateMessageRequestSchema,
  LoggingMessageNotificationSchema,
  ResourceListChangedNotificationSchema,
} from '@modelcontextprotocol/sdk/types.js'
import { HurriedClock } from '../../../lib/test-clock.ts'
import { eventually } from '../../../lib/test-eventually.ts'
import { openTestMachine, type TestMachine } from './test-machine.ts'

/** The real client, over the bridge, with the real server of fixtures/. */

const clock = new HurriedClock()
const notebook = [process.execPath, `${import.meta.dir}/../../../../fixtures/mcp-stdio/src/server.ts`]
let machine: TestMachine

beforeAll(async () => {
  machine = await openTestMachine(notebook, clock)
})
afterAll(() => machine[Symbol.asyncDispose]())

beforeEach(() => {
  machine.lines.length = 0
})

interface Connected extends AsyncDisposable {
  client: Client
  transport: StreamableHTTPClientTransport
  call(name: string, args?: object): Promise<string>
}

async function connect(prepare: (client: Client) => void = () => {}): Promise<Connected> {
  const client = new Client({ name: 'test', version: '1' }, { capabilities: { sampling: {} } })
  prepare(client)
  const transport = new StreamableHTTPClientTransport(new URL(machine.url))
  await client.connect(transport)
  return {
    client,
    transport,
    call: async (name, args = {}) => textOf(await client.callTool({ name, arguments: { ...args } })),
    [Symbol.asyncDispose]: async () => {
      // One that has ended already is not there to be ended.
      await transport.terminateSession().catch(() => {})
      await client.close()
    },
  }
}

async function processes(): Promise<number[]> {
  const all = await machine.instance.guest.processes.list()
  return all.filter(({ running }) => running).map(({ id }) => id)
}

function textOf(result: object): string {
  const { content } = result as { content: { text: string }[] }
  return content.map(({ text }) => text).join('')
}

test('each session is a process of its own, and what one keeps the other does not see', async () => {
  await using one = await connect()
  await using two = await connect()
  expect(one.client.getServerVersion()).toMatchObject({ name: 'notebook' })
  expect((await one.client.listTools()).tools.map(({ name }) => name)).toContain('add_note')
  expect(await one.call('add_note', { text: 'mine\nin two lines' })).toBe('note 1')
  expect(await one.call('list_notes')).toBe('mine\nin two lines')
  expect(await two.call('list_notes')).toBe('')
  expect(one.transport.sessionId).toMatch(/^bridgemachine01\.[0-9a-f]{32}$/)
  expect(machine.bridge.sessions).toBe(2)
  await eventually(() => machine.lines.includes('stderr: notes: 1'))
})

test('progress comes with the call it is of, and what the server says by itself on the stream', async () => {
  const said: string[] = []
  await using one = await connect((client) => {
    client.setNotificationHandler(
      LoggingMessageNotificationSchema,
      ({ params }) => void said.push(`${params.data}`),
    )
    client.setNotificationHandler(
      ResourceListChangedNotificationSchema,
      () => void said.push('resources changed'),
    )
  })
  await one.call('add_note', { text: 'first' })
  await one.call('add_note', { text: 'second' })
  const progress: string[] = []
  const onprogress = ({ message }: { message?: string }) => void progress.push(message ?? '')
  const done = await one.client.callTool({ name: 'read_aloud', arguments: {} }, undefined, { onprogress })
  expect(textOf(done)).toBe('read 2')
  expect(progress).toEqual(['first', 'second'])
  await eventually(
    () => said.includes('first') && said.includes('second') && said.includes('resources changed'),
  )
})

test("the server asks its client's model, and gets the answer", async () => {
  await using one = await connect((client) => {
    client.setRequestHandler(CreateMessageRequestSchema, ({ params }) => {
      const [asked] = params.messages
      const text = asked?.content && 'text' in asked.content ? `about: ${asked.content.text}` : ''
      return { model: 'none', role: 'assistant', content: { type: 'text', text } }
    })
  })
  await one.call('add_note', { text: 'milk' })
  expect(await one.call('summarize')).toBe('about: Summarize:\nmilk')
})

test('a session ends when its client says so, and its process with it', async () => {
  const one = await connect()
  const { sessionId } = one.transport
  const before = await processes()
  await one.transport.terminateSession()
  await eventually(async () => (await processes()).length === before.length - 1)
  const after = await fetch(machine.url, {
    method: 'POST',
    headers: { 'content-type': 'application/json', accept, 'mcp-session-id': sessionId! },
    body: JSON.stringify({ jsonrpc: '2.0', id: 1, method: 'ping' }),
  })
  expect(after.status).toBe(404)
  await one.client.close()
})

test('a call that its client takes back is taken back from the server, and the session goes on', async () => {
  await using one = await connect()
  await one.call('add_note', { text: 'long' })
  const gone = new AbortController()
  const call = one.client.callTool({ name: 'read_aloud', arguments: { pauseMs: 60_000 } }, undefined, {
    signal: gone.signal,
  })
  call.catch(() => {})
  await eventually(() => machine.lines.includes('stderr: reading aloud'))
  gone.abort('enough')
  expect(await call.catch((error: Error) => error.message)).toContain('enough')
  expect(await one.call('list_notes')).toBe('long')
})

test('a process that dies ends its session, and no other', async () => {
  await using other = await connect()
  await other.call('add_note', { text: 'still here' })
  const before = await processes()
  await using one = await connect()
  const [victim] = (await processes()).filter((id) => !before.includes(id))
  await one.call('add_note', { text: 'x' })
  const call = one.client.callTool({ name: 'read_aloud', arguments: { pauseMs: 60_000 } })
  call.catch(() => {})
  await eventually(() => machine.lines.includes('stderr: reading aloud'))
  await machine.instance.guest.processes.signal(victim!, 9, 'process')
  expect(await call.catch((error: Error) => error.message)).toContain('the server ended by signal 9')
  expect(await one.call('list_notes').catch((error: Error) => error.message)).toContain('Session not found')
  expect(await other.call('list_notes')).toBe('still here')
  await eventually(() => machine.lines.includes('platform: a session ended: the server ended by signal 9'))
})

const accept = 'application/json, text/event-stream'

function post(body: unknown, headers: Record<string, string> = {}): Promise<Response> {
  return fetch(machine.url, {
    method: 'POST',
    headers: { 'content-type': 'application/json', accept, ...headers },
    body: JSON.stringify(body),
  })
}

test('a request without a session is answered by a server of its own', async () => {
  const before = machine.bridge.sessions
  const listed = await post({ jsonrpc: '2.0', id: 'x', method: 'tools/list' })
  expect(listed.headers.get('mcp-session-id')).toBeNull()
  const { id, result } = (await listed.json()) as { id: string; result: { tools: object[] } }
  expect([id, result.tools.length]).toEqual(['x', 4])
  const called = await post({
    jsonrpc: '2.0',
    id: 2,
    method: 'tools/call',
    params: { name: 'add_note', arguments: { text: 'once' } },
  })
  const text = await called.text()
  expect(text).toContain('note 1')
  await eventually(() => machine.bridge.sessions === before)
})
