import { afterAll, beforeAll, describe, expect, test } from 'bun:test'
import { z } from 'zod'
import { PlatformError } from '../errors.ts'
import { type Page, type Resource, sortOrders } from '../spec/store.ts'
import { parseWith } from './body.ts'
import { errorResponse, gatewayCode } from './errors.ts'
import { Hosts } from './host.ts'
import { listAnswer, listQuery } from './list.ts'
import { type Method, type Route, route } from './route.ts'
import { RouteTable } from './table.ts'
import { TestPlatform } from './testing/test-platform.ts'

let platform: TestPlatform
beforeAll(async () => {
  platform = await TestPlatform.open({
    app: {
      serveHost(request, host, { origin }) {
        if (host === 'broken.preview.localhost') {
          throw new PlatformError('route_not_found', 'no such preview')
        }
        if (!host.endsWith('.preview.localhost') && host !== 'custom.example') return null
        return new Response(`${request.method} ${host} ${origin}`)
      },
    },
  })
})
afterAll(() => platform[Symbol.asyncDispose]())

const post = (body: BodyInit, headers = {}) =>
  platform.request('/v0/samples', { method: 'POST', body, headers })

describe('errors', () => {
  test('the control plane answers flat, with the status as code', async () => {
    const response = await platform.request('/v0/nothing')
    expect(response.status).toBe(404)
    expect(await response.json()).toEqual({
      error: 'not_found',
      code: 404,
      message: 'GET /v0/nothing is not a route of this platform',
    })
  })

  test('the data plane answers with the envelope and its headers', async () => {
    const response = await platform.request('/nothing')
    expect(response.status).toBe(404)
    expect(response.headers.get('x-blaxel-source')).toBe('platform')
    expect(response.headers.get('x-blaxel-error-code')).toBe('ROUTE_NOT_FOUND')
    const { error } = (await response.json()) as { error: Record<string, unknown> }
    expect(error).toMatchObject({
      code: 'ROUTE_NOT_FOUND',
      status: 404,
      origin: 'platform',
      retryable: false,
    })
    expect(error.timestamp).toBe('2026-01-01T00:00:00.000+00:00')
    expect(Object.keys(error)).toEqual(expect.arrayContaining(['message', 'action', 'do_not']))
  })

  test('the sandbox API answers with a text', async () => {
    const response = await platform.request('/main/sandboxes/box/filesystem/x', { key: null })
    expect(response.status).toBe(401)
    expect(Object.keys((await response.json()) as object)).toEqual(['error'])
    expect(response.headers.get('www-authenticate')).toStartWith('Bearer')
  })

  test('an unexpected failure stays private and is logged under its request id', async () => {
    const response = await platform.request('/v0/failure')
    expect(response.status).toBe(500)
    const text = await response.text()
    expect(text).not.toContain('hunter2')
    const requestId = response.headers.get('x-request-id')!
    expect(text).toContain(requestId)
    const logged = platform.log.lines.find(({ level }) => level === 'error')
    expect(logged?.fields).toMatchObject({ requestId })
    expect(String(logged?.fields.cause)).toContain('hunter2')
  })

  test('what clients ask for that is not there is not logged, what fails is', () => {
    const before = platform.log.lines.length
    const context = { log: platform.log, now: 0, requestId: 'one' }
    errorResponse(new PlatformError('not_implemented', 'volumes are not there yet'), 'control', context)
    expect(platform.log.lines.slice(before)).toEqual([])
    errorResponse(new PlatformError('unavailable', 'no room'), 'control', context)
    expect(platform.log.lines.slice(before)).toEqual([expect.objectContaining({ level: 'warn' })])
  })

  test('a conflict tells clients not to try again', async () => {
    const response = await platform.request('/v0/workspaces', { method: 'POST', json: { name: 'main' } })
    expect(response.status).toBe(409)
    expect(response.headers.get('x-should-retry')).toBe('false')
    expect(await response.json()).toEqual({
      error: 'already_exists',
      code: 409,
      message: 'Workspace "main" already exists',
    })
  })

  test('a client that left is no failure of the platform', async () => {
    const leaving = new AbortController()
    const work = Promise.withResolvers<object>()
    const routes = [
      route({
        method: 'GET',
        path: '/v0/slow',
        access: 'public',
        errors: 'control',
        summary: 'A sample',
        tag: 'samples',
        handle: () => work.promise,
      }),
    ]
    await using own = await TestPlatform.open({ routes })
    const answer = own.request('/v0/slow', { signal: leaving.signal })
    leaving.abort()
    work.reject(new Error('aborted'))
    expect((await answer).status).toBe(499)
    expect(own.log.lines.filter(({ level }) => level !== 'debug')).toEqual([])
  })

  test('codes of the data plane are those clients know', () => {
    expect(gatewayCode('body_too_large')).toBe('REQUEST_ENTITY_TOO_LARGE')
    expect(gatewayCode('workload_unavailable')).toBe('WORKLOAD_UNAVAILABLE')
  })
})

