import { afterAll, beforeAll, describe, expect, test } from 'bun:test'
import type { SandboxInstance } from '@blaxel/core'
import { HurriedClock } from './lib/test-clock.ts'
import { eventually } from './lib/test-eventually.ts'
import { unusedPorts } from './lib/test-ports.ts'
import { temporaryDataDir } from './platform.ts'
import { openTestClient, type TestClient } from './test-client.ts'

/** Every method of `sandbox.previews`, their tokens and `sandbox.sessions`, through the unmodified client. */

let client: TestClient
let sandbox: SandboxInstance
const port = unusedPorts(2)
const clock = new HurriedClock()
const hourMs = 3_600_000
const inAnHour = () => new Date(clock.now() + hourMs)

beforeAll(async () => {
  client = await openTestClient({ dataDir: temporaryDataDir, runtime: 'process', clock, imageSource: 'live' })
  sandbox = await client.SandboxInstance.create({ name: 'previews' })
  const server = `
    Bun.serve({ port: ${port}, hostname: '127.0.0.1', idleTimeout: 0,
      fetch(request, server) {
        const { pathname, searchParams } = new URL(request.url)
        if (pathname === '/hmr') return server.upgrade(request, { headers: { 'sec-websocket-protocol': 'vite-hmr' } })
          ? undefined : new Response('no', { status: 400 })
        if (pathname === '/events') return new Response(new ReadableStream({ type: 'direct', async pull(stream) {
          for (let n = 1; ; n++) { stream.write('data: ' + n + '\\n\\n'); await stream.flush(); await Bun.sleep(20) }
        } }), { headers: { 'content-type': 'text/event-stream' } })
        if (pathname === '/untyped') return new Response(new ReadableStream({ start(stream) {
          stream.enqueue(new TextEncoder().encode('<h1>x</h1>')); stream.close() } }), { headers: { 'content-length': '10' } })
        return Response.json({ url: request.url, headers: Object.fromEntries(request.headers) })
      },
      websocket: { message: (socket, data) => void socket.send('echo ' + data) } })`
  await sandbox.process.exec({
    command: `exec ${process.execPath} -e "$PROGRAM"`,
    env: { PROGRAM: server },
    name: 'server',
    waitForPorts: [port],
  })
}, 120_000)

afterAll(() => client?.[Symbol.asyncDispose](), 120_000)

/** As a browser that resolves the name would. */
function visit(url: string, path = '', init: RequestInit = {}): Promise<Response> {
  const { host } = new URL(url)
  return fetch(`${client.url}${path || '/'}`, { ...init, headers: { host, ...(init.headers as object) } })
}

