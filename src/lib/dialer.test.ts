import { afterAll, beforeAll, expect, test } from 'bun:test'
import { Dialer, type DialerRequest } from './dialer.ts'
import { testCertificate } from './http1/test-certificate.ts'
import { TestProxy } from './test-proxy.ts'

let server: ReturnType<typeof Bun.serve>
let port: number
let asked = 0

beforeAll(() => {
  server = Bun.serve({
    port: 0,
    hostname: '127.0.0.1',
    async fetch(request) {
      asked++
      const { pathname } = new URL(request.url)
      if (pathname === '/redirect') return Response.redirect('http://169.254.169.254/', 302)
      if (pathname === '/large') return new Response('x'.repeat(2000))
      if (pathname === '/slow')
        await new Promise((resolve) => request.signal.addEventListener('abort', resolve))
      return Response.json({ host: request.headers.get('host'), body: await request.text() })
    },
  })
  port = server.port!
})

afterAll(() => server.stop(true))

const request: DialerRequest = {
  method: 'POST',
  headers: {},
  body: 'hello',
  timeoutMs: 10_000,
  bodyBytesMax: 1000,
  what: 'The test',
}
const own: number[] = []
const dialer = (privateTargets: string[], addresses?: string[]) =>
  new Dialer({
    privateTargets,
    ownPorts: () => own,
    ...(addresses ? { resolve: async () => addresses } : {}),
  })

test('an address that is not public is dialled only when it is listed', async () => {
  const before = asked
  const url = `http://127.0.0.1:${port}/`
  await expect(dialer([]).request(url, request)).rejects.toMatchObject({
    code: 'bad_request',
    message: expect.stringContaining('privateTargets'),
  })
  for (const other of ['localhost', '[::1]', '[::ffff:127.0.0.1]', '2130706433', '0']) {
    await expect(dialer([]).request(`http://${other}:${port}/`, request)).rejects.toMatchObject({
      code: 'bad_request',
    })
  }
  expect(asked).toBe(before)
  const answer = await dialer([`127.0.0.1:${port}`]).request(url, request)
  expect(JSON.parse(answer.body)).toEqual({ host: `127.0.0.1:${port}`, body: 'hello' })
})

test('a proxy of the environment has no part in requests to this machine', async () => {
  using proxy = new TestProxy()
  const answer = await dialer([`127.0.0.1:${port}`]).request(`http://127.0.0.1:${port}/`, request)
  expect(JSON.parse(answer.body).body).toBe('hello')
  expect(proxy.asked).toEqual([])
  await dialer([], ['93.184.216.34']).request('http://outside.test/', request)
  expect(proxy.asked).toEqual(['http://outside.test/'])
})

test('a name is dialled at an address that was looked at, and keeps its own name', async () => {
  const named = dialer(['127.0.0.0/8'], ['10.0.0.1', '127.0.0.1'])
  const answer = await named.request(`http://api.example.test:${port}/`, request)
  expect(JSON.parse(answer.body).host).toBe(`api.example.test:${port}`)
  await expect(
    dialer([], ['10.0.0.1', '127.0.0.1']).request(`http://api.example.test:${port}/`, request),
  ).rejects.toMatchObject({ code: 'bad_request' })
})

test('the next address is tried when nobody listens at the first', async () => {
  const both = dialer(['127.0.0.0/8'], ['127.0.0.2', '127.0.0.1'])
  expect((await both.request(`http://api.example.test:${port}/`, request)).status).toBe(200)
  await expect(
    dialer(['127.0.0.0/8'], ['127.0.0.2']).request(`http://api.example.test:${port}/`, request),
  ).rejects.toMatchObject({ code: 'bad_gateway', message: expect.stringContaining('cannot be reached') })
})

test('why a receiver cannot be reached is said: nobody listens, or its certificate is not trusted', async () => {
  const local = dialer(['127.0.0.0/8'])
  const why = async (url: string) => {
    const refused = await local.request(url, request).then(
      () => null,
      (error: Error) => error,
    )
    return refused?.message ?? 'it was'
  }
  using secure = Bun.serve({
    port: 0,
    hostname: '127.0.0.1',
    tls: testCertificate,
    fetch: () => new Response(),
  })
  expect(await why(`https://127.0.0.1:${secure.port}/`)).toMatch(/its certificate is not trusted \(\w+\)$/)
  expect(await why(`http://127.0.0.2:${port}/`)).toEndWith('cannot be reached: nothing listens there')
})

