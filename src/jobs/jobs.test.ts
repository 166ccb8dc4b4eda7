import { afterEach, beforeEach, expect, setDefaultTimeout, test } from 'bun:test'
import { PlatformError } from '../errors.ts'
import { eventually } from '../lib/test-eventually.ts'
import type { ExecutionRequest } from './request.ts'
import { TestJobs } from './test-jobs.ts'

setDefaultTimeout(120_000)
let host: TestJobs
beforeEach(async () => {
  host = await TestJobs.open()
})
afterEach(() => host[Symbol.asyncDispose]())

const start = async (request: ExecutionRequest = {}, key?: string) =>
  await host.jobs.start('main', 'work', request, {
    idempotency: key === undefined ? undefined : { key },
  })
const tasks = (count: number) => Array.from({ length: count }, (_, number) => ({ number }))
const limits = (more: object) => {
  host.run = { ...host.run!, limits: { ...host.run!.limits, ...more } }
}
const refusal = async (work: Promise<unknown>) => {
  const error = await work.then(
    () => null,
    (thrown: unknown) => thrown,
  )
  if (!PlatformError.is(error)) throw new Error(`no refusal: ${error}`)
  return [error.code, error.message]
}
/** Programs that go on until the test lets them. */
function gate() {
  const { promise, resolve } = Promise.withResolvers<void>()
  return { passed: promise, open: resolve }
}

test('a task finds what it was given, and as whom it runs, in its environment', async () => {
  const seen: Record<string, string>[] = []
  const data: string[] = []
  host.program = ({ env }) => {
    seen.push(env)
    const token = env.BL_EXECUTION_DATA_URL!.replace('http://hutch.internal/-/executions/', '')
    data.push(Buffer.from(host.jobs.data(token)).toString())
    return 0
  }
  const { executionId } = await start({
    tasks: [{ name: 'John' }, { name: 'Jane', age: 7 }],
    env: { BOTH: 'execution', BL_NAME: 'not this' },
  })
  const execution = await host.ended(executionId)
  expect(execution).toMatchObject({
    status: 'succeeded',
    stats: { total: 2, success: 2, failure: 0, cancelled: 0, running: 0, retried: 0 },
    spec: { parallelism: 2, timeout: 600, envOverride: { BOTH: '***', BL_NAME: '***' } },
    metadata: { id: executionId, job: 'work', workspace: 'main' },
  })
  expect(execution.tasks?.map(({ metadata, status, exitCode }) => [metadata.name, status, exitCode])).toEqual(
    [
      ['task-0', 'succeeded', 0],
      ['task-1', 'succeeded', 0],
    ],
  )
  expect(data).toEqual(Array(2).fill('{"tasks":[{"name":"John"},{"name":"Jane","age":7}]}'))
  expect(seen.map((env) => env.TASK_INDEX).sort()).toEqual(['0', '1'])
  expect(seen[0]).toMatchObject({
    FROM_IMAGE: 'yes',
    FROM_JOB: 'yes',
    BOTH: 'execution',
    BL_NAME: 'work',
    BL_TYPE: 'job',
    BL_WORKSPACE: 'main',
    BL_REVISION: 'rev-one',
    BL_TASK_KEY: 'TASK_INDEX',
    BL_EXECUTION_ID: executionId,
    BL_TASK_ATTEMPT: '1',
  })
  // What was for those tasks is for nobody else, and not for ever.
  const token = seen[0]!.BL_EXECUTION_DATA_URL!.split('/').at(-1)!
  expect(() => host.jobs.data(token)).toThrow('no execution under this address')
  expect(host.instances.owned('task').filter(({ state }) => state !== 'ending')).toEqual([])
})

test('an address of tasks that was made up leads nowhere', async () => {
  const { open, passed } = gate()
  host.program = () => passed.then(() => 0)
  const { executionId } = await start()
  for (const token of ['', '~~', `main~${executionId}~`, `main~${executionId}~${'A'.repeat(43)}`])
    expect(() => host.jobs.data(token)).toThrow('no execution under this address')
  open()
  await host.ended(executionId)
})

