import type { Client, ExecutionInfo, ExecutionQuery } from '../client/index.ts'
import { clientFor, withHints } from './client.ts'
import { command, connectionFlags, sameTarget, type Target, UsageError } from './command.ts'
import { age, bytes, fieldsText, note, print, printable, printJson, span, table } from './output.ts'
import type { Format } from './resource-output.ts'

const shownDefault = 50
const pageMax = 200
const resultCharactersMax = 4000
const listing = 'hutch get executions'

/** What `hutch get executions` takes besides what every `get` does. */
export const executionFlags = {
  status: {
    kind: 'text',
    value: 'LIST',
    about: 'of executions: queued, running, waiting, succeeded, failed, cancelled, timed_out',
  },
  label: { kind: 'text', value: 'LIST', about: 'of executions: those that have these, NAME=VALUE' },
  parent: { kind: 'text', value: 'ID', about: 'of executions: the parts of this one' },
} as const

export interface ExecutionsAsked extends Target {
  status?: string | undefined
  label?: string | undefined
  parent?: string | undefined
  limit?: number | undefined
  cursor?: string | undefined
  all?: boolean | undefined
}

/** Whether `hutch get WORD` is about executions. */
export function isExecutions(word: string): boolean {
  return ['execution', 'executions', 'exec', 'execs'].includes(word.toLowerCase())
}

/** `executions [KIND NAME]` or `execution ID`. Answers what was read, so that a watch sees whether it changed. */
export async function getExecutions(
  flags: ExecutionsAsked,
  words: string[],
  format: Format | null,
): Promise<{ read: unknown; show(): void; more: string | null }> {
  const [first, name, ...more] = words
  if (more.length > 0) throw new UsageError(`unexpected argument ${JSON.stringify(more[0])}`)
  if (first !== undefined && name === undefined) {
    if (targets.has(singular(first)))
      throw new UsageError(`NAME is missing; usage: hutch get executions ${singular(first)} NAME`)
    const read = await withHints(flags, () => one(clientFor(flags), first), { 404: listing })
    return { read, show: () => showOne(read, format), more: null }
  }
  const query: ExecutionQuery = {
    ...(name === undefined ? {} : { target: `${singular(first ?? '')}/${name}` }),
    ...(flags.status === undefined ? {} : { status: flags.status }),
    ...(flags.label === undefined ? {} : { label: flags.label }),
    ...(flags.parent === undefined ? {} : { parent: flags.parent, sort: 'index' as const }),
  }
  if (first !== undefined && !targets.has(singular(first)))
    throw new UsageError(`${JSON.stringify(first)} has no executions; ${[...targets].join(', ')} have`)
  const { items, nextCursor } = await withHints(
    flags,
    () => many(clientFor(flags), query, flags),
    {},
    { limit: '--limit', cursor: '--cursor', status: '--status', label: '--label' },
  )
  const show = () => showMany(items, format, query.target ?? flags.workspace ?? 'this workspace')
  if (nextCursor === '') return { read: items, show, more: null }
  const line = [listing, ...words, `--limit ${flags.limit ?? shownDefault} --cursor ${nextCursor}`].join(' ')
  return { read: items, show, more: sameTarget(line, flags) }
}

export const cancel = command({
  name: 'executions cancel',
  summary: 'Stops executions: what waits is not begun, what runs is told to stop.',
  usage: 'ID...',
  flags: { ...connectionFlags, reason: { kind: 'text', value: 'TEXT', about: 'why, for the record' } },
  positionals: [1, 1000],
  async run({ flags, positionals }) {
    const cancelled: ExecutionInfo[] = []
    for (const id of positionals) {
      const hints = { 404: listing, 409: `hutch get execution ${id}` }
      const execution = await withHints(
        flags,
        () => clientFor(flags).executions.cancel(id, flags.reason),
        hints,
      )
      cancelled.push(execution)
      if (!flags.json) print(`${execution.id} ${execution.status}`)
    }
    if (flags.json) printJson(cancelled)
    return 0
  },
})

