import { nearest } from '../lib/nearest.ts'
import { shellJoin, shellQuote } from './shell.ts'

/** One command: what it takes, said once, for the parser and for `--help`. */
export interface Command<Flags extends FlagTable = FlagTable> {
  /** e.g. `sandbox create` */
  name: string
  summary: string
  /** What follows the name, e.g. `NAME [-- COMMAND ARG...]`. */
  usage?: string
  flags: Flags
  /** Smallest and largest number of positional arguments. */
  positionals?: [min: number, max: number]
  /** What follows `--` goes to `rest` untouched. Without this, `--` is refused. */
  takesRest?: boolean
  /** Lines after the flags in `--help`. */
  notes?: string[]
  /** Answers the exit code. */
  run(input: CommandInput<Flags>): Promise<number>
}

export interface Flag {
  kind: 'text' | 'number' | 'boolean' | 'list'
  about: string
  /** How the value is called in help, e.g. `DIR`. */
  value?: string
  short?: string
}

export type FlagTable = Record<string, Flag>

type FlagValue<Kind extends Flag['kind']> = Kind extends 'boolean'
  ? boolean
  : Kind extends 'number'
    ? number
    : Kind extends 'list'
      ? string[]
      : string

export interface CommandInput<Flags extends FlagTable = FlagTable> {
  /** By flag name without dashes; absent ones undefined. */
  flags: { [Name in keyof Flags]?: FlagValue<Flags[Name]['kind']> } & { json?: boolean }
  positionals: string[]
  rest: string[]
}

/** The person typed something that the command does not take: exit code 2. */
export class UsageError extends Error {}

/** Something failed; `hint` is the next command to type. Exit code 1. */
export class CommandError extends Error {
  constructor(
    message: string,
    readonly hint?: string,
  ) {
    super(message)
  }
}

export const outputFormats: readonly string[] = ['pretty', 'yaml', 'json', 'table']

const commonFlags = {
  json: { kind: 'boolean', about: 'print JSON, for programs' },
  help: { kind: 'boolean', about: 'print this', short: 'h' },
} as const satisfies FlagTable

/**
 * Flags that the cloud's command line takes everywhere, and lines written for it have: a command without one of its own takes
 * it, too. What is printed is not made different by any but `--output json` and, of a failure, `--verbose`.
 */
const cloudFlags = {
  output: { kind: 'text', about: '', short: 'o' },
  verbose: { kind: 'boolean', about: '', short: 'v' },
  utc: { kind: 'boolean', about: '', short: 'u' },
  'skip-version-warning': { kind: 'boolean', about: '' },
} as const satisfies FlagTable

/** Flags of every command that talks to a running platform. */
export const connectionFlags = {
  'data-dir': {
    kind: 'text',
    value: 'DIR',
    about: 'data directory of the running platform (else HUTCH_DATA_DIR, or BL_API_URL and BL_API_KEY)',
  },
  workspace: { kind: 'text', value: 'NAME', short: 'w', about: 'workspace to act in' },
} as const satisfies FlagTable

/** Identity, for inference of flag types. */
export function command<Flags extends FlagTable>(definition: Command<Flags>): Command {
  return definition as unknown as Command
}

/** @throws UsageError */
export function parseArguments(definition: Command, argv: string[]): CommandInput & { help: boolean } {
  const known: FlagTable = { ...definition.flags, ...commonFlags }
  const table: FlagTable = { ...cloudFlags, ...known }
  const flags: Record<string, string | string[] | number | boolean> = {}
  const positionals: string[] = []
  let rest: string[] = []
  const positionalsMax = definition.positionals?.[1] ?? 0
  for (let index = 0; index < argv.length; index++) {
    const word = argv[index]!
    if (word === '--') {
      if (!definition.takesRest) throw new UsageError(`hutch ${definition.name} takes nothing after --`)
      rest = argv.slice(index + 1)
      break
    }
    if (!word.startsWith('-') || word === '-') {
      // What follows may be flags of the command inside, which are none of ours.
      if (definition.takesRest && positionals.length === positionalsMax && !flags.help) {
        throw withoutDashes(definition, argv, index)
      }
      positionals.push(word)
      continue
    }
    const [spelled, inline] = splitFlag(word)
    const name = flagNamed(table, spelled)
    if (name === null) throw unknownFlag(spelled, known)
    const flag = table[name]!
    if (flag.kind === 'boolean') {
      if (inline !== undefined && !['true', 'false'].includes(inline)) {
        throw new UsageError(`--${name} takes no value, or true or false; not ${JSON.stringify(inline)}`)
      }
      flags[name] = inline !== 'false'
      continue
    }
    const value = inline ?? argv[++index]
    if (!value || (inline === undefined && value.startsWith('--'))) {
      throw new UsageError(`--${name} needs a value: --${name} ${flag.value ?? 'VALUE'}`)
    }
    setValue(flags, name, flag, value)
  }
  for (const name of Object.keys(cloudFlags)) {
    if (Object.hasOwn(known, name)) continue
    if (name === 'output' && flags.output !== undefined) checkOutput(flags)
    delete flags[name]
  }
  const help = flags.help === true
  if (!help) checkPositionals(definition, positionals)
  return { flags: flags as CommandInput['flags'], positionals, rest, help }
}

