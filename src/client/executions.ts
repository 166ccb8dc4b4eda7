import { lines } from './lines.ts'
import type { Transport } from './transport.ts'

export interface ExecutionInfo {
  id: string
  source: string
  target: { kind: string; name: string }
  status: string
  statusReason: string | null
  parent: string | null
  index: number | null
  parts: number | null
  labels: Record<string, string>
  attempts: number
  attemptsMax: number
  dead: boolean
  acceptedAt: string
  runAt: string
  startedAt: string | null
  endedAt: string | null
  durationMs: number | null
  timeoutSeconds: number
  error: { code?: string; message?: string } | null
  result: { bytes: number; type: string | null } | null
  note: Record<string, unknown>
  /** Of one with parts. */
  counts?: Record<string, number>
}

export interface ExecutionEventInfo {
  number: number
  at: string
  type: 'state' | 'created' | 'started' | 'progress' | 'updated' | 'ended'
  execution: ExecutionInfo
  progress?: Record<string, unknown>
}

export interface ExecutionMetrics {
  source: string
  waiting: number
  running: number
  reported: number
  oldestWaitingMs: number
  acceptedTotal: number
  endedTotal: Record<string, number>
  acceptedPerSecond: number
  endedPerSecond: number
}

export interface ExecutionQuery {
  target?: string
  status?: string
  parent?: string
  label?: string
  since?: string
  sort?: 'newest' | 'oldest' | 'index'
}

/** Work that was accepted to be done later. */
export class Executions {
  constructor(private readonly transport: Transport) {}

  async page(
    query: ExecutionQuery & { limit?: number; cursor?: string },
  ): Promise<{ items: ExecutionInfo[]; nextCursor: string }> {
    const given = Object.entries(query).filter(([, value]) => value !== undefined && value !== '')
    const asked = new URLSearchParams(given.map(([name, value]) => [name, String(value)]))
    const answer = await this.transport.json<{ data: ExecutionInfo[]; meta: { nextCursor: string } }>(
      'GET',
      `/executions?${asked}`,
    )
    return { items: answer.data, nextCursor: answer.meta.nextCursor }
  }

  async get(id: string): Promise<ExecutionInfo> {
    return await this.transport.json('GET', addressOf(id))
  }

  async result(id: string): Promise<{ type: string | null; encoding: 'utf8' | 'base64'; data: string }> {
    return await this.transport.json('GET', `${addressOf(id)}/result`)
  }

  /** What it is, and what happens to it until it ended; parts of it too. */
  async *events(id: string, signal: AbortSignal): AsyncIterable<ExecutionEventInfo> {
    const response = await this.transport.request(
      `${this.transport.apiUrl}${addressOf(id)}/events?parts=true`,
      { method: 'GET', headers: { accept: 'text/event-stream' }, signal },
    )
    for await (const line of lines(response)) {
      if (line.startsWith('data: ')) yield JSON.parse(line.slice(6)) as ExecutionEventInfo
    }
  }

  async cancel(id: string, reason?: string): Promise<ExecutionInfo> {
    return await this.transport.json(
      'POST',
      `${addressOf(id)}/cancel`,
      reason === undefined ? {} : { reason },
    )
  }

  async replay(id: string): Promise<ExecutionInfo> {
    return await this.transport.json('POST', `${addressOf(id)}/replay`)
  }

  /** The newest thousand at most. */
  async replayMany(
    query: ExecutionQuery & { dead?: boolean },
  ): Promise<{ replayed: number; executions: string[] }> {
    return await this.transport.json('POST', '/executions/replay', query)
  }

  async metrics(): Promise<ExecutionMetrics[]> {
    return (await this.transport.json<{ sources: ExecutionMetrics[] }>('GET', '/executions/metrics')).sources
  }
}

function addressOf(id: string): string {
  return `/executions/${encodeURIComponent(id)}`
}
