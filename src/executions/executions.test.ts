import { expect, test } from 'bun:test'
import { PlatformError } from '../errors.ts'
import { eventually } from '../lib/test-eventually.ts'
import { refusalCodeOf } from '../lib/test-refusal.ts'
import type { Queue, WorkChange } from '../spec/queue.ts'
import { type Execution, ExecutionStopped } from './index.ts'
import { bytes, failure, success, TestExecutions, text } from './test-executions.ts'

test('what is accepted is done once, and its result kept', async () => {
  await using engine = await TestExecutions.open()
  const { executions } = engine
  const { execution, existing } = await executions.accept(
    engine.asked({ labels: { trigger: 'http-async' }, note: { path: '/' }, priority: 3 }),
  )
  expect(existing).toBe(false)
  expect(execution).toMatchObject({
    status: 'queued',
    attempts: 0,
    labels: { trigger: 'http-async' },
    priority: 3,
  })
  const { attempt, end } = await engine.next()
  expect(attempt).toMatchObject({ number: 1, input: bytes('hello') })
  expect(executions.get('main', execution.id)).toMatchObject({ status: 'running', attempts: 1 })
  end({ ...success('hi'), note: { http: 200 } } as ReturnType<typeof success>)
  const ended = await engine.ended(execution.id)
  expect(ended).toMatchObject({ status: 'succeeded', resultBytes: 2, resultType: 'text/plain', error: null })
  expect(ended.note).toEqual({ path: '/', http: 200 })
  expect(ended.endedAt).not.toBeNull()
  expect(text(executions.result('main', execution.id))).toBe('hi')
  expect(text(executions.input('main', execution.id))).toBe('hello')
  expect(executions.get('other', execution.id)).toBeNull()
  expect(executions.result('other', execution.id)).toBeNull()
})

test('what failed is tried again after a while that doubles, up to its attempts, and can then be replayed', async () => {
  await using engine = await TestExecutions.open()
  const retry = { attemptsMax: 3, delayMs: 60_000, delayMsMax: 600_000 }
  const { id } = await engine.accept({ retry, labels: { user: 'one' } })
  for (const [number, delayMs] of [
    [1, 60_000],
    [2, 120_000],
  ] as const) {
    const { attempt, end } = await engine.next()
    expect(attempt.number).toBe(number)
    end(failure())
    const again = await engine.became(id, ({ status }) => status === 'queued')
    expect(again.error).toEqual({ code: 'agent_error', message: 'it broke' })
    const inMs = again.runAt - engine.clock.now()
    expect(inMs).toBeGreaterThan(delayMs - 30_000)
    expect(inMs).toBeLessThanOrEqual(delayMs)
    engine.clock.advance(inMs)
  }
  const last = await engine.next()
  last.end(failure({ result: bytes('so far') }))
  const dead = await engine.ended(id)
  expect(dead).toMatchObject({ status: 'failed', isDead: true, attempts: 3, resultBytes: 6 })
  const replayed = await engine.executions.replay('main', id)
  expect(replayed.labels).toEqual({ user: 'one', replayOf: id })
  const { attempt, end } = await engine.next()
  expect(attempt.execution.id).toBe(replayed.id)
  expect(attempt.input).toEqual(bytes('hello'))
  end(success())
  expect(await engine.ended(replayed.id)).toMatchObject({ status: 'succeeded', attempts: 1 })
  expect(engine.executions.get('main', id)?.status).toBe('failed')
})

test('a delay that the runner asks for goes before the own one, and what need not be tried again is not', async () => {
  await using engine = await TestExecutions.open()
  const retry = { attemptsMax: 5, delayMs: 1, delayMsMax: 1 }
  const { id } = await engine.accept({ retry })
  ;(await engine.next()).end(failure({ retryAfterMs: 3_600_000 }))
  const again = await engine.became(id, ({ status }) => status === 'queued')
  expect(again.runAt - engine.clock.now()).toBeGreaterThan(3_000_000)
  engine.clock.advance(3_600_000)
  ;(await engine.next()).end(failure({ retry: false }))
  expect(await engine.ended(id)).toMatchObject({ status: 'failed', isDead: false, attempts: 2 })
})

