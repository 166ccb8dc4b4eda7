import { expect, test } from 'bun:test'
import { refusalCodeOf } from '../lib/test-refusal.ts'
import type { NewParts } from './index.ts'
import { bytes, failure, success, TestExecutions, text } from './test-executions.ts'

const each: NewParts = { source: 'agent', timeoutMs: 600_000, parallelMax: 2 }
const inputs = (count: number) => Array.from({ length: count }, (_, index) => bytes(`part ${index}`))

test('a group runs its parts in order, so many at once, and ends with the last', async () => {
  await using engine = await TestExecutions.open()
  const { executions } = engine
  const { execution: group } = await executions.acceptGroup(engine.asked({ source: 'job' }), inputs(5), each)
  expect(group).toMatchObject({ source: 'job', status: 'queued', parts: 5 })
  for (let index = 0; index < 5; index++) {
    const { attempt, end } = await engine.next()
    expect(attempt.execution).toMatchObject({ group: group.id, index, labels: {} })
    expect(text(attempt.input)).toBe(`part ${index}`)
    expect(executions.counts(group.id).running).toBeLessThanOrEqual(2)
    expect(executions.get('main', group.id)?.status).toBe('running')
    end(index === 3 ? failure({ retry: false }) : success(`result ${index}`))
  }
  const ended = await engine.ended(group.id)
  expect(ended).toMatchObject({
    status: 'failed',
    error: { code: 'parts_failed', message: '1 of 5 parts did not succeed' },
  })
  expect(ended.note.counts).toMatchObject({ succeeded: 4, failed: 1, running: 0, retried: 0 })
  const page = executions.list('main', { group: group.id }, { sort: 'index', limit: 3 })
  expect(page.data.map(({ index }) => index)).toEqual([0, 1, 2])
  const rest = executions.list(
    'main',
    { group: group.id },
    { sort: 'index', limit: 3, cursor: page.nextCursor },
  )
  expect(rest.data.map(({ index }) => index)).toEqual([3, 4])
  expect(rest.nextCursor).toBe('')
  expect(executions.part('main', group.id, 4)?.index).toBe(4)
  expect(executions.part('main', group.id, 5)).toBeNull()
})

test('a cancelled group begins nothing more and ends cancelled', async () => {
  await using engine = await TestExecutions.open()
  const { executions } = engine
  const { execution: group } = await executions.acceptGroup(
    engine.asked({ source: 'job' }),
    inputs(300),
    each,
  )
  ;(await engine.next()).end(success())
  const running = [await engine.next(), await engine.next()]
  const { execution } = await executions.cancel('main', group.id, 'enough')
  expect(execution).toMatchObject({ status: 'cancelled', statusReason: 'enough' })
  for (const { signal } of running) expect(signal.aborted).toBe(true)
  expect(executions.counts(group.id)).toMatchObject({ succeeded: 1, cancelled: 299, queued: 0, running: 0 })
  expect(await refusalCodeOf(executions.cancel('main', group.id))).toBe('conflict')
})

test('a group that takes too long is stopped', async () => {
  await using engine = await TestExecutions.open()
  const asked = engine.asked({ source: 'job', timeoutMs: 60_000 })
  const { execution: group } = await engine.executions.acceptGroup(asked, inputs(3), each)
  const { signal } = await engine.next()
  engine.clock.advance(60_000)
  expect(await engine.ended(group.id)).toMatchObject({ status: 'timed_out' })
  expect(signal.aborted).toBe(true)
})

test('a group without parts is over at once', async () => {
  await using engine = await TestExecutions.open()
  const { execution } = await engine.executions.acceptGroup(engine.asked({ source: 'job' }), [], each)
  expect(execution.status).toBe('succeeded')
})

test('of a group whose parts break off nothing is left', async () => {
  await using engine = await TestExecutions.open()
  async function* broken() {
    yield* inputs(600)
    throw new Error('the upload broke off')
  }
  const accepted = engine.executions.acceptGroup(engine.asked({ source: 'job', id: 'mine' }), broken(), each)
  const failed = await accepted.then(
    () => null,
    (error) => error as Error,
  )
  expect(failed?.message).toBe('the upload broke off')
  expect(engine.queue.list({ workspace: 'main', limit: 10 })).toEqual([])
  const again = await engine.executions.acceptGroup(
    engine.asked({ source: 'job', id: 'mine' }),
    inputs(1),
    each,
  )
  expect(again.existing).toBe(false)
})

test('parts that a crash left without their group are taken away, and a group goes on where it was', async () => {
  await using engine = await TestExecutions.open()
  await engine.queue.enqueue([
    {
      ...{ id: 'orphan', queue: 'agent', workspace: 'main', target: 'agent/echo', targetMax: 9, key: 'gone' },
      ...{
        keyMax: 0,
        priority: 0,
        runAt: 0,
        leaseMs: 1,
        state: 'waiting',
        until: null,
        group: 'gone',
        index: 0,
      },
      ...{ parts: null, labels: {}, body: {}, input: null, idempotency: null },
    },
  ])
  const { execution: group } = await engine.executions.acceptGroup(
    engine.asked({ source: 'job' }),
    inputs(3),
    each,
  )
  const first = await engine.next()
  await engine.next()
  first.end(success())
  await engine.ended(first.attempt.execution.id)
  await engine.reopen()
  engine.run('agent', { runningMax: 10 })
  await engine.executions.open()
  expect(engine.executions.get('main', 'orphan')).toBeNull()
  for (const index of [1, 2]) {
    const { attempt, end } = await engine.next()
    expect(attempt.execution.index).toBe(index)
    end(success())
  }
  expect((await engine.ended(group.id)).status).toBe('succeeded')
})

test('the same request for a group again is the same group', async () => {
  await using engine = await TestExecutions.open()
  const asked = engine.asked({ source: 'job', idempotency: { key: 'k', digest: 'd' } })
  const one = await engine.executions.acceptGroup(asked, inputs(2), each)
  const two = await engine.executions.acceptGroup(asked, inputs(2), each)
  expect(two).toMatchObject({ existing: true, execution: { id: one.execution.id } })
  expect(engine.queue.list({ workspace: 'main', limit: 10 })).toHaveLength(3)
})

test('a replayed group has the same parts', async () => {
  await using engine = await TestExecutions.open()
  const { executions } = engine
  const { execution: group } = await executions.acceptGroup(engine.asked({ source: 'job' }), inputs(2), each)
  for (let count = 0; count < 2; count++) (await engine.next()).end(success())
  await engine.ended(group.id)
  const part = executions.part('main', group.id, 0)!
  expect(await refusalCodeOf(executions.replay('main', part.id))).toBe('conflict')
  const replayed = await executions.replay('main', group.id)
  for (const index of [0, 1]) {
    const { attempt, end } = await engine.next()
    expect(text(attempt.input)).toBe(`part ${index}`)
    end(success())
  }
  expect(await engine.ended(replayed.id)).toMatchObject({
    status: 'succeeded',
    labels: { replayOf: group.id },
  })
})
