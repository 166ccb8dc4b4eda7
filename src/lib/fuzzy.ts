/**
 * Scores how well a path answers a query whose letters it contains in order, as people type when they look for a file:
 * letters side by side, at the start of words and in the file's own name count for more, long ways between them for
 * less. Null when it does not contain them. Capitals in the query are meant as such; otherwise case does not matter.
 */
export class FuzzyQuery {
  readonly #terms: { text: string; isExactCase: boolean }[]

  /** Words apart by spaces have to be found each, in any order. */
  constructor(query: string) {
    this.#terms = query
      .split(/\s+/)
      .filter((text) => text !== '')
      .map((text) => ({ text, isExactCase: text.toLowerCase() !== text }))
  }

  score(path: string): number | null {
    const lower = path.toLowerCase()
    // Where lower case has another length, places in the one would mean nothing in the other.
    const foldable = lower.length === path.length ? lower : path
    const nameStart = path.lastIndexOf('/') + 1
    let total = 0
    for (const { text, isExactCase } of this.#terms) {
      const score = termScore(path, isExactCase ? path : foldable, text, nameStart)
      if (score === null) return null
      total += score
    }
    return total
  }
}

const points = {
  letter: 16,
  sideBySide: 12,
  wordStart: 10,
  nameStart: 8,
  inName: 4,
  wholeName: 40,
  gap: -1,
  gapMax: -12,
}

function termScore(path: string, text: string, term: string, nameStart: number): number | null {
  // In the name itself, when it is there; else anywhere.
  const span = tightest(text, term, nameStart) ?? tightest(text, term, 0)
  if (!span) return null
  let score = 0
  let at = span.start
  let previous = -1
  for (let index = 0; index < term.length; index++, at++) {
    while (text[at] !== term[index]) at++
    score += points.letter
    if (at >= nameStart) score += points.inName
    if (at === nameStart) score += points.nameStart
    if (startsWord(path, at)) score += points.wordStart
    if (previous >= 0 && at === previous + 1) score += points.sideBySide
    else if (previous >= 0) score += Math.max(points.gapMax, points.gap * (at - previous - 1))
    previous = at
  }
  const name = text.slice(nameStart)
  if (name === term || name.replace(/\.[^.]*$/, '') === term) score += points.wholeName
  return score
}

/** The first place where the term ends, and from there back the last where it begins. */
function tightest(text: string, term: string, from: number): { start: number; end: number } | null {
  let at = from
  for (const letter of term) {
    const found = text.indexOf(letter, at)
    if (found === -1) return null
    at = found + letter.length
  }
  const end = at
  let start = end
  for (let index = term.length - 1; index >= 0; index--) {
    start--
    while (text[start] !== term[index]) start--
  }
  return { start, end }
}

function startsWord(path: string, at: number): boolean {
  const before = path[at - 1]
  if (before === undefined || /[/._\- ]/.test(before)) return true
  return /[a-z]/.test(before) && /[A-Z]/.test(path[at] ?? '')
}
