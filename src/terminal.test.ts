import { afterAll, beforeAll, expect, test } from 'bun:test'
import { eventually } from './lib/test-eventually.ts'
import { temporaryDataDir } from './platform.ts'
import { openTestClient, type TestClient } from './test-client.ts'

/** The terminal as `bl connect` uses it: a WebSocket at the sandbox's address, the credential in the query. */

let client: TestClient
let address: string

beforeAll(async () => {
  client = await openTestClient({ dataDir: temporaryDataDir, runtime: 'process' })
  const sandbox = await client.SandboxInstance.create({
    name: 'terminals',
    envs: [{ name: 'SHELL', value: '/bin/sh' }],
  })
  address = (sandbox.metadata as { url?: string }).url ?? ''
}, 120_000)

afterAll(() => client?.[Symbol.asyncDispose](), 120_000)

class Connection {
  text = ''
  readonly errors: string[] = []
  readonly closed = Promise.withResolvers<{ code: number; reason: string }>()
  private constructor(readonly socket: WebSocket) {
    socket.addEventListener('message', ({ data }) => {
      const frame = JSON.parse(String(data)) as { type: string; data: string }
      if (frame.type === 'output') this.text += frame.data
      else this.errors.push(frame.data)
    })
    socket.addEventListener('close', ({ code, reason }) => this.closed.resolve({ code, reason }))
  }

  static async open(query: Record<string, string> = {}, path = 'terminal/ws'): Promise<Connection> {
    const parameters = new URLSearchParams({ token: client.platform.credentials.apiKey, ...query })
    const socket = new WebSocket(`${address.replace(/^http/, 'ws')}/${path}?${parameters}`)
    const connection = new Connection(socket)
    await new Promise((resolve, reject) => {
      socket.addEventListener('open', resolve)
      socket.addEventListener('error', reject)
    })
    return connection
  }

  type(data: string): void {
    this.socket.send(JSON.stringify({ type: 'input', data }))
  }

  resize(cols: number, rows: number): void {
    this.socket.send(JSON.stringify({ type: 'resize', cols, rows }))
  }

  async shows(pattern: RegExp): Promise<RegExpExecArray> {
    return await eventually(`${pattern} in ${JSON.stringify(this.text.slice(-300))}`, () =>
      pattern.exec(this.text),
    )
  }
}

test('what is typed runs in a shell of the size that was asked for, and its output comes back', async () => {
  const terminal = await Connection.open({ sessionId: 'size', cols: '101', rows: '33' })
  terminal.type('stty size; echo $((40 + 2)) $TERM\n')
  await terminal.shows(/33 101\r\n42 xterm-256color\r\n/)
  terminal.resize(60, 20)
  terminal.type('stty size\n')
  await terminal.shows(/20 60\r\n/)
  terminal.socket.close(1000)
})

test('a session goes on without its client, and shows the one who comes back what there was', async () => {
  const first = await Connection.open({ sessionId: 'kept' })
  first.type('kept=yes; echo marked-$$\n')
  const [, pid] = await first.shows(/marked-(\d+)\r\n/)
  first.socket.close(1000)
  await first.closed.promise
  const second = await Connection.open({ sessionId: 'kept' }, 'ws/terminal')
  await second.shows(new RegExp(`marked-${pid}\r\n`))
  expect(second.text).toStartWith('\x1b[0m')
  second.type('echo again-$kept-$$\n')
  await second.shows(new RegExp(`again-yes-${pid}\r\n`))
  const third = await Connection.open({ sessionId: 'kept' })
  third.type('echo to both\n')
  await Promise.all([second.shows(/to both\r\n/), third.shows(/to both\r\n/)])
})

test('sessions of other names are other shells', async () => {
  const [one, two] = await Promise.all([
    Connection.open({ sessionId: 'one' }),
    Connection.open({ sessionId: 'two' }),
  ])
  one.type('echo pid-$$\n')
  two.type('echo pid-$$\n')
  const [[, a], [, b]] = await Promise.all([one.shows(/pid-(\d+)/), two.shows(/pid-(\d+)/)])
  expect(a).not.toBe(b)
})

test('when the shell ends the connection does, and says so; the next one gets a new shell', async () => {
  const terminal = await Connection.open({ sessionId: 'ends' })
  terminal.type('echo last words; exit\n')
  expect(await terminal.closed.promise).toEqual({ code: 1000, reason: 'Shell exited' })
  expect(terminal.text).toContain('last words\r\n')
  const next = await Connection.open({ sessionId: 'ends' })
  next.type('echo new\n')
  await next.shows(/new\r\n/)
  expect(next.text).not.toContain('last words')
})

test('a flood reaches the end of the screen, every line of it', async () => {
  const terminal = await Connection.open({ sessionId: 'flood' })
  terminal.type('echo; seq 1 200000; echo done-$((1 + 1))\n')
  await terminal.shows(/done-2\r\n/)
  const numbers = [...terminal.text.matchAll(/^(\d+)\r$/gm)].map(([, number]) => Number(number))
  expect(numbers).toEqual(Array.from({ length: 200_000 }, (_, at) => at + 1))
})

test('what cannot be is told in a frame', async () => {
  const terminal = await Connection.open({ sessionId: 'wrong' })
  terminal.socket.send('{"type":"resize","cols":0,"rows":1}')
  terminal.socket.send('no JSON')
  await eventually('two errors', () => terminal.errors.length === 2)
  terminal.type('echo alive\n')
  await terminal.shows(/alive\r\n/)
  const without = await Connection.open({ sessionId: 'no shell', shell: '/nowhere/sh' })
  expect((await without.closed.promise).code).toBe(1011)
  expect(without.errors.join()).toContain('/nowhere/sh')
})

test('nobody gets in without a credential, and the page is served to who has one', async () => {
  expect((await fetch(`${address}/terminal`)).status).toBe(401)
  expect((await fetch(`${address}/terminal/ws?token=wrong`)).status).toBe(401)
  const page = await fetch(`${address}/terminal?token=${client.platform.credentials.apiKey}`)
  expect([page.status, page.headers.get('content-type')]).toEqual([200, 'text/html; charset=utf-8'])
  const policy = page.headers.get('content-security-policy') ?? ''
  expect(policy).toContain("default-src 'none'")
  expect(policy).toEndWith('sandbox allow-scripts')
  const html = await page.text()
  expect(html).toContain('<h1>terminals</h1>')
  expect(html).not.toMatch(/(?:src|href)="?(?:https?:)?\/\//)
  const plain = await client.request(
    `/${client.platform.credentials.workspace}/sandboxes/terminals/terminal/ws`,
  )
  expect([plain.status, await plain.json()]).toEqual([
    400,
    { error: 'the terminal is a WebSocket: send Upgrade: websocket' },
  ])
})

test('it can be turned off', async () => {
  const sandbox = await client.SandboxInstance.create({
    name: 'no-terminal',
    envs: [{ name: 'DISABLE_TERMINAL', value: 'true' }],
  })
  const { url } = sandbox.metadata as { url?: string }
  expect((await fetch(`${url}/terminal?token=${client.platform.credentials.apiKey}`)).status).toBe(404)
})