test("the platform's own ports are never dialled, whatever is listed", async () => {
  own.push(port)
  const before = asked
  try {
    for (const host of ['127.0.0.1', '127.9.9.9', '[::1]']) {
      await expect(
        dialer(['0.0.0.0/0', '::/0']).request(`http://${host}:${port}/`, request),
      ).rejects.toMatchObject({ code: 'bad_request' })
    }
  } finally {
    own.length = 0
  }
  expect(asked).toBe(before)
})

test('redirects are not followed, and what is too large or too late is given up', async () => {
  const open = dialer(['127.0.0.1'])
  expect((await open.request(`http://127.0.0.1:${port}/redirect`, request)).status).toBe(302)
  await expect(open.request(`http://127.0.0.1:${port}/large`, request)).rejects.toMatchObject({
    code: 'bad_gateway',
    message: 'The test answered with more than 1000 bytes',
  })
  await expect(
    open.request(`http://127.0.0.1:${port}/slow`, { ...request, timeoutMs: 50 }),
  ).rejects.toMatchObject({ code: 'bad_gateway', message: expect.stringContaining('did not answer within') })
  const gone = new AbortController()
  const given = open.request(`http://127.0.0.1:${port}/slow`, { ...request, signal: gone.signal })
  gone.abort(new Error('enough'))
  await expect(given).rejects.toThrow('enough')
})

test('only http and https are spoken, without a password in the address', async () => {
  for (const url of ['ftp://127.0.0.1/', 'file:///etc/passwd', 'http://a:b@127.0.0.1/', 'nonsense']) {
    await expect(dialer(['127.0.0.1']).request(url, request)).rejects.toMatchObject({ code: 'bad_request' })
  }
})

test('an answer may be read as it comes, from a private host that the operator named', async () => {
  const opening = { method: 'GET', headers: {}, what: 'The test' }
  const address = `http://localhost:${port}/large`
  await expect(dialer([]).open(address, opening)).rejects.toMatchObject({ code: 'bad_request' })
  const answer = await dialer([], ['127.0.0.1']).open(address, { ...opening, trusted: true })
  expect((await answer.text()).length).toBe(2000)
  own.push(port)
  await expect(dialer([], ['127.0.0.1']).open(address, { ...opening, trusted: true })).rejects.toMatchObject({
    code: 'bad_request',
  })
  own.pop()
})

test('a name that does not resolve in time is given up', async () => {
  const never = new Dialer({ privateTargets: [], ownPorts: () => [], resolve: () => new Promise(() => {}) })
  await expect(
    never.request('http://slow.example.test/', { ...request, timeoutMs: 50 }),
  ).rejects.toMatchObject({ code: 'bad_gateway', message: expect.stringContaining('cannot be resolved') })
  const gone = new AbortController()
  const asked = never.request('http://slow.example.test/', { ...request, signal: gone.signal })
  gone.abort(new Error('enough'))
  await expect(asked).rejects.toThrow('enough')
})

test('a user may have this machine dialled where nobody else reaches the platform, and never the platform itself', async () => {
  let isOpen = true
  const local = new Dialer({ privateTargets: [], ownPorts: () => own, loopbackOpen: () => isOpen })
  const url = `http://localhost:${port}/`
  const opening = { method: 'POST', headers: {}, body: Buffer.from('bytes'), what: 'The test' }
  const refusal = (dialled: Promise<unknown>) => dialled.then(() => null, String)
  const answer = await local.open(url, { ...opening, loopback: true })
  expect(await answer.json()).toMatchObject({ body: 'bytes' })
  await local.check(url, { what: 'The test', loopback: true })
  const before = asked
  expect(await refusal(local.open(url, opening))).toContain('private address')
  expect(await refusal(local.check(url, { what: 'The test' }))).toContain('private address')
  expect(await refusal(local.open('http://10.0.0.1/', { ...opening, loopback: true }))).toContain('private')
  own.push(port)
  expect(await refusal(local.open(url, { ...opening, loopback: true }))).toContain('private address')
  own.length = 0
  isOpen = false
  expect(await refusal(local.open(url, { ...opening, loopback: true }))).toContain('private address')
  expect(asked).toBe(before)
})

test('an address that is given for later may have a name that is not known yet, and nothing that is no address', async () => {
  const unknown = new Dialer({
    privateTargets: [],
    ownPorts: () => [],
    resolve: () => Promise.reject(new Error('no such name')),
  })
  await unknown.check('https://later.example/hook', { what: 'The test' })
  const never = new Dialer({ privateTargets: [], ownPorts: () => [], resolve: () => new Promise(() => {}) })
  await never.check('https://slow.example/hook', { what: 'The test', signal: AbortSignal.abort() })
  for (const address of ['ftp://example.com/', 'https://user:pass@example.com/', 'no address'])
    expect(await unknown.check(address, { what: 'The test' }).then(() => null, String)).toContain(
      'http or https URL',
    )
})
