import { expect, setDefaultTimeout, test } from 'bun:test'
import { verifyWebhookFromRequest } from '@blaxel/core'
import type { TriggerInput } from '../deployments/index.ts'
import { PlatformError } from '../errors.ts'
import { eventually } from '../lib/test-eventually.ts'
import type { AgentAnswer } from './index.ts'
import { said, TestTriggers } from './test-triggers.ts'

setDefaultTimeout(120_000)
const minuteMs = 60_000
const hourMs = 60 * minuteMs
const refusal = (work: Promise<unknown>): Promise<string> =>
  work.then(
    () => 'nothing was refused',
    (error) => (PlatformError.is(error) ? `${error.code} ${error.message}` : String(error)),
  )

const later = (configuration: Record<string, unknown> = {}): TriggerInput => ({
  id: 'later',
  type: 'http-async',
  configuration,
})
const every = (schedule: string, configuration: Record<string, unknown> = {}): TriggerInput => ({
  id: 'clock',
  type: 'cron',
  configuration: { schedule, ...configuration },
})

test('an agent is asked what was kept, and its answer is told to the address of the trigger', async () => {
  await using test = await TestTriggers.open()
  await test.deploy([later({ callbackUrl: test.receiver.url })])
  test.answer = () => said('{"résult":"ok"}', { status: 201, type: 'application/json' })
  const { execution } = await test.accept({ path: '/deep' })
  expect(execution).toMatchObject({
    source: 'agent',
    target: { kind: 'agent', name: 'one' },
    labels: { trigger: 'later' },
  })
  const { headers, body } = await test.receiver.nth(1)
  expect(test.called).toMatchObject([
    {
      name: 'one',
      executionId: execution.id,
      request: { method: 'POST', path: '/deep', search: '?token=s3cret' },
    },
  ])
  expect(Buffer.from(test.called[0]?.request.body ?? '').toString()).toBe('work')
  expect(test.called[0]?.request.headers).toEqual([['cookie', 'session=s3cret']])
  expect(verifyWebhookFromRequest({ headers, body }, 'secret-1')).toBe(true)
  expect(headers['x-hutch-execution']).toBe(execution.id)
  expect(JSON.parse(body)).toEqual({
    status_code: 201,
    response_body: '{"résult":"ok"}',
    response_length: 16,
    timestamp: Math.floor(test.host.clock.now() / 1000),
  })
  const ended = await test.engine.ended(execution.id)
  expect(ended).toMatchObject({
    status: 'succeeded',
    note: { status_code: 201 },
    resultType: 'application/json',
  })
  // What a client's headers and parameters hold is kept sealed.
  expect(JSON.stringify(ended)).not.toContain('s3cret')
})

test('an answer that is too large to be told is told by its beginning', async () => {
  await using test = await TestTriggers.open()
  await test.deploy([later({ callbackUrl: test.receiver.url })])
  const text = '\u0001'.repeat(8 * 1024 * 1024)
  test.answer = () => said(text)
  await test.accept()
  const { body, headers } = await test.receiver.nth(1)
  expect(verifyWebhookFromRequest({ headers, body }, 'secret-1')).toBe(true)
  const { response_body, ...rest } = JSON.parse(body)
  expect(rest).toMatchObject({ status_code: 200, response_length: text.length, response_truncated: true })
  expect(response_body.length).toBeGreaterThan(1_000_000)
  expect(text.startsWith(response_body)).toBe(true)
})

test('a client says when a request has its turn, and a trigger how many do at once', async () => {
  await using test = await TestTriggers.open()
  await test.deploy([later({ concurrency: 2 })])
  const gates: (() => void)[] = []
  test.answer = () => new Promise((resolve) => gates.push(() => resolve(said('ok'))))
  const accept = async (headers: Record<string, string>) => (await test.accept({ turn: headers })).execution
  const first = await accept({ 'x-hutch-concurrency-key': 'one' })
  const second = await accept({ 'x-hutch-concurrency-key': 'one' })
  const third = await accept({})
  const fourth = await accept({ 'x-hutch-priority': '5' })
  const delayed = await accept({ 'x-hutch-delay': '1h' })
  expect(delayed.runAt).toBe(test.host.clock.now() + 3_600_000)
  expect(fourth.priority).toBe(5)
  await eventually('two are asked', () => test.called.length === 2)
  expect(test.called.map(({ executionId }) => executionId).sort()).toEqual([first.id, third.id].sort())
  expect(test.engine.executions.depth({ source: 'agent' })).toMatchObject({ waiting: 3, running: 2 })
  for (let count = 3; count <= 4; count++) {
    gates.shift()?.()
    await eventually('the next one is asked', () => test.called.length === count)
  }
  const later2 = test.called.slice(2).map(({ executionId }) => executionId)
  expect(later2.sort()).toEqual([second.id, fourth.id].sort())
  for (const open of gates) open()
})

