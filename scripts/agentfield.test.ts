import { afterAll, beforeAll, describe, expect, test } from 'bun:test'
import { join } from 'node:path'
import type { Subprocess } from 'bun'
import { eventually } from '../src/lib/test-eventually.ts'
import { unusedPorts } from '../src/lib/test-ports.ts'
import { createPlatform, type Platform, temporaryDataDir } from '../src/platform.ts'
import { fakeRuntime } from '../src/runtimes/fake/index.ts'
import { pythonClients, whyNoPythonClients } from './python-clients.ts'

// The real agentfield package from PyPI against a platform: agents register, are called, call each other, report back.

const program = join(import.meta.dir, '../fixtures/agentfield-python/main.py')
const startMsMax = 120_000
let platform: Platform
let url: string
let ports: number
const agents = new Map<string, Subprocess>()

const agent = describe.skipIf(pythonClients === null)
if (pythonClients === null) console.warn(whyNoPythonClients)

beforeAll(async () => {
  if (pythonClients === null) return
  platform = await createPlatform({
    ...{ dataDir: temporaryDataDir, runtime: fakeRuntime(), port: 0, logLevel: 'error' },
    keylessWorkspace: 'main',
  })
  url = (await platform.listen()).url
  ports = unusedPorts(2)
  await Promise.all([start('one', ports), start('two', ports + 1)])
}, startMsMax)

afterAll(async () => {
  for (const running of agents.values()) running.kill('SIGKILL')
  await Promise.all([...agents.values()].map(({ exited }) => exited))
  await platform?.close()
})

/** Waits until it said that it is ready. */
async function start(name: string, port: number): Promise<void> {
  const running = Bun.spawn([pythonClients ?? '', program], {
    env: {
      PATH: process.env.PATH ?? '',
      HOME: process.env.HOME ?? '',
      NODE_ID: name,
      HOST: '127.0.0.1',
      PORT: String(port),
      AGENTFIELD_SERVER: url,
      AGENTFIELD_API_KEY: platform.credentials.apiKey,
      AGENT_CALLBACK_URL: `http://127.0.0.1:${port}`,
      NO_PROXY: '127.0.0.1,localhost',
    },
    stdout: 'ignore',
    stderr: 'pipe',
  })
  agents.set(name, running)
  const stderr = new Response(running.stderr).text()
  await eventually(
    `the agent ${name} is ready`,
    async () => {
      if (running.exitCode !== null) throw new Error(`the agent ended: ${await stderr}`)
      const node = await ask(`/nodes/${name}`)
      return (
        node.lifecycle_status === 'ready' &&
        (await fetch(`http://127.0.0.1:${port}/health`).then(
          () => true,
          () => false,
        ))
      )
    },
    startMsMax,
  )
}

interface Answer {
  execution_id: string
  run_id: string
  status: string
  result: unknown
  [field: string]: unknown
}

/** Without a key, as the examples of AgentField do. */
async function ask(path: string, json?: object): Promise<Answer> {
  const response = await fetch(`${url}/api/v1${path}`, {
    ...(json === undefined ? {} : { method: 'POST', body: JSON.stringify(json) }),
    headers: { 'content-type': 'application/json' },
  })
  return (await response.json()) as Answer
}

const call = (target: string, input: object) => ask(`/execute/${target}`, { input })
const ended = (id: string) =>
  eventually(`${id} ended`, async () => {
    const execution = await ask(`/executions/${id}`)
    return /^(queued|running)$/.test(execution.status) ? null : execution
  })

