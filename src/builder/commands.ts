/** From a line of a project's settings to the argument vector that a program is started with. */

/** Scripts that name scripts. */
const aliasesMax = 8
/** What a shell would read as more than words. */
const shellCharacters = /[|&;<>()$`"'\\*?[\]#~{}!\n]/
const assignment = /^[A-Za-z_]\w*=/
const builtins = new Set([
  'cd',
  'exec',
  'export',
  'source',
  '.',
  'set',
  'ulimit',
  'eval',
  'exit',
  'umask',
  'test',
  'true',
])

export interface Scripts {
  readonly [name: string]: string
}

/**
 * What a line starts, without the package manager between: `npm run prod` is the script itself, which starts a quarter of
 * a second earlier. Lines that are more than words are a shell's.
 */
export function programOf(line: string, scripts: Scripts): string[] {
  let text = line.trim()
  const before: string[] = []
  const seen = new Set<string>()
  for (let aliases = 0; aliases < aliasesMax; aliases++) {
    const name = scriptOf(text)
    const script = name === null || seen.has(name) ? undefined : scripts[name]
    if (name === null || script === undefined) break
    seen.add(name)
    const pre = scripts[`pre${name}`]
    if (pre !== undefined) before.push(pre)
    text = script.trim()
  }
  if (before.length > 0) return shell([...before, text].join(' && '))
  const words = text.split(/\s+/)
  const isPlain = !shellCharacters.test(text) && !assignment.test(words[0]!) && !builtins.has(words[0]!)
  return isPlain ? words : shell(text)
}

/** The script that a line runs by the package manager; null: it does something else. */
function scriptOf(line: string): string | null {
  const run = /^(?:npm|pnpm|yarn|bun)\s+(?:run|run-script)\s+(?:--silent\s+|-s\s+)?([\w:.-]+)$/.exec(line)
  if (run) return run[1]!
  const short = /^(?:npm|pnpm|yarn)\s+(start|test)$/.exec(line) ?? /^(?:pnpm|yarn)\s+([\w:.-]+)$/.exec(line)
  return short ? short[1]! : null
}

export function shell(line: string): string[] {
  return ['/bin/sh', '-c', line]
}
