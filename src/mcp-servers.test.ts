import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from 'bun:test'
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { Client } from '@modelcontextprotocol/sdk/client/index.js'
import { StreamableHTTPClientTransport } from '@modelcontextprotocol/sdk/client/streamableHttp.js'
import { LoggingMessageNotificationSchema } from '@modelcontextprotocol/sdk/types.js'
import { TestRegistries } from './builder/test-registries.ts'
import { eventually } from './lib/test-eventually.ts'
import { temporaryDataDir } from './platform.ts'
import { openTestClient, type TestClient, whyNot } from './test-client.ts'
import { bundledFiles, type Deployed, deploy, fixtureFiles, type TestFiles } from './test-hosting.ts'
import { serveTestPackages, type TestPackages } from './test-packages.ts'

/** The MCP servers of fixtures/, deployed from their source and used by the real clients. */

setDefaultTimeout(300_000)

const reason = await whyNot()
const wheels = new TestRegistries()
/** What the server in Python needs is fetched before anything depends on it: the index may be out of reach. */
const noPython = reason || fetchWheels('mcp>=2.3,<3')

function fetchWheels(wanted: string): string {
  const python = '/usr/bin/python3'
  const dir = mkdtempSync(`${tmpdir()}/hutch-wheels-`)
  const skipped = (why: string) => {
    console.warn(`skipped: ${why}`)
    return why
  }
  try {
    if (!existsSync(python)) return skipped(`this host has no ${python}`)
    const download = ['-m', 'pip', 'download', '-q', '--only-binary', ':all:', '-d', dir, wanted]
    const { exitCode, stderr } = Bun.spawnSync([python, ...download], { stdout: 'ignore' })
    if (exitCode === 0) {
      for (const file of readdirSync(dir)) wheels.addWheel(file, readFileSync(`${dir}/${file}`))
      return ''
    }
    return skipped(`pip cannot fetch ${wanted}: ${stderr.toString().trim().split('\n').at(-1)}`)
  } finally {
    rmSync(dir, { recursive: true, force: true })
  }
}

interface Session {
  mcp: Client
  transport: StreamableHTTPClientTransport
  call(name: string, args?: object): Promise<string>
}