test('without a callback nobody is told', async () => {
  await using test = await TestTriggers.open()
  await test.deploy([])
  const { execution } = await test.accept()
  expect(await test.engine.ended(execution.id)).toMatchObject({ status: 'succeeded', labels: {} })
  expect(test.deliveries.list('main', { limit: 10 }).data).toEqual([])
})

test('an agent that fails is told of as it answered, after as many tries as the trigger says', async () => {
  await using test = await TestTriggers.open()
  await test.deploy([later({ callbackUrl: test.receiver.url, retry: 2 })])
  test.answer = () => said('overloaded', { status: 503, retry: true, retryAfterMs: 1 })
  const { execution } = await test.accept()
  const { body } = await test.receiver.nth(1)
  expect(JSON.parse(body)).toMatchObject({ status_code: 503, response_body: 'overloaded' })
  expect(test.called).toHaveLength(3)
  expect(await test.engine.ended(execution.id)).toMatchObject({
    status: 'failed',
    error: { code: 'agent_error', message: 'the agent answered 503' },
  })
  // What the agent decided is not asked again.
  test.answer = () => said('no', { status: 400 })
  await test.accept()
  expect(JSON.parse((await test.receiver.nth(2)).body)).toMatchObject({
    status_code: 400,
    response_body: 'no',
  })
  expect(test.called).toHaveLength(4)
  // One that dies mid-way is told of by the platform.
  const message = 'the server on port 8000 closed the connection before its answer was complete'
  test.answer = () => said('{}', { status: 502, failure: { code: 'bad_gateway', message } })
  await test.accept()
  expect(JSON.parse((await test.receiver.nth(3)).body)).toMatchObject({
    status_code: 502,
    response_body: '{}',
  })
})

test('at its time, or when it is cancelled, the request is given up and told of', async () => {
  await using test = await TestTriggers.open()
  await test.deploy([later({ callbackUrl: test.receiver.url, timeout: 300 })])
  test.answer = ({ signal }) =>
    new Promise((_, reject) => signal.addEventListener('abort', () => reject(signal.reason)))
  const { execution } = await test.accept()
  await eventually('it is asked', () => test.called.length === 1)
  test.engine.clock.advance(300_000)
  expect(JSON.parse((await test.receiver.nth(1)).body)).toMatchObject({
    status_code: 504,
    response_body: expect.stringContaining('300 seconds'),
  })
  expect(test.engine.executions.get('main', execution.id)?.status).toBe('timed_out')
  expect(test.called[0]?.signal.aborted).toBe(true)
  const second = await test.accept()
  await eventually('it is asked', () => test.called.length === 2)
  await test.engine.executions.cancel('main', second.execution.id, 'not needed')
  expect(JSON.parse((await test.receiver.nth(2)).body)).toMatchObject({ status_code: 499 })
  expect(test.called[1]?.signal.aborted).toBe(true)
})

test('an agent that is busy, or not up yet, is waited for, and that is no try', async () => {
  await using test = await TestTriggers.open()
  await test.deploy([later({ callbackUrl: test.receiver.url })])
  const refusing = (code: string) =>
    said('{}', { status: 429, retry: true, notAsked: true, failure: { code, message: 'not now' } })
  test.answer = () =>
    test.called.length < 4
      ? refusing(test.called.length < 2 ? 'workload_unavailable' : 'too_many_requests')
      : said('ok')
  const { execution } = await test.accept()
  await eventually('it is asked again', () => {
    test.host.clock.advance(5000)
    return test.called.length === 4
  })
  expect(JSON.parse((await test.receiver.nth(1)).body)).toMatchObject({
    status_code: 200,
    response_body: 'ok',
  })
  expect((await test.engine.ended(execution.id)).attempts).toBe(1)
  // One that does not come up is told of after a minute.
  test.answer = () => refusing('workload_unavailable')
  await test.accept()
  await eventually('it is given up', () => {
    test.host.clock.advance(5000)
    return test.receiver.received.length === 2
  })
  expect(JSON.parse((await test.receiver.nth(2)).body)).toMatchObject({ status_code: 429 })
})

