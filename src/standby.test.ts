import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from 'bun:test'
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { SandboxInstance as Sandbox } from '@blaxel/core'
import { HurriedClock } from './lib/test-clock.ts'
import { eventually } from './lib/test-eventually.ts'
import type { PlatformOptions } from './platform.ts'
import { openTestClient, type TestClient, whyNot } from './test-client.ts'

/** Standby as the client of the cloud sees it: real machines, real freezing, and a clock that is moved on. */

setDefaultTimeout(120_000)
// Nothing of what a test does between two steps takes as long.
const standbyAfterSeconds = 60
const clock = new HurriedClock()

const directory = mkdtempSync(join(tmpdir(), 'hutch-standby-'))
afterAll(() => rmSync(directory, { recursive: true, force: true }))
const why = await whyNot(({ standby }) =>
  standby === 'freeze' ? '' : `this host cannot freeze: standby is ${standby}`,
)

describe.skipIf(why !== '')('standby', () => {
  let client: TestClient
  let sandbox: Sandbox
  const idleConnectionSeconds = 5 * standbyAfterSeconds
  // Not a copy of the host's /usr, for which ten minutes would be time.
  const open = (options: PlatformOptions) =>
    openTestClient({ standbyAfterSeconds, clock, imageSource: 'live', ...options })

  beforeAll(async () => {
    const dataDir = join(directory, 'data')
    mkdirSync(dataDir)
    client = await open({ dataDir, idleConnectionSeconds })
    sandbox = await client.SandboxInstance.create({ name: 'sleeper', memory: 512 })
  })
  afterAll(() => client?.[Symbol.asyncDispose]())

  const stateOf = async (name = 'sleeper') =>
    ((await (await client.request(`/v0/sandboxes/${name}`)).json()) as { state?: string }).state
  const asleep = (name = 'sleeper') => meanwhile('standby', async () => (await stateOf(name)) === 'STANDBY')
  /**
   * Lets time pass until `holds`. More than once, for the end of a request may reach the platform after its answer
   * reached us; and ever less often, for what begins then has a time of its own that must not run out.
   */
  const meanwhile = (what: string, holds: () => Promise<boolean> | boolean) => {
    let nextAt = 0
    let waitMs = 50
    return eventually(what, async () => {
      if (await holds()) return true
      if (performance.now() < nextAt) return false
      clock.advance(standbyAfterSeconds * 1000)
      nextAt = performance.now() + waitMs
      waitMs *= 2
      return false
    })
  }
  /** Several times as long as it takes to fall asleep, with a turn for whoever is due in between. */
  const staysAwake = async () => {
    for (let turn = 0; turn < 12; turn++) {
      clock.advance((standbyAfterSeconds * 1000) / 3)
      expect(await stateOf()).toBe('RUNNING')
    }
  }
  const lastUse = async () => Date.parse((await client.SandboxInstance.get('sleeper')).lastUsedAt ?? '')

  /** Counts as long as it runs, without asking to be kept awake. */
  const startCounter = async (name: string) => {
    const command = 'i=0; while :; do i=$((i+1)); echo $i > /tmp/count; sleep 0.01; done'
    await sandbox.process.exec({ name, command })
  }
  const count = async () => Number(await sandbox.fs.read('/tmp/count'))

  test('is entered without use, stops every program, and costs no processor', async () => {
    await startCounter('counter')
    await eventually('a count', async () => (await count().catch(() => 0)) > 0)
    await asleep()
    const before = processorTicks()
    await new Promise((resolve) => setTimeout(resolve, 200))
    expect(processorTicks()).toBe(before)
  })

  test('is not left by looking at the sandbox from outside', async () => {
    await asleep()
    const { SandboxInstance } = client
    const used = await lastUse()
    for (let round = 0; round < 5; round++) {
      await SandboxInstance.get('sleeper')
      await SandboxInstance.list()
      await sandbox.previews.list()
      await SandboxInstance.updateMetadata('sleeper', { labels: { round: String(round) } })
    }
    expect(await stateOf()).toBe('STANDBY')
    expect(await lastUse()).toBe(used)
  })

  test('ends with any request, which is held and answered: programs go on where they were', async () => {
    await asleep()
    const used = await lastUse()
    const first = await count()
    expect(await stateOf()).toBe('RUNNING')
    await eventually('counting on', async () => (await count()) > first)
    expect(await lastUse()).toBeGreaterThan(used)
    const { events } = await client.SandboxInstance.get('sleeper')
    expect(events?.map(({ status }) => status)).toEqual(['DEPLOYING', 'DEPLOYED'])
  })

  test('ends for every kind of request', async () => {
    const port = 3210
    const script = `require('http').createServer((q, r) => r.end('up ' + q.url)).listen(${port})`
    await sandbox.fs.write('/tmp/server.js', script)
    await sandbox.process.exec({
      name: 'server',
      command: 'node /tmp/server.js',
      waitForPorts: [port],
    })
    const preview = await sandbox.previews.create({ metadata: { name: 'p' }, spec: { port, public: true } })
    const label = new URL(preview.spec?.url ?? '').host.split('.')[0]
    const requests: Record<string, () => Promise<unknown>> = {
      files: () => sandbox.fs.ls('/tmp'),
      exec: () => sandbox.process.exec({ command: 'true', waitForCompletion: true }),
      'a port': async () => expect(await (await sandbox.fetch(port, '/held')).text()).toBe('up /held'),
      'a preview': async () =>
        expect(await (await fetch(`${client.url}/-/preview/${label}/page`)).text()).toBe('up /page'),
      health: async () => expect((await client.request('/main/sandboxes/sleeper/health')).status).toBe(200),
    }
    for (const [what, request] of Object.entries(requests)) {
      await asleep()
      await request()
      expect([what, await stateOf()]).toEqual([what, 'RUNNING'])
    }
    await sandbox.process.kill('server')
  })

  test('many files read at once while it wakes are all answered, though nothing was read there before', async () => {
    const fresh = await client.SandboxInstance.create({ name: 'fresh', memory: 512 })
    await fresh.fs.write('/tmp/many', 'once')
    await asleep('fresh')
    const reads = Array.from({ length: 40 }, () => fresh.fs.read('/tmp/many'))
    expect(new Set(await Promise.all(reads))).toEqual(new Set(['once']))
    await fresh.delete()
  })

  test('many requests that come at once, around the moment of falling asleep, are all answered', async () => {
    for (let round = 0; round < 6; round++) {
      clock.advance(standbyAfterSeconds * 1000 - 2)
      await new Promise((resolve) => setTimeout(resolve, round))
      const answers = await Promise.all(
        Array.from({ length: 8 }, (_, at) =>
          sandbox.process.exec({ command: `echo ${at}`, waitForCompletion: true }),
        ),
      )
      expect(answers.map(({ stdout }) => stdout)).toEqual(answers.map((_, at) => `${at}\n`))
    }
  })

  test('waits for a process that asks to be kept alive, and comes when that ends', async () => {
    const command = 'while [ ! -e /tmp/enough ]; do sleep 0.02; done'
    await sandbox.process.exec({ name: 'keeper', command, keepAlive: true, timeout: 0 })
    await staysAwake()
    await sandbox.fs.write('/tmp/enough', '')
    await asleep()
    expect((await sandbox.process.get('keeper')).status).toBe('completed')
  })

  test('waits for an open stream', async () => {
    await sandbox.process.exec({ name: 'quiet', command: 'echo begun; sleep 1000' })
    const begun = Promise.withResolvers<void>()
    const stream = sandbox.process.streamLogs('quiet', { onLog: () => begun.resolve() })
    await begun.promise
    await staysAwake()
    stream.close()
    await asleep()
  })

  test('waits for an open WebSocket, and not for a connection that only idles', async () => {
    const port = 3211
    await sandbox.fs.write('/tmp/socket.js', webSocketServer(port))
    await sandbox.process.exec({ name: 'socket', command: 'node /tmp/socket.js', waitForPorts: [port] })
    const address = `${client.url.replace('http', 'ws')}/main/sandboxes/sleeper/port/${port}/`
    const { apiKey } = client.platform.credentials
    const headers = { 'x-blaxel-authorization': `Bearer ${apiKey}` }
    const socket = new WebSocket(address, { headers } as unknown as string[])
    await new Promise((resolve, reject) => {
      socket.addEventListener('open', resolve)
      socket.addEventListener('error', reject)
    })
    await staysAwake()
    socket.close(1000)
    // The client's pooled connections to the platform, and ours to the server inside, stay open meanwhile.
    await asleep()
  })

  test('comes for a WebSocket on which nothing is said for long, which stays open and wakes with the next word', async () => {
    const port = 3212
    await sandbox.fs.write('/tmp/echo.py', echoServer(port))
    await sandbox.process.exec({ name: 'echo', command: 'python3 /tmp/echo.py', waitForPorts: [port] })
    const address = `${client.url.replace('http', 'ws')}/main/sandboxes/sleeper/port/${port}/`
    const headers = { 'x-blaxel-authorization': `Bearer ${client.platform.credentials.apiKey}` }
    const socket = new WebSocket(address, { headers } as unknown as string[])
    const answers: string[] = []
    socket.addEventListener('message', ({ data }) => answers.push(String(data)))
    await new Promise((resolve, reject) => {
      socket.addEventListener('open', resolve)
      socket.addEventListener('error', reject)
    })
    for (const word of ['one', 'two', 'three']) {
      socket.send(word)
      await eventually(`an answer to ${word}`, () => answers.includes(word))
      expect(await stateOf()).toBe('RUNNING')
      await asleep()
    }
    expect(socket.readyState).toBe(WebSocket.OPEN)
    socket.close(1000)
    await asleep()
  })

  test('outlives the platform: a frozen sandbox is found frozen, and wakes', async () => {
    await asleep()
    const used = await lastUse()
    const { dataDir } = client.platform.config
    await client.platform.close({ keepInstances: true })
    await client[Symbol.asyncDispose]()
    client = await open({ dataDir })
    expect(await stateOf()).toBe('STANDBY')
    expect(await lastUse()).toBe(used)
    sandbox = await client.SandboxInstance.get('sleeper')
    expect((await sandbox.process.get('counter')).status).toBe('running')
    const first = await count()
    await eventually('counting on', async () => (await count()) > first)
  })

  test('is forgotten with the machine: a sandbox that was stopped starts awake, last used when it was', async () => {
    await asleep()
    const used = await lastUse()
    const { dataDir } = client.platform.config
    await client.platform.close({ keepInstances: false })
    await client[Symbol.asyncDispose]()
    client = await open({ dataDir })
    sandbox = await client.SandboxInstance.get('sleeper')
    expect(await lastUse()).toBe(used)
    expect((await sandbox.process.get('counter')).status).toBe('killed')
    await asleep()
    expect(await sandbox.fs.read('/tmp/server.js')).toContain('createServer')
  })

  test('gives memory back after a while, and ends with the next request all the same', async () => {
    if (!client.platform.runtime.capabilities.reclaim) {
      console.warn('skipped: no control group here gives memory back')
      return
    }
    const { dataDir } = client.platform.config
    await client.platform.close({ keepInstances: true })
    await client[Symbol.asyncDispose]()
    const told: string[] = []
    const tell = (message: string) => void told.push(message)
    const log = { debug: tell, info: tell, warn: tell, error: tell }
    client = await open({ dataDir, reclaimAfterSeconds: 60, log })
    await meanwhile('memory given back', () => told.includes('memory of an instance was given back'))
    expect(await stateOf()).toBe('STANDBY')
    sandbox = await client.SandboxInstance.get('sleeper')
    expect(await sandbox.fs.read('/tmp/server.js')).toContain('createServer')
    expect(told.filter((message) => message.includes('could not'))).toEqual([])
  })

  test('does not stand in the way of deletion', async () => {
    await asleep()
    await sandbox.delete()
    await expect(client.SandboxInstance.get('sleeper')).rejects.toMatchObject({ code: 404 })
  })
})

