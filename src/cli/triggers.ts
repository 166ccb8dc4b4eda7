import type { Resource } from '../client/index.ts'
import { parseDuration } from '../lib/duration.ts'
import { maskedValue } from '../lib/environment.ts'
import { clientFor, removeEach, withHints } from './client.ts'
import { command, connectionFlags, sameTarget, type Target, UsageError } from './command.ts'
import { at, kinds, knownKind } from './kinds.ts'
import { note, print, printable, printJson, table } from './output.ts'
import { shellQuote, spelled } from './shell.ts'

const triggered = kinds.filter(({ singular }) => ['agent', 'function', 'job'].includes(singular))
const overlapMsMax = 7 * 24 * 60 * 60 * 1000

const configurationFlags = {
  path: { kind: 'text', value: 'PATH', about: 'such as agents/mine/async, or /invoke of the program' },
  auth: { kind: 'text', value: 'TYPE', about: 'public or private' },
  'callback-url': { kind: 'text', value: 'URL', about: 'told what came of each execution' },
  retry: { kind: 'number', about: 'how often what failed is tried again' },
  timeout: { kind: 'text', value: 'TIME', about: 'of each try, e.g. 90s or 15m' },
  concurrency: { kind: 'number', about: 'how many requests of the agent are under way at once' },
  schedule: { kind: 'text', value: 'PATTERN', about: 'minute hour day month weekday, e.g. "0 8 * * 1-5"' },
  timezone: { kind: 'text', value: 'ZONE', about: 'of the schedule, e.g. Europe/London (UTC)' },
  missed: {
    kind: 'text',
    value: 'POLICY',
    about: 'times that passed while the platform was down: once or skip',
  },
  input: { kind: 'text', value: 'JSON', about: 'what an agent is asked at its times' },
  tasks: { kind: 'text', value: 'JSON', about: 'what a job is started with at its times, a list' },
} as const

const typed = {
  path: '--path',
  authenticationType: '--auth',
  callbackUrl: '--callback-url',
  retry: '--retry',
  timeout: '--timeout',
  concurrency: '--concurrency',
  schedule: '--schedule',
  timezone: '--timezone',
  missed: '--missed',
  input: '--input',
  tasks: '--tasks',
}

type ConfigurationFlags = { [Name in keyof typeof configurationFlags]?: string | number }

export const list = command({
  name: 'triggers ls',
  summary: 'Lists what triggers an agent, a function or a job.',
  usage: 'KIND NAME',
  flags: connectionFlags,
  positionals: [2, 2],
  async run({ flags, positionals }) {
    const { path, listing } = triggersOf(positionals)
    const triggers = await withHints(flags, () => Array.fromAsync(clientFor(flags).resources.list(path)), {
      404: listing,
    })
    if (flags.json) printJson(triggers)
    else if (triggers.length === 0) {
      const line = `hutch triggers add ${positionals.join(' ')} cron --schedule "0 8 * * *"`
      note(`no triggers; try: ${spelled(sameTarget(line, flags))}`)
    } else print(table(['ID', 'TYPE', 'ENABLED', 'WHEN OR WHERE', 'CALLBACK'], triggers.map(row)))
    return 0
  },
})

export const add = command({
  name: 'triggers add',
  summary: 'Adds a trigger to an agent, a function or a job, without deploying it anew.',
  usage: 'KIND NAME TYPE',
  flags: {
    ...connectionFlags,
    id: { kind: 'text', value: 'ID', about: 'how it is called (its type)' },
    disabled: { kind: 'boolean', about: 'it does nothing until it is enabled' },
    ...configurationFlags,
  },
  positionals: [3, 3],
  notes: [
    'TYPE: http, http-async (of agents: requests that are answered later) or cron (of agents and jobs).',
    'The secret that its callbacks are signed with is printed once.',
  ],
  async run({ flags, positionals }) {
    const { path, listing } = triggersOf(positionals)
    const body = {
      type: positionals[2],
      ...(flags.id === undefined ? {} : { id: flags.id }),
      ...(flags.disabled ? { enabled: false } : {}),
      configuration: configurationOf(flags),
    }
    const { resource } = await refusing(flags, () => clientFor(flags).resources.create(path, body), {
      404: listing,
      409: `hutch triggers ls ${positionals.slice(0, 2).join(' ')}`,
    })
    return answer(flags, resource)
  },
})

