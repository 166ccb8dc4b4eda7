import { expect, test } from 'bun:test'
import { silentLogger } from '../lib/log.ts'
import { FakeClock } from '../lib/test-clock.ts'
import { Wakes } from './wakes.ts'

function setUp(placesMax: number, count: number) {
  const clock = new FakeClock()
  const wakes = new Wakes({ clock, log: silentLogger, placesMax })
  const entered: number[] = []
  const places: Disposable[] = []
  for (let at = 0; at < count; at++) {
    void wakes.enter().then((place) => {
      entered.push(at)
      places.push(place)
    })
  }
  return { clock, wakes, entered, places }
}

test('places go to those who wait in their order, as others give theirs back', async () => {
  const { clock, entered, places } = setUp(2, 5)
  await clock.turn(0)
  expect(entered).toEqual([0, 1])
  places[1]?.[Symbol.dispose]()
  places[1]?.[Symbol.dispose]()
  await clock.turn(0)
  expect(entered).toEqual([0, 1, 2])
})

test('nobody waits for one that takes its time', async () => {
  const { clock, entered, places } = setUp(2, 6)
  await clock.turn(4)
  expect(entered).toEqual([0, 1])
  await clock.turn(1)
  expect(entered).toEqual([0, 1, 2, 3])
  // What it had is another's now.
  places[0]?.[Symbol.dispose]()
  await clock.turn(4)
  expect(entered).toEqual([0, 1, 2, 3])
  await clock.turn(1)
  expect(entered).toEqual([0, 1, 2, 3, 4, 5])
})

test('nobody waits once the platform stops', async () => {
  const { clock, wakes, entered } = setUp(2, 6)
  await clock.turn(0)
  wakes[Symbol.dispose]()
  await clock.turn(0)
  expect(entered).toEqual([0, 1, 2, 3, 4, 5])
  await wakes.enter()
  await wakes.enter()
  await wakes.enter()
})
