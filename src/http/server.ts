import type { Server, ServerWebSocket } from 'bun'
import { PlatformError } from '../errors.ts'
import type { Logger } from '../lib/log.ts'
import { isLoopbackAddress } from '../lib/loopback.ts'
import { unpaceListener } from '../lib/tcp-connections.ts'
import type { App, Connection } from './app.ts'
import type { SendFile, Socket, SocketHandler } from './route.ts'
import { SentFiles } from './sent-files.ts'

export interface ServerOptions {
  app: Pick<App, 'fetch'>
  /** 0 takes one that is free on every host. */
  port: number
  /** Default: loopback, IPv4 and IPv6. */
  hosts?: string[]
  log: Logger
}

export interface HttpServer extends AsyncDisposable {
  /** How a client on this machine reaches it. */
  readonly url: string
  readonly port: number
  /** Accepts nothing more; open requests get `graceMs` (default 0) to end, then they are cut. Idempotent. */
  stop(graceMs?: number): Promise<void>
}

export const loopbackHosts = ['127.0.0.1', '::1']

/** A client that opens a connection and does not get its request out is let go after this. */
const connectionIdleSeconds = 75
const freePortAttemptsMax = 20
/** Bodies are streamed to whoever reads them, who has a limit of its own. */
const requestBodyBytesMax = 1024 ** 4
const socketMessageBytesMax = 16 * 1024 * 1024
const socketBacklogBytesMax = 16 * 1024 * 1024
/** Pinged well before: one that does not answer is gone, and is not to keep its sandbox awake. */
const socketIdleSeconds = 120
const tryAgainLater = 1013

interface SocketData {
  handler: SocketHandler
  socket: Socket | null
}
type BunServer = Server<SocketData>

/** Listens on every host with one port. @throws conflict when the port is taken, bad_request for a host that is not here */
export function startServer(options: ServerOptions): HttpServer {
  const hosts = options.hosts ?? loopbackHosts
  const files = new SentFiles()
  const servers = listen(options, hosts, files)
  const port = servers[0]!.port!
  for (const { hostname } of servers) {
    if (hostname !== undefined && isLoopbackAddress(hostname)) unpaceListener({ address: hostname, port })
  }
  let stopped: Promise<void> | null = null
  const stop = (graceMs = 0) => (stopped ??= stopAll(servers, graceMs).finally(() => files[Symbol.dispose]()))
  return { url: urlOf(hosts[0]!, port), port, stop, [Symbol.asyncDispose]: () => stop() }
}

function listen(options: ServerOptions, hosts: string[], files: SentFiles): BunServer[] {
  const attemptsMax = options.port === 0 ? freePortAttemptsMax : 1
  for (let attempt = 1; ; attempt++) {
    const servers: BunServer[] = []
    try {
      for (const host of hosts) {
        const port = servers[0]?.port ?? options.port
        const server = listenOn(options, files, host, port, servers.length > 0)
        if (server !== null) servers.push(server)
      }
      return servers
    } catch (error) {
      for (const server of servers) void server.stop(true)
      if (attempt >= attemptsMax || !isInUse(error)) throw error
    }
  }
}

/** Null when the host is IPv6's loopback and this machine has no IPv6. */
function listenOn(
  options: ServerOptions,
  files: SentFiles,
  host: string,
  port: number,
  optional: boolean,
): BunServer | null {
  const { app, log } = options
  try {
    return Bun.serve<SocketData>({
      ...shared({ app, log }, files),
      hostname: host,
      port,
      idleTimeout: connectionIdleSeconds,
      // Outside of development its default is to share the port, with whoever else asks for it.
      reusePort: false,
    })
  } catch (error) {
    const code = error instanceof Error && 'code' in error ? error.code : undefined
    if (isInUse(error)) {
      throw new PlatformError(
        'conflict',
        `Port ${port} on ${host} is taken: stop its owner or choose another --port`,
        {
          cause: error,
        },
      )
    }
    if (optional && host === '::1' && (code === 'EADDRNOTAVAIL' || code === 'EAFNOSUPPORT')) {
      log.info('this machine has no IPv6 loopback: listening on IPv4 only')
      return null
    }
    throw new PlatformError(
      'bad_request',
      `host: cannot listen on ${host}, port ${port}: ${String(code ?? error)}`,
      {
        cause: error,
      },
    )
  }
}

/** Listens on a unix socket, where it replaces one that was left behind. */
export function serveUnixSocket(
  path: string,
  options: Pick<ServerOptions, 'app' | 'log'>,
): { stop(): Promise<void> } {
  const files = new SentFiles()
  const server = Bun.serve<SocketData>({ ...shared(options, files), unix: path })
  return { stop: () => server.stop(true).finally(() => files[Symbol.dispose]()) }
}