test('as many tasks run at once as the job and the platform allow, and no more', async () => {
  const mostOf = async (count: number, expected: number) => {
    const { open, passed } = gate()
    let running = 0
    let most = 0
    host.program = async () => {
      most = Math.max(most, ++running)
      await passed
      running--
      return 0
    }
    const { executionId } = await start({ tasks: tasks(count) })
    await eventually('as many run as may', () => running === expected)
    // One too many would begin now, while all the others still run.
    await Bun.sleep(50)
    open()
    const { stats, spec } = await host.ended(executionId)
    expect([stats.success, most]).toEqual([count, expected])
    return spec.parallelism
  }
  expect(await mostOf(12, 4)).toBe(4)
  limits({ maxConcurrentTasks: 2 })
  expect(await mostOf(8, 2)).toBe(2)
})

test('what fails is tried again as often as the job says, each task by itself', async () => {
  limits({ maxRetries: 2 })
  const attempts = new Map<string, number>()
  host.program = async ({ env, stdout, stderr }) => {
    const index = env.TASK_INDEX!
    const attempt = (attempts.get(index) ?? 0) + 1
    attempts.set(index, attempt)
    expect(env.BL_TASK_ATTEMPT).toBe(String(attempt))
    await stdout(`attempt ${attempt}\n`)
    // The first one at once, the second at its last attempt, the third never.
    if (index === '0' || (index === '1' && attempt === 3)) return 0
    await stderr('it broke\n')
    return 3
  }
  const { executionId } = await start({ tasks: tasks(3) })
  const execution = await host.ended(executionId)
  expect(Object.fromEntries(attempts)).toEqual({ 0: 1, 1: 3, 2: 3 })
  expect(execution).toMatchObject({
    status: 'failed',
    reason: '1 of 3 tasks did not succeed',
    stats: { success: 2, failure: 1, retried: 2 },
  })
  const [, second, third] = execution.tasks ?? []
  expect(second).toMatchObject({ status: 'succeeded', attempts: 3, exitCode: 0 })
  expect(third).toMatchObject({
    status: 'failed',
    attempts: 3,
    exitCode: 3,
    conditions: [{ type: 'Completed', state: 'False', reason: 'exit_code', severity: 'ERROR' }],
  })
  const detail = host.jobs.task('main', 'work', executionId, 'task-2')
  expect(detail).toMatchObject({ parameters: { number: 2 }, output: 'attempt 3\nit broke' })
  expect(detail.conditions[0]?.message).toBe(
    'The program ended with exit code 3. Its last lines:\n  attempt 3\n  it broke',
  )
  const { lines } = await host.logs.query(
    { workspace: 'main', kind: 'jobs', name: 'work' },
    { execution: executionId, task: '1', streams: new Set(['stdout']) },
  )
  expect(lines.map(({ message }) => message).reverse()).toEqual(['attempt 1', 'attempt 2', 'attempt 3'])
})

test('a task that takes too long is ended, and is not tried again', async () => {
  limits({ timeoutSeconds: 30, maxRetries: 3 })
  let begun = 0
  host.program = async ({ signal }) => {
    begun++
    await new Promise((resolve) => signal.addEventListener('abort', resolve, { once: true }))
    return 0
  }
  const { executionId } = await start()
  await eventually('it runs', () => begun === 1)
  host.clock.advance(30_000)
  expect(await host.ended(executionId)).toMatchObject({
    status: 'failed',
    tasks: [{ status: 'failed', attempts: 1, conditions: [{ reason: 'timeout' }] }],
  })
  expect(begun).toBe(1)
  await eventually('its instance is gone', () => host.instances.owned('task').length === 0)
})

test('what is cancelled ends, is told to be ending until it has, and begins nothing more', async () => {
  const { open, passed } = gate()
  let begun = 0
  host.program = async ({ signal }) => {
    begun++
    await new Promise((resolve) => signal.addEventListener('abort', resolve, { once: true }))
    await passed
    return 0
  }
  const { executionId } = await start({ tasks: tasks(6) })
  await eventually('as many run as may', () => begun === 4)
  expect(await host.jobs.cancel('main', 'work', executionId)).toMatchObject({ status: 'cancelling' })
  open()
  await eventually(
    'nothing of it runs',
    () => host.jobs.get('main', 'work', executionId).status === 'cancelled',
  )
  const execution = await host.jobs.cancel('main', 'work', executionId)
  expect(execution).toMatchObject({ status: 'cancelled', stats: { cancelled: 6, running: 0 } })
  expect(begun).toBe(4)
})

