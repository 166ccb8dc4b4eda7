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
