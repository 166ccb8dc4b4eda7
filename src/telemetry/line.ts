import { type SeverityName, severityIn, severityNumbers } from './severity.ts'

const messageCharsMax = 16 * 1024

export const logStreams = ['build', 'stdout', 'stderr', 'platform'] as const
export type LogStream = (typeof logStreams)[number]

/** A line of a log, as it was written by or for a workload. */
export interface LogLine {
  /** Microseconds since the epoch; within a workload no two lines have the same, and they are in order. */
  atUs: number
  stream: LogStream
  severity: SeverityName
  /** '' where it has none. */
  revision: string
  instance: string
  /** Of a job: whose it is, and which of its tasks wrote it. */
  execution: string
  task: string
  message: string
}

/** A line as somebody wrote it, without its end. */
export function logLine(
  written: Pick<LogLine, 'atUs' | 'stream' | 'message'> &
    Partial<Pick<LogLine, 'revision' | 'instance' | 'execution' | 'task'>>,
): LogLine {
  const { atUs, stream, revision = '', instance = '', execution = '', task = '' } = written
  const message = messageOf(written.message)
  const severity = severityIn(message) ?? (stream === 'stderr' ? 'ERROR' : 'INFO')
  return { atUs, stream, severity, revision, instance, execution, task, message }
}

function messageOf(line: string): string {
  const whole = line.length <= messageCharsMax ? line : `${line.slice(0, messageCharsMax).toWellFormed()}...`
  // A line's end in it would be the end of its line in a file.
  return /[\r\n]/.test(whole) ? whole.replace(/\r?\n$|\r$/, '').replace(/[\r\n]+/g, ' ') : whole
}

const codes: Record<LogStream, string> = { build: 'b', stdout: 'o', stderr: 'e', platform: 'p' }
const streamOf = new Map(Object.entries(codes).map(([stream, code]) => [code, stream as LogStream]))
const severityOf = new Map(
  Object.entries(severityNumbers).map(([name, number]) => [String(number), name as SeverityName]),
)

/**
 * One line of a file, its end included. The message is its last field, so that it needs no escapes but for line ends. Of a
 * task's the field of the instance says which, too: `instance/execution/task`.
 */
export function encodeLine(line: LogLine): string {
  const { atUs, stream, severity, revision, instance, execution, task, message } = line
  const from = execution === '' ? instance : `${instance}/${execution}/${task}`
  return `${atUs}\t${codes[stream]}\t${severityNumbers[severity]}\t${revision}\t${from}\t${message}\n`
}

/** Null for what is no line: half of one, where the disk was full. */
export function decodeLine(text: string): LogLine | null {
  const fields = text.split('\t', 5)
  const [at = '', code = '', level = '', revision = '', from = ''] = fields
  const [instance = '', execution = '', task = ''] = from.split('/')
  if (fields.length < 5) return null
  const stream = streamOf.get(code)
  const severity = severityOf.get(level)
  const messageAt = fields.reduce((sum, field) => sum + field.length + 1, 0)
  if (stream === undefined || severity === undefined || !/^\d{1,16}$/.test(at) || messageAt > text.length)
    return null
  const message = text.slice(messageAt)
  return { atUs: Number(at), stream, severity, revision, instance, execution, task, message }
}

/** Of a line in a file, without decoding the rest; NaN for what is no line. */
export function atUsOf(text: string): number {
  return Number.parseInt(text.slice(0, 16), 10)
}

/** `2030-01-01T12:00:00.123456Z` */
export function timestampOf(atUs: number): string {
  const iso = new Date(Math.floor(atUs / 1000)).toISOString()
  return `${iso.slice(0, -1)}${String(atUs % 1000).padStart(3, '0')}Z`
}