describe('previews', () => {
  test('are created, found, listed, replaced and deleted', async () => {
    const created = await sandbox.previews.create({ metadata: { name: 'app' }, spec: { port, public: true } })
    expect(created.name).toBe('app')
    expect(created.metadata).toMatchObject({ name: 'app', resourceName: 'previews', resourceType: 'sandbox' })
    expect(created.spec).toMatchObject({ port, public: true })
    const url = created.spec.url ?? ''
    expect(url).toMatch(/^http:\/\/[a-z0-9]{16}\.preview\.localhost:\d+$/)
    expect(await (await visit(url, '/a?b=1')).json()).toMatchObject({ url: `${url}/a?b=1` })

    expect((await sandbox.previews.get('app')).spec.url).toBe(url)
    expect((await sandbox.previews.list()).map(({ name }) => name)).toContain('app')
    const again = { metadata: { name: 'app' }, spec: { port: port + 1, public: true } }
    await expect(sandbox.previews.create(again)).rejects.toMatchObject({ code: 409 })
    expect((await sandbox.previews.createIfNotExists(again)).spec.port).toBe(port)
    expect((await sandbox.previews.create(again, true)).spec).toMatchObject({ port: port + 1, url })
    expect((await visit(url)).status).toBe(502)

    await sandbox.previews.delete('app')
    await expect(sandbox.previews.get('app')).rejects.toMatchObject({ code: 404 })
    expect((await visit(url)).status).toBe(404)
    const fresh = await sandbox.previews.createIfNotExists({
      metadata: { name: 'app' },
      spec: { port, public: true },
    })
    expect(fresh.spec.url).toBe(url)
    expect((await visit(url)).status).toBe(200)
  })

  test('an answer without a type stays without one: a browser looks what it is instead of downloading it', async () => {
    const { spec } = await sandbox.previews.create({
      metadata: { name: 'untyped' },
      spec: { port, public: true },
    })
    const label = new URL(spec.url ?? '').host.split('.')[0]
    const { workspace } = client.platform.credentials
    const answers = await Promise.all([
      visit(spec.url ?? '', '/untyped'),
      fetch(`${client.url}/-/preview/${label}/untyped`),
      client.request(`/${workspace}/sandboxes/previews/port/${port}/untyped`),
    ])
    for (const answer of answers) {
      expect(await answer.text()).toBe('<h1>x</h1>')
      expect(answer.headers.get('content-type')).toBeNull()
      expect(answer.headers.get('x-content-type-options')).toBeNull()
      expect(answer.headers.get('content-length')).toBe('10')
    }
  })

  test('a prefix stands in the address, with the workspace', async () => {
    const { spec } = await sandbox.previews.create({
      metadata: { name: 'prefixed' },
      spec: { port, public: true, prefixUrl: 'my-shop' },
    })
    const { workspace } = client.platform.credentials
    expect(spec.url).toMatch(new RegExp(`^http://my-shop-${workspace}-[a-z0-9]{16}\\.preview\\.localhost:`))
    expect((await visit(spec.url ?? '')).status).toBe(200)
  })

  test('a custom domain is answered by its Host, from the moment it is there until it is not', async () => {
    const address = `http://shop.example.com:${new URL(client.url).port}`
    expect((await visit(address)).status).toBe(421)
    const { spec } = await sandbox.previews.create({
      metadata: { name: 'domain' },
      spec: { port, public: true, customDomain: 'Shop.example.com' },
    })
    expect(spec).toMatchObject({ customDomain: 'shop.example.com', url: address })
    const seen = (await (await visit(address, '/x')).json()) as { headers: Record<string, string> }
    expect(seen.headers.host).toBe(new URL(address).host)
    await sandbox.previews.delete('domain')
    expect((await visit(address)).status).toBe(421)
  })

  test('headers are added on the way in and on the way out, to preflights, too', async () => {
    const { spec } = await sandbox.previews.create({
      metadata: { name: 'headers' },
      spec: {
        port,
        public: true,
        requestHeaders: { Authorization: 'Bearer inside' },
        responseHeaders: { 'Access-Control-Allow-Origin': 'https://app.example', Vary: 'Origin' },
      },
    })
    const url = spec.url ?? ''
    const answer = await visit(url)
    expect(answer.headers.get('access-control-allow-origin')).toBe('https://app.example')
    expect(await answer.json()).toMatchObject({ headers: { authorization: 'Bearer inside' } })
    const preflight = await visit(url, '/', { method: 'OPTIONS', headers: { origin: 'https://app.example' } })
    expect(preflight.headers.get('access-control-allow-origin')).toBe('https://app.example')
  })

  test('one that expires answers nobody any more, and is gone', async () => {
    const { spec } = await sandbox.previews.create({
      metadata: { name: 'short' },
      spec: { port, public: true, expires: inAnHour().toISOString() },
    })
    expect((await visit(spec.url ?? '')).status).toBe(200)
    clock.advance(hourMs)
    await eventually('it expired', async () => (await visit(spec.url ?? '')).status === 404)
    await expect(sandbox.previews.get('short')).rejects.toMatchObject({ code: 404 })
  })

  test('reserved ports are refused, by name', async () => {
    for (const reserved of [80, 8080]) {
      const refused = sandbox.previews.create({
        metadata: { name: 'no' },
        spec: { port: reserved, public: true },
      })
      await expect(refused).rejects.toMatchObject({
        code: 400,
        message: expect.stringContaining('spec.port'),
      })
    }
  })
})

