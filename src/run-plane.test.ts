import { afterAll, beforeAll, describe, expect, test } from 'bun:test'
import { readdirSync, readlinkSync } from 'node:fs'
import { rm } from 'node:fs/promises'
import { connect } from 'node:net'
import type { SandboxInstance as Sandbox } from '@blaxel/core'
import { unusedPorts } from './lib/test-ports.ts'
import { type Platform, temporaryDataDir } from './platform.ts'
import { openTestClient, type TestClient } from './test-client.ts'

/** The whole way through the unmodified client: its calls, this platform, a real guest. */

let client: TestClient
let platform: Platform
let sandbox: Sandbox
let SandboxInstance: typeof import('@blaxel/core').SandboxInstance

beforeAll(async () => {
  client = await openTestClient({ dataDir: temporaryDataDir, runtime: 'process' })
  ;({ platform, SandboxInstance } = client)
  sandbox = await SandboxInstance.create({ name: 'run-plane' })
}, 120_000)

afterAll(async () => {
  await client?.[Symbol.asyncDispose]()
}, 120_000)

describe('files', () => {
  test('are written, read, listed, copied and removed', async () => {
    const dir = 'sdk files'
    const home = (await sandbox.process.exec({ command: 'pwd', waitForCompletion: true })).stdout!.trim()
    const path = `${home}/${dir}`
    await sandbox.fs.mkdir(path)
    await sandbox.fs.write(`${path}/a b.txt`, 'héllo\n')
    expect(await sandbox.fs.read(`${path}/a b.txt`)).toBe('héllo\n')
    await sandbox.fs.writeTree(
      [
        { path: 'src/app.js', content: 'app' },
        { path: 'README.md', content: '# read' },
      ],
      `${path}/tree`,
    )
    const listing = await sandbox.fs.ls(`${path}/tree`)
    expect(listing.files!.map(({ name }) => name)).toEqual(['README.md'])
    expect(listing.subdirectories!.map(({ name }) => name)).toEqual(['src'])
    await sandbox.fs.cp(`${path}/tree`, `${path}/copy`)
    expect(await sandbox.fs.read(`${path}/copy/src/app.js`)).toBe('app')
    await expect(sandbox.fs.rm(`${path}/copy`)).rejects.toThrow('directory not empty')
    await sandbox.fs.rm(`${path}/copy`, true)
    await expect(sandbox.fs.ls(`${path}/copy`)).rejects.toMatchObject({ status: 404 })
    await expect(sandbox.fs.read(`${path}/none`)).rejects.toThrow(
      `stat ${path}/none: no such file or directory`,
    )
  })

  test('binaries come back as they went, small and in parts', async () => {
    const home = (await sandbox.process.exec({ command: 'pwd', waitForCompletion: true })).stdout!.trim()
    for (const bytes of [0, 300_000, 13_000_000]) {
      const content = new Uint8Array(bytes).map((_, at) => (at * 31) % 256)
      const path = `${home}/what? ${bytes}.bin`
      await sandbox.fs.writeBinary(path, content)
      const back = await sandbox.fs.readBinary(path)
      expect(Buffer.from(await back.arrayBuffer()).equals(Buffer.from(content))).toBe(true)
    }
    const text = 'large text é '.repeat(600_000)
    await sandbox.fs.write(`${home}/large.txt`, text)
    expect((await sandbox.fs.read(`${home}/large.txt`)) === text).toBe(true)
  })
})

test('a download in progress ends with its sandbox, and lets go of its file', async () => {
  // As much as is ever sent from the file itself, and more than the buffers of a connection hold.
  const doomedBytes = 8 * 1024 * 1024
  const doomed = await SandboxInstance.create({ name: 'run-plane-doomed' })
  await doomed.fs.writeBinary('/tmp/run-plane-doomed', new Uint8Array(doomedBytes))
  const openFiles = () =>
    readdirSync('/proc/self/fd').filter((entry) => {
      try {
        return readlinkSync(`/proc/self/fd/${entry}`).includes('run-plane-doomed')
      } catch {
        return false
      }
    }).length
  const { port } = new URL(process.env.BL_RUN_URL!)
  const socket = connect(Number(port), '127.0.0.1')
  socket.on('error', () => {})
  let bytes = 0
  const closed = new Promise((resolve) => socket.on('close', resolve))
  const begun = new Promise<void>((resolve) => {
    socket.on('data', (chunk) => {
      bytes += chunk.length
      socket.pause()
      resolve()
    })
  })
  const path = `/${platform.credentials.workspace}/sandboxes/run-plane-doomed/filesystem/%2Ftmp%2Frun-plane-doomed`
  const headers = `Host: localhost:${port}\r\nAuthorization: Bearer ${platform.credentials.apiKey}\r\n`
  socket.write(`GET ${path}?download=true HTTP/1.1\r\n${headers}\r\n`)
  await begun
  expect(openFiles()).toBe(1)
  await SandboxInstance.delete('run-plane-doomed')
  socket.resume()
  await closed
  expect(bytes).toBeLessThan(doomedBytes)
  for (const deadline = performance.now() + 60_000; openFiles() > 0; await Bun.sleep(5)) {
    if (performance.now() > deadline) throw new Error('the file is still open')
  }
  await rm('/tmp/run-plane-doomed', { force: true })
})

