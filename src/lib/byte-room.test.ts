import { expect, test } from 'bun:test'
import { PlatformError } from '../errors.ts'
import { ByteRoom } from './byte-room.ts'

test('whoever finds no room waits for its turn, also behind one that needs more', async () => {
  const room = new ByteRoom({ bytesMax: 10, waitingMax: 2, what: 'things are done' })
  const order: string[] = []
  expect(room.take(6)).toBeNull()
  expect(room.take(4)).toBeNull()
  const large = room.take(8)?.then(() => order.push('large'))
  const small = room.take(1)?.then(() => order.push('small'))
  expect(() => room.take(1)).toThrow(PlatformError)
  room.leave(4)
  await Promise.resolve()
  expect(order).toEqual([])
  room.leave(6)
  await Promise.all([large, small])
  expect(order).toEqual(['large', 'small'])
})

test('what is larger than the room enters alone', async () => {
  const room = new ByteRoom({ bytesMax: 10, waitingMax: 2, what: 'things are done' })
  expect(room.take(50)).toBeNull()
  const next = room.take(1)
  expect(next).not.toBeNull()
  room.leave(50)
  await next
})

test('of several holders none gets more than its part of what others leave, and they come in by turns', async () => {
  const room = new ByteRoom({ bytesMax: 16, waitingMax: 9, holderPart: 1 / 2, what: 'things are done' })
  const order: string[] = []
  const take = (bytes: number, holder: string) =>
    void (room.take(bytes, holder) ?? Promise.resolve()).then(() => order.push(`${holder}${bytes}`))
  const inOrder = async () => {
    for (let turn = 0; turn < 9; turn++) await Promise.resolve()
    return order.splice(0).join(' ')
  }
  for (let index = 0; index < 4; index++) take(4, 'a')
  expect(await inOrder()).toBe('a4 a4')
  take(4, 'b')
  take(3, 'b')
  expect([await inOrder(), room.waiting]).toEqual(['b4', 3])
  room.leave(4, 'a')
  expect(await inOrder()).toBe('')
  room.leave(4, 'a')
  expect(await inOrder()).toBe('a4')
  room.leave(4, 'a')
  expect([await inOrder(), room.waiting]).toEqual(['b3 a4', 0])
})

test('who waits for the room itself is not passed by; who waits for its own part of it is', async () => {
  const room = new ByteRoom({ bytesMax: 16, waitingMax: 9, holderPart: 1 / 2, what: 'things are done' })
  expect(room.take(8, 'a')).toBeNull()
  const own = room.take(1, 'a')
  expect(room.take(4, 'b')).toBeNull()
  const large = room.take(16, 'c')
  const later = room.take(1, 'd')
  expect([own, large, later].map((one) => one === null)).toEqual([false, false, false])
  expect(room.tryTake(1, 'e')).toBe(false)
  room.leave(8, 'a')
  await own
  room.leave(1, 'a')
  room.leave(4, 'b')
  await large
  room.leave(16, 'c')
  await later
})

test('so many of one holder may wait, and others still', () => {
  const room = new ByteRoom({ bytesMax: 4, waitingMax: 3, holderWaitingMax: 2, what: 'things are done' })
  expect(room.take(4, 'a')).toBeNull()
  expect([room.take(1, 'a'), room.take(1, 'a')].every((one) => one !== null)).toBe(true)
  expect(() => room.take(1, 'a')).toThrow('too many things are done')
  expect(room.take(1, 'b')).not.toBeNull()
  expect(() => room.take(1, 'b')).toThrow('too many things are done')
})

test('who does not wait any more leaves its place, and those behind it come in', async () => {
  const room = new ByteRoom({ bytesMax: 10, waitingMax: 2, what: 'things are done' })
  expect(room.take(8)).toBeNull()
  const leaving = new AbortController()
  const large = room.take(9, '', leaving.signal)?.catch((reason: Error) => reason.message)
  const small = room.take(2)
  expect(room.waiting).toBe(2)
  leaving.abort(new Error('it left'))
  expect(await large).toBe('it left')
  await small
  expect(room.waiting).toBe(0)
  expect(() => room.take(1, '', leaving.signal)).toThrow('it left')
  // What left took nothing.
  room.leave(8)
  room.leave(2)
  expect(room.take(10)).toBeNull()
})
