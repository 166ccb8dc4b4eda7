import { atUsOf, type LogLine, type LogStream } from './line.ts'
import type { SeverityName } from './severity.ts'

/** Which lines; what is left out asks for nothing. */
export interface LogFilter {
  /** Microseconds since the epoch, both included. */
  fromUs?: number
  toUs?: number
  severities?: ReadonlySet<SeverityName>
  streams?: ReadonlySet<LogStream>
  /** In the message, whatever the case. */
  search?: string
  revision?: string
  instance?: string
  execution?: string
  task?: string
}

/** Whether an encoded line may be wanted: what costs little, before it is decoded. */
export function wantedText(text: string, filter: LogFilter): boolean {
  const { fromUs = 0, toUs = Number.MAX_SAFE_INTEGER, search, execution } = filter
  const atUs = atUsOf(text)
  if (!(atUs >= fromUs && atUs <= toUs)) return false
  if (execution !== undefined && !text.includes(execution)) return false
  return search === undefined || text.toLowerCase().includes(search.toLowerCase())
}

export function isWanted(line: LogLine, filter: LogFilter): boolean {
  const {
    fromUs = 0,
    toUs = Number.MAX_SAFE_INTEGER,
    severities,
    streams,
    search,
    revision,
    instance,
    execution,
    task,
  } = filter
  if (line.atUs < fromUs || line.atUs > toUs) return false
  if (severities !== undefined && !severities.has(line.severity)) return false
  if (streams !== undefined && !streams.has(line.stream)) return false
  if (revision !== undefined && line.revision !== revision) return false
  if (instance !== undefined && line.instance !== instance) return false
  if (execution !== undefined && line.execution !== execution) return false
  if (task !== undefined && line.task !== task) return false
  return search === undefined || line.message.toLowerCase().includes(search.toLowerCase())
}