describe('processes', () => {
  test('run and answer with their output, to the last byte', async () => {
    const done = await sandbox.process.exec({
      command: 'echo test; echo "$WHO" >&2; exit 3',
      env: { WHO: 'me' },
      name: 'first',
      waitForCompletion: true,
    })
    expect(done).toMatchObject({
      name: 'first',
      status: 'failed',
      exitCode: 3,
      stdout: 'test\n',
      stderr: 'me\n',
    })
    expect(await sandbox.process.logs('first', 'stdout')).toBe('test\n')
    expect(await sandbox.process.get(done.pid!)).toMatchObject({ name: 'first' })
    expect((await sandbox.process.list()).map(({ name }) => name)).toContain('first')
    await expect(sandbox.process.get('nobody')).rejects.toThrow('process not found')
  })

  test('stream their output, as they run and afterwards', async () => {
    const lines: string[] = []
    const done = await sandbox.process.exec({
      command: 'for i in 1 2 3; do echo line $i; sleep 0.05; done; echo end >&2',
      name: 'stream',
      waitForCompletion: true,
      onLog: (line) => lines.push(line),
    })
    expect(lines).toEqual(['line 1\n', 'line 2\n', 'line 3\n', 'end\n'])
    expect(done).toMatchObject({ status: 'completed', stdout: 'line 1\nline 2\nline 3\n' })
    const replay: string[] = []
    await sandbox.process.streamLogs('stream', { onLog: (line) => replay.push(line) }).wait()
    expect(replay).toEqual(['line 1', 'line 2', 'line 3', 'end'])
  })

  test('are stopped and killed with all below them', async () => {
    await sandbox.process.exec({ command: 'sleep 1000 & sleep 1000', name: 'sleeper' })
    await sandbox.process.kill('sleeper')
    expect(await sandbox.process.get('sleeper')).toMatchObject({ status: 'killed', exitCode: -1 })
    await sandbox.process.exec({ command: 'sleep 1000', name: 'stopper' })
    await sandbox.process.stop('stopper')
    expect((await sandbox.process.get('stopper')).status).toBe('stopped')
  })

  test('read what is written to their stdin', async () => {
    const cat = await sandbox.process.exec({ command: 'cat', name: 'cat', stdin: true } as {
      command: string
    })
    await sandbox.process.writeStdin('cat', new TextEncoder().encode('hello\n') as never)
    await sandbox.process.closeStdin('cat')
    expect(await sandbox.process.wait(cat.pid!, { interval: 20 })).toMatchObject({
      stdout: 'hello\n',
      status: 'completed',
    })
  })

  test('are started again when they fail', async () => {
    const done = await sandbox.process.exec({
      command: 'exit 9',
      name: 'again',
      restartOnFailure: true,
      maxRestarts: 1,
      waitForCompletion: true,
    })
    expect(done).toMatchObject({ status: 'failed', exitCode: 9, restartCount: 1 })
  })
})