test('delays of many are spread', async () => {
  const chosen = [0, 1]
  await using engine = await TestExecutions.open({ random: () => chosen.shift() ?? 0.5 })
  const retry = { attemptsMax: 2, delayMs: 100_000, delayMsMax: 100_000 }
  const delays: number[] = []
  for (let count = 0; count < 2; count++) {
    const { id } = await engine.accept({ retry })
    const before = engine.clock.now()
    ;(await engine.next()).end(failure())
    const { runAt } = await engine.became(id, ({ status }) => status === 'queued')
    delays.push(runAt - before)
  }
  expect(delays[0]).toBeLessThan(100_000)
  expect(delays[1]).toBeGreaterThanOrEqual(120_000)
})

test('a timeout stops the runner and ends it, whatever the runner says then', async () => {
  await using engine = await TestExecutions.open()
  const { id } = await engine.accept({ timeoutMs: 900_000 })
  const { signal, end } = await engine.next()
  engine.clock.advance(900_000)
  const ended = await engine.ended(id)
  end(success('too late'))
  expect(ended).toMatchObject({
    status: 'timed_out',
    error: { code: 'timeout', message: 'it took longer than 900 seconds' },
  })
  expect((signal.reason as ExecutionStopped).why).toBe('timed_out')
  expect(engine.executions.result('main', id)).toBeNull()
})

test('cancelling reaches the runner, and what waits is never begun', async () => {
  await using engine = await TestExecutions.open({ runner: { runningMax: 1 } })
  const running = await engine.accept()
  const { signal } = await engine.next()
  const waiting = await engine.accept()
  expect(await engine.executions.cancel('main', waiting.id, 'not needed')).toMatchObject({
    previous: 'queued',
    execution: { status: 'cancelled', statusReason: 'not needed', startedAt: null },
  })
  expect(await engine.executions.cancel('main', running.id)).toMatchObject({ previous: 'running' })
  expect(signal.reason).toBeInstanceOf(ExecutionStopped)
  expect((signal.reason as ExecutionStopped).why).toBe('cancelled')
  const third = await engine.accept()
  expect((await engine.next()).attempt.execution.id).toBe(third.id)
  expect(await refusalCodeOf(engine.executions.cancel('main', running.id))).toBe('conflict')
  expect(await refusalCodeOf(engine.executions.cancel('main', 'none'))).toBe('not_found')
  expect(await refusalCodeOf(engine.executions.cancel('other', third.id))).toBe('not_found')
})

test('of two workers that report different results the stale one changes nothing', async () => {
  await using engine = await TestExecutions.open()
  const { id } = await engine.accept({ timeoutMs: 60_000 })
  const stale = await engine.next()
  // Its lease is lost, as if its worker had been away for long: somebody else gets the work.
  await engine.queue.change({ id, expect: {}, state: 'waiting' })
  await engine.accept()
  const begun = [await engine.next(), await engine.next()]
  const fresh = begun.find(({ attempt }) => attempt.execution.id === id)!
  expect(fresh.attempt.token).toBeGreaterThan(stale.attempt.token)
  stale.end(success('stale'))
  fresh.end(success('fresh'))
  const ended = await engine.ended(id)
  expect(ended.status).toBe('succeeded')
  expect(text(engine.executions.result('main', id))).toBe('fresh')
})

test('the stale one changes nothing when it comes last, either', async () => {
  await using engine = await TestExecutions.open()
  const { id } = await engine.accept()
  const stale = await engine.next()
  await engine.queue.change({ id, expect: {}, state: 'waiting' })
  const other = await engine.accept()
  const begun = [await engine.next(), await engine.next()]
  begun.find(({ attempt }) => attempt.execution.id === id)!.end(success('fresh'))
  await engine.ended(id)
  stale.end(failure({ retry: false }))
  begun.find(({ attempt }) => attempt.execution.id === other.id)!.end(success())
  await engine.ended(other.id)
  expect(engine.executions.get('main', id)).toMatchObject({ status: 'succeeded', error: null })
})

