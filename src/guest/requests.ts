import { PlatformError } from '../errors.ts'
import type { Logger } from '../lib/log.ts'
import { Connection, type ConnectionRole } from './connection.ts'
import { type Frame, FrameType, ProtocolError } from './frame.ts'

/** Every answer but that of a stdin write comes from an event loop that never blocks. */
const requestTimeoutMsDefault = 15_000
const pendingMax = 4096
/** Of requests that wait for an answer, together. */
const pendingBytesMax = 32 * 1024 * 1024
const reconnectAttemptsMaxDefault = 12
const reconnectMsMin = 20
const reconnectMsMax = 5_000
/** Frames that nobody asked for, in one window; a few are races, many are a flood. */
const unexpectedFramesMax = 1024
const unexpectedWindowMs = 10_000
const neverSent = new PlatformError('unavailable', 'The sandbox does not answer')

interface Pending {
  expected: number
  bytes: number
  onAnswer: ((frame: Frame) => void) | undefined
  deadline: number
  resolve: (frame: Frame) => void
  reject: (error: Error) => void
}

export interface RequestOptions {
  timeout?: boolean
  onSent?: () => void
  /** Goes with the bytes; it stays the caller's. */
  descriptor?: number
  /** Sees the answer first, before the frame that follows it on the wire. */
  onAnswer?: (frame: Frame) => void
}

/** Resolves with the answer: a frame of type `expected`, or ERROR. */
export type Ask = (
  id: number,
  bytes: Uint8Array,
  expected: number,
  options?: RequestOptions,
) => Promise<Frame>

export interface RequestsOptions {
  path: string
  role: ConnectionRole
  log: Logger
  timeoutMs?: number | undefined
  /** Every frame that answers no request. False: it was not expected. */
  onEvent: (frame: Frame) => boolean
  /** At every connect, and at each attempt to: what is asked by `ask` goes out with the greeting, before all else. */
  onOpen?: (ask: Ask) => Promise<void>
  /** Whether somebody waits for events, so that a lost connection is made again at once. */
  wanted?: () => boolean
  /** The other end closed, or broke the protocol. */
  onLost?: (() => void) | undefined
  /** Tries to make a lost connection again. */
  reconnectAttemptsMax?: number
  /** A lost connection could not be made again. */
  onGivenUp?: (error: PlatformError) => void
}

/**
 * Requests and answers over one connection at a time. Answers to one id come in order, so that is how they are
 * matched. A connection that is lost fails what was pending on it and is made again when there is a need.
 */
export class Requests {
  #connection: Connection | null = null
  #opening: Promise<Connection> | null = null
  #pending = new Map<number, Pending[]>()
  #pendingCount = 0
  #pendingBytes = 0
  #watchdog: ReturnType<typeof setTimeout> | null = null
  #suspended = false
  #unexpected = 0
  #unexpectedSince = 0
  #timeoutMs: number
  failure: PlatformError | null = null

  constructor(private readonly options: RequestsOptions) {
    this.#timeoutMs = options.timeoutMs ?? requestTimeoutMsDefault
  }

  async open(): Promise<void> {
    await this.#connect()
  }

  pending(id: number): boolean {
    return this.#pending.has(id)
  }

  readonly request: Ask = async (id, bytes, expected, options) => {
    const connection = this.#connection ?? (await this.#connect())
    return await this.#ask(connection, id, bytes, expected, options)
  }

