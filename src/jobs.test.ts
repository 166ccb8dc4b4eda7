import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from 'bun:test'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { JobExecution } from '@blaxel/core'
import { HurriedClock } from './lib/test-clock.ts'
import { eventually } from './lib/test-eventually.ts'
import { openTestClient, type TestClient, whyNot } from './test-client.ts'
import { bundledFiles, deploy, fixtureFiles } from './test-hosting.ts'

/** Code that is run to its end, through the client of the cloud, on real machines. */

setDefaultTimeout(120_000)
const directory = mkdtempSync(join(tmpdir(), 'hutch-jobs-'))
afterAll(() => rmSync(directory, { recursive: true, force: true }))
const why = await whyNot()
const python = Bun.which('python3')
/** Between SIGTERM and the end of the instance. */
const stopGraceMs = 5_000
if (why === '' && python === null) console.warn('skipped, since this host has no python3: a job in Python')

/** Whoever is told to end has minutes for it, however busy the machine is. */
class PatientClock extends HurriedClock {
  override sleep(ms: number, signal?: AbortSignal): Promise<void> {
    return super.sleep(ms === stopGraceMs ? 20 * 60_000 : ms, signal)
  }
}

/** What a task does is what it was given to do. */
const scripted = {
  'package.json': JSON.stringify({ scripts: { start: 'bun index.ts' } }),
  'index.ts': `
    const { BL_EXECUTION_DATA_URL, BL_TASK_KEY, BL_API_URL, BL_API_KEY, BL_WORKSPACE } = process.env
    const { tasks } = await (await fetch(BL_EXECUTION_DATA_URL)).json()
    const task = tasks[Number(process.env[BL_TASK_KEY])]
    if (task.print) console.log(process.env[task.print])
    if (task.ask) {
      const headers = { authorization: 'Bearer ' + BL_API_KEY, 'x-blaxel-workspace': BL_WORKSPACE, 'content-type': 'application/json' }
      const answer = await fetch(BL_API_URL + task.ask, { method: task.method ?? 'GET', headers, body: task.body && JSON.stringify(task.body) })
      console.log(answer.status, (await answer.text()).slice(0, 200))
    }
    if (task.hang) {
      // Something that outlives who started it, and does not hear what it is told.
      Bun.spawn(['sh', '-c', 'trap "" TERM; while :; do sleep 1; done'], { detached: true })
      process.on('SIGTERM', () => { console.log('told to end'); process.exit(0) })
      console.log('begun')
      setInterval(() => {}, 1000)
    }
  `,
}

