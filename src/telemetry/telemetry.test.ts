import { afterEach, expect, test } from 'bun:test'
import { appendFileSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { silentLogger } from '../lib/log.ts'
import { FakeClock } from '../lib/test-clock.ts'
import { Logs, type LogsOptions, timestampOf } from './index.ts'
import { segmentBytesMax } from './segments.ts'
import { severityIn } from './severity.ts'

const places: string[] = []
const opened: Logs[] = []
afterEach(async () => {
  for (const logs of opened.splice(0)) await logs.close()
  for (const place of places.splice(0)) rmSync(place, { recursive: true, force: true })
})

const workload = { workspace: 'main', kind: 'agents', name: 'greeter' } as const

function setup(options: Partial<LogsOptions> = {}) {
  const dir = options.dir ?? mkdtempSync(join(tmpdir(), 'hutch-telemetry-'))
  places.push(dir)
  const clock = (options.clock as FakeClock) ?? new FakeClock()
  const logs = new Logs({ log: silentLogger, ...options, dir, clock })
  opened.push(logs)
  const filesOf = (name: string) => join(dir, 'logs', 'main', 'agents', name)
  return { dir, clock, logs, filesOf }
}

const messages = async (logs: Logs, query: Parameters<Logs['query']>[1] = {}, of = workload) =>
  (await logs.query(of, query)).lines.map(({ message }) => message)

test('lines come back newest first, each at a moment of its own, also those of one millisecond', async () => {
  const { logs } = setup()
  for (const line of ['one', 'two', 'three']) logs.append({ ...workload, stream: 'stdout' }, line)
  const { lines, total } = await logs.query(workload)
  expect(lines.map(({ message }) => message)).toEqual(['three', 'two', 'one'])
  expect(total).toBe(3)
  expect(lines.map(({ atUs }) => timestampOf(atUs))).toEqual([
    '2030-01-01T12:00:00.000002Z',
    '2030-01-01T12:00:00.000001Z',
    '2030-01-01T12:00:00.000000Z',
  ])
})

test('what was written is there for the next platform, and goes on from there', async () => {
  const first = setup()
  first.logs.append({ ...workload, stream: 'build', revision: 'rev-1' }, 'before')
  await first.logs.close()
  const second = setup({ dir: first.dir, clock: first.clock })
  second.clock.advance(1000)
  second.logs.append({ ...workload, stream: 'stdout', instance: 'i1' }, 'after')
  expect((await second.logs.query(workload)).lines).toMatchObject([
    { message: 'after', stream: 'stdout', instance: 'i1', revision: '' },
    { message: 'before', stream: 'build', instance: '', revision: 'rev-1' },
  ])
})

test('a query asks by time, severity, stream, revision, instance and text, page by page', async () => {
  const { logs, clock } = setup()
  const add = (line: string, more: object = {}) => {
    logs.append({ ...workload, stream: 'stdout', ...more }, line)
    clock.advance(1000)
  }
  const startUs = clock.now() * 1000
  add('INFO: starts', { revision: 'a' })
  add('Traceback of it', { stream: 'stderr', revision: 'a', instance: 'x' })
  add('{"level":"warn","message":"low"}', { revision: 'b' })
  add('plain\ttabs and\nends', { stream: 'build', revision: 'b' })
  expect(await messages(logs, { fromUs: startUs + 1_000_000, toUs: startUs + 2_000_000 })).toEqual([
    '{"level":"warn","message":"low"}',
    'Traceback of it',
  ])
  expect(await messages(logs, { severities: new Set(['ERROR']) })).toEqual(['Traceback of it'])
  expect(await messages(logs, { severities: new Set(['WARNING', 'FATAL']) })).toHaveLength(1)
  expect(await messages(logs, { streams: new Set(['build']) })).toEqual(['plain\ttabs and ends'])
  expect(await messages(logs, { revision: 'a' })).toHaveLength(2)
  expect(await messages(logs, { instance: 'x' })).toEqual(['Traceback of it'])
  expect(await messages(logs, { search: 'TRACEBACK' })).toEqual(['Traceback of it'])
  expect(await logs.query(workload, { limit: 1, offset: 1 })).toMatchObject({
    lines: [{ message: '{"level":"warn","message":"low"}' }],
    total: 4,
  })
})

test('who follows gets what there is, then what comes, and nothing twice', async () => {
  const { logs } = setup()
  const seen: string[] = []
  const add = (line: string) => logs.append({ ...workload, stream: 'stdout' }, line)
  for (let at = 0; at < 5; at++) add(`early ${at}`)
  const stop = new AbortController()
  let came = Promise.withResolvers<void>()
  const following = (async () => {
    for await (const { message } of logs.follow(workload, { last: 3 }, stop.signal)) {
      seen.push(message)
      came.resolve()
    }
  })()
  await came.promise
  for (let at = 0; at < 3; at++) {
    came = Promise.withResolvers<void>()
    add(`late ${at}`)
    while (!seen.includes(`late ${at}`)) await came.promise
  }
  stop.abort()
  await following
  expect(seen).toEqual(['early 2', 'early 3', 'early 4', 'late 0', 'late 1', 'late 2'])
})

test('a follower of a filter gets only that, one that is slow is told of what it missed, and removal ends it', async () => {
  const { logs } = setup()
  const lines = logs.follow(workload, { streams: new Set(['stdout']) }, new AbortController().signal)
  const first = lines.next()
  logs.append({ ...workload, stream: 'build' }, 'not asked for')
  logs.append({ ...workload, stream: 'stdout' }, 'first')
  expect((await first).value).toMatchObject({ message: 'first' })
  for (let at = 0; at < 10_500; at++) logs.append({ ...workload, stream: 'stdout' }, 'x')
  await logs.remove('main', 'agents', 'greeter')
  const rest: string[] = []
  for await (const { message } of lines) rest.push(message)
  expect(rest.slice(0, -1).every((message) => message === 'x')).toBe(true)
  expect(rest.at(-1)).toBe('[... 500 lines are left out: they came faster than they were read ...]')
  expect(await logs.query(workload)).toEqual({ lines: [], total: 0 })
})

test('followers are bounded, and their places come back', async () => {
  const { logs } = setup()
  const stop = new AbortController()
  logs.append({ ...workload, stream: 'stdout' }, 'before')
  const followers = Array.from({ length: 50 }, () => logs.follow(workload, {}, stop.signal))
  for (const follower of followers.slice(0, 25)) await follower.next()
  // Half of them wait for a line, half of them were given one and ask for nothing.
  const waiting = followers.map((follower, at) => (at < 25 ? null : follower.next()))
  const oneMore = () => logs.follow(workload, {}, stop.signal).next()
  await expect(oneMore()).rejects.toMatchObject({ code: 'too_many_requests' })
  const other = { ...workload, workspace: 'other' }
  const elsewhere = logs.follow(other, {}, stop.signal).next()
  stop.abort()
  await Promise.all([...waiting, elsewhere])
  const fresh = new AbortController()
  const again = logs.follow(workload, { last: 0 }, fresh.signal).next()
  logs.append({ ...workload, stream: 'stdout' }, 'here')
  expect((await again).value).toMatchObject({ message: 'here' })
  fresh.abort()
})

test('of a workload that says more than can be kept the oldest goes, file by file', async () => {
  const { logs, clock, filesOf } = setup({ workloadBytesMax: 3 * segmentBytesMax })
  const text = 'x'.repeat(8000)
  for (let round = 0; round < 20; round++) {
    for (let at = 0; at < 16; at++) logs.append({ ...workload, stream: 'stdout' }, `${round} ${text}`)
    clock.advance(1000)
    await logs.query(workload, { limit: 1 })
  }
  const files = readdirSync(filesOf('greeter'))
  const bytes = files.reduce((sum, file) => sum + readFileSync(join(filesOf('greeter'), file)).length, 0)
  expect(bytes).toBeLessThanOrEqual(3 * segmentBytesMax)
  const kept = await messages(logs)
  expect(kept[0]).toStartWith('19 ')
  expect(kept.length).toBeGreaterThan(50)
})

test('what comes faster than it can be written is left out, and a line says how much', async () => {
  const { logs } = setup()
  const text = 'x'.repeat(10_000)
  for (let at = 0; at < 150; at++) logs.append({ ...workload, stream: 'stdout' }, text)
  const { lines, total } = await logs.query(workload)
  const kept = total - 1
  expect(kept).toBeLessThan(150)
  expect(lines[0]).toMatchObject({
    stream: 'platform',
    severity: 'WARNING',
    message: `WARNING: ${150 - kept} lines were left out: they came faster than they could be kept`,
  })
})

test('of all workloads together the oldest lines go, and those older than a week', async () => {
  const { logs, clock } = setup({ logBytesMax: 100_000 })
  const add = async (name: string, count: number) => {
    for (let at = 0; at < count; at++) logs.append({ ...workload, name, stream: 'stdout' }, 'x'.repeat(1000))
    await logs.query({ ...workload, name }, { limit: 1 })
    clock.advance(1000)
  }
  const totalOf = async (name: string) => (await logs.query({ ...workload, name })).total
  await add('old', 60)
  await add('young', 60)
  while ((await totalOf('old')) > 0) await new Promise(setImmediate)
  expect(await totalOf('young')).toBe(60)
  logs.append({ ...workload, name: 'old', stream: 'stdout' }, 'again')
  expect(await totalOf('old')).toBe(1)
  clock.advance(8 * 24 * 3600 * 1000)
  logs.start()
  while ((await totalOf('young')) > 0) await new Promise(setImmediate)
  expect(await totalOf('old')).toBe(0)
})

test('half a line, as a full disk leaves it, costs no other line', async () => {
  const { logs, filesOf } = setup()
  logs.append({ ...workload, stream: 'stdout' }, 'whole')
  await logs.query(workload)
  const file = join(filesOf('greeter'), readdirSync(filesOf('greeter'))[0]!)
  appendFileSync(file, '1893499200000001\to\t9\thalf')
  expect(await messages(logs)).toEqual(['whole'])
  writeFileSync(file, `\nnonsense\n\t\t\t\t\t\n${readFileSync(file, 'utf8')}\n99\tz\t9\t\t\tx\n`)
  expect(await messages(logs)).toEqual(['whole'])
})

test('lines that cannot be written are told of once they can', async () => {
  const { logs, dir, filesOf } = setup()
  writeFileSync(join(dir, 'logs'), 'a file where the directory should be')
  logs.append({ ...workload, stream: 'stdout' }, 'lost')
  expect(await messages(logs)).toEqual([])
  rmSync(join(dir, 'logs'))
  logs.append({ ...workload, stream: 'stdout' }, 'kept')
  expect(await messages(logs)).toEqual([
    'kept',
    'WARNING: A line was left out: they came faster than they could be kept',
  ])
  expect(readdirSync(filesOf('greeter'))).toHaveLength(1)
})

test('names lead nowhere else, and what a workspace had is gone with it', async () => {
  const { logs, dir } = setup()
  for (const name of ['..', '../../x', '', 'A/b', '.'])
    logs.append({ ...workload, name, stream: 'stdout' }, 'x')
  expect((await logs.query({ ...workload, name: '..' })).total).toBe(0)
  logs.append({ ...workload, stream: 'stdout', revision: 'a\tb\nc' }, 'x')
  expect((await logs.query(workload)).lines).toMatchObject([{ revision: '', message: 'x' }])
  expect(readdirSync(join(dir, 'logs'))).toEqual(['main'])
  await logs.removeWorkspace('main')
  expect((await logs.query(workload)).total).toBe(0)
  expect(readdirSync(join(dir, 'logs'))).toEqual([])
})

test('how grave a line is, it says itself', () => {
  const said: [string, ReturnType<typeof severityIn>][] = [
    ['INFO:     Uvicorn running', 'INFO'],
    ['[error] no such file', 'ERROR'],
    ['2030-01-01T12:00:00.123Z WARN  slow', 'WARNING'],
    ['2030-01-01 12:00:00,123 - ERROR - broken', 'ERROR'],
    ['{"time":"x","level":"debug","msg":"y"}', 'DEBUG'],
    ['ts=1 level=fatal msg=x', 'FATAL'],
    ['npm warn deprecated x', 'WARNING'],
    ['Error: no such file', 'ERROR'],
    ['info desk opened', null],
    ['hello', null],
    ['', null],
  ]
  expect(said.map(([line]) => [line, severityIn(line)])).toEqual(said)
})
