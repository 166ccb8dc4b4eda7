import { PlatformError } from '../../errors.ts'
import { BoundedMap } from '../../lib/bounded-map.ts'
import type { PortAddress } from '../../spec/runtime.ts'
import type { ConsumedCredentials, RouteContext, Socket } from '../route.ts'
import { counted, onceEnded, untyped } from './bodies.ts'
import type { Exchange } from './exchanges.ts'

/** A request on its way to a port inside an instance, and what the program there must not see or must be told. */
export interface ProxyOptions {
  port: number
  /** Undecoded path and query as the program shall see them. */
  path: string
  /** Where clients reach the platform, e.g. `http://localhost:4400`. */
  publicOrigin: string
  /** What stands before `path` in the public address: '' or e.g. `/-/preview/abc`. */
  publicPrefix: string
  consumed: ConsumedCredentials
  /** Name of a cookie that is the platform's, not the program's. */
  ownCookie?: string
  requestHeaders?: Record<string, string>
  /** How whatever listens is called in messages; default: the sandbox. */
  title?: string
  /** How long it may take and how large it may be; absent: as it comes. For `proxyHttp`. */
  exchange?: Exchange
  /** Is there a listener on the port now? Tells a server that is down from one that hung up. */
  listening: () => Promise<boolean>
  /** Called once, when the exchange is over. */
  onEnd: () => void
}

/** An answer of known length up to this is passed on in one piece and keeps its Content-Length. */
const bufferedBytesMax = 256 * 1024
/** Beyond this a connection whose receiver does not keep up is closed. */
const socketQueueBytesMax = 16 * 1024 * 1024
const socketDialMsMax = 30_000

const hopByHop = new Set([
  'connection',
  'keep-alive',
  'proxy-authenticate',
  'proxy-authorization',
  'proxy-connection',
  'te',
  'trailer',
  'transfer-encoding',
  'upgrade',
])
/** Told by the platform alone. */
const forwarded = [
  'forwarded',
  'x-forwarded-for',
  'x-forwarded-host',
  'x-forwarded-proto',
  'x-forwarded-prefix',
  'x-real-ip',
]
const alwaysConsumed = ['x-blaxel-authorization', 'x-blaxel-preview-token']
/** No answer can have a higher one. */
const statusMax = 599
/** A request of a known length up to this is not watched as it passes: it takes no time. */
const unwatchedBytesMax = 64 * 1024
/**
 * A connection that was quiet for longer may be closed at any moment, and is as a rule when an instance is thawed whose
 * program counts the time it stood still. It is not trusted with a request that cannot be sent twice.
 */
const quietMsMax = 1000
const portsMax = 4096
/** When a request went to each port last, by the monotonic clock. */
const spokenWith = new BoundedMap<string, number>(portsMax)
/** Statuses of answers that have none. */
const bodiless = new Set([101, 204, 205, 304])
/** Would speak for the whole origin, which many programs share when they are addressed by path. */
const originWide = [
  'clear-site-data',
  'service-worker-allowed',
  'strict-transport-security',
  'alt-svc',
  'public-key-pins',
]
/** Says that an error is the platform's: only the platform may. */
const platformOnly = ['x-blaxel-source', 'x-blaxel-error-code']

/**
 * Sends a request to a port inside an instance and streams both bodies, untouched. When the client leaves, the program's
 * connection is closed. A request without a body whose method is idempotent is sent once more if its connection broke
 * before an answer, as a kept-alive connection may; nothing else is ever sent twice, and after a pause it gets a
 * connection of its own.
 * @throws bad_gateway when nothing listens there or no answer came
 */
export async function proxyHttp(
  request: Request,
  target: PortAddress,
  options: ProxyOptions,
): Promise<Response> {
  const method = request.method
  const { exchange } = options
  const replayable = request.body === null && (method === 'GET' || method === 'HEAD' || method === 'OPTIONS')
  const spoke = spokeJustNow(target)
  const trusted = replayable || spoke
  const send = () =>
    fetchPort(target, options.path, {
      method,
      keepalive: trusted,
      headers: upstreamHeaders(request.headers, options),
      body: bodyOf(request, exchange),
      redirect: 'manual',
      decompress: false,
      signal: exchange?.signal ?? request.signal,
      timeout: false,
    })
  try {
    let upstream: Response
    try {
      upstream = await send()
    } catch (error) {
      if (request.signal.aborted) throw error
      if (exchange?.failure) throw exchange.failure
      if (!(await options.listening())) throw notListening(options, error)
      if (!replayable) throw hungUp(options.port, error)
      upstream = await send().catch((again) => {
        throw exchange?.failure ?? hungUp(options.port, again)
      })
    }
    return await answerOf(upstream, request, options)
  } catch (error) {
    options.onEnd()
    throw error
  }
}

