import { afterAll, beforeAll, describe, expect, test } from 'bun:test'
import type { SandboxInstance } from '@blaxel/core'
import { eventually } from './lib/test-eventually.ts'
import { unusedPorts } from './lib/test-ports.ts'
import { temporaryDataDir } from './platform.ts'
import { openTestClient, type TestClient } from './test-client.ts'

/** Every method of `sandbox.process`, through the unmodified client and a real guest. */

let client: TestClient
let sandbox: SandboxInstance

beforeAll(async () => {
  client = await openTestClient({ dataDir: temporaryDataDir, runtime: 'process' })
  sandbox = await client.SandboxInstance.create({ name: 'processes' })
}, 120_000)

afterAll(() => client?.[Symbol.asyncDispose](), 120_000)

/** A line of 200 bytes for each number. */
const numbered = (count: number) => `seq -f '%0199g' 1 ${count}`

describe('exec', () => {
  test('answers at once with a running process, whose output is fetched later', async () => {
    const started = await sandbox.process.exec({ command: 'echo out; echo err >&2', name: 'quick' })
    expect(started).toMatchObject({ name: 'quick', exitCode: 0, logs: null })
    expect(started.pid).toMatch(/^\d+$/)
    const ended = await sandbox.process.wait('quick', { interval: 10 })
    expect(ended).toMatchObject({ status: 'completed', exitCode: 0, stdout: 'out\n', stderr: 'err\n' })
    expect(ended.completedAt).toMatch(/^\w{3}, \d\d \w{3} \d{4} [\d:]{8} GMT$/)
    expect(await sandbox.process.logs('quick')).toBe('out\nerr\n')
    expect(await sandbox.process.logs('quick', 'stdout')).toBe('out\n')
    expect(await sandbox.process.logs('quick', 'stderr')).toBe('err\n')
  })

  test('that waits calls back with what each stream says as it comes, and answers with all of it', async () => {
    const seen: Record<'log' | 'out' | 'err', string[]> = { log: [], out: [], err: [] }
    const done = await sandbox.process.exec({
      command: `printf 'a\\n\\nb "quoted" \\\\ \\t é\\n'; echo bad >&2; printf 'no end'; exit 4`,
      waitForCompletion: true,
      onLog: (line) => seen.log.push(line),
      onStdout: (line) => seen.out.push(line),
      onStderr: (line) => seen.err.push(line),
    })
    expect(seen.out).toEqual(['a\n', '\n', 'b "quoted" \\ \t é\n', 'no end'])
    expect(seen.err).toEqual(['bad\n'])
    expect(seen.log.toSorted()).toEqual([...seen.out, ...seen.err].toSorted())
    expect(done).toMatchObject({ status: 'failed', exitCode: 4, stderr: 'bad\n' })
    expect(done.stdout).toEndWith('no end')
  })

  test('that does not wait calls back, too, until it is closed', async () => {
    const lines: string[] = []
    const two = Promise.withResolvers<void>()
    const started = await sandbox.process.exec({
      command: 'i=0; while read -r line; do echo "got $line"; done',
      name: 'echoes',
      stdin: true,
      onLog: (line: string) => {
        lines.push(line)
        if (lines.length === 2) two.resolve()
      },
    } as never)
    const encoder = new TextEncoder()
    await sandbox.process.writeStdin('echoes', encoder.encode('one\ntwo\n') as never)
    await two.promise
    ;(started as unknown as { close(): void }).close()
    await sandbox.process.writeStdin('echoes', encoder.encode('three\n') as never)
    await sandbox.process.closeStdin('echoes')
    await sandbox.process.closeStdin('echoes')
    expect((await sandbox.process.wait('echoes', { interval: 10 })).stdout).toBe(
      'got one\ngot two\ngot three\n',
    )
    expect(lines).toEqual(['got one', 'got two'])
  })

  test('whose working directory does not exist says so, streamed or not', async () => {
    const command = { command: 'ls', workingDir: '/nowhere', waitForCompletion: true }
    const reason = "could not execute command 'ls' because folder '/nowhere' does not exist"
    await expect(sandbox.process.exec({ ...command })).rejects.toThrow(reason)
    await expect(sandbox.process.exec({ ...command, onLog: () => {} })).rejects.toThrow(reason)
  })
})

