import { afterEach, expect, test } from 'bun:test'
import { existsSync, mkdtempSync, rmSync, statfsSync, statSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { DiskReserve } from './disk-reserve.ts'
import { libc } from './libc.ts'
import { silentLogger } from './log.ts'
import { FakeClock } from './test-clock.ts'

const directories: string[] = []
afterEach(() => {
  for (const directory of directories.splice(0)) rmSync(directory, { recursive: true, force: true })
})

function reserveOf(freeBytesMin: number) {
  const directory = mkdtempSync(join(tmpdir(), 'hutch-reserve-'))
  directories.push(directory)
  const path = join(directory, 'reserve')
  const clock = new FakeClock()
  const bytes = 1024 * 1024
  return {
    ...{ path, clock, bytes },
    reserve: new DiskReserve({ path, bytes, freeBytesMin, clock, log: silentLogger }),
  }
}

const able = libc() !== null
test.skipIf(!able)(
  `disk is held back, given up once, and taken again when there is room${able ? '' : ' (skipped: no C library that Bun can call)'}`,
  async () => {
    const { reserve, path, clock, bytes } = reserveOf(0)
    reserve.keep()
    expect(statSync(path).blocks * 512).toBeGreaterThanOrEqual(bytes)
    expect(reserve.giveUp()).toBe(true)
    expect(existsSync(path)).toBe(false)
    expect(reserve.giveUp()).toBe(false)
    await clock.turn(30_000)
    expect(statSync(path).size).toBe(bytes)
    expect(clock.sleepers).toBe(0)
    reserve.keep()
    expect(reserve.giveUp()).toBe(true)
    reserve[Symbol.dispose]()
    await clock.turn(30_000)
    expect(existsSync(path)).toBe(false)
  },
)

test('where little is free nothing is held back', async () => {
  const { bavail, bsize } = statfsSync(tmpdir())
  const { reserve, path, clock } = reserveOf(bavail * bsize * 2)
  reserve.keep()
  await clock.turn(30_000)
  expect(existsSync(path)).toBe(false)
  expect(clock.sleepers).toBe(1)
  reserve[Symbol.dispose]()
})
