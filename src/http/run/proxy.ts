import { PlatformError } from '../../errors.ts'
import {
  type AnswerHead,
  BadAnswer,
  type Call,
  Connections,
  type OutgoingRequest,
  type SendOptions,
} from '../../lib/http1/index.ts'
import type { PortAddress } from '../../spec/runtime.ts'
import type { ConsumedCredentials, RouteContext, Socket } from '../route.ts'
import { counted, onceEnded, untyped } from './bodies.ts'
import type { Exchange } from './exchanges.ts'
import { answerHeaders, forEachHeader, outgoingRequest } from './proxy-headers.ts'
import type { Visit } from './visited.ts'

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
  requestHeaders?: Record<string, string> | undefined
  /** How whatever listens is called in messages; default: the sandbox. */
  title?: string
  /** How long it may take and how large it may be; absent: as it comes. For `proxyHttp`. */
  exchange?: Exchange | undefined
  /** By whose leave, where that may end before the exchange does. */
  visit?: Visit
  /** Whoever reads the answer may hold pieces of it while he asks for more, as the server does not. For `proxyHttp`. */
  holdsPieces?: boolean | undefined
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

/** No answer can have a higher one. */
const statusMax = 599
/** A request of a known length up to this is not watched as it passes: it takes no time. */
const unwatchedBytesMax = 64 * 1024
/**
 * A connection that was quiet for longer may be closed at any moment, and is as a rule when an instance is thawed whose
 * program counts the time it stood still. It is not trusted with a request that cannot be sent twice.
 */
const quietMsMax = 1000
/** Statuses of answers that have none. */
const bodiless = new Set([101, 204, 205, 304])
/** To whatever listens inside instances. */
const connections = new Connections()

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
  const { method } = request
  const body = bodyOf(request, options.exchange)
  const replayable = body === null && (method === 'GET' || method === 'HEAD' || method === 'OPTIONS')
  const outgoing = outgoingRequest(request, body, options)
  try {
    let call = send(request, target, outgoing, replayable ? {} : { quietMsMax }, options)
    let head: AnswerHead
    try {
      head = await call.answered
    } catch (error) {
      await explain(error, request, options)
      if (!replayable) throw hungUp(options.port, error)
      call = send(request, target, outgoing, { fresh: true }, options)
      head = await call.answered.catch((again) => {
        throw (
          failureOf(options) ??
          (again instanceof BadAnswer ? badAnswer(options.port, again) : hungUp(options.port, again))
        )
      })
    }
    const answer = answerOf(call, head, options)
    return answer instanceof Promise ? await answer : answer
  } catch (error) {
    options.onEnd()
    throw error
  }
}

/** It is given up when the client leaves, or the exchange is cut. */
function send(
  request: Request,
  target: PortAddress,
  outgoing: OutgoingRequest,
  how: SendOptions,
  { exchange, visit }: ProxyOptions,
): Call {
  const call = connections.send(target, outgoing, how)
  visit?.onOver((failure) => call.abort(failure))
  if (exchange !== undefined) exchange.onCut((reason) => call.abort(reason))
  else if (request.signal.aborted) call.abort(request.signal.reason)
  else request.signal.addEventListener('abort', () => call.abort(request.signal.reason), { once: true })
  return call
}

/** Why it was ended from here; null: it was not. */
function failureOf({ exchange, visit }: ProxyOptions): Error | null {
  return exchange?.failure ?? visit?.failure ?? null
}

/** Returns where there was a program to answer, and it did not. @throws everything else, as clients are told it */
async function explain(error: unknown, request: Request, options: ProxyOptions): Promise<void> {
  const failure = failureOf(options)
  if (failure !== null) throw failure
  if (request.signal.aborted) throw error
  if (error instanceof BadAnswer) throw badAnswer(options.port, error)
  if (!(await options.listening())) throw notListening(options, error)
}

/** A request to a port, which is on this host: a proxy that the environment names has no part in it. */
export function fetchPort(
  { origin, unix }: PortAddress,
  path: string,
  init: BunFetchRequestInit,
): Promise<Response> {
  return fetch(`${origin}${path}`, { ...init, proxy: false, ...(unix === undefined ? {} : { unix }) })
}

/** At once, where all of it is here. */
function answerOf(call: Call, head: AnswerHead, options: ProxyOptions): Response | Promise<Response> {
  const { status, statusText, framing } = head
  if (status > statusMax) {
    call.abort(null)
    throw noStatus(options.port, status)
  }
  const init: AnswerInit = { status, statusText, headers: answerHeaders(head, options) }
  if (framing.kind === 'none' || bodiless.has(status)) {
    call.abort(null)
    options.onEnd()
    return new Response(null, init)
  }
  const bytes = call.whole()
  if (bytes !== null) return wholeAnswer(bytes, init, options)
  if (framing.kind === 'length' && framing.bytes <= bufferedBytesMax)
    return bufferedAnswer(call, init, options)
  const { exchange } = options
  const passed = exchange && ((count: number) => exchange.answered(count))
  return new Response(onceEnded(call, options.onEnd, { freeing: !options.holdsPieces, passed }), init)
}

interface AnswerInit extends ResponseInit {
  headers: Headers
}

async function bufferedAnswer(call: Call, init: AnswerInit, options: ProxyOptions): Promise<Response> {
  const bytes = await call.bytes().catch((error) => {
    throw failureOf(options) ?? hungUp(options.port, error)
  })
  return wholeAnswer(bytes, init, options)
}

function wholeAnswer(bytes: Uint8Array, init: AnswerInit, { onEnd }: ProxyOptions): Response {
  onEnd()
  const whole = bytes as Uint8Array<ArrayBuffer>
  return new Response(init.headers.has('content-type') ? whole : untyped(whole), init)
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
    const headers: Record<string, string> = {}
    forEachHeader(request.headers, options, (name, value) => {
      if (!name.startsWith('sec-websocket-')) headers[name] = value
    })
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
    const upstream = new Client(address, { headers, protocols })
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

function badAnswer(port: number, cause: BadAnswer): PlatformError {
  return new PlatformError(
    'bad_gateway',
    `the server on port ${port} gave an answer that cannot be passed on: ${cause.message}`,
    { cause, details: { reason: 'bad_answer', port } },
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
