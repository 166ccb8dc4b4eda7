import {
  codePointMax,
  digits,
  folded,
  negated,
  posixClasses,
  propertyRanges,
  type Ranges,
  ranges,
  sizeOf,
  whiteSpace,
  without,
  wordCharacters,
} from './code-points.ts'
import { type Expression, PatternError } from './expression.ts'

const repeatMax = 1000
const depthMax = 200
/** Each different one costs milliseconds to look up. */
const propertiesMax = 16
const lineEnd = 0x0a

const controlEscapes: Record<string, number> = { a: 0x07, f: 0x0c, r: 0x0d, t: 0x09, v: 0x0b }

/**
 * A regular expression as ripgrep and RE2 have them: no backreferences, no lookaround. It is matched within one line;
 * `\d`, `\w` and `\b` are about ASCII, `.`, classes and `\p{...}` about Unicode. @throws PatternError
 */
export function parseExpression(pattern: string, ignoreCase: boolean): Expression {
  return new Parser(pattern, ignoreCase).parse()
}

class Parser {
  private readonly characters: string[]
  private at = 0
  private depth = 0
  private readonly properties = new Set<string>()

  constructor(
    pattern: string,
    private ignoreCase: boolean,
  ) {
    this.characters = [...pattern.toWellFormed()]
  }

  parse(): Expression {
    const whole = this.choice()
    if (this.at < this.characters.length) throw this.error('a ) closes no group')
    return whole
  }

  private get next(): string | undefined {
    return this.characters[this.at]
  }

  private take(text: string): boolean {
    for (let offset = 0; offset < text.length; offset++) {
      if (this.characters[this.at + offset] !== text[offset]) return false
    }
    this.at += text.length
    return true
  }

  private error(what: string, at = this.at): PatternError {
    return new PatternError(`${what} (at character ${at + 1})`)
  }

  private choice(): Expression {
    if (++this.depth > depthMax) throw this.error(`groups are nested deeper than ${depthMax}`)
    const caseOutside = this.ignoreCase
    const items = [this.sequence()]
    while (this.take('|')) items.push(this.sequence())
    this.ignoreCase = caseOutside
    this.depth--
    return items.length === 1 ? (items[0] as Expression) : { kind: 'choice', items }
  }

  private sequence(): Expression {
    const items: Expression[] = []
    while (this.next !== undefined && this.next !== '|' && this.next !== ')') {
      const item = this.repeated(this.atom())
      if (item.kind !== 'empty') items.push(item)
    }
    if (items.length === 0) return { kind: 'empty' }
    return items.length === 1 ? (items[0] as Expression) : { kind: 'sequence', items }
  }

  private repeated(item: Expression): Expression {
    let whole = item
    for (;;) {
      const startedAt = this.at
      let bounds: { min: number; max: number } | null
      if (this.take('*')) bounds = { min: 0, max: Number.POSITIVE_INFINITY }
      else if (this.take('+')) bounds = { min: 1, max: Number.POSITIVE_INFINITY }
      else if (this.take('?')) bounds = { min: 0, max: 1 }
      else bounds = this.counted()
      if (!bounds) return whole
      if (bounds.max < bounds.min) throw this.error('a repetition counts down', startedAt)
      whole = { kind: 'repeat', item: whole, ...bounds, greedy: !this.take('?') }
    }
  }

