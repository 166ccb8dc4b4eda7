import { describe, expect, test } from 'bun:test'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { silentLogger } from '../lib/log.ts'
import { FakeClock } from '../lib/test-clock.ts'
import { openSqliteStore } from '../stores/sqlite/index.ts'
import { Readiness, readinessAgeMsMax, readinessTimeoutMs } from './readiness.ts'

const log = silentLogger
const fine = { batch: async () => [], list: async () => [] }

describe('the platform', () => {
  test('is ready while its store takes changes, and leaves nothing in it', async () => {
    const clock = new FakeClock()
    const directory = mkdtempSync(join(tmpdir(), 'hutch-readiness-'))
    try {
      const store = await openSqliteStore({ path: join(directory, 'hutch.db'), clock, log })
      const readiness = new Readiness({ store, runtime: fine, clock, log })
      expect(await readiness.reason()).toBeNull()
      expect((await store.page({ kind: 'readiness' })).total).toBe(0)
      await store[Symbol.asyncDispose]()
      clock.advance(readinessAgeMsMax)
      expect(await readiness.reason()).toBe('the store cannot write')
    } finally {
      rmSync(directory, { recursive: true, force: true })
    }
  })

  test('is not ready while its runtime fails', async () => {
    const runtime = { list: () => Promise.reject(new Error('no such directory')) }
    const readiness = new Readiness({ store: fine, runtime, clock: new FakeClock(), log })
    expect(await readiness.reason()).toBe('the runtime does not answer')
  })

  test('is not ready when nothing answers in time', async () => {
    const clock = new FakeClock()
    const store = { batch: () => new Promise<never>(() => {}) }
    const reason = new Readiness({ store, runtime: fine, clock, log }).reason()
    clock.advance(readinessTimeoutMs)
    expect(await reason).toBe('the store cannot write')
  })

  test('is looked at once a second, however often it is asked', async () => {
    const clock = new FakeClock()
    let looks = 0
    const store = {
      batch: async () => {
        looks++
        return []
      },
    }
    const readiness = new Readiness({ store, runtime: fine, clock, log })
    await Promise.all([readiness.reason(), readiness.reason()])
    clock.advance(readinessAgeMsMax - 1)
    await readiness.reason()
    expect(looks).toBe(1)
    clock.advance(1)
    await readiness.reason()
    expect(looks).toBe(2)
  })
})
