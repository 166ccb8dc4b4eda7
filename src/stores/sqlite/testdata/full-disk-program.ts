/** Fills the small file system it is given and prints, as JSON, how the store took it. */
import { appendFileSync, existsSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { PlatformError } from '../../../errors.ts'
import { systemClock } from '../../../lib/clock.ts'
import { silentLogger } from '../../../lib/log.ts'
import { openSqliteStore } from '../index.ts'

const directory = process.argv[2] ?? ''
const path = join(directory, 'hutch.db')
const ballast = join(directory, 'ballast')
const reserve = join(directory, 'reserve')
let roomMade = 0
const makeRoom = () => {
  if (!existsSync(reserve)) return false
  rmSync(reserve)
  roomMade++
  return true
}
const open = () => openSqliteStore({ path, clock: systemClock, log: silentLogger, makeRoom })
const key = (n: number) => ({ kind: 'sandbox', workspace: 'main', name: `n${n}` })

writeFileSync(ballast, new Uint8Array(1024 * 1024))
writeFileSync(reserve, new Uint8Array(3 * 1024 * 1024))
const store = await open()
let written = 0
let refusal = ''
while (!refusal && written < 10_000) {
  try {
    await store.create({ ...key(written), body: 'x'.repeat(8192), indexes: { n: String(written) } })
    written++
  } catch (error) {
    refusal = PlatformError.is(error) ? error.code : String(error)
  }
}
// One may still fit where the last did not: a batch that cannot fit shows what is left behind.
const steps = Array.from(
  { length: 200 },
  (_, n) => ({ op: 'create', input: { ...key(50_000 + n), body: 'x'.repeat(8192) } }) as const,
)
const batchRefusal = await store.batch(steps).then(
  () => '',
  (error) => (PlatformError.is(error) ? error.code : String(error)),
)
const readable = (await store.get(key(written - 1))) !== null && (await store.get(key(written))) === null
const { total: totalWhenFull } = await store.page({ kind: 'sandbox', workspace: 'main', limit: 1 })

// Not even what is left in the last page: then what frees disk is still written down, in what was kept for it.
const rest = join(directory, 'rest')
try {
  for (;;) appendFileSync(rest, new Uint8Array(4096))
} catch {}
const roomBefore = roomMade
const removals = await Promise.allSettled(
  Array.from({ length: written }, (_, n) =>
    store.update(key(n), 1, { body: 'y'.repeat(100) }).then(() => store.remove(key(n))),
  ),
)
const removed = removals.filter(({ status }) => status === 'fulfilled').length

rmSync(ballast)
rmSync(rest)
await store.create({ kind: 'after', workspace: 'main', name: 'room', body: {} })
await store[Symbol.asyncDispose]()

await using again = await open()
const { total } = await again.page({ kind: 'sandbox', workspace: 'main', limit: 1 })
const after = (await again.get({ kind: 'after', workspace: 'main', name: 'room' })) !== null
const results = { written, refusal, batchRefusal, readable, totalWhenFull, total, after }
console.log(JSON.stringify({ ...results, roomBefore, roomMade, removed }))