export const replay = command({
  name: 'executions replay',
  summary: 'Does once more what executions were to do, each as a new execution.',
  usage: '[ID...]',
  flags: {
    ...connectionFlags,
    status: {
      kind: 'text',
      value: 'LIST',
      about: 'all that ended so: failed, timed_out, cancelled, succeeded',
    },
    dead: { kind: 'boolean', about: 'all that were given up after their attempts' },
    target: { kind: 'text', value: 'KIND/NAME', about: 'of those: of this target alone, e.g. agent/mine' },
    label: { kind: 'text', value: 'LIST', about: 'of those: that have these, NAME=VALUE' },
    since: { kind: 'text', value: 'TIME', about: 'of those: accepted since, e.g. 2030-12-31T08:00:00Z' },
  },
  positionals: [0, 1000],
  async run({ flags, positionals }) {
    const { status, dead, target, label, since } = flags
    const byFilter = [status, dead, target, label, since].some((given) => given !== undefined)
    if (byFilter === positionals.length > 0) {
      throw new UsageError('say which: either IDs, or --status, --dead, --target, --label, --since')
    }
    const client = clientFor(flags)
    const ids: string[] = []
    if (byFilter) {
      const given = Object.entries({ status, dead, target, label, since }).filter(
        ([, one]) => one !== undefined,
      )
      const asked = Object.fromEntries(given)
      ids.push(...(await withHints(flags, () => client.executions.replayMany(asked), {})).executions)
    }
    for (const id of positionals) {
      const hints = { 404: listing, 409: `hutch get execution ${id}` }
      ids.push((await withHints(flags, () => client.executions.replay(id), hints)).id)
    }
    if (flags.json) printJson(ids)
    else if (ids.length === 0) note('there are none of these')
    else for (const id of ids) print(id)
    return 0
  },
})

export const metrics = command({
  name: 'executions metrics',
  summary:
    'Says how much waits and runs, how long the oldest does, and how much was done in the last minute.',
  flags: connectionFlags,
  async run({ flags }) {
    const sources = await withHints(flags, () => clientFor(flags).executions.metrics(), {})
    if (flags.json) {
      printJson(sources)
      return 0
    }
    const rows = sources.map((one) => [
      one.source,
      String(one.waiting),
      String(one.running),
      String(one.reported),
      one.waiting > 0 ? span(Math.round(one.oldestWaitingMs / 1000)) : '-',
      `${one.acceptedPerSecond}/s`,
      `${one.endedPerSecond}/s`,
      Object.entries(one.endedTotal)
        .map(([status, count]) => `${count} ${status}`)
        .join(', ') || '-',
    ])
    print(
      table(['SOURCE', 'WAITING', 'RUNNING', 'REPORTED', 'OLDEST', 'ACCEPTED', 'ENDED', 'SINCE START'], rows),
    )
    return 0
  },
})

interface Shown {
  execution: ExecutionInfo
  result: { type: string | null; encoding: 'utf8' | 'base64'; data: string } | null
}

async function one(client: Client, id: string): Promise<Shown> {
  const execution = await client.executions.get(id)
  return { execution, result: execution.result === null ? null : await client.executions.result(id) }
}

async function many(
  client: Client,
  query: ExecutionQuery,
  { limit, cursor, all }: ExecutionsAsked,
): Promise<{ items: ExecutionInfo[]; nextCursor: string }> {
  const items: ExecutionInfo[] = []
  const wanted = all ? Number.POSITIVE_INFINITY : (limit ?? shownDefault)
  let next = cursor ?? ''
  do {
    const asked = Math.min(pageMax, wanted - items.length)
    const page = await client.executions.page({ ...query, limit: asked, ...(next ? { cursor: next } : {}) })
    items.push(...page.items)
    next = page.nextCursor
  } while (next !== '' && items.length < wanted)
  return { items, nextCursor: next }
}

function showMany(items: ExecutionInfo[], format: Format | null, whose: string): void {
  if (printedAs(format, items)) return
  if (items.length === 0) {
    note(`no executions of ${whose}`)
    return
  }
  const rows = items.map((execution) => [
    execution.id,
    execution.source,
    targetText(execution),
    statusText(execution),
    execution.parts === null
      ? `${execution.attempts}/${execution.attemptsMax}`
      : `${execution.parts} ${execution.parts === 1 ? 'part' : 'parts'}`,
    age(execution.acceptedAt),
    durationText(execution),
    (execution.error?.message ?? execution.statusReason ?? '-').slice(0, 80),
  ])
  print(table(['ID', 'SOURCE', 'TARGET', 'STATUS', 'ATTEMPT', 'AGE', 'TOOK', 'REASON'], rows))
}

