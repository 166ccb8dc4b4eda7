import { afterAll, afterEach, beforeAll, describe, expect, test } from 'bun:test'
import { createServer, type Socket as NetSocket } from 'node:net'
import { PlatformError } from '../../errors.ts'
import { eventually } from '../../lib/test-eventually.ts'
import type { RouteContext, Socket, SocketHandler } from '../route.ts'
import { splitUrl } from '../url.ts'
import { serveSandbox } from './sandbox/api.ts'
import { sandboxApi } from './test-machine.ts'
import { TestProgram } from './test-program.ts'

type Upgrade = NonNullable<RouteContext<unknown, unknown, unknown>['upgrade']>
interface Taken {
  handler: SocketHandler
  socket?: Socket
}

const program = new TestProgram()
let front: Bun.Server<Taken>
let base: string
/** What the platform's log gets of the last failure. */
let lastCause = ''

function upgradeOf(request: Request, server: Bun.Server<Taken>): Upgrade {
  return (handler, options) => {
    if (
      !server.upgrade(request, {
        data: { handler },
        ...(options?.headers ? { headers: options.headers } : {}),
      })
    ) {
      throw new Error('not a WebSocket request')
    }
    return undefined as unknown as Response
  }
}

beforeAll(() => {
  front = Bun.serve<Taken>({
    port: 0,
    hostname: '127.0.0.1',
    idleTimeout: 0,
    async fetch(request, server) {
      const { path, search } = splitUrl(request.url)
      try {
        return await serveSandbox(
          await program.machine.lease('main', 'box'),
          {
            request,
            path,
            search,
            publicOrigin: 'http://localhost:4400',
            publicPrefix: '/main/sandboxes/box',
            consumed: { headers: ['authorization'], query: ['token'] },
            upgrade: upgradeOf(request, server),
          },
          sandboxApi,
        )
      } catch (error) {
        if (!PlatformError.is(error)) throw error
        lastCause = String(error.cause)
        return new Response(error.message, { status: error.status })
      }
    },
    websocket: {
      open: (ws) => ws.data.handler.open(adapted(ws)),
      message: (ws, data) => ws.data.handler.message(adapted(ws), data),
      close: (ws, code, reason) => ws.data.handler.close(adapted(ws), code, reason),
      drain: (ws) => ws.data.handler.drain?.(adapted(ws)),
    },
  })
  base = `http://127.0.0.1:${front.port}/port/${program.port}`
})

function adapted(ws: Bun.ServerWebSocket<Taken>): Socket {
  ws.data.socket ??= { send: (data) => ws.send(data) > 0, close: (code, reason) => ws.close(code, reason) }
  return ws.data.socket
}

afterEach(() => program.reset())

afterAll(async () => {
  front.stop(true)
  await program.close()
})

const seen = async (headers: Record<string, string> = {}, path = '/') =>
  (await (await fetch(base + path, { headers, redirect: 'manual' })).json()) as Record<string, string>

