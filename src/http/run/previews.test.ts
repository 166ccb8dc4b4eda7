import { afterAll, afterEach, beforeEach, describe, expect, test } from 'bun:test'
import { PlatformError } from '../../errors.ts'
import { PreviewGateway } from './previews.ts'
import { sandboxApi } from './test-machine.ts'
import { TestProgram } from './test-program.ts'
import type { Visit } from './visited.ts'

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

const program = new TestProgram()
afterEach(() => program.reset())
afterAll(() => program.close())

describe('previews', () => {
  const previewOf = (changes: object) => ({
    id: 'abc',
    workspace: 'main',
    sandbox: 'box',
    name: 'p',
    port: program.port,
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
          return await program.machine.lease(workspace, name)
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
    program.serve(async ({ url }) => {
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
    expect(program.machine.leases).toBe(0)
  })

  test('a public one serves its port to anyone, at its own origin, with the headers of its owner', async () => {
    program.serve((request) =>
      Response.json(Object.fromEntries(request.headers), { headers: { 'set-cookie': 'a=1; Path=/x' } }),
    )
    const answer = (await ask('/page?token=mine', { headers: { authorization: 'Bearer app' } }))!
    expect(program.calls).toEqual(['GET /page?token=mine'])
    expect(answer.headers.get('access-control-allow-origin')).toBe('https://app.example')
    expect(answer.headers.get('set-cookie')).toBe('a=1; Path=/x')
    expect(await answer.json()).toMatchObject({
      host: 'abc.preview.localhost:4400',
      authorization: 'Bearer app',
      'x-added': 'in',
    })
  })

  test('OPTIONS carries the headers, too', async () => {
    program.serve(() => new Response(null, { status: 204 }))
    const answer = (await ask('/', { method: 'OPTIONS' }))!
    expect([answer.status, answer.headers.get('x-added')]).toEqual([204, 'out'])
  })

  test('a private one needs a token, in any of three places, and keeps it to itself', async () => {
    preview = previewOf({ public: false })
    program.serve((request) => new Response(JSON.stringify(Object.fromEntries(request.headers))))
    const refused = (await ask('/'))!
    expect([refused.status, refused.headers.get('x-added')]).toEqual([401, 'out'])
    expect(await refused.json()).toMatchObject({ error: { code: 'AUTHENTICATION_REQUIRED', status: 401 } })
    expect((await ask('/?bl_preview_token=wrong'))!.status).toBe(401)
    expect(program.calls).toEqual([])
    const byHeader = (await ask('/h', { headers: { 'x-blaxel-preview-token': 'right' } }))!
    expect(await byHeader.text()).not.toContain('right')
    expect((await ask('/q?a=1&bl_preview_token=right'))!.status).toBe(200)
    expect((await ask('/t?token=right&b=2'))!.status).toBe(200)
    expect(program.calls).toEqual(['GET /h', 'GET /q?a=1', 'GET /t?b=2'])
    const preflight = (await ask('/', { method: 'OPTIONS', headers: { origin: 'https://app.example' } }))!
    expect([preflight.status, preflight.headers.get('access-control-allow-origin')]).toEqual([
      204,
      'https://app.example',
    ])
    expect(program.calls).toHaveLength(3)
  })

  test('a token of the program by the name of ours reaches it, where another opens the preview', async () => {
    preview = previewOf({ public: false })
    program.serve(() => new Response('ok'))
    const headers = { 'x-blaxel-preview-token': 'right' }
    expect((await ask('/hmr?token=program', { headers }))!.status).toBe(200)
    expect((await ask('/hmr?token=program'))!.status).toBe(401)
    expect(program.calls).toEqual(['GET /hmr?token=program'])
  })

  test('a browser that opened a private one keeps the token, and the program never sees it', async () => {
    preview = previewOf({ public: false })
    program.serve((request) =>
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
    program.serve((request) => Response.json({ cookie: request.headers.get('cookie') }))
    const cookie = 'hutch_preview_token=planted; hutch_preview_token=right'
    expect(await (await ask('/app.js', { headers: { cookie } }))!.json()).toEqual({ cookie: null })
  })

  test('a page of elsewhere may lead a visitor there, and run nothing from there as its own', async () => {
    preview = previewOf({ public: false })
    program.serve(() => new Response('secret()'))
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
    program.serve((request) => Response.json({ referer: request.headers.get('referer') }))
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
    program.serve(() => new Response('ok'))
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
    program.serve((request) => new Response(request.headers.get('host')))
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
    expect(program.machine.leases).toBe(0)
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
