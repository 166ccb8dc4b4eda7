/** Sets of code points as sorted ranges that neither overlap nor touch, both ends included. */
export type Ranges = readonly (readonly [first: number, last: number])[]

export const codePointMax = 0x10_ffff
const surrogatesFrom = 0xd800
const surrogatesTo = 0xdfff

/** Sorted, joined, and without surrogates, which no UTF-8 has. */
export function ranges(parts: Iterable<readonly [number, number]>): Ranges {
  const sorted = [...parts].sort((a, b) => a[0] - b[0])
  const joined: [number, number][] = []
  for (const [first, last] of sorted) {
    const before = joined.at(-1)
    if (before && first <= before[1] + 1) before[1] = Math.max(before[1], last)
    else joined.push([first, last])
  }
  return joined.flatMap(withoutSurrogates)
}

function withoutSurrogates([first, last]: [number, number]): [number, number][] {
  if (last < surrogatesFrom || first > surrogatesTo) return [[first, last]]
  const kept: [number, number][] = []
  if (first < surrogatesFrom) kept.push([first, surrogatesFrom - 1])
  if (last > surrogatesTo) kept.push([surrogatesTo + 1, last])
  return kept
}

export function negated(set: Ranges): Ranges {
  const others: [number, number][] = []
  let from = 0
  for (const [first, last] of set) {
    if (first > from) others.push([from, first - 1])
    from = last + 1
  }
  if (from <= codePointMax) others.push([from, codePointMax])
  return ranges(others)
}

export function without(set: Ranges, codePoint: number): Ranges {
  return ranges(
    set.flatMap(([first, last]): [number, number][] => {
      if (codePoint < first || codePoint > last) return [[first, last]]
      const parts: [number, number][] = []
      if (first < codePoint) parts.push([first, codePoint - 1])
      if (last > codePoint) parts.push([codePoint + 1, last])
      return parts
    }),
  )
}

export function sizeOf(set: Ranges): number {
  return set.reduce((sum, [first, last]) => sum + last - first + 1, 0)
}

/** Larger sets are classes of letters, which hold both cases already. */
const foldedMax = 4096

/** With the other case of each: that of ASCII letters is ASCII too, as in JavaScript without its `u` flag. */
export function folded(set: Ranges): Ranges {
  if (sizeOf(set) > foldedMax) return set
  const parts: (readonly [number, number])[] = [...set]
  for (const [first, last] of set) {
    for (let codePoint = first; codePoint <= last; codePoint++) {
      for (const other of otherCases(codePoint)) parts.push([other, other])
    }
  }
  return ranges(parts)
}

/** Beyond there are no letters with cases. */
const casedMax = 0x1_ffff
let cased: Map<number, number[]> | null = null

/** Looked up in a table, which is made when it is first needed: a pattern may have thousands of letters to fold. */
function otherCases(codePoint: number): readonly number[] {
  if (cased === null) {
    cased = new Map()
    for (let letter = 0; letter <= casedMax; letter++) {
      const others = casesOf(letter)
      if (others.length > 0) cased.set(letter, others)
    }
  }
  return cased.get(codePoint) ?? []
}

function casesOf(codePoint: number): number[] {
  const text = String.fromCodePoint(codePoint)
  return [text.toLowerCase(), text.toUpperCase()].flatMap((other) => {
    if (other === text) return []
    const mapped = other.codePointAt(0) ?? codePoint
    const isOne = other.length === String.fromCodePoint(mapped).length
    return isOne && mapped !== codePoint && mapped < 128 === codePoint < 128 ? [mapped] : []
  })
}

export const digits: Ranges = [[0x30, 0x39]]
export const wordCharacters: Ranges = ranges([
  [0x30, 0x39],
  [0x41, 0x5a],
  [0x5f, 0x5f],
  [0x61, 0x7a],
])
export const whiteSpace: Ranges = ranges([
  [0x09, 0x0d],
  [0x20, 0x20],
  [0x85, 0x85],
  [0xa0, 0xa0],
  [0x1680, 0x1680],
  [0x2000, 0x200a],
  [0x2028, 0x2029],
  [0x202f, 0x202f],
  [0x205f, 0x205f],
  [0x3000, 0x3000],
])

export const posixClasses: Record<string, Ranges> = {
  alnum: ranges([...digits, [0x41, 0x5a], [0x61, 0x7a]]),
  alpha: ranges([
    [0x41, 0x5a],
    [0x61, 0x7a],
  ]),
  ascii: [[0, 0x7f]],
  blank: ranges([
    [0x09, 0x09],
    [0x20, 0x20],
  ]),
  cntrl: ranges([
    [0, 0x1f],
    [0x7f, 0x7f],
  ]),
  digit: digits,
  graph: [[0x21, 0x7e]],
  lower: [[0x61, 0x7a]],
  print: [[0x20, 0x7e]],
  punct: ranges([
    [0x21, 0x2f],
    [0x3a, 0x40],
    [0x5b, 0x60],
    [0x7b, 0x7e],
  ]),
  space: ranges([
    [0x09, 0x0d],
    [0x20, 0x20],
  ]),
  upper: [[0x41, 0x5a]],
  word: wordCharacters,
  xdigit: ranges([...digits, [0x41, 0x46], [0x61, 0x66]]),
}

const properties = new Map<string, Ranges | null>()
const propertiesMax = 64

/** A Unicode property such as `L`, `Lu`, `Greek` or `Script=Greek`; null for one that there is not. */
export function propertyRanges(name: string): Ranges | null {
  const known = properties.get(name)
  if (known !== undefined) return known
  const found = /^[A-Za-z0-9_]+(?:=[A-Za-z0-9_]+)?$/.test(name) ? lookUp(name) : null
  if (properties.size >= propertiesMax) properties.clear()
  properties.set(name, found)
  return found
}

/** Surrogates fill exactly one. */
const blockSize = 0x800

function lookUp(name: string): Ranges | null {
  for (const form of [name, `Script=${name}`]) {
    let runs: RegExp
    try {
      runs = new RegExp(`\\p{${form}}+`, 'gu')
    } catch {
      continue
    }
    const parts: [number, number][] = []
    // A text of many at once: asking for each of a million code points would hold everybody up.
    for (let block = 0; block <= codePointMax; block += blockSize) {
      if (block === surrogatesFrom) continue
      const text = String.fromCodePoint(...Array.from({ length: blockSize }, (_, at) => block + at))
      const units = text.length / blockSize
      for (const { index, 0: run } of text.matchAll(runs)) {
        const first = block + index / units
        parts.push([first, first + run.length / units - 1])
      }
    }
    return ranges(parts)
  }
  return null
}
