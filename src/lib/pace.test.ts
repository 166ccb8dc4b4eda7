import { expect, test } from 'bun:test'
import { Pace } from './pace.ts'
import { FakeClock } from './test-clock.ts'

const never = new AbortController().signal

/** How many things of 36 bytes, which cost 100, pass until one has to wait for the clock. */
async function passed(pace: Pace, clock: FakeClock, max: number): Promise<number> {
  for (let count = 1; count <= max; count++) {
    const wait = pace.pass(36, never)
    if (wait === null) continue
    await Promise.race([wait, new Promise((resolve) => setTimeout(resolve, 20))])
    if (clock.sleepers > 0) return count
  }
  return max
}

test('a burst passes, then as much as is allowed a second', async () => {
  const clock = new FakeClock()
  const pace = new Pace({ perSecond: 100_000, burst: 200_000, clock })
  const first = await passed(pace, clock, 10_000)
  expect(first).toBeGreaterThanOrEqual(2_000)
  expect(first).toBeLessThan(2_200)
  let later = 0
  for (let second = 0; second < 5; second++) {
    await clock.turn(1_000)
    later += await passed(pace, clock, 10_000)
  }
  expect(later / 5).toBeGreaterThan(850)
  expect(later / 5).toBeLessThan(1_150)
  await clock.turn(60_000)
  expect(await passed(pace, clock, 10_000)).toBeLessThan(2_200)
})

test('others have their turn in the middle of a burst, and who waits can be called off', async () => {
  const clock = new FakeClock()
  const pace = new Pace({ perSecond: 1, burst: 1e9, clock })
  let turns = 0
  for (let count = 0; count < 1_000; count++) {
    const wait = pace.pass(1, never)
    if (wait !== null) turns++
    await wait
  }
  expect(turns).toBeGreaterThan(5)
  const slow = new Pace({ perSecond: 1, burst: 0, clock })
  const stop = new AbortController()
  let waiting: Promise<void> | null = null
  while (clock.sleepers === 0) waiting = slow.pass(1000, stop.signal)
  stop.abort(new Error('stop'))
  const error = await waiting?.catch((reason: unknown) => reason)
  expect(error).toMatchObject({ message: 'stop' })
})