test('a key that comes again is the same request, and none with another body', async () => {
  await using test = await TestTriggers.open()
  await test.deploy([later()])
  const first = await test.accept({ key: 'one' })
  const again = await test.accept({ key: 'one' })
  expect([again.existing, again.execution.id]).toEqual([true, first.execution.id])
  expect(await refusal(test.accept({ key: 'one', body: 'other' }))).toStartWith(
    'conflict Idempotency-Key: "one"',
  )
  expect((await test.accept({ key: 'two' })).existing).toBe(false)
  expect(await refusal(test.accept({ key: 'x'.repeat(256) }))).toContain(
    'Idempotency-Key: 1 to 255 characters',
  )
  await eventually('both are done', () => test.executions.every(({ endedAt }) => endedAt !== null))
  expect(test.called).toHaveLength(2)
})

test('what is unknown, or too large, is refused', async () => {
  await using test = await TestTriggers.open()
  await test.deploy([later()])
  expect(await refusal(test.accept({ name: 'none' }))).toStartWith('workload_not_found')
  expect(await refusal(test.accept({ body: 'x'.repeat(32 * 1024 * 1024 + 1) }))).toStartWith('body_too_large')
  expect(test.executions).toEqual([])
  const disabled = { ...test.of(), input: { spec: { enabled: false } }, upload: false, origin: '' }
  await test.host.deployments.update(disabled)
  expect(await refusal(test.accept())).toStartWith('workload_unavailable')
})

test('a callback is signed with the secrets of its moment, also of what was accepted before', async () => {
  await using test = await TestTriggers.open()
  await test.deploy([later({ callbackUrl: test.receiver.url })])
  const gate = Promise.withResolvers<AgentAnswer>()
  test.answer = () => gate.promise
  await test.accept()
  await eventually('it is asked', () => test.called.length === 1)
  await test.host.deployments.triggers.rotate(test.of(), 'later', 0)
  gate.resolve(said('done'))
  expect(verifyWebhookFromRequest(await test.receiver.nth(1), 'secret-2')).toBe(true)
  // What its trigger accepted is told, when that is gone by then, too.
  const second = Promise.withResolvers<AgentAnswer>()
  test.answer = () => second.promise
  await test.accept()
  await eventually('it is asked', () => test.called.length === 2)
  await test.change(() => [])
  second.resolve(said('done'))
  expect(verifyWebhookFromRequest(await test.receiver.nth(2), 'secret-2')).toBe(true)
})

test('what an agent was doing when the platform died is done again, and told once', async () => {
  await using test = await TestTriggers.open()
  await test.deploy([later({ callbackUrl: test.receiver.url })])
  test.answer = ({ signal }) =>
    new Promise((_, reject) => signal.addEventListener('abort', () => reject(signal.reason)))
  const { execution } = await test.accept()
  await eventually('it is asked', () => test.called.length === 1)
  test.answer = () => said('at last')
  await test.restart()
  expect(JSON.parse((await test.receiver.nth(1)).body)).toMatchObject({ response_body: 'at last' })
  expect(test.called.map(({ executionId }) => executionId)).toEqual([execution.id, execution.id])
  expect(await test.engine.ended(execution.id)).toMatchObject({ status: 'succeeded', attempts: 1 })
})

test('an agent is asked by the clock', async () => {
  await using test = await TestTriggers.open()
  await test.deploy([every('30 * * * *', { path: '/tick', input: { n: 1 } })])
  await test.pass(29 * minuteMs)
  expect(test.ticks).toEqual([])
  await test.pass(minuteMs)
  expect(test.ticks).toEqual(['2030-01-01T12:30:00.000Z'])
  await test.pass(hourMs)
  expect(test.ticks).toEqual(['2030-01-01T12:30:00.000Z', '2030-01-01T13:30:00.000Z'])
  await eventually('it is asked', () => test.called.length === 2)
  expect(test.called[0]?.request).toMatchObject({
    method: 'POST',
    path: '/tick',
    headers: [['content-type', 'application/json']],
  })
  expect(Buffer.from(test.called[0]?.request.body ?? '').toString()).toBe('{"n":1}')
})

test('moments are those of the zone', async () => {
  await using test = await TestTriggers.open()
  await test.deploy([every('0 9 * * *', { timezone: 'America/New_York' })])
  await test.pass(2 * hourMs - 1)
  expect(test.ticks).toEqual([])
  await test.pass(1)
  expect(test.ticks).toEqual(['2030-01-01T14:00:00.000Z'])
})

