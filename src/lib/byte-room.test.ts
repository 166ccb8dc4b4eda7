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