describe('bodies', () => {
  test('a body over the limit is refused by its declared length', async () => {
    const response = await post('x'.repeat(2001), { 'content-length': '2001' })
    expect(response.status).toBe(413)
    expect(((await response.json()) as { message: string }).message).toContain('2000 bytes')
  })

  test('a body over the limit is refused without reading it to its end', async () => {
    let pulled = 0
    const endless = new ReadableStream({
      pull(controller) {
        pulled++
        controller.enqueue(new Uint8Array(500))
      },
    })
    const response = await post(endless as unknown as BodyInit)
    expect(response.status).toBe(413)
    expect(pulled).toBeLessThan(20)
  })

  test('JSON that does not parse says where', async () => {
    const response = await post('{\n  "metadata": {,}\n}')
    expect(response.status).toBe(400)
    expect(await response.json()).toEqual({
      error: 'bad_request',
      code: 400,
      line: 2,
      column: 16,
      message: 'The body is not valid JSON: line 2, column 16: unexpected ","',
    })
  })

  test('a field is named as in the body, and what is expected of it in the words of JSON', async () => {
    const schema = z.object({
      list: z.array(
        z.object({ name: z.string().min(1), count: z.int(), labels: z.record(z.string(), z.string()) }),
      ),
    })
    const parse = (entry: object) => () => parseWith(schema, { list: [entry] }, 'body')
    expect(parse({ name: '', count: 1.5, labels: [] })).toThrow(
      'list[0].name: "" must not be empty; list[0].count: 1.5 must be a whole number; ' +
        'list[0].labels: must be an object',
    )
  })

  test.each([
    [new Uint8Array([0x7b, 0xff, 0x7d]), 400, 'not valid UTF-8'],
    ['['.repeat(999), 400, 'ends too early'],
    [`{"a":${'['.repeat(150)}${']'.repeat(150)}}`, 400, 'nests deeper than 100'],
    ['{"metadata":{"__proto__":{"admin":true},"name":"x"}}', 400, '__proto__'],
    ['', 400, 'body: missing: must be an object'],
  ])('a hostile body %# is refused clearly', async (body, status, message) => {
    const response = await post(body)
    expect(response.status).toBe(status)
    expect(((await response.json()) as { message: string }).message).toContain(message)
  })

  test('a form where JSON belongs is said to be one', async () => {
    const response = await post('a=b', { 'content-type': 'application/x-www-form-urlencoded' })
    expect(response.status).toBe(415)
  })

  test.each([
    [
      { metadata: { name: 'far too long a name' } },
      'metadata.name: "far too long a name" must be at most 10 characters',
    ],
    [{ metadata: { name: 'x' }, size: 0 }, 'size: 0 must be at least 1'],
    [{ metadata: { name: 'x' }, size: 'big' }, 'size: "big" must be a number'],
    [{ metadata: { name: 'x' }, kind: 'c' }, 'kind: "c" must be a, b'],
    [{ metadata: {} }, 'metadata.name: missing: must be a string'],
    [{ metadata: { name: 'x', secretNote: 'hunter2' } }, 'metadata.secretNote: must be at most 3 characters'],
  ])('a wrong field %# is named with its value, unless it may be secret', async (json, message) => {
    const response = await post(JSON.stringify(json))
    expect(response.status).toBe(400)
    expect(((await response.json()) as { message: string }).message).toBe(message)
  })
})