test('an agent that took it up reports how it ended, once', async () => {
  await using engine = await TestExecutions.open()
  const { executions } = engine
  const { id } = await engine.accept()
  ;(await engine.next()).end({ status: 'waiting' })
  await engine.became(id, ({ status }) => status === 'waiting')
  await executions.report('main', id, { status: 'running', note: { progress: 50, gone: 1 } })
  await executions.report('main', id, { note: { gone: null } })
  expect(executions.get('main', id)).toMatchObject({ status: 'waiting', note: { progress: 50 } })
  const report = { status: 'succeeded' as const, result: bytes('{}'), type: 'application/json' }
  const ended = await executions.report('main', id, report)
  expect(ended).toMatchObject({ status: 'succeeded', resultType: 'application/json', note: { progress: 50 } })
  expect(await executions.report('main', id, report)).toEqual(ended)
  expect(await refusalCodeOf(executions.report('main', id, { status: 'failed' }))).toBe('conflict')
  expect(executions.get('main', id)).toEqual(ended)
})

test('a report that comes before the agent answered counts, and what it answers then does not', async () => {
  await using engine = await TestExecutions.open()
  const { id } = await engine.accept()
  const { end, signal } = await engine.next()
  await engine.executions.report('main', id, { status: 'failed', error: { code: 'x', message: 'y' } })
  expect(signal.aborted).toBe(true)
  end({ status: 'waiting' })
  expect(engine.executions.get('main', id)).toMatchObject({ status: 'failed', error: { code: 'x' } })
})

test('an agent that never reports is timed out, and each word of it gives it time anew', async () => {
  await using engine = await TestExecutions.open()
  const { id } = await engine.accept({ timeoutMs: 3_600_000 })
  ;(await engine.next()).end({ status: 'waiting' })
  await engine.became(id, ({ status }) => status === 'waiting')
  engine.clock.advance(3_000_000)
  await engine.executions.report('main', id, { status: 'running' })
  engine.clock.advance(3_000_000)
  expect(engine.executions.get('main', id)?.status).toBe('waiting')
  engine.clock.advance(700_000)
  expect(await engine.ended(id)).toMatchObject({ status: 'timed_out', error: { code: 'timeout' } })
})

test('no more run at once than their source, target and key may have', async () => {
  await using engine = await TestExecutions.open({ runner: { runningMax: 3 } })
  const narrow = { concurrency: { key: 'session', max: 1 } }
  const first = await engine.accept(narrow)
  const second = await engine.accept(narrow)
  const others: Execution[] = []
  for (let count = 0; count < 3; count++) others.push(await engine.accept())
  const begun = [await engine.next(), await engine.next(), await engine.next()]
  expect(begun.map(({ attempt }) => attempt.execution.id).sort()).toEqual(
    [first.id, others[0]!.id, others[1]!.id].sort(),
  )
  expect(engine.executions.depth()).toMatchObject({ waiting: 2, running: 3 })
  begun.find(({ attempt }) => attempt.execution.id === first.id)!.end(success())
  const after = await engine.next()
  expect([second.id, others[2]!.id]).toContain(after.attempt.execution.id)
})

test('what cannot begin yet is not looked for again and again', async () => {
  let claims = 0
  const over = (queue: Queue): Queue =>
    new Proxy(queue, {
      get(of, name) {
        const value = Reflect.get(of, name) as unknown
        if (name === 'claim') claims++
        return typeof value === 'function' ? value.bind(of) : value
      },
    })
  await using engine = await TestExecutions.open({ over })
  const narrow = { concurrency: { key: 'session', max: 1 } }
  await Promise.all(Array.from({ length: 5 }, () => engine.accept(narrow)))
  const first = await engine.next()
  const commits = async () => {
    for (let count = 0; count < 20; count++) await engine.accept({ runAt: engine.clock.now() + 3_600_000 })
  }
  await commits()
  const before = claims
  await commits()
  expect(claims).toBe(before)
  first.end(success())
  await engine.next()
})

test('what is delayed begins at its time', async () => {
  await using engine = await TestExecutions.open()
  const later = await engine.accept({ runAt: engine.clock.now() + 3_600_000 })
  const now = await engine.accept()
  const { attempt, end } = await engine.next()
  expect(attempt.execution.id).toBe(now.id)
  end(success())
  await engine.ended(now.id)
  expect(engine.begun).toEqual([])
  engine.clock.advance(3_600_000)
  expect((await engine.next()).attempt.execution.id).toBe(later.id)
})

