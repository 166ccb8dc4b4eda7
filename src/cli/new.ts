import { chmodSync, mkdirSync, readdirSync, writeFileSync } from 'node:fs'
import { basename, dirname, join, relative, resolve } from 'node:path'
import packed from '../../dist/templates.packed' with { type: 'text' }
import { CommandError, command, UsageError } from './command.ts'
import { note, print, printJson } from './output.ts'
import { ask, canAsk, choose } from './prompt.ts'
import { shellQuote, spelled } from './shell.ts'

type Templates = Record<string, Record<string, { text: string; mode: number }>>

const types = [
  { name: 'agent', about: 'an HTTP server that answers messages' },
  { name: 'mcp', about: 'a server of tools for agents' },
  { name: 'sandbox', about: 'a machine with an image of your own' },
  { name: 'job', about: 'a program that is run to its end, for many tasks at once' },
]
const typeAliases: Record<string, string> = {
  function: 'mcp',
  'mcp-server': 'mcp',
  agents: 'agent',
  jobs: 'job',
}
const languages = [
  { name: 'typescript', about: 'Node' },
  { name: 'python', about: '' },
]
const languageAliases: Record<string, string> = { ts: 'typescript', py: 'python' }
const endings: Record<string, string> = { typescript: 'ts', python: 'py' }

const nameCharactersMax = 49

export const newProject = command({
  name: 'new',
  summary: 'Makes a folder with a small project that can be served, deployed and changed.',
  usage: '[TYPE] [DIR]',
  flags: {
    language: { kind: 'text', short: 'l', value: 'NAME', about: 'typescript or python (typescript)' },
    template: {
      kind: 'text',
      short: 't',
      value: 'NAME',
      about: 'in place of TYPE and language, e.g. agent-py',
    },
    yes: { kind: 'boolean', short: 'y', about: 'ask nothing: what is not said is as by default' },
  },
  notes: [
    `TYPE is ${types.map(({ name }) => name).join(', ')}. DIR is made; it may be there when it is empty.`,
    'What is not said is asked for on a terminal, and as by default elsewhere.',
    'Templates are part of this executable: nothing is downloaded.',
  ],
  positionals: [0, 2],
  async run({ flags, positionals }) {
    const templates = JSON.parse(packed) as Templates
    const asks = canAsk() && !flags.yes && !flags.json
    const template =
      flags.template === undefined
        ? await templateFor(positionals[0], flags.language, asks)
        : namedTemplate(flags.template, positionals[0], flags.language, templates)
    const type = template.slice(0, template.lastIndexOf('-'))
    // With a template named, one word is the folder, unless it is a type.
    const word =
      flags.template !== undefined && typeOf(positionals[0]) === null ? positionals[0] : positionals[1]
    const preset = `my-${type}`
    const directory = resolve(word ?? (asks ? await ask('Directory', preset) : preset))
    const name = nameFrom(basename(directory), preset)
    const files = templates[template]!
    write(directory, files, name)
    if (flags.json) printJson({ directory, name, type, template, files: Object.keys(files) })
    else {
      print(directory)
      sayWhatNext(directory, type)
    }
    return 0
  },
})

function sayWhatNext(directory: string, type: string): void {
  const place = relative(process.cwd(), directory)
  const lines = [
    ...(place === '' ? [] : [`cd ${shellQuote(place)}`]),
    ...(type === 'sandbox' ? [] : [type === 'job' ? 'hutch run job --local' : 'hutch serve --hotreload']),
    'hutch deploy',
  ]
  lines.forEach((line, index) => {
    note(`${index === 0 ? 'next:  ' : '       '}${spelled(line)}`)
  })
}

async function templateFor(
  word: string | undefined,
  language: string | undefined,
  asks: boolean,
): Promise<string> {
  const type = typeOf(word) ?? (word === undefined && asks ? await choose('What to make', types) : null)
  if (type === null) {
    const names = types.map(({ name }) => name).join(', ')
    throw new UsageError(
      word === undefined
        ? `TYPE is missing: one of ${names}`
        : `TYPE ${JSON.stringify(word)} is not one of ${names}`,
    )
  }
  const asked = language === undefined && asks ? await choose('In which language', languages) : language
  return `${type}-${endings[languageOf(asked ?? 'typescript')]}`
}

function namedTemplate(
  template: string,
  type: string | undefined,
  language: string | undefined,
  templates: Templates,
): string {
  const names = Object.keys(templates).join(', ')
  if (!Object.hasOwn(templates, template)) {
    throw new UsageError(`--template ${JSON.stringify(template)} is not one of ${names}`)
  }
  const wanted = typeOf(type)
  const fits =
    (wanted === null || template.startsWith(`${wanted}-`)) &&
    (language === undefined || template.endsWith(`-${endings[languageOf(language)]}`))
  if (!fits) throw new UsageError(`--template ${template} is of another type or language; there are ${names}`)
  return template
}

function typeOf(word: string | undefined): string | null {
  if (word === undefined) return null
  const name = Object.hasOwn(typeAliases, word) ? typeAliases[word] : word
  return types.find((type) => type.name === name)?.name ?? null
}

function languageOf(word: string): string {
  const lower = word.toLowerCase()
  const name = Object.hasOwn(languageAliases, lower) ? languageAliases[lower]! : lower
  if (!Object.hasOwn(endings, name)) {
    throw new UsageError(`--language ${JSON.stringify(word)} is not typescript or python`)
  }
  return name
}

/** A folder's name as the name of what is deployed from it. */
function nameFrom(folder: string, preset: string): string {
  const name = folder
    .toLowerCase()
    .replace(/[^a-z0-9]+/g, '-')
    .slice(0, nameCharactersMax)
    .replace(/^-+|-+$/g, '')
  return name || preset
}

function write(directory: string, files: Templates[string], name: string): void {
  mkdirSync(directory, { recursive: true })
  // What `git init` made is no project yet.
  const held = readdirSync(directory).filter((entry) => entry !== '.git')
  if (held.length > 0) {
    throw new CommandError(
      `${directory} is not empty: it holds ${held.slice(0, 3).join(', ')}`,
      `hutch new TYPE ${shellQuote(`${directory}-2`)}`,
    )
  }
  for (const [path, { text, mode }] of Object.entries(files)) {
    const target = join(directory, path)
    mkdirSync(dirname(target), { recursive: true })
    writeFileSync(target, text.replaceAll('{{name}}', name))
    chmodSync(target, mode)
  }
}