describe('output', () => {
  test('an attached reader gets every line of a flood once, however much it is', async () => {
    let next = 1
    let begun = ''
    const wrong: string[] = []
    const done = await sandbox.process.exec({
      command: numbered(400_000),
      waitForCompletion: true,
      onStdout: (text) => {
        const lines = `${begun}${text}`.split('\n')
        begun = lines.pop() ?? ''
        for (const line of lines) if (Number(line) !== next++) wrong.push(line)
      },
    })
    expect([done.status, next - 1, wrong]).toEqual(['completed', 400_000, []])
    expect(done.stdout).toStartWith('[... truncated, see the process log file for the full output ...]\n')
  })

  test('a late reader gets the last 32 MiB, and first that there was more', async () => {
    const lines = 300_000
    await sandbox.process.exec({ command: numbered(lines), name: 'flood', waitForCompletion: true })
    const seen: string[] = []
    await sandbox.process.streamLogs('flood', { onLog: (line) => seen.push(line) }).wait()
    expect(seen.shift()).toBe('[... truncated, see the process log file for the full output ...]')
    const first = Number(seen[0])
    expect(seen.map(Number)).toEqual(Array.from({ length: lines - first + 1 }, (_, at) => first + at))
    // Of the oldest line the end alone may have been among them.
    const whole = Math.floor((32 * 1024 * 1024) / 200)
    expect([whole, whole - 1]).toContain(seen.length)
  })

  test('as records it is exact, bytes that are no text included, and restarts have a record of their own', async () => {
    await sandbox.process.exec({
      command: `printf 'text\\n\\377\\000'; exit 1`,
      name: 'records',
      restartOnFailure: true,
      maxRestarts: 1,
      waitForCompletion: true,
    })
    const answer = await client.request(
      `/${client.platform.credentials.workspace}/sandboxes/processes/process/records/logs/stream`,
      { headers: { accept: 'application/x-ndjson' } },
    )
    const records = (await answer.text())
      .split('\n')
      .slice(0, -1)
      .map((line) => JSON.parse(line))
      .filter(({ type }) => type !== 'keepalive')
    const base64 = Buffer.from('text\n\xff\0', 'latin1').toString('base64')
    expect(records).toEqual([
      { type: 'stdout', data: base64, encoding: 'base64' },
      {
        type: 'restart',
        data: '\n[Process failed with exit code 1. Attempting restart 1/1...]\n',
        attempt: 1,
        exitCode: 1,
      },
      { type: 'stdout', data: base64, encoding: 'base64' },
    ])
  })

  test.each([
    ['*/*', 'text/plain'],
    ['application/*', 'text/plain'],
    ['text/plain, application/x-ndjson', 'application/x-ndjson'],
    ['application/x-ndjson;q=0, text/plain', 'text/plain'],
    ['application/x-ndjson;q=0.5, text/plain;q=0.9', 'text/plain'],
    ['Text/Plain;q=0.5, Application/X-NDJSON; q=0.9', 'application/x-ndjson'],
  ])('to who accepts %s comes as %s', async (accept, type) => {
    await sandbox.process.exec({ command: 'echo said', name: 'said', waitForCompletion: true })
    const path = `/${client.platform.credentials.workspace}/sandboxes/processes/process/said/logs/stream`
    const answer = await client.request(path, { headers: { accept } })
    expect(answer.headers.get('content-type')?.split(';')[0]).toBe(type)
    expect(await answer.text()).toBe(
      type === 'text/plain' ? 'stdout:said\n' : '{"type":"stdout","data":"said\\n"}\n',
    )
  })
})