describe('hosts', () => {
  const atHost = (host: string, path = '/healthz') =>
    platform.app.fetch(new Request(`http://localhost${path}`, { headers: { host } }))

  test.each(['localhost:4400', 'LOCALHOST', '127.0.0.1:4400', '[::1]:4400', 'hutch.internal', 'x.localhost'])(
    '%s is ours',
    async (host) => expect((await atHost(host)).status).toBe(200),
  )

  test.each([
    'evil.example',
    'localhost.evil.example',
    '10.0.0.1:4400',
    'evil@localhost',
    'localhost:0',
    '[::2]',
  ])('%s is not ours: 421', async (host) => {
    const response = await atHost(host)
    expect(response.status).toBe(421)
    expect(await response.json()).toMatchObject({ error: { code: 'MISDIRECTED' } })
    expect(await (await atHost(host, '/v0/openapi.json')).json()).toMatchObject({ code: 421 })
  })

  test('hosts of previews and custom domains are answered before any route', async () => {
    const preview = await atHost('abc.preview.localhost:4400', '/v0/workspaces')
    expect(await preview.text()).toBe('GET abc.preview.localhost http://localhost:4400')
    expect(preview.headers.get('content-security-policy')).toBeNull()
    expect(await (await atHost('custom.example')).text()).toStartWith('GET custom.example')
    expect((await atHost('broken.preview.localhost')).headers.get('x-blaxel-error-code')).toBe(
      'ROUTE_NOT_FOUND',
    )
  })

  test('addresses are built from the host that was asked for', async () => {
    const headers = { host: '127.0.0.1:5500' }
    const response = await platform.request('/main/sandboxes/b/filesystem/x', { headers })
    expect(await response.json()).toMatchObject({ origin: 'http://127.0.0.1:5500' })
  })

  test('forwarded headers count only from trusted proxies, --url gives its own scheme', async () => {
    const hosts = new Hosts({
      listenHosts: ['127.0.0.1'],
      domains: ['cloud.example'],
      publicUrl: 'https://hutch.example',
      trustedProxies: ['10.1.0.0/16'],
    })
    await using proxied = await TestPlatform.open({ app: { hosts } })
    const origin = async (address: string | null, headers: Record<string, string>) => {
      const request = new Request('http://localhost/main/sandboxes/b/filesystem/x', {
        headers: { authorization: `Bearer ${proxied.adminKey}`, ...headers },
      })
      const response = await proxied.app.fetch(request, { address, upgrade: null, sendFile: null })
      return response.status === 200
        ? ((await response.json()) as { origin: string }).origin
        : response.status
    }
    const forwarded = { 'x-forwarded-host': 'hutch.example', 'x-forwarded-proto': 'https', host: 'localhost' }
    expect(await origin('10.1.2.3', forwarded)).toBe('https://hutch.example')
    expect(await origin('::ffff:10.1.2.3', forwarded)).toBe('https://hutch.example')
    expect(await origin('10.2.0.1', forwarded)).toBe('http://localhost')
    expect(await origin('10.1.2.3', { ...forwarded, 'x-forwarded-host': 'evil.example' })).toBe(421)
    expect(await origin(null, { host: 'hutch.example' })).toBe('https://hutch.example')
    expect(await origin(null, { host: 'x.cloud.example' })).toBe('https://hutch.example')
  })
})