function showOne({ execution, result }: Shown, format: Format | null): void {
  if (printedAs(format, { ...execution, output: result })) return
  const { error, counts } = execution
  const rows: [string, unknown][] = [
    ['id', execution.id],
    ['target', targetText(execution)],
    ['source', execution.source],
    ['status', statusText(execution)],
    ['reason', execution.statusReason],
    ['error', error && [error.code, error.message].filter(Boolean).join(': ')],
    ['part', execution.parent === null ? null : `${execution.index} of ${execution.parent}`],
    ['parts', counts && partsText(counts)],
    ['attempt', execution.parts === null ? `${execution.attempts} of ${execution.attemptsMax}` : null],
    ['labels', fieldsText(execution.labels)],
    ...noteRows(execution),
    ['accepted', execution.acceptedAt],
    ['due', execution.runAt > execution.acceptedAt ? execution.runAt : null],
    ['started', execution.startedAt],
    ['ended', execution.endedAt],
    ['took', execution.durationMs === null ? null : durationText(execution)],
    ['timeout', timeoutText(execution)],
    ['result', result && `${bytes(execution.result?.bytes ?? 0)}, ${result.type ?? 'no type'}`],
  ]
  for (const [title, value] of rows) {
    if (value === undefined || value === null || value === '') continue
    print(`${title.padEnd(12)} ${printable(String(value))}`)
  }
  if (result === null || result.encoding !== 'utf8') return
  const shown = result.data.slice(0, resultCharactersMax)
  for (const line of shown.trimEnd().split('\n')) print(`${' '.repeat(13)}${printable(line)}`)
  if (shown.length < result.data.length) note('the rest: --json')
}

/** `2 succeeded, 1 running`: parts that were tried again are among these. */
function partsText({ retried = 0, ...counts }: Record<string, number>): string {
  const states = Object.entries(counts).flatMap(([status, count]) =>
    count > 0 ? [`${count} ${status}`] : [],
  )
  return `${states.join(', ') || 'none'}${retried > 0 ? `; ${retried} tried again` : ''}`
}

/** What its source noted of it, in words where it is a job's. */
function noteRows({ target, parts, note }: ExecutionInfo): [string, unknown][] {
  // Its parts are told already.
  const { counts: _, ...noted } = note
  if (target.kind !== 'job' || parts === null) return [['note', fieldsText(noted)]]
  const { parallelism, maxRetries, memoryOverrideMb, envOverride } = noted
  return [
    ['at once', parallelism],
    ['retries', maxRetries],
    ['memory', memoryOverrideMb === null ? null : `${memoryOverrideMb} MB`],
    ['variables', Array.isArray(envOverride) ? envOverride.join(', ') : null],
  ]
}

/** Of a job each task has one; what bounds the whole is nobody's setting. */
function timeoutText({ target, parts, note, timeoutSeconds }: ExecutionInfo): string {
  const ofTask = target.kind === 'job' && parts !== null ? note.timeoutSeconds : undefined
  return typeof ofTask === 'number' ? `${span(ofTask)} for each part` : span(timeoutSeconds)
}

/** Whether it was printed: for people it is not. */
function printedAs(format: Format | null, value: object): boolean {
  if (format === 'json') printJson(value)
  else if (format === 'yaml' || format === 'pretty') print(Bun.YAML.stringify(value, null, 2))
  else return false
  return true
}

/** Of a node with what it was to do. */
function targetText({ target: { kind, name }, labels }: ExecutionInfo): string {
  const of = kind === 'node' && labels.reasoner ? `.${labels.reasoner}` : ''
  return `${kind}/${name}${of}`
}

function statusText({ status, dead }: ExecutionInfo): string {
  return dead ? `${status} (dead)` : status
}

function durationText({ durationMs }: ExecutionInfo): string {
  if (durationMs === null) return '-'
  return durationMs < 10_000 ? `${durationMs} ms` : span(Math.round(durationMs / 1000))
}

/** What executions are of. */
const targets = new Set(['agent', 'job', 'node'])

/** agents, Agent and agent are the same. */
function singular(word: string): string {
  return word.toLowerCase().replace(/s$/, '')
}
