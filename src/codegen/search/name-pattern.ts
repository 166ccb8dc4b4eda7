type Token =
  | { kind: 'any' }
  | { kind: 'many' }
  | { kind: 'set'; negated: boolean; ranges: [string, string][] }
  | string

/**
 * One name of a path in a .gitignore: `*`, `?`, `[a-z]`, `[!a-z]`, and `\` before what is meant as itself. Matching takes
 * time by the product of both lengths at most, whatever the pattern.
 */
export class NamePattern {
  /** The name, where the pattern fits no other one. */
  readonly literal: string | null
  readonly #tokens: Token[]

  private constructor(tokens: Token[]) {
    this.#tokens = tokens
    this.literal = tokens.every((token) => typeof token === 'string') ? tokens.join('') : null
  }

  /** Null for one that nothing fits, such as a class that is not closed. */
  static parse(text: string): NamePattern | null {
    const characters = [...text]
    const tokens: Token[] = []
    for (let at = 0; at < characters.length; at++) {
      const character = characters[at]!
      if (character === '*') {
        const before = tokens.at(-1)
        if (typeof before !== 'object' || before.kind !== 'many') tokens.push({ kind: 'many' })
      } else if (character === '?') tokens.push({ kind: 'any' })
      else if (character === '\\') {
        const next = characters[++at]
        if (next === undefined) return null
        tokens.push(next)
      } else if (character === '[') {
        const set = parseSet(characters, at + 1)
        if (set === null) return null
        tokens.push(set.token)
        at = set.end
      } else tokens.push(character)
    }
    return new NamePattern(tokens)
  }

  /** How much work a match is, at most. */
  stepsFor(name: string): number {
    return this.literal === null ? this.#tokens.length * name.length : 1
  }

  fits(name: string): boolean {
    if (this.literal !== null) return this.literal === name
    const characters = [...name]
    const tokens = this.#tokens
    let at = 0
    let token = 0
    /** The last `*`, and how far it reaches so far: only that one is ever tried again. */
    let many = -1
    let reach = 0
    while (at < characters.length) {
      const next = tokens[token]
      if (typeof next === 'object' && next.kind === 'many') {
        many = token++
        reach = at
      } else if (next !== undefined && fitsOne(next, characters[at]!)) {
        token++
        at++
      } else if (many >= 0) {
        token = many + 1
        at = ++reach
      } else return false
    }
    return tokens.slice(token).every((left) => typeof left === 'object' && left.kind === 'many')
  }
}

function fitsOne(token: Token, character: string): boolean {
  if (typeof token === 'string') return token === character
  if (token.kind !== 'set') return token.kind === 'any'
  return token.ranges.some(([low, high]) => character >= low && character <= high) !== token.negated
}

/** `at` is behind the opening bracket; `end` that of the closing one. */
function parseSet(characters: string[], at: number): { token: Token; end: number } | null {
  const negated = characters[at] === '!' || characters[at] === '^'
  if (negated) at++
  const ranges: [string, string][] = []
  for (let first = true; first || characters[at] !== ']'; first = false) {
    // A class by its name, as in [[:alpha:]], is nothing that these files have.
    if (characters[at] === '[' && characters[at + 1] === ':') return null
    const low = characters[at] === '\\' ? characters[++at] : characters[at]
    at++
    if (low === undefined) return null
    let high: string | undefined = low
    if (characters[at] === '-' && (characters[at + 1] ?? ']') !== ']') {
      at++
      high = characters[at] === '\\' ? characters[++at] : characters[at]
      at++
    }
    if (high === undefined) return null
    ranges.push([low, high])
  }
  return { token: { kind: 'set', negated, ranges }, end: at }
}
