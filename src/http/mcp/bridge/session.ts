import type { Clock } from '../../../lib/clock.ts'
import {
  errorMessage,
  notificationMessage,
  progressTokenOf,
  RpcError,
  type RpcId,
  type RpcMessage,
  readMessage,
  rpcCodes,
} from '../messages.ts'
import { refusal } from '../wire.ts'
import { Outlet, type Reading } from './outlet.ts'

/** What a server that speaks by lines looks like from here. */
export interface LineServer {
  /** @throws when the server is gone or takes nothing */
  write(text: string): Promise<void>
  /** Asks it to end. */
  end(): void
}

/** One message of a client, and its text as it came. */
export interface Spoken {
  message: RpcMessage
  text: string
}

/** Requests of the client that wait for their answer. */
const pendingMax = 64
/** Of messages that wait for the client, in all. */
const waitingBytesMax = 32 * 1024 * 1024
/** A client that takes nothing for so long does not hold up its server. */
const clientStallMsMax = 30_000
/** Answers that their client may still come back for. */
const endedOutletsMax = 8
const requestMsMax = 15 * 60_000
const tooLateCode = -32001
const endedCode = -32000
const listenName = 'listen'

interface Pending {
  id: RpcId
  outlet: Outlet
  over: AbortController
}

/** The answer to one POST. */
export interface Asked {
  outlet: Outlet
  /** Resolves once nothing of it is open any more. */
  settled: Promise<void>
}

/**
 * One client of one server: which message is meant for whom. The server writes all of its messages into one line; what
 * answers a request goes where that was asked, progress too, and what it says by itself to the stream the client
 * listens on, or else beside the answer that is due.
 */
export class Session {
  readonly #clock: Clock
  readonly #server: LineServer
  readonly #pending = new Map<string, Pending>()
  readonly #byToken = new Map<string, Pending>()
  /** Of what was asked and is not answered yet, the newest last. */
  readonly #open = new Set<Outlet>()
  readonly #over: Outlet[] = []
  readonly #listening = new Outlet(listenName)
  #asked = 0
  #listeners = 0
  #closed: string | null = null

  constructor(options: { clock: Clock; server: LineServer }) {
    this.#clock = options.clock
    this.#server = options.server
  }

  /** Somebody waits for it, or listens. */
  get busy(): boolean {
    return this.#pending.size > 0 || this.#listeners > 0
  }

  get listenedTo(): boolean {
    return this.#listening.listenedTo
  }