describe('HTTP', () => {
  test('passes method, path and body on, and status, headers and body back, untouched', async () => {
    program.serve(
      async (request) =>
        new Response(`got ${await request.text()}`, { status: 418, headers: { 'x-app': 'yes' } }),
    )
    const answer = await fetch(`${base}/a%2Fb//c?q=1&token=key&x=%20`, { method: 'PATCH', body: 'hello' })
    expect([answer.status, answer.headers.get('x-app'), await answer.text()]).toEqual([
      418,
      'yes',
      'got hello',
    ])
    expect(program.calls).toEqual(['PATCH /a%2Fb//c?q=1&x=%20'])
    expect(program.machine.leases).toBe(0)
  })

  test('what was consumed or belongs to one connection is not forwarded, and who speaks is told', async () => {
    program.serve((request) => Response.json(Object.fromEntries(request.headers)))
    const headers = await seen({
      authorization: 'Bearer key',
      'x-blaxel-authorization': 'Bearer key',
      'x-blaxel-preview-token': 't',
      'x-forwarded-for': '6.6.6.6',
      'x-forwarded-host': 'evil',
      'proxy-authorization': 'Basic x',
      'x-mine': 'kept',
      cookie: 'a=1',
    })
    expect(headers).toMatchObject({
      host: 'localhost:3000',
      'x-forwarded-host': 'localhost:4400',
      'x-forwarded-proto': 'http',
      'x-forwarded-prefix': '/main/sandboxes/box/port/3000',
      'x-mine': 'kept',
      cookie: 'a=1',
    })
    for (const name of [
      'authorization',
      'x-blaxel-authorization',
      'x-blaxel-preview-token',
      'x-forwarded-for',
      'proxy-authorization',
    ]) {
      expect(headers[name]).toBeUndefined()
    }
  })

  test('a compressed body stays compressed', async () => {
    const packed = Bun.gzipSync(new TextEncoder().encode('hello'))
    program.serve(() => new Response(packed, { headers: { 'content-encoding': 'gzip' } }))
    const answer = await fetch(base, { decompress: false } as RequestInit)
    expect(answer.headers.get('content-encoding')).toBe('gzip')
    expect(Buffer.from(await answer.arrayBuffer()).equals(Buffer.from(packed))).toBe(true)
  })

  test('redirects and cookies lead back to where the client is', async () => {
    program.serve((_, path) => {
      const headers = new Headers({ location: path === '/abs' ? 'http://localhost:3000/next' : '/next' })
      headers.append('set-cookie', 'a=1; Path=/app; HttpOnly; Domain=localhost')
      headers.append('set-cookie', 'b=2')
      return new Response(null, { status: 302, headers })
    })
    const relative = await fetch(base, { redirect: 'manual' })
    expect(relative.headers.get('location')).toBe('/main/sandboxes/box/port/3000/next')
    expect(relative.headers.getSetCookie()).toEqual([
      'a=1; HttpOnly; Path=/main/sandboxes/box/port/3000/app',
      'b=2; Path=/main/sandboxes/box/port/3000/',
    ])
    const absolute = await fetch(`${base}/abs`, { redirect: 'manual' })
    expect(absolute.headers.get('location')).toBe('http://localhost:4400/main/sandboxes/box/port/3000/next')
  })

  test('an answer arrives as it is written, and a client that leaves ends it inside', async () => {
    const gate = Promise.withResolvers<void>()
    program.serve(
      () =>
        new Response(
          new ReadableStream({
            async start(controller) {
              controller.enqueue(new TextEncoder().encode('data: 1\n\n'))
              await gate.promise
              controller.enqueue(new TextEncoder().encode('data: 2\n\n'))
            },
            cancel: () => void program.cancelled++,
          }),
          { headers: { 'content-type': 'text/event-stream' } },
        ),
    )
    const client = new AbortController()
    const answer = await fetch(base, { signal: client.signal })
    const reader = answer.body!.getReader()
    expect(new TextDecoder().decode((await reader.read()).value)).toBe('data: 1\n\n')
    gate.resolve()
    expect(new TextDecoder().decode((await reader.read()).value)).toBe('data: 2\n\n')
    expect(program.machine.leases).toBe(1)
    client.abort()
    await eventually(() => program.cancelled === 1 && program.machine.leases === 0)
  })

  test('a large body passes both ways', async () => {
    program.serve((request) => new Response(request.body))
    const bytes = crypto.getRandomValues(new Uint8Array(60_000))
    const large = new Uint8Array(24_000_000)
    for (let at = 0; at < large.length; at += bytes.length) large.set(bytes, at)
    const answer = await fetch(base, { method: 'POST', body: large })
    expect(Buffer.from(await answer.arrayBuffer()).equals(Buffer.from(large))).toBe(true)
  })

  test("an answer with a status that there is not is the program's failure, not the platform's", async () => {
    const net = createServer((socket: NetSocket) => {
      socket.on('error', () => {})
      socket.on('data', () =>
        socket.end('HTTP/1.1 999 Own\r\nContent-Length: 0\r\nConnection: close\r\n\r\n'),
      )
    })
    await new Promise<void>((resolve) => net.listen(program.socketPath, resolve))
    const answer = await fetch(base)
    expect([answer.status, await answer.text()]).toEqual([502, expect.stringContaining('the status 999')])
    await new Promise((resolve) => net.close(resolve))
  })

  test('a connection that went stale is tried again for a GET, and never for a POST', async () => {
    let connections = 0
    const net = createServer((socket: NetSocket) => {
      connections++
      const first = connections === 1
      socket.on('error', () => {})
      socket.on('data', () => {
        if (first) return socket.destroy()
        socket.end('HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok')
      })
    })
    await new Promise<void>((resolve) => net.listen(program.socketPath, resolve))
    expect(await (await fetch(base)).text()).toBe('ok')
    connections = 0
    const posted = await fetch(base, { method: 'POST', body: 'x' })
    expect([posted.status, await posted.text()]).toEqual([
      502,
      expect.stringContaining('closed the connection before'),
    ])
    await new Promise((resolve) => net.close(resolve))
  })

  test('after a pause a POST does not go by a connection that the program may be about to close', async () => {
    // As one that was thawed does it: the next thing it says on an old connection is that it is over.
    const sockets: NetSocket[] = []
    const net = createServer((socket: NetSocket) => {
      let asked = false
      sockets.push(socket)
      socket.on('error', () => {})
      socket.on('data', () => {
        if (asked) return socket.destroy()
        asked = true
        socket.write('HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok')
      })
    })
    await new Promise<void>((resolve) => net.listen(program.socketPath, resolve))
    expect((await fetch(base)).status).toBe(200)
    await Bun.sleep(1100)
    expect((await fetch(base, { method: 'POST', body: 'x' })).status).toBe(200)
    for (const socket of sockets) socket.destroy()
    await new Promise((resolve) => net.close(resolve))
  })

  test('a port that nothing listens on is a clear 502', async () => {
    const answer = await fetch(base)
    expect([answer.status, await answer.text()]).toEqual([
      502,
      expect.stringContaining('nothing listens on port 3000'),
    ])
    expect(program.machine.leases).toBe(0)
  })
})