function spokeJustNow({ unix, origin }: PortAddress): boolean {
  const port = unix ?? origin
  const now = performance.now()
  const before = spokenWith.get(port)
  spokenWith.set(port, now)
  return before !== undefined && now - before < quietMsMax
}

/** A request to a port, which is on this host: a proxy that the environment names has no part in it. */
export function fetchPort(
  { origin, unix }: PortAddress,
  path: string,
  init: BunFetchRequestInit,
): Promise<Response> {
  return fetch(`${origin}${path}`, { ...init, proxy: false, ...(unix === undefined ? {} : { unix }) })
}

async function answerOf(upstream: Response, request: Request, options: ProxyOptions): Promise<Response> {
  if (upstream.status > statusMax) {
    await upstream.body?.cancel().catch(() => {})
    throw noStatus(options.port, upstream.status)
  }
  const headers = answerHeaders(upstream.headers, options)
  const init = { status: upstream.status, statusText: upstream.statusText, headers }
  const { exchange } = options
  const withoutBody = request.method === 'HEAD' || bodiless.has(upstream.status)
  const length = upstream.headers.get('content-length')
  if (!withoutBody && length !== null && Number(length) <= bufferedBytesMax) {
    const bytes = await upstream.bytes().catch((error) => {
      throw exchange?.failure ?? hungUp(options.port, error)
    })
    options.onEnd()
    return new Response(headers.has('content-type') ? bytes : untyped(bytes), init)
  }
  const { body } = upstream
  if (!body || withoutBody) {
    await body?.cancel().catch(() => {})
    options.onEnd()
    return new Response(null, init)
  }
  const passed = exchange && ((bytes: number) => exchange.answered(bytes))
  return new Response(onceEnded(body, options.onEnd, passed), init)
}

/** A body whose length nobody told is counted as it passes, and so is one that may be long on its way. */
function bodyOf(request: Request, exchange: Exchange | undefined): ReadableStream<Uint8Array> | null {
  const { body } = request
  if (body === null || exchange === undefined) return body
  const length = request.headers.get('content-length')
  if (length !== null && Number(length) <= unwatchedBytesMax) return body
  return counted(body, (bytes) => exchange.sent(bytes))
}

/**
 * Joins the client's WebSocket with one to a port inside an instance. The program is dialled first, so that its refusal
 * and its choice of subprotocol reach the client.
 * @throws bad_gateway when it cannot be reached or refuses
 */
export async function proxySocket(
  request: Request,
  upgrade: NonNullable<RouteContext<unknown, unknown, unknown>['upgrade']>,
  target: PortAddress,
  options: ProxyOptions,
): Promise<Response> {
  try {
    const headers = upstreamHeaders(request.headers, options)
    for (const name of [...headers.keys()]) if (name.startsWith('sec-websocket-')) headers.delete(name)
    const protocols = (request.headers.get('sec-websocket-protocol') ?? '')
      .split(',')
      .map((protocol) => protocol.trim())
      .filter((protocol) => protocol !== '')
    const address =
      target.unix === undefined
        ? `${target.origin.replace(/^http/, 'ws')}${options.path}`
        : `ws+unix://${target.unix}:${options.path}`
    // The options are Bun's; the DOM's type of the constructor does not know them.
    const Client = WebSocket as unknown as new (url: string, init: object) => WebSocket
    const upstream = new Client(address, { headers: Object.fromEntries(headers), protocols })
    upstream.binaryType = 'arraybuffer'
    const relay = new Relay(upstream, options.onEnd)
    await relay.opened(request.signal).catch(async (error) => {
      upstream.close()
      if (request.signal.aborted) throw error
      throw (await options.listening()) ? refusedSocket(options.port, error) : notListening(options, error)
    })
    const answer =
      upstream.protocol === '' ? {} : { headers: { 'sec-websocket-protocol': upstream.protocol } }
    try {
      return upgrade(relay, answer)
    } catch (error) {
      upstream.close()
      throw error
    }
  } catch (error) {
    options.onEnd()
    throw error
  }
}