describe('tokens', () => {
  test('open a private preview by header and by query, and are deleted by their value', async () => {
    const preview = await sandbox.previews.create({
      metadata: { name: 'closed' },
      spec: { port, public: false },
    })
    const url = preview.spec.url ?? ''
    const refused = await visit(url)
    expect(refused.status).toBe(401)
    expect(await refused.json()).toMatchObject({
      error: { action: expect.stringMatching(/X-Blaxel-Preview-Token.*bl_preview_token/) },
    })
    const expiresAt = inAnHour()
    const token = await preview.tokens.create(expiresAt)
    expect(token.value).toMatch(/^[A-Za-z0-9_-]+$/)
    expect([token.expired, new Date(token.expiresAt).getTime()]).toEqual([false, expiresAt.getTime()])
    const seen = await (await visit(url, `/q?bl_preview_token=${token.value}&a=1`)).json()
    expect(seen).toMatchObject({ url: `${url}/q?a=1` })
    expect(JSON.stringify(seen)).not.toContain(token.value)
    expect((await visit(url, '/', { headers: { 'x-blaxel-preview-token': token.value } })).status).toBe(200)
    expect((await preview.tokens.list()).map(({ value }) => value)).toEqual([token.value])
    await preview.tokens.delete(token.value)
    expect((await visit(url, `/?bl_preview_token=${token.value}`)).status).toBe(401)
    expect(await preview.tokens.list()).toEqual([])
  })

  test('made, and deleted, many at once are each there, and gone', async () => {
    const preview = await sandbox.previews.create({
      metadata: { name: 'many' },
      spec: { port, public: false },
    })
    const values = async () => (await preview.tokens.list()).map(({ value }) => value).sort()
    const made = await Promise.all(Array.from({ length: 40 }, () => preview.tokens.create(inAnHour())))
    expect(await values()).toEqual(made.map(({ value }) => value).sort())
    await Promise.all(made.slice(1).map(({ value }) => preview.tokens.delete(value)))
    expect(await values()).toEqual([made[0]?.value ?? ''])
  })

  test('end at their time', async () => {
    const preview = await sandbox.previews.create({
      metadata: { name: 'ending' },
      spec: { port, public: false },
    })
    const token = await preview.tokens.create(inAnHour())
    const status = async () =>
      (await visit(preview.spec.url ?? '', `/?bl_preview_token=${token.value}`)).status
    expect(await status()).toBe(200)
    clock.advance(hourMs)
    await eventually('it expired', async () => (await status()) === 401)
    expect((await preview.tokens.list()).map(({ expired }) => expired)).toEqual([true])
  })
})

describe('what stays open', () => {
  test('a socket of a hot-reload server, with its subprotocol and its own token, behind a private preview', async () => {
    const preview = await sandbox.previews.create({
      metadata: { name: 'sockets' },
      spec: { port, public: false },
    })
    const { value } = await preview.tokens.create(inAnHour())
    const url = preview.spec.url ?? ''
    const page = await visit(url, `/?bl_preview_token=${value}`, {
      headers: { 'sec-fetch-dest': 'document' },
    })
    const cookie = (page.headers.get('set-cookie') ?? '').split(';', 1)[0] ?? ''
    const { host } = new URL(url)
    const open = (headers: Record<string, string>) =>
      new Promise<string>((resolve) => {
        const Client = WebSocket as unknown as new (url: string, init: object) => WebSocket
        const socket = new Client(`${client.url.replace('http', 'ws')}/hmr?token=of-the-server`, {
          headers: { host, ...headers },
          protocols: ['vite-hmr'],
        })
        socket.addEventListener('open', () => socket.send('ping'))
        socket.addEventListener('message', ({ data }) => resolve(`${socket.protocol} ${data}`))
        socket.addEventListener('error', () => resolve('refused'))
      })
    expect(await open({ cookie, origin: url })).toBe('vite-hmr echo ping')
    expect(await open({ cookie, origin: 'https://elsewhere.example' })).toBe('refused')
    expect(await open({})).toBe('refused')
  })

  test('server-sent events come as they are written', async () => {
    const preview = await sandbox.previews.create({
      metadata: { name: 'events' },
      spec: { port, public: true },
    })
    const stop = new AbortController()
    const answer = await visit(preview.spec.url ?? '', '/events', { signal: stop.signal })
    let text = ''
    const decoder = new TextDecoder()
    for await (const chunk of answer.body as unknown as AsyncIterable<Uint8Array>) {
      text += decoder.decode(chunk)
      if (text.includes('data: 3\n\n')) break
    }
    stop.abort()
    expect(text).toStartWith('data: 1\n\ndata: 2\n\ndata: 3\n\n')
  })
})

