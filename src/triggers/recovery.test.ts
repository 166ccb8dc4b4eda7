import { afterAll, expect, setDefaultTimeout, test } from 'bun:test'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { silentLogger } from '../lib/log.ts'
import { openSqliteStore } from '../stores/sqlite/index.ts'

setDefaultTimeout(300_000)
const directory = mkdtempSync(join(tmpdir(), 'hutch-triggers-'))
afterAll(() => rmSync(directory, { recursive: true, force: true }))
const hourMs = 3_600_000
const first = Date.UTC(2030, 0, 1, 0, 10)
/** At which of its changes of the store each life ends. */
const deaths = [1, 2, 3, 4, 5, 6, 7, 8]

/** From a moment on for some hours; answers whether it was killed. */
async function live(startsAt: number, hours: number, killedAt: number): Promise<boolean> {
  const argv = [process.execPath, join(import.meta.dir, 'test-life.ts'), directory, startsAt, hours, killedAt]
  const child = Bun.spawn(argv.map(String), { stdout: 'inherit', stderr: 'inherit' })
  await child.exited
  if (child.signalCode === null && child.exitCode !== 0) throw new Error('it failed by itself')
  return child.signalCode === 'SIGKILL'
}

test('however often the platform is killed, each hour comes at most once, and the last missed one comes', async () => {
  let startsAt = first + hourMs
  const killed: boolean[] = []
  for (const killedAt of deaths) {
    killed.push(await live(startsAt, 3, killedAt))
    // It stays down for a while, so that moments are missed.
    startsAt += 5 * hourMs
  }
  expect(killed).toEqual(deaths.map(() => true))
  expect(await live(startsAt, 3, 0)).toBe(false)

  await using store = await openSqliteStore({
    path: join(directory, 'hutch.db'),
    clock: { now: () => startsAt, monotonic: () => 0, sleep: () => Promise.resolve() },
    log: silentLogger,
  })
  const data = store.queue.list({ workspace: 'main', limit: 1000 })
  const ticks = data.map(({ labels }) => labels.tick ?? '').sort()
  expect(new Set(ticks).size).toBe(ticks.length)
  expect(new Set(data.map(({ state }) => state))).toEqual(new Set(['succeeded']))
  // The last life began with the moment that it had missed, and saw three more.
  const last = Array.from({ length: 4 }, (_, hour) =>
    new Date(startsAt + hour * hourMs - 10 * 60_000).toISOString(),
  )
  expect(ticks.slice(-4)).toEqual(last)
})
