import type { Ranges } from './code-points.ts'
import type { Expression } from './expression.ts'

/** Bytes that a match contains; where the mask is 0x20 the byte is a lower-case letter that stands for both cases. */
export interface Literal {
  bytes: Uint8Array
  masks: Uint8Array
}

const literalsMax = 8
/** Shorter ones are everywhere. */
const literalBytesMin = 2
const caseBit = 0x20

type Run = [byte: number, mask: number][]

/** Literals of which every match contains at least one; none when there is no good choice. */
export function requiredLiterals(expression: Expression): Literal[] {
  const runs = best(expression)
  if (!runs || runs.some((run) => run.length < literalBytesMin)) return []
  return runs.map(literalOf)
}

/** The text itself, when it is made of bytes alone: cases differ for ASCII letters only. */
export function exactLiteral(text: string, ignoreCase: boolean): Literal | null {
  if (ignoreCase && [...text].some((character) => character > '\x7f' && hasCase(character))) return null
  const bytes = [...new TextEncoder().encode(text)]
  return literalOf(
    bytes.map((byte) => (ignoreCase && isLetter(byte) ? [byte | caseBit, caseBit] : [byte, 0])),
  )
}

function hasCase(character: string): boolean {
  return character.toLowerCase() !== character || character.toUpperCase() !== character
}

function isLetter(byte: number): boolean {
  const lower = byte | caseBit
  return lower >= 0x61 && lower <= 0x7a
}

function literalOf(run: Run): Literal {
  return {
    bytes: Uint8Array.from(run, ([byte]) => byte),
    masks: Uint8Array.from(run, ([, mask]) => mask),
  }
}

function best(expression: Expression): Run[] | null {
  switch (expression.kind) {
    case 'class': {
      const run = runOf(expression.set)
      return run && [run]
    }
    case 'repeat':
      return expression.min > 0 ? best(expression.item) : null
    case 'choice': {
      const each = expression.items.map(best)
      const all = each.flatMap((runs) => runs ?? [])
      return each.includes(null) || all.length > literalsMax ? null : all
    }
    case 'sequence':
      return bestOfSequence(expression.items)
    default:
      return null
  }
}

function bestOfSequence(items: Expression[]): Run[] | null {
  let found: Run[] | null = null
  let run: Run = []
  const offer = (runs: Run[] | null) => {
    if (runs && (!found || worth(runs) > worth(found))) found = runs
  }
  const endRun = () => {
    if (run.length > 0) offer([run])
    run = []
  }
  const visit = (item: Expression) => {
    const own = item.kind === 'class' ? runOf(item.set) : null
    if (own) run.push(...own)
    else if (item.kind === 'sequence') item.items.forEach(visit)
    // What takes no room leaves its neighbours side by side.
    else if (item.kind !== 'assert' && item.kind !== 'empty') {
      endRun()
      offer(best(item))
    }
  }
  items.forEach(visit)
  endRun()
  return found
}

function worth(runs: Run[]): number {
  return Math.min(...runs.map((run) => run.length)) - runs.length / 2
}

function runOf(set: Ranges): Run | null {
  const codePoints = set.flatMap(([first, last]) =>
    last - first > 1 ? [-1, -1, -1] : last > first ? [first, last] : [first],
  )
  const [first, second] = codePoints
  if (first === undefined || first < 0) return null
  if (codePoints.length === 1) {
    return [...new TextEncoder().encode(String.fromCodePoint(first))].map((byte) => [byte, 0])
  }
  const areCases = codePoints.length === 2 && isLetter(first) && first < 0x80 && second === (first | caseBit)
  return areCases ? [[first | caseBit, caseBit]] : null
}
