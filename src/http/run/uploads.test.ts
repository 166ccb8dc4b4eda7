import { afterAll, beforeAll, expect, test } from 'bun:test'
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { connect, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Builds } from '../../builds/index.ts'
import { emptyProjectSettings } from '../../lib/project-settings.ts'
import { createSecretBox } from '../../lib/secret-box.ts'
import { eventually } from '../../lib/test-eventually.ts'
import { type HttpServer, startServer } from '../server.ts'
import { TestPlatform } from '../testing/test-platform.ts'
import { uploadRoutes } from './uploads.ts'

const dir = mkdtempSync(join(tmpdir(), 'hutch-uploads-'))
let platform: TestPlatform
let server: HttpServer
let builds: Builds
const built: Buffer[] = []
beforeAll(async () => {
  const late: { builds?: Builds } = {}
  platform = await TestPlatform.open({
    routes: uploadRoutes({ receive: (...upload) => late.builds!.receive(...upload) }),
  })
  builds = late.builds = new Builds({
    store: platform.store,
    clock: platform.clock,
    log: platform.log,
    secrets: createSecretBox(new Uint8Array(32)),
    logs: { append() {} },
    dir,
    archiveBytesMax: 8 * 1024 * 1024,
    builder: {
      async build({ archivePath }) {
        built.push(readFileSync(archivePath))
        return { image: 'agent/a:b', language: 'typescript', settings: emptyProjectSettings() }
      },
    },
  })
  await builds.open()
  server = startServer({ app: platform.app, port: 0, log: platform.log })
})
afterAll(async () => {
  await server.stop()
  await builds.close()
  await platform[Symbol.asyncDispose]()
  rmSync(dir, { recursive: true, force: true })
})

let names = 0
const address = async () => {
  const owner = { workspace: 'main', kind: 'agent', name: `a${names++}`, tag: 'r' }
  const { id, uploadUrl } = await builds.begin(owner, server.url)
  const statusOf = async () => (await builds.get('main', id))?.status
  return { uploadUrl, path: new URL(uploadUrl).pathname, statusOf }
}
const zip = (bytes: number) =>
  Buffer.concat([Buffer.from('PK\u0003\u0004'), Buffer.alloc(bytes - 4, 7)]) as Buffer<ArrayBuffer>
const put = (uploadUrl: string, body: BodyInit, headers: Record<string, string> = {}) =>
  fetch(uploadUrl, { method: 'PUT', body, headers: { 'content-type': 'application/zip', ...headers } })
/** The head of a request, and the connection that the rest would come on. */
const begun = async (
  path: string,
  headers: string[],
  body = '',
): Promise<{ socket: Socket; answer: Promise<string> }> => {
  const socket = connect(server.port, '127.0.0.1')
  const { promise: answer, resolve } = Promise.withResolvers<string>()
  let text = ''
  socket.on('data', (data) => {
    text += data
    if (text.includes('\r\n\r\n')) resolve(text)
  })
  socket.on('error', () => resolve(text))
  socket.on('close', () => resolve(text))
  await new Promise<void>((ready) => socket.once('connect', ready))
  socket.write([`PUT ${path} HTTP/1.1`, 'Host: localhost', ...headers, '', body].join('\r\n'))
  return { socket, answer }
}
const leftovers = () => {
  const partial = join(dir, 'partial')
  return existsSync(partial) ? readdirSync(partial) : []
}

test('an archive is taken with exactly 200, whole, and without any credential', async () => {
  const { uploadUrl, statusOf } = await address()
  const archive = zip(3_000_000)
  const response = await put(uploadUrl, archive)
  expect([response.status, await response.text()]).toEqual([200, ''])
  await eventually('the build', async () => (await statusOf()) === 'built')
  expect(built.at(-1)!.equals(archive)).toBe(true)
  const again = await put(uploadUrl, archive)
  expect([again.status, ((await again.json()) as { message: string }).message]).toEqual([
    409,
    expect.stringContaining('used already'),
  ])
})

test('what is no address, no archive or too large is refused', async () => {
  const { uploadUrl } = await address()
  const statusOf = async (response: Promise<Response>) => (await response).status
  expect(await statusOf(put(`${uploadUrl}x`, zip(10)))).toBe(404)
  expect(await statusOf(put(uploadUrl, zip(10), { 'content-type': 'text/html' }))).toBe(415)
  expect(await statusOf(put(uploadUrl, Buffer.from('<html></html>')))).toBe(400)
  expect(await statusOf(fetch(uploadUrl))).toBe(405)
  const large = await begun(new URL(uploadUrl).pathname, [
    'Content-Type: application/zip',
    'Content-Length: 9000000',
  ])
  expect(await large.answer).toStartWith('HTTP/1.1 413')
  large.socket.destroy()
  expect(await statusOf(put(uploadUrl, zip(10)))).toBe(200)
})

test('a connection that is lost leaves nothing, and the address takes the archive again', async () => {
  const { uploadUrl, path } = await address()
  for (const head of ['Content-Length: 1000000', 'Transfer-Encoding: chunked']) {
    const body = head.startsWith('T') ? '186a0\r\nPK\u0003\u0004xxx' : 'PK\u0003\u0004xxx'
    const { socket } = await eventually('the upload', async () => {
      const upload = await begun(path, ['Content-Type: application/zip', head], body)
      // The one before is over a moment after its file is gone: until then the address is in use.
      const outcome = await Promise.race([
        upload.answer,
        eventually('a file', () => leftovers().length === 1),
      ])
      return outcome === true ? upload : null
    })
    socket.destroy()
    await eventually('the end of the upload', () => leftovers().length === 0)
  }
  await eventually('the end of the last one', async () => (await put(uploadUrl, zip(100))).status === 200)
})

test('of two at once on one address the second is told so, and the first goes on', async () => {
  const { uploadUrl, path, statusOf } = await address()
  const archive = zip(100)
  const { socket, answer } = await begun(
    path,
    ['Content-Type: application/zip', 'Content-Length: 100'],
    archive.toString('latin1', 0, 50),
  )
  await eventually('the upload', () => leftovers().length === 1)
  expect((await put(uploadUrl, archive)).status).toBe(409)
  socket.write(archive.subarray(50))
  expect(await answer).toStartWith('HTTP/1.1 200')
  socket.destroy()
  await eventually('the build', async () => (await statusOf()) === 'built')
  expect(built.at(-1)!.equals(archive)).toBe(true)
})