agent('agents of the agentfield package', () => {
  test('are called, and answer; what they note down is kept', async () => {
    const greeted = await call('one.greet', { name: 'Alice' })
    expect(greeted).toMatchObject({ status: 'succeeded', result: { greeting: 'Hello, Alice!' } })
    expect(await call('one.add', { a: 1, b: 2 })).toMatchObject({ status: 'succeeded', result: 3 })
    const notes = await eventually('the note is there', async () => {
      const found = await ask(`/executions/${greeted.execution_id}/notes`)
      return found.total === 1 ? found.notes : null
    })
    expect(notes).toMatchObject([{ message: 'greeting Alice', tags: ['greeting'] }])
  })

  test('are called later, and report when they are done', async () => {
    const accepted = await ask('/execute/async/two.greet', { input: { name: 'Bob' } })
    expect(accepted).toMatchObject({ status: 'queued', target: 'two.greet', webhook_registered: false })
    expect(await ended(accepted.execution_id)).toMatchObject({
      status: 'succeeded',
      result: { greeting: 'Hello, Bob!' },
    })
  })

  test('call each other in one run, and remember in it', async () => {
    const { run_id: run, ...answer } = await call('one.greet_by', { target: 'two.greet', name: 'Cy' })
    const said = { greeting: 'Hello, Cy!' }
    expect(answer).toMatchObject({ status: 'succeeded', result: { said, remembered: said } })
    const { executions } = (await ask(`/executions?run_id=${run}`)) as unknown as { executions: Answer[] }
    expect(executions.map(({ target }) => target).toSorted()).toEqual(['one.greet_by', 'two.greet'])
    expect(executions.find(({ target }) => target === 'two.greet')?.parent_execution_id).toBe(
      answer.execution_id,
    )
  })

  test('remember together, and hear of what changes', async () => {
    await call('one.learn', { topic: 'north', direction: [0, 1] })
    expect(await call('two.learn', { topic: 'east', direction: [1, 0.1] })).toMatchObject({
      status: 'succeeded',
      result: {
        told: { direction: [1, 0.1] },
        nearest: 'east',
        keys: ['topic.east', 'topic.north'],
      },
    })
  })

  test('tell of what they call within themselves', async () => {
    const { run_id: run, result } = await call('one.greet_twice', { name: 'Di' })
    expect(result).toMatchObject({ first: { greeting: 'Hello, Di!' }, second: { greeting: 'Hello, DI!' } })
    await eventually('both calls are known', async () => {
      const { executions } = (await ask(`/executions?run_id=${run}&status=succeeded`)) as unknown as {
        executions: Answer[]
      }
      return executions.length === 3
    })
  })

  test('fail with their reason', async () => {
    expect(await call('one.refuse', { why: 'not today' })).toMatchObject({
      status: 'failed',
      error: 'not today',
      error_category: 'agent_error',
    })
  })

  test('wait for people, and go on as they decided', async () => {
    const { execution_id: id } = await ask('/execute/async/one.ask_first', { input: { what: 'sail' } })
    await eventually('it waits', async () => (await ask(`/executions/${id}`)).status === 'waiting')
    const decision = { requestId: 'may-i-sail', decision: 'approved', feedback: 'mind the wind' }
    expect(await ask('/webhooks/approval-response', decision)).toMatchObject({ status: 'processed' })
    const over = await eventually('it ended', async () => {
      const execution = await ask(`/executions/${id}`)
      return execution.status === 'succeeded' ? execution : null
    })
    expect(over.result).toEqual({ decision: 'approved', feedback: 'mind the wind' })
  })

  test('begin again where they broke', async () => {
    const { execution_id: id } = await ask('/execute/async/one.greet_by', {
      input: { target: 'two.refuse', name: 'Gil' },
    })
    expect((await ended(id)).status).toBe('failed')
    const input = { target: 'two.greet', name: 'Gil' }
    const again = await ask(`/executions/${id}/restart`, { input })
    expect(again).toMatchObject({ status: 'queued', kind: 'fork', source_execution_id: id })
    expect(await ended(again.execution_id)).toMatchObject({ status: 'succeeded' })
  })

  test('stop what is called off', async () => {
    const { execution_id: id } = await ask('/execute/async/one.wait', { input: {} })
    await eventually('it is worked on', () => platform.executions.get('main', id)?.status === 'waiting')
    expect(await ask(`/executions/${id}/cancel`, { reason: 'enough' })).toMatchObject({ status: 'cancelled' })
    await eventually('its program heard of it', async () => {
      return (await ask('/memory/get', { key: 'called_off' })).data === true
    })
    expect(await ended(id)).toMatchObject({ status: 'cancelled', status_reason: 'enough' })
  })

  test('are found with what they do', async () => {
    expect(await ask('/discovery/capabilities?format=compact&agent=two')).toMatchObject({
      reasoners: expect.arrayContaining([expect.objectContaining({ target: 'two.greet' })]),
      skills: [expect.objectContaining({ target: 'two.add' })],
    })
  })

  test('that are killed and start anew have lost what they worked on, and work again', async () => {
    const { execution_id: id } = await ask('/execute/async/two.wait', { input: {} })
    await eventually('it is worked on', () => platform.executions.get('main', id)?.status === 'waiting')
    const running = agents.get('two')
    running?.kill('SIGKILL')
    await running?.exited
    await start('two', ports + 1)
    expect(await ended(id)).toMatchObject({ status: 'failed', status_reason: 'agent_restart_orphaned' })
    expect(await call('two.greet', { name: 'Ed' })).toMatchObject({ status: 'succeeded' })
  })

  test('that stop say so', async () => {
    const running = agents.get('one')
    running?.kill('SIGTERM')
    await eventually('it is told that it is away', async () => {
      return (await ask('/nodes/one')).health_status === 'inactive'
    })
    expect(await call('one.greet', { name: 'Flo' })).toMatchObject({ error_category: 'node_unavailable' })
  })
})
