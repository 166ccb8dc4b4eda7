import type { Ranges } from './code-points.ts'

/** What a pattern means, before it is a program. */
export type Expression =
  | { kind: 'empty' }
  | { kind: 'class'; set: Ranges }
  | { kind: 'sequence'; items: Expression[] }
  | { kind: 'choice'; items: Expression[] }
  | { kind: 'repeat'; item: Expression; min: number; max: number; greedy: boolean }
  | { kind: 'assert'; what: Assertion }

export type Assertion = 'start' | 'end' | 'word boundary' | 'no word boundary'

/** Of a pattern that means nothing, or too much. Its message is public: it says what is wrong and where. */
export class PatternError extends Error {
  override readonly name = 'PatternError'
}
