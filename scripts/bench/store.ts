/**
 * Inserts and reads through the SQLite store, beside bare bun:sqlite with the same table and durability in the same
 * run. Prints medians. Usage: bun scripts/bench/store.ts
 */
import { Database } from 'bun:sqlite'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { systemClock } from '../../src/lib/clock.ts'
import { silentLogger } from '../../src/lib/log.ts'
import type { Store } from '../../src/spec/store.ts'
import { openSqliteStore } from '../../src/stores/sqlite/index.ts'

const rounds = 30
const insertsPerRound = 64
const readsPerRound = 500
const body = { spec: { image: 'blaxel/base-image', memory: 4096 }, note: 'x'.repeat(150) }

const root = mkdtempSync(join(tmpdir(), 'hutch-bench-'))
let files = 0
let names = 0

function median(values: number[]): number {
  return values.sort((left, right) => left - right)[Math.floor(values.length / 2)] ?? Number.NaN
}

async function measure(work: () => unknown): Promise<number> {
  const started = performance.now()
  await work()
  return performance.now() - started
}

async function opening(): Promise<{ fresh: number; again: number; firstWrite: number }> {
  const samples = { fresh: [] as number[], again: [] as number[], firstWrite: [] as number[] }
  for (let round = 0; round < rounds; round++) {
    const path = join(root, `${files++}.db`)
    const open = () => openSqliteStore({ path, clock: systemClock, log: silentLogger })
    let store: Store | undefined
    samples.fresh.push(
      await measure(async () => {
        store = await open()
      }),
    )
    await store?.[Symbol.asyncDispose]()
    const started = performance.now()
    await using reopened = await open()
    samples.again.push(performance.now() - started)
    await reopened.create({ kind: 'sandbox', workspace: 'main', name: 'a', body })
    samples.firstWrite.push(performance.now() - started)
  }
  return {
    fresh: median(samples.fresh),
    again: median(samples.again),
    firstWrite: median(samples.firstWrite),
  }
}

function bare() {
  const database = new Database(join(root, `${files++}.db`), { create: true })
  database.exec('PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL')
  database.exec(
    'CREATE TABLE resources (id TEXT PRIMARY KEY, kind TEXT, workspace TEXT, name TEXT, body TEXT); CREATE UNIQUE INDEX by_key ON resources (kind, workspace, name)',
  )
  const insert = database.prepare('INSERT INTO resources VALUES (?, ?, ?, ?, ?)')
  const read = database.prepare('SELECT * FROM resources WHERE kind = ? AND workspace = ? AND name = ?')
  return {
    insert: (name: string) => insert.run(`id-${name}`, 'sandbox', 'main', name, JSON.stringify(body)),
    insertAll: database.transaction((all: string[]) => {
      for (const name of all) insert.run(`id-${name}`, 'sandbox', 'main', name, JSON.stringify(body))
    }),
    read: (name: string) => read.get('sandbox', 'main', name),
  }
}

const newNames = () => Array.from({ length: insertsPerRound }, () => `n${names++}`)

const store = await openSqliteStore({
  path: join(root, `${files++}.db`),
  clock: systemClock,
  log: silentLogger,
})
const plain = bare()
const add = (name: string) =>
  store.create({
    kind: 'sandbox',
    workspace: 'main',
    name,
    body,
    indexes: { status: 'DEPLOYED', externalId: name },
  })

const samples: Record<string, number[]> = {}
const sample = async (name: string, amount: number, work: () => unknown) => {
  const list = samples[name] ?? []
  samples[name] = list
  list.push((amount / (await measure(work))) * 1000)
}
// Taken in turns, so that whatever else the machine does meets all of them.
for (let round = 0; round < rounds; round++) {
  const one = newNames()
  await sample('store, one at a time', insertsPerRound, async () => {
    for (const name of one) await add(name)
  })
  const two = newNames()
  await sample('bare, one at a time', insertsPerRound, () => {
    for (const name of two) plain.insert(name)
  })
  const three = newNames()
  await sample('store, 64 in parallel', insertsPerRound, () => Promise.all(three.map(add)))
  const four = newNames()
  await sample('bare, one transaction of 64', insertsPerRound, () => plain.insertAll(four))
  const key = { kind: 'sandbox', workspace: 'main', name: one[0] ?? '' }
  await sample('store, get', readsPerRound, async () => {
    for (let n = 0; n < readsPerRound; n++) await store.get(key)
  })
  await sample('bare, get', readsPerRound, () => {
    for (let n = 0; n < readsPerRound; n++) plain.read(two[0] ?? '')
  })
  await sample('store, page of 50', 20, async () => {
    for (let n = 0; n < 20; n++) await store.page({ kind: 'sandbox', workspace: 'main' })
  })
  await sample('store, page of 50 by index', 20, async () => {
    for (let n = 0; n < 20; n++)
      await store.page({ kind: 'sandbox', workspace: 'main', where: { status: ['DEPLOYED', 'FAILED'] } })
  })
}
for (const [name, values] of Object.entries(samples))
  console.log(`${name.padEnd(30)} ${Math.round(median(values))}/s`)
await store[Symbol.asyncDispose]()

const { fresh, again, firstWrite } = await opening()
console.log(`open a new database            ${fresh.toFixed(1)} ms`)
console.log(
  `open it again                  ${again.toFixed(1)} ms, to the first write ${firstWrite.toFixed(1)} ms`,
)
rmSync(root, { recursive: true })
