import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from 'bun:test'
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, readlinkSync, rmSync } from 'node:fs'
import { createServer, type Server, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { SandboxInstance as Sandbox } from '@blaxel/core'
import { callsFromInsideMax } from './http/run/sandbox/call.ts'
import { silentLogger } from './lib/log.ts'
import { eventually } from './lib/test-eventually.ts'
import { temporaryDataDir } from './platform.ts'
import { openTestClient, type TestClient, whyNot } from './test-client.ts'

/** What programs in sandboxes reach: servers of this test on the host's loopback, which the platform is told to allow. */

setDefaultTimeout(120_000)
const directory = mkdtempSync(join(tmpdir(), 'hutch-egress-'))
afterAll(() => rmSync(directory, { recursive: true, force: true }))
const why = await whyNot(({ network }) =>
  network === 'relay' ? '' : 'this kernel cannot redirect what leaves a sandbox',
)

/** What curl ends with when its connection is reset: as it is made, before it has sent its request, or after. */
const resetCodes = [7, 55, 56]
const downloadBytes = 48 * 1024 * 1024
const block = new Uint8Array(1024 * 1024).map((_, at) => (at * 7 + (at >> 9)) & 255)
const blockHash = new Bun.CryptoHasher('sha256').update(block).digest('hex')

const isRoot = process.getuid?.() === 0

/**
 * Processes that have the end of a connection to this host's `serverPort` which is at `port`, of those that may be looked
 * at. The dialler may not have closed yet what it handed over.
 */
function holdersOf(port: number, serverPort: number): string[] {
  const hex = (number: number) => number.toString(16).toUpperCase().padStart(4, '0')
  const inode = readFileSync('/proc/net/tcp', 'utf8')
    .split('\n')
    .map((line) => line.trim().split(/\s+/))
    .find(
      ([, local, remote]) => local?.endsWith(`:${hex(port)}`) && remote?.endsWith(`:${hex(serverPort)}`),
    )?.[9]
  if (inode === undefined) throw new Error(`no connection from port ${port}`)
  const has = (pid: string) => {
    try {
      if (nameOf(pid) === 'hutch-dialler') return false
      return readdirSync(`/proc/${pid}/fd`).some(
        (fd) => linkOf(`/proc/${pid}/fd/${fd}`) === `socket:[${inode}]`,
      )
    } catch {
      return false
    }
  }
  return readdirSync('/proc').filter((name) => /^\d+$/.test(name) && has(name))
}

function linkOf(path: string): string {
  try {
    return readlinkSync(path)
  } catch {
    return ''
  }
}

const nameOf = (pid: string) => readFileSync(`/proc/${pid}/comm`, 'utf8').trim()

describe.skipIf(why !== '')('what leaves a sandbox', () => {
  let client: TestClient
  let sandbox: Sandbox
  let web: ReturnType<typeof Bun.serve>
  let raw: Server
  let rawPort = 0
  let closedPort = 0
  const sockets = new Set<Socket>()
  const called = Promise.withResolvers<void>()
  const told: { path: string; body: string; movedBy: string[] }[] = []
  const dataDir = join(directory, 'data')
  const verdicts: Record<string, unknown>[] = []
  const log = { ...silentLogger, info: noteVerdict }
  function noteVerdict(message: string, fields: Record<string, unknown> = {}) {
    if (message === 'an outgoing connection was refused') verdicts.push(fields)
  }
  /** Of connections that began as encrypted ones do. */
  let greetings = 0

  const open = (more: { platformDoor?: boolean } = {}) =>
    openTestClient({
      dataDir,
      log,
      standbyAfterSeconds: 0,
      egressAllow: [`127.0.0.1:${web.port}`, `127.0.0.1:${rawPort}`],
      ...more,
    })

  beforeAll(async () => {
    mkdirSync(dataDir)
    web = Bun.serve({
      port: 0,
      hostname: '127.0.0.1',
      idleTimeout: 0,
      fetch: async (request, server) => {
        const { pathname } = new URL(request.url)
        if (request.method === 'POST' && !pathname.startsWith('/upload')) {
          const movedBy = holdersOf(server.requestIP(request)?.port ?? 0, web.port ?? 0)
          told.push({ path: pathname, body: await request.text(), movedBy })
          return new Response('heard')
        }
        if (pathname === '/socket' && server.upgrade(request, { data: undefined })) return
        if (pathname === '/download') {
          let left = downloadBytes / block.length
          const body = new ReadableStream({
            pull: (controller) => (left-- > 0 ? controller.enqueue(block) : controller.close()),
          })
          return new Response(body)
        }
        if (pathname === '/upload') {
          let bytes = 0
          for await (const chunk of request.body ?? []) bytes += chunk.length
          return new Response(String(bytes))
        }
        return new Response(`from ${server.requestIP(request)?.address}`)
      },
      websocket: { message: (socket, message) => void socket.send(`echo ${message}`) },
    })
    raw = createServer({ allowHalfOpen: true }, (socket) => {
      sockets.add(socket)
      socket.on('error', () => {})
      let text = ''
      socket.on('data', (chunk) => {
        text += chunk
        if (chunk[0] === 0x16) greetings++
        if (text.includes('/called')) called.resolve()
        if (text === 'begin') socket.write('a part')
        // Once the other side has what came before it: a reset may overtake bytes that nobody has read.
        if (text === 'begin, break') socket.resetAndDestroy()
        if (text.startsWith('ping')) socket.write(text.replace('ping', 'pong'))
        if (text.startsWith('ping')) text = ''
      })
      // Only once the other side has said that it is done, and it still hears the answer.
      socket.on('end', () => socket.end(`heard ${text}`))
    })
    await new Promise<void>((resolve) => raw.listen(0, '127.0.0.1', resolve))
    rawPort = (raw.address() as { port: number }).port
    const other = createServer()
    await new Promise<void>((resolve) => other.listen(0, '127.0.0.1', resolve))
    closedPort = (other.address() as { port: number }).port
    other.close()
    client = await open()
    sandbox = await client.SandboxInstance.create({ name: 'reaching', memory: 1024 })
  })
  afterAll(async () => {
    web?.stop(true)
    for (const socket of sockets) socket.destroy()
    raw?.close()
    await client?.[Symbol.asyncDispose]()
  })

  const inside = async (command: string) => {
    const { logs, exitCode } = await sandbox.process.exec({ command, waitForCompletion: true, timeout: 50 })
    return { output: (logs ?? '').trim(), exitCode }
  }
  /** 'reset', or what was seen instead. */
  const asked = async (url: string) => {
    const { output, exitCode } = await inside(`curl -sS ${url}`)
    return resetCodes.includes(exitCode ?? -1) ? 'reset' : `exit ${exitCode}: ${output}`
  }
  const noSuchName = (name: string) => `exit 6: curl: (6) Could not resolve host: ${name}`
  const script = (source: string) => inside(`bun -e '${source.replaceAll('\n', ' ')}'`)

  test('reaches what is allowed, by name, and is reset elsewhere', async () => {
    expect((await inside(`curl -sS http://host.hutch.internal:${web.port}/`)).output).toBe('from 127.0.0.1')
    expect(await asked(`http://host.hutch.internal:${closedPort}/`)).toBe('reset')
    expect(await asked('http://10.0.0.1/')).toBe('reset')
    expect(await asked('http://no-such-name.invalid/')).toBe(noSuchName('no-such-name.invalid'))
  })

  test('the port of the platform is not reached, whatever its address', async () => {
    const { port } = new URL(client.url)
    expect(await asked(`http://host.hutch.internal:${port}/healthz`)).toBe('reset')
    expect(await asked('http://hutch.internal/healthz')).toBe(noSuchName('hutch.internal'))
    expect(await asked('http://10.201.0.1/healthz')).toBe('reset')
  })

  /** A process that opens the ports that it is told. */
  const opener = (name: string) => {
    const command =
      'exec bun -e \'process.stdin.on("data", (d) => Bun.listen({ port: +d, hostname: "127.0.0.1", socket: { data() {} } }))\''
    return sandbox.process.exec({ command, name, stdin: true } as { command: string })
  }
  const monitor = (pid: string | undefined, callback: string) =>
    client.request(`/main/sandboxes/reaching/network/process/${pid}/monitor`, {
      method: 'POST',
      body: JSON.stringify({ callback }),
    })

  test('the callback of a port monitor leaves as what programs send, by the names that they have', async () => {
    const { pid } = await opener('opener')
    const post = `curl -sS -d x http://host.hutch.internal:${web.port}/by-a-program`
    expect((await inside(post)).output).toBe('heard')
    const ofProgram = told.find(({ path }) => path === '/by-a-program')?.movedBy
    for (const [index, host] of ['host.hutch.internal', '10.201.0.3'].entries()) {
      const path = `/opened/${index}`
      expect((await monitor(pid, `http://${host}:${web.port}${path}`)).status).toBe(200)
      await sandbox.process.writeStdin('opener', String(4571 + index) as never)
      const port = 4571 + index
      const body = JSON.stringify({ pid: Number(pid), port })
      const notice = await eventually(`port ${port} is told`, () =>
        told.find((one) => one.path === path && one.body === body),
      )
      // By the relay of this very sandbox: who has the socket is who moves its bytes.
      expect(notice.movedBy).toEqual(ofProgram ?? [])
      expect(notice.movedBy).not.toContain(`${process.pid}`)
      if (isRoot) expect(notice.movedBy.map(nameOf)).toEqual(['hutch-keeper'])
    }
    await sandbox.process.kill('opener')
  })

  test('the callback of a port monitor does not go where programs may not, which is told as of theirs', async () => {
    let connections = 0
    const forbidden = createServer((socket) => {
      connections++
      socket.destroy()
    })
    await new Promise<void>((resolve) => forbidden.listen(0, '127.0.0.1', resolve))
    const { port } = forbidden.address() as { port: number }
    const refused = (address: string) =>
      eventually(`${address} is refused`, () =>
        verdicts.some((one) => one.address === address && one.port === port),
      )
    const shy = await opener('shy')
    for (const [index, address] of ['10.201.0.3', '10.0.0.1'].entries()) {
      await monitor(shy.pid, `http://${address}:${port}/`)
      await sandbox.process.writeStdin('shy', String(4581 + index) as never)
      await refused(address)
    }
    // At a port that programs reach, nobody is told who does not show who they are.
    await monitor(shy.pid, `https://host.hutch.internal:${rawPort}/`)
    await sandbox.process.writeStdin('shy', '4583' as never)
    await eventually('a greeting', () => greetings > 0)
    await sandbox.process.kill('shy')
    expect(connections).toBe(0)
    forbidden.close()
  })

  test('large bodies pass both ways, whole', async () => {
    const download = await script(`
      const hash = [];
      const body = new Uint8Array(await (await fetch("http://host.hutch.internal:${web.port}/download")).arrayBuffer());
      for (let at = 0; at < body.length; at += ${block.length})
        hash.push(new Bun.CryptoHasher("sha256").update(body.subarray(at, at + ${block.length})).digest("hex"));
      console.log(body.length, [...new Set(hash)].join());`)
    expect(download.output).toBe(`${downloadBytes} ${blockHash}`)
    const upload = await inside(
      `head -c 20000000 /dev/zero | curl -sS -T - http://host.hutch.internal:${web.port}/upload`,
    )
    expect(upload.output).toBe('20000000')
  })

  test('a WebSocket stays open and carries both ways', async () => {
    const { output } = await script(`
      const socket = new WebSocket("ws://host.hutch.internal:${web.port}/socket");
      socket.onopen = () => socket.send("hello");
      socket.onmessage = ({ data }) => { console.log(data); socket.close() };`)
    expect(output).toBe('echo hello')
  })

  const talk = (first: string, onData = '') =>
    script(`
      const socket = require("net").connect({ host: "host.hutch.internal", port: ${rawPort}, allowHalfOpen: true });
      let text = "";
      socket.on("data", (chunk) => { text += chunk; ${onData} });
      socket.on("error", (error) => console.log(text, error.code));
      socket.on("end", () => { console.log(text, "end"); socket.end() });
      ${first}`)

  test('an end of one direction leaves the other open', async () => {
    const { output } = await talk('socket.write("a question"); socket.end();')
    expect(output).toBe('heard a question end')
  })

  test('a connection that breaks is broken on the other side too, not merely ended', async () => {
    const { output } = await talk('socket.write("begin");', 'if (text === "a part") socket.write(", break")')
    expect(output).toBe('a part ECONNRESET')
  })

  test('git clones, over HTTP', async () => {
    const bare = join(directory, 'repository.git')
    const run = (...argv: string[]) => {
      const { exitCode, stderr } = Bun.spawnSync(argv, {
        env: { PATH: process.env.PATH ?? '', HOME: directory },
      })
      if (exitCode !== 0) throw new Error(stderr.toString())
    }
    const work = join(directory, 'project')
    run('git', 'init', '-q', work)
    await Bun.write(join(work, 'file'), 'cloned')
    run('git', '-C', work, 'add', 'file')
    run('git', '-C', work, '-c', 'user.name=t', '-c', 'user.email=t@t', 'commit', '-qm', 'first')
    run('git', 'clone', '-q', '--bare', work, bare)
    run('git', '-C', bare, 'update-server-info')
    web.reload({
      fetch: (request) => new Response(Bun.file(join(directory, new URL(request.url).pathname))),
      error: () => new Response(null, { status: 404 }),
      websocket: { message() {} },
    })
    const url = `http://host.hutch.internal:${web.port}/repository.git`
    const { output } = await inside(`git clone -q ${url} /tmp/clone && cat /tmp/clone/file`)
    expect(output).toBe('cloned')
  })

  test('names are looked up over TCP as well, whatever server is asked', async () => {
    const { output } = await script(`
      const socket = require("net").connect(53, "8.8.8.8");
      const name = [4, ..."host", 5, ..."hutch", 8, ..."internal", 0].map((c) => typeof c === "number" ? c : c.charCodeAt(0));
      const query = [0, 9, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, ...name, 0, 1, 0, 1];
      socket.write(Uint8Array.from([0, query.length, ...query]));
      socket.once("data", (answer) => { console.log([...answer.subarray(-4)].join(".")); socket.destroy() });`)
    expect(output).toBe('10.201.0.3')
  })

  describe('the API of the sandbox, from inside', () => {
    test('takes so many calls at once and no more, so that streams nobody reads stay few', async () => {
      const { output } = await script(`
        const api = "http://127.0.0.1:8080";
        const body = JSON.stringify({ command: "echo begun; sleep 300", name: "endless" });
        await fetch(api + "/process", { method: "POST", body, headers: { "content-type": "application/json" } });
        const open = new AbortController();
        const streams = [];
        for (let i = 0; i < ${callsFromInsideMax}; i++)
          streams.push(await fetch(api + "/process/endless/logs/stream", { signal: open.signal }));
        const refused = (await fetch(api + "/health")).status;
        open.abort();
        let again = 0;
        while (again !== 200) again = (await fetch(api + "/health")).status;
        await fetch(api + "/process/endless/kill", { method: "DELETE" });
        console.log([...new Set(streams.map((stream) => stream.status))].join(), refused, again);`)
      expect(output).toBe('200 429 200')
    })

    test('needs no key and is that sandbox alone', async () => {
      expect(JSON.parse((await inside('curl -sS http://127.0.0.1:8080/health')).output).status).toBe('ok')
      const { output } = await inside(
        `curl -sS -X POST http://localhost:8080/process -H 'content-type: application/json' ` +
          `-d '{"command":"hostname","waitForCompletion":true,"name":"from-inside"}'`,
      )
      expect(JSON.parse(output)).toMatchObject({ name: 'from-inside', exitCode: 0 })
      expect((await sandbox.process.get('from-inside')).command).toBe('hostname')
      expect(
        (await inside('curl -sS -o /dev/null -w "%{http_code}" http://127.0.0.1:8080/v0/sandboxes')).output,
      ).toBe('404')
    })

    test('is found under every name that the sandbox has for itself', async () => {
      for (const name of ['localhost', '127.0.0.1', '[::1]', '0.0.0.0', '127.0.1.1', '$(hostname)']) {
        const { output } = await inside(`curl -sS -o /dev/null -w '%{http_code}' http://${name}:8080/health`)
        expect(`${name} ${output}`).toBe(`${name} 200`)
      }
    })

    test('is not for pages of other sites', async () => {
      const status = (header: string) =>
        inside(`curl -sS -o /dev/null -w '%{http_code}' -H '${header}' http://127.0.0.1:8080/process`)
      expect((await status('Origin: https://evil.example')).output).toBe('403')
      expect((await status('Host: rebound.example:8080')).output).toBe('421')
      expect((await status('Origin: http://localhost:3000')).output).toBe('200')
    })

    test('has its port before any program inside', async () => {
      const { output } = await inside(
        `python3 -c "import socket; s=socket.socket(); s.bind(('0.0.0.0', 8080))" 2>&1 | tail -1`,
      )
      expect(output).toContain('Address already in use')
    })

    test('is no use of the sandbox', async () => {
      const lastUse = async () => Date.parse((await client.SandboxInstance.get('reaching')).lastUsedAt ?? '')
      const before = await lastUse()
      const own = 'for i in 1 2 3 4 5; do curl -sS -o /dev/null http://127.0.0.1:8080/process || exit; done'
      await sandbox.process.exec({
        name: 'caller',
        command: `while [ ! -e /tmp/may-call ]; do sleep 0.02; done; ${own}; curl -sS http://host.hutch.internal:${rawPort}/called`,
      })
      await sandbox.fs.write('/tmp/may-call', '')
      // While a request is under way its use is now.
      let after = before
      await eventually('the end of the last request', async () => {
        const sooner = after
        after = await lastUse()
        return after === sooner && after > before
      })
      expect(after).toBeGreaterThan(before)
      await called.promise
      expect(await lastUse()).toBe(after)
    })
  })

  // Last: they start the platform again.
  test('connections go on while the platform is started again, and new ones wait for it', async () => {
    const source = `
      const socket = require("net").connect(${rawPort}, "10.201.0.3");
      const fs = require("fs");
      let sent = 0;
      socket.on("data", (chunk) => fs.appendFileSync("/tmp/pongs", chunk + " "));
      socket.on("error", (error) => fs.appendFileSync("/tmp/pongs", error.code));
      setInterval(() => socket.write("ping" + sent++), 50);`
    await sandbox.process.exec({
      name: 'long',
      command: `bun -e '${source.replaceAll('\n', ' ')}'`,
      keepAlive: true,
    })
    const pongs = async () => (await sandbox.fs.read('/tmp/pongs').catch(() => '')).split(' ').length
    await eventually('the first answers', async () => (await pongs()) > 5)
    await sandbox.process.exec({
      name: 'late',
      command: `while [ ! -e /tmp/gone ]; do sleep 0.01; done; sleep 0.3; curl -sS -m 30 -o /tmp/late http://10.201.0.3:${web.port}/project/file`,
      keepAlive: true,
    })
    const connections = sockets.size
    await sandbox.fs.write('/tmp/gone', '')
    await client.platform.close({ keepInstances: true })
    await client[Symbol.asyncDispose]()
    const pongsMeanwhile = [...sockets].at(-1)!.bytesRead
    await eventually(
      'more bytes while nobody is there',
      () => [...sockets].at(-1)!.bytesRead > pongsMeanwhile + 40,
    )
    await new Promise((resolve) => setTimeout(resolve, 500))

    client = await open({ platformDoor: true })
    sandbox = await client.SandboxInstance.get('reaching')
    const before = await pongs()
    await eventually('answers after it', async () => (await pongs()) > before + 5)
    expect(await sandbox.fs.read('/tmp/pongs')).not.toContain('ECONN')
    expect(sockets.size).toBe(connections)
    await eventually(
      'the connection that waited',
      async () => (await sandbox.fs.read('/tmp/late').catch(() => '')) === 'cloned',
    )
    await sandbox.process.kill('long')
  })

  test('the platform is reached where it is configured, as the sandbox and with no more than its rights', async () => {
    const status = (path: string, more = '') =>
      inside(`curl -sS -o /dev/null -w '%{http_code}' ${more} http://hutch.internal${path}`).then(
        ({ output }) => output,
      )
    expect(await status('/v0/sandboxes/reaching')).toBe('200')
    expect(await status('/main/sandboxes/reaching/health')).toBe('200')
    expect(await status('/v0/sandboxes/reaching', '-X DELETE')).toBe('403')
    expect(await status('/v0/sandboxes/reaching', '-H "Authorization: Bearer wrong"')).toBe('401')
    expect(await status('/v0/workspaces')).toBe('403')
    // In clear on both ports of the web, and addresses in answers lead back by the same way; nowhere else.
    for (const authority of ['hutch.internal', 'hutch.internal:443']) {
      const { output } = await inside(`curl -sS http://${authority}/v0/sandboxes/reaching`)
      const { metadata } = JSON.parse(output) as { metadata: { url: string } }
      expect(metadata.url).toBe(`http://${authority}/main/sandboxes/reaching`)
      expect((await inside(`curl -sS -o /dev/null -w '%{http_code}' ${metadata.url}/health`)).output).toBe(
        '200',
      )
    }
    expect(await asked('http://hutch.internal:22/')).toBe('reset')
  })
})

const attemptsMax = 3
const registries = await reachable()
const without = why || registries
if (registries) console.warn(`skipped: package managers: ${registries}`)

async function reachable(): Promise<string> {
  for (const url of ['https://registry.npmjs.org/left-pad', 'https://pypi.org/simple/six/']) {
    try {
      const { status } = await fetch(url, { signal: AbortSignal.timeout(5_000) })
      if (status !== 200) return `${url} answers ${status} on this host`
    } catch (error) {
      return `${url} is not reached from this host: ${error}`
    }
  }
  return ''
}

describe.skipIf(without !== '')(
  'package managers of the host image, with the registries of this host',
  () => {
    let client: TestClient
    let sandbox: Sandbox
    beforeAll(async () => {
      client = await openTestClient({ dataDir: temporaryDataDir, standbyAfterSeconds: 0 })
      sandbox = await client.SandboxInstance.create({ name: 'packages', memory: 2048 })
    })
    afterAll(() => client?.[Symbol.asyncDispose]())
    /** What `command` says once it succeeds. The network of this host may fail for a moment, or from now on. */
    const inside = async (command: string) => {
      let said = ''
      for (let attempt = 0; attempt < attemptsMax; attempt++) {
        const ran = await sandbox.process.exec({ command, waitForCompletion: true, timeout: 110 })
        said = `exit ${ran.exitCode}: ${(ran.logs ?? '').trim()}`
        if (ran.exitCode === 0) return said
      }
      const gone = await reachable()
      if (!gone) return said
      console.warn(`skipped: package managers: ${gone}`)
      return null
    }

    test('npm i -g', async () => {
      const install = 'npm i -g --no-audit --no-fund left-pad@1.3.0 2>&1 && npm ls -g left-pad'
      const said = await inside(install)
      if (said !== null) expect(said).toMatch(/^exit 0: .*left-pad@1\.3\.0/s)
    }, 400_000)

    test('pip install', async () => {
      const install = 'python3 -m pip --python /tmp/env/bin/python install -q six 2>&1'
      const use = '/tmp/env/bin/python -c "import six; print(six.__name__)"'
      const said = await inside(`python3 -m venv --without-pip /tmp/env && ${install} && ${use}`)
      if (said !== null) expect(said).toMatch(/^exit 0: .*six$/s)
    }, 400_000)

    test('pip install as root there, for the Python of the image itself', async () => {
      const use = 'cd / && python3 -c "import six; print(six.__file__)"'
      const said = await inside(`python3 -m pip install -q six 2>&1 && ${use}`)
      if (said !== null) expect(said).toMatch(/^exit 0: .*six\.py$/s)
    }, 400_000)
  },
)
