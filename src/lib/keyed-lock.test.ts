import { expect, test } from 'bun:test'
import { KeyedLock } from './keyed-lock.ts'

test('work on one key runs one at a time and in order, whatever fails', async () => {
  const lock = new KeyedLock()
  const order: number[] = []
  let running = 0
  const results = await Promise.allSettled(
    Array.from({ length: 30 }, (_, n) =>
      lock.run('a', async () => {
        expect(++running).toBe(1)
        order.push(n)
        for (let turn = 0; turn < (n * 5) % 4; turn++) await Promise.resolve()
        running--
        if (n % 3 === 0) throw new Error(`${n} failed`)
        return n
      }),
    ),
  )
  expect(order).toEqual(Array.from({ length: 30 }, (_, n) => n))
  expect(results.map(({ status }) => status)).toEqual(
    order.map((n) => (n % 3 === 0 ? 'rejected' : 'fulfilled')),
  )
  expect(results[1]).toEqual({ status: 'fulfilled', value: 1 })
})

test('who gives up waiting hears of it at once, and those behind still wait for who is before', async () => {
  const lock = new KeyedLock()
  const held = Promise.withResolvers<void>()
  const order: string[] = []
  const first = lock.run('a', async () => {
    await held.promise
    order.push('first')
  })
  const stop = new AbortController()
  const second = lock.run('a', () => order.push('second'), stop.signal)
  const third = lock.run('a', () => order.push('third'))
  stop.abort(new Error('called off'))
  const told = await second.then(
    () => null,
    (error: Error) => error.message,
  )
  expect([told, order]).toEqual(['called off', []])
  held.resolve()
  await Promise.all([first, third])
  expect(order).toEqual(['first', 'third'])
  const late = await lock
    .run('a', () => order.push('late'), stop.signal)
    .then(
      () => null,
      (error: Error) => error.message,
    )
  expect([late, order.length, lock.size]).toEqual(['called off', 2, 0])
})

test('other keys do not wait', async () => {
  const lock = new KeyedLock()
  const { promise: held, resolve: release } = Promise.withResolvers<void>()
  const first = lock.run('a', () => held)
  expect(await lock.run('b', () => 'b')).toBe('b')
  expect([lock.isHeld('a'), lock.isHeld('b')]).toEqual([true, false])
  release()
  await first
})

test('keys are forgotten when their work is over, also when it throws at once', async () => {
  const lock = new KeyedLock()
  await Promise.allSettled(
    Array.from({ length: 1000 }, (_, n) =>
      lock.run(`k${n % 300}`, () => {
        if (n % 2) throw new Error('no')
      }),
    ),
  )
  expect(lock.size).toBe(0)
})