/** Of a command that says the same in every format but JSON. */
function checkOutput(flags: Record<string, unknown>): void {
  if (!outputFormats.includes(String(flags.output)))
    throw new UsageError(`--output ${JSON.stringify(flags.output)} is none of ${outputFormats.join(', ')}`)
  if (flags.output === 'json') flags.json = true
}

function setValue(
  flags: Record<string, string | string[] | number | boolean>,
  name: string,
  flag: Flag,
  value: string,
): void {
  if (flag.kind === 'list') {
    const list = (flags[name] as string[] | undefined) ?? []
    flags[name] = [...list, value]
    return
  }
  if (name in flags) throw new UsageError(`--${name} is given twice`)
  if (flag.kind === 'number' && !/^\d{1,15}$/.test(value)) {
    throw new UsageError(`--${name}: ${JSON.stringify(value)} is not a whole number`)
  }
  flags[name] = flag.kind === 'number' ? Number(value) : value
}

function splitFlag(word: string): [string, string | undefined] {
  const equals = word.startsWith('--') ? word.indexOf('=') : -1
  return equals === -1 ? [word, undefined] : [word.slice(0, equals), word.slice(equals + 1)]
}

function flagNamed(table: FlagTable, spelled: string): string | null {
  if (spelled.startsWith('--')) {
    const name = spelled.slice(2)
    return Object.hasOwn(table, name) ? name : null
  }
  // The command's own, which stand last, go before those of every command.
  return Object.keys(table).findLast((name) => table[name]!.short === spelled.slice(1)) ?? null
}

function unknownFlag(spelled: string, table: FlagTable): UsageError {
  const names = Object.keys(table).map((name) => `--${name}`)
  const guess = nearest(spelled, names)
  const meant = guess ? `; did you mean ${guess}?` : `; it takes ${names.join(', ')}`
  return new UsageError(`unknown flag ${spelled}${meant}`)
}

/** The command that is to run inside begins at `at`, and nothing parts it from our own words. */
function withoutDashes(definition: Command, argv: string[], at: number): UsageError {
  const inside = argv.slice(at).filter((word) => word !== '--')
  const line = `hutch ${definition.name} ${shellJoin(argv.slice(0, at))} -- ${shellJoin(inside)}`
  return new UsageError(`unexpected argument ${JSON.stringify(argv[at])}; put -- before the command: ${line}`)
}

function checkPositionals(definition: Command, positionals: string[]): void {
  const [min, max] = definition.positionals ?? [0, 0]
  if (positionals.length >= min && positionals.length <= max) return
  const usage = `hutch ${definition.name} ${definition.usage ?? ''}`.trim()
  if (positionals.length > max) {
    throw new UsageError(`unexpected argument ${JSON.stringify(positionals[max])}; usage: ${usage}`)
  }
  const missing = (definition.usage ?? '').split(' ')[positionals.length]?.replace('...', '')
  throw new UsageError(`${missing} is missing; usage: ${usage}`)
}

/** Which platform and workspace a command was pointed at. */
export interface Target {
  'data-dir'?: string | undefined
  workspace?: string | undefined
}

/** `line` with the flags that reach the same platform and workspace, so that it works when typed as it stands. */
export function sameTarget(line: string, flags: Target): string {
  const dataDir = flags['data-dir'] === undefined ? '' : ` --data-dir ${shellQuote(flags['data-dir'])}`
  const workspace = flags.workspace === undefined ? '' : ` --workspace ${shellQuote(flags.workspace)}`
  // What follows a lone -- belongs to the command inside.
  const at = line.includes(' -- ') ? line.indexOf(' -- ') : line.length
  return line.slice(0, at) + dataDir + workspace + line.slice(at)
}

export function helpText(definition: Command): string {
  const table: FlagTable = { ...definition.flags, ...commonFlags }
  const rows = Object.entries(table).map(([name, flag]) => {
    const short = flag.short ? `-${flag.short}, ` : ''
    const value = flag.kind === 'boolean' ? '' : ` ${flag.value ?? (flag.kind === 'number' ? 'N' : 'VALUE')}`
    return [`${short}--${name}${value}`, flag.about + (flag.kind === 'list' ? ' (repeatable)' : '')] as const
  })
  const width = Math.max(...rows.map(([left]) => left.length))
  const lines = [
    definition.summary,
    '',
    `Usage: hutch ${definition.name} [flags] ${definition.usage ?? ''}`.trimEnd(),
    '',
    ...rows.map(([left, right]) => `  ${left.padEnd(width)}  ${right}`),
  ]
  if (definition.notes) lines.push('', ...definition.notes)
  return `${lines.join('\n')}\n`
}
