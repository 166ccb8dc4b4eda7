import { afterAll, beforeEach, expect, test } from 'bun:test'
import { TestProxy } from '../lib/test-proxy.ts'
import { Client, ClientError } from './index.ts'

interface Seen {
  method: string
  path: string
  headers: Headers
}

let seen: Seen[] = []
let answer: (request: Request) => Response | Promise<Response>
const server = Bun.serve({
  port: 0,
  hostname: '127.0.0.1',
  fetch(request) {
    const { pathname, search } = new URL(request.url)
    seen.push({ method: request.method, path: pathname + search, headers: request.headers })
    return answer(request)
  },
})
const origin = `http://127.0.0.1:${server.port}`
const client = new Client({ apiUrl: `${origin}/v0/`, workspace: 'main', apiKey: 'secret' })
afterAll(() => server.stop(true))
beforeEach(() => {
  seen = []
})

async function failure(work: Promise<unknown>): Promise<ClientError> {
  const error = await work.then(
    () => null,
    (reason: unknown) => reason,
  )
  if (!(error instanceof ClientError)) throw new Error(`no ClientError but ${String(error)}`)
  return error
}

function sandboxAt(url: string): Response {
  return Response.json({ metadata: { name: 'box', url }, spec: {} })
}

test('a request carries the key, the workspace and the version', async () => {
  answer = () => sandboxAt(`${origin}/main/sandboxes/box`)
  await client.sandboxes.get('a/b')
  expect(seen[0]?.path).toBe('/v0/sandboxes/a%2Fb')
  expect(seen[0]?.headers.get('x-blaxel-authorization')).toBe('Bearer secret')
  expect(seen[0]?.headers.get('x-blaxel-workspace')).toBe('main')
  expect(seen[0]?.headers.get('blaxel-version')).toBe('2026-04-28')
})

test('a proxy of the environment sees nothing of a platform on this machine, and everything of another', async () => {
  using proxy = new TestProxy()
  answer = () => sandboxAt(`${origin}/main/sandboxes/box`)
  await client.sandboxes.get('box')
  expect(seen).toHaveLength(1)
  expect(proxy.asked).toEqual([])
  const elsewhere = new Client({ apiUrl: 'http://hutch.example/v0', workspace: 'main', apiKey: 'secret' })
  await elsewhere.sandboxes.get('box').catch(() => {})
  expect(proxy.asked).toEqual(['http://hutch.example/v0/sandboxes/box'])
})

test('pages are followed to the last one, and a bare array is a list too', async () => {
  const page = (names: string[], nextCursor: string) =>
    Response.json({ data: names.map((name) => ({ metadata: { name }, spec: {} })), meta: { nextCursor } })
  answer = ({ url }) => (url.includes('cursor=two') ? page(['c'], '') : page(['a', 'b'], 'two'))
  const names = (await Array.fromAsync(client.sandboxes.list())).map((item) => item.metadata.name)
  expect(names).toEqual(['a', 'b', 'c'])
  answer = () => Response.json([{ name: 'main' }])
  expect(await Array.fromAsync(client.workspaces.list())).toEqual([{ name: 'main' }])
})

test('a cursor that repeats ends the list instead of asking for ever', async () => {
  answer = () => Response.json({ data: [], meta: { nextCursor: 'same' } })
  expect(await Array.fromAsync(client.sandboxes.list())).toEqual([])
  expect(seen.length).toBe(2)
})

test.each([
  [{ error: 'Not Found', code: 404, message: 'sandbox "box" not found' }, 'sandbox "box" not found'],
  [{ error: { code: 'X', message: 'from the gateway' } }, 'from the gateway'],
  [{ error: 'from the sandbox' }, 'from the sandbox'],
])('the message of %j is what people read', async (body, message) => {
  answer = () => Response.json(body, { status: 404 })
  const error = await failure(client.sandboxes.get('box'))
  expect([error.status, error.message]).toEqual([404, message])
})

test('an answer that is no JSON still says its status', async () => {
  answer = () => new Response('<html>', { status: 503 })
  expect((await failure(client.sandboxes.get('box'))).message).toContain('503')
})

test('a platform that does not answer is named', async () => {
  const gone = new Client({ apiUrl: 'http://127.0.0.1:1/v0', workspace: 'main', apiKey: 'secret' })
  const error = await failure(gone.sandboxes.get('box'))
  expect([error.status, error.message]).toEqual([
    0,
    expect.stringContaining('http://127.0.0.1:1 does not answer'),
  ])
})

test('the key is not sent to an address of another origin, nor along a redirect', async () => {
  answer = () => sandboxAt('http://127.0.0.1:1/main/sandboxes/box')
  const { processes } = await client.sandboxes.open('box')
  expect((await failure(processes.list())).message).toContain('the key is not sent there')
  answer = () => Response.redirect(`${origin}/elsewhere`)
  expect((await failure(client.sandboxes.get('box'))).status).toBe(302)
  expect(seen.some((request) => request.path === '/elsewhere')).toBe(false)
})

test('a running command is read event by event, however its lines are cut', async () => {
  const ended = { pid: '7', name: 'x', command: 'true', status: 'completed', exitCode: 0 }
  const text = [
    { type: 'stdout', data: 'h\u00e9llo\n' },
    { type: 'keepalive' },
    { type: 'stderr', data: '/w==', encoding: 'base64' },
  ].map((event) => `${JSON.stringify(event)}\n`)
  const bytes = new TextEncoder().encode(text.join(''))
  let asked = 0
  answer = ({ method, url }) => {
    if (url.includes('/v0/')) return sandboxAt(`${origin}/main/sandboxes/box`)
    if (method === 'POST') return Response.json({ ...ended, status: 'running' })
    // The record ends a moment after the output does.
    if (!url.includes('/logs/'))
      return Response.json({ ...ended, status: asked++ === 0 ? 'running' : 'completed' })
    const body = new ReadableStream<Uint8Array>({
      async start(controller) {
        // One byte at a time, through the middle of a character.
        for (const byte of bytes) controller.enqueue(new Uint8Array([byte]))
        controller.close()
      },
    })
    return new Response(body, { headers: { 'content-type': 'application/x-ndjson' } })
  }
  const { processes } = await client.sandboxes.open('box')
  expect(await Array.fromAsync(processes.exec({ command: 'true' }))).toEqual([
    { type: 'stdout', data: 'h\u00e9llo\n' },
    { type: 'stderr', data: Buffer.from([0xff]) },
    { type: 'result', process: ended as never },
  ])
})

test('a file is sent as a form whose permissions come first, and read back as bytes', async () => {
  let received = ''
  answer = async (request) => {
    if (request.method === 'PUT') {
      received = await request.text()
      return Response.json({ path: '/srv/x', message: 'ok' })
    }
    if (!request.url.includes('/filesystem/')) return sandboxAt(`${origin}/main/sandboxes/box`)
    return new Response('content', { headers: { 'content-disposition': 'attachment' } })
  }
  const { files } = await client.sandboxes.open('box')
  await files.write('/srv/a b', new Blob(['content']).stream(), '0600')
  expect(seen.at(-1)?.path).toBe('/main/sandboxes/box/filesystem/%2Fsrv%2Fa%20b')
  expect(received).toMatch(
    /name="permissions"\r\n\r\n0600\r\n.*name="file".*\r\n\r\ncontent\r\n--[^\r]+--\r\n$/s,
  )
  expect(await new Response((await files.read('/srv/a b')).body).text()).toBe('content')
  expect(await files.list('/srv/a b')).toBeNull()
})
