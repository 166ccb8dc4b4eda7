import { expect, test } from 'bun:test'
import { addCounts, countsLine, readSummary } from './test-summary.ts'

const block = `
 1001 pass
 1 skip
 2 todo
 3 fail
 1 error
 12 expect() calls
Ran 1007 tests across 51 files. [2.75s]
`

test('passed, failed and skipped are read from the last block', () => {
  const earlier = ' 7 pass\n 0 fail\nRan 7 tests across 1 file. [1.00ms]\n'
  expect(readSummary(earlier + block)).toEqual({ passed: 1001, failed: 3, skipped: 3 })
})

test('colours do not hide the block', () => {
  expect(
    readSummary('\x1b[0m\x1b[32m 4 pass\x1b[0m\n\x1b[2m 0 fail\x1b[0m\nRan 4 tests across 1 file. [9ms]\n'),
  ).toEqual({
    passed: 4,
    failed: 0,
    skipped: 0,
  })
})

test('a run that was cut off has no summary', () => {
  expect(readSummary('a.test.ts:\n(pass) a\n')).toBeNull()
  expect(readSummary('')).toBeNull()
  expect(readSummary('Ran 4 tests across 1 file. [9ms]\n')).toBeNull()
})

test('an error outside of every test counts as a failure', () => {
  expect(readSummary(' 1 pass\n 0 fail\n 1 error\nRan 1 test across 1 file. [9ms]\n')?.failed).toBe(1)
})

test('runs add up to the closing line', () => {
  const total = addCounts({ passed: 1, failed: 0, skipped: 2 }, { passed: 3, failed: 1, skipped: 0 })
  expect(countsLine(total)).toBe('4 passed, 1 failed, 2 skipped')
})
