import { expect, test } from 'bun:test'
import { free } from './spent.ts'

test('the last view of a buffer frees it, an earlier one does not', () => {
  const bytes = new Uint8Array(100_000).fill(1)
  const [first, last] = [bytes.subarray(0, 40_000), bytes.subarray(40_000)]
  free(first)
  expect([first.length, last.length, last[0]]).toEqual([40_000, 60_000, 1])
  free(last)
  expect([first.length, last.length, bytes.buffer.byteLength]).toEqual([0, 0, 0])
  free(last)
})

test('small pieces stay, which may be cut from memory that others have a part of', () => {
  const whole = Buffer.from('a small piece')
  const pool = whole.buffer
  free(new Uint8Array(pool))
  expect(whole.toString()).toBe('a small piece')
})
