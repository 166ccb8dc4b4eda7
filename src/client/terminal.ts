import type { Transport } from './transport.ts'

export interface TerminalOptions {
  cols: number
  rows: number
  /** Who names the same session shares one shell. */
  sessionId?: string
  shell?: string
  workingDir?: string
  onOutput: (text: string) => void
  onError: (message: string) => void
}

export interface TerminalEnd {
  code: number
  reason: string
}

/** Typed before the connection is there. */
const waitingFramesMax = 1000

/** An interactive shell in one sandbox. */
export class Terminal {
  /** Resolves when the connection is over, whoever ended it. */
  readonly ended: Promise<TerminalEnd>
  private readonly socket: WebSocket
  private readonly waiting: string[] = []

  constructor(transport: Transport, url: string, options: TerminalOptions) {
    const { onOutput, onError, ...query } = options
    const parameters = new URLSearchParams()
    for (const [name, value] of Object.entries(query))
      if (value !== undefined) parameters.set(name, String(value))
    this.socket = transport.socket(`${url}/terminal/ws?${parameters}`)
    const { promise, resolve } = Promise.withResolvers<TerminalEnd>()
    this.ended = promise
    this.socket.addEventListener('open', () => {
      for (const frame of this.waiting.splice(0)) this.socket.send(frame)
    })
    this.socket.addEventListener('message', ({ data }) => {
      const frame = JSON.parse(String(data)) as { type: string; data: string }
      if (frame.type === 'output') onOutput(frame.data)
      else if (frame.type === 'error') onError(frame.data)
    })
    this.socket.addEventListener('close', ({ code, reason }) => resolve({ code, reason }))
  }

  type(data: string): void {
    this.send({ type: 'input', data })
  }

  resize(cols: number, rows: number): void {
    this.send({ type: 'resize', cols, rows })
  }

  /** Leaves; the shell goes on for a while. */
  close(): void {
    this.socket.close(1000)
  }

  private send(frame: object): void {
    const text = JSON.stringify(frame)
    if (this.socket.readyState === WebSocket.OPEN) this.socket.send(text)
    else if (this.socket.readyState === WebSocket.CONNECTING && this.waiting.length < waitingFramesMax)
      this.waiting.push(text)
  }
}
