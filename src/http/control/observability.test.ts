import { afterAll, beforeAll, expect, test } from 'bun:test'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { silentLogger } from '../../lib/log.ts'
import { FakeClock } from '../../lib/test-clock.ts'
import type { Sandboxes } from '../../sandboxes/index.ts'
import { type LogLine, Logs, logLine } from '../../telemetry/index.ts'
import { TestPlatform } from '../testing/test-platform.ts'
import { observabilityRoutes } from './observability.ts'

const dir = mkdtempSync(join(tmpdir(), 'hutch-observability-'))
const clock = new FakeClock()
let logs: Logs
let platform: TestPlatform
const written = { lines: [] as LogLine[], wake: () => {} }
/** Of the processes of every sandbox. */
const output = {
  lines: async () => [...written.lines],
  async *follow(_: string, __: string, ___: object, signal: AbortSignal) {
    for (let at = 0; !signal.aborted; ) {
      const fresh = written.lines.slice(at)
      at = written.lines.length
      if (fresh.length > 0) yield fresh
      else
        await new Promise<void>((resolve) => {
          written.wake = resolve
          signal.addEventListener('abort', () => resolve(), { once: true })
        })
    }
  },
} as unknown as Sandboxes['output']
beforeAll(async () => {
  logs = new Logs({ dir, clock, log: silentLogger })
  platform = await TestPlatform.open({ routes: observabilityRoutes({ logs, sandboxes: { output } }) })
})
afterAll(async () => {
  await logs.close()
  await platform[Symbol.asyncDispose]()
  rmSync(dir, { recursive: true, force: true })
})

interface Answer {
  [name: string]: { logs: { timestamp: string; message: string; severity: number }[]; totalCount: number }
}

const path = '/v0/observability/logs'
const second = (ms: number) => new Date(ms).toISOString().slice(0, 19)
const ask = async (query: Record<string, string>) => {
  const response = await platform.request(`${path}?${new URLSearchParams(query)}`)
  return { status: response.status, body: (await response.json()) as Answer }
}
/** As the cloud's command line asks. */
const fromClient = (name: string, more: Record<string, string> = {}) => ({
  start: second(clock.now() - 3_600_000),
  end: second(clock.now()),
  resourceType: 'agents',
  workloadIds: name,
  type: 'all',
  traceId: '',
  limit: '1000',
  offset: '0',
  severity: 'FATAL,ERROR,WARNING,INFO,DEBUG,TRACE,UNKNOWN',
  search: '',
  taskId: '',
  executionId: '',
  interval: '60',
  workspace: 'main',
  ...more,
})

test('a workload that said nothing has an entry all the same', async () => {
  expect((await ask(fromClient('silent'))).body).toEqual({ silent: { logs: [], totalCount: 0 } })
})

test('a client gets what was said up to the second it asks in', async () => {
  clock.advance(400)
  logs.append({ workspace: 'main', kind: 'agents', name: 'talker', stream: 'stdout' }, 'hello')
  logs.append({ workspace: 'main', kind: 'agents', name: 'talker', stream: 'stderr' }, 'ouch')
  const { body } = await ask(fromClient('talker'))
  expect(body).toEqual({
    talker: {
      logs: [
        {
          timestamp: '2030-01-01T12:00:00.400001Z',
          message: 'ouch',
          severity: 17,
          trace_id: '',
          stream: 'stderr',
        },
        {
          timestamp: '2030-01-01T12:00:00.400000Z',
          message: 'hello',
          severity: 9,
          trace_id: '',
          stream: 'stdout',
        },
      ],
      totalCount: 2,
    },
  } as unknown as Answer)
  expect((await ask(fromClient('talker', { severity: 'ERROR' }))).body.talker?.totalCount).toBe(1)
  expect((await ask(fromClient('talker', { search: 'HELL' }))).body.talker?.totalCount).toBe(1)
  expect((await ask(fromClient('talker', { start: second(clock.now() + 2000) }))).body.talker?.logs).toEqual(
    [],
  )
})

