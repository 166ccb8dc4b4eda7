import { afterAll, beforeAll, beforeEach, expect, test } from 'bun:test'
import { HurriedClock } from '../../../lib/test-clock.ts'
import { eventually } from '../../../lib/test-eventually.ts'
import { sessionIdleMs, sessionLeftMs, sessionsPerInstanceMax } from './table.ts'
import { openTestMachine, type TestMachine } from './test-machine.ts'

/** The bridge's own part of the protocol, with a server that does as each request's method says, and requests by hand. */

const program = `
const say = (message) => process.stdout.write(JSON.stringify({ jsonrpc: '2.0', ...message }) + '\\n')
const held = []
for await (const line of console) {
  if (line === '') break
  const { id, method, params } = JSON.parse(line)
  if (method === 'initialize') {
    if (params.die) { console.error('no database here'); process.exit(3) }
    if (params.refuse) say({ id, error: { code: -32000, message: 'not you' } })
    else if (params.silent) console.error('heard, and silent')
    else say({ id, result: { protocolVersion: params.protocolVersion, capabilities: {}, serverInfo: { name: 'odd', version: '1' } } })
  }
  else if (method === 'echo') say({ id, result: params })
  else if (method === 'noise') { console.log('listening, I think'); say({ id, result: {} }) }
  else if (method === 'lines') { process.stderr.write('one\\ntwo\\r\\nthree'); say({ id, result: {} }) }
  else if (method === 'burst') { for (let at = 0; at < params.count; at++) say({ method: 'notifications/told', params: { at, pad: 'x'.repeat(params.pad ?? 0) } }); say({ id, result: { done: true } }) }
  else if (method === 'huge') process.stdout.write('{' + 'x'.repeat(params.bytes) + '\\n')
  else if (method === 'hold') { held.push(id); console.error('held ' + id) }
  else if (method === 'letGo') { for (const one of held.splice(0)) say({ id: one, result: { letGo: true } }); if (id !== undefined) say({ id, result: {} }) }
  else if (method === 'later') { say({ id, result: {} }); setTimeout(() => say({ method: 'notifications/told', params }), 1) }
  else if (method === 'deaf') { say({ id, result: {} }); process.stdin.pause(); await new Promise(() => {}) }
}
`

const clock = new HurriedClock()
let machine: TestMachine

beforeAll(async () => {
  machine = await openTestMachine([process.execPath, '-e', program], clock)
})
afterAll(() => machine[Symbol.asyncDispose]())
beforeEach(async () => {
  // A stream that a test closed is let go of a moment later.
  await eventually(async () => {
    clock.advance(sessionIdleMs + 1)
    return machine.bridge.sessions === 0 && (await running()) === 0
  })
  machine.lines.length = 0
})

async function running(): Promise<number> {
  const all = await machine.instance.guest.processes.list()
  return all.filter((process) => process.running).length
}

const both = 'application/json, text/event-stream'

function post(body: unknown, headers: Record<string, string> = {}): Promise<Response> {
  return fetch(machine.url, {
    method: 'POST',
    headers: { 'content-type': 'application/json', accept: both, ...headers },
    body: typeof body === 'string' ? body : JSON.stringify(body),
  })
}

const message = (method: string, params: object = {}, id: number | string = 1) => ({
  jsonrpc: '2.0',
  id,
  method,
  params,
})

const hello = (extra: object = {}) =>
  message('initialize', { protocolVersion: '2025-06-18', capabilities: {}, clientInfo: {}, ...extra }, 0)

async function begin(): Promise<Record<string, string>> {
  const answer = await post(hello())
  expect(answer.status).toBe(200)
  return { 'mcp-session-id': answer.headers.get('mcp-session-id')! }
}

const ask = async (session: Record<string, string>, method: string, params: object = {}, id = 1) =>
  (await (await post(message(method, params, id), session)).json()) as {
    result?: Record<string, unknown>
    error?: { code: number; message: string }
  }

function listen(session: Record<string, string>, headers: Record<string, string> = {}): Promise<Response> {
  return fetch(machine.url, { headers: { accept: 'text/event-stream', ...session, ...headers } })
}