/** Two WebSockets joined. Messages that arrive before the client is there, or that it is too slow for, wait in line. */
class Relay {
  private client: Socket | null = null
  private clientReady = false
  private queue: (string | Uint8Array)[] = []
  private queuedBytes = 0
  private closed: { code: number; reason: string } | null = null
  private over = false
  private readonly dialled = Promise.withResolvers<void>()

  constructor(
    private readonly upstream: WebSocket,
    private readonly onEnd: () => void,
  ) {
    upstream.addEventListener('open', () => this.dialled.resolve())
    upstream.addEventListener('error', (event) => {
      this.dialled.reject(new Error(withoutAddress((event as ErrorEvent).message)))
    })
    upstream.addEventListener('message', ({ data }) => {
      this.fromUpstream(typeof data === 'string' ? data : new Uint8Array(data as ArrayBuffer))
    })
    upstream.addEventListener('close', ({ code, reason }) => {
      this.dialled.reject(new Error(`the WebSocket was closed with ${code}`))
      this.closed = { code, reason }
      this.flush()
    })
    this.dialled.promise.catch(() => {})
  }

  async opened(signal: AbortSignal): Promise<void> {
    signal.throwIfAborted()
    const give = AbortSignal.any([signal, AbortSignal.timeout(socketDialMsMax)])
    await Promise.race([
      this.dialled.promise,
      new Promise<never>((_, reject) =>
        give.addEventListener('abort', () => reject(give.reason), { once: true }),
      ),
    ])
  }

  open(socket: Socket): void {
    this.client = socket
    this.clientReady = true
    this.flush()
  }

  message(_socket: Socket, data: string | Uint8Array): void {
    if (this.upstream.readyState !== WebSocket.OPEN) return
    this.upstream.send(data as string)
    if (this.upstream.bufferedAmount > socketQueueBytesMax)
      this.closeBoth(1013, 'the receiver does not keep up')
  }

  drain(): void {
    this.clientReady = true
    this.flush()
  }

  close(_socket: Socket, code: number, reason: string): void {
    this.client = null
    this.queue = []
    this.end()
    this.upstream.close(sendableCode(code), reason)
  }

  private fromUpstream(data: string | Uint8Array): void {
    this.queue.push(data)
    this.queuedBytes += data.length
    this.flush()
    if (this.queuedBytes > socketQueueBytesMax) this.closeBoth(1013, 'the receiver does not keep up')
  }

  private flush(): void {
    if (!this.client) return
    while (this.clientReady && this.queue.length > 0) {
      const data = this.queue.shift()!
      this.queuedBytes -= data.length
      this.clientReady = this.client.send(data)
    }
    if (this.closed && this.queue.length === 0) {
      this.client.close(sendableCode(this.closed.code), this.closed.reason)
      this.end()
    }
  }

  private closeBoth(code: number, reason: string): void {
    this.queue = []
    this.queuedBytes = 0
    this.upstream.close(sendableCode(code), reason)
    this.client?.close(code, reason)
    this.end()
  }

  private end(): void {
    if (!this.over) this.onEnd()
    this.over = true
  }
}

/** The message of a WebSocket's error names the address, whose query is the program's secret. */
function withoutAddress(message: string | undefined): string {
  return message?.replace(/ to '.*'(?= failed)/s, '') || 'the WebSocket could not be opened'
}

/** Codes that only a missing frame stands for cannot be sent. */
function sendableCode(code: number): number {
  if (code === 1005) return 1000
  const sendable =
    (code >= 1000 && code <= 1003) || (code >= 1007 && code <= 1014) || (code >= 3000 && code <= 4999)
  return sendable ? code : 1011
}

function upstreamHeaders(incoming: Headers, options: ProxyOptions): Headers {
  const headers = withoutHopByHop(incoming)
  for (const name of [...forwarded, ...alwaysConsumed, ...options.consumed.headers, 'expect'])
    headers.delete(name)
  const [protocol = '', host = ''] = options.publicOrigin.split('://')
  headers.set('host', options.publicPrefix === '' ? host : `localhost:${options.port}`)
  headers.set('x-forwarded-host', host)
  headers.set('x-forwarded-proto', protocol)
  if (options.publicPrefix !== '') headers.set('x-forwarded-prefix', options.publicPrefix)
  if (options.ownCookie !== undefined) hideCookie(headers, options.ownCookie)
  for (const [name, value] of Object.entries(options.requestHeaders ?? {})) headers.set(name, value)
  return headers
}

