import { type Client, ClientError, type LogLine } from '../client/index.ts'
import { parseDuration } from '../lib/duration.ts'
import { clientFor, withHints } from './client.ts'
import { CommandError, command, connectionFlags, sameTarget, type Target, UsageError } from './command.ts'
import { executionLog, followExecution, type Said } from './execution-logs.ts'
import { isExecutions } from './executions.ts'
import { runningKind } from './invoking.ts'
import { fieldsText, note, paint, print, printable } from './output.ts'
import { logs as sandboxLogs } from './sandbox-exec.ts'

const periodDefault = '1h'
const followPeriodDefault = '15m'
const periodMsMax = 7 * 24 * 60 * 60 * 1000
const pageLines = 1000
const linesShownMax = 100_000
const severities: readonly [atLeast: number, name: string][] = [
  [21, 'FATAL'],
  [17, 'ERROR'],
  [13, 'WARN'],
]

export const logs = command({
  name: 'logs',
  summary:
    'Prints what an agent, a function, an application, a job or a sandbox says, and what was said when it was built.',
  usage: 'KIND NAME [PROCESS | EXECUTION [TASK]]',
  flags: {
    ...connectionFlags,
    follow: { kind: 'boolean', short: 'f', about: 'go on with what comes' },
    period: {
      kind: 'text',
      value: 'TIME',
      short: 'p',
      about: `how far back, e.g. 10m, 3h, 2d (${periodDefault}; with -f ${followPeriodDefault})`,
    },
    start: { kind: 'text', value: 'TIME', about: 'from when on, e.g. 2030-12-31T08:00:00Z or 2030-12-31' },
    end: { kind: 'text', value: 'TIME', about: 'until when' },
    severity: { kind: 'text', value: 'LIST', about: 'FATAL, ERROR, WARNING, INFO, DEBUG, TRACE, UNKNOWN' },
    search: { kind: 'text', value: 'TEXT', about: 'lines that have this' },
    build: { kind: 'boolean', about: 'what builds said, alone' },
    revision: { kind: 'text', value: 'ID', about: 'of one revision' },
    'no-timestamps': { kind: 'boolean', about: 'the messages alone' },
    utc: { kind: 'boolean', short: 'u', about: 'times in UTC, instead of this time zone' },
  },
  positionals: [2, 4],
  notes: [
    'PROCESS: of a sandbox, the output of one process instead. EXECUTION: of a job, of one execution alone, or of one',
    'TASK of it by its number.',
    'hutch logs execution ID: what happened to it, and what its target said meanwhile.',
  ],
  async run({ flags, positionals }) {
    const [word = '', name = '', part, task] = positionals
    if (isExecutions(word)) return await printExecutionLog(flags, name)
    const kind = runningKind(word)
    const isJob = kind.kind === 'Job'
    const unexpected = isJob ? undefined : kind.kind === 'Sandbox' ? task : part
    if (unexpected !== undefined) throw new UsageError(`unexpected argument ${JSON.stringify(unexpected)}`)
    if (part !== undefined && !isJob) {
      const { 'data-dir': dataDir, workspace, follow, json } = flags
      const own = Object.entries({ 'data-dir': dataDir, workspace, follow, json })
      const given = Object.fromEntries(own.filter(([, value]) => value !== undefined))
      return await sandboxLogs.run({ flags: given as never, positionals: [name, part], rest: [] })
    }
    const query = {
      resourceType: kind.plural,
      name,
      start: startOf(flags),
      ...(flags.end === undefined ? {} : { end: moment('--end', flags.end) }),
      ...(flags.severity === undefined ? {} : { severity: flags.severity }),
      ...(flags.search === undefined ? {} : { search: flags.search }),
      ...(flags.build ? { stream: 'build' } : {}),
      ...(flags.revision === undefined ? {} : { revision: flags.revision }),
      ...(part === undefined ? {} : { executionId: part }),
      ...(task === undefined ? {} : { taskId: task }),
    }
    const isOfNode = isNodeLog(name)
    const show = (line: LogLine) => {
      const shown = isOfNode ? fromNode(line) : line
      print(flags.json ? JSON.stringify(line) : lineText(shown, flags, task === undefined))
    }
    return await withHints(
      flags,
      async () => {
        const client = clientFor(flags)
        // A name that is nobody's has no logs either: what is mistyped is told so. An image may have been built alone.
        const path = `${kind.collection([])}/${encodeURIComponent(name)}`
        const execution = part === undefined ? '' : `/executions/${encodeURIComponent(part)}`
        if (!flags.build && !isOfNode) await client.resources.get(path + execution)
        if (flags.follow) {
          const gone = new AbortController()
          for await (const line of client.logs.follow(query, gone.signal)) show(line)
          return await tellOfEnd(client, isOfNode ? null : path, `${kind.singular} ${name}`, flags)
        }
        const lines: LogLine[] = []
        for (;;) {
          const page = await client.logs.query({ ...query, limit: pageLines, offset: lines.length })
          lines.push(...page.logs)
          if (page.logs.length < pageLines || lines.length >= linesShownMax) break
        }
        for (const line of lines.reverse()) show(line)
        if (lines.length === 0 && !flags.json) note('nothing was said in that time')
        return 0
      },
      { 404: part === undefined ? `hutch get ${kind.plural}` : `hutch get job ${name} executions` },
      { start: '--start', end: '--end', severity: '--severity' },
    )
  },
})