/** Events of a stream, one after the other. */
function eventsOf(response: Response): {
  next(): Promise<{ id: string; data: string }>
  close(): Promise<void>
} {
  const reader = response.body!.pipeThrough(new TextDecoderStream()).getReader()
  let text = ''
  return {
    async next() {
      for (;;) {
        const end = text.indexOf('\n\n')
        if (end !== -1) {
          const event = text.slice(0, end)
          text = text.slice(end + 2)
          const field = (name: string) => new RegExp(`^${name}: ?(.*)$`, 'm').exec(event)?.[1] ?? ''
          if (!event.startsWith(':')) return { id: field('id'), data: field('data') }
          continue
        }
        const { done, value } = await reader.read()
        if (done) throw new Error('the stream ended')
        text += value
      }
    },
    close: () => reader.cancel(),
  }
}

/** Time passes until it is answered, whenever whoever waits began to. */
async function passing<Value>(ms: number, answering: Promise<Value>): Promise<Value> {
  let answered = false
  const done = () => {
    answered = true
  }
  answering.then(done, done)
  await eventually(() => {
    if (!answered) clock.advance(ms)
    return answered
  })
  return await answering
}

const toldBy = (data: string) => (JSON.parse(data) as { params: { at: number } }).params.at

test('a message is passed on as it was written, numbers and all', async () => {
  const session = await begin()
  const text =
    '{"jsonrpc":"2.0",\n "id":9007199254740993,\r\n "method":"echo","params":{"n":1.10,"s":"a\\nb"}}'
  const answer = await post(text, session)
  // What the server made of it is its own affair; the frame is whole.
  expect(await answer.json()).toMatchObject({ result: { n: 1.1, s: 'a\nb' } })
})

test('what is no message is told to whoever reads the logs', async () => {
  const session = await begin()
  expect(await ask(session, 'noise')).toMatchObject({ result: {} })
  expect(machine.lines).toContain('stdout: listening, I think')
})

test('what is written to stderr is told line by line', async () => {
  const session = await begin()
  await ask(session, 'lines')
  await fetch(machine.url, { method: 'DELETE', headers: session })
  await eventually(() => machine.lines.includes('stderr: three'))
  expect(machine.lines).toEqual(['stderr: one', 'stderr: two', 'stderr: three'])
})

test('a server that ends at once, or refuses, begins no session and says why', async () => {
  const died = await post(hello({ die: true }))
  expect(died.headers.get('mcp-session-id')).toBeNull()
  // It may end before or after what was written to it is known to have arrived.
  expect(await died.text()).toContain('the server ended with exit code 3')
  await eventually(() => machine.lines.includes('stderr: no database here'))
  const refused = await post(hello({ refuse: true }))
  expect(refused.headers.get('mcp-session-id')).toBeNull()
  expect(await refused.json()).toMatchObject({ error: { message: 'not you' } })
  const asking = post(hello({ silent: true }))
  // Before, other limits would be over first where a program takes long to start.
  await eventually(() => machine.lines.includes('stderr: heard, and silent'))
  const silent = await passing(61_000, asking)
  expect([silent.status, await silent.text()]).toEqual([502, expect.stringContaining('within 60 seconds')])
})

test('a program that is not there begins no session', async () => {
  const { argv } = machine.program
  machine.program = { ...machine.program, argv: ['/no/such/program'] }
  const answer = await post(hello())
  expect(answer.status).toBe(422)
  expect(await answer.text()).toContain('/no/such/program')
  machine.program = { ...machine.program, argv }
  await begin()
})

test('what the server says by itself waits for who listens, and is told once', async () => {
  const session = await begin()
  await ask(session, 'later', { at: 1 })
  const events = eventsOf(await listen(session))
  expect(toldBy((await events.next()).data)).toBe(1)
  await ask(session, 'later', { at: 2 })
  expect(toldBy((await events.next()).data)).toBe(2)
  await events.close()
  await ask(session, 'later', { at: 3 })
  const again = eventsOf(await listen(session))
  expect(toldBy((await again.next()).data)).toBe(3)
  await again.close()
})

