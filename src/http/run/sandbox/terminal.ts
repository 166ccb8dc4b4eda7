import { z } from 'zod'
import { PlatformError } from '../../../errors.ts'
import { isSet } from '../../../lib/flag.ts'
import type { TerminalClient, TerminalRequest, TerminalSession } from '../../../sandboxes/processes.ts'
import type { Socket, SocketHandler } from '../../route.ts'
import { isSocketRequest } from '../proxy.ts'
import { pageNotFound, type SandboxAnswer, type SandboxCall } from './call.ts'
import { terminalPage } from './terminal-page.ts'

const sizeMax = 1000
const colsDefault = 80
const rowsDefault = 24
const sessionIdCharsMax = 128
const textCharsMax = 4096
const closeFailed = 1011

const frame = z.lazy(() =>
  z.discriminatedUnion('type', [
    z.object({ type: z.literal('input'), data: z.string() }),
    z.object({
      type: z.literal('resize'),
      cols: z.number().int().min(1).max(sizeMax),
      rows: z.number().int().min(1).max(sizeMax),
    }),
  ]),
)

/** A page with a terminal in it. */
export function showTerminal(call: SandboxCall): SandboxAnswer | Promise<SandboxAnswer> {
  return isOff(call) ? pageNotFound() : terminalPage(call.lease.name)
}

/** A WebSocket with JSON frames: `input` and `resize` come in, `output` and `error` go out. */
export function connectTerminal(call: SandboxCall): SandboxAnswer {
  if (isOff(call)) return pageNotFound()
  if (!call.upgrade || !isSocketRequest(call.request)) {
    throw new PlatformError('bad_request', 'the terminal is a WebSocket: send Upgrade: websocket')
  }
  const request = readRequest(call.query)
  const connection = new TerminalConnection(
    (client) => call.lease.processes.terminals.join(request, client),
    call.onEnd,
  )
  return { streaming: call.upgrade(connection), endsItself: true }
}

function isOff({ lease }: SandboxCall): boolean {
  return isSet(lease.env.DISABLE_TERMINAL)
}

/** @throws bad_request that names the parameter */
function readRequest(query: URLSearchParams): TerminalRequest {
  const size = (name: string, byDefault: number) => {
    const text = query.get(name)
    if (text === null || text === '') return byDefault
    const value = Number(text)
    if (Number.isInteger(value) && value >= 1 && value <= sizeMax) return value
    throw new PlatformError(
      'bad_request',
      `${name}: "${text.slice(0, 20)}" is not a size: send 1 to ${sizeMax}`,
    )
  }
  const text = (name: string, charsMax: number) => {
    const value = query.get(name) ?? ''
    if (value.length <= charsMax && !/\p{Cc}/u.test(value)) return value
    throw new PlatformError(
      'bad_request',
      `${name}: must be at most ${charsMax} characters, none of them control`,
    )
  }
  const shell = text('shell', textCharsMax)
  const workingDir = text('workingDir', textCharsMax)
  return {
    sessionId: text('sessionId', sessionIdCharsMax) || 'default',
    cols: size('cols', colsDefault),
    rows: size('rows', rowsDefault),
    ...(shell ? { shell } : {}),
    ...(workingDir ? { workingDir } : {}),
  }
}

/** One WebSocket that looks at a session. What fails is told in a frame, since browsers see no status of an upgrade. */
class TerminalConnection implements SocketHandler, TerminalClient {
  private socket: Socket | null = null
  private session: TerminalSession | null = null
  private waiting: (string | Uint8Array)[] = []
  private over = false

  constructor(
    private readonly join: (client: TerminalClient) => Promise<TerminalSession>,
    private readonly onEnd: () => void,
  ) {}

  open(socket: Socket): void {
    this.socket = socket
    this.join(this).then(
      (session) => {
        this.session = session
        if (this.over) session.leave(this)
        for (const data of this.waiting.splice(0)) this.receive(session, data)
      },
      (error) => {
        this.error(error)
        this.dismiss(closeFailed, 'the terminal could not be opened')
      },
    )
  }

  message(_socket: Socket, data: string | Uint8Array): void {
    if (this.session) this.receive(this.session, data)
    else if (this.waiting.length < waitingFramesMax) this.waiting.push(data)
  }

  drain(): void {
    this.session?.resume(this)
  }

  close(): void {
    this.end()
  }

  output(text: string): boolean {
    return this.send({ type: 'output', data: text })
  }

  dismiss(code: number, reason: string): void {
    this.socket?.close(code, reason)
    this.end()
  }

  private end(): void {
    if (this.over) return
    this.over = true
    this.session?.leave(this)
    this.onEnd()
  }

  private receive(session: TerminalSession, data: string | Uint8Array): void {
    const parsed = parse(typeof data === 'string' ? data : Buffer.from(data).toString())
    if (!parsed.success) {
      this.send({
        type: 'error',
        data: 'send {"type":"input","data":...} or {"type":"resize","cols":...,"rows":...}',
      })
      return
    }
    const done = parsed.data.type === 'input' ? session.type(parsed.data.data) : session.resize(parsed.data)
    done.catch((error) => this.error(error))
  }

  private error(error: unknown): void {
    this.send({ type: 'error', data: PlatformError.is(error) ? error.message : 'the terminal failed' })
  }

  private send(message: { type: 'output' | 'error'; data: string }): boolean {
    return this.over || this.socket === null || this.socket.send(JSON.stringify(message))
  }
}

/** Typed before the shell is there. */
const waitingFramesMax = 1000

function parse(text: string) {
  try {
    return frame.safeParse(JSON.parse(text))
  } catch {
    return frame.safeParse(null)
  }
}
