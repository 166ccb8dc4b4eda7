import { ClientError, type Transport } from './transport.ts'

export interface ProcessInfo {
  pid: string
  name: string
  command: string
  status: 'running' | 'completed' | 'failed' | 'stopped' | 'killed'
  exitCode: number
  startedAt?: string
  completedAt?: string | null
}

export type ExecEvent =
  | { type: 'stdout' | 'stderr'; data: string }
  | { type: 'error'; data: string }
  | { type: 'result'; process: ProcessInfo }

export interface ExecRequest {
  command: string
  name?: string
  workingDir?: string
  env?: Record<string, string>
  stdin?: boolean
}

const lineCharactersMax = 16 * 1024 * 1024

/** Processes of one sandbox. */
export class Processes {
  constructor(
    private readonly transport: Transport,
    private readonly url: string,
  ) {}

  async list(): Promise<ProcessInfo[]> {
    return await this.transport.json('GET', `${this.url}/process`)
  }

  async get(id: string): Promise<ProcessInfo> {
    return await this.transport.json('GET', `${this.url}/process/${encodeURIComponent(id)}`)
  }

  async stop(id: string): Promise<void> {
    await this.transport.json('DELETE', `${this.url}/process/${encodeURIComponent(id)}`)
  }

  async kill(id: string): Promise<void> {
    await this.transport.json('DELETE', `${this.url}/process/${encodeURIComponent(id)}/kill`)
  }

  /**
   * Runs a command and yields its output as it appears; the last event is `result` or `error`. `started` is called
   * once the command runs.
   */
  async *exec(request: ExecRequest, started: () => void = () => {}): AsyncIterable<ExecEvent> {
    const response = await this.transport.request(`${this.url}/process`, {
      method: 'POST',
      headers: { 'content-type': 'application/json', accept: 'text/event-stream' },
      body: JSON.stringify({ ...request, waitForCompletion: true }),
    })
    started()
    for await (const line of lines(response)) {
      const event = JSON.parse(line) as { type: string; data?: string }
      if (event.type === 'stdout' || event.type === 'stderr' || event.type === 'error') {
        yield { type: event.type, data: event.data ?? '' }
      } else if (event.type === 'result') {
        yield { type: 'result', process: JSON.parse(event.data ?? '{}') as ProcessInfo }
      }
    }
  }

  /** Resolves when the process took the bytes. */
  async writeStdin(id: string, data: Uint8Array<ArrayBuffer>): Promise<void> {
    const response = await this.transport.request(`${this.url}/process/${encodeURIComponent(id)}/stdin`, {
      method: 'POST',
      headers: { 'content-type': 'application/octet-stream' },
      body: data,
    })
    await response.body?.cancel()
  }

  async closeStdin(id: string): Promise<void> {
    await this.transport.json('DELETE', `${this.url}/process/${encodeURIComponent(id)}/stdin`)
  }

  async logs(id: string): Promise<{ stdout: string; stderr: string }> {
    return await this.transport.json('GET', `${this.url}/process/${encodeURIComponent(id)}/logs`)
  }

  /** Output from its beginning until the process ends, as text lines with their stream. */
  async *follow(
    id: string,
    signal?: AbortSignal,
  ): AsyncIterable<{ stream: 'stdout' | 'stderr'; line: string }> {
    const response = await this.transport.request(
      `${this.url}/process/${encodeURIComponent(id)}/logs/stream`,
      {
        method: 'GET',
        ...(signal ? { signal } : {}),
      },
    )
    let stream: 'stdout' | 'stderr' = 'stdout'
    for await (const line of lines(response)) {
      if (line.startsWith('[keepalive]')) continue
      if (line.startsWith('stdout:')) stream = 'stdout'
      else if (line.startsWith('stderr:')) stream = 'stderr'
      yield { stream, line: /^std(out|err):/.test(line) ? line.slice('stdout:'.length) : line }
    }
  }
}

async function* lines(response: Response): AsyncIterable<string> {
  let rest = ''
  const decoder = new TextDecoder()
  for await (const chunk of response.body ?? []) {
    rest += decoder.decode(chunk as Uint8Array, { stream: true })
    const parts = rest.split('\n')
    rest = parts.pop() ?? ''
    if (rest.length > lineCharactersMax) throw new ClientError(0, 'the platform sent a line without an end')
    for (const part of parts) if (part !== '') yield part
  }
  if (rest !== '') yield rest
}
