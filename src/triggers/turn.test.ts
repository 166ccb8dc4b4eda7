import { expect, test } from 'bun:test'
import { PlatformError } from '../errors.ts'
import { turnOf } from './turn.ts'

const turn = (headers: Record<string, string>) => turnOf(new Headers(headers), 1000)

test('a client says when its request has its turn', () => {
  expect(turn({})).toEqual({})
  expect(turn({ 'x-hutch-delay': '2m', 'x-hutch-priority': '-5' })).toEqual({ runAt: 121_000, priority: -5 })
  expect(turn({ 'x-hutch-concurrency-key': 'user-1' })).toEqual({ concurrency: { key: 'user-1', max: 1 } })
  expect(turn({ 'x-hutch-concurrency-key': 'user-1', 'x-hutch-concurrency': '3' })).toEqual({
    concurrency: { key: 'user-1', max: 3 },
  })
})

test('what is no turn is refused, by the name of its header', () => {
  for (const [headers, message] of [
    [{ 'x-hutch-delay': 'soon' }, 'X-Hutch-Delay'],
    [{ 'x-hutch-delay': '31d' }, 'X-Hutch-Delay'],
    [{ 'x-hutch-priority': '1.5' }, 'X-Hutch-Priority'],
    [{ 'x-hutch-priority': '1001' }, 'X-Hutch-Priority'],
    [{ 'x-hutch-concurrency': '2' }, 'X-Hutch-Concurrency-Key'],
    [{ 'x-hutch-concurrency': '0', 'x-hutch-concurrency-key': 'a' }, 'X-Hutch-Concurrency'],
    [{ 'x-hutch-concurrency-key': 'a'.repeat(256) }, 'X-Hutch-Concurrency-Key'],
  ] as const) {
    let error: unknown
    try {
      turn(headers)
    } catch (thrown) {
      error = thrown
    }
    expect(PlatformError.is(error) && error.code === 'bad_request' && error.message).toContain(message)
  }
})
