import { expect, test } from 'bun:test'
import fc from 'fast-check'
import { jsonErrorOffset, linePosition } from './json-position.ts'

const runs = { numRuns: 300, seed: 7 }

function parses(text: string): boolean {
  try {
    JSON.parse(text)
    return true
  } catch {
    return false
  }
}

test('a text that was cut off is wrong at its end', () => {
  fc.assert(
    fc.property(fc.json({ maxDepth: 4 }), fc.nat(), (text, at) => {
      const cut = text.slice(0, at % Math.max(1, text.length))
      // Within an escape or a number the mistake begins where that began.
      fc.pre(!parses(cut) && !/[\\\-.eE+]/.test(cut))
      const offset = jsonErrorOffset(cut)
      expect(/^(t|tr|tru|f|fa|fal|fals|n|nu|nul)?$/.test(cut.slice(offset))).toBe(true)
    }),
    runs,
  )
})

test('a text with something after its end is wrong right there', () => {
  fc.assert(
    fc.property(fc.json(), fc.constantFrom('x', '{', '"', ']'), (text, more) => {
      expect(jsonErrorOffset(`${text} ${more}`)).toBe(text.length + 1)
    }),
    runs,
  )
})

test('any text that does not parse has a position within it', () => {
  fc.assert(
    fc.property(fc.string({ unit: fc.constantFrom(...'{}[]",:\\u0a1-+.e tfn\n') }), (text) => {
      fc.pre(!parses(text))
      const offset = jsonErrorOffset(text)
      expect(offset).toBeGreaterThanOrEqual(0)
      expect(offset).toBeLessThanOrEqual(text.length)
      // What comes before the position is the beginning of some JSON.
      expect(jsonErrorOffset(text.slice(0, offset))).toBeLessThanOrEqual(offset)
    }),
    runs,
  )
})

test.each([
  ['{"a": tru}', 9],
  ['{"a": 1,}', 8],
  ["{'a': 1}", 1],
  ['[1 2]', 3],
  ['{"a" 1}', 5],
  ['"a\nb"', 2],
  ['"\\x"', 1],
  ['[01]', 2],
  [`${'['.repeat(100_000)}`, 100_000],
])('%p is wrong at %p', (text, offset) => {
  expect(jsonErrorOffset(text)).toBe(offset)
})

test('lines and columns count from one', () => {
  expect(linePosition('{\n  "a": x}', 9)).toEqual({ line: 2, column: 8 })
  expect(linePosition('x', 0)).toEqual({ line: 1, column: 1 })
})