function shared({ app, log }: Pick<ServerOptions, 'app' | 'log'>, files: SentFiles) {
  return {
    // Otherwise a body that breaks off is printed on stderr, past the logger and its redaction.
    development: false,
    maxRequestBodySize: requestBodyBytesMax,
    fetch: (request: Request, server: BunServer) => {
      // A long poll, a stream or a slow command may rest as long as it likes once its request is in.
      server.timeout(request, 0)
      return answer(app, request, server, files)
    },
    error: (error: Error) => {
      log.error('a request failed outside its handler', { error })
      return new Response(null, { status: 500 })
    },
    websocket: socketCallbacks,
  } as const
}

async function answer(
  app: Pick<App, 'fetch'>,
  request: Request,
  server: BunServer,
  files: SentFiles,
): Promise<Response | undefined> {
  const connection = new ServedConnection(request, server, files)
  const response = await app.fetch(request, connection)
  return connection.upgraded ? undefined : response
}

/** What a request came by. */
class ServedConnection implements Connection {
  upgraded = false
  readonly #request: Request
  readonly #server: BunServer
  readonly #files: SentFiles

  constructor(request: Request, server: BunServer, files: SentFiles) {
    this.#request = request
    this.#server = server
    this.#files = files
  }

  get address(): string | null {
    return this.#server.requestIP(this.#request)?.address ?? null
  }

  get upgrade(): Connection['upgrade'] {
    return (handler, options) => this.#upgrade(handler, options?.headers)
  }

  #upgrade(handler: SocketHandler, headers: Record<string, string> | undefined): Response {
    const data: SocketData = { handler, socket: null }
    if (!this.#server.upgrade(this.#request, { data, headers })) {
      throw new PlatformError('bad_request', 'This is not a WebSocket request: send Upgrade: websocket')
    }
    this.upgraded = true
    return new Response(null, { status: 101 })
  }

  get sendFile(): SendFile | null {
    if (this.#files.full) return null
    return (file, headers, onEnd) => this.#files.send(this.#server, this.#request, file, headers, onEnd)
  }
}

const socketCallbacks = {
  maxPayloadLength: socketMessageBytesMax,
  backpressureLimit: socketBacklogBytesMax,
  idleTimeout: socketIdleSeconds,
  sendPings: true,
  perMessageDeflate: false,
  open(inner: ServerWebSocket<SocketData>) {
    inner.binaryType = 'uint8array'
    inner.data.socket = socketOver(inner)
    inner.data.handler.open(inner.data.socket)
  },
  message(inner: ServerWebSocket<SocketData>, data: string | Uint8Array) {
    inner.data.handler.message(inner.data.socket!, data)
  },
  ping(inner: ServerWebSocket<SocketData>) {
    inner.data.handler.ping?.(inner.data.socket!)
  },
  drain(inner: ServerWebSocket<SocketData>) {
    inner.data.handler.drain?.(inner.data.socket!)
  },
  close(inner: ServerWebSocket<SocketData>, code: number, reason: string) {
    // Closed before it was opened: nobody knows of it.
    if (inner.data.socket !== null) inner.data.handler.close(inner.data.socket, code, reason)
  },
}

function socketOver(inner: ServerWebSocket<SocketData>): Socket {
  return {
    send(data) {
      const sent =
        typeof data === 'string' ? inner.sendText(data) : inner.sendBinary(data as Uint8Array<ArrayBuffer>)
      if (sent > 0) return true
      // 0: dropped, since the backlog is full or the peer is gone. A gap in a stream is worse than its end.
      if (sent === 0 && inner.readyState === WebSocket.OPEN && data.length > 0) {
        inner.close(tryAgainLater, 'too slow')
      }
      return sent === 0 && data.length === 0
    },
    close: (code, reason) => inner.close(code, reason),
  }
}

async function stopAll(servers: BunServer[], graceMs: number): Promise<void> {
  if (graceMs > 0) {
    const timer = Promise.withResolvers<void>()
    const timeout = setTimeout(timer.resolve, graceMs)
    await Promise.race([Promise.all(servers.map((server) => server.stop(false))), timer.promise])
    clearTimeout(timeout)
  }
  await Promise.all(servers.map((server) => server.stop(true)))
}

function isInUse(error: unknown): boolean {
  const cause = PlatformError.is(error) ? error.cause : error
  return cause instanceof Error && 'code' in cause && cause.code === 'EADDRINUSE'
}

function urlOf(host: string, port: number): string {
  if (host === '0.0.0.0' || host === '::' || host === '*') return `http://localhost:${port}`
  return host.includes(':') ? `http://[${host}]:${port}` : `http://${host}:${port}`
}
