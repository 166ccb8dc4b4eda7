import { afterEach, beforeEach, expect, test } from 'bun:test'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { SandboxInstance as Sandbox } from '@blaxel/core'
import { FakeClock } from './lib/test-clock.ts'
import { eventually } from './lib/test-eventually.ts'
import { type FakeRuntime, fakeRuntime } from './runtimes/fake/index.ts'
import { openTestClient, type TestClient } from './test-client.ts'

/** Schedules through the client of the cloud, with machines that are functions and a clock that tests turn. */

const minuteMs = 60_000
const startedAt = Date.UTC(2030, 0, 1, 12)

let directory: string
let clock: FakeClock
let runtime: FakeRuntime
let client: TestClient
let sandbox: Sandbox
/** Every command that ran inside: what, where and with what in its environment. */
let ran: { command: string; workingDir: string; secret: string | undefined; at: number }[]

beforeEach(async () => {
  directory = mkdtempSync(join(tmpdir(), 'hutch-schedules-'))
  clock = new FakeClock(startedAt)
  ran = []
  runtime = fakeRuntime({
    clock,
    programs: {
      sh: async ({ argv, env, workingDir, sleep }) => {
        const command = argv[2] ?? ''
        ran.push({ command, workingDir, secret: env.SECRET, at: clock.now() })
        if (command.startsWith('sleep ')) await sleep(Number(command.slice(6)) * 1000)
        return command === 'fail' ? 3 : 0
      },
    },
  })
  await open()
  sandbox = await client.SandboxInstance.create({ name: 'box' })
})

afterEach(async () => {
  await client[Symbol.asyncDispose]()
  rmSync(directory, { recursive: true, force: true })
})

async function open(): Promise<void> {
  client = await openTestClient({ dataDir: directory, runtime, clock })
}

/** A stop and the next start, with `whileDown` in between. */
async function restart(whileDown: () => void = () => {}): Promise<void> {
  await client[Symbol.asyncDispose]()
  whileDown()
  await open()
  sandbox = await client.SandboxInstance.get('box')
}

const commands = () => ran.map(({ command }) => command)
const executions = async (of: Sandbox = sandbox) => (await of.schedules.executions()).data
/** Time passes, and `count` runs have been recorded in all. */
async function pass(ms: number, count: number) {
  await clock.turn(ms)
  return await eventually(`${count} executions`, async () => {
    await clock.turn(0)
    const found = await executions()
    return found.length === count ? found : null
  })
}

test('a cron schedule runs its command every time, with its own environment, and says that it did', async () => {
  const created = await sandbox.schedules.create({
    type: 'cron',
    value: '*/5 * * * *',
    input: { command: 'work', env: { SECRET: 'hunter2' }, workingDir: '/tmp', timeout: 60 },
  })
  expect(created).toEqual({
    id: 'schedule-0',
    sandbox: 'box',
    type: 'cron',
    value: '*/5 * * * *',
    input: {
      command: 'work',
      workingDir: '/tmp',
      env: { SECRET: '********' },
      keepAlive: true,
      timeout: 60,
    },
    maxExecutions: 100,
    createdAt: '2030-01-01T12:00:00.000Z',
  })
  await pass(5 * minuteMs, 1)
  const [second, first] = await pass(5 * minuteMs, 2)
  expect(ran).toEqual([
    { command: 'work', workingDir: '/tmp', secret: 'hunter2', at: startedAt + 5 * minuteMs },
    { command: 'work', workingDir: '/tmp', secret: 'hunter2', at: startedAt + 10 * minuteMs },
  ])
  expect(second).toMatchObject({
    scheduleId: 'schedule-0',
    sandbox: 'box',
    status: 'succeeded',
    statusCode: 200,
    executedAt: '2030-01-01T12:10:00.000Z',
    timeout: 60,
  })
  expect(first?.id).not.toBe(second?.id)
  expect((await sandbox.process.get(second?.processName ?? '')).command).toBe('work')
})