export const edit = command({
  name: 'triggers edit',
  summary: 'Changes a trigger; what is not named stays, and so does the secret of its callbacks.',
  usage: 'KIND NAME ID',
  flags: {
    ...connectionFlags,
    ...configurationFlags,
    clear: { kind: 'list', value: 'NAME', about: 'takes one of these away, e.g. callback-url' },
  },
  positionals: [3, 3],
  async run({ flags, positionals }) {
    const given = { ...configurationOf(flags), ...clearedOf(flags.clear ?? []) }
    if (Object.keys(given).length === 0)
      throw new UsageError(`say what is to change: --${Object.keys(configurationFlags).join(', --')}`)
    return await change(flags, positionals, (trigger) => ({
      ...trigger,
      configuration: { ...((trigger.configuration ?? {}) as object), ...given },
    }))
  },
})

export const enable = command({
  name: 'triggers enable',
  summary: 'Switches a trigger on; its times count from now.',
  usage: 'KIND NAME ID',
  flags: connectionFlags,
  positionals: [3, 3],
  run: ({ flags, positionals }) => change(flags, positionals, (trigger) => ({ ...trigger, enabled: true })),
})

export const disable = command({
  name: 'triggers disable',
  summary: 'Switches a trigger off, and keeps it.',
  usage: 'KIND NAME ID',
  flags: connectionFlags,
  positionals: [3, 3],
  run: ({ flags, positionals }) => change(flags, positionals, (trigger) => ({ ...trigger, enabled: false })),
})

export const rotate = command({
  name: 'triggers rotate',
  summary: 'Gives the callbacks of a trigger a new secret, and prints it; it is never shown again.',
  usage: 'KIND NAME ID',
  flags: {
    ...connectionFlags,
    overlap: { kind: 'text', value: 'TIME', about: 'how long the one before holds, e.g. 1h, or 0 (1d)' },
  },
  positionals: [3, 3],
  async run({ flags, positionals }) {
    const { path, listing } = triggersOf(positionals)
    const overlap: { overlapSeconds?: number } =
      flags.overlap === undefined ? {} : { overlapSeconds: secondsOf('--overlap', flags.overlap) }
    const { resource } = await withHints(
      flags,
      () =>
        clientFor(flags).resources.create(
          `${path}/${encodeURIComponent(positionals[2] ?? '')}/rotate`,
          overlap,
        ),
      { 404: listing },
    )
    if (flags.json) printJson(resource)
    else {
      print(String(at(resource, 'configuration.callbackSecret')))
      const held = flags.overlap ?? 'a day'
      if (overlap.overlapSeconds !== 0)
        note(`the secret before it holds for ${held} more: a receiver that refuses the new one is sent that`)
    }
    return 0
  },
})

export const remove = command({
  name: 'triggers rm',
  summary: 'Deletes triggers; what they accepted goes on.',
  usage: 'KIND NAME ID...',
  flags: connectionFlags,
  positionals: [3, 100],
  async run({ flags, positionals }) {
    const { path } = triggersOf(positionals)
    const { resources } = clientFor(flags)
    const listing = `hutch triggers ls ${positionals.slice(0, 2).join(' ')}`
    const remove = (id: string) => resources.remove(`${path}/${encodeURIComponent(id)}`)
    return await removeEach(flags, positionals.slice(2), remove, listing)
  },
})

/** By trigger, what their callbacks are signed with, where an answer has that. */
export function callbackSecretsOf({ spec }: Resource): Record<string, string> {
  const triggers = (spec?.triggers ?? []) as Resource[]
  return Object.fromEntries(
    triggers.flatMap((trigger) => {
      const secret = secretOf(trigger)
      return secret === null ? [] : [[String(trigger.id), secret]]
    }),
  )
}

export function noteSecret(id: string, secret: string): void {
  note(`callbacks of the trigger ${id} are signed with ${secret}, which is not shown again`)
}

