import type { Assertion } from './expression.ts'
import type { Program } from './program.ts'

/** Runs a program over bytes, for drivers without a guest and as what the guest is held against. Linear in the text. */
export class Matcher {
  constructor(private readonly program: Program) {}

  test(text: string): boolean {
    return this.find(new TextEncoder().encode(text)) !== null
  }

  /** The leftmost match, in bytes; of those that start there the one that the pattern prefers. */
  find(text: Uint8Array): { start: number; end: number } | null {
    const { code, start: first } = this.program
    let threads: { at: number; start: number }[] = []
    let found: { start: number; end: number } | null = null
    for (let at = 0; at <= text.length; at++) {
      const seen = new Set<number>()
      const ready: { at: number; start: number }[] = []
      const add = (from: number, start: number) => {
        const stack = [from]
        for (let next = stack.pop(); next !== undefined; next = stack.pop()) {
          if (seen.has(next)) continue
          seen.add(next)
          const instruction = code[next]
          if (instruction?.op === 'split') stack.push(instruction.alt, instruction.out)
          else if (instruction?.op === 'assert') {
            if (holds(instruction.what, text, at)) stack.push(instruction.out)
          } else ready.push({ at: next, start })
        }
      }
      for (const thread of threads) add(thread.at, thread.start)
      if (!found) add(first, at)
      threads = []
      for (const thread of ready) {
        const instruction = code[thread.at]
        if (instruction?.op === 'match') {
          found = { start: thread.start, end: at }
          break
        }
        const byte = text[at] ?? -1
        if (instruction?.op === 'bytes' && byte >= instruction.low && byte <= instruction.high) {
          threads.push({ at: instruction.out, start: thread.start })
        }
      }
      if (found && threads.length === 0) break
    }
    return found
  }
}

function holds(what: Assertion, text: Uint8Array, at: number): boolean {
  if (what === 'start') return at === 0
  if (what === 'end') return at === text.length
  return (isWord(text[at - 1]) !== isWord(text[at])) === (what === 'word boundary')
}

function isWord(byte: number | undefined): boolean {
  if (byte === undefined) return false
  return (
    (byte >= 0x30 && byte <= 0x39) ||
    byte === 0x5f ||
    ((byte | 0x20) >= 0x61 && (byte | 0x20) <= 0x7a && byte < 0x80)
  )
}
