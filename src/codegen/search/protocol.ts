import type { Found, Question } from './code-index.ts'

/** Messages between the platform's thread and the one that holds the indexes. */

export type ToIndexes = { id: number; index: number } & (
  | { type: 'update'; add: { path: string; bytes: Uint8Array }[]; remove: string[] }
  | { type: 'search'; question: Question }
  | { type: 'drop' }
)

export type FromIndexes =
  | { id: number; ok: true; files: number; bytes: number; found: Found[] }
  | { id: number; ok: false; reason: string }