describe('routing', () => {
  test('the rest of a path arrives undecoded, a parameter decoded', async () => {
    const read = async (path: string) => (await (await platform.request(path)).json()) as { params: unknown }
    expect((await read('/main/sandboxes/b%2Dx/filesystem/%2Ftmp%2Fa%20b.txt')).params).toEqual({
      workspace: 'main',
      sandboxName: 'b-x',
      path: '%2Ftmp%2Fa%20b.txt',
    })
    expect((await read('/main/sandboxes/b/filesystem//tmp//x?y=/z')).params).toMatchObject({
      path: '/tmp//x',
    })
    expect((await read('/main/sandboxes/b/filesystem')).params).toMatchObject({ path: '' })
    expect((await read('/main/sandboxes/b/filesystem/')).params).toMatchObject({ path: '' })
    expect((await platform.request('/v0/workspaces/%ff')).status).toBe(400)
  })

  test('another method than a path has is 405 with those it has', async () => {
    const response = await platform.request('/v0/workspaces/main', { method: 'PATCH' })
    expect(response.status).toBe(405)
    expect(response.headers.get('allow')).toBe('GET, PUT, DELETE')
  })

  test('HEAD answers as GET without its body', async () => {
    const response = await platform.request('/v0/workspaces/main', { method: 'HEAD' })
    expect(response.status).toBe(200)
    expect(await response.text()).toBe('')
  })

  test('a preflight needs no credential, any other OPTIONS reaches the program behind', async () => {
    const path = '/main/sandboxes/b/port/80/x'
    const preflight = { origin: 'https://app.example', 'access-control-request-method': 'POST' }
    const answered = await platform.request(path, { method: 'OPTIONS', key: null, headers: preflight })
    expect(answered.status).toBe(204)
    expect(answered.headers.get('access-control-allow-origin')).toBe('*')
    expect(answered.headers.get('access-control-allow-credentials')).toBeNull()
    const passed = await platform.request(path, { method: 'OPTIONS' })
    expect(await passed.json()).toMatchObject({ method: 'OPTIONS' })
    const capability = await platform.request('/-/preview/p/', {
      method: 'OPTIONS',
      key: null,
      headers: preflight,
    })
    expect(capability.status).toBe(200)
  })

  test('pages from inside sandboxes never share the origin', async () => {
    const run = await platform.request('/main/sandboxes/b/port/80/x')
    expect(run.headers.get('content-security-policy')).toBe('sandbox')
    expect(run.headers.get('x-content-type-options')).toBe('nosniff')
    const byPath = await platform.request('/-/preview/p/index.html', { key: null })
    expect(byPath.headers.get('content-security-policy')).toBe('sandbox')
  })

  test('a path of the control plane never leads into a workspace of that name', () => {
    const at = (method: Method, path: string): Route =>
      route({ method, path, access: 'read', errors: 'control', summary: '', tag: '', handle: () => ({}) })
    const table = new RouteTable([
      at('ALL', '/{workspace}/sandboxes/{sandboxName}/{path*}'),
      at('GET', '/v0/sandboxes/{sandboxName}'),
    ])
    expect(table.match('HEAD', '/v0/sandboxes/b')?.route.path).toBe('/v0/sandboxes/{sandboxName}')
    expect(() => table.match('POST', '/v0/sandboxes/b')).toThrow('POST is not possible here: GET')
    expect(table.match('GET', '/v0/sandboxes/b/snapshots')).toBeNull()
    expect(table.match('GET', '/-/sandboxes/b')).toBeNull()
    expect(table.match('GET', '/v/sandboxes/b')).not.toBeNull()
  })

  test('the order of the table does not matter, and no two routes may be the same', () => {
    const at = (path: string): Route =>
      route({
        method: 'GET',
        path,
        access: 'read',
        errors: 'control',
        summary: '',
        tag: '',
        handle: () => ({}),
      })
    const paths = ['/v0/a/{x}', '/{w}/{rest*}', '/v0/a/b', '/v0/{y}/b']
    for (const order of [paths, [...paths].reverse()]) {
      const table = new RouteTable(order.map(at))
      expect(
        ['/v0/a/b', '/v0/a/c', '/v0/c/b', '/z/y/x'].map((path) => table.match('GET', path)?.route.path),
      ).toEqual(['/v0/a/b', '/v0/a/{x}', '/v0/{y}/b', '/{w}/{rest*}'])
    }
    expect(() => new RouteTable([at('/v0/{a}'), at('/v0/{b}')])).toThrow('two routes')
  })
})

describe('workspaces of a request', () => {
  test('one of several must be named, one alone is inferred', async () => {
    await using own = await TestPlatform.open()
    const create = (name: string) => own.request('/v0/workspaces', { method: 'POST', json: { name } })
    const sample = (path = '/v0/samples', headers = {}) =>
      own.request(path, { method: 'POST', json: { metadata: { name: 'x' } }, headers })
    expect(await (await sample()).json()).toMatchObject({ workspace: 'main' })
    expect((await create('second')).status).toBe(200)
    const unnamed = await sample()
    expect(unnamed.status).toBe(400)
    expect(((await unnamed.json()) as { message: string }).message).toContain('x-blaxel-workspace')
    expect(await (await sample('/v0/samples?workspace=second')).json()).toMatchObject({ workspace: 'second' })
    const named = await sample('/v0/samples', { 'x-blaxel-workspace': 'main' })
    expect(named.status).toBe(201)
    expect((await sample('/v0/samples?workspace=second', { 'x-blaxel-workspace': 'main' })).status).toBe(400)
    expect((await sample('/v0/samples?workspace=third')).status).toBe(403)
  })
})

