import { expect, test } from 'bun:test'
import { configKeys, flagOf } from '../config.ts'
import { command, helpText, parseArguments, sameTarget, UsageError } from './command.ts'
import { up } from './up.ts'

const example = command({
  name: 'box make',
  summary: 'Makes a box.',
  usage: 'NAME [SIZE] -- COMMAND',
  flags: {
    memory: { kind: 'number', value: 'MB', about: 'how much' },
    label: { kind: 'list', short: 'l', about: 'a label' },
    force: { kind: 'boolean', about: 'anyway' },
    'data-dir': { kind: 'text', value: 'DIR', about: 'where' },
  },
  positionals: [1, 2],
  takesRest: true,
  run: async () => 0,
})

function refusal(argv: string[]): string {
  try {
    parseArguments(example, argv)
  } catch (error) {
    if (error instanceof UsageError) return error.message
    throw error
  }
  throw new Error('it was accepted')
}

test('flags, arguments and the rest are told apart', () => {
  const parsed = parseArguments(example, [
    'a',
    '--memory',
    '64',
    '-l',
    'x=1',
    '--label=y=2',
    '--force',
    '--data-dir=/d',
    '--',
    '--memory',
    '-z',
  ])
  expect(parsed.flags as unknown).toEqual({
    memory: 64,
    label: ['x=1', 'y=2'],
    force: true,
    'data-dir': '/d',
  })
  expect(parsed.positionals).toEqual(['a'])
  expect(parsed.rest).toEqual(['--memory', '-z'])
})

test.each([
  [['a', '--memroy', '1'], 'unknown flag --memroy; did you mean --memory?'],
  [['a', '--zzzzzzzzzz'], 'it takes --memory'],
  [['a', '-q'], 'unknown flag -q'],
  [['a', '--memory'], '--memory needs a value'],
  [['a', '--memory', '--force'], '--memory needs a value'],
  [['a', '--memory', '1.5'], 'not a whole number'],
  [['a', '--memory=1', '--memory=2'], 'given twice'],
  [['a', '--force=perhaps'], 'takes no value'],
  [['a', 'b', 'c'], 'unexpected argument "c"; put -- before the command: hutch box make a b -- c'],
  [
    ['--force', 'a', 'b', 'df', '-h', 'it is'],
    'unexpected argument "df"; put -- before the command: hutch box make --force a b -- df -h \'it is\'',
  ],
  [[], 'NAME is missing; usage: hutch box make NAME [SIZE] -- COMMAND'],
  [['a', '--data-dir='], '--data-dir needs a value'],
  [['a', '--data-dir', ''], '--data-dir needs a value'],
  [['a', '--constructor'], 'unknown flag'],
])('%j is refused', (argv, message) => {
  expect(refusal(argv)).toContain(message)
})

test('a command that is proposed reaches the same platform and workspace', () => {
  const target = { 'data-dir': '/a b', workspace: 'team' }
  expect(sameTarget('hutch sandbox ls', {})).toBe('hutch sandbox ls')
  expect(sameTarget('hutch sandbox ls', target)).toBe("hutch sandbox ls --data-dir '/a b' --workspace team")
  expect(sameTarget('hutch sandbox exec box -- ls --all', target)).toBe(
    "hutch sandbox exec box --data-dir '/a b' --workspace team -- ls --all",
  )
})

test("flags that the cloud's command line takes everywhere are taken, and a command's own go before them", () => {
  const flagsOf = (...more: string[]) => parseArguments(example, ['a', ...more]).flags as unknown
  expect(flagsOf('-v', '-u', '--skip-version-warning', '-o', 'yaml')).toEqual({})
  expect(flagsOf('--output', 'json', '--verbose', '--utc')).toEqual({ json: true })
  expect(refusal(['a', '-o', 'smoke'])).toBe('--output "smoke" is none of pretty, yaml, json, table')
  expect(refusal(['a', '--skip'])).not.toContain('--skip-version-warning')
  const flags = { upper: { kind: 'boolean', short: 'u', about: 'in capitals' } } as const
  const own = command({ ...example, flags })
  expect(parseArguments(own, ['a', '-u', '-v']).flags as unknown).toEqual({ upper: true })
})

test('--help needs nothing else', () => {
  expect(parseArguments(example, ['--help']).help).toBe(true)
})

test('help lists every flag with what it takes', () => {
  const help = helpText(example)
  for (const part of [
    'Usage: hutch box make [flags] NAME [SIZE] -- COMMAND',
    '--memory MB',
    '-l, --label VALUE',
    '(repeatable)',
    '--json',
  ]) {
    expect(help).toContain(part)
  }
})

test('every setting is a flag of up', () => {
  expect(configKeys.filter((key) => !Object.hasOwn(up.flags, flagOf(key)))).toEqual([])
})