test('a moment and a duration run once and are gone; what they did stays listed', async () => {
  const at = await sandbox.schedules.create({
    id: 'once',
    type: 'at',
    value: '2030-01-01T12:30:00Z',
    input: { command: 'at', name: 'named' },
  })
  expect(at).toMatchObject({ id: 'once', type: 'at', value: '2030-01-01T12:30:00Z' })
  const sleep = await sandbox.schedules.create({ type: 'sleep', value: '1h', input: { command: 'sleep' } })
  expect([sleep.type, sleep.value]).toEqual(['at', '2030-01-01T13:00:00.000Z'])
  await pass(29 * minuteMs, 0)
  await pass(minuteMs, 1)
  expect((await sandbox.schedules.list()).data.map(({ id }) => id)).toEqual([sleep.id!])
  await pass(30 * minuteMs, 2)
  expect((await sandbox.schedules.list()).data).toEqual([])
  expect(commands()).toEqual(['at', 'sleep'])
  expect((await executions()).map(({ scheduleId }) => scheduleId)).toEqual([sleep.id!, 'once'])
  expect((await executions())[1]?.processName).toBe('named')
  await expect(sandbox.schedules.get('once')).rejects.toMatchObject({ code: 404 })
  // The id of one that ran is not given to the next.
  const next = await sandbox.schedules.create({ type: 'sleep', value: '2h', input: { command: 'x' } })
  expect(next.id).not.toBe(sleep.id)
})

test('a schedule is read, replaced and deleted; a masked value is the one it had', async () => {
  await sandbox.schedules.create({
    id: 'job',
    type: 'cron',
    value: '0 * * * *',
    input: { command: 'old', env: { SECRET: 's1', OTHER: 'o' } },
  })
  const read = await sandbox.schedules.get('job')
  const updated = await sandbox.schedules.update('job', {
    ...read,
    value: '30 * * * *',
    input: { ...read.input, command: 'new' },
    maxExecutions: 2,
  })
  expect(updated).toMatchObject({
    id: 'job',
    value: '30 * * * *',
    maxExecutions: 2,
    createdAt: read.createdAt,
  })
  await pass(30 * minuteMs, 1)
  expect(ran).toMatchObject([{ command: 'new', secret: 's1' }])
  const shown = await client.request('/v0/sandboxes/box/schedules/job?show_secrets=true')
  expect(await shown.json()).toMatchObject({ input: { env: { SECRET: 's1', OTHER: 'o' } } })
  expect((await sandbox.schedules.delete('job')).id).toBe('job')
  await clock.turn(5 * 60 * minuteMs)
  expect(commands()).toEqual(['new'])
  await expect(sandbox.schedules.delete('job')).rejects.toMatchObject({ code: 404 })
  await expect(sandbox.schedules.update('job', read)).rejects.toMatchObject({ code: 404 })
})

test('each schedule keeps as many executions as it was told', async () => {
  const every = (id: string, maxExecutions: number) =>
    sandbox.schedules.create({ id, type: 'cron', value: '* * * * *', maxExecutions, input: { command: id } })
  await every('few', 2)
  await every('many', 50)
  for (let minute = 1; minute <= 6; minute++) await pass(minuteMs, Math.min(minute, 2) + minute)
  const ids = (await executions()).map(({ scheduleId }) => scheduleId)
  expect([ids.filter((id) => id === 'few').length, ids.filter((id) => id === 'many').length]).toEqual([2, 6])
})

