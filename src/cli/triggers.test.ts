import { afterAll, beforeEach, expect, test } from 'bun:test'
import { TestPlatform } from './test-platform.ts'

// triggers and deliveries as people type them, against a scripted platform.

const platform = new TestPlatform()
afterAll(() => platform[Symbol.dispose]())
beforeEach(() => {
  platform.seen.length = 0
})

const hook = {
  id: 'later',
  type: 'http-async',
  configuration: { callbackUrl: 'https://example.com/hook', callbackSecret: '********', retry: 2 },
}
const clock = {
  id: 'clock',
  type: 'cron',
  enabled: false,
  configuration: { schedule: '0 8 * * *', timezone: 'UTC' },
}
const sent = () => JSON.parse(platform.seen.at(-1)?.body ?? '') as unknown

test('triggers are a table', async () => {
  platform.answer = () => Response.json([hook, clock])
  const { code, stdout } = await platform.run(['triggers', 'ls', 'ag', 'mine'])
  expect(code).toBe(0)
  expect(platform.seen[0]?.path).toStartWith('/v0/agents/mine/triggers?')
  expect(stdout.split('\n').map((line) => line.split(/\s{2,}/))).toEqual([
    ['ID', 'TYPE', 'ENABLED', 'WHEN OR WHERE', 'CALLBACK'],
    ['later', 'http-async', 'yes', '-', 'https://example.com/hook'],
    ['clock', 'cron', 'no', '0 8 * * * UTC', '-'],
    [''],
  ])
})

test('what is added is said by flags, and its secret told once', async () => {
  platform.answer = () =>
    Response.json({ ...hook, configuration: { ...hook.configuration, callbackSecret: 'whsec_x' } })
  const args = [
    'triggers',
    'add',
    'agent',
    'mine',
    'http-async',
    '--id',
    'later',
    '--timeout',
    '5m',
    '--retry',
    '2',
  ]
  const { code, stdout, stderr } = await platform.run([...args, '--callback-url', 'https://example.com/hook'])
  expect([code, stdout]).toEqual([0, 'later\n'])
  expect(stderr).toContain('are signed with whsec_x, which is not shown again')
  expect(platform.log).toEqual(['POST /v0/agents/mine/triggers'])
  expect(sent()).toEqual({
    id: 'later',
    type: 'http-async',
    configuration: { callbackUrl: 'https://example.com/hook', timeout: 300, retry: 2 },
  })
  await platform.run([
    'triggers',
    'add',
    'job',
    'nightly',
    'cron',
    '--schedule',
    '0 3 * * *',
    '--tasks',
    '[{"n":1}]',
  ])
  expect(sent()).toEqual({ type: 'cron', configuration: { schedule: '0 3 * * *', tasks: [{ n: 1 }] } })
})

test('an edit leaves what it does not name', async () => {
  platform.answer = ({ method }) => (method === 'GET' ? Response.json(hook) : Response.json(hook))
  const { code, stderr } = await platform.run([
    'triggers',
    'edit',
    'agent',
    'mine',
    'later',
    '--timeout',
    '60',
    '--clear',
    'retry',
  ])
  expect([code, stderr]).toEqual([0, ''])
  expect(platform.log).toEqual(['GET /v0/agents/mine/triggers/later', 'PUT /v0/agents/mine/triggers/later'])
  expect(sent()).toEqual({ ...hook, configuration: { ...hook.configuration, timeout: 60, retry: null } })
  await platform.run(['triggers', 'disable', 'agent', 'mine', 'later'])
  expect(sent()).toEqual({ ...hook, enabled: false })
  await platform.run(['triggers', 'enable', 'agent', 'mine', 'later'])
  expect(sent()).toEqual({ ...hook, enabled: true })
})

test('a refusal is told in the words that were typed', async () => {
  platform.answer = () =>
    Response.json(
      {
        error: 'spec.triggers[3].configuration.schedule: "x" has 1 fields instead of five',
        code: 400,
        message: 'spec.triggers[3].configuration.schedule: "x" has 1 fields instead of five',
      },
      { status: 400 },
    )
  const bad = await platform.run(['triggers', 'add', 'agent', 'mine', 'cron', '--schedule', 'x'])
  expect([bad.code, bad.stderr]).toEqual([2, expect.stringContaining('--schedule: "x" has 1 fields')])
  platform.seen.length = 0
  const json = await platform.run(['triggers', 'add', 'agent', 'mine', 'cron', '--input', '{'])
  expect([json.code, json.stderr]).toEqual([2, expect.stringContaining('--input')])
  const kind = await platform.run(['triggers', 'ls', 'sandbox', 'box'])
  expect([kind.code, kind.stderr]).toEqual([2, expect.stringContaining('agents, functions, jobs')])
  const nothing = await platform.run(['triggers', 'edit', 'agent', 'mine', 'later'])
  expect([nothing.code, nothing.stderr]).toEqual([2, expect.stringContaining('say what is to change')])
  expect(platform.log).toEqual([])
})

test('a secret is rotated, and triggers deleted', async () => {
  platform.answer = ({ method }) =>
    method === 'DELETE'
      ? Response.json(hook)
      : Response.json({ ...hook, configuration: { callbackSecret: 'whsec_y' } })
  const rotated = await platform.run(['triggers', 'rotate', 'agent', 'mine', 'later', '--overlap', '1h'])
  expect([rotated.code, rotated.stdout]).toEqual([0, 'whsec_y\n'])
  expect(rotated.stderr).toContain('the secret before it holds for 1h more')
  expect(platform.log).toEqual(['POST /v0/agents/mine/triggers/later/rotate'])
  expect(sent()).toEqual({ overlapSeconds: 3600 })
  const removed = await platform.run(['triggers', 'rm', 'agent', 'mine', 'later', 'clock'])
  expect([removed.code, removed.stdout]).toEqual([0, 'later\nclock\n'])
})

test('callbacks are listed with their attempts, and sent again', async () => {
  const delivery = {
    id: 'msg_1',
    executionId: 'execution-1',
    status: 'failed',
    url: 'https://example.com/hook',
    createdAt: new Date().toISOString(),
    attempts: [
      {
        at: '2030-01-01T00:00:00.000Z',
        status: null,
        latencyMs: 15_000,
        bodyExcerpt: '',
        error: 'no answer within 15 s',
      },
      {
        at: '2030-01-01T00:00:01.000Z',
        status: 500,
        latencyMs: 3,
        bodyExcerpt: 'no \x1b[2J',
        error: 'the receiver answered 500',
      },
    ],
  }
  platform.answer = ({ path }) =>
    path.startsWith('/v0/deliveries?')
      ? Response.json({ data: [delivery], meta: { nextCursor: '' } })
      : Response.json(delivery)
  const listed = await platform.run(['deliveries', 'ls', 'execution-1'])
  expect(platform.log).toEqual(['GET /v0/deliveries?execution=execution-1&limit=50'])
  expect(listed.stdout.split('\n')[1]?.split(/\s{2,}/)).toEqual([
    'msg_1',
    'execution-1',
    'failed',
    '2',
    expect.any(String),
    delivery.url,
  ])
  const shown = await platform.run(['deliveries', 'get', 'msg_1'])
  expect(shown.stdout).toContain('no answer within 15 s')
  expect(shown.stdout).toContain('the receiver answered 500: no \\x1b[2J')
  const again = await platform.run(['deliveries', 'redeliver', 'msg_1'])
  expect([again.code, again.stdout, platform.log.at(-1)]).toEqual([
    0,
    'msg_1 failed\n',
    'POST /v0/deliveries/msg_1/redeliver',
  ])
})
