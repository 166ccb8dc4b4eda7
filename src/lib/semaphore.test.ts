import { expect, test } from 'bun:test'
import { PlatformError } from '../errors.ts'
import { Semaphore } from './semaphore.ts'

const make = (concurrencyMax: number, waitingMax: number) =>
  new Semaphore({ concurrencyMax, waitingMax, what: 'sandboxes are being created' })

test('never more at once than allowed, in order of arrival, and all get through', async () => {
  const semaphore = make(3, 100)
  const order: number[] = []
  let running = 0
  let most = 0
  await Promise.all(
    Array.from({ length: 50 }, (_, n) =>
      semaphore.run(async () => {
        order.push(n)
        most = Math.max(most, ++running)
        for (let turn = 0; turn < (n * 7) % 5; turn++) await Promise.resolve()
        running--
      }),
    ),
  )
  expect(most).toBe(3)
  expect(order).toEqual(Array.from({ length: 50 }, (_, n) => n))
  expect([semaphore.held, semaphore.waiting]).toEqual([0, 0])
})

test('one that would wait too long in line is refused, saying when to try again', async () => {
  const semaphore = make(1, 1)
  const first = await semaphore.acquire()
  const second = semaphore.acquire()
  const refused = await semaphore.acquire().catch((error) => error)
  expect(PlatformError.is(refused) && refused.code).toBe('too_many_requests')
  expect(refused.message).toContain('sandboxes are being created')
  expect(refused.retryAfterSeconds).toBe(1)
  first[Symbol.dispose]()
  ;(await second)[Symbol.dispose]()
  expect(semaphore.held).toBe(0)
})

test('work that fails gives its place back', async () => {
  const semaphore = make(1, 0)
  await expect(semaphore.run(() => Promise.reject(new Error('no')))).rejects.toThrow('no')
  await expect(
    semaphore.run(() => {
      throw new Error('no')
    }),
  ).rejects.toThrow('no')
  expect(semaphore.held).toBe(0)
  expect(await semaphore.run(() => 7)).toBe(7)
})

test('giving a place back twice frees one', async () => {
  const semaphore = make(2, 0)
  const first = await semaphore.acquire()
  await semaphore.acquire()
  first[Symbol.dispose]()
  first[Symbol.dispose]()
  expect(semaphore.held).toBe(1)
})

test('one that gives up leaves the line, and the place goes to the next', async () => {
  const semaphore = make(1, 5)
  const first = await semaphore.acquire()
  const abort = new AbortController()
  const gaveUp = semaphore.acquire(abort.signal).catch((error) => error)
  const next = semaphore.acquire()
  abort.abort(new Error('gave up'))
  expect((await gaveUp).message).toBe('gave up')
  expect(semaphore.waiting).toBe(1)
  first[Symbol.dispose]()
  ;(await next)[Symbol.dispose]()
  await expect(semaphore.acquire(AbortSignal.abort(new Error('before')))).rejects.toThrow('before')
  expect([semaphore.held, semaphore.waiting]).toEqual([0, 0])
})

test('an abort after the place was given changes nothing', async () => {
  const semaphore = make(1, 1)
  const first = await semaphore.acquire()
  const abort = new AbortController()
  const second = semaphore.acquire(abort.signal)
  first[Symbol.dispose]()
  abort.abort()
  const place = await second
  expect(semaphore.held).toBe(1)
  place[Symbol.dispose]()
  expect(semaphore.held).toBe(0)
})