test('an execution can have less memory than its job, and variables of its own; nothing else', async () => {
  const { executionId } = await start({ memory: 256 })
  expect((await host.ended(executionId)).spec.memoryOverride).toBe(256)
  const refused: [ExecutionRequest, string][] = [
    [{ memory: 2048 }, 'memory: 2048 is more than the 1024 MB of the job'],
    [{ memory: 1 }, 'memory: 1 is out of range'],
    [{ env: { 'A=B': '1' } }, 'env: the name "A=B" is not valid'],
    [{ executionId: 'a/b' }, 'executionId: "a/b" is not'],
    [{ tasks: tasks(10_001) }, 'tasks: 10001 tasks, at most 10000'],
  ]
  for (const [request, message] of refused)
    expect(await refusal(start(request))).toEqual(['bad_request', expect.stringContaining(message)])
  const large = { tasks: [{ text: 'x'.repeat(300_000) }] }
  expect(await refusal(start(large))).toEqual(['bad_request', expect.stringContaining('tasks[0]: ')])
})

test('who asks twice under one id, or with one key, has one execution', async () => {
  let begun = 0
  host.program = () => {
    begun++
    return 0
  }
  const request = { tasks: [{ a: 1 }], executionId: 'mine' }
  const both = await Promise.all([start(request), start(request)])
  expect(both.map(({ executionId }) => executionId)).toEqual(['mine', 'mine'])
  await host.ended('mine')
  expect(await start(request)).toEqual({ executionId: 'mine', existing: true })
  expect(await refusal(start({ ...request, tasks: [{ a: 2 }] }))).toEqual([
    'conflict',
    'executionId: "mine" was used for another request: choose another one',
  ])
  const first = await start({ tasks: [{ a: 3 }] }, 'key')
  await host.ended(first.executionId)
  expect(await start({ tasks: [{ a: 3 }] }, 'key')).toEqual({ ...first, existing: true })
  expect(await refusal(start({ tasks: [{ a: 4 }] }, 'key'))).toEqual([
    'conflict',
    'Idempotency-Key: "key" was used for another request: use a new one for this',
  ])
  expect(begun).toBe(2)
})

test('who does not want to wait is refused while the platform is full', async () => {
  const { open, passed } = gate()
  host.program = () => passed.then(() => 0)
  const { executionId } = await start({ tasks: tasks(4), allowQueue: false })
  await eventually(
    'all places are taken',
    () => host.jobs.get('main', 'work', executionId).stats.running === 4,
  )
  expect((await refusal(start({ allowQueue: false })))[0]).toBe('too_many_requests')
  const waits = await start()
  expect(host.jobs.get('main', 'work', waits.executionId).status).toBe('pending')
  open()
  expect((await host.ended(waits.executionId)).status).toBe('succeeded')
})

test('a host without room for an instance takes no attempt from a task', async () => {
  host.noRoom = new PlatformError('unavailable', 'the host has no memory left')
  const { executionId } = await start()
  await eventually('it waits for room', () => host.jobs.get('main', 'work', executionId).stats.running === 1)
  host.noRoom = null
  host.clock.advance(60_000)
  expect(await host.ended(executionId)).toMatchObject({ status: 'succeeded', tasks: [{ attempts: 1 }] })
})

test('an execution goes on after a crash: what ended stays so, what was cut off begins again', async () => {
  const { open, passed } = gate()
  const begun: string[] = []
  host.program = async ({ env }) => {
    begun.push(env.TASK_INDEX!)
    if (env.TASK_INDEX !== '0') await passed
    return 0
  }
  limits({ maxConcurrentTasks: 2 })
  const { executionId } = await start({ tasks: tasks(4) })
  await eventually('one ended, two run', () => {
    const { stats } = host.jobs.get('main', 'work', executionId)
    return stats.success === 1 && stats.running === 2 && begun.length === 3
  })
  await host.kill()
  // The job is another one by now; what was begun goes on as it was.
  host.run = { ...host.run!, revisionId: 'rev-two', env: {} }
  await host.start()
  await eventually('they begin again', () => begun.length === 5)
  open()
  const execution = await host.ended(executionId)
  expect(execution).toMatchObject({ status: 'succeeded', stats: { success: 4, retried: 0 } })
  expect(begun.slice().sort()).toEqual(['0', '1', '1', '2', '2', '3'])
  expect(execution.spec.revision).toBe('rev-one')
})

