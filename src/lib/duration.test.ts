import { expect, test } from 'bun:test'
import fc from 'fast-check'
import { PlatformError } from '../errors.ts'
import { durationMsMax, formatDuration, parseDuration } from './duration.ts'

test.each([
  ['1s', 1000],
  ['30s', 30_000],
  ['5m', 300_000],
  ['1h', 3_600_000],
  ['24h', 86_400_000],
  ['2d', 172_800_000],
  ['1w', 604_800_000],
  ['007s', 7000],
  ['3650d', durationMsMax],
])('%s is %d ms', (text, ms) => {
  expect(parseDuration('ttl', text)).toBe(ms)
})

test.each([
  '',
  's',
  '5',
  '5 m',
  ' 5m',
  '5m ',
  '5M',
  '-5m',
  '+5m',
  '1.5h',
  '1h30m',
  '5ms',
  '1y',
  '1e3s',
  '0x5s',
  '٥s',
  '0s',
  '00w',
  '3651d',
  '999999999999w',
  '9'.repeat(400),
])('%j is refused, and the field is named', (text) => {
  try {
    parseDuration('spec.runtime.ttl', text)
    throw new Error('it was taken')
  } catch (error) {
    expect(PlatformError.is(error) && error.code).toBe('bad_request')
    expect(String(error)).toContain('spec.runtime.ttl')
    expect(String(error).length).toBeLessThan(200)
  }
})

test('the limit can be lower, and is named', () => {
  expect(parseDuration('ttl', '60m', 3_600_000)).toBe(3_600_000)
  expect(() => parseDuration('ttl', '61m', 3_600_000)).toThrow('at most 1h')
})

test.each([
  [0, '0ms'],
  [0.4, '0ms'],
  [250, '250ms'],
  [999.6, '1s'],
  [1000, '1s'],
  [1540, '1.5s'],
  [9960, '10s'],
  [59_600, '1m'],
  [125_000, '2m 5s'],
  [3_600_000, '1h'],
  [3_605_000, '1h'],
  [90_000_000, '1d 1h'],
  [-1500, '-1.5s'],
  [Number.NaN, 'NaN'],
])('%d ms reads %s', (ms, text) => {
  expect(formatDuration(ms)).toBe(text)
})

test('no duration reads as nothing, or as sixty of a unit', () => {
  fc.assert(
    fc.property(fc.double({ min: 0, max: durationMsMax, noNaN: true }), (ms) => {
      const text = formatDuration(ms)
      expect(text).not.toBe('')
      expect(text).not.toMatch(/\b60[sm]|\b24h/)
    }),
  )
})
