import { expect, test } from 'bun:test'
import { PlatformError } from '../errors.ts'
import { silentLogger } from '../lib/log.ts'
import { FakeClock } from '../lib/test-clock.ts'
import type { Queue } from '../spec/queue.ts'
import { Workers } from './workers.ts'

test('while nothing can be claimed it is tried now and then, however many wake', async () => {
  const clock = new FakeClock()
  let tried = 0
  const queue = {
    waiting: () => 100,
    claim: async () => {
      tried++
      throw new PlatformError('insufficient_storage', 'the disk is full')
    },
  } as Partial<Queue> as Queue
  const workers = new Workers({
    ...{ source: 'agent', runningMax: 50, queue, clock, log: silentLogger },
    attempt: async () => async () => {},
  })
  for (let count = 0; count < 20; count++) workers.wake(1)
  await clock.turn(0)
  const together = tried
  for (let second = 1; second <= 3; second++) {
    workers.wake(1)
    await clock.turn(1000)
    expect(tried).toBe(together + second)
  }
  await workers.close(0)
})

test('of many that are claimed at once a few begin, and one that was called off meanwhile does not', async () => {
  const claimed = Array.from({ length: 20 }, (_, index) => ({
    id: `w${index}`,
    token: 1,
    state: 'running',
    input: null,
  }))
  const given = [claimed]
  const calledOff = new Set(['w12', 'w19'])
  const queue = {
    waiting: () => (given.length > 0 ? 20 : 0),
    claim: async () => given.shift() ?? [],
    get: (id: string) => (calledOff.has(id) ? null : claimed.find((work) => work.id === id)),
  } as unknown as Queue
  const begun: string[] = []
  const workers = new Workers({
    ...{ source: 'agent', runningMax: 50, queue, clock: new FakeClock(), log: silentLogger },
    async attempt({ id }) {
      begun.push(id)
      return async () => {}
    },
  })
  workers.wake()
  await Promise.resolve()
  await Promise.resolve()
  expect(begun.length).toBeLessThanOrEqual(8)
  while (workers.running > 0 || begun.length === 0) await new Promise((resume) => setImmediate(resume))
  expect(begun).toEqual(claimed.map(({ id }) => id).filter((id) => !calledOff.has(id)))
  await workers.close(0)
})
