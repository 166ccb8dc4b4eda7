import { expect, test } from 'bun:test'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { silentLogger } from '../lib/log.ts'
import { FakeClock } from '../lib/test-clock.ts'
import type { BatchStep } from '../spec/store.ts'
import { openSqliteStore } from '../stores/sqlite/index.ts'
import { RestRecords } from './rest.ts'

const owner = { workspace: 'main', kind: 'sandbox', name: 'one' }

async function setUp() {
  const cleanup = new AsyncDisposableStack()
  const dir = await mkdtemp(join(tmpdir(), 'hutch-rest-'))
  const clock = new FakeClock()
  const store = await openSqliteStore({
    path: join(dir, 'db'),
    clock,
    log: silentLogger,
    durability: 'process',
  })
  cleanup.defer(() => rm(dir, { recursive: true }))
  cleanup.use(store)
  const batches: BatchStep[][] = []
  const { batch } = store
  store.batch = (steps) => {
    batches.push(steps)
    return batch.call(store, steps)
  }
  const rests = new RestRecords(store, clock, silentLogger)
  /** As the next life of the platform finds it. */
  const found = async (id: string) => {
    await rests.settled()
    const next = new RestRecords(store, clock, silentLogger)
    await next.load()
    return next.lastUsedAt(id)
  }
  return { clock, rests, batches, found, [Symbol.asyncDispose]: () => cleanup.disposeAsync() }
}

test('instances that wake together are written together, soon and without anybody asking', async () => {
  await using set = await setUp()
  const { clock, rests, batches } = set
  const ids = Array.from({ length: 250 }, (_, at) => `i${at}`)
  for (const id of ids) rests.add(owner, id, 1)
  await rests.settled()
  batches.length = 0
  for (const id of ids) rests.woke(id)
  expect(ids.map((id) => rests.lastUsedAt(id))).toEqual(ids.map(() => null))
  expect(batches).toEqual([])
  await clock.turn(50)
  const steps = batches.flat()
  expect(steps.map(({ op }) => op)).toEqual(ids.map(() => 'remove'))
  expect(batches.length).toBeLessThan(5)
  // Later ones as well.
  rests.add(owner, 'i0', 2)
  rests.woke('i0')
  await clock.turn(50)
  expect(batches.at(-1)).toMatchObject([{ op: 'remove', key: { name: 'i0' } }])
})

test('one that falls asleep again at once rests, and one that ends does not', async () => {
  await using set = await setUp()
  const { rests, found } = set
  for (const id of ['again', 'ended', 'woken']) rests.add(owner, id, 1)
  for (const id of ['again', 'ended', 'woken']) rests.woke(id)
  rests.add(owner, 'again', 2)
  rests.remove('ended')
  expect(await found('again')).toBe(2)
  expect(await found('ended')).toBe(null)
  expect(await found('woken')).toBe(null)
})
