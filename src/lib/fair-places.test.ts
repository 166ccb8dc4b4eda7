import { describe, expect, test } from 'bun:test'
import { FairPlaces } from './fair-places.ts'
import { FakeClock } from './test-clock.ts'

const settled = () => new Promise((resolve) => setImmediate(resolve))

describe('places that are shared fairly', () => {
  const open = (options: { placesMax?: number; waitingMax?: number } = {}) => {
    const clock = new FakeClock()
    const places = new FairPlaces({ placesMax: 100, waitingMax: 1000, waitMsMax: 1000, clock, ...options })
    const held = new Map<string, Disposable[]>()
    const refused: string[] = []
    const want = (holder: string, count: number) => {
      for (let i = 0; i < count; i++) {
        void places.take(holder).then((place) => {
          if (place) held.set(holder, [...(held.get(holder) ?? []), place])
          else refused.push(holder)
        })
      }
    }
    const count = (holder: string) => held.get(holder)?.length ?? 0
    return { clock, held, refused, want, count }
  }

  test('one that wants everything leaves most to others, and so do many', async () => {
    const { want, count } = open({ placesMax: 1700 })
    want('greedy', 500)
    await settled()
    expect(count('greedy')).toBe(100)
    const others = Array.from({ length: 50 }, (_, i) => `other ${i}`)
    for (const other of others) want(other, 500)
    want('late', 1)
    await settled()
    expect(count('late')).toBe(1)
    for (const other of others) expect(count(other)).toBeGreaterThan(0)
  })

  test('those that wait come in by turns', async () => {
    const { want, count, held } = open({ placesMax: 2 })
    want('first', 3)
    want('second', 3)
    await settled()
    expect([count('first'), count('second')]).toEqual([1, 1])
    held.get('first')?.[0]?.[Symbol.dispose]()
    held.get('first')?.[0]?.[Symbol.dispose]()
    await settled()
    expect([count('first'), count('second')]).toEqual([2, 1])
    held.get('second')?.[0]?.[Symbol.dispose]()
    await settled()
    expect([count('first'), count('second')]).toEqual([2, 2])
  })

  test('who waited too long, or before too many others of the same holder, gives up', async () => {
    const { want, count, held, refused, clock } = open({ placesMax: 1, waitingMax: 2 })
    want('greedy', 4)
    await settled()
    expect(refused).toEqual(['greedy'])
    clock.advance(2000)
    want('late', 1)
    held.get('greedy')?.[0]?.[Symbol.dispose]()
    await settled()
    expect(refused.length).toBe(3)
    expect(count('late')).toBe(1)
  })
})