function hideCookie(headers: Headers, name: string): void {
  const cookie = headers.get('cookie')
  if (!cookie?.includes(name)) return
  const kept = cookie.split(';').filter((pair) => pair.split('=', 1)[0]?.trim() !== name)
  if (kept.length === 0) headers.delete('cookie')
  else headers.set('cookie', kept.join(';').trim())
}

function answerHeaders(incoming: Headers, options: ProxyOptions): Headers {
  const headers = withoutHopByHop(incoming)
  for (const name of platformOnly) headers.delete(name)
  const location = headers.get('location')
  if (location !== null) headers.set('location', publicLocation(location, options))
  const cookies = incoming.getSetCookie()
  if (cookies.length > 0) {
    headers.delete('set-cookie')
    for (const cookie of cookies) headers.append('set-cookie', scopedCookie(cookie, options.publicPrefix))
  }
  if (options.publicPrefix !== '') for (const name of originWide) headers.delete(name)
  return headers
}

function withoutHopByHop(incoming: Headers): Headers {
  const headers = new Headers(incoming)
  for (const name of (incoming.get('connection') ?? '').split(',')) {
    const trimmed = name.trim().toLowerCase()
    if (/^[a-z0-9-]+$/.test(trimmed)) headers.delete(trimmed)
  }
  for (const name of hopByHop) headers.delete(name)
  return headers
}

/** A redirect to the program's own address, as it knows it, leads to where the client reaches it. */
function publicLocation(location: string, { port, publicOrigin, publicPrefix }: ProxyOptions): string {
  const own = new RegExp(
    `^http://(localhost|127\\.0\\.0\\.1|0\\.0\\.0\\.0|\\[::1\\]):${port}(?=[/?#]|$)`,
    'i',
  )
  if (own.test(location)) return location.replace(own, `${publicOrigin}${publicPrefix}`)
  if (publicPrefix !== '' && location.startsWith('/') && !location.startsWith('//'))
    return publicPrefix + location
  return location
}

/** Kept to this program's addresses: never to a parent domain, and under its own path where it shares an origin. */
function scopedCookie(cookie: string, publicPrefix: string): string {
  const [pair = '', ...attributes] = cookie.split(';').map((part) => part.trim())
  let path = '/'
  const kept = attributes.filter((attribute) => {
    const [name = '', value = ''] = attribute.split('=')
    if (/^path$/i.test(name)) path = value.startsWith('/') ? value : '/'
    return !/^domain$/i.test(name) && !(publicPrefix !== '' && /^path$/i.test(name))
  })
  if (publicPrefix !== '') kept.push(`Path=${publicPrefix}${path}`)
  return [pair, ...kept].join('; ')
}

/** A query string without the parameters that a credential came in. */
export function withoutParameters(search: string, names: string[]): string {
  if (search.length < 2 || names.length === 0) return search
  const kept = search
    .slice(1)
    .split('&')
    .filter((part) => !names.includes(decodeName(part.split('=', 1)[0] ?? '')))
  return kept.length === 0 ? '' : `?${kept.join('&')}`
}

function decodeName(name: string): string {
  try {
    return decodeURIComponent(name.replaceAll('+', ' '))
  } catch {
    return name
  }
}

export function isSocketRequest(request: Request): boolean {
  return request.method === 'GET' && (request.headers.get('upgrade') ?? '').toLowerCase() === 'websocket'
}

function notListening({ port, title }: ProxyOptions, cause: unknown): PlatformError {
  if (title !== undefined) {
    return new PlatformError('bad_gateway', `${title} does not listen on port ${port} (any more)`, {
      cause,
      details: { reason: 'port_closed', port },
    })
  }
  return new PlatformError(
    'bad_gateway',
    `nothing listens on port ${port} inside the sandbox: start a server there that listens on 0.0.0.0 or localhost`,
    { cause, details: { reason: 'port_closed', port } },
  )
}

function hungUp(port: number, cause: unknown): PlatformError {
  return new PlatformError(
    'bad_gateway',
    `the server on port ${port} closed the connection before its answer was complete`,
    {
      cause,
      details: { reason: 'hung_up', port },
    },
  )
}

function noStatus(port: number, status: number): PlatformError {
  return new PlatformError(
    'bad_gateway',
    `the server on port ${port} answered with the status ${status}: there is none above ${statusMax}`,
    { details: { reason: 'bad_answer', port } },
  )
}

function refusedSocket(port: number, cause: unknown): PlatformError {
  return new PlatformError('bad_gateway', `the server on port ${port} did not accept the WebSocket`, {
    cause,
    details: { reason: 'socket_refused', port },
  })
}
