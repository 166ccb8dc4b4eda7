import { NamePattern } from './name-pattern.ts'

/** Of all files of a project together. */
const rulesMax = 5000
const ruleCharactersMax = 1024
/** After so much work the rest counts as not ignored. */
const stepsMax = 20_000_000
/** Globs of directories that a walk is told to leave out. */
const prunedMax = 150

/** `**` for any number of directories, none included. */
type Step = NamePattern | '**'

interface Rule {
  /** Takes back what a rule before it says. */
  negated: boolean
  directoriesOnly: boolean
  /** Of the path below the rule's file; one without a slash begins with `**`. */
  steps: Step[]
}

/**
 * The rules of the .gitignore files of a tree, as git reads them: in a file the last one that fits decides, the nearest
 * file before the others, and below an ignored directory nothing is taken back.
 */
export class IgnoreRules {
  readonly #files = new Map<string, Rule[]>()
  readonly #directories = new Map<string, boolean>()
  readonly #from: string
  #rules = 0
  #steps = 0

  /** `from` counts as not ignored whatever the rules say, and with it all above it. */
  constructor(from: string) {
    this.#from = from
  }

  /** `directory` is '' or relative to the top of the tree, like every path here. Before any question about it. */
  add(directory: string, text: string): void {
    const rules: Rule[] = []
    for (const line of text.split(/\r?\n/)) {
      if (this.#rules >= rulesMax) break
      const rule = parseRule(line)
      if (rule === null) continue
      rules.push(rule)
      this.#rules++
    }
    // In the order in which they are asked: the last one first.
    if (rules.length > 0) this.#files.set(directory, rules.reverse())
  }

  /** Not all rules were looked at for every path. */
  get incomplete(): boolean {
    return this.#rules >= rulesMax || this.#steps >= stepsMax
  }

  ignoresFile(path: string): boolean {
    const parent = parentOf(path)
    return (parent !== null && this.#ignoresDirectory(parent)) || this.#decides(path, false)
  }

  /** Directories below `from`, as globs, of which no file takes anything back: nobody need look into them. */
  prunedDirectories(): string[] {
    const every = [...this.#files.values()].flat()
    const takenBack = every.filter(({ negated }) => negated).map(({ steps }) => steps.at(-1))
    const globs = new Set<string>()
    for (const [directory, rules] of this.#files) {
      const inside = this.#insideOf(directory)
      for (const { negated, steps } of rules) {
        const texts = steps.map((step) => (step === '**' ? step : step.literal))
        const last = texts.at(-1)
        if (negated || last == null || texts.includes(null) || globs.size >= prunedMax) continue
        if (takenBack.some((other) => other === '**' || other?.fits(last))) continue
        const [first, ...others] = texts
        const isName = first === '**' && others.length === 1
        if (isName && !inside) globs.add(escaped(last))
        else if (inside !== null) {
          const names = [...inside.split('/'), ...texts].filter((name) => name !== null && name !== '')
          globs.add(`/${names.map((name) => (name === '**' ? name : escaped(name as string))).join('/')}`)
        }
      }
    }
    return [...globs]
  }

  /** Relative to `from`; null for what is above it. */
  #insideOf(directory: string): string | null {
    if (directory === this.#from) return ''
    const prefix = this.#from === '' ? '' : `${this.#from}/`
    return directory.startsWith(prefix) ? directory.slice(prefix.length) : null
  }

  #ignoresDirectory(path: string): boolean {
    if (path.length <= this.#from.length) return false
    const known = this.#directories.get(path)
    if (known !== undefined) return known
    const parent = parentOf(path)
    const ignored = (parent !== null && this.#ignoresDirectory(parent)) || this.#decides(path, true)
    this.#directories.set(path, ignored)
    return ignored
  }

  #decides(path: string, isDirectory: boolean): boolean {
    if (this.#steps >= stepsMax) return false
    const names: string[] = []
    for (let place: string | null = path; place !== null; ) {
      const parent: string | null = parentOf(place)
      names.unshift(parent === null ? place : place.slice(parent.length + 1))
      for (const rule of this.#files.get(parent ?? '') ?? []) {
        this.#steps++
        if (rule.directoriesOnly && !isDirectory) continue
        if (this.#fits(rule.steps, names)) return !rule.negated
      }
      place = parent
    }
    return false
  }

  /** As `NamePattern.fits`, over names instead of characters. */
  #fits(steps: Step[], names: string[]): boolean {
    let at = 0
    let step = 0
    let many = -1
    let reach = 0
    while (at < names.length) {
      if (this.#steps >= stepsMax) return false
      const next = steps[step]
      const name = names[at]!
      this.#steps += typeof next === 'object' ? next.stepsFor(name) : 1
      if (next === '**') {
        many = step++
        reach = at
      } else if (next?.fits(name)) {
        step++
        at++
      } else if (many >= 0) {
        step = many + 1
        at = ++reach
      } else return false
    }
    return step === steps.length
  }
}

function parseRule(line: string): Rule | null {
  if (line === '' || line.startsWith('#') || line.length > ruleCharactersMax) return null
  const negated = line.startsWith('!')
  const text = withoutLast(negated ? line.slice(1) : line, ' ')
  const path = withoutLast(text, '/')
  const names = path.split('/')
  const anchored = names.length > 1
  if (names[0] === '') names.shift()
  if (names.length === 0) return null
  const steps: Step[] = anchored ? [] : ['**']
  for (const [index, name] of names.entries()) {
    if (/^\*\*+$/.test(name)) {
      if (steps.at(-1) !== '**') steps.push('**')
      // What is inside, and not the directory itself.
      if (index === names.length - 1) steps.push(anyName)
      continue
    }
    const pattern = name === '' ? null : NamePattern.parse(name)
    if (pattern === null) return null
    steps.push(pattern)
  }
  return { negated, directoriesOnly: path.length < text.length, steps }
}

/** As many of one character as stand at the end, up to one behind a `\`. */
function withoutLast(text: string, character: string): string {
  let end = text.length
  while (end > 0 && text[end - 1] === character && text[end - 2] !== '\\') end--
  return text.slice(0, end)
}

const anyName = NamePattern.parse('*')!

/** Null for a name at the top. */
function parentOf(path: string): string | null {
  const slash = path.lastIndexOf('/')
  return slash === -1 ? null : path.slice(0, slash)
}

function escaped(name: string): string {
  return name.replace(/[\\*?[\]{},]/g, '\\$&')
}
