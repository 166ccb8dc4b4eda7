import { expect, test } from 'bun:test'
import { addCounts, countsLine, Failures, readSummary } from './test-summary.ts'

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

const printed = `
src/a.test.ts:
(pass) first [0.03ms]
noise
3 | expect(1).toBe(2)
error: expect(received).toBe(expected)

Expected: 2
Received: 1
\x1b[31m(fail)\x1b[0m group > second [1.19ms]
(fail) group > third [58.10ms]
  ^ this test timed out after 50ms.
  ^ not of it
(skip) group > fourth

src/b.test.ts:

# Unhandled error between tests
-------------------------------
error: top level
      at /b.test.ts:3:11
-------------------------------

no newline(fail) fifth [2.00s]
(pass) the word (fail) [1.00ms]

2 tests skipped:
(skip) group > fourth

4 tests failed:
(fail) group > second [1.19ms]
(fail) group > third [58.10ms]
  ^ this test timed out after 50ms.
`

test('what failed is gathered with all that was printed of it', () => {
  for (const size of [1, 7, 10_000]) {
    const failures = new Failures()
    for (let at = 0; at < printed.length; at += size) failures.push(printed.slice(at, at + size))
    expect(failures.texts).toEqual([
      'src/a.test.ts:\nnoise\n3 | expect(1).toBe(2)\nerror: expect(received).toBe(expected)\n\n' +
        'Expected: 2\nReceived: 1\n(fail) group > second [1.19ms]',
      'src/a.test.ts:\n(fail) group > third [58.10ms]\n  ^ this test timed out after 50ms.',
      `src/b.test.ts:\n${'-'.repeat(31)}\nerror: top level\n      at /b.test.ts:3:11\n${'-'.repeat(31)}`,
      'src/b.test.ts:\nno newline(fail) fifth [2.00s]',
    ])
  }
})

test('what failed is bounded', () => {
  const failures = new Failures()
  for (let n = 0; n < 1_000; n++) failures.push(`${'line\n'.repeat(300)}(fail) ${n} [1.00ms]\n  ^ slow\n`)
  expect(failures.texts).toHaveLength(50)
  expect(failures.texts[49]!.split('\n').length).toBe(202)
})
