/** One word as a POSIX shell reads it back. */
export function shellQuote(word: string): string {
  if (/^[A-Za-z0-9_\-./:@%+=,]+$/.test(word)) return word
  return `'${word.replaceAll("'", `'\\''`)}'`
}

export function shellJoin(words: string[]): string {
  return words.map(shellQuote).join(' ')
}