test('moments that were missed come once, the last of them, unless the trigger skips them', async () => {
  await using test = await TestTriggers.open()
  await test.deploy([every('0 * * * *')])
  await test.deploy([every('0 * * * *', { missed: 'skip' })], 'two')
  await test.restart(5.5 * hourMs)
  expect(test.ticks).toEqual(['2030-01-01T17:00:00.000Z'])
  expect(test.executions.map(({ target }) => target.name)).toEqual(['one'])
  await test.restart()
  expect(test.ticks).toHaveLength(1)
  await test.pass(0.5 * hourMs)
  expect(test.ticks.slice(1)).toEqual(['2030-01-01T18:00:00.000Z', '2030-01-01T18:00:00.000Z'])
})

test.each([
  ['0 * * * *', 0, hourMs, '2030-01-01T14:00:00.000Z'],
  ['0 13 * * 2', 3 * 24 * hourMs, 4 * 24 * hourMs, '2030-01-08T13:00:00.000Z'],
])(
  'a moment of %s comes once, whenever the platform dies, for days',
  async (schedule, downMs, laterMs, next) => {
    await using test = await TestTriggers.open()
    await test.deploy([every(schedule)])
    // It dies after the request was kept, and before it is written that the moment came.
    const dying = new Proxy(test.host.store, {
      get(store, name) {
        if (name === 'create' || name === 'update') return () => new Promise(() => {})
        const value = Reflect.get(store, name)
        return typeof value === 'function' ? value.bind(store) : value
      },
    })
    await test.restart(0, dying)
    test.host.clock.advance(hourMs)
    await eventually('it was started', () => test.ticks.length === 1)
    await test.crash(downMs)
    expect(test.ticks).toEqual(['2030-01-01T13:00:00.000Z'])
    await test.pass(laterMs)
    expect(test.ticks).toEqual(['2030-01-01T13:00:00.000Z', next])
  },
)

test('a clock that is set back brings no moment twice', async () => {
  await using test = await TestTriggers.open()
  await test.deploy([every('0 * * * *')])
  await test.pass(hourMs)
  test.host.clock.jump(-30 * minuteMs)
  await test.pass(30 * minuteMs)
  await test.pass(minuteMs)
  expect(test.ticks).toEqual(['2030-01-01T13:00:00.000Z'])
})

test('triggers are added, switched and deleted while all runs', async () => {
  await using test = await TestTriggers.open()
  await test.deploy([])
  await test.change(() => [every('0 * * * *')])
  await test.pass(hourMs)
  expect(test.ticks).toHaveLength(1)
  await test.change(([trigger]) => [{ ...trigger, enabled: false }])
  await test.pass(2 * hourMs)
  expect(test.ticks).toHaveLength(1)
  // What passed while it was off was not missed.
  await test.change(([trigger]) => [{ ...trigger, enabled: true }])
  await test.pass(0)
  expect(test.ticks).toHaveLength(1)
  await test.change(() => [every('*/10 * * * *')])
  await test.pass(10 * minuteMs)
  expect(test.ticks).toHaveLength(2)
  await test.change(() => [])
  await test.pass(hourMs)
  expect(test.ticks).toHaveLength(2)
})

test('what is deactivated is not asked, and what passed meanwhile was not missed', async () => {
  await using test = await TestTriggers.open()
  await test.deploy([every('0 * * * *')])
  const enabled = (value: boolean) =>
    test.host.deployments.update({
      ...test.of(),
      input: { spec: { enabled: value } },
      upload: false,
      origin: '',
    })
  await enabled(false)
  await test.pass(hourMs)
  await enabled(true)
  await test.pass(0)
  expect(test.ticks).toEqual([])
  await test.pass(hourMs)
  expect(test.ticks).toEqual(['2030-01-01T14:00:00.000Z'])
})

test('with a deployment goes what is kept of its triggers', async () => {
  await using test = await TestTriggers.open()
  await test.deploy([every('0 * * * *')])
  await test.pass(hourMs)
  const kept = async () => (await test.host.store.page({ kind: 'trigger_tick', workspace: 'main' })).total
  expect(await kept()).toBe(1)
  await test.host.deployments.remove('main', 'agent', 'one')
  await eventually('nothing is left', async () => (await kept()) === 0)
  await test.pass(hourMs)
  expect(test.ticks).toHaveLength(1)
})
