import { messageBytesMax } from '../../../deployments/stdio/index.ts'
import { PlatformError } from '../../../errors.ts'
import type { Clock } from '../../../lib/clock.ts'
import type { Logger } from '../../../lib/log.ts'
import type { WholeBody } from '../../whole-body.ts'
import { readMessage } from '../messages.ts'
import { joinSessionId, type SessionId, sessionNotFound } from '../session-ids.ts'
import {
  acceptedBy,
  checkBatch,
  eventHeaders,
  initializes,
  type McpAnswer,
  orRefusal,
  type Posted,
  readPosted,
  refusal,
  textAnswer,
} from '../wire.ts'
import { type Asked, readSpoken, type Spoken } from './session.ts'
import { type BridgeMachine, type Held, SessionTable } from './table.ts'

/** A request to a function whose server speaks by stdin and stdout. */
export interface BridgeRequest {
  request: Request
  whole: WholeBody
  /** The function, in its workspace: a session of one is none of another. */
  place: string
  /** As the request names it. */
  sessionId: SessionId | null
  machine: BridgeMachine
  /** Of the machine, in use for this request: disposed by the bridge once the exchange is over. */
  lease: Disposable & { asConnection(): { touch(): void } }
}

/** `release` is to be called once nobody reads the messages any more. */
export type BridgeAnswer =
  | Response
  | { messages: AsyncIterable<string>; headers: Record<string, string>; release(): void }

/** An answer that is not there by then becomes a stream, so that nobody on the way takes the silence for an end. */
const answerAtOnceMsMax = 10_000
/** From its start to its answer to `initialize`. */
const startMsMax = 60_000
/** In the name of a client that begins no session. */
const greeting = {
  protocolVersion: '2025-06-18',
  capabilities: {},
  clientInfo: { name: 'hutch', version: '1' },
}
const greetingId = 'hutch-greeting'

/**
 * Servers that speak the Model Context Protocol by stdin and stdout, over streamable HTTP: one process a session. A
 * request that names no session and begins none is answered by a process of its own, which ends with it.
 */
export class McpBridge implements Disposable {
  readonly #clock: Clock
  readonly #sessions: SessionTable

  constructor(options: { clock: Clock; log: Logger }) {
    this.#clock = options.clock
    this.#sessions = new SessionTable(options)
  }

  get sessions(): number {
    return this.#sessions.size
  }

  /** Whether one more session has room in this instance. */
  fits(instanceId: string): boolean {
    return this.#sessions.fits(instanceId)
  }

  async handle(from: BridgeRequest): Promise<BridgeAnswer> {
    const exchange = new Exchange(from.lease)
    try {
      const answer = await orRefusal(this.#handle(from, exchange))
      if (answer instanceof Response) {
        exchange.end()
        return answer
      }
      return { ...answer, release: () => exchange.end() }
    } catch (error) {
      exchange.end()
      throw error
    }
  }

  [Symbol.dispose](): void {
    this.#sessions.close()
  }

  async #handle(from: BridgeRequest, exchange: Exchange): Promise<McpAnswer> {
    const { request, place, sessionId } = from
    const held = sessionId === null ? null : this.#sessions.find(place, sessionId)
    if (held === null && request.headers.has('mcp-session-id')) return sessionNotFound()
    if (held !== null) {
      this.#sessions.used(held)
      exchange.atEnd(() => this.#sessions.used(held))
    }
    switch (request.method) {
      case 'POST':
        return await this.#post(from, held, exchange)
      case 'GET':
        return this.#listen(request, held, exchange)
      case 'DELETE':
        if (held === null) return sessionNotFound()
        this.#sessions.end(held, 'its client ended it')
        return new Response(null, { status: 204 })
      default:
        throw refusal(405, 'Method not allowed: use POST, GET or DELETE', { allow: 'POST, GET, DELETE' })
    }
  }

  #listen(request: Request, held: Held | null, exchange: Exchange): McpAnswer {
    if (!acceptedBy(request).events) throw refusal(406, 'Accept: must name text/event-stream')
    if (held === null) throw refusal(400, 'Mcp-Session-Id: missing: begin a session with "initialize" first')
    const reading = held.session.listen(request.headers.get('last-event-id'), {
      primed: wantsPriming(request.headers.get('mcp-protocol-version')),
    })
    this.#sessions.listening(held, true)
    exchange.atEnd(() => {
      reading.release()
      // Another stream may have taken its place.
      if (!held.session.listenedTo) this.#sessions.listening(held, false)
    })
    return { messages: exchange.asConnection(reading.messages), headers: eventHeaders }
  }