test('thousands of tasks are one execution, whose tasks are told page by page', async () => {
  await host[Symbol.asyncDispose]()
  host = await TestJobs.open({ tasksMax: 64 })
  host.program = ({ env }) => (env.TASK_INDEX === '1234' ? 1 : 0)
  const { executionId } = await start({ tasks: tasks(2_000) })
  const execution = await host.ended(executionId)
  expect(execution.stats).toMatchObject({ total: 2_000, success: 1_999, failure: 1 })
  expect(execution.tasks).toHaveLength(1_000)
  const indexes: number[] = []
  for (let cursor: string | undefined = ''; cursor !== undefined; ) {
    const page = host.jobs.tasks('main', 'work', executionId, { limit: 150, cursor })
    indexes.push(...page.data.map(({ index }) => index))
    cursor = page.nextCursor || undefined
  }
  expect(indexes).toEqual(Array.from({ length: 2_000 }, (_, index) => index))
  expect(host.jobs.task('main', 'work', executionId, '1234')).toMatchObject({ status: 'failed', exitCode: 1 })
})

test('what a deployment that goes left under way is ended, and its image is needed until then', async () => {
  let begun = 0
  host.program = async ({ signal }) => {
    begun++
    await new Promise((resolve) => signal.addEventListener('abort', resolve, { once: true }))
    return 0
  }
  const { executionId } = await start({ tasks: tasks(2) })
  await eventually('it runs', () => begun === 2)
  const of = { workspace: 'main', kind: 'job' as const, name: 'work' }
  expect(host.jobs.userOf('main', 'job/work:rev-one')).toBe('an execution of the job work')
  await host.jobs.endAll(of)
  expect(host.jobs.userOf('main', 'job/work:rev-one')).toBeNull()
  await eventually(
    'nothing of it runs',
    () => host.jobs.get('main', 'work', executionId).status === 'cancelled',
  )
  expect(host.jobs.get('main', 'work', executionId).reason).toBe('its job was deleted')
})

test('executions are listed by their job, the newest first, also once that is gone', async () => {
  const ids: string[] = []
  for (let count = 0; count < 3; count++) ids.push((await start()).executionId)
  for (const id of ids) await host.ended(id)
  const list = async (page: { limit: number; cursor?: string; sort?: 'oldest' }) => {
    const { data, nextCursor } = await host.jobs.list('main', 'work', page)
    return { found: data.map(({ metadata }) => metadata.id), nextCursor }
  }
  const first = await list({ limit: 2 })
  expect(first.found).toEqual([ids[2]!, ids[1]!])
  expect(await list({ limit: 2, cursor: first.nextCursor })).toEqual({ found: [ids[0]!], nextCursor: '' })
  expect((await list({ limit: 5, sort: 'oldest' })).found).toEqual(ids)
  host.run = null
  expect((await list({ limit: 5 })).found).toHaveLength(3)
  expect((await refusal(host.jobs.list('main', 'other', { limit: 1 })))[0]).toBe('not_found')
  expect(() => host.jobs.get('other', 'work', ids[0]!)).toThrow('there is no execution')
  expect(() => host.jobs.get('main', 'other', ids[0]!)).toThrow('there is no execution')
})

test('an execution that is done once more has the same tasks and settings, and an id of its own', async () => {
  const seen: (string | undefined)[] = []
  host.program = ({ env }) => {
    seen.push(env.EXTRA)
    return 0
  }
  const { executionId } = await start({ tasks: tasks(2), env: { EXTRA: 'yes' }, executionId: 'mine' })
  await host.ended(executionId)
  // What it ran is settled, whatever became of its job.
  host.run = null
  const again = await host.executions.replay('main', host.idOf(executionId))
  const execution = await host.ended(again.id)
  expect(again.id).toStartWith('exec-')
  expect(execution).toMatchObject({ metadata: { id: again.id }, status: 'succeeded', stats: { success: 2 } })
  expect(host.jobs.task('main', 'work', again.id, '1').parameters).toEqual({ number: 1 })
  expect(seen).toEqual(['yes', 'yes', 'yes', 'yes'])
  const shown = host.executions.list('main').data.map(({ source, target }) => [source, target.name])
  expect(shown).toEqual([
    ['job', 'work'],
    ['job', 'work'],
  ])
})
