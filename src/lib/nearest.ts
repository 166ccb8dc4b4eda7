/** The candidate that a mistyped word most likely meant, or null when none is close. */
export function nearest(word: string, candidates: Iterable<string>): string | null {
  let best: string | null = null
  let bestDistance = Math.max(1, Math.ceil(word.length / 3)) + 1
  const plain = simplify(word)
  for (const candidate of candidates) {
    const distance =
      simplify(candidate) === plain ? 0 : editDistance(word.toLowerCase(), candidate.toLowerCase())
    if (distance < bestDistance) {
      best = candidate
      bestDistance = distance
    }
  }
  return best
}

function simplify(word: string): string {
  return word.toLowerCase().replace(/[-_]/g, '')
}

/** Insertions, deletions, substitutions and swaps of neighbours. */
function editDistance(a: string, b: string): number {
  if (Math.abs(a.length - b.length) > 8) return Number.POSITIVE_INFINITY
  let beforePrevious: number[] = []
  let previous = Array.from({ length: b.length + 1 }, (_, index) => index)
  for (let i = 1; i <= a.length; i++) {
    const current = [i]
    for (let j = 1; j <= b.length; j++) {
      const substitution = previous[j - 1]! + (a[i - 1] === b[j - 1] ? 0 : 1)
      const swapped = i > 1 && j > 1 && a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1]
      const swap = swapped ? beforePrevious[j - 2]! + 1 : Number.POSITIVE_INFINITY
      current.push(Math.min(substitution, swap, previous[j]! + 1, current[j - 1]! + 1))
    }
    beforePrevious = previous
    previous = current
  }
  return previous[b.length]!
}