  #ask(connection: Connection, ...[id, bytes, expected, options = {}]: Parameters<Ask>): Promise<Frame> {
    const isRoom = this.#pendingCount === 0 || this.#pendingBytes + bytes.length <= pendingBytesMax
    if (this.#pendingCount >= pendingMax || !isRoom) {
      throw new PlatformError(
        'too_many_requests',
        'Too many requests to this sandbox are waiting for an answer',
      )
    }
    if (options.descriptor !== undefined && !connection.sendWithDescriptor(bytes, options.descriptor)) {
      throw new PlatformError('too_many_requests', 'Requests to this sandbox are waiting to be sent')
    }
    const answer = Promise.withResolvers<Frame>()
    const queue = this.#pending.get(id)
    const deadline =
      options.timeout === false ? Number.POSITIVE_INFINITY : performance.now() + this.#timeoutMs
    const pending: Pending = {
      expected,
      bytes: bytes.length,
      deadline,
      onAnswer: options.onAnswer,
      resolve: answer.resolve,
      reject: answer.reject,
    }
    if (queue) queue.push(pending)
    else this.#pending.set(id, [pending])
    this.#pendingCount++
    this.#pendingBytes += bytes.length
    this.#watch()
    options.onSent?.()
    if (options.descriptor === undefined) connection.send(bytes)
    return answer.promise
  }

  /** Sends something that has no answer. */
  async notify(bytes: Uint8Array): Promise<void> {
    const connection = this.#connection ?? (await this.#connect())
    connection.send(bytes)
    await connection.drained()
  }

  /** From now on answers to `id` are due in time, also those that had all the time they wanted. */
  expect(id: number): void {
    const deadline = performance.now() + this.#timeoutMs
    for (const pending of this.#pending.get(id) ?? []) pending.deadline = Math.min(pending.deadline, deadline)
  }

  suspend(): void {
    this.#suspended = true
  }

  resume(): void {
    this.#suspended = false
    const deadline = performance.now() + this.#timeoutMs
    for (const queue of this.#pending.values()) {
      for (const pending of queue) {
        if (pending.deadline !== Number.POSITIVE_INFINITY) pending.deadline = deadline
      }
    }
  }

  close(error: PlatformError): void {
    this.failure ??= error
    this.#connection?.close(error)
    this.#lost(error)
  }

  #connect(): Promise<Connection> {
    if (this.failure) return Promise.reject(this.failure)
    if (this.#connection) return Promise.resolve(this.#connection)
    this.#opening ??= this.#open().finally(() => {
      this.#opening = null
    })
    return this.#opening
  }

  async #open(): Promise<Connection> {
    const { path, role } = this.options
    let opened: Promise<void> | undefined
    let connection: Connection
    try {
      connection = await Connection.open(
        { path, role },
        {
          onFrame: (frame) => this.#onFrame(frame),
          onClose: (error) => {
            if (this.#connection === connection) this.#onClose(error)
          },
        },
        (attempt) => {
          this.#lost(neverSent)
          opened = this.options.onOpen?.(async (...request) => await this.#ask(attempt, ...request))
          opened?.catch(() => {})
        },
      )
    } catch (error) {
      this.#lost(neverSent)
      throw error
    }
    if (this.failure) {
      connection.close(this.failure)
      throw this.failure
    }
    this.#connection = connection
    try {
      await opened
    } catch (error) {
      connection.close(error instanceof Error ? error : new Error(String(error)))
      throw error
    }
    return connection
  }

  #onFrame(frame: Frame) {
    const queue = this.#pending.get(frame.id)
    const first = queue?.[0]
    if (first && (frame.type === first.expected || frame.type === FrameType.error)) {
      first.onAnswer?.(frame)
      queue.shift()
      if (queue.length === 0) this.#pending.delete(frame.id)
      this.#pendingCount--
      this.#pendingBytes -= first.bytes
      first.resolve(frame)
    } else if (!this.options.onEvent(frame)) {
      this.#onUnexpected(frame)
    }
  }

  #onUnexpected(frame: Frame) {
    const now = performance.now()
    if (now - this.#unexpectedSince > unexpectedWindowMs) {
      this.#unexpectedSince = now
      this.#unexpected = 0
    }
    if (++this.#unexpected > unexpectedFramesMax) {
      throw new ProtocolError(`a flood of frames that nobody asked for, the last of type ${frame.type}`)
    }
  }

  #onClose(error: Error) {
    this.#connection = null
    const protocol = error instanceof ProtocolError
    if (this.failure === null) {
      this.options.log[protocol ? 'warn' : 'debug']('connection to a guest was lost', {
        error: error.message,
      })
    }
    this.#lost(
      PlatformError.is(error)
        ? error
        : new PlatformError(
            protocol ? 'bad_gateway' : 'unavailable',
            protocol ? 'The sandbox answered with something else than the protocol' : 'The sandbox went away',
            { cause: error },
          ),
    )
    if (this.failure !== null) return
    this.options.onLost?.()
    if (this.options.wanted?.()) void this.#reconnect()
  }

  #lost(error: PlatformError) {
    const pending = [...this.#pending.values()].flat()
    this.#pending.clear()
    this.#pendingCount = 0
    this.#pendingBytes = 0
    if (this.#watchdog !== null) clearTimeout(this.#watchdog)
    this.#watchdog = null
    for (const { reject } of pending) reject(error)
  }

  async #reconnect(): Promise<void> {
    let last: unknown
    for (
      let attempt = 0;
      attempt < (this.options.reconnectAttemptsMax ?? reconnectAttemptsMaxDefault);
      attempt++
    ) {
      const delayMs = Math.min(reconnectMsMin * 2 ** attempt, reconnectMsMax)
      await new Promise((resolve) => setTimeout(resolve, delayMs))
      if (this.failure !== null || this.#connection !== null) return
      try {
        await this.#connect()
        return
      } catch (error) {
        last = error
      }
    }
    this.options.onGivenUp?.(new PlatformError('unavailable', 'The sandbox does not answer', { cause: last }))
  }

  /** One timer for all: it looks for the oldest when the shortest possible wait is over. */
  #watch() {
    if (this.#watchdog !== null) return
    this.#watchdog = setTimeout(() => {
      this.#watchdog = null
      if (this.#pendingCount === 0) return
      const now = performance.now()
      let overdue = false
      for (const queue of this.#pending.values()) overdue ||= queue.some(({ deadline }) => deadline <= now)
      if (overdue && !this.#suspended) {
        this.#connection?.close(
          new PlatformError('gateway_timeout', `The sandbox did not answer within ${this.#timeoutMs} ms`),
        )
      } else {
        this.#watch()
      }
    }, this.#timeoutMs)
  }
}