describe('WebSocket', () => {
  const open = async (path: string, protocols?: string[]) => {
    const socket = new WebSocket(`${base.replace('http', 'ws')}${path}`, protocols)
    socket.binaryType = 'arraybuffer'
    const messages: unknown[] = []
    const closed = Promise.withResolvers<{ code: number; reason: string }>()
    socket.addEventListener('message', ({ data }) => messages.push(data))
    socket.addEventListener('close', ({ code, reason }) => closed.resolve({ code, reason }))
    socket.addEventListener('error', () => {})
    return { socket, messages, closed: closed.promise }
  }

  test('carries text and bytes both ways, in order, from the first message on', async () => {
    program.serve(() => new Response())
    const { socket, messages } = await open('/chat:room?x=1')
    await eventually(() => messages.length === 1)
    expect(messages).toEqual(['welcome'])
    expect(program.calls).toEqual(['GET /chat:room?x=1'])
    socket.send('hello')
    socket.send(new Uint8Array([1, 2, 3]))
    socket.send('x'.repeat(500_000))
    await eventually(() => messages.length === 4)
    expect(messages[1]).toBe('hello')
    expect([...new Uint8Array(messages[2] as ArrayBuffer)]).toEqual([1, 2, 3])
    expect((messages[3] as string).length).toBe(500_000)
    socket.close()
    await eventually(() => program.cancelled === 1 && program.machine.leases === 0)
  })

  test('the program chooses the subprotocol and the close code', async () => {
    program.serve(() => new Response())
    const { socket, messages, closed } = await open('/', ['first', 'second'])
    await eventually(() => messages.length === 1)
    expect(socket.protocol).toBe('second')
    socket.send('close')
    expect(await closed).toEqual({ code: 4001, reason: 'as you wish' })
    await eventually(() => program.machine.leases === 0)
  })

  test('a refusal inside, or nobody there, is a 502 before the upgrade', async () => {
    const headers = {
      connection: 'Upgrade',
      upgrade: 'websocket',
      'sec-websocket-version': '13',
      'sec-websocket-key': 'dGhlIHNhbXBsZSBub25jZQ==',
    }
    const nobody = await fetch(base, { headers })
    expect([nobody.status, await nobody.text()]).toEqual([502, expect.stringContaining('nothing listens')])
    program.serve(() => new Response())
    const refused = await fetch(`${base}/refuse?session=hunter2`, { headers })
    expect([refused.status, await refused.text()]).toEqual([
      502,
      expect.stringContaining('did not accept the WebSocket'),
    ])
    expect(lastCause).toContain('403')
    expect(lastCause).not.toContain('hunter2')
    expect(program.machine.leases).toBe(0)
  })
})