test('lists come in pages, of one sandbox and of all', async () => {
  const other = await client.SandboxInstance.create({ name: 'other' })
  for (let index = 0; index < 3; index++) {
    await sandbox.schedules.create({ type: 'cron', value: '0 0 * * *', input: { command: `c${index}` } })
  }
  await other.schedules.create({ type: 'at', value: '2030-02-01T00:00:00Z', input: { command: 'o' } })
  const ids: string[] = []
  for await (const { id } of await sandbox.schedules.list({ limit: 1 })) ids.push(id!)
  expect(ids.sort()).toEqual(['schedule-0', 'schedule-1', 'schedule-2'])
  const list = async (path: string) =>
    (await (await client.request(path, { headers: { 'blaxel-version': '2026-04-28' } })).json()) as {
      data: { sandbox: string; id: string }[]
    }
  expect((await list('/v0/schedules')).data).toHaveLength(4)
  expect((await list('/v0/schedules?type=at')).data.map(({ sandbox }) => sandbox)).toEqual(['other'])
  expect((await list('/v0/schedules?sandbox=box')).data).toHaveLength(3)
  await clock.turn(12 * 60 * minuteMs)
  await eventually('three executions', async () => (await executions()).length === 3)
  expect((await list('/v0/schedule-executions?status=failed')).data).toEqual([])
  expect((await list('/v0/schedule-executions?schedule=schedule-1')).data).toHaveLength(1)
  expect((await list('/v0/schedule-executions?since=2030-01-02T00:01:00Z')).data).toEqual([])
  expect((await list('/v0/schedule-executions?until=2030-01-02T00:00:00Z&sandbox=box')).data).toHaveLength(3)
  await clock.turn(minuteMs)
  expect(await (await client.request('/v0/schedules/metrics')).json()).toEqual({
    executions: 3,
    executionsByStatus: { succeeded: 3, failed: 0 },
    sandboxes: 2,
    schedules: 4,
    since: '2030-01-01T00:01:00.000Z',
    until: '2030-01-02T00:01:00.000Z',
  })
})

test('a command that cannot be submitted is told by its status, and the schedule goes on', async () => {
  await sandbox.schedules.create({
    id: 'long',
    type: 'cron',
    value: '* * * * *',
    input: { command: 'sleep 90', name: 'one', timeout: 0 },
  })
  await pass(minuteMs, 1)
  const [taken] = await pass(minuteMs, 2)
  expect(taken).toMatchObject({
    status: 'failed',
    statusCode: 400,
    error: "process with name 'one' already exists and is running",
  })
  await pass(minuteMs, 3)
  expect(commands()).toEqual(['sleep 90', 'sleep 90'])
})

test('a sandbox that cannot be reached is told by status 0', async () => {
  await sandbox.schedules.create({ id: 'off', type: 'cron', value: '* * * * *', input: { command: 'x' } })
  const off = { ...((await (await client.request('/v0/sandboxes/box')).json()) as { spec: object }) }
  await client.request('/v0/sandboxes/box', {
    method: 'PUT',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ ...off, spec: { ...off.spec, enabled: false } }),
  })
  const [failed] = await pass(minuteMs, 1)
  expect(failed).toMatchObject({
    status: 'failed',
    statusCode: 0,
    error: expect.stringContaining('sandbox box is not reachable'),
  })
})

test('what fell due while the platform was down runs once at the next start', async () => {
  await sandbox.schedules.create({
    id: 'often',
    type: 'cron',
    value: '*/10 * * * *',
    input: { command: 'often' },
  })
  await sandbox.schedules.create({ id: 'once', type: 'sleep', value: '15m', input: { command: 'once' } })
  await sandbox.schedules.create({ id: 'later', type: 'sleep', value: '3h', input: { command: 'later' } })
  await restart(() => clock.advance(65 * minuteMs))
  await pass(0, 2)
  expect(commands().sort()).toEqual(['often', 'once'])
  // From then on in time again.
  await pass(5 * minuteMs, 3)
  expect(commands().slice(2)).toEqual(['often'])
  expect(ran[2]?.at).toBe(startedAt + 70 * minuteMs)
})

