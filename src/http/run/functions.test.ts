import { afterAll, afterEach, beforeAll, expect, test } from 'bun:test'
import { silentLogger } from '../../lib/log.ts'
import { FakeClock } from '../../lib/test-clock.ts'
import type { Instance } from '../../spec/runtime.ts'
import { LazyMcpBridge } from '../mcp/index.ts'
import { type HttpServer, startServer } from '../server.ts'
import { TestPlatform } from '../testing/test-platform.ts'
import type { Acquired } from './deployments.ts'
import { Exchanges } from './exchanges.ts'
import { type FunctionPlane, functionRunRoutes } from './functions.ts'

/** Sessions of functions and the instances they are in, over programs that only say what they were sent. */

const clock = new FakeClock()
const exchanges = new Exchanges({ clock })
const instanceIds = ['instance0001', 'instance0002']
let platform: TestPlatform
let server: HttpServer
let programs: Bun.Server<undefined>[] = []
/** Which instance the next request without a session is for. */
let next = 0
let leases = 0
let touches = 0

function acquired(index: number): Acquired {
  leases++
  let held = true
  return {
    ...{ setCookie: null, revisionId: 'rev-one', transport: 'http-stream' },
    lease: {
      instance: {
        id: instanceIds[index],
        address: async () => ({ origin: `http://127.0.0.1:${programs[index]!.port}` }),
        listening: async () => true,
      } as unknown as Instance,
      port: 3000,
      program: { argv: [], env: {}, workingDir: '/' },
      asConnection: () => ({ touch: () => void touches++ }),
      [Symbol.dispose]() {
        if (held) leases--
        held = false
      },
    },
  }
}

const deployments: FunctionPlane['deployments'] = {
  isOpen: () => false,
  acquire: async () => acquired(next),
  acquireInstance: async (_workspace, _kind, name, instanceId) => {
    const index = instanceIds.indexOf(instanceId)
    return index === -1 || name !== 'tools' ? null : acquired(index)
  },
}

beforeAll(async () => {
  programs = instanceIds.map((id) =>
    Bun.serve({
      port: 0,
      hostname: '127.0.0.1',
      fetch: (request) => {
        const session = request.headers.get('mcp-session-id')
        if (request.method !== 'GET') {
          return Response.json({ id, session }, { headers: { 'mcp-session-id': session ?? `of-${id}` } })
        }
        const said = ['data: one\n\n', 'data: two\n\n']
        const body = new ReadableStream({
          async pull(controller) {
            await new Promise((resolve) => setImmediate(resolve))
            const text = said.shift()
            if (text === undefined) controller.close()
            else controller.enqueue(new TextEncoder().encode(text))
          },
        })
        return new Response(body, { headers: { 'content-type': 'text/event-stream' } })
      },
    }),
  )
  platform = await TestPlatform.open({
    routes: functionRunRoutes({
      ...{ deployments, exchanges, logs: { append() {} } },
      bridge: new LazyMcpBridge({ clock, log: silentLogger }),
    }),
  })
  server = startServer({ app: platform.app, port: 0, log: platform.log })
})

afterAll(async () => {
  exchanges[Symbol.dispose]()
  await server.stop()
  for (const program of programs) await program.stop(true)
  await platform[Symbol.asyncDispose]()
})

afterEach(async () => {
  while (leases > 0) await new Promise((resolve) => setImmediate(resolve))
})

const ask = (path: string, init: RequestInit = {}) =>
  fetch(`${server.url}${path}`, {
    method: 'POST',
    ...init,
    headers: { authorization: `Bearer ${platform.adminKey}`, ...init.headers },
  })

test('a session stays with the instance it began in, and its server never sees where that is', async () => {
  for (const [index, id] of instanceIds.entries()) {
    next = index
    const began = await ask('/main/functions/tools/mcp')
    const session = began.headers.get('mcp-session-id')!
    expect(session).toBe(`${id}.of-${id}`)
    expect(await began.json()).toEqual({ id, session: null })
    next = 1 - index
    const went = await ask('/main/functions/tools/mcp', { headers: { 'mcp-session-id': session } })
    expect(await went.json()).toEqual({ id, session: `of-${id}` })
    expect(went.headers.get('mcp-session-id')).toBe(session)
  }
})

test('a session whose instance is gone, or is of another function, is not found', async () => {
  for (const [path, session] of [
    ['tools', 'instance0003.of-it'],
    ['others', 'instance0001.of-instance0001'],
  ]) {
    const answer = await ask(`/main/functions/${path}/mcp`, { headers: { 'mcp-session-id': session! } })
    expect(answer.status).toBe(404)
    expect(await answer.json()).toMatchObject({
      jsonrpc: '2.0',
      error: { message: expect.stringContaining('Session not found') },
    })
  }
})

test('a session that no answer named is for the server to say no to', async () => {
  next = 0
  const answer = await ask('/main/functions/tools/mcp', { headers: { 'mcp-session-id': 'my own' } })
  expect(await answer.json()).toEqual({ id: 'instance0001', session: 'my own' })
})

test('a stream that a client listens on keeps its instance awake by what is said on it', async () => {
  touches = 0
  const stream = await ask('/main/functions/tools/mcp', {
    method: 'GET',
    headers: { accept: 'text/event-stream', 'mcp-session-id': 'instance0001.of-instance0001' },
  })
  expect(await stream.text()).toBe('data: one\n\ndata: two\n\n')
  expect(touches).toBeGreaterThan(0)
})
