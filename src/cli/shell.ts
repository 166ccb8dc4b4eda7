import { realpathSync } from 'node:fs'
import { basename } from 'node:path'

/** One word as a POSIX shell reads it back. */
export function shellQuote(word: string): string {
  if (/^[A-Za-z0-9_\-./:@%+=,]+$/.test(word)) return word
  return `'${word.replaceAll("'", `'\\''`)}'`
}

export function shellJoin(words: string[]): string {
  return words.map(shellQuote).join(' ')
}

/** A command line of ours as it must be typed in this shell: by its path where `hutch` alone is not found. */
export function spelled(line: string): string {
  return line.replace(/(^|\$\()hutch(?= |$)/, (_, before: string) => before + programName())
}

function programName(): string {
  // Run from its sources, the program is Bun, and whoever does that knows.
  if (!basename(process.execPath).startsWith('hutch')) return 'hutch'
  const found = Bun.which('hutch')
  return found !== null && isSame(found, process.execPath) ? 'hutch' : shellQuote(process.execPath)
}

function isSame(one: string, other: string): boolean {
  try {
    return realpathSync(one) === realpathSync(other)
  } catch {
    return false
  }
}
