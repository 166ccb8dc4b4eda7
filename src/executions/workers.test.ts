import { expect, test } from 'bun:test'
import { PlatformError } from '../errors.ts'
import { silentLogger } from '../lib/log.ts'
import { FakeClock } from '../lib/test-clock.ts'
import { type InputRoom, largeInputBytes, type Queue } from '../spec/queue.ts'
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

test('what large inputs run is known to the next claim, and over once it is over', async () => {
  const input = (bytes: number) => new Uint8Array(bytes)
  const work = (id: string, target: string, bytes: number) => ({
    ...{ id, token: 1, state: 'running', workspace: 'main', target, input: input(bytes) },
  })
  const given = [
    [
      work('a', 'agent/slow', largeInputBytes),
      work('b', 'agent/slow', largeInputBytes),
      work('c', 'agent/x', 9),
    ],
  ]
  const rooms: InputRoom[] = []
  const queue = {
    waiting: () => 1,
    claim: async (_source: string, _limit: number, room: InputRoom) => {
      rooms.push(room)
      return given.shift() ?? []
    },
  } as unknown as Queue
  const ends = new Map<string, () => void>()
  const workers = new Workers({
    ...{ source: 'agent', runningMax: 50, queue, clock: new FakeClock(), log: silentLogger },
    async attempt({ id }) {
      await new Promise<void>((resolve) => ends.set(id, resolve))
      return async () => {}
    },
  })
  workers.wake()
  while (ends.size < 3) await new Promise((resume) => setImmediate(resume))
  workers.wake()
  const [before, meanwhile] = [rooms[0], rooms.at(-1)]
  expect(before?.held).toEqual([])
  expect(meanwhile?.held).toEqual([
    { workspace: 'main', target: 'agent/slow', largeBytes: 2 * largeInputBytes },
  ])
  expect(meanwhile?.smallBytes).toBe((before?.smallBytes ?? 0) - 9)
  for (const end of ends.values()) end()
  while (workers.running > 0) await new Promise((resume) => setImmediate(resume))
  workers.wake()
  expect(rooms.at(-1)).toEqual(before as InputRoom)
  await workers.close(0)
})