test('who watches a build sees it from its first line, and no line of the build before', async () => {
  const add = (revision: string, line: string) => {
    logs.append({ workspace: 'main', kind: 'agents', name: 'built', stream: 'build', revision }, line)
    clock.advance(1000)
  }
  add('rev-1', 'of the first')
  add('rev-2', 'Installing')
  add('rev-2', 'Building')
  clock.advance(4000)
  const watch = {
    start: second(clock.now()),
    end: second(clock.now() + 3_600_000),
    severity: 'all,UNKNOWN,TRACE,DEBUG,INFO,WARNING,ERROR,FATAL',
  }
  add('rev-2', 'Done')
  const { body } = await ask(fromClient('built', watch))
  expect(body.built?.logs.map(({ message }) => message)).toEqual(['Done', 'Building', 'Installing'])
  expect(body.built?.totalCount).toBe(3)
})

test('what cannot be meant is told by its field', async () => {
  const mistakes: Record<string, string>[] = [
    { resourceType: 'policies' },
    { resourceType: 'constructor' },
    { start: 'yesterday' },
    { severity: 'LOUD' },
    { limit: '5000' },
    { workloadIds: Array.from({ length: 51 }, (_, at) => `n${at}`).join(',') },
  ]
  for (const wrong of mistakes) {
    const { status, body } = await ask(fromClient('talker', wrong))
    expect([status, (body as unknown as { message: string }).message]).toEqual([
      400,
      expect.stringContaining(Object.keys(wrong)[0]!),
    ])
  }
})

test('logs are followed as NDJSON or as events, and only by members of the workspace', async () => {
  const follow = (query: string, accept: string) =>
    platform.request(`${path}?resourceType=functions&workloadIds=tool&follow=true&${query}`, {
      headers: { accept },
    })
  logs.append({ workspace: 'main', kind: 'functions', name: 'tool', stream: 'stdout', revision: 'r' }, 'one')
  const lines = (await follow('stream=stdout', 'application/x-ndjson')).body!.getReader()
  const events = (await follow('last=0', 'text/event-stream')).body!.getReader()
  const text = async (reader: typeof lines, wanted: string) => {
    let all = ''
    while (!all.includes(wanted)) all += new TextDecoder().decode((await reader.read()).value)
    return all
  }
  const record = JSON.parse(await text(lines, '\n')) as object
  expect(record).toMatchObject({
    type: 'line',
    message: 'one',
    severity: 9,
    level: 'INFO',
    stream: 'stdout',
    revision: 'r',
  })
  // Nothing is asked for until it is read.
  const later = text(events, '"two"')
  logs.append({ workspace: 'main', kind: 'functions', name: 'tool', stream: 'platform' }, 'not asked for')
  logs.append({ workspace: 'main', kind: 'functions', name: 'tool', stream: 'stdout' }, 'two')
  expect(await text(lines, '"two"')).not.toContain('not asked for')
  expect(await later).toMatch(/data: \{"type":"line".*"two".*\}\n\n/)
  await lines.cancel()
  await events.cancel()
  expect((await platform.request(`${path}?resourceType=agents&workloadIds=a`, { key: null })).status).toBe(
    401,
  )
})

test('of a sandbox what its processes wrote is there too, in the order of time', async () => {
  const box = { workspace: 'main', kind: 'sandboxes', name: 'box' } as const
  const atUs = clock.now() * 1000
  logs.append({ ...box, stream: 'build' }, 'Built')
  written.lines.push(logLine({ atUs: atUs + 500, stream: 'stdout', message: 'hello' }))
  written.lines.push(logLine({ atUs: atUs + 700, stream: 'stderr', message: 'ouch' }))
  clock.advance(1000)
  logs.append({ ...box, stream: 'build' }, 'Built anew')
  const asked = { ...fromClient('box'), resourceType: 'sandboxes' }
  const messagesOf = async (more: Record<string, string> = {}) =>
    (await ask({ ...asked, ...more })).body.box?.logs.map(({ message }) => message)
  expect(await messagesOf()).toEqual(['Built anew', 'ouch', 'hello', 'Built'])
  expect(await messagesOf({ limit: '2', offset: '1' })).toEqual(['ouch', 'hello'])
  expect((await ask(asked)).body.box?.totalCount).toBe(4)
  const response = await platform.request(`${path}?resourceType=sandboxes&workloadIds=box&follow=true&last=1`)
  const reader = response.body!.getReader()
  let text = ''
  const until = async (wanted: string) => {
    while (!text.includes(wanted)) text += new TextDecoder().decode((await reader.read()).value)
  }
  await until('Built anew')
  await until('ouch')
  written.lines.push(logLine({ atUs: atUs + 900, stream: 'stdout', message: 'later' }))
  written.wake()
  await until('later')
  expect(text).not.toContain('hello')
  await reader.cancel()
})
