import type { Client, ExecutionEventInfo, ExecutionInfo, LogLine } from '../client/index.ts'
import { merged } from '../lib/merged.ts'
import { fieldsText, printable } from './output.ts'

/** What the target's program said a little before and after is of this execution, too: clocks of lines and records differ. */
const aroundMs = 2000
const pageLines = 1000
const linesMax = 20_000
const kindsWithLogs = new Set(['agent', 'function', 'application', 'job'])

/** A line of what happened to an execution, or of what its target's program said meanwhile. */
export interface Said {
  at: string
  /** Of what happened: that. Else the stream. */
  from: string
  text: string
}

/** What happened to an execution so far, and what its target's program said meanwhile, in order. */
export async function executionLog(client: Client, execution: ExecutionInfo): Promise<Said[]> {
  const { startedAt, endedAt } = execution
  const lines = startedAt === null ? [] : await linesOf(client, execution, startedAt, endedAt)
  const said = [...historyOf(execution), ...lines.map(saidOf)]
  return said.sort((one, other) => one.at.localeCompare(other.at))
}

/** The same as it comes, until it ended. */
export async function* followExecution(client: Client, execution: ExecutionInfo): AsyncIterable<Said> {
  const gone = new AbortController()
  const happened = (async function* () {
    try {
      for await (const event of client.executions.events(execution.id, gone.signal)) yield eventOf(event)
    } finally {
      gone.abort()
    }
  })()
  const { kind, name } = execution.target
  if (execution.endedAt !== null || !kindsWithLogs.has(kind)) return yield* happened
  const start = new Date(Date.parse(execution.startedAt ?? execution.acceptedAt) - aroundMs).toISOString()
  const lines = (async function* () {
    try {
      const asked = { resourceType: `${kind}s`, name, start, stream: 'stdout,stderr', ...scopeOf(execution) }
      for await (const line of client.logs.follow(asked, gone.signal)) yield saidOf(line)
    } catch (error) {
      // Ended together with what it is of.
      if (!gone.signal.aborted) throw error
    }
  })()
  yield* merged(happened, lines)
}

async function linesOf(
  client: Client,
  execution: ExecutionInfo,
  startedAt: string,
  endedAt: string | null,
): Promise<LogLine[]> {
  const { kind, name } = execution.target
  if (!kindsWithLogs.has(kind)) return []
  const query = {
    resourceType: `${kind}s`,
    name,
    stream: 'stdout,stderr',
    start: new Date(Date.parse(startedAt) - aroundMs).toISOString(),
    end: new Date((endedAt === null ? Date.now() : Date.parse(endedAt)) + aroundMs).toISOString(),
    ...scopeOf(execution),
  }
  const lines: LogLine[] = []
  while (lines.length < linesMax) {
    const page = await client.logs.query({ ...query, limit: pageLines, offset: lines.length })
    lines.push(...page.logs)
    if (page.logs.length < pageLines) break
  }
  return lines
}

/** What a job's tasks say is kept by execution and task, as its client calls them; of other programs only the time says it. */
function scopeOf({ target, id, parent, index }: ExecutionInfo): { executionId?: string; taskId?: string } {
  if (target.kind !== 'job') return {}
  return {
    executionId: (parent ?? id).split('/').at(-1) ?? id,
    ...(index === null ? {} : { taskId: String(index) }),
  }
}

function historyOf(execution: ExecutionInfo): Said[] {
  const { acceptedAt, startedAt, endedAt, attempts } = execution
  return [
    {
      at: acceptedAt,
      from: 'execution',
      text: `accepted for ${execution.target.kind} ${execution.target.name}`,
    },
    ...(startedAt === null
      ? []
      : [
          {
            at: startedAt,
            from: 'execution',
            text: attempts > 1 ? `started, ${attempts} attempts` : 'started',
          },
        ]),
    ...(endedAt === null ? [] : [{ at: endedAt, from: 'execution', text: endOf(execution) }]),
  ]
}

function eventOf({ at, type, execution, progress }: ExecutionEventInfo): Said {
  const part = execution.index === null ? '' : `part ${execution.index}: `
  const text = (() => {
    switch (type) {
      case 'state':
        return execution.endedAt === null ? execution.status : endOf(execution)
      case 'started':
        return `attempt ${execution.attempts} of ${execution.attemptsMax} started`
      case 'progress':
        return printable(`progress: ${fieldsText(progress ?? {})}`)
      case 'ended':
        return endOf(execution)
      case 'created':
        return 'accepted'
      case 'updated':
        return execution.status === 'queued'
          ? `again at ${execution.runAt}: ${why(execution)}`
          : execution.status
    }
  })()
  return { at, from: 'execution', text: `${part}${text}` }
}

function endOf(execution: ExecutionInfo): string {
  const { status, result, dead } = execution
  const reason = why(execution)
  const ended = dead ? `${status}, given up` : status
  if (reason !== '') return `${ended}: ${reason}`
  return result === null ? ended : `${ended}, ${result.bytes} bytes of ${result.type ?? 'result'}`
}

function why({ error, statusReason }: ExecutionInfo): string {
  return printable(error?.message ?? statusReason ?? '')
}

function saidOf({ timestamp, message, stream }: LogLine): Said {
  return {
    at: timestamp,
    from: stream ?? 'stdout',
    text: message.trimEnd().split('\n').map(printable).join('\n'),
  }
}