  async #post(from: BridgeRequest, held: Held | null, exchange: Exchange): Promise<McpAnswer> {
    const posted = await readPosted(from.request, from.whole, messageBytesMax)
    if (Array.isArray(posted.body)) checkBatch(posted.body, posted.version)
    const spoken = readSpoken(posted.body, posted.text)
    if (held !== null) return await this.#ask(held, spoken, posted, exchange)
    if (initializes(posted.body)) return await this.#begin(from, spoken, posted, exchange)
    return await this.#askOnce(from, spoken, posted, exchange)
  }

  async #begin(
    from: BridgeRequest,
    spoken: Spoken[],
    { accepts }: Posted,
    exchange: Exchange,
  ): Promise<McpAnswer> {
    const held = await this.#sessions.begin(from.place, from.machine)
    exchange.atEnd(() => this.#sessions.used(held))
    const text = await this.#greet(held, spoken)
    if ('error' in (JSON.parse(text) as object) || from.request.signal.aborted) {
      this.#sessions.end(held, 'it was refused')
      return textAnswer(text, accepts)
    }
    return textAnswer(text, accepts, { 'mcp-session-id': joinSessionId(held.id) })
  }

  /** Answers by a server that is there for this alone. */
  async #askOnce(
    from: BridgeRequest,
    spoken: Spoken[],
    posted: Posted,
    exchange: Exchange,
  ): Promise<McpAnswer> {
    if (!spoken.some(({ message }) => message.kind === 'request')) return new Response(null, { status: 202 })
    const held = await this.#sessions.begin(from.place, from.machine)
    exchange.atEnd(() => this.#sessions.end(held, 'its request was answered'))
    const request = { jsonrpc: '2.0', id: greetingId, method: 'initialize', params: greeting }
    const answer = JSON.parse(await this.#greet(held, [asSpoken(request)])) as {
      error?: { message?: unknown }
    }
    if (answer.error !== undefined) {
      throw new PlatformError(
        'bad_gateway',
        `the server refused to begin: ${String(answer.error.message).slice(0, 200)}`,
      )
    }
    await held.session.ask([asSpoken({ jsonrpc: '2.0', method: 'notifications/initialized' })], {
      events: false,
    })
    return await this.#ask(held, spoken, posted, exchange)
  }

  /** The text of the answer to `initialize`. @throws bad_gateway when there is none in time */
  async #greet(held: Held, spoken: Spoken[]): Promise<string> {
    const asked = await held.session.ask(spoken, { events: false }).catch(async (error) => {
      if (!PlatformError.is(error) || error.code !== 'gone') throw error
      const { reason } = await held.server.ended
      throw new PlatformError(
        'bad_gateway',
        `${reason} before it answered "initialize": its logs may say why`,
      )
    })
    const late = new AbortController()
    const waited = this.#clock.sleep(startMsMax, late.signal).catch(() => {})
    await Promise.race([asked?.settled, waited])
    late.abort()
    const [text] = asked?.outlet.answers ?? []
    if (text !== undefined) return text
    this.#sessions.end(held, 'it did not begin in time')
    throw new PlatformError(
      'bad_gateway',
      `the server did not answer "initialize" within ${startMsMax / 1000} seconds: its logs may say why`,
    )
  }

  async #ask(held: Held, spoken: Spoken[], posted: Posted, exchange: Exchange): Promise<McpAnswer> {
    const { accepts } = posted
    const asked = await held.session.ask(spoken, { events: accepts.events }).catch((error) => {
      if (PlatformError.is(error) && error.code === 'gone') return 'gone' as const
      throw error
    })
    if (asked === 'gone') return sessionNotFound()
    if (asked === null) return new Response(null, { status: 202 })
    // Until it is answered the machine is in use, also when the client went away: it may come back for the answer.
    exchange.until(asked.settled)
    await this.#clearHowToAnswer(asked, accepts)
    const { answers } = asked.outlet
    if (answers !== null && accepts.json) {
      if (answers.length === 0) return new Response(null, { status: 202 })
      return textAnswer(Array.isArray(posted.body) ? `[${answers.join(',')}]` : answers[0]!, accepts)
    }
    held.session.keep(asked.outlet)
    const reading = held.session.read(asked.outlet, { primed: wantsPriming(posted.version) })
    exchange.atEnd(reading.release)
    return { messages: reading.messages, headers: eventHeaders }
  }

  async #clearHowToAnswer({ outlet, settled }: Asked, accepts: Posted['accepts']): Promise<void> {
    if (!accepts.events) return await settled
    if (!accepts.json) return
    const answered = new AbortController()
    const quiet = this.#clock.sleep(answerAtOnceMsMax, answered.signal).catch(() => {})
    await Promise.race([outlet.begun, quiet])
    answered.abort()
  }
}

/** What has to be given back once an exchange is over, in both directions. */
class Exchange {
  readonly #lease: BridgeRequest['lease']
  readonly #atEnd: (() => void)[] = []
  #open: Promise<unknown> = Promise.resolve()
  #ended = false

  constructor(lease: BridgeRequest['lease']) {
    this.#lease = lease
  }

  atEnd(run: () => void): void {
    this.#atEnd.push(run)
  }

  /** The lease lasts at least until then. */
  until(open: Promise<unknown>): void {
    this.#open = open
  }

  /** It stands for a connection from now on, which counts while something is said on it. */
  async *asConnection(messages: AsyncIterable<string>): AsyncGenerator<string> {
    const connection = this.#lease.asConnection()
    for await (const message of messages) {
      connection.touch()
      yield message
    }
  }

  end(): void {
    if (this.#ended) return
    this.#ended = true
    for (const run of this.#atEnd) run()
    void this.#open.finally(() => this.#lease[Symbol.dispose]())
  }
}

function asSpoken(message: object): Spoken {
  return { message: readMessage(message), text: JSON.stringify(message) }
}

/** From this version on clients know an event without data. */
function wantsPriming(version: string | null): boolean {
  return version !== null && version >= '2025-11-25'
}