describe.skipIf(why !== '')('jobs', () => {
  const clock = new PatientClock()
  let client: TestClient
  let sdk: typeof import('@blaxel/core')

  beforeAll(async () => {
    client = await openTestClient({ dataDir: directory, clock })
    sdk = await import('@blaxel/core')
    await deploy(client, 'jobs', 'scripted', scripted, { runtime: { memory: 512, timeout: 3600 } })
  })
  afterAll(() => client?.[Symbol.asyncDispose]())

  const wait = async (name: string, id: string) =>
    (await sdk.blJob(name).waitForExecution(id, { interval: 20, maxWait: 100_000 })) as JobExecution
  const json = async (path: string, init: RequestInit = {}) =>
    (await (await client.request(path, init)).json()) as Record<string, unknown>
  const logs = async (name: string, execution: string, task = '') => {
    const query = `resourceType=jobs&workloadIds=${name}&executionId=${execution}&taskId=${task}`
    const read = await json(`/v0/observability/logs?${query}`)
    const { logs: lines } = read[name] as { logs: { message: string }[] }
    return lines.map(({ message }) => message).reverse()
  }
  const says = (execution: string, line: string) =>
    eventually(line, async () => (await logs('scripted', execution)).includes(line))
  const post = (path: string, body: object, headers: Record<string, string> = {}) =>
    client.request(path, {
      method: 'POST',
      headers: { 'content-type': 'application/json', ...headers },
      body: JSON.stringify(body),
    })

  test('tasks of a TypeScript job find what they were given by the client of the cloud', async () => {
    const toml = (await fixtureFiles('job-typescript'))['blaxel.toml']!
    const entry = join(import.meta.dir, '../fixtures/job-typescript/src/index.ts')
    await deploy(client, 'jobs', 'primes', { ...(await bundledFiles(entry)), 'blaxel.toml': toml })
    expect(await json('/v0/jobs/primes')).toMatchObject({
      metadata: { name: 'primes', url: `${client.url}/main/jobs/primes` },
      spec: { runtime: { timeout: 300, maxRetries: 2, maxConcurrentTasks: 4 } },
    })
    const job = sdk.blJob('primes')
    const id = await job.run([{ to: 10 }, { from: 11, to: 20 }])
    const execution = await wait('primes', id)
    expect(execution).toMatchObject({
      status: 'succeeded',
      stats: { total: 2, success: 2, failure: 0 },
      spec: { parallelism: 2, timeout: 300 },
      metadata: { id, job: 'primes', workspace: 'main' },
    })
    expect(await logs('primes', id, '0')).toEqual(['4 primes from 2 to 10'])
    expect(await logs('primes', id, 'task-1')).toEqual(['4 primes from 11 to 20'])
    expect(await json(`/v0/jobs/primes/executions/${id}/tasks/1`)).toMatchObject({
      status: 'succeeded',
      exitCode: 0,
      parameters: { from: 11, to: 20 },
      output: '4 primes from 11 to 20',
    })

    const other = await job.createExecution({ tasks: [{ to: 3 }], env: { UNIT: 'of them' } })
    expect((await job.getExecution(other)).metadata?.id).toBe(other)
    expect(await wait('primes', other)).toMatchObject({
      status: 'succeeded',
      spec: { envOverride: { UNIT: '***' } },
    })
    expect(await job.getExecutionStatus(other)).toBe('succeeded')
    expect(await logs('primes', other)).toEqual(['2 of them from 2 to 3'])
    const page = await job.listExecutions({ limit: 1 })
    expect(page.data.map(({ metadata }) => metadata?.id)).toEqual([other])
    const all = await (await job.listExecutions()).autoPagingToArray({ limit: 10 })
    expect(all.map(({ metadata }) => metadata?.id)).toEqual([other, id])
  })

  test.skipIf(python === null)('a job in Python has a directory of its own for each task', async () => {
    const volumes = [{ name: 'scratch', type: 'ephemeral', mountPath: '/mnt/scratch', sizeMb: 256 }]
    const files = await fixtureFiles('job-python')
    await deploy(client, 'jobs', 'words', files, { runtime: { memory: 512 }, volumes })
    const texts = ['the quick brown fox', 'jumps over the lazy dog', '']
    const id = await sdk.blJob('words').run(texts.map((text) => ({ text })))
    const execution = await wait('words', id)
    expect(execution).toMatchObject({ status: 'failed', stats: { success: 2, failure: 1 } })
    expect(await logs('words', id, '0')).toEqual(['brown quick fox'])
    expect(await logs('words', id, '1')).toEqual(['jumps lazy over'])
    expect(execution.tasks?.[2]).toMatchObject({
      status: 'failed',
      exitCode: 1,
      conditions: [{ reason: 'exit_code', message: expect.stringContaining('there is no word in it') }],
    })
  })

  test('what is cancelled is told to end, and ends with all that it started', async () => {
    const job = sdk.blJob('scripted')
    const id = await job.run([{ hang: true }, { hang: true }])
    await says(id, 'begun')
    await job.cancelExecution(id)
    const execution = await wait('scripted', id)
    expect(execution).toMatchObject({ status: 'cancelled', stats: { cancelled: 2, running: 0 } })
    const told = (await logs('scripted', id)).filter((line) => line === 'told to end')
    expect(told.length).toBeGreaterThan(0)
    // What stays behind of an instance would be here.
    await eventually(
      'their instances are gone',
      async () => (await client.platform.runtime.list()).length === 0,
    )
  })

  test('a task that takes too long is ended', async () => {
    const id = await sdk.blJob('scripted').run([{ hang: true }])
    await says(id, 'begun')
    clock.advance(3600_000)
    const execution = await wait('scripted', id)
    expect(execution.tasks?.[0]).toMatchObject({
      status: 'failed',
      conditions: [{ reason: 'timeout', message: 'it took longer than 3600 seconds' }],
    })
    await eventually('its instance is gone', async () => (await client.platform.runtime.list()).length === 0)
  })

  test('a task speaks to the platform as its job, and may start others', async () => {
    const id = await sdk.blJob('scripted').run([
      { ask: '/jobs/scripted' },
      {
        ask: '/jobs/scripted/executions',
        method: 'POST',
        body: { executionId: 'child', tasks: [{ print: 'BL_NAME' }] },
      },
      { ask: '/jobs/scripted', method: 'DELETE' },
    ])
    expect((await wait('scripted', id)).status).toBe('succeeded')
    expect((await logs('scripted', id, '0'))[0]).toStartWith('200 {')
    expect((await logs('scripted', id, '1'))[0]).toStartWith('200 {"executionId":"child"')
    expect((await logs('scripted', id, '2'))[0]).toStartWith('403 ')
    expect((await wait('scripted', 'child')).status).toBe('succeeded')
    expect(await logs('scripted', 'child')).toEqual(['scripted'])
  })

  test('a job is run by its own address too, once for each key', async () => {
    const body = { tasks: [{ print: 'BL_TYPE' }] }
    const asked = () => post('/main/jobs/scripted/executions', body, { 'idempotency-key': 'once' })
    const [first, second] = [await asked(), await asked()]
    expect([first.status, second.status]).toEqual([200, 200])
    const begun = (await first.json()) as { executionId: string }
    expect(begun).toEqual({
      executionId: begun.executionId,
      id: begun.executionId,
      jobId: 'scripted',
      workspaceId: 'main',
      ...body,
    } as never)
    expect(await second.json()).toEqual(begun)
    const other = await post('/main/jobs/scripted/executions', { tasks: [] }, { 'idempotency-key': 'once' })
    expect(other.status).toBe(409)
    expect((await wait('scripted', begun.executionId)).status).toBe('succeeded')
    expect(await logs('scripted', begun.executionId)).toEqual(['job'])
  })

  test('many jobs have one image', async () => {
    const { spec } = (await json('/v0/jobs/scripted')) as { spec: { runtime: { image: string } } }
    const { image } = spec.runtime
    const runtime = { image, memory: 256, envs: [{ name: 'WHICH', value: 'another' }] }
    await post('/v0/jobs', { metadata: { name: 'another' }, spec: { runtime } })
    await eventually('it is deployed', async () => (await json('/v0/jobs/another')).status === 'DEPLOYED')
    const id = await sdk.blJob('another').run([{ print: 'WHICH' }])
    expect((await wait('another', id)).status).toBe('succeeded')
    expect(await logs('another', id)).toEqual(['another'])
    // What goes on when its job is deleted is ended.
    const endless = await sdk.blJob('another').run([{ hang: true }])
    await eventually('it runs', async () => (await logs('another', endless)).includes('begun'))
    expect((await client.request('/v0/jobs/another', { method: 'DELETE' })).status).toBe(200)
    expect(await wait('another', endless)).toMatchObject({ status: 'cancelled' })
    await eventually('it is gone', async () => (await post('/v0/jobs/another/executions', {})).status === 404)
  })

  test('a job is run by the clock, once for each time that is due', async () => {
    const tasks = [{ print: 'BL_NAME' }, {}]
    const configuration = { schedule: '* * * * *', timeout: 77, retry: 4, tasks }
    const { spec } = (await json('/v0/jobs/scripted')) as { spec: { runtime: { image: string } } }
    const triggers = [{ id: 'often', type: 'cron', configuration }]
    const body = { metadata: { name: 'clockwork' }, spec: { runtime: spec.runtime, triggers } }
    expect((await post('/v0/jobs', body)).status).toBe(200)
    await eventually('it is deployed', async () => (await json('/v0/jobs/clockwork')).status === 'DEPLOYED')
    const job = sdk.blJob('clockwork')
    const [first] = await eventually('it ran', async () => {
      clock.advance(20_000)
      const { data } = await job.listExecutions()
      return data.length > 0 ? data : null
    })
    const execution = await wait('clockwork', first?.metadata?.id ?? '')
    expect(execution).toMatchObject({ status: 'succeeded', stats: { total: 2 }, spec: { timeout: 77 } })
    expect(execution.tasks?.[0]?.spec?.maxRetries).toBe(4)
    const { data } = (await json('/v0/executions?target=job/clockwork&label=trigger=often')) as {
      data: { labels: Record<string, string> }[]
    }
    expect(data[0]?.labels.tick).toEndWith(':00.000Z')
    expect((await client.request('/v0/jobs/clockwork', { method: 'DELETE' })).status).toBe(200)
  })

  test('what a job cannot have is refused by its name', async () => {
    const put = (spec: object) =>
      client.request('/v0/jobs/scripted', {
        method: 'PUT',
        headers: { 'content-type': 'application/json' },
        body: JSON.stringify({ metadata: { name: 'scripted' }, spec }),
      })
    const volume = { name: 'v', type: 'ephemeral', mountPath: '/data', sizeMb: 10 }
    for (const [spec, status, message] of [
      [{ githubRunner: { repositories: ['a/b'] } }, 501, 'spec.githubRunner: '],
      [{ volumes: [{ ...volume, type: 'persistent' }] }, 501, 'spec.volumes[0].type: '],
      [{ volumes: [{ ...volume, mountPath: '/a/../b' }] }, 400, 'spec.volumes[0].mountPath: '],
      [{ volumes: [{ ...volume, mountPath: '/proc/x' }] }, 400, 'spec.volumes[0].mountPath: '],
      [{ volumes: [{ ...volume, readOnly: true }] }, 400, 'spec.volumes[0].readOnly: '],
      [{ volumes: [volume, volume] }, 400, 'spec.volumes: the name "v" is there twice'],
      [{ runtime: { timeout: 10_000_000 } }, 400, 'spec.runtime.timeout: '],
      [{ runtime: { maxRetries: -1 } }, 400, 'spec.runtime.maxRetries: '],
    ] as const) {
      const answer = await put(spec)
      const { message: said } = (await answer.json()) as { message: string }
      expect([answer.status, said]).toEqual([status, expect.stringContaining(message)])
    }
    const memory = await post('/v0/jobs/scripted/executions', { memory: 4096 })
    expect([memory.status, await memory.text()]).toEqual([
      400,
      expect.stringContaining('4096 is more than the 512 MB'),
    ])
    // Who sends back what he read changes nothing.
    const before = await json('/v0/jobs/scripted/revisions')
    expect((await put((await json('/v0/jobs/scripted')).spec as object)).status).toBe(200)
    expect(await json('/v0/jobs/scripted/revisions')).toEqual(before)
  })
})