test('a client whose stream broke goes on where it was', async () => {
  const session = await begin()
  const events = eventsOf(await listen(session))
  await ask(session, 'burst', { count: 5 })
  const [first, second] = [await events.next(), await events.next()]
  expect([first, second].map(({ data }) => toldBy(data))).toEqual([0, 1])
  await events.close()
  const again = eventsOf(await listen(session, { 'last-event-id': first.id }))
  expect(toldBy((await again.next()).data)).toBe(1)
  for (const at of [2, 3, 4]) expect(toldBy((await again.next()).data)).toBe(at)
  await again.close()
  expect((await listen(session, { 'last-event-id': '77-0' })).status).toBe(400)
})

test('who listens anew takes the place of who listened', async () => {
  const session = await begin()
  const first = eventsOf(await listen(session))
  const second = eventsOf(await listen(session))
  expect(await first.next().catch((error: Error) => error.message)).toBe('the stream ended')
  await ask(session, 'later', { at: 1 })
  expect(toldBy((await second.next()).data)).toBe(1)
  await second.close()
})

test('an answer that takes its time becomes a stream, and is there for a client that comes back', async () => {
  const session = { ...(await begin()), 'mcp-protocol-version': '2025-11-25' }
  const asking = post(message('hold', {}, 'slow'), session)
  await eventually(() => machine.lines.includes('stderr: held slow'))
  const response = await passing(10_001, asking)
  expect(response.headers.get('content-type')).toBe('text/event-stream')
  const events = eventsOf(response)
  const primed = await events.next()
  expect(primed.data).toBe('')
  await events.close()
  await post({ jsonrpc: '2.0', method: 'letGo' }, session)
  const again = eventsOf(await listen(session, { 'last-event-id': primed.id }))
  expect((await again.next()).data).toBe('')
  expect(JSON.parse((await again.next()).data)).toMatchObject({ id: 'slow', result: { letGo: true } })
  await eventually(() => machine.leases() === 0)
})

test('without a stream, what comes beside an answer goes out in front of it; a client of JSON alone gets only the answer', async () => {
  const session = await begin()
  const answer = await post(message('burst', { count: 2 }), session)
  expect(answer.headers.get('content-type')).toBe('text/event-stream')
  const data = (await answer.text()).split('\n').filter((line) => line.startsWith('data: {'))
  expect(data.map((line) => Object.keys(JSON.parse(line.slice(6))).includes('result'))).toEqual([
    false,
    false,
    true,
  ])
  const plain = await post(message('burst', { count: 2 }), { ...session, accept: 'application/json' })
  expect(await plain.json()).toMatchObject({ result: { done: true } })
  const events = await post(message('echo', { a: 1 }), { ...session, accept: 'text/event-stream' })
  expect(await events.text()).toContain('"result":{"a":1}')
})

test('several messages in one body are answered together', async () => {
  const session = await begin()
  const batch = [
    message('echo', { a: 1 }, 'a'),
    { jsonrpc: '2.0', method: 'x' },
    message('echo', { b: 2 }, 'b'),
  ]
  expect(await (await post(batch, session)).json()).toMatchObject([
    { id: 'a', result: { a: 1 } },
    { id: 'b', result: { b: 2 } },
  ])
  const twice = await post([message('echo', {}, 1), message('echo', {}, 1)], session)
  expect(twice.status).toBe(400)
})

test('a request that is never answered is given up, and the server told', async () => {
  const session = { ...(await begin()), accept: 'application/json' }
  const asking = post(message('hold', {}, 'never'), session)
  await eventually(() => machine.lines.includes('stderr: held never'))
  const given = await passing(15 * 60_000 + 1, asking)
  expect(await given.json()).toMatchObject({ id: 'never', error: { code: -32001 } })
})

test('a message of more than the most ends its session', async () => {
  const session = await begin()
  const answer = await ask(session, 'huge', { bytes: 9 * 1024 * 1024 })
  expect(answer.error?.message).toContain('wrote a message of more than 8388608 bytes')
  expect((await post(message('echo'), session)).status).toBe(404)
})

