import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'bun:test'
import { mkdtempSync, openSync, rmSync } from 'node:fs'
import { createServer, type Socket as NetSocket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { PlatformError } from '../../errors.ts'
import { eventually } from '../../lib/test-eventually.ts'
import type { RouteContext, Socket, SocketHandler } from '../route.ts'
import { splitUrl } from '../url.ts'
import { PreviewGateway } from './previews.ts'
import { serveSandbox } from './sandbox/api.ts'
import { HostMachine, sandboxApi } from './test-machine.ts'
import type { Visit } from './visited.ts'

type Upgrade = NonNullable<RouteContext<unknown, unknown, unknown>['upgrade']>
interface Taken {
  handler: SocketHandler
  socket?: Socket
}

/** Somebody who may be here until a test says that they may not. */
class TestVisit implements Visit {
  failure: PlatformError | null = null
  ended = false
  readonly #told: ((failure: Error) => void)[] = []
  onOver(told: (failure: Error) => void): void {
    this.#told.push(told)
  }
  cut(): void {
    const failure = new PlatformError('authentication_failed', 'it is over')
    this.failure = failure
    for (const told of this.#told) told(failure)
  }
  end(): void {
    this.ended = true
  }
}

const port = 3000
let dir: string
let machine: HostMachine
let front: Bun.Server<Taken>
let base: string
let app: Bun.Server<undefined> | null = null
let appCalls: string[] = []
let appCancelled = 0
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
  dir = mkdtempSync(join(tmpdir(), 'hutch-proxy-'))
  machine = new HostMachine(dir)
  // As the namespace runtime has it: a path through an open directory, whose length does not matter.
  machine.sockets.set(port, `/proc/self/fd/${openSync(dir, 'r')}/app`)
  front = Bun.serve<Taken>({
    port: 0,
    hostname: '127.0.0.1',
    idleTimeout: 0,
    async fetch(request, server) {
      const { path, search } = splitUrl(request.url)
      try {
        return await serveSandbox(
          await machine.lease('main', 'box'),
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
  base = `http://127.0.0.1:${front.port}/port/${port}`
})

function adapted(ws: Bun.ServerWebSocket<Taken>): Socket {
  ws.data.socket ??= { send: (data) => ws.send(data) > 0, close: (code, reason) => ws.close(code, reason) }
  return ws.data.socket
}

beforeEach(() => {
  appCalls = []
  appCancelled = 0
})

afterEach(() => {
  app?.stop(true)
  app = null
  rmSync(join(dir, 'app'), { force: true })
})

afterAll(async () => {
  front.stop(true)
  await machine.close()
  rmSync(dir, { recursive: true, force: true })
})

function serve(handle: (request: Request, path: string) => Response | Promise<Response>): void {
  app = Bun.serve({
    unix: join(dir, 'app'),
    fetch(request, server) {
      const { path, search } = splitUrl(request.url)
      appCalls.push(`${request.method} ${path}${search}`)
      if (request.headers.get('upgrade')) {
        if (path === '/refuse') return new Response('no', { status: 403 })
        const headers = { 'sec-websocket-protocol': 'second' }
        if (server.upgrade(request, request.headers.has('sec-websocket-protocol') ? { headers } : {}))
          return undefined
      }
      return handle(request, path)
    },
    websocket: {
      open: (ws) => void ws.send('welcome'),
      message(ws, data) {
        if (data === 'close') ws.close(4001, 'as you wish')
        else ws.send(data)
      },
      close: () => void appCancelled++,
    },
  })
}

const seen = async (headers: Record<string, string> = {}, path = '/') =>
  (await (await fetch(base + path, { headers, redirect: 'manual' })).json()) as Record<string, string>

describe('HTTP', () => {
  test('passes method, path and body on, and status, headers and body back, untouched', async () => {
    serve(
      async (request) =>
        new Response(`got ${await request.text()}`, { status: 418, headers: { 'x-app': 'yes' } }),
    )
    const answer = await fetch(`${base}/a%2Fb//c?q=1&token=key&x=%20`, { method: 'PATCH', body: 'hello' })
    expect([answer.status, answer.headers.get('x-app'), await answer.text()]).toEqual([
      418,
      'yes',
      'got hello',
    ])
    expect(appCalls).toEqual(['PATCH /a%2Fb//c?q=1&x=%20'])
    expect(machine.leases).toBe(0)
  })

  test('what was consumed or belongs to one connection is not forwarded, and who speaks is told', async () => {
    serve((request) => Response.json(Object.fromEntries(request.headers)))
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
    serve(() => new Response(packed, { headers: { 'content-encoding': 'gzip' } }))
    const answer = await fetch(base, { decompress: false } as RequestInit)
    expect(answer.headers.get('content-encoding')).toBe('gzip')
    expect(Buffer.from(await answer.arrayBuffer()).equals(Buffer.from(packed))).toBe(true)
  })

  test('redirects and cookies lead back to where the client is', async () => {
    serve((_, path) => {
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
    serve(
      () =>
        new Response(
          new ReadableStream({
            async start(controller) {
              controller.enqueue(new TextEncoder().encode('data: 1\n\n'))
              await gate.promise
              controller.enqueue(new TextEncoder().encode('data: 2\n\n'))
            },
            cancel: () => void appCancelled++,
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
    expect(machine.leases).toBe(1)
    client.abort()
    await eventually(() => appCancelled === 1 && machine.leases === 0)
  })

  test('a large body passes both ways', async () => {
    serve((request) => new Response(request.body))
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
    await new Promise<void>((resolve) => net.listen(join(dir, 'app'), resolve))
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
    await new Promise<void>((resolve) => net.listen(join(dir, 'app'), resolve))
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
    await new Promise<void>((resolve) => net.listen(join(dir, 'app'), resolve))
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
    expect(machine.leases).toBe(0)
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
    serve(() => new Response())
    const { socket, messages } = await open('/chat:room?x=1')
    await eventually(() => messages.length === 1)
    expect(messages).toEqual(['welcome'])
    expect(appCalls).toEqual(['GET /chat:room?x=1'])
    socket.send('hello')
    socket.send(new Uint8Array([1, 2, 3]))
    socket.send('x'.repeat(500_000))
    await eventually(() => messages.length === 4)
    expect(messages[1]).toBe('hello')
    expect([...new Uint8Array(messages[2] as ArrayBuffer)]).toEqual([1, 2, 3])
    expect((messages[3] as string).length).toBe(500_000)
    socket.close()
    await eventually(() => appCancelled === 1 && machine.leases === 0)
  })

  test('the program chooses the subprotocol and the close code', async () => {
    serve(() => new Response())
    const { socket, messages, closed } = await open('/', ['first', 'second'])
    await eventually(() => messages.length === 1)
    expect(socket.protocol).toBe('second')
    socket.send('close')
    expect(await closed).toEqual({ code: 4001, reason: 'as you wish' })
    await eventually(() => machine.leases === 0)
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
    serve(() => new Response())
    const refused = await fetch(`${base}/refuse?session=hunter2`, { headers })
    expect([refused.status, await refused.text()]).toEqual([
      502,
      expect.stringContaining('did not accept the WebSocket'),
    ])
    expect(lastCause).toContain('403')
    expect(lastCause).not.toContain('hunter2')
    expect(machine.leases).toBe(0)
  })
})

describe('previews', () => {
  const previewOf = (changes: object) => ({
    id: 'abc',
    workspace: 'main',
    sandbox: 'box',
    name: 'p',
    port,
    public: true,
    requestHeaders: { 'x-added': 'in' },
    responseHeaders: { 'access-control-allow-origin': 'https://app.example', 'x-added': 'out' },
    ...changes,
  })
  let preview: ReturnType<typeof previewOf>
  let visit = new TestVisit()
  /** Why there is no sandbox. */
  let away: PlatformError | null = null
  const gateway = () =>
    new PreviewGateway({
      previews: {
        resolve: async (label) => (label === 'abc' ? preview : null),
        resolveHost: async (host) => (host === 'shop.example.com' ? preview : null),
        admits: async (target, token) => target.public || token === 'right',
        visit: () => visit,
      },
      sandboxes: {
        acquire: async (workspace, name) => {
          if (away) throw away
          return await machine.lease(workspace, name)
        },
      },
      domains: ['localhost'],
      api: sandboxApi,
      log: { debug() {}, info() {}, warn() {}, error() {} },
    })
  const ask = (path: string, init: RequestInit = {}, host = 'abc.preview.localhost') =>
    gateway().serveHost(new Request(`http://${host}:4400${path}`, init), host, {
      origin: 'http://localhost:4400',
      consumed: {
        headers: ['x-blaxel-authorization', 'x-blaxel-preview-token'],
        query: ['bl_preview_token'],
      },
      upgrade: null,
      sendFile: null,
    })

  beforeEach(() => {
    preview = previewOf({})
    visit = new TestVisit()
  })

  test('a visit lasts as long as its exchange, and what waits or streams is ended with it', async () => {
    const asked = Promise.withResolvers<void>()
    serve(async ({ url }) => {
      if (url.endsWith('/stream')) return new Response(new ReadableStream({ pull: (c) => c.enqueue('on') }))
      if (url.endsWith('/quick')) return new Response('ok')
      asked.resolve()
      return await new Promise<Response>(() => {})
    })
    expect(await (await ask('/quick'))!.text()).toBe('ok')
    expect(visit.ended).toBe(true)
    visit = new TestVisit()
    const waiting = ask('/long', { method: 'POST', body: 'x' })
    await asked.promise
    expect(visit.ended).toBe(false)
    visit.cut()
    expect((await waiting)!.status).toBe(401)
    expect(visit.ended).toBe(true)
    visit = new TestVisit()
    const reader = (await ask('/stream'))!.body!.getReader()
    await reader.read()
    visit.cut()
    const rest = async () => {
      while (!(await reader.read()).done) {}
    }
    expect(await rest().catch(() => 'cut off')).toBe('cut off')
    expect(visit.ended).toBe(true)
    expect(machine.leases).toBe(0)
  })

  test('a public one serves its port to anyone, at its own origin, with the headers of its owner', async () => {
    serve((request) =>
      Response.json(Object.fromEntries(request.headers), { headers: { 'set-cookie': 'a=1; Path=/x' } }),
    )
    const answer = (await ask('/page?token=mine', { headers: { authorization: 'Bearer app' } }))!
    expect(appCalls).toEqual(['GET /page?token=mine'])
    expect(answer.headers.get('access-control-allow-origin')).toBe('https://app.example')
    expect(answer.headers.get('set-cookie')).toBe('a=1; Path=/x')
    expect(await answer.json()).toMatchObject({
      host: 'abc.preview.localhost:4400',
      authorization: 'Bearer app',
      'x-added': 'in',
    })
  })

  test('OPTIONS carries the headers, too', async () => {
    serve(() => new Response(null, { status: 204 }))
    const answer = (await ask('/', { method: 'OPTIONS' }))!
    expect([answer.status, answer.headers.get('x-added')]).toEqual([204, 'out'])
  })

  test('a private one needs a token, in any of three places, and keeps it to itself', async () => {
    preview = previewOf({ public: false })
    serve((request) => new Response(JSON.stringify(Object.fromEntries(request.headers))))
    const refused = (await ask('/'))!
    expect([refused.status, refused.headers.get('x-added')]).toEqual([401, 'out'])
    expect(await refused.json()).toMatchObject({ error: { code: 'AUTHENTICATION_REQUIRED', status: 401 } })
    expect((await ask('/?bl_preview_token=wrong'))!.status).toBe(401)
    expect(appCalls).toEqual([])
    const byHeader = (await ask('/h', { headers: { 'x-blaxel-preview-token': 'right' } }))!
    expect(await byHeader.text()).not.toContain('right')
    expect((await ask('/q?a=1&bl_preview_token=right'))!.status).toBe(200)
    expect((await ask('/t?token=right&b=2'))!.status).toBe(200)
    expect(appCalls).toEqual(['GET /h', 'GET /q?a=1', 'GET /t?b=2'])
    const preflight = (await ask('/', { method: 'OPTIONS', headers: { origin: 'https://app.example' } }))!
    expect([preflight.status, preflight.headers.get('access-control-allow-origin')]).toEqual([
      204,
      'https://app.example',
    ])
    expect(appCalls).toHaveLength(3)
  })

  test('a token of the program by the name of ours reaches it, where another opens the preview', async () => {
    preview = previewOf({ public: false })
    serve(() => new Response('ok'))
    const headers = { 'x-blaxel-preview-token': 'right' }
    expect((await ask('/hmr?token=program', { headers }))!.status).toBe(200)
    expect((await ask('/hmr?token=program'))!.status).toBe(401)
    expect(appCalls).toEqual(['GET /hmr?token=program'])
  })

  test('a browser that opened a private one keeps the token, and the program never sees it', async () => {
    preview = previewOf({ public: false })
    serve((request) =>
      Response.json({ cookie: request.headers.get('cookie') }, { headers: { 'set-cookie': 'a=1' } }),
    )
    const page = (await ask('/?bl_preview_token=right', { headers: { 'sec-fetch-dest': 'document' } }))!
    expect(page.headers.getSetCookie()).toEqual([
      'a=1',
      'hutch_preview_token=right; Path=/; HttpOnly; SameSite=None; Secure; Partitioned',
    ])
    const cookie = 'a=1; hutch_preview_token=right; b=2'
    expect(await (await ask('/app.js', { headers: { cookie } }))!.json()).toEqual({ cookie: 'a=1; b=2' })
    const alone = { cookie: 'hutch_preview_token=right' }
    expect(await (await ask('/app.js', { headers: alone }))!.json()).toEqual({ cookie: null })
    const own = { ...alone, origin: 'http://abc.preview.localhost:4400' }
    expect((await ask('/', { method: 'POST', headers: own }))!.status).toBe(200)
    const foreign = { ...alone, origin: 'https://elsewhere.example' }
    expect((await ask('/', { method: 'POST', headers: foreign }))!.status).toBe(401)
    const script = (await ask('/?bl_preview_token=right', { headers: { 'sec-fetch-dest': 'empty' } }))!
    expect(script.headers.getSetCookie()).toEqual(['a=1'])
  })

  test('a cookie that another host gave the browser does not shut the visitor out', async () => {
    preview = previewOf({ public: false })
    serve((request) => Response.json({ cookie: request.headers.get('cookie') }))
    const cookie = 'hutch_preview_token=planted; hutch_preview_token=right'
    expect(await (await ask('/app.js', { headers: { cookie } }))!.json()).toEqual({ cookie: null })
  })

  test('a page of elsewhere may lead a visitor there, and run nothing from there as its own', async () => {
    preview = previewOf({ public: false })
    serve(() => new Response('secret()'))
    const status = async (site: string, mode: string) => {
      const headers = {
        cookie: 'hutch_preview_token=right',
        'sec-fetch-site': site,
        'sec-fetch-mode': mode,
      }
      return (await ask('/app.js', { headers }))!.status
    }
    expect(await status('same-origin', 'no-cors')).toBe(200)
    expect(await status('none', 'navigate')).toBe(200)
    expect(await status('cross-site', 'navigate')).toBe(200)
    expect(await status('cross-site', 'no-cors')).toBe(401)
    expect(await status('same-site', 'no-cors')).toBe(401)
  })

  test('where a visitor comes from is told without the token', async () => {
    preview = previewOf({ public: false })
    serve((request) => Response.json({ referer: request.headers.get('referer') }))
    const from = async (referer: string) => {
      const headers = { 'x-blaxel-preview-token': 'right', referer }
      return ((await (await ask('/app.js', { headers }))!.json()) as { referer: string }).referer
    }
    expect(await from('http://x/?a=1&bl_preview_token=right')).toBe('http://x/?a=1')
    expect(await from('http://x/?token=right')).toBe('http://x/')
    expect(await from('http://x/?token=of-the-program')).toBe('http://x/?token=of-the-program')
    expect(await from('http://x/')).toBe('http://x/')
  })

  test('where the origin is shared there is no cookie', async () => {
    preview = previewOf({ public: false })
    serve(() => new Response('ok'))
    const [route] = gateway().routes()
    const at = (path: string, headers: Record<string, string>) =>
      route!.handle({
        request: new Request(`http://localhost:4400/-/preview/abc${path}`, { headers }),
        origin: 'http://localhost:4400',
        consumed: { headers: [], query: [] },
        upgrade: null,
        sendFile: null,
      } as never) as Promise<Response>
    const page = await at('/?bl_preview_token=right', { accept: 'text/html' })
    expect([page.status, page.headers.getSetCookie()]).toEqual([200, []])
    expect((await at('/', { cookie: 'hutch_preview_token=right' })).status).toBe(401)
  })

  test('a custom domain is a preview host, too, and other names are nobody of ours', async () => {
    serve((request) => new Response(request.headers.get('host')))
    const answer = (await ask('/x', {}, 'shop.example.com'))!
    expect([answer.status, await answer.text()]).toEqual([200, 'shop.example.com:4400'])
    expect(await ask('/x', {}, 'other.example.com')).toBeNull()
  })

  test('before its server is up a browser gets a page that looks again, a program the reason', async () => {
    const page = (await ask('/', { headers: { accept: 'text/html' } }))!
    expect([page.status, page.headers.get('content-type')]).toEqual([502, 'text/html; charset=utf-8'])
    expect(page.headers.get('x-added')).toBe('out')
    const text = await page.text()
    expect(text).toContain('http-equiv="refresh"')
    expect(text).toContain('Waiting for port 3000')
    const reason = (await ask('/'))!
    expect(await reason.json()).toMatchObject({
      error: { message: expect.stringContaining('nothing listens on port 3000') },
    })
    expect(machine.leases).toBe(0)
  })

  test('a browser is told in words what else may be wrong', async () => {
    const headers = { accept: 'text/html,*/*' }
    preview = previewOf({ public: false })
    const refused = (await ask('/', { headers }))!
    expect([refused.status, await refused.text()]).toEqual([
      401,
      expect.stringContaining('This preview is private'),
    ])
    const wrong = (await ask('/?bl_preview_token=wrong', { headers }))!
    expect([wrong.status, await wrong.text()]).toEqual([
      401,
      expect.stringContaining('wrong, was deleted or has expired'),
    ])
    const gone = (await ask('/', { headers }, 'gone.preview.localhost'))!
    expect([gone.status, await gone.text()]).toEqual([404, expect.stringContaining('No such preview')])
  })

  test('a page looks again for a sandbox that does not run, and not for one that somebody has to unarchive', async () => {
    const headers = { accept: 'text/html' }
    preview = previewOf({})
    try {
      away = new PlatformError('workload_unavailable', 'its status is DEPLOYING')
      const starting = await (await ask('/', { headers }))!.text()
      expect(starting).toContain('The sandbox does not run')
      expect(starting).toContain('http-equiv="refresh"')
      const advice = { action: 'Unarchive the sandbox.', doNot: 'Retry before it is unarchived.' }
      away = new PlatformError('workload_unavailable', 'its status is ARCHIVED', { advice })
      const archived = await (await ask('/', { headers }))!.text()
      expect(archived).toContain('The sandbox is archived')
      expect(archived).not.toContain('http-equiv="refresh"')
    } finally {
      away = null
    }
  })

  test('a session is the API of the sandbox', async () => {
    preview = previewOf({ port: 443, public: false })
    const answer = (await ask('/health', { headers: { 'x-blaxel-preview-token': 'right' } }))!
    expect(await answer.json()).toMatchObject({ status: 'ok' })
    expect((await ask('/health'))!.status).toBe(401)
  })

  test('other hosts are not its business, and a preview that is not there is no route', async () => {
    expect(await ask('/', {}, 'localhost')).toBeNull()
    await expect(ask('/', {}, 'gone.preview.localhost')!).rejects.toMatchObject({ code: 'route_not_found' })
  })
})
