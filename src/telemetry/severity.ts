/** How grave a line is, by the numbers of OpenTelemetry: the first of each range stands for all of it. */
export const severityNumbers = {
  UNKNOWN: 0,
  TRACE: 1,
  DEBUG: 5,
  INFO: 9,
  WARNING: 13,
  ERROR: 17,
  FATAL: 21,
} as const
export type SeverityName = keyof typeof severityNumbers

const words: Record<string, SeverityName> = {
  trace: 'TRACE',
  debug: 'DEBUG',
  info: 'INFO',
  notice: 'INFO',
  warn: 'WARNING',
  warning: 'WARNING',
  error: 'ERROR',
  err: 'ERROR',
  fatal: 'FATAL',
  critical: 'FATAL',
  panic: 'FATAL',
}

/** Further in, such a word is part of what is said. */
const levelCharsMax = 120
/** As loggers write it: a word of its own before what is said (`INFO:`, `[warn]`, `2030-01-01 ERROR main:`) ... */
const leading = /^[\s[<(]*(?:[\d:T.,Z+/-]+[\s\]|]+)*[[<(]?([A-Za-z]{3,8})[\]>)]?(?=[\s:|,]|$)/
/** ... after the name of who says it, as package managers do ... */
const afterName = /^(?:npm|pnpm|yarn|bun|uv|pip)\s+([A-Za-z]{3,8})\b/i
/** ... or as a field of JSON or of logfmt. */
const field = /["']?\b(?:level|severity|lvl)["']?\s*[:=]\s*["']?([A-Za-z]{3,8})\b/i

/** What a line says of itself; null when it says nothing. Costs the same however long it is. */
export function severityIn(line: string): SeverityName | null {
  const head = line.slice(0, levelCharsMax)
  for (const pattern of [leading, afterName, field]) {
    const word = pattern.exec(head)?.[1]
    if (word === undefined) continue
    // `Error: no such file` is one, and `info desk opened` is none.
    const known = words[word.toLowerCase()]
    if (known !== undefined && (pattern !== leading || isLevel(word, head))) return known
  }
  return null
}

function isLevel(word: string, head: string): boolean {
  if (word === word.toUpperCase()) return true
  const at = head.indexOf(word)
  return /[[<(]$/.test(head.slice(0, at)) || /^[\]>):|]/.test(head.slice(at + word.length))
}
