import type { Ranges } from './code-points.ts'

/** One way to spell code points in bytes: a range for each byte. */
export type ByteRanges = readonly (readonly [low: number, high: number])[]

const lengthEnds = [0x7f, 0x7ff, 0xffff, 0x10_ffff]

/** The UTF-8 spellings of a set of code points, in order. */
export function utf8Ranges(set: Ranges): ByteRanges[] {
  const spellings: ByteRanges[] = []
  for (const [first, last] of set) {
    let from = first
    for (const end of lengthEnds) {
      if (from > last) break
      if (from > end) continue
      sameLength(from, Math.min(last, end), spellings)
      from = end + 1
    }
  }
  return spellings
}

/** Cut so that all bytes behind the first that differs are whole ranges of continuation bytes. */
function sameLength(first: number, last: number, spellings: ByteRanges[]): void {
  for (let bits = 6; bits <= 18; bits += 6) {
    const mask = (1 << bits) - 1
    if (first >> bits === last >> bits || first < 0x80) break
    if ((first & mask) !== 0) {
      sameLength(first, first | mask, spellings)
      sameLength((first | mask) + 1, last, spellings)
      return
    }
    if ((last & mask) !== mask) {
      sameLength(first, (last & ~mask) - 1, spellings)
      sameLength(last & ~mask, last, spellings)
      return
    }
  }
  const low = encoded(first)
  const high = encoded(last)
  spellings.push(low.map((byte, at) => [byte, high[at] ?? byte] as const))
}

function encoded(codePoint: number): number[] {
  if (codePoint <= 0x7f) return [codePoint]
  const tail = (shift: number) => 0x80 | ((codePoint >> shift) & 0x3f)
  if (codePoint <= 0x7ff) return [0xc0 | (codePoint >> 6), tail(0)]
  if (codePoint <= 0xffff) return [0xe0 | (codePoint >> 12), tail(6), tail(0)]
  return [0xf0 | (codePoint >> 18), tail(12), tail(6), tail(0)]
}
