import type { Clock } from './clock.ts'
import { cut, isSecretName, redact } from './redact.ts'

const logLevels = ['debug', 'info', 'warn', 'error'] as const
export type LogLevel = (typeof logLevels)[number]

/** Structured lines on stderr. Messages and fields pass through `redact` before they are written. */
export interface Logger {
  debug(message: string, fields?: Record<string, unknown>): void
  info(message: string, fields?: Record<string, unknown>): void
  warn(message: string, fields?: Record<string, unknown>): void
  error(message: string, fields?: Record<string, unknown>): void
}

export const silentLogger: Logger = { debug() {}, info() {}, warn() {}, error() {} }

export interface LoggerOptions {
  clock: Clock
  /** Lines below it are not made. Default info. */
  level?: LogLevel
  /** `json` for programs, `text` for people. Default json. */
  format?: 'json' | 'text'
  /** Takes one line with its newline. Default stderr. */
  write?: (line: string) => void
}

const lineCharsMax = 32 * 1024
const fieldDepthMax = 5
const fieldsMax = 64
const fieldNameCharsMax = 128

/** Never throws: what cannot be logged is left out. */
export function createLogger(options: LoggerOptions): Logger {
  const { clock, level = 'info', format = 'json', write = writeToStderr } = options
  const from = logLevels.indexOf(level)
  const at = (lineLevel: LogLevel) => {
    if (logLevels.indexOf(lineLevel) < from) return () => {}
    return (message: string, fields: Record<string, unknown> = {}) => {
      try {
        const time = timeOf(clock)
        const budget = { chars: lineCharsMax }
        const safeMessage = safeText(String(message), budget)
        const safeFields = safeValue(fields, budget, 0) as Record<string, unknown>
        write(
          format === 'json'
            ? jsonLine(time, lineLevel, safeMessage, safeFields)
            : textLine(time, lineLevel, safeMessage, safeFields),
        )
      } catch {
        // A log that cannot be written is no reason to fail what it speaks of.
      }
    }
  }
  return { debug: at('debug'), info: at('info'), warn: at('warn'), error: at('error') }
}

function writeToStderr(line: string): void {
  process.stderr.write(line)
}

function timeOf(clock: Clock): string {
  const date = new Date(clock.now())
  return Number.isNaN(date.getTime()) ? 'unknown' : date.toISOString()
}

function jsonLine(time: string, level: LogLevel, message: string, fields: Record<string, unknown>): string {
  // The line's own members come last: a field cannot take their place, only follow under another name.
  const { time: fieldTime, level: fieldLevel, message: fieldMessage, ...others } = fields
  const renamed = Object.fromEntries(
    Object.entries({ field_time: fieldTime, field_level: fieldLevel, field_message: fieldMessage }).filter(
      ([, value]) => value !== undefined,
    ),
  )
  return `${JSON.stringify({ time, level, message, ...renamed, ...others })}\n`
}

function textLine(time: string, level: LogLevel, message: string, fields: Record<string, unknown>): string {
  let line = `${time} ${level.toUpperCase().padEnd(5)} ${message}`
  for (const [name, value] of Object.entries(fields)) {
    const plain = typeof value === 'string' && /^[^\s"=]+$/.test(value)
    line += ` ${name}=${plain ? value : JSON.stringify(value)}`
  }
  return `${escapeControls(line)}\n`
}

/** So that logged text can neither begin a line of its own nor drive a terminal. */
function escapeControls(text: string): string {
  // biome-ignore lint/suspicious/noControlCharactersInRegex: they are what this is about
  return text.replace(/[\u0000-\u001f\u007f-\u009f\u2028\u2029]/g, (character) => {
    return `\\u${character.charCodeAt(0).toString(16).padStart(4, '0')}`
  })
}

function safeText(text: string, budget: { chars: number }): string {
  if (budget.chars <= 0) return '...'
  // Secrets are looked for before the budget cuts, or the beginning of one could stand at the cut.
  const safe = cut(redact(text), budget.chars)
  budget.chars -= safe.length
  return safe
}

function safeValue(value: unknown, budget: { chars: number }, depth: number): unknown {
  if (typeof value === 'string') return safeText(value, budget)
  if (typeof value === 'bigint') return String(value)
  if (typeof value === 'number') return Number.isFinite(value) ? value : String(value)
  if (typeof value !== 'object' || value === null)
    return typeof value === 'boolean' ? value : value === null ? null : undefined
  if (value instanceof Date) return Number.isNaN(value.getTime()) ? 'invalid date' : value.toISOString()
  if (value instanceof URL) return safeText(value.href, budget)
  if (ArrayBuffer.isView(value) || value instanceof ArrayBuffer) return `[${value.byteLength} bytes]`
  if (depth >= fieldDepthMax || budget.chars <= 0) return '...'
  if (Array.isArray(value)) return value.slice(0, fieldsMax).map((item) => safeValue(item, budget, depth + 1))
  if (value instanceof Error) return safeError(value, budget, depth)
  const entries = value instanceof Headers ? [...value] : Object.entries(value)
  return safeEntries(entries, budget, depth)
}

function safeError(error: Error, budget: { chars: number }, depth: number): unknown {
  const code = 'code' in error ? error.code : undefined
  // The stack begins with name and message.
  return safeEntries(
    [
      ['code', code],
      ['stack', error.stack ?? `${error.name}: ${error.message}`],
      ['message', error.stack?.includes(error.message) ? undefined : error.message],
      ['cause', error.cause],
    ],
    budget,
    depth,
  )
}

function safeEntries(
  entries: [string, unknown][],
  budget: { chars: number },
  depth: number,
): Record<string, unknown> {
  const safe: [string, unknown][] = []
  for (const [name, value] of entries.slice(0, fieldsMax)) {
    if (value === undefined || typeof value === 'function') continue
    budget.chars -= name.length
    const hidden = isSecretName(name) && value !== null && typeof value !== 'boolean'
    safe.push([
      cut(redact(name), fieldNameCharsMax),
      hidden ? '[redacted]' : safeValue(value, budget, depth + 1),
    ])
  }
  return Object.fromEntries(safe)
}