describe('names, pids and states', () => {
  test('a process is found by name and by pid, and listed; the newest answers to a name', async () => {
    const first = await sandbox.process.exec({ command: 'echo 1', name: 'twice', waitForCompletion: true })
    const second = await sandbox.process.exec({ command: 'echo 2', name: 'twice', waitForCompletion: true })
    expect((await sandbox.process.get('twice')).stdout).toBe('2\n')
    expect((await sandbox.process.get(first.pid ?? '')).stdout).toBe('1\n')
    const listed = await sandbox.process.list()
    expect(listed.filter(({ name }) => name === 'twice').map(({ pid }) => pid)).toEqual([
      first.pid,
      second.pid,
    ])
    await expect(sandbox.process.get('nobody')).rejects.toThrow('process not found')
    await expect(sandbox.process.stop('twice')).rejects.toThrow("process 'twice' is not running")
  })

  test('a name that runs is refused, and named by itself when it has none', async () => {
    await sandbox.process.exec({ command: 'sleep 100', name: 'taken' })
    await expect(sandbox.process.exec({ command: 'true', name: 'taken' })).rejects.toThrow(
      "process with name 'taken' already exists and is running",
    )
    await sandbox.process.kill('taken')
    expect((await sandbox.process.exec({ command: 'true' })).name).toMatch(/^proc-[a-z0-9]{8}$/)
  })

  test('the pid stays the same over restarts, and ends the run there is', async () => {
    const mark = `/tmp/hutch-restarted-${crypto.randomUUID()}`
    const started = await sandbox.process.exec({
      command: `rmdir ${mark} && exec sleep 100; mkdir ${mark}; exit 1`,
      name: 'restarts',
      restartOnFailure: true,
      maxRestarts: 3,
    })
    await eventually(
      'it was restarted',
      async () => (await sandbox.process.get('restarts')).restartCount === 1,
    )
    const running = await sandbox.process.get('restarts')
    expect(running).toMatchObject({ pid: started.pid, status: 'running', restartCount: 1, maxRestarts: 3 })
    await sandbox.process.kill(started.pid ?? '')
    expect(await sandbox.process.get('restarts')).toMatchObject({
      status: 'killed',
      exitCode: -1,
      restartCount: 1,
    })
  })

  test('with keepAlive the timeout ends it, without only the wait', async () => {
    const kept = await sandbox.process.exec({
      command: 'sleep 100',
      keepAlive: true,
      timeout: 1,
      waitForCompletion: true,
    })
    expect(kept).toMatchObject({ status: 'killed', exitCode: -1, keepAlive: true })
    const waited = sandbox.process.exec({
      command: 'sleep 100',
      name: 'waited',
      timeout: 1,
      waitForCompletion: true,
    })
    await expect(waited).rejects.toThrow('process timed out after 1 seconds')
    expect((await sandbox.process.get('waited')).status).toBe('running')
    await sandbox.process.kill('waited')
  })

  test('wait gives up when its own time is over', async () => {
    await sandbox.process.exec({ command: 'sleep 100', name: 'long' })
    await expect(sandbox.process.wait('long', { maxWait: 50, interval: 10 })).rejects.toThrow(
      'did not finish in time',
    )
    await sandbox.process.kill('long')
  })
})

describe('kill', () => {
  test('reaches what left the session and lost its parents, and nothing else', async () => {
    const mark = `86400.${process.pid}`
    const counted = async () => {
      const { stdout } = await sandbox.process.exec({
        command: `ps -eo args | grep -c '^sleep ${mark}[0-9]' || true`,
        waitForCompletion: true,
      })
      return Number(stdout)
    }
    await sandbox.process.exec({ command: `sleep ${mark}9`, name: 'bystander' })
    await sandbox.process.exec({
      name: 'leaver',
      // Of a session of its own, and its parent gone: a daemon.
      command: `setsid sh -c 'setsid sleep ${mark}1 & exit' & sleep ${mark}2 & exec sleep ${mark}3`,
    })
    await eventually('all of them run', async () => (await counted()) === 4)
    await sandbox.process.kill('leaver')
    await eventually('only the bystander is left', async () => (await counted()) === 1)
    expect((await sandbox.process.get('bystander')).status).toBe('running')
    await sandbox.process.kill('bystander')
  })
})

describe('stdin', () => {
  test('takes bytes as they are, also more than a pipe holds, and ends when it is closed', async () => {
    const bytes = new Uint8Array(3_000_000).map((_, at) => at % 251)
    await sandbox.process.exec({ command: 'sha256sum', name: 'sum', stdin: true } as { command: string })
    await sandbox.process.writeStdin('sum', bytes as never)
    await sandbox.process.closeStdin('sum')
    const expected = new Bun.CryptoHasher('sha256').update(bytes).digest('hex')
    expect((await sandbox.process.wait('sum', { interval: 10 })).stdout).toBe(`${expected}  -\n`)
    await expect(sandbox.process.writeStdin('sum', 'x' as never)).rejects.toMatchObject({ status: 409 })
  })

  test('is refused to one that was not started with it, is too large, or is not there', async () => {
    await sandbox.process.exec({ command: 'sleep 100', name: 'deaf' })
    await expect(sandbox.process.writeStdin('deaf', 'x' as never)).rejects.toMatchObject({ status: 409 })
    await expect(sandbox.process.closeStdin('deaf')).rejects.toMatchObject({ status: 409 })
    await expect(sandbox.process.writeStdin('nobody', 'x' as never)).rejects.toMatchObject({ status: 404 })
    const large = new Uint8Array(8 * 1024 * 1024 + 1)
    await expect(sandbox.process.writeStdin('deaf', large as never)).rejects.toMatchObject({ status: 413 })
    await sandbox.process.kill('deaf')
  })
})

