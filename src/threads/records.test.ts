import { afterEach, beforeEach, expect, test } from 'bun:test'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { silentLogger } from '../lib/log.ts'
import { FakeClock } from '../lib/test-clock.ts'
import type { Store } from '../spec/store.ts'
import { openSqliteStore } from '../stores/sqlite/index.ts'
import { workspaceKey } from '../workspaces/key.ts'
import { apartKind } from './apart.ts'
import { type ThreadBody, threadKey } from './record.ts'
import { ThreadRecords } from './records.ts'

let directory: string
let store: Store
let records: ThreadRecords

beforeEach(async () => {
  directory = mkdtempSync(join(tmpdir(), 'hutch-threads-'))
  const path = join(directory, 'hutch.db')
  store = await openSqliteStore({ path, clock: new FakeClock(), log: silentLogger, durability: 'process' })
  await store.create({ ...workspaceKey('main'), body: {} })
  records = new ThreadRecords(store)
})
afterEach(async () => {
  await store[Symbol.asyncDispose]()
  rmSync(directory, { recursive: true })
})

const body = (text: string): ThreadBody => ({
  ...{ agentId: 'helper', turn: 1, executionId: 'e1', turnAt: 1, version: null, source: 'api', title: null },
  input: { text, files: [], user: { id: 'u1', note: text } },
  options: { worker_id: 'w1', additional_context: text },
  ...{ status: 'pending', internalStatus: null, result: null, isManuallyStopped: false, startedAt: null },
  ...{ pausedAt: null, finishedAt: null, leases: 0, reported: {}, entries: 0, chars: 0, keys: [] },
})
const large = 'x'.repeat(100_000)
const parts = async () =>
  (await store.page({ kind: apartKind, workspace: 'main' })).data.map(({ name }) => name)
const stored = async () => (await store.get<ThreadBody>(threadKey('main', 't')))?.body

test('what is large in a record lies beside it, is written when it changes, and goes with it', async () => {
  const made = await records.create('main', 't', body(large), [])
  expect(made.body).toMatchObject(body(large))
  expect(await records.get('main', 't')).toEqual(made)
  expect(await parts()).toEqual(['t.1'])
  expect(JSON.stringify(await stored()).length).toBeLessThan(10_000)
  expect(await stored()).toMatchObject({ input: { user: { id: 'u1' } }, options: { worker_id: 'w1' } })

  const executing = await records.change('main', 't', (now) => ({ body: { ...now, status: 'executing' } }))
  expect(executing.body).toMatchObject({ ...body(large), status: 'executing' })
  expect(await records.get('main', 't')).toEqual(executing)
  expect(await parts()).toEqual(['t.1'])
  const { items } = await records.list('main', {}, { offset: 0, limit: 10 })
  expect(items.map((item) => item.body)).toEqual([(await stored()) as ThreadBody])

  const done = await records.change('main', 't', (now) => ({ body: { ...now, result: large } }))
  expect(done.body.result).toBe(large)
  expect(await parts()).toEqual(['t.3'])
  // What is small again lies in the record.
  const next = await records.change('main', 't', () => ({ body: body('small') }))
  expect([next.body, await stored()]).toEqual([body('small'), body('small')])
  expect(await parts()).toEqual([])

  await records.change('main', 't', () => ({ body: body(large) }))
  expect(await parts()).toEqual(['t.5'])
  expect(await records.remove('main', 't')).toBe(true)
  expect(await parts()).toEqual([])
  expect(await records.remove('main', 't')).toBe(false)
  expect((await records.create('main', 't', body(large), [])).body.input.text).toBe(large)
})

test('of changes at once none is lost, nor what lies beside them', async () => {
  await records.create('main', 't', body(large), [])
  await Promise.all(
    Array.from({ length: 8 }, (_, at) =>
      records.change('main', 't', (now) => ({
        body: { ...now, leases: now.leases + 1, reported: { ...now.reported, [`r${at}`]: large } },
      })),
    ),
  )
  const thread = await records.get('main', 't')
  expect(thread?.body.leases).toBe(8)
  expect(Object.keys(thread?.body.reported ?? {})).toHaveLength(8)
  expect(await parts()).toHaveLength(1)
})

test('files, and whose words they are, count in how much a thread has', async () => {
  const entry = {
    role: 'user',
    turn: 1,
    at: 1,
    text: 'look',
    files: [large, large],
    user: { id: large },
  } as const
  const { body: made } = await records.create('main', 't', body('look'), [
    { ...entry, files: [...entry.files] },
  ])
  expect(made.chars).toBeGreaterThan(300_000)
  expect(made.entries).toBe(1)
})