describe('ports', () => {
  const port = unusedPorts()

  beforeAll(async () => {
    const script = [
      'const h = require("http").createServer((q, s) => {',
      '  let b = ""; q.on("data", (d) => (b += d)); q.on("end", () => {',
      '    s.setHeader("x-app", "yes"); s.end(JSON.stringify({ m: q.method, u: q.url, h: q.headers, b })) }) })',
      `h.listen(${port}, "127.0.0.1")`,
    ].join('\n')
    const home = (await sandbox.process.exec({ command: 'pwd', waitForCompletion: true })).stdout!.trim()
    await sandbox.fs.write(`${home}/server.cjs`, script)
    const started = await sandbox.process.exec({
      command: `exec ${process.execPath} ${home}/server.cjs`,
      name: 'server',
      waitForPorts: [port],
    })
    expect(started.status).toBe('running')
  }, 120_000)

  test('are reached through the client, without its credentials', async () => {
    const answer = await sandbox.network.fetch(port, '/hello?x=1', { method: 'POST', body: 'data' })
    expect(answer.headers.get('x-app')).toBe('yes')
    const seen = (await answer.json()) as { m: string; u: string; b: string; h: Record<string, string> }
    expect(seen).toMatchObject({ m: 'POST', u: '/hello?x=1', b: 'data' })
    expect(JSON.stringify(seen.h)).not.toContain(platform.credentials.apiKey)
    expect((await sandbox.network.fetch(port + 1)).status).toBe(502)
  })

  test('are shown by previews, public and private', async () => {
    const publicOne = await sandbox.previews.create({
      metadata: { name: 'open' },
      spec: { port, public: true },
    })
    const address = new URL(publicOne.spec!.url!)
    const visit = (url: URL, headers: Record<string, string> = {}) =>
      fetch(`http://127.0.0.1:${url.port}${url.pathname}${url.search}`, {
        headers: { host: url.host, ...headers },
      })
    const page = await visit(address)
    expect([page.status, page.headers.get('content-security-policy')]).toEqual([200, null])
    const byPath = await fetch(`http://127.0.0.1:${address.port}/-/preview/${address.host.split('.')[0]}/x`)
    expect(((await byPath.json()) as { u: string }).u).toBe('/x')
    expect(byPath.headers.get('content-security-policy')).toBe('sandbox')
    const privateOne = await sandbox.previews.create({
      metadata: { name: 'closed' },
      spec: { port, public: false },
    })
    const closed = new URL(privateOne.spec!.url!)
    expect((await visit(closed)).status).toBe(401)
    const token = await privateOne.tokens.create(new Date(Date.now() + 60_000))
    expect((await visit(closed, { 'x-blaxel-preview-token': token.value })).status).toBe(200)
  })

  test('a session is used without any key', async () => {
    const session = await sandbox.sessions.create({ expiresAt: new Date(Date.now() + 60_000) })
    const guest = await SandboxInstance.fromSession(session)
    expect((await guest.process.exec({ command: 'echo session', waitForCompletion: true })).stdout).toBe(
      'session\n',
    )
  })
})

describe('drives', () => {
  test('there are none: the list is empty, and mounting says so after what is wrong with the request', async () => {
    expect(await sandbox.drives.list()).toEqual([])
    const refused = (request: object) =>
      sandbox.drives
        .mount({ driveName: 'shared', mountPath: '/mnt/shared', ...request })
        .catch((error: { status: number; message: string }) => `${error.status}: ${error.message}`)
    expect(await refused({})).toContain('there is no drive "shared": this platform has no drives yet')
    expect(await refused({ driveName: '../etc' })).toContain('drive name must be letters, digits')
    expect(await refused({ mountPath: '/mnt/../etc' })).toContain('mount path must not contain ".."')
    expect(await refused({ drivePath: 'logs' })).toContain('drive path must be absolute')
    expect(await refused({})).toStartWith('400: ')
    await expect(sandbox.drives.unmount('/mnt/shared')).rejects.toMatchObject({
      status: 400,
      message: expect.stringContaining('no drive is mounted at /mnt/shared'),
    })
  })
})

test('an environment is not read again while a sandbox runs, and asking says how it changes', async () => {
  const path = new URL(sandbox.metadata.url ?? '').pathname
  const response = await client.request(`${path}/environment/reload`, { method: 'POST' })
  expect([response.status, await response.json()]).toEqual([
    404,
    { error: expect.stringContaining('changes by an update of the sandbox') },
  ])
})

describe('tools', () => {
  test('the client finds the tools of a sandbox by its name, and calls them', async () => {
    const { getTool } = await import('@blaxel/core')
    const tools = await getTool('sandboxes/run-plane', { ms: 1 })
    const call = (name: string, input: unknown) =>
      tools.find((tool) => tool.name === name)!.call(input) as unknown as Promise<{
        structuredContent: Record<string, unknown>
      }>
    const ran = await call('processExecute', { command: 'echo $((6 * 7))', waitForCompletion: true })
    expect(ran.structuredContent).toMatchObject({ stdout: '42\n', exitCode: 0 })
    const { workingDirectory } = (await call('fsGetWorkingDirectory', {})).structuredContent
    await call('fsWriteFile', { path: 'by-tool.txt', content: 'tool' })
    expect(await sandbox.fs.read(`${workingDirectory}/by-tool.txt`)).toBe('tool')
  })

  test('the server is not open to whoever has no key', async () => {
    const workspace = platform.credentials.workspace
    const response = await fetch(`${process.env.BL_RUN_URL}/${workspace}/sandboxes/run-plane/mcp`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: '{"jsonrpc":"2.0","id":1,"method":"tools/list"}',
    })
    expect(response.status).toBe(401)
  })
})

test('what is not there or not allowed is told in the gateway envelope', async () => {
  const url = (path: string) =>
    `${process.env.BL_RUN_URL}/${platform.credentials.workspace}/sandboxes/${path}`
  const none = await fetch(url('nobody/health'), {
    headers: { authorization: `Bearer ${platform.credentials.apiKey}` },
  })
  expect(none.status).toBe(404)
  expect(await none.json()).toMatchObject({ error: { code: 'WORKLOAD_NOT_FOUND', origin: 'platform' } })
  expect((await fetch(url('run-plane/health'))).status).toBe(401)
})
