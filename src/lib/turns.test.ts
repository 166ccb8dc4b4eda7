import { expect, test } from 'bun:test'
import { Turns } from './turns.ts'

const round = () => new Promise((resolve) => setImmediate(resolve))

test('a few begin at once, the others in later rounds, in their order', async () => {
  const turns = new Turns(2)
  const begun: number[] = []
  for (let index = 0; index < 5; index++) {
    const turn = turns.take()
    if (turn) void turn.then(() => begun.push(index))
    else begun.push(index)
  }
  expect(begun).toEqual([0, 1])
  await round()
  expect(begun).toEqual([0, 1, 2, 3])
  // Behind those who wait.
  const late = turns.take()
  expect(late).not.toBeNull()
  await round()
  expect(begun).toEqual([0, 1, 2, 3, 4])
  await late
  await round()
  await round()
  expect(turns.take()).toBeNull()
})