/** Processor time that all programs of the sandbox with that file have used, in ticks. */
function processorTicks(): number {
  let ticks = 0
  for (const pid of new Bun.Glob('[0-9]*').scanSync({ cwd: '/proc', onlyFiles: false })) {
    try {
      if (!existsSync(`/proc/${pid}/root/tmp/count`)) continue
      const fields = readFileSync(`/proc/${pid}/stat`, 'utf8').split(') ')[1]?.split(' ') ?? []
      ticks += Number(fields[11]) + Number(fields[12])
    } catch {}
  }
  return ticks
}

function webSocketServer(port: number): string {
  return `
const { createHash } = require('crypto')
require('http').createServer().on('upgrade', (request, socket) => {
  const accept = createHash('sha1')
    .update(request.headers['sec-websocket-key'] + '258EAFA5-E914-47DA-95CA-C5AB0DC85B11').digest('base64')
  socket.write('HTTP/1.1 101 x\\r\\nUpgrade: websocket\\r\\nConnection: Upgrade\\r\\nSec-WebSocket-Accept: ' +
    accept + '\\r\\n\\r\\n')
  socket.on('data', () => socket.end()).on('error', () => {})
}).listen(${port})`
}

/** Answers each short text frame with the same text. */
function echoServer(port: number): string {
  return `
import base64, hashlib, socket
server = socket.create_server(('127.0.0.1', ${port}))
def take(connection, count):
    data = b''
    while len(data) < count:
        more = connection.recv(count - len(data))
        if not more: raise EOFError
        data += more
    return data
while True:
    connection, _ = server.accept()
    try:
        head = b''
        while b'\\r\\n\\r\\n' not in head: head += take(connection, 1)
        key = [line.split(':', 1)[1].strip() for line in head.decode().split('\\r\\n') if line.lower().startswith('sec-websocket-key')][0]
        accept = base64.b64encode(hashlib.sha1((key + '258EAFA5-E914-47DA-95CA-C5AB0DC85B11').encode()).digest()).decode()
        connection.sendall(('HTTP/1.1 101 x\\r\\nUpgrade: websocket\\r\\nConnection: Upgrade\\r\\nSec-WebSocket-Accept: ' + accept + '\\r\\n\\r\\n').encode())
        while True:
            first, second = take(connection, 2)
            mask = take(connection, 4)
            body = bytes(byte ^ mask[at % 4] for at, byte in enumerate(take(connection, second & 127)))
            if first & 15 == 8: break
            connection.sendall(bytes([first, len(body)]) + body)
    except (EOFError, OSError, IndexError): pass
    connection.close()
`
}
