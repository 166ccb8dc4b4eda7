import type { Ranges } from './code-points.ts'
import { type Assertion, type Expression, PatternError } from './expression.ts'
import { utf8Ranges } from './utf8.ts'

/**
 * A pattern as what both the guest and this process run: an automaton over bytes. It begins at `start`; `out` and `alt`
 * are indexes of instructions.
 */
export interface Program {
  start: number
  code: Instruction[]
}

export type Instruction =
  | { op: 'match' }
  | { op: 'bytes'; low: number; high: number; out: number }
  /** Both ways at once, `out` preferred. */
  | { op: 'split'; out: number; alt: number }
  | { op: 'assert'; what: Assertion; out: number }

const instructionsMax = 16_000
const instructionBytes = 8

/** @throws PatternError when it takes too many instructions */
export function compile(expression: Expression): Program {
  const compiler = new Compiler()
  const match = compiler.emit({ op: 'match' })
  const start = compiler.compile(expression, match)
  return { start, code: compiler.code }
}

class Compiler {
  readonly code: Instruction[] = []

  emit(instruction: Instruction): number {
    if (this.code.length >= instructionsMax) throw new PatternError('the pattern is too large')
    return this.code.push(instruction) - 1
  }

  /** From back to front: `next` is what comes behind. */
  compile(expression: Expression, next: number): number {
    switch (expression.kind) {
      case 'empty':
        return next
      case 'assert':
        return this.emit({ op: 'assert', what: expression.what, out: next })
      case 'class':
        return this.bytes(expression.set, next)
      case 'sequence':
        return expression.items.reduceRight((behind, item) => this.compile(item, behind), next)
      case 'choice':
        return this.either(expression.items.map((item) => this.compile(item, next)))
      case 'repeat':
        return this.repeat(expression, next)
    }
  }

  private either(starts: number[]): number {
    return starts.reduceRight((alt, out) => this.emit({ op: 'split', out, alt }))
  }

  private repeat({ item, min, max, greedy }: Extract<Expression, { kind: 'repeat' }>, next: number): number {
    const optional = (out: number, skip: number) =>
      this.emit(greedy ? { op: 'split', out, alt: skip } : { op: 'split', out: skip, alt: out })
    let start = next
    if (max === Number.POSITIVE_INFINITY) {
      const loop = optional(next, next)
      const body = this.compile(item, loop)
      this.code[loop] = { op: 'split', out: greedy ? body : next, alt: greedy ? next : body }
      start = loop
    } else {
      for (let count = min; count < max; count++) start = optional(this.compile(item, start), next)
    }
    for (let count = 0; count < min; count++) {
      const before = start
      start = this.compile(item, before)
      // What takes no instruction takes none however often, and repetitions of repetitions would go on for years.
      if (start === before) break
    }
    return start
  }

  private bytes(set: Ranges, next: number): number {
    const shared = new Map<string, number>()
    const starts = new Set<number>()
    for (const spelling of utf8Ranges(set)) {
      let out = next
      for (const [low, high] of spelling.toReversed()) {
        const key = `${low} ${high} ${out}`
        const known = shared.get(key)
        out = known ?? this.emit({ op: 'bytes', low, high, out })
        if (known === undefined) shared.set(key, out)
      }
      starts.add(out)
    }
    return this.either([...starts])
  }
}

const operations = { match: 0, bytes: 1, split: 2, assert: 3 }
const assertions: Record<Assertion, number> = {
  start: 0,
  end: 1,
  'word boundary': 2,
  'no word boundary': 3,
}

/** Eight bytes an instruction: operation, low (or which assertion), high, 0, u16 out, u16 alt. */
export function encodeCode(program: Program): Uint8Array {
  const bytes = new Uint8Array(program.code.length * instructionBytes)
  const view = new DataView(bytes.buffer)
  for (const [index, instruction] of program.code.entries()) {
    const at = index * instructionBytes
    bytes[at] = operations[instruction.op]
    if (instruction.op === 'bytes') {
      bytes[at + 1] = instruction.low
      bytes[at + 2] = instruction.high
    }
    if (instruction.op === 'assert') bytes[at + 1] = assertions[instruction.what]
    if (instruction.op !== 'match') view.setUint16(at + 4, instruction.out, true)
    if (instruction.op === 'split') view.setUint16(at + 6, instruction.alt, true)
  }
  return bytes
}
