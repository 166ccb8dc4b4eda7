import { expect, test } from 'bun:test'
import fc from 'fast-check'
import { OutputTail, truncationLine } from './output.ts'

test('the end of what was written is kept, cut at a character, however it came', () => {
  fc.assert(
    fc.property(
      fc.array(fc.string({ unit: 'grapheme' })),
      fc.integer({ min: 1, max: 40 }),
      (parts, bytesMax) => {
        const tail = new OutputTail(bytesMax)
        for (const part of parts) {
          tail.push({ kind: 'stdout', at: 0, endOffset: 0, data: new TextEncoder().encode(part) })
        }
        tail.end()
        const whole = parts.join('')
        const bytes = Buffer.from(whole)
        const { stdout, stderr, logs } = tail.summary()
        expect([stderr, logs]).toEqual(['', stdout])
        if (bytes.length <= bytesMax) {
          expect(stdout).toBe(whole)
        } else {
          expect(stdout).toStartWith(truncationLine)
          const kept = stdout.slice(truncationLine.length)
          expect(whole).toEndWith(kept)
          expect(Buffer.byteLength(kept)).toBeLessThanOrEqual(bytesMax)
          // Not even one character more would have fit.
          expect(Buffer.byteLength(kept)).toBeGreaterThan(bytesMax - 4)
        }
      },
    ),
  )
})

test('a tail that goes on after it was shown stays right', () => {
  const tail = new OutputTail(10)
  const put = (text: string) =>
    tail.push({ kind: 'stdout', at: 0, endOffset: 0, data: new TextEncoder().encode(text) })
  put('12345')
  expect(tail.summary().stdout).toBe('12345')
  put('67890')
  expect(tail.summary().stdout).toBe('1234567890')
  put('abc')
  expect(tail.summary().stdout).toBe(`${truncationLine}4567890abc`)
  put('x'.repeat(25))
  expect(tail.summary().stdout).toBe(`${truncationLine}${'x'.repeat(10)}`)
})