describe('lists', () => {
  const resources = Array.from({ length: 450 }, (_, at) => ({ name: `r${at}` }) as Resource<object>)
  const read = async ({
    limit = 50,
    cursor = '0',
  }: {
    limit?: number
    cursor?: string
  }): Promise<Page<object>> => {
    const end = Number(cursor) + limit
    const hasMore = end < resources.length
    const data = resources.slice(Number(cursor), end)
    return { data, nextCursor: hasMore ? String(end) : '', hasMore, total: resources.length }
  }
  const toBody = ({ name }: { name: string }) => ({ name })

  test('a bare array is whole before 2026-04-28, a page from then on', async () => {
    const bare = await listAnswer({ apiVersion: '2026-04-16', query: {} }, read, toBody)
    expect(bare).toHaveLength(450)
    const limited = await listAnswer({ apiVersion: '2026-04-16', query: { limit: 3 } }, read, toBody)
    expect(limited).toEqual([{ name: 'r0' }, { name: 'r1' }, { name: 'r2' }])
    const paged = await listAnswer(
      { apiVersion: '2026-04-28', query: { limit: 1, cursor: '449' } },
      read,
      toBody,
    )
    expect(paged).toEqual({ data: [{ name: 'r449' }], meta: { hasMore: false, nextCursor: '', total: 450 } })
  })

  test('a search of two characters or more, and the last page, are asked for by clients that know pages', async () => {
    const asked: object[] = []
    const note = (query: { limit?: number; cursor?: string }) => {
      asked.push(query)
      return read(query)
    }
    const query = { q: '  Blue ', anchor: 'end', limit: 1 } as const
    await listAnswer({ apiVersion: '2026-04-28', query }, note, toBody)
    await listAnswer({ apiVersion: '2026-04-28', query: { q: ' B ', limit: 2 } }, note, toBody)
    await listAnswer({ apiVersion: '2026-04-16', query }, note, toBody)
    expect(asked).toEqual([{ limit: 1, search: 'Blue', anchor: 'end' }, { limit: 2 }, { limit: 1 }])
    for (const wrong of [{ q: 'x'.repeat(201) }, { anchor: 'start' }])
      expect(() => parseWith(listQuery, wrong, 'query')).toThrow(Object.keys(wrong)[0])
  })

  test('a limit is 1 to 200, and any other is refused by name', () => {
    expect(listQuery.parse({ limit: '200' }).limit).toBe(200)
    for (const limit of ['0', '201', '1000', '-1', '1.5', 'x', '']) {
      expect(() => parseWith(listQuery, { limit }, 'query')).toThrow(
        `limit: "${limit}" must be a whole number from 1 to 200`,
      )
    }
    expect(sortOrders.every((sort) => listQuery.safeParse({ sort }).success)).toBe(true)
  })

  test.each([
    ['2026-04-28', 200],
    ['2099-01-01', 200],
    ['2020-01-01', 400],
    ['latest', 400],
    ['2026-99-99', 400],
  ])('Blaxel-Version %s is %p', async (version, status) => {
    const headers = { 'blaxel-version': version }
    expect((await platform.request('/v0/locations', { headers })).status).toBe(status)
  })
})

describe('the OpenAPI document', () => {
  test('has every /v0 route, with the schemas that validate', async () => {
    const response = await platform.request('/v0/openapi.json', { key: null })
    const document = (await response.json()) as {
      openapi: string
      paths: Record<string, Record<string, { operationId: string; requestBody?: object }>>
    }
    expect(document.openapi).toBe('3.1.0')
    const operations = Object.entries(document.paths).flatMap(([path, methods]) =>
      Object.keys(methods).map((method) => `${method.toUpperCase()} /v0${path}`),
    )
    const routes = platform.app.routes.filter(
      ({ path }) => path.startsWith('/v0/') && path !== '/v0/openapi.json',
    )
    expect(operations.sort()).toEqual(routes.map(({ method, path }) => `${method} ${path}`).sort())
    expect(document.paths['/samples']?.post?.requestBody).toMatchObject({
      required: true,
      content: { 'application/json': { schema: { properties: { size: { minimum: 1, maximum: 10 } } } } },
    })
    const ids = Object.values(document.paths).flatMap((methods) =>
      Object.values(methods).map((o) => o.operationId),
    )
    expect(new Set(ids).size).toBe(ids.length)
  })
})

test('two platforms in one process share nothing', async () => {
  await using other = await TestPlatform.open()
  expect((await other.request('/v0/workspaces/main', { key: platform.adminKey })).status).toBe(401)
  expect((await platform.request('/v0/workspaces/main', { key: other.adminKey })).status).toBe(401)
  await other.request('/v0/workspaces', { method: 'POST', json: { name: 'only-there' } })
  const names = async (of: TestPlatform) =>
    ((await (await of.request('/v0/workspaces')).json()) as { name: string }[]).map(({ name }) => name)
  expect(await names(other)).toEqual(['main', 'only-there'])
  expect(await names(platform)).not.toContain('only-there')
})