test('the same request again is the same execution, another one with its key is refused', async () => {
  await using engine = await TestExecutions.open()
  const idempotency = { key: 'k', digest: 'd' }
  const asked = engine.asked({ idempotency })
  const [one, two] = await Promise.all([engine.executions.accept(asked), engine.executions.accept(asked)])
  expect([one.existing, two.existing]).toEqual([false, true])
  expect(two.execution.id).toBe(one.execution.id)
  const other = engine.executions.accept({ ...asked, idempotency: { key: 'k', digest: 'other' } })
  expect(await refusalCodeOf(other)).toBe('conflict')
  engine.clock.advance(24 * 3600 * 1000)
  expect((await engine.executions.accept(asked)).existing).toBe(false)
})

test('past what may wait it is refused, and nothing is kept of it', async () => {
  await using engine = await TestExecutions.open({ waitingMax: 2, runner: { runningMax: 1 } })
  await engine.accept()
  await engine.next()
  for (let count = 0; count < 2; count++) await engine.accept()
  expect(await refusalCodeOf(engine.accept())).toBe('too_many_requests')
  expect(engine.executions.list('main').data).toHaveLength(3)
})

test('what takes too much of the disk is refused, and what ended makes room', async () => {
  const bytesMax = 2 * 1024 * 1024
  await using engine = await TestExecutions.open({ bytesMax, runner: { runningMax: 1 } })
  const input = new Uint8Array(1024 * 1024)
  const ids = [(await engine.accept({ input })).id, (await engine.accept({ input })).id]
  expect(await refusalCodeOf(engine.accept())).toBe('too_many_requests')
  const parts = engine.executions.acceptGroup(engine.asked({ source: 'job' }), [bytes('')], {
    ...{ source: 'agent', timeoutMs: 1000, parallelMax: 1 },
  })
  expect(await refusalCodeOf(parts)).toBe('too_many_requests')
  for (const id of ids) {
    ;(await engine.next()).end(success())
    await engine.ended(id)
  }
  // The first of them makes room enough.
  while (engine.executions.get('main', ids[0]!) !== null) {
    engine.clock.advance(60_000)
    await new Promise((resolve) => setTimeout(resolve, 5))
  }
  expect(engine.queue.bytes()).toBeLessThan(bytesMax)
  expect((await engine.accept()).status).toBe('queued')
})

test('what follows an end is made in the same commit, once, with what the execution became', async () => {
  await using engine = await TestExecutions.open()
  const seen: unknown[] = []
  engine.run('delivery', { runningMax: 2, hidden: true })
  engine.executions.callbacks('test', (execution, result, callback) => {
    seen.push([execution.status, text(result), callback.url])
    return engine.asked({ source: 'delivery', input: bytes('body'), labels: { execution: execution.id } })
  })
  const { id } = await engine.accept({ callback: { dialect: 'test', url: 'http://localhost/' } })
  ;(await engine.next()).end(success('hi'))
  await engine.ended(id)
  const delivery = await engine.next()
  expect(delivery.attempt.execution).toMatchObject({ source: 'delivery', labels: { execution: id } })
  expect(seen).toEqual([['succeeded', 'hi', 'http://localhost/']])
  const cancelled = await engine.accept({ callback: { dialect: 'test', url: 'http://localhost/2' } })
  await engine.next()
  await engine.executions.cancel('main', cancelled.id)
  expect((await engine.next()).attempt.execution.labels).toEqual({ execution: cancelled.id })
  expect(engine.executions.list('main').data.map((listed) => listed.id)).toEqual([cancelled.id, id])
  expect(engine.executions.list('main', { source: 'delivery' }).data).toHaveLength(2)
})

test('an end whose result is too much to be told is told without', async () => {
  await using engine = await TestExecutions.open()
  engine.run('delivery', { runningMax: 2, hidden: true })
  engine.executions.callbacks('test', ({ status }, result) => {
    const input = result === null ? bytes(status) : new Uint8Array(40 * 1024 * 1024)
    return engine.asked({ source: 'delivery', input })
  })
  await engine.accept({ callback: { dialect: 'test' } })
  ;(await engine.next()).end(success('hi'))
  expect(text((await engine.next()).attempt.input)).toBe('succeeded')
})