/** Null where it is not told. */
function secretOf(trigger: Resource): string | null {
  const secret = at(trigger, 'configuration.callbackSecret')
  return typeof secret === 'string' && secret !== '' && secret !== maskedValue ? secret : null
}

async function change(
  flags: Target & { json?: boolean },
  words: string[],
  to: (trigger: Resource) => object,
): Promise<number> {
  const { path } = triggersOf(words)
  const item = `${path}/${encodeURIComponent(words[2] ?? '')}`
  const { resources } = clientFor(flags)
  const { resource } = await refusing(
    flags,
    async () => await resources.replace(item, to(await resources.get(item))),
    { 404: `hutch triggers ls ${words.slice(0, 2).join(' ')}` },
  )
  return answer(flags, resource)
}

/** Refusals name fields of the deployment; people typed flags. */
async function refusing<Value>(
  flags: Target,
  work: () => Promise<Value>,
  hints: Record<number, string>,
): Promise<Value> {
  try {
    return await withHints(flags, work, hints)
  } catch (error) {
    if (!(error instanceof Error)) throw error
    const [, key = '', rest = ''] =
      /^spec\.triggers\[\d+\]\.(?:configuration\.)?(\w+)(.*)$/s.exec(error.message) ?? []
    if (key === '') throw error
    throw new UsageError(
      (Object.hasOwn(typed, key) ? typed[key as keyof typeof typed] : key.toUpperCase()) + rest,
    )
  }
}

function answer(flags: { json?: boolean }, trigger: Resource): number {
  if (flags.json) printJson(trigger)
  else {
    print(String(trigger.id))
    const secret = secretOf(trigger)
    if (secret !== null) noteSecret(String(trigger.id), secret)
  }
  return 0
}

/** @throws UsageError */
function triggersOf([word = '', name = '']: string[]): { path: string; listing: string } {
  const kind = knownKind(word, triggered)
  return {
    path: `${kind.collection([])}/${encodeURIComponent(name)}/triggers`,
    listing: `hutch get ${kind.plural}`,
  }
}

function configurationOf(flags: ConfigurationFlags): Record<string, unknown> {
  const { path, auth, retry, timeout, concurrency, schedule, timezone, missed, input, tasks } = flags
  const callbackUrl = flags['callback-url']
  const given = {
    ...{ path, authenticationType: auth, callbackUrl, retry, concurrency, schedule, timezone, missed },
    timeout: timeout === undefined ? undefined : secondsOf('--timeout', String(timeout)),
    input: input === undefined ? undefined : jsonOf('--input', String(input)),
    tasks: tasks === undefined ? undefined : jsonOf('--tasks', String(tasks)),
  }
  return Object.fromEntries(Object.entries(given).filter(([, value]) => value !== undefined))
}

/** @throws UsageError */
function clearedOf(names: string[]): Record<string, null> {
  return Object.fromEntries(
    names.map((name) => {
      const key = Object.entries(typed).find(([, flag]) => flag === `--${name}`)?.[0]
      if (key === undefined)
        throw new UsageError(
          `--clear: ${JSON.stringify(name)} is none of ${Object.keys(configurationFlags).join(', ')}`,
        )
      return [key, null]
    }),
  )
}

/** @throws UsageError */
function secondsOf(flag: string, text: string): number {
  if (/^\d{1,9}$/.test(text)) return Number(text)
  return Math.ceil(parseDuration(flag, text, overlapMsMax) / 1000)
}

/** @throws UsageError */
function jsonOf(flag: string, text: string): unknown {
  try {
    return JSON.parse(text)
  } catch {
    throw new UsageError(`${flag}: ${shellQuote(text.slice(0, 40))} is not JSON`)
  }
}

function row(trigger: Resource): string[] {
  const { id, type, enabled } = trigger
  const shown = (path: string) => printable(String(at(trigger, `configuration.${path}`) ?? ''))
  const when = [shown('schedule'), shown('timezone'), shown('path')].filter((text) => text !== '').join(' ')
  return [
    String(id),
    String(type),
    enabled === false ? 'no' : 'yes',
    when || '-',
    shown('callbackUrl') || '-',
  ]
}