  /**
   * Hands messages to the server; null where none of them wants an answer.
   * @throws HttpRefusal when too much is asked at once, gone when the server is
   */
  async ask(spoken: Spoken[], options: { events: boolean }): Promise<Asked | null> {
    const requests = spoken.flatMap(({ message }) => (message.kind === 'request' ? [message] : []))
    if (requests.length === 0) {
      for (const { message, text } of spoken) await this.#tell(message, text)
      return null
    }
    if (this.#pending.size + requests.length > pendingMax) {
      throw refusal(429, `${pendingMax} requests of this session wait for an answer, the most allowed`)
    }
    const ids = new Set<string>()
    for (const { id } of requests) {
      if (this.#pending.has(keyOf(id)) || ids.has(keyOf(id)))
        throw refusal(400, `A request with the id ${id} is under way already`)
      ids.add(keyOf(id))
    }
    const outlet = new Outlet(`${++this.#asked}`)
    if (options.events) this.#open.add(outlet)
    const waits = requests.map((request) => this.#await(request.id, progressTokenOf(request), outlet))
    const settled = Promise.all(waits).then(() => {
      outlet.close()
      this.#open.delete(outlet)
    })
    try {
      for (const { message, text } of spoken) await this.#tell(message, text)
    } catch (error) {
      for (const { id } of requests) this.#settle(id)
      throw error
    }
    return { outlet, settled }
  }

  /** The stream of what the server says by itself. @throws HttpRefusal for an event that is not kept any more */
  listen(lastEventId: string | null, { primed }: { primed: boolean }): Reading {
    const [outlet, after] = lastEventId === null ? [this.#listening, null] : this.#outletOf(lastEventId)
    return this.read(outlet, { primed, after })
  }

  /** Whoever reads keeps the session in use until it is released. */
  read(outlet: Outlet, options: { primed: boolean; after?: number | null }): Reading {
    const reading = outlet.read(options)
    this.#listeners++
    let released = false
    const release = () => {
      reading.release()
      if (!released) this.#listeners--
      released = true
    }
    return { messages: reading.messages, release }
  }

  /** This answer goes out in pieces, of which some may get lost: its client may come back for them. */
  keep(outlet: Outlet): void {
    this.#over.push(outlet)
    if (this.#over.length > endedOutletsMax) this.#over.shift()
  }

  /** From the server. Resolves when it may say more. */
  async hear(text: string): Promise<void> {
    if (this.#closed !== null) return
    let value: unknown
    try {
      value = JSON.parse(text)
    } catch {
      return
    }
    const parts = Array.isArray(value)
      ? value.map((part) => [part, JSON.stringify(part)] as const)
      : [[value, text] as const]
    for (const [part, partText] of parts) await this.#hearOne(part, partText)
  }

  /** Every request is answered with why, every stream ends. */
  close(reason: string): void {
    if (this.#closed !== null) return
    this.#closed = reason
    for (const { id, outlet } of [...this.#pending.values()]) {
      const error = new RpcError(endedCode, `The session has ended: ${reason}`)
      outlet.push(JSON.stringify(errorMessage(id, error)), true)
      this.#settle(id)
    }
    this.#listening.close()
  }

  async #hearOne(value: unknown, text: string): Promise<void> {
    const heard = readHeard(value)
    if (heard === null) return
    if (heard.kind === 'answer') {
      const pending = this.#pending.get(keyOf(heard.id))
      if (pending === undefined) return
      pending.outlet.push(oneLine(text), true)
      this.#settle(heard.id)
      return await this.#room(pending.outlet)
    }
    const outlet = this.#outletFor(heard)
    outlet.push(oneLine(text), false)
    await this.#room(outlet)
  }

  #outletFor(heard: Heard): Outlet {
    if (heard.kind === 'progress') {
      const asked = this.#byToken.get(keyOf(heard.token))?.outlet
      if (asked !== undefined && this.#open.has(asked)) return asked
    }
    if (this.#listening.listenedTo) return this.#listening
    return [...this.#open].at(-1) ?? this.#listening
  }

  /** Waits for a client that is slow, for as long as is decent. */
  async #room(outlet: Outlet): Promise<void> {
    if (this.#waitingBytes() > waitingBytesMax) {
      this.close('the client does not take what the server writes')
      this.#server.end()
      return
    }
    // As nearly always: no timer for each message.
    if (!outlet.listenedTo || !outlet.crowded) return
    const late = new AbortController()
    const stalled = this.#clock.sleep(clientStallMsMax, late.signal).then(
      () => true,
      () => false,
    )
    try {
      while (outlet.listenedTo && outlet.crowded) {
        if (await Promise.race([outlet.taken().then(() => false), stalled])) return outlet.dismiss()
      }
    } finally {
      late.abort()
    }
  }

  #waitingBytes(): number {
    let bytes = this.#listening.keptBytes
    for (const outlet of new Set([...this.#open, ...this.#over])) bytes += outlet.keptBytes
    for (const { outlet } of this.#pending.values()) if (!this.#open.has(outlet)) bytes += outlet.keptBytes
    return bytes
  }

  async #tell(message: RpcMessage, text: string): Promise<void> {
    await this.#server.write(text)
    if (message.kind !== 'notification' || message.method !== 'notifications/cancelled') return
    const { requestId } = message.params
    // Whoever took it back waits for nothing, and its server need not answer.
    if (typeof requestId === 'string' || typeof requestId === 'number') this.#settle(requestId)
  }

  /** Resolves once it is answered, taken back, or too late. */
  #await(id: RpcId, token: RpcId | null, outlet: Outlet): Promise<void> {
    const over = new AbortController()
    const pending: Pending = { id, outlet, over }
    this.#pending.set(keyOf(id), pending)
    const tokenKey = token === null ? null : keyOf(token)
    if (tokenKey !== null) this.#byToken.set(tokenKey, pending)
    const done = this.#clock.sleep(requestMsMax, over.signal).then(
      () => this.#giveUp(pending),
      () => {},
    )
    return done.then(() => {
      if (tokenKey !== null && this.#byToken.get(tokenKey) === pending) this.#byToken.delete(tokenKey)
    })
  }

  #giveUp({ id, outlet }: Pending): void {
    const reason = `no answer within ${requestMsMax / 60_000} minutes`
    outlet.push(
      JSON.stringify(errorMessage(id, new RpcError(tooLateCode, `Request timed out: ${reason}`))),
      true,
    )
    this.#settle(id)
    const cancelled = notificationMessage('notifications/cancelled', { requestId: id, reason })
    this.#server.write(JSON.stringify(cancelled)).catch(() => {})
  }

  #settle(id: RpcId): void {
    const pending = this.#pending.get(keyOf(id))
    this.#pending.delete(keyOf(id))
    pending?.over.abort()
  }

  #outletOf(eventId: string): [Outlet, number] {
    const [, name, sequence] = /^(\w{1,20})-(start|\d{1,15})$/.exec(eventId) ?? []
    const outlet = [this.#listening, ...this.#open, ...this.#over].find((known) => known.name === name)
    if (outlet === undefined) throw refusal(400, 'Last-Event-ID: this session keeps no such event (any more)')
    return [outlet, sequence === 'start' ? -1 : Number(sequence)]
  }
}

type Heard = { kind: 'answer'; id: RpcId } | { kind: 'progress'; token: RpcId } | { kind: 'other' }

/** Null for what is no message. */
function readHeard(value: unknown): Heard | null {
  if (typeof value !== 'object' || value === null) return null
  const { id, method, params } = value as {
    id?: unknown
    method?: unknown
    params?: { progressToken?: unknown }
  }
  const isId = typeof id === 'string' || typeof id === 'number'
  if (typeof method !== 'string')
    return isId && ('result' in value || 'error' in value) ? { kind: 'answer', id } : null
  const token = params?.progressToken
  const isProgress =
    method === 'notifications/progress' && (typeof token === 'string' || typeof token === 'number')
  return isProgress ? { kind: 'progress', token } : { kind: 'other' }
}

/** Messages of what was posted, each with its own text. @throws RpcError invalidRequest */
export function readSpoken(body: unknown, text: string): Spoken[] {
  if (!Array.isArray(body)) return [{ message: readMessage(body), text }]
  return body.map((part) => {
    const message = readMessage(part)
    if (message.kind === 'request' && message.method === 'initialize') {
      throw new RpcError(rpcCodes.invalidRequest, 'initialize must not be part of a batch')
    }
    return { message, text: JSON.stringify(part) }
  })
}

/** An event's data is one line. */
function oneLine(text: string): string {
  return text.replaceAll('\r', ' ')
}

function keyOf(id: RpcId): string {
  return `${typeof id === 'number' ? '#' : '"'}${id}`
}