  /** `{2}`, `{2,}` or `{2,5}`; any other brace is itself. */
  private counted(): { min: number; max: number } | null {
    if (this.next !== '{') return null
    const end = this.characters.indexOf('}', this.at)
    const match = /^\{(\d{1,6})(?:(,)(\d{1,6})?)?$/.exec(this.characters.slice(this.at, end).join(''))
    if (end === -1 || !match) return null
    const min = Number(match[1])
    const max = match[3] !== undefined ? Number(match[3]) : match[2] ? Number.POSITIVE_INFINITY : min
    if (min > repeatMax || (max !== Number.POSITIVE_INFINITY && max > repeatMax)) {
      throw this.error(`a repetition counts higher than ${repeatMax}`)
    }
    this.at = end + 1
    return { min, max }
  }

  private atom(): Expression {
    const startedAt = this.at
    const character = this.characters[this.at++] as string
    switch (character) {
      case '(':
        return this.group(startedAt)
      case '[':
        return this.bracket(startedAt)
      case '.':
        return { kind: 'class', set: without([[0, codePointMax]], lineEnd) }
      case '^':
        return { kind: 'assert', what: 'start' }
      case '$':
        return { kind: 'assert', what: 'end' }
      case '\\':
        return this.escape(startedAt)
      case '*':
      case '+':
      case '?':
        throw this.error(`${character} repeats nothing`, startedAt)
    }
    return this.single(character.codePointAt(0) as number, startedAt)
  }

  private single(codePoint: number, at: number): Expression {
    return this.classOf([[codePoint, codePoint]], false, at)
  }

  private classOf(set: Ranges, isNegated: boolean, at: number): Expression {
    const cased = this.ignoreCase ? folded(set) : set
    const whole = isNegated ? negated(cased) : cased
    const withinLine = without(whole, lineEnd)
    if (sizeOf(withinLine) === 0) {
      throw this.error(
        sizeOf(whole) > 0
          ? 'a line end cannot be matched: lines are searched one by one'
          : 'a class is empty',
        at,
      )
    }
    return { kind: 'class', set: withinLine }
  }

  private group(startedAt: number): Expression {
    const caseOutside = this.ignoreCase
    if (this.take('?')) {
      if (this.take('P<') || (this.next === '<' && !'=!'.includes(this.characters[this.at + 1] ?? '='))) {
        this.take('<')
        const end = this.characters.indexOf('>', this.at)
        if (end === -1) throw this.error('the name of a group does not end', startedAt)
        this.at = end + 1
      } else if (!this.take(':')) {
        if (['=', '!', '<'].includes(this.next ?? '')) {
          throw this.error('looking ahead or behind is not supported', startedAt)
        }
        if (!this.flags(startedAt)) return { kind: 'empty' }
      }
    }
    const inside = this.choice()
    this.ignoreCase = caseOutside
    if (!this.take(')')) throw this.error('a group is not closed', startedAt)
    return inside
  }

  /** `i-ms:` of a group, true; or `i)`, which holds for the rest of the group around it. */
  private flags(startedAt: number): boolean {
    let on = true
    for (;;) {
      const flag = this.characters[this.at++]
      if (flag === ':') return true
      if (flag === ')') return false
      if (flag === '-') on = false
      else if (flag === 'i') this.ignoreCase = on
      // Within one line these change nothing.
      else if (flag !== 'm' && flag !== 's' && flag !== 'u') {
        throw this.error(`a group begins with (?${flag ?? ''}, which is not supported`, startedAt)
      }
    }
  }

  private escape(startedAt: number): Expression {
    const shared = this.sharedEscape(startedAt)
    if (typeof shared === 'number') return this.single(shared, startedAt)
    if (shared) return this.classOf(shared, false, startedAt)
    const character = this.characters[this.at++]
    switch (character) {
      case 'b':
        return { kind: 'assert', what: 'word boundary' }
      case 'B':
        return { kind: 'assert', what: 'no word boundary' }
      case 'A':
        return { kind: 'assert', what: 'start' }
      case 'z':
      case 'Z':
        return { kind: 'assert', what: 'end' }
    }
    if (/[1-9]/.test(character ?? '')) throw this.error('backreferences are not supported', startedAt)
    throw this.error(`\\${character ?? ''} is no escape`, startedAt)
  }

  /** What means the same inside a class and outside; null, with nothing taken, for anything else. */
  private sharedEscape(startedAt: number): number | Ranges | null {
    const character = this.characters[this.at]
    if (character === undefined) throw this.error('the pattern ends in a \\', startedAt)
    this.at++
    switch (character) {
      case 'd':
        return digits
      case 'D':
        return negated(digits)
      case 'w':
        return wordCharacters
      case 'W':
        return negated(wordCharacters)
      case 's':
        return whiteSpace
      case 'S':
        return negated(whiteSpace)
      case 'n':
        return lineEnd
      case '0':
        return 0
      case 'x':
      case 'u':
      case 'U':
        return this.hexadecimal(character, startedAt)
      case 'p':
      case 'P':
        return this.property(character === 'P', startedAt)
    }
    const control = controlEscapes[character]
    if (control !== undefined) return control
    if (!/[A-Za-z0-9]/.test(character)) return character.codePointAt(0) as number
    this.at--
    return null
  }

  private hexadecimal(kind: 'x' | 'u' | 'U', startedAt: number): number {
    const digitsMax = { x: 2, u: 4, U: 8 }[kind]
    let text: string
    if (this.take('{')) {
      const end = this.characters.indexOf('}', this.at)
      text = this.characters.slice(this.at, end === -1 ? this.at : end).join('')
      this.at = end + 1
    } else {
      text = this.characters.slice(this.at, this.at + digitsMax).join('')
      if (text.length < digitsMax) text = ''
      this.at += digitsMax
    }
    const codePoint = /^[0-9a-fA-F]{1,8}$/.test(text) ? Number.parseInt(text, 16) : Number.NaN
    if (!(codePoint <= codePointMax) || (codePoint >= 0xd800 && codePoint <= 0xdfff)) {
      throw this.error(`\\${kind} names no character`, startedAt)
    }
    return codePoint
  }

  private property(isNegated: boolean, startedAt: number): Ranges {
    let name = this.characters[this.at++] ?? ''
    if (name === '{') {
      const end = this.characters.indexOf('}', this.at)
      name = end === -1 ? '' : this.characters.slice(this.at, end).join('')
      this.at = end + 1
    }
    const inverse = name.startsWith('^')
    this.properties.add(name)
    if (this.properties.size > propertiesMax) {
      throw this.error(`more than ${propertiesMax} different properties are named`, startedAt)
    }
    const set = propertyRanges(inverse ? name.slice(1) : name)
    if (!set) throw this.error(`\\p{${name.slice(0, 40)}} is no property`, startedAt)
    return isNegated !== inverse ? negated(set) : set
  }

  private bracket(startedAt: number): Expression {
    const isNegated = this.take('^')
    const parts: (readonly [number, number])[] = []
    // Right at the start it is itself.
    if (this.take(']')) parts.push([0x5d, 0x5d])
    while (!this.take(']')) {
      const first = this.member(startedAt)
      const isRange =
        typeof first === 'number' && this.next === '-' && (this.characters[this.at + 1] ?? ']') !== ']'
      if (!isRange) {
        parts.push(...(typeof first === 'number' ? ([[first, first]] as const) : first))
        continue
      }
      this.at++
      const last = this.member(startedAt)
      if (typeof last !== 'number') throw this.error('a class is no end of a range', startedAt)
      if (last < first) throw this.error('a range counts down', startedAt)
      parts.push([first, last])
    }
    return this.classOf(ranges(parts), isNegated, startedAt)
  }

  private member(startedAt: number): number | Ranges {
    const character = this.characters[this.at]
    if (character === undefined) throw this.error('a class is not closed', startedAt)
    if (character === '[' && this.characters[this.at + 1] === ':') {
      const rest = this.characters.slice(this.at, this.at + 12).join('')
      const match = /^\[:(\^?)([a-z]+):\]/.exec(rest)
      const set = match ? posixClasses[match[2] as string] : undefined
      if (match && set) {
        this.at += match[0].length
        return match[1] ? negated(set) : set
      }
    }
    this.at++
    if (character !== '\\') return character.codePointAt(0) as number
    const shared = this.sharedEscape(startedAt)
    if (shared !== null) return shared
    if (this.take('b')) return 0x08
    throw this.error(`\\${this.next ?? ''} is no escape within a class`, startedAt)
  }
}
