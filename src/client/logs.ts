import { lines } from './lines.ts'
import type { Transport } from './transport.ts'

export interface LogLine {
  timestamp: string
  message: string
  /** As OpenTelemetry numbers them: 9 is INFO, 17 ERROR. */
  severity: number
  level?: string
  stream?: 'build' | 'stdout' | 'stderr' | 'platform'
  revision?: string
  instance?: string
  /** Of a job. */
  execution?: string
  task?: string
}

export interface LogQuery {
  /** The plural, e.g. `agents`. */
  resourceType: string
  name: string
  start?: string
  end?: string
  severity?: string
  search?: string
  /** build, stdout, stderr, platform; several with commas. */
  stream?: string
  revision?: string
  taskId?: string
  executionId?: string
}

/** What workloads and their builds say. */
export class Logs {
  constructor(private readonly transport: Transport) {}

  /** Newest first. */
  async query(
    query: LogQuery & { limit?: number; offset?: number },
  ): Promise<{ logs: LogLine[]; totalCount: number }> {
    const answer = await this.transport.json<Record<string, { logs: LogLine[]; totalCount: number }>>(
      'GET',
      `/observability/logs?${parameters(query)}`,
    )
    return answer[query.name] ?? { logs: [], totalCount: 0 }
  }

  /** Oldest first, and then what comes, until `signal`. `last`: how many of those that are there already. */
  async *follow(query: LogQuery & { last?: number }, signal: AbortSignal): AsyncIterable<LogLine> {
    const url = `${this.transport.apiUrl}/observability/logs?${parameters(query)}&follow=true`
    const response = await this.transport.request(url, {
      method: 'GET',
      headers: { accept: 'application/x-ndjson' },
      signal,
    })
    for await (const text of lines(response)) {
      const record = JSON.parse(text) as LogLine & { type?: string }
      if (record.type !== 'keepalive') yield record
    }
  }
}

function parameters({
  name,
  ...query
}: LogQuery & { last?: number; limit?: number; offset?: number }): URLSearchParams {
  const given = Object.entries({ ...query, workloadIds: name }).filter(([, value]) => value !== undefined)
  return new URLSearchParams(given.map(([key, value]) => [key, String(value)]))
}
