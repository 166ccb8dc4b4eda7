import { codePointMax, negated, type Ranges, ranges, without } from './code-points.ts'
import { type Expression, PatternError } from './expression.ts'

const slash = 0x2f
const anything: Ranges = ranges([[0, codePointMax]])
const inName: Ranges = without(anything, slash)
const start: Expression = { kind: 'assert', what: 'start' }
const end: Expression = { kind: 'assert', what: 'end' }
const depthMax = 20

/**
 * A glob over relative paths: `*`, `?`, `[a-z]`, `[!a-z]`, `{a,b}`, `**` and `\` before a character that is meant as
 * itself. One without a slash is about the last name of the path, at any depth; one with a slash about all of it.
 * @throws PatternError
 */
export function parseGlob(glob: string): Expression {
  const trimmed = glob.toWellFormed().replace(/(?<=[^\\/])\/+$/, '')
  const path = trimmed.replace(/^(?:\.?\/)+/, '')
  if (path === '') throw new PatternError('the glob is empty')
  const parsed = new GlobParser([...path]).parse()
  const isName = !trimmed.includes('/')
  const items = isName
    ? [start, optional([many(anything), character(slash)]), parsed, end]
    : [start, parsed, end]
  return { kind: 'sequence', items }
}

/** The same over absolute paths; one with a slash, but not at its start, is about their end. @throws PatternError */
export function parseAbsoluteGlob(glob: string): Expression {
  const isAnchored = glob.startsWith('/')
  if (isAnchored && glob.replace(/\/+/g, '') === '') throw new PatternError('the glob is empty')
  const parsed = new GlobParser([...glob.toWellFormed().replace(/^\/+/, '')]).parse()
  const before = isAnchored ? character(slash) : optional([many(anything), character(slash)])
  return { kind: 'sequence', items: [start, before, parsed, end] }
}

/** Whether the text asks for more than itself. */
export function hasGlobCharacters(text: string): boolean {
  return /[*?[{]/.test(text)
}

class GlobParser {
  private at = 0

  constructor(private readonly characters: string[]) {}

  parse(): Expression {
    return this.sequence(0)
  }

  /** Up to the end, or within braces up to what stands behind an alternative. */
  private sequence(depth: number): Expression {
    const items: Expression[] = []
    while (this.at < this.characters.length) {
      const next = this.characters[this.at] as string
      if (depth > 0 && (next === ',' || next === '}')) break
      this.at++
      items.push(this.item(next, depth))
    }
    return { kind: 'sequence', items }
  }

  private item(next: string, depth: number): Expression {
    switch (next) {
      case '*':
        return this.stars()
      case '?':
        return { kind: 'class', set: inName }
      case '[':
        return this.bracket()
      case '{':
        return this.braces(depth)
      case '\\':
        if (this.at === this.characters.length) throw new PatternError('the glob ends in a \\')
        return character((this.characters[this.at++] as string).codePointAt(0) as number)
    }
    return character(next.codePointAt(0) as number)
  }

  private stars(): Expression {
    if (this.characters[this.at] !== '*') return many(inName)
    const before = this.characters[this.at - 2] ?? '/'
    while (this.characters[this.at] === '*') this.at++
    if (before !== '/' || this.characters[this.at] !== '/') return many(anything)
    this.at++
    return optional([many(anything), character(slash)])
  }

  private bracket(): Expression {
    const isNegated = this.characters[this.at] === '!' || this.characters[this.at] === '^'
    if (isNegated) this.at++
    const parts: [number, number][] = []
    for (let first = true; first || this.characters[this.at] !== ']'; first = false) {
      const low = this.member()
      const isRange = this.characters[this.at] === '-' && (this.characters[this.at + 1] ?? ']') !== ']'
      if (isRange) this.at++
      const high = isRange ? this.member() : low
      if (high < low) throw new PatternError('a range in the glob counts down')
      parts.push([low, high])
    }
    this.at++
    const set = ranges(parts)
    const inside = without(isNegated ? negated(set) : set, slash)
    if (inside.length === 0)
      throw new PatternError('a class in the glob has no character that a name can have')
    return { kind: 'class', set: inside }
  }

  private member(): number {
    if (this.characters[this.at] === '\\') this.at++
    const next = this.characters[this.at++]
    if (next === undefined) throw new PatternError('a class in the glob is not closed')
    return next.codePointAt(0) as number
  }

  private braces(depth: number): Expression {
    if (depth >= depthMax) throw new PatternError(`braces in the glob are nested deeper than ${depthMax}`)
    const items: Expression[] = []
    do {
      if (items.length > 0) this.at++
      items.push(this.sequence(depth + 1))
    } while (this.characters[this.at] === ',')
    if (this.characters[this.at++] !== '}') throw new PatternError('a brace in the glob is not closed')
    return { kind: 'choice', items }
  }
}

function character(codePoint: number): Expression {
  return { kind: 'class', set: [[codePoint, codePoint]] }
}

function many(set: Ranges): Expression {
  return {
    kind: 'repeat',
    item: { kind: 'class', set },
    min: 0,
    max: Number.POSITIVE_INFINITY,
    greedy: true,
  }
}

function optional(items: Expression[]): Expression {
  return { kind: 'repeat', item: { kind: 'sequence', items }, min: 0, max: 1, greedy: true }
}