describe('ports', () => {
  const port = unusedPorts(8)
  const server = (at: number) =>
    `exec ${process.execPath} -e 'require("net").createServer().listen(${at}, "0.0.0.0")'`
  const base = () => `/${client.platform.credentials.workspace}/sandboxes/processes`
  const portsOf = async (pid: string) => {
    const answer = await client.request(`${base()}/network/process/${pid}/ports`)
    return (await answer.json()) as { pid: number; ports: Record<string, unknown>[] }
  }

  test('waitForPorts waits for a listener of the process itself, or of what it left in the background', async () => {
    const other = await sandbox.process.exec({ command: server(port), name: 'other', waitForPorts: [port] })
    expect(other.status).toBe('running')
    const wrong = sandbox.process.exec({
      command: 'sleep 100',
      name: 'wrong',
      waitForPorts: [port],
      timeout: 1,
    })
    await expect(wrong).rejects.toThrow('process timed out waiting for ports after 1 seconds')
    const daemon = await sandbox.process.exec({
      command: `setsid sh -c '${server(port + 1).replaceAll("'", `'"'"'`)}' > /dev/null 2>&1 &`,
      name: 'daemon',
      waitForPorts: [port + 1],
    })
    expect(daemon.status).toBe('completed')
    expect((await portsOf(daemon.pid ?? '')).ports).toMatchObject([{ localPort: port + 1, state: 'LISTEN' }])
    await sandbox.process.kill('other')
    await sandbox.process.kill('wrong')
    // It ends with its sandbox; the process that left it there is over.
    await sandbox.process.exec({ command: `pkill -f 'listen.${port + 1},'`, waitForCompletion: true })
  })

  test('a process that ended without leaving anybody to open them is answered at once', async () => {
    const done = await sandbox.process.exec({ command: 'true', waitForPorts: [port + 2] })
    expect(done.status).toBe('completed')
  })

  test('are told by process, and posted to a callback inside as they are opened', async () => {
    const listener = await sandbox.process.exec({
      command: `exec ${process.execPath} -e '
        require("http").createServer((q, s) => {
          let b = ""; q.on("data", (d) => (b += d)); q.on("end", () => { console.log(q.url, b); s.end() })
        }).listen(${port + 3}, "127.0.0.1")'`,
      name: 'callback',
      waitForPorts: [port + 3],
    })
    const opener = await sandbox.process.exec({
      command: `exec ${process.execPath} -e '
        process.stdin.on("data", (d) => require("net").createServer().listen(Number(d), "0.0.0.0"))'`,
      name: 'opener',
      stdin: true,
    } as { command: string })
    const monitor = (method: string, body?: object) =>
      client.request(`${base()}/network/process/${opener.pid}/monitor`, {
        method,
        body: JSON.stringify(body),
      })
    expect((await monitor('POST', { callback: `http://localhost:${port + 3}/told?x=1` })).status).toBe(200)
    await sandbox.process.writeStdin('opener', String(port + 4) as never)
    await eventually('the callback was called', async () => {
      const said = await sandbox.process.logs('callback')
      return said.includes(`/told?x=1 {"pid":${opener.pid},"port":${port + 4}}`)
    })
    const { pid, ports } = await portsOf(opener.pid ?? '')
    expect(pid).toBe(Number(opener.pid))
    expect(ports).toEqual([
      {
        pid: Number(opener.pid),
        protocol: 'tcp',
        localAddr: '0.0.0.0',
        localPort: port + 4,
        remoteAddr: '',
        remotePort: 0,
        state: 'LISTEN',
        processName: expect.any(String),
      },
    ])
    expect((await monitor('DELETE')).status).toBe(200)
    expect((await monitor('POST', { callback: 'file:///etc/passwd' })).status).toBe(400)
    expect((await monitor('POST', {})).status).toBe(400)
    expect(await portsOf('999999999')).toEqual({ pid: 999_999_999, ports: [] })
    expect((await client.request(`${base()}/network/process/opener/ports`)).status).toBe(400)
    expect((await client.request(`${base()}/network/tunnel`, { method: 'DELETE' })).status).toBe(400)
    for (const { name } of [listener, opener]) await sandbox.process.kill(name ?? '')
  })
})
