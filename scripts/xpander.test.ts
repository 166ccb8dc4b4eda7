import { afterAll, beforeAll, describe, expect, test } from 'bun:test'
import { join } from 'node:path'
import type { Subprocess } from 'bun'
import { eventually } from '../src/lib/test-eventually.ts'
import { unusedPorts } from '../src/lib/test-ports.ts'
import { createPlatform, type Platform, temporaryDataDir } from '../src/platform.ts'
import { fakeRuntime } from '../src/runtimes/fake/index.ts'
import { pythonClients, whyNoPythonClients } from './python-clients.ts'

// The real xpander-sdk package from PyPI against a platform: an agent elsewhere does what a client asks.

const fixture = join(import.meta.dir, '../fixtures/xpander-python')
const agentId = 'word-counter'
const testMsMax = 180_000
let platform: Platform
let url: string
let agent: Subprocess | null = null

const sdk = describe.skipIf(pythonClients === null)
if (pythonClients === null) console.warn(whyNoPythonClients)

beforeAll(async () => {
  if (pythonClients === null) return
  platform = await createPlatform({
    ...{ dataDir: temporaryDataDir, runtime: fakeRuntime(), port: 0, logLevel: 'error' },
  })
  url = (await platform.listen()).url
  const started = run('agent.py', 'ignore')
  agent = started
  const errors = new Response(started.stderr as ReadableStream).text()
  await eventually(
    'the agent registered',
    async () => {
      if (started.exitCode !== null) throw new Error(`the agent ended: ${await errors}`)
      return (await ask(`/v1/agents/${agentId}`)).id === agentId
    },
    testMsMax,
  )
}, testMsMax)

afterAll(async () => {
  agent?.kill('SIGKILL')
  await agent?.exited
  await platform?.close()
})

/** With the variables that point the package at a platform, as its own documentation has them. */
function run(program: string, stdout: 'ignore' | 'pipe') {
  return Bun.spawn([pythonClients ?? '', join(fixture, program)], {
    env: {
      PATH: process.env.PATH ?? '',
      HOME: process.env.HOME ?? '',
      XPANDER_BASE_URL: url,
      XPANDER_API_KEY: platform.credentials.apiKey,
      XPANDER_ORGANIZATION_ID: platform.credentials.workspace,
      XPANDER_AGENT_ID: agentId,
      XPANDER_STREAMING_PORT: String(unusedPorts(1)),
      NO_PROXY: '127.0.0.1,localhost',
    },
    stdout,
    stderr: 'pipe',
  })
}

async function ask(path: string, json?: object): Promise<Record<string, unknown>> {
  const response = await fetch(url + path, {
    ...(json === undefined ? {} : { method: 'POST', body: JSON.stringify(json) }),
    headers: { 'x-api-key': platform.credentials.apiKey, 'content-type': 'application/json' },
  })
  return (await response.json()) as Record<string, unknown>
}

sdk('the xpander-sdk package', () => {
  test(
    'works as it does in its own cloud, the worker from elsewhere included',
    async () => {
      const client = run('client.py', 'pipe')
      const [out, errors] = await Promise.all([
        new Response(client.stdout as ReadableStream).text(),
        new Response(client.stderr as ReadableStream).text(),
      ])
      if ((await client.exited) !== 0) throw new Error(errors)
      expect(JSON.parse(out)).toEqual({
        agents: [agentId],
        events: ['task_created', 'task_finished'],
        first: 'You said: hello',
        thread: true,
        activity: [
          ['user', 'hello'],
          ['agent', 'You said: hello'],
          ['user', 'and again'],
          ['agent', 'You said: and again'],
        ],
        shaped: '{"words": 3}',
        broken: ['error', 'no luck'],
        stopped: ['stopped', true],
        'stopped again': 'stopped',
        list: [[true, 'a slow one']],
        missing: 404,
      })
    },
    testMsMax,
  )

  test(
    'and its agent answers whoever calls as the documentation of the API says',
    async () => {
      const done = await ask(`/v1/agents/${agentId}/invoke`, { input: { text: 'hi' } })
      expect(done).toMatchObject({ status: 'completed', result: 'You said: hi', agent_id: agentId })
      expect(await ask(`/v1/tasks/${done.id}/thread`)).toMatchObject([
        { role: 'user', content: 'hi' },
        { role: 'assistant', content: 'You said: hi' },
      ])
    },
    testMsMax,
  )
})
