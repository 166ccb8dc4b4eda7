/** The words of a command that has nothing in it for a shell to do but to part them; null for any other. */
export function plainWords(command: string): string[] | null {
  const words: string[] = []
  const pattern = /\s*(?:((?:[^\s'"\\|&;<>()$`*?[\]#~={}!]|=)+|'[^']*'|"[^"\\$`!]*")+)(?=\s|$)/y
  while (pattern.lastIndex < command.trimEnd().length) {
    const match = pattern.exec(command)
    if (!match) return null
    words.push(match[0].trim().replace(/'([^']*)'|"([^"]*)"/g, (_, single, double) => single ?? double))
  }
  // Whose place it would take is not there: it is the first program anyway.
  if (words[0] === 'exec' && words.length > 1) words.shift()
  return words.length > 0 && !words[0]!.includes('=') ? words : null
}