describe('what is open ends with what opened it', () => {
  /** A WebSocket and a stream that were heard of, and how they end. */
  const openBoth = async (url: string, token: string | null) => {
    const { host } = new URL(url)
    const headers: Record<string, string> = token === null ? {} : { 'x-blaxel-preview-token': token }
    const Client = WebSocket as unknown as new (url: string, init: object) => WebSocket
    const socket = new Client(`${client.url.replace('http', 'ws')}/hmr`, {
      headers: { host, ...headers },
      protocols: ['vite-hmr'],
    })
    const heard = Promise.withResolvers<void>()
    const closed = Promise.withResolvers<string>()
    socket.addEventListener('open', () => socket.send('ping'))
    socket.addEventListener('message', () => heard.resolve())
    socket.addEventListener('close', ({ code, reason }) => closed.resolve(`${code} ${reason}`))
    const stream = await visit(url, '/events', { headers })
    const reader = stream.body!.getReader()
    await Promise.all([heard.promise, reader.read()])
    const ended = (async () => {
      try {
        while (!(await reader.read()).done) {}
        return 'ended'
      } catch {
        return 'cut off'
      }
    })()
    return { closed: closed.promise, ended, isOpen: () => socket.readyState === WebSocket.OPEN }
  }
  const over = '1008 the preview, or the token that opened it, is over'

  test('a preview that is deleted, whoever is there', async () => {
    const preview = await sandbox.previews.create({
      metadata: { name: 'closing-time' },
      spec: { port, public: true },
    })
    const other = await sandbox.previews.create({
      metadata: { name: 'staying' },
      spec: { port, public: true },
    })
    const [ending, staying] = [
      await openBoth(preview.spec.url ?? '', null),
      await openBoth(other.spec.url ?? '', null),
    ]
    await sandbox.previews.delete('closing-time')
    expect(await ending.closed).toBe(over)
    expect(await ending.ended).toBe('cut off')
    expect(staying.isOpen()).toBe(true)
    await sandbox.previews.delete('staying')
    expect(await staying.closed).toBe(over)
  })

  test('a token that is deleted, for who came by it; and who came without one, once one is needed', async () => {
    const preview = await sandbox.previews.create({
      metadata: { name: 'guarded' },
      spec: { port, public: false },
    })
    const tokens = [await preview.tokens.create(inAnHour()), await preview.tokens.create(inAnHour())]
    const [first, second] = [
      await openBoth(preview.spec.url ?? '', tokens[0]!.value),
      await openBoth(preview.spec.url ?? '', tokens[1]!.value),
    ]
    await preview.tokens.delete(tokens[0]!.value)
    expect([await first.closed, await first.ended]).toEqual([over, 'cut off'])
    expect(second.isOpen()).toBe(true)
    await client.request('/v0/sandboxes/previews/previews/guarded', {
      method: 'PUT',
      body: JSON.stringify({ metadata: { name: 'guarded' }, spec: { port, public: true } }),
    })
    expect(second.isOpen()).toBe(true)
    const guest = await openBoth(preview.spec.url ?? '', null)
    await client.request('/v0/sandboxes/previews/previews/guarded', {
      method: 'PUT',
      body: JSON.stringify({ metadata: { name: 'guarded' }, spec: { port, public: false } }),
    })
    expect([await guest.closed, await guest.ended]).toEqual([over, 'cut off'])
    expect(second.isOpen()).toBe(true)
    await sandbox.previews.delete('guarded')
    expect(await second.closed).toBe(over)
  })

  test('a session, and with it its terminals and the logs that it follows', async () => {
    const session = await sandbox.sessions.create({ expiresAt: inAnHour() })
    const inside = await client.SandboxInstance.fromSession(session)
    await inside.process.exec({ command: 'while :; do echo on; sleep 0.05; done', name: 'talker' })
    const headers = { 'x-blaxel-preview-token': session.token }
    const terminal = new (WebSocket as unknown as new (url: string, init: object) => WebSocket)(
      `${session.url.replace('http', 'ws')}/terminal/ws?cols=80&rows=24`,
      { headers },
    )
    const closed = new Promise((resolve) => terminal.addEventListener('close', ({ code }) => resolve(code)))
    await new Promise((resolve) => terminal.addEventListener('message', resolve, { once: true }))
    const logs = await fetch(`${session.url}/process/talker/logs/stream`, { headers })
    const reader = logs.body!.getReader()
    await reader.read()
    await sandbox.sessions.delete(session.name)
    expect(await closed).toBe(1008)
    const ended = async () => {
      while (!(await reader.read()).done) {}
    }
    await ended().catch(() => {})
    await sandbox.process.kill('talker')
  })
})