test('who registered is told of every end', async () => {
  const told: string[] = []
  await using engine = await TestExecutions.open({
    runner: { runningMax: 5, ended: ({ status }) => told.push(status) },
  })
  const ids = [(await engine.accept()).id, (await engine.accept()).id, (await engine.accept()).id]
  const begun = [await engine.next(), await engine.next(), await engine.next()]
  begun[0]!.end(success())
  await engine.ended(begun[0]!.attempt.execution.id)
  await engine.executions.cancel('main', begun[1]!.attempt.execution.id)
  await engine.executions.report('main', begun[2]!.attempt.execution.id, { status: 'failed' })
  expect(told).toEqual(['succeeded', 'cancelled', 'failed'])
  expect(ids).toHaveLength(3)
})

test('who watches hears of it in order, and of the latest again by number', async () => {
  await using engine = await TestExecutions.open()
  const watching = new AbortController()
  const events = engine.executions.watch({ workspace: 'main' }, watching.signal)
  const { id } = await engine.accept()
  const { attempt, end } = await engine.next()
  attempt.note({ said: 'half' })
  end(success())
  const seen: [string, number][] = []
  for await (const { type, number, execution } of events) {
    expect(execution.id).toBe(id)
    seen.push([type, number])
    if (type === 'ended') break
  }
  expect(seen.map(([type]) => type).sort()).toEqual(['created', 'ended', 'progress', 'started'])
  const numbers = seen.map(([, number]) => number)
  expect(numbers).toEqual([...numbers].sort((left, right) => left - right))
  const again = engine.executions.watch({ workspace: 'main', id }, watching.signal, numbers[1])
  const [first] = [(await again[Symbol.asyncIterator]().next()).value]
  expect(first?.number).toBe(numbers[2])
  watching.abort()
})

test('what a stop of the platform cut off is done again, and does not count as an attempt', async () => {
  await using engine = await TestExecutions.open()
  const running = await engine.accept()
  const { signal } = await engine.next()
  const waiting = await engine.accept({ runAt: engine.clock.now() + 3_600_000 })
  await engine.reopen()
  expect((signal.reason as ExecutionStopped).why).toBe('closing')
  expect(engine.executions.get('main', running.id)).toMatchObject({ status: 'running', attempts: 1 })
  engine.run('agent', { runningMax: 10 })
  await engine.executions.open()
  const again = await engine.next()
  expect(again.attempt).toMatchObject({ number: 1, execution: { id: running.id } })
  again.end(success())
  await engine.ended(running.id)
  engine.clock.advance(3_600_000)
  expect((await engine.next()).attempt.execution.id).toBe(waiting.id)
})

test('what ended long ago goes, and one is removed when asked', async () => {
  await using engine = await TestExecutions.open({ keptMs: 1000, keptMax: 100 })
  const { id } = await engine.accept()
  ;(await engine.next()).end(success())
  await engine.ended(id)
  const running = await engine.accept()
  const { signal } = await engine.next()
  expect(await engine.executions.remove('main', running.id)).toBe(true)
  expect(signal.aborted).toBe(true)
  expect(await engine.executions.remove('main', running.id)).toBe(false)
  while (engine.executions.get('main', id) !== null) {
    engine.clock.advance(60_000)
    await new Promise((resolve) => setTimeout(resolve, 5))
  }
})

test('many are replayed at once', async () => {
  await using engine = await TestExecutions.open()
  for (let count = 0; count < 3; count++) {
    const { id } = await engine.accept({ labels: { batch: count === 0 ? 'a' : 'b' } })
    ;(await engine.next()).end(failure({ retry: false }))
    await engine.ended(id)
  }
  const replayed = await engine.executions.replayMany('main', { status: 'failed', labels: { batch: 'b' } })
  expect(replayed.map(({ labels }) => labels.batch)).toEqual(['b', 'b'])
})