describe.skipIf(reason !== '')('MCP servers', () => {
  let client: TestClient
  let packages: TestPackages

  beforeAll(async () => {
    packages = serveTestPackages()
    client = await openTestClient({
      dataDir: temporaryDataDir,
      egressAllow: [`127.0.0.1:${packages.port}`, `127.0.0.1:${wheels.port}`],
    })
  })
  afterAll(async () => {
    await client?.[Symbol.asyncDispose]()
    packages?.[Symbol.dispose]()
    wheels[Symbol.dispose]()
  })

  async function sources(fixture: string): Promise<TestFiles> {
    const registry = `registry=http://host.hutch.internal:${packages.port}/\n`
    return { ...(await fixtureFiles(fixture)), '.npmrc': registry }
  }

  async function connect({ url }: Deployed, headers?: Record<string, string>): Promise<Session> {
    const mcp = new Client({ name: 'test', version: '1' })
    const { apiKey } = client.platform.credentials
    const transport = new StreamableHTTPClientTransport(new URL(`${url}/mcp`), {
      requestInit: { headers: headers ?? { authorization: `Bearer ${apiKey}` } },
    })
    await mcp.connect(transport)
    const call = async (name: string, args: object = {}) => {
      const { content } = await mcp.callTool({ name, arguments: { ...args } })
      return (content as { text: string }[]).map(({ text }) => text).join('')
    }
    return { mcp, transport, call }
  }

  async function end({ mcp, transport }: Session): Promise<void> {
    await transport.terminateSession()
    await mcp.close()
  }

  describe('one in TypeScript', () => {
    let counter: Deployed

    beforeAll(async () => {
      counter = await deploy(client, 'functions', 'counter', await sources('mcp-typescript'))
    })

    test('keeps its sessions apart, and speaks by itself on the stream a client listens on', async () => {
      const [one, other] = [await connect(counter), await connect(counter)]
      const said: string[] = []
      one.mcp.setNotificationHandler(
        LoggingMessageNotificationSchema,
        ({ params }) => void said.push(`${params.data}`),
      )
      expect(await one.call('count', { by: 2 })).toBe('2')
      expect(await one.call('count')).toBe('3')
      expect(await other.call('count')).toBe('1')
      // Clients open that stream behind the first answer; what is said before goes nowhere.
      await eventually('it was announced', async () => {
        await one.call('announce')
        return said.includes('count is 3')
      })
      await end(one)
      await end(other)
    })

    test('is private: who has no key is turned away, with a header that the client reads', async () => {
      const turned = await connect(counter, {}).catch((error: Error) => error.message)
      expect(turned).toContain('401')
    })

    test('tools of the SDK find it by its name', async () => {
      const { getTool } = await import('@blaxel/core')
      const tools = await getTool('counter')
      expect(tools.map(({ name }) => name)).toEqual(['count', 'where', 'announce'])
      const [count] = tools
      expect(await count?.call({ by: 5 })).toMatchObject({ content: [{ text: '5' }] })
    })

    test('a session stays with its instance when another revision is served, until that has gone', async () => {
      const before = await connect(counter)
      const where = await before.call('where')
      await before.call('count')
      const next = await deploy(client, 'functions', 'counter', {
        ...(await sources('mcp-typescript')),
        'README.md': 'the next one',
      })
      expect(next.revision).not.toBe(counter.revision)
      expect(await before.call('where')).toBe(where)
      expect(await before.call('count')).toBe('2')
      const after = await connect(next)
      expect(await after.call('where')).not.toBe(where)
      expect(await after.call('count')).toBe('1')
      await end(before)
      await end(after)
    })
  })

  describe('one that speaks by stdin and stdout', () => {
    let notebook: Deployed

    beforeAll(async () => {
      notebook = await deploy(client, 'functions', 'notebook', await sources('mcp-stdio'))
    })

    test('is used as any other, with a process for each session', async () => {
      const [one, other] = [await connect(notebook), await connect(notebook)]
      expect(await one.call('add_note', { text: 'buy milk' })).toBe('note 1')
      expect(await other.call('list_notes')).toBe('')
      const heard: string[] = []
      await one.mcp.callTool({ name: 'read_aloud', arguments: {} }, undefined, {
        onprogress: ({ message }) => void heard.push(message ?? ''),
      })
      expect(heard).toEqual(['buy milk'])
      await end(one)
      await end(other)
      const { getTool } = await import('@blaxel/core')
      expect((await getTool('notebook')).map(({ name }) => name)).toContain('summarize')
    })

    test('what it writes to stderr is in its logs', async () => {
      await eventually('the line is there', async () => {
        const query = 'resourceType=functions&workloadIds=notebook&limit=100'
        const answer = await client.request(`/v0/observability/logs?${query}`)
        return (await answer.text()).includes('notes: 1')
      })
    })

    test('one call by hand needs no session', async () => {
      const answer = await client.request('/main/functions/notebook/mcp', {
        method: 'POST',
        headers: { 'content-type': 'application/json' },
        body: JSON.stringify({ jsonrpc: '2.0', id: 1, method: 'tools/list' }),
      })
      expect(await answer.json()).toMatchObject({ id: 1, result: { tools: expect.any(Array) } })
      expect((await client.request('/main/functions/notebook/health')).status).toBe(404)
    })

    test('one that does not speak the protocol is not served, and says why', async () => {
      const script = "console.error('I would rather serve HTTP'); process.exit(3)"
      const failed = await deploy(client, 'functions', 'mute', {
        'blaxel.toml': 'type = "function"\n[runtime]\ntransport = "stdio"\n',
        'package.json': '{"name": "mute", "type": "module", "scripts": {"start": "node server.js"}}',
        'server.js': script,
      }).catch((error: Error) => error.message)
      expect(failed).toContain('The MCP server did not start: the server ended with exit code 3')
      expect(failed).toContain('I would rather serve HTTP')
    })
  })

  test('one over WebSocket, as they were made before', async () => {
    const toml = 'type = "function"\n[runtime]\ntransport = "websocket"\n'
    const files = await bundledFiles(`${import.meta.dir}/test-inside-websocket.ts`, toml)
    const old = await deploy(client, 'functions', 'old', files)
    const { BlaxelMcpClientTransport, settings } = await import('@blaxel/core')
    const mcp = new Client({ name: 'test', version: '1' })
    await mcp.connect(new BlaxelMcpClientTransport(old.url, settings.headers, { retry: { max: 0 } }))
    expect(await mcp.callTool({ name: 'shout', arguments: { text: 'still here' } })).toMatchObject({
      content: [{ text: 'STILL HERE' }],
    })
    await mcp.close()
  })

  test.skipIf(noPython !== '')('one in Python', async () => {
    const index = `http://bot:${wheels.token}@host.hutch.internal:${wheels.port}/simple/`
    const files = await fixtureFiles('mcp-python')
    const requirements = Buffer.from(files['requirements.txt']!).toString()
    files['requirements.txt'] = `--index-url ${index}\n--trusted-host host.hutch.internal\n${requirements}`
    const units = await deploy(client, 'functions', 'units', files, {
      triggers: [{ id: 'open', type: 'http', configuration: { authenticationType: 'public' } }],
    })
    const one = await connect(units, {})
    expect(await one.call('convert', { value: 2, source: 'km', target: 'm' })).toContain('2000')
    const heard: string[] = []
    await one.mcp.callTool({ name: 'table', arguments: { value: 1, source: 'm' } }, undefined, {
      onprogress: ({ message }) => void heard.push(message ?? ''),
    })
    expect(heard).toHaveLength(7)
    await end(one)
  })
})
