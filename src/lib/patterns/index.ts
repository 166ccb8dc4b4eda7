import { PlatformError } from '../../errors.ts'
import { codePointMax, folded, ranges } from './code-points.ts'
import { type Expression, PatternError } from './expression.ts'
import { hasGlobCharacters, parseAbsoluteGlob, parseGlob } from './glob.ts'
import { exactLiteral, type Literal, requiredLiterals } from './literals.ts'
import { parseExpression } from './parse.ts'
import { compile, type Program } from './program.ts'

export { PatternError } from './expression.ts'
export { Matcher } from './matcher.ts'
export { encodeCode, type Program } from './program.ts'

/** What to look for in lines, ready to be run. */
export interface LinePattern {
  program: Program
  /** A line without any of these has no match; none: look at every line. */
  literals: Literal[]
  /** The one literal is the pattern, so that where it stands needs no closer look. */
  exact: boolean
}

const patternCharactersMax = 4096
const globCharactersMax = 4096
const globsMax = 256

/** @throws PatternError, with a message for whoever wrote the pattern */
export function compileLinePattern(
  pattern: string,
  options: { syntax: 'literal' | 'regex'; ignoreCase: boolean },
): LinePattern {
  if (pattern === '') throw new PatternError('the pattern is empty')
  if (pattern.length > patternCharactersMax) {
    throw new PatternError(`the pattern is longer than ${patternCharactersMax} characters`)
  }
  if (options.syntax === 'regex') {
    const expression = parseExpression(pattern, options.ignoreCase)
    return { program: compile(expression), literals: requiredLiterals(expression), exact: false }
  }
  if (/[\n\0]/.test(pattern))
    throw new PatternError('the text contains a line end or NUL, which no line does')
  const expression = textExpression(pattern, options.ignoreCase)
  const literal = exactLiteral(pattern, options.ignoreCase)
  return {
    program: compile(expression),
    literals: literal ? [literal] : requiredLiterals(expression),
    exact: literal !== null,
  }
}

function textExpression(text: string, ignoreCase: boolean): Expression {
  const items = [...text.toWellFormed()].map((character): Expression => {
    const codePoint = character.codePointAt(0) as number
    const set = ranges([[codePoint, codePoint]])
    return { kind: 'class', set: ignoreCase ? folded(set) : set }
  })
  return { kind: 'sequence', items }
}

/** One program for paths that any of the globs fits; null without globs. @throws PatternError */
export function compileGlobs(globs: readonly string[]): Program | null {
  checkCount(globs)
  if (globs.length === 0) return null
  return compile({ kind: 'choice', items: globs.map(parseGlob) })
}

/** One program for absolute paths that contain any of these or, where they have glob characters, fit them. */
export function compileIgnored(texts: readonly string[]): Program | null {
  checkCount(texts)
  if (texts.length === 0) return null
  const items = texts.map((text) =>
    hasGlobCharacters(text) ? parseAbsoluteGlob(text) : containing(textExpression(text, false)),
  )
  return compile({ kind: 'choice', items })
}

function containing(expression: Expression): Expression {
  const anything: Expression = { kind: 'class', set: ranges([[0, codePointMax]]) }
  const before: Expression = {
    kind: 'repeat',
    item: anything,
    min: 0,
    max: Number.POSITIVE_INFINITY,
    greedy: true,
  }
  return { kind: 'sequence', items: [{ kind: 'assert', what: 'start' }, before, expression] }
}

function checkCount(globs: readonly string[]) {
  if (globs.length > globsMax) throw new PatternError(`there are more than ${globsMax} globs`)
  if (globs.some((glob) => glob.length > globCharactersMax)) {
    throw new PatternError(`a glob is longer than ${globCharactersMax} characters`)
  }
}

/** What a client wrote in `field`, compiled. @throws bad_request that names it */
export function compiled<Value>(field: string, compile: () => Value): Value {
  try {
    return compile()
  } catch (error) {
    if (!(error instanceof PatternError)) throw error
    throw new PlatformError('bad_request', `${field}: ${error.message}`)
  }
}