test('a server that reads nothing is ended after a while, and holds up nobody else', async () => {
  const session = await begin()
  await ask(session, 'deaf')
  const big = message('echo', { text: 'x'.repeat(2 * 1024 * 1024) })
  const stuck = post(big, session)
  await eventually(() => machine.leases() === 1)
  expect(await ask(await begin(), 'echo', { fine: true })).toMatchObject({ result: { fine: true } })
  expect((await passing(61_000, stuck)).status).toBe(404)
  await eventually(async () => (await post(message('echo'), session)).status === 404)
})

test('a client that takes nothing holds its server up, which goes on once it does', async () => {
  const session = await begin()
  const response = await listen(session)
  // Half as much again as is ever kept for a client.
  const count = 600
  const burst = post(message('burst', { count, pad: 80_000 }), { ...session, accept: 'application/json' })
  const events = eventsOf(response)
  for (let at = 0; at < count; at++) expect(toldBy((await events.next()).data)).toBe(at)
  expect(await (await burst).json()).toMatchObject({ result: { done: true } })
  await events.close()
})

test('a session that nobody uses is over, one that is listened to is not', async () => {
  const [idle, used] = [await begin(), await begin()]
  const events = eventsOf(await listen(used))
  clock.advance(sessionIdleMs + 1)
  await eventually(() => machine.bridge.sessions === 1)
  expect((await post(message('echo'), idle)).status).toBe(404)
  expect((await post(message('echo'), used)).status).toBe(200)
  await events.close()
})

test('sessions of an instance are bounded; one that is idle gives way', async () => {
  const sessions = await Promise.all(Array.from({ length: sessionsPerInstanceMax }, begin))
  expect(machine.bridge.fits(machine.instance.id)).toBe(false)
  expect((await post(hello())).status).toBe(429)
  clock.advance(10_001)
  expect(await ask(sessions[0]!, 'echo', { kept: true })).toMatchObject({ result: { kept: true } })
  expect(machine.bridge.fits(machine.instance.id)).toBe(true)
  await begin()
  expect(await ask(sessions[0]!, 'echo', { kept: true })).toMatchObject({ result: { kept: true } })
  const ended = await Promise.all(
    sessions.map(async (session) => (await post(message('echo'), session)).status),
  )
  expect(ended.filter((status) => status === 404)).toHaveLength(1)
})

test('a session whose client stopped listening is over soon, and gives way at once', async () => {
  const left = await begin()
  await eventsOf(await listen(left)).close()
  // It is known to have gone a moment later.
  await eventually(async () => {
    clock.advance(sessionLeftMs + 1)
    return machine.bridge.sessions === 0
  })
  const sessions = await Promise.all(Array.from({ length: sessionsPerInstanceMax }, begin))
  expect((await post(hello())).status).toBe(429)
  await eventsOf(await listen(sessions[3]!)).close()
  await eventually(() => machine.bridge.fits(machine.instance.id))
  await begin()
  expect((await post(message('echo'), sessions[3])).status).toBe(404)
  expect((await post(message('echo'), sessions[4])).status).toBe(200)
})

test('processes of sessions that an earlier life of the platform began are ended', async () => {
  const session = await begin()
  machine.forgetSessions()
  expect((await post(message('echo'), session)).status).toBe(404)
  await begin()
  await eventually(async () => (await running()) === 1)
})

test('what is no session, or another function of the same instance, is not found', async () => {
  const session = await begin()
  for (const headers of [
    { 'mcp-session-id': 'abc' },
    { 'mcp-session-id': `bridgemachine01.${'0'.repeat(32)}` },
  ])
    expect((await post(message('echo'), headers)).status).toBe(404)
  const elsewhere = await fetch(machine.url.replace('/mcp', '/other'), {
    method: 'POST',
    headers: { 'content-type': 'application/json', accept: both, ...session },
    body: JSON.stringify(message('echo')),
  })
  expect(elsewhere.status).toBe(404)
  expect((await listen({})).status).toBe(400)
  expect((await fetch(machine.url, { method: 'DELETE' })).status).toBe(404)
  expect((await fetch(machine.url, { method: 'PUT' })).status).toBe(405)
  expect((await post('{', session)).status).toBe(400)
})
