import { lines } from './lines.ts'
import { ClientError, type Transport } from './transport.ts'

export interface ProcessInfo {
  pid: string
  name: string
  command: string
  status: 'running' | 'completed' | 'failed' | 'stopped' | 'killed'
  exitCode: number
  startedAt?: string
  completedAt?: string | null
  /** The number of the signal that ended it. */
  signal?: number
  /** The kernel ended it, or a program of it, for want of memory. */
  outOfMemory?: true
}

/** Text, or bytes where the output is no UTF-8. */
export interface OutputEvent {
  type: 'stdout' | 'stderr'
  data: string | Uint8Array
}

export type ExecEvent = OutputEvent | { type: 'result'; process: ProcessInfo }

export interface ExecRequest {
  command: string
  name?: string
  workingDir?: string
  env?: Record<string, string>
  stdin?: boolean
  keepAlive?: boolean
  /** Seconds; 0: without end. */
  timeout?: number
}

const endPollMsMax = 1000

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

  async start(request: ExecRequest): Promise<ProcessInfo> {
    return await this.transport.json('POST', `${this.url}/process`, request)
  }

  async stop(id: string): Promise<void> {
    await this.transport.json('DELETE', `${this.url}/process/${encodeURIComponent(id)}`)
  }

  async kill(id: string): Promise<void> {
    await this.transport.json('DELETE', `${this.url}/process/${encodeURIComponent(id)}/kill`)
  }

  /**
   * Runs a command and yields its output, exactly, as it appears; the last event is `result`. `started` is called
   * once the command runs.
   */
  async *exec(request: ExecRequest, started: () => void = () => {}): AsyncIterable<ExecEvent> {
    const { pid } = await this.start(request)
    started()
    yield* this.follow(pid)
    for (let attempt = 0; ; attempt++) {
      const process = await this.get(pid)
      if (process.status !== 'running') return yield { type: 'result', process }
      // Its output can end a moment before its record does, or long before: a daemon closes both.
      await Bun.sleep(Math.min(endPollMsMax, 10 * 2 ** attempt))
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

  /** Output from its beginning until the process ends. */
  async *follow(id: string, signal?: AbortSignal): AsyncIterable<OutputEvent> {
    const response = await this.transport.request(
      `${this.url}/process/${encodeURIComponent(id)}/logs/stream`,
      {
        method: 'GET',
        // As records: the plain form is cut into lines and loses whether the last one was ended.
        headers: { accept: 'application/x-ndjson' },
        ...(signal ? { signal } : {}),
      },
    )
    for await (const line of lines(response)) {
      const event = JSON.parse(line) as { type: string; data?: string; encoding?: string }
      if (event.type === 'error') throw new ClientError(0, event.data ?? 'the output cannot be read')
      const data = event.data ?? ''
      // What the platform says about the output, where it belongs in it.
      if ((event.type === 'truncated' || event.type === 'restart') && data !== '')
        yield { type: 'stderr', data }
      if (event.type !== 'stdout' && event.type !== 'stderr') continue
      yield { type: event.type, data: event.encoding === 'base64' ? Buffer.from(data, 'base64') : data }
    }
  }
}