test('a run that a crash cut off before its command was submitted is submitted at the next start', async () => {
  await sandbox.schedules.create({ id: 'once', type: 'sleep', value: '15m', input: { command: 'cut' } })
  await pass(15 * minuteMs, 1)
  expect(commands()).toEqual(['cut'])
  // As the crash would have left it.
  const { store } = client.platform
  const { data } = await store.page<Record<string, unknown>>({ kind: 'schedule_execution' })
  const done = data[0]!
  const again = async (name: string, processName: string) => {
    const body = {
      ...done.body,
      id: name,
      processName,
      status: 'pending',
      statusCode: 0,
      command: { command: 'cut', sealedEnv: '', keepAlive: true },
    }
    const schedule = await sandbox.schedules.create({ type: 'sleep', value: '9h', input: { command: 'x' } })
    const sealed = await store.page<{ id: string; sealedEnv: string }>({ kind: 'schedule' })
    body.command.sealedEnv = sealed.data.find((one) => one.body.id === schedule.id)!.body.sealedEnv
    await store.create({
      kind: 'schedule_execution',
      workspace: 'main',
      name: `x/${name}`,
      body,
      indexes: { ...done.indexes, status: 'pending' },
    })
  }
  await again('submitted', done.body.processName as string)
  await again('not-submitted', 'cut-again')
  expect(await executions()).toHaveLength(1)
  await restart()
  const found = await pass(0, 3)
  expect(found.map(({ statusCode }) => statusCode)).toEqual([200, 200, 200])
  expect(commands()).toEqual(['cut', 'cut'])
  expect((await sandbox.process.get('cut-again')).command).toBe('cut')
})

test('schedules go with their sandbox; a new one of its name has none, and no history', async () => {
  await sandbox.schedules.create({ type: 'cron', value: '* * * * *', input: { command: 'x' } })
  await pass(minuteMs, 1)
  await sandbox.delete()
  await expect(sandbox.schedules.list()).rejects.toMatchObject({ code: 404 })
  sandbox = await client.SandboxInstance.create({ name: 'box' })
  expect((await sandbox.schedules.list()).data).toEqual([])
  expect(await executions()).toEqual([])
  await clock.turn(10 * minuteMs)
  expect(commands()).toEqual(['x'])
  const { store } = client.platform
  await eventually('nothing left in the store', async () => {
    const kinds = ['schedule', 'schedule_execution', 'schedule_purge']
    const pages = await Promise.all(kinds.map((kind) => store.page({ kind })))
    return pages.every(({ data }) => data.length === 0)
  })
})

test('a sandbox has at most a hundred schedules, each with an id of its own', async () => {
  const entry = { type: 'cron', value: '0 0 1 1 *', input: { command: 'x' } } as const
  for (let index = 0; index < 100; index++) await sandbox.schedules.create(entry)
  await expect(sandbox.schedules.create(entry)).rejects.toMatchObject({
    code: 400,
    message: expect.stringContaining('100 schedules'),
  })
  await sandbox.schedules.delete('schedule-7')
  await expect(sandbox.schedules.create({ ...entry, id: 'schedule-8' })).rejects.toMatchObject({ code: 409 })
  expect((await sandbox.schedules.create(entry)).id).toBe('schedule-7')
})

test.each([
  ['a type that is none', { type: 'daily', value: '1', input: { command: 'x' } }, 'type'],
  ['a cron that is none', { type: 'cron', value: '* * *', input: { command: 'x' } }, 'value must be a cron'],
  [
    'a moment that is none',
    { type: 'at', value: 'tomorrow', input: { command: 'x' } },
    'value must be a date',
  ],
  [
    'a moment that is over',
    { type: 'at', value: '2029-01-01T00:00:00Z', input: { command: 'x' } },
    'in the past',
  ],
  [
    'a duration that is none',
    { type: 'sleep', value: '5', input: { command: 'x' } },
    'value must be a duration',
  ],
  ['no command', { type: 'sleep', value: '5m', input: { command: '' } }, 'command'],
  ['no input', { type: 'sleep', value: '5m' }, 'input'],
  ['a name with a slash', { type: 'sleep', value: '5m', input: { command: 'x', name: 'a/b' } }, 'name'],
  ['an id with a slash', { id: 'a/b', type: 'sleep', value: '5m', input: { command: 'x' } }, 'id'],
  ['a negative timeout', { type: 'sleep', value: '5m', input: { command: 'x', timeout: -1 } }, 'timeout'],
  [
    'too many kept',
    { type: 'sleep', value: '5m', maxExecutions: 9999, input: { command: 'x' } },
    'maxExecutions',
  ],
])('%s is refused', async (_, entry, what) => {
  const answer = await client.request('/v0/sandboxes/box/schedules', {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify(entry),
  })
  expect([answer.status, ((await answer.json()) as { message: string }).message]).toEqual([
    400,
    expect.stringContaining(what),
  ])
})