describe('sessions', () => {
  test('are created, found, listed and deleted; each is the API of the sandbox without a key', async () => {
    const expiresAt = inAnHour()
    const session = await sandbox.sessions.create({ expiresAt })
    expect(session.name).toMatch(/^session-\d+$/)
    expect(session.expiresAt.getTime()).toBe(expiresAt.getTime())
    const inside = await client.SandboxInstance.fromSession(session)
    expect((await inside.process.exec({ command: 'echo hi', waitForCompletion: true })).stdout).toBe('hi\n')
    await inside.fs.write('/tmp/of-session', 'text')
    expect(await sandbox.fs.read('/tmp/of-session')).toBe('text')
    const lines: string[] = []
    await inside.process.exec({
      command: 'echo streamed',
      waitForCompletion: true,
      onLog: (line) => lines.push(line),
    })
    expect(lines).toEqual(['streamed\n'])
    expect(await sandbox.sessions.get(session.name)).toMatchObject({ url: session.url, token: session.token })
    expect((await sandbox.sessions.list()).map(({ name }) => name)).toEqual([session.name])
    await sandbox.sessions.delete(session.name)
    expect(await sandbox.sessions.list()).toEqual([])
    await expect(inside.process.list()).rejects.toMatchObject({ status: 404 })
  })

  test('createIfExpired keeps one that has time left and replaces one that has not', async () => {
    const first = await sandbox.sessions.createIfExpired({ expiresAt: new Date(clock.now() + 2 * hourMs) })
    const kept = await sandbox.sessions.createIfExpired({ expiresAt: new Date(clock.now() + 2 * hourMs) })
    expect(kept.token).toBe(first.token)
    // The client looks at the clock of the machine.
    const aheadMs = clock.now() - Date.now()
    const replaced = await sandbox.sessions.createIfExpired({ expiresAt: inAnHour() }, aheadMs + 3 * hourMs)
    expect(replaced.token).not.toBe(first.token)
    expect(await sandbox.sessions.list()).toHaveLength(1)
    await sandbox.sessions.delete(replaced.name)
  })

  test('a page of another origin may use one: its preflight is answered, and so is a wrong token', async () => {
    const session = await sandbox.sessions.create({ expiresAt: inAnHour() })
    const origin = 'https://app.example'
    const preflight = await fetch(`${session.url}/process`, {
      method: 'OPTIONS',
      headers: {
        origin,
        'access-control-request-method': 'POST',
        'access-control-request-headers': 'x-blaxel-preview-token, content-type',
      },
    })
    expect([preflight.status, preflight.headers.get('access-control-allow-origin')]).toEqual([204, origin])
    expect(preflight.headers.get('access-control-allow-headers')).toContain('x-blaxel-preview-token')
    const answer = await fetch(`${session.url}/process`, {
      headers: { origin, 'x-blaxel-preview-token': session.token },
    })
    expect([answer.status, answer.headers.get('access-control-allow-origin')]).toEqual([200, '*'])
    const refused = await fetch(`${session.url}/process`, { headers: { origin } })
    expect([refused.status, refused.headers.get('access-control-allow-origin')]).toEqual([401, '*'])
    await sandbox.sessions.delete(session.name)
  })
})