test('what was only told of is not done again, and the others have the ids of their source', async () => {
  await using engine = await TestExecutions.open()
  const { executions } = engine
  const run = async () => ({ status: 'waiting' }) as const
  executions.runner('told', run, { runningMax: 10, toldOnly: true })
  executions.runner('named', run, { runningMax: 10, newId: () => 'exec-again' })
  const ended = async (source: string) => {
    const { id } = await engine.accept({ source })
    await eventually('it is taken up', () => executions.get('main', id)?.status === 'waiting')
    await executions.report('main', id, { status: 'failed', error: { code: 'broken', message: 'broken' } })
    return id
  }
  expect(await refusalCodeOf(executions.replay('main', await ended('told')))).toBe('conflict')
  expect(await executions.replayMany('main', { source: 'told' })).toEqual([])
  expect((await executions.replay('main', await ended('named'))).id).toBe('exec-again')
})

test('what would not fit or never end is refused', async () => {
  await using engine = await TestExecutions.open()
  expect(await refusalCodeOf(engine.accept({ timeoutMs: 0 }))).toBe('bad_request')
  expect(await refusalCodeOf(engine.accept({ timeoutMs: Number.NaN }))).toBe('bad_request')
  expect(await refusalCodeOf(engine.accept({ input: new Uint8Array(32 * 1024 * 1024 + 1) }))).toBe(
    'body_too_large',
  )
  expect(await refusalCodeOf(engine.accept({ note: { long: 'x'.repeat(70_000) } }))).toBe('body_too_large')
  const retry = { attemptsMax: 0, delayMs: 1, delayMsMax: 1 }
  expect(await refusalCodeOf(engine.accept({ retry }))).toBe('bad_request')
  expect(engine.executions.list('main').data).toEqual([])
})

test('a result over the limit fails it, and says so', async () => {
  await using engine = await TestExecutions.open()
  const { id } = await engine.accept()
  const result = new Uint8Array(16 * 1024 * 1024 + 1)
  ;(await engine.next()).end({ status: 'succeeded', result, type: 'text/plain' })
  expect(await engine.ended(id)).toMatchObject({ status: 'failed', error: { code: 'result_too_large' } })
})

test('a runner that breaks fails its execution without a word of why', async () => {
  await using engine = await TestExecutions.open()
  const { id } = await engine.accept()
  ;(await engine.next()).fail(new Error('a secret'))
  const { error } = await engine.ended(id)
  expect(error).toEqual({ code: 'internal', message: 'the platform failed to do it' })
})

test('a workspace goes with all its executions', async () => {
  await using engine = await TestExecutions.open()
  const { id } = await engine.accept()
  const { signal } = await engine.next()
  await engine.executions.removal('main')
  expect(signal.aborted).toBe(true)
  expect(engine.executions.get('main', id)).toBeNull()
})

/** A queue whose first changes fail. */
function failing(count: number, error: PlatformError): { over(queue: Queue): Queue; readonly tried: number } {
  let tried = 0
  return {
    get tried() {
      return tried
    },
    over: (queue) =>
      new Proxy(queue, {
        get(of, name) {
          const value = Reflect.get(of, name) as unknown
          if (name !== 'change') return typeof value === 'function' ? value.bind(of) : value
          return async (change: WorkChange) => {
            if (tried++ < count) throw error
            return await of.change(change)
          }
        },
      }),
  }
}

test('how an attempt ended is kept until there is room to write it', async () => {
  const queue = failing(2, new PlatformError('insufficient_storage', 'the disk is full'))
  await using engine = await TestExecutions.open({ over: queue.over })
  const { id } = await engine.accept()
  ;(await engine.next()).end(success('kept'))
  while (engine.executions.get('main', id)?.endedAt === null) {
    engine.clock.advance(1000)
    await new Promise((resolve) => setTimeout(resolve, 1))
  }
  expect(queue.tried).toBe(3)
  expect(text(engine.executions.result('main', id))).toBe('kept')
})

test('a timeout that could not be written is written with the end of its runner', async () => {
  const queue = failing(1, new PlatformError('unavailable', 'too much is written'))
  await using engine = await TestExecutions.open({ over: queue.over })
  const { id } = await engine.accept({ timeoutMs: 60_000 })
  await engine.next()
  engine.clock.advance(60_000)
  expect(await engine.ended(id)).toMatchObject({ status: 'timed_out', attempts: 1 })
})