/** What a node of AgentField that is not deployed here logs of its executions: nothing else has a name like it. */
function isNodeLog(name: string): boolean {
  return name.endsWith('.executions')
}

/** What is followed goes on until somebody ends it here: that it ended by itself has a reason. */
async function tellOfEnd(client: Client, path: string | null, whose: string, flags: Target): Promise<number> {
  const found = path === null ? null : await client.resources.get(path).catch((error: unknown) => error)
  if (!(found instanceof ClientError && found.status === 404)) throw endedByPlatform(flags)
  note(`${whose} was deleted`)
  return 0
}

function endedByPlatform(flags: Target): CommandError {
  const { 'data-dir': dataDir } = flags
  return new CommandError(
    'the platform ended the stream: was it stopped?',
    sameTarget('hutch status', { 'data-dir': dataDir }),
  )
}

/** What the SDK of such agents logs are records: for people, what happened, where, and what with. */
function fromNode(line: LogLine): LogLine {
  let record: Record<string, unknown> | null = null
  try {
    record = JSON.parse(line.message)
  } catch {}
  if (typeof record?.message !== 'string') return line
  const { message, level, reasoner_id: reasoner, attributes } = record
  const severity = severities.find(
    ([, name]) => name === String(level).toUpperCase().replace('WARNING', 'WARN'),
  )
  const where = typeof reasoner === 'string' ? `${reasoner}: ` : ''
  const details = typeof attributes === 'object' && attributes !== null ? fieldsText(attributes) : ''
  const text = `${where}${message}${details === '' ? '' : `  ${details}`}`
  return { ...line, message: text, severity: severity?.[0] ?? line.severity }
}

async function printExecutionLog(
  flags: Target & { follow?: boolean | undefined; json?: boolean | undefined } & Stamped,
  id: string,
): Promise<number> {
  const show = ({ at, from, text }: Said) => {
    if (flags.json) return print(JSON.stringify({ timestamp: at, stream: from, message: text }))
    const origin = from === 'execution' ? `[${from}] ` : ''
    const stamp = flags['no-timestamps'] ? '' : `${paint('dim', timeText(at, flags.utc === true))} `
    print(`${stamp}${origin}${text}`)
  }
  return await withHints(
    flags,
    async () => {
      const client = clientFor(flags)
      const execution = await client.executions.get(id)
      if (flags.follow) {
        for await (const said of followExecution(client, execution)) show(said)
        if ((await client.executions.get(id)).endedAt === null) throw endedByPlatform(flags)
      } else for (const said of await executionLog(client, execution)) show(said)
      return 0
    },
    { 404: 'hutch get executions' },
  )
}

interface Stamped {
  'no-timestamps'?: boolean | undefined
  utc?: boolean | undefined
}

/** `ofTasks`: lines of several tasks may stand among each other. */
function lineText(line: LogLine, flags: Stamped, ofTasks: boolean): string {
  const { timestamp, message, severity, stream, task } = line
  const level = severities.find(([atLeast]) => severity >= atLeast)?.[1]
  const said = message.trimEnd().split('\n').map(printable).join('\n')
  const coloured = level === undefined ? said : paint(level === 'WARN' ? 'yellow' : 'red', said)
  if (flags['no-timestamps']) return coloured
  const from = stream === 'build' || stream === 'platform' ? `[${stream}] ` : ''
  const of = ofTasks && task !== undefined ? `[task ${task}] ` : ''
  return `${paint('dim', timeText(timestamp, flags.utc === true))} ${of}${from}${coloured}`
}

function timeText(timestamp: string, utc: boolean): string {
  const at = new Date(timestamp)
  if (utc || Number.isNaN(at.getTime())) return timestamp.replace(/(\.\d{3})\d+/, '$1')
  const two = (value: number) => String(value).padStart(2, '0')
  const day = `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())}`
  const ms = String(at.getMilliseconds()).padStart(3, '0')
  return `${day} ${two(at.getHours())}:${two(at.getMinutes())}:${two(at.getSeconds())}.${ms}`
}

function startOf(flags: {
  start?: string | undefined
  period?: string | undefined
  follow?: boolean | undefined
}): string {
  const { start, period, follow } = flags
  if (start !== undefined && period !== undefined)
    throw new UsageError('--start and --period say the same: give one')
  if (start !== undefined) return moment('--start', start)
  const text = period ?? (follow ? followPeriodDefault : periodDefault)
  try {
    return new Date(Date.now() - parseDuration('--period', text, periodMsMax)).toISOString()
  } catch (error) {
    throw new UsageError((error as Error).message)
  }
}

function moment(flag: string, text: string): string {
  const ms = Date.parse(text)
  if (Number.isNaN(ms))
    throw new UsageError(`${flag} ${JSON.stringify(text)} is no time like 2030-12-31T08:00:00Z`)
  return new Date(ms).toISOString()
}
