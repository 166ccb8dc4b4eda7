import { closeSync } from 'node:fs'
import { PlatformError } from '../errors.ts'
import { messageSockets, receiveDescriptor } from '../lib/descriptors.ts'
import type { Logger } from '../lib/log.ts'
import { Semaphore } from '../lib/semaphore.ts'
import type { Identity } from '../spec/guest.ts'
import { readError } from './codec.ts'
import { Connection } from './connection.ts'
import { fileError } from './errno.ts'
import { type Frame, FrameType, ProtocolError } from './frame.ts'

/** Each connection is a worker process inside the sandbox. */
const filesConnectionsMax = 16
const waitingMax = 1024
const waitTimeoutMs = 30_000
/** An idle sandbox shall cost no worker. */
const idleMsMaxDefault = 2_000
/** Who lasts longer, a client that reads slowly above all, leaves the pool to those who wait. */
const lastingMsMinDefault = 500
/** Operations that left the pool: with it and with watches fewer workers than process 1 may have. */
const lastingMax = 24
/** Process 1 closes the oldest of 16 connections whose greeting it did not read yet, those of others among them. */
const greetingsMax = 8
/** Without a single byte from the guest while it has something to do. */
const fileStallMsMax = 30_000
/** Received and not yet taken; beyond it the socket is not read. */
const queuedBytesMax = 512 * 1024

export interface FilesPoolOptions {
  socketPath: string
  log: Logger
  uid?: number
  gid?: number
  stallMsMax?: number
  idleMsMax?: number
  lastingMsMin?: number
}

/**
 * Connections for file operations: one operation each, reused while busy, closed when idle for a moment. Operations that
 * last give their places up to those who wait for one, so that a few slow clients do not hold up all others.
 */
export class FilesPool {
  #idle: PooledConnection[] = []
  #open = new Set<PooledConnection>()
  /** Not the pool's to give to others: what they do lasts. */
  #apart = new Set<PooledConnection>()
  /** Those that were the pool's and last. */
  #lasting = new Set<PooledConnection>()
  #relief: Timer | null = null
  readonly #greetings = new Semaphore({
    concurrencyMax: greetingsMax,
    waitingMax,
    what: 'connections to this sandbox are being opened',
  })
  #opening = 0
  #waiting: { resolve: (ready: null) => void; reject: (error: Error) => void; timer: Timer }[] = []
  #failure: PlatformError | null = null
  #suspended = false
  #identity: Partial<Identity>

  constructor(private readonly options: FilesPoolOptions) {
    this.#identity = { uid: options.uid, gid: options.gid }
  }

  /** A connection of one's own until `release()`. @throws too_many_requests, unavailable */
  async start(path: string): Promise<Operation> {
    for (;;) {
      if (this.#failure) throw this.#failure
      const idle = this.#idle.pop()
      if (idle && !idle.connection.closed) return idle.begin(path)
      if (idle) continue
      if (this.#hasRoom || this.#setApart()) return (await this.#connect()).begin(path)
      await this.#turn()
    }
  }

  /**
   * A connection besides the pool's, closed on release. `what`: are too many. @throws too_many_requests beyond `atOnceMax`,
   * unavailable
   */
  async startApart(
    path: string,
    { atOnceMax, what }: { atOnceMax: number; what: string },
  ): Promise<Operation> {
    if (this.#failure) throw this.#failure
    if (this.#apart.size >= atOnceMax) {
      throw new PlatformError(
        'too_many_requests',
        `${atOnceMax} ${what} are open in this sandbox, the most at once: end one first`,
      )
    }
    const pooled = new PooledConnection(this)
    this.#apart.add(pooled)
    try {
      await this.#greet(pooled)
    } catch (error) {
      this.#apart.delete(pooled)
      throw error
    }
    return pooled.begin(path)
  }

  close(error: PlatformError): void {
    this.#failure ??= error
    for (const waiting of this.#waiting.splice(0)) {
      clearTimeout(waiting.timer)
      waiting.reject(error)
    }
    if (this.#relief !== null) clearTimeout(this.#relief)
    for (const { connection } of [...this.#open, ...this.#apart, ...this.#lasting]) connection?.close(error)
  }

  actAs(identity: Identity): void {
    this.#identity = identity
    // Workers have their credentials from the start.
    for (const { connection } of this.#idle.splice(0)) connection.close(new Error('another identity'))
  }

  get suspended(): boolean {
    return this.#suspended
  }

  suspend(): void {
    this.#suspended = true
  }

  resume(): void {
    this.#suspended = false
  }

  get stallMsMax(): number {
    return this.options.stallMsMax ?? fileStallMsMax
  }

  /** The connection is in step and free, or closed. */
  give(pooled: PooledConnection): void {
    if (this.#apart.delete(pooled) || this.#lasting.delete(pooled)) {
      pooled.connection.close(new Error('done'))
      // One that lasts may leave now.
      if (this.#waiting.length > 0 && this.#setApart()) this.#wake()
    }
    if (!this.#open.has(pooled)) return
    if (this.#failure) pooled.connection.close(this.#failure)
    else {
      this.#idle.push(pooled)
      pooled.idleTimer = setTimeout(() => {
        this.#idle = this.#idle.filter((other) => other !== pooled)
        pooled.connection.close(new Error('idle'))
      }, this.options.idleMsMax ?? idleMsMaxDefault)
    }
    this.#wake()
  }

  forget(pooled: PooledConnection): void {
    this.#apart.delete(pooled)
    if (this.#lasting.delete(pooled) && this.#waiting.length > 0 && this.#setApart()) this.#wake()
    if (!this.#open.delete(pooled)) return
    this.#idle = this.#idle.filter((other) => other !== pooled)
    this.#wake()
  }

  get #hasRoom(): boolean {
    return this.#open.size + this.#opening < filesConnectionsMax
  }

  /** Makes room by taking the one that lasts longest out of the pool. */
  #setApart(): boolean {
    // In a frozen sandbox everything lasts.
    if (this.#suspended || this.#lasting.size >= lastingMax) return false
    let longest: PooledConnection | null = null
    for (const pooled of this.#open) {
      if (pooled.operation !== null && (longest === null || pooled.since < longest.since)) longest = pooled
    }
    if (longest === null || performance.now() - longest.since < this.#lastingMsMin) return false
    this.#open.delete(longest)
    this.#lasting.add(longest)
    return true
  }

  get #lastingMsMin(): number {
    return this.options.lastingMsMin ?? lastingMsMinDefault
  }

  /** Looks again for whoever waits until nobody does. */
  #relieve() {
    this.#relief ??= setTimeout(() => {
      this.#relief = null
      for (let left = this.#waiting.length; left > 0 && this.#setApart(); left--) this.#wake()
      if (this.#waiting.length > 0) this.#relieve()
    }, this.#lastingMsMin)
  }

  async #connect(): Promise<PooledConnection> {
    this.#opening++
    try {
      const pooled = new PooledConnection(this)
      await this.#greet(pooled)
      this.#open.add(pooled)
      return pooled
    } catch (error) {
      this.#wake()
      throw error
    } finally {
      this.#opening--
    }
  }

  async #greet(pooled: PooledConnection): Promise<void> {
    const { socketPath: path } = this.options
    const { uid, gid } = this.#identity
    pooled.connection = await this.#greetings.run(() =>
      Connection.open({ path, role: 'files', uid, gid }, pooled),
    )
    if (!this.#failure) return
    pooled.connection.close(this.#failure)
    throw this.#failure
  }

  #turn(): Promise<null> {
    if (this.#waiting.length >= waitingMax) {
      throw new PlatformError('too_many_requests', 'Too many file operations of this sandbox are waiting')
    }
    const turn = Promise.withResolvers<null>()
    const timer = setTimeout(() => {
      this.#waiting = this.#waiting.filter((other) => other !== waiting)
      turn.reject(new PlatformError('unavailable', 'Too many file operations of this sandbox are running'))
    }, waitTimeoutMs)
    const waiting = { resolve: turn.resolve, reject: turn.reject, timer }
    this.#waiting.push(waiting)
    this.#relieve()
    return turn.promise
  }

  #wake() {
    const next = this.#waiting.shift()
    if (!next) return
    clearTimeout(next.timer)
    next.resolve(null)
  }
}

type Timer = ReturnType<typeof setTimeout>

class PooledConnection {
  connection!: Connection
  operation: Operation | null = null
  /** When its operation began, by `performance.now()`. */
  since = 0
  idleTimer: Timer | null = null
  /** Where the worker hands over open files, from the first time on that it may. */
  #handover: number | null = null

  constructor(readonly pool: FilesPool) {}

  begin(path: string): Operation {
    if (this.idleTimer !== null) clearTimeout(this.idleTimer)
    this.idleTimer = null
    this.since = performance.now()
    this.operation = new Operation(this, path)
    return this.operation
  }

  /** Sends a request that the worker may answer by handing over a file, where that is possible. */
  sendWithHandover(bytes: Uint8Array): void {
    if (this.#handover === null && this.#offerHandover(bytes)) return
    this.connection.send(bytes)
  }

  #offerHandover(bytes: Uint8Array): boolean {
    const ends = messageSockets()
    if (ends === null) return false
    const [ours, theirs] = ends
    const sent = this.connection.sendWithDescriptor(bytes, theirs)
    closeSync(theirs)
    if (sent) this.#handover = ours
    else closeSync(ours)
    return sent
  }

  receiveDescriptor(): number | null {
    return this.#handover === null ? null : receiveDescriptor(this.#handover)
  }

  onFrame(frame: Frame): void {
    if (this.operation === null) throw new ProtocolError(`frame of type ${frame.type} without a request`)
    this.operation.onFrame(frame)
  }

  onClose(error: Error): void {
    if (this.idleTimer !== null) clearTimeout(this.idleTimer)
    if (this.#handover !== null) closeSync(this.#handover)
    this.#handover = null
    this.pool.forget(this)
    this.operation?.onClose(error)
  }
}

/** One request with its answers. Always released; a connection that was not `done()` by then is closed. */
export class Operation {
  #frames: Frame[] = []
  #queuedBytes = 0
  #paused = false
  #waiting: PromiseWithResolvers<Frame> | null = null
  #failure = Promise.withResolvers<never>()
  #error: Error | null = null
  #refusal: PlatformError | null = null
  #done = false
  #released = false

  constructor(
    private readonly pooled: PooledConnection,
    private readonly path: string,
  ) {
    this.#failure.promise.catch((error) => {
      this.#refusal = error
    })
  }

  /** Why `failed` rejected, once it has. */
  get error(): PlatformError | null {
    return this.#refusal
  }

  /** Rejects when the guest refused, or went away, before it was asked for its answer. */
  get failed(): Promise<never> {
    return this.#failure.promise
  }

  /** Since the sender last let others have a turn. */
  sentBytes = 0

  send(bytes: Uint8Array): void {
    this.sentBytes += bytes.length
    this.pooled.connection.send(bytes)
  }

  sendWithHandover(bytes: Uint8Array): void {
    this.pooled.sendWithHandover(bytes)
  }

  /** The file that an answer says was handed over: the caller closes it. */
  receiveDescriptor(): number {
    const descriptor = this.pooled.receiveDescriptor()
    if (descriptor === null) throw this.broken('no open file was handed over')
    return descriptor
  }

  async drained(): Promise<void> {
    const { connection } = this.pooled
    if (connection.full) await this.#inTime(connection.drained())
    // Not only once it is told: a source that never rests leaves no turn for that.
    if (connection.error) throw this.#error ?? this.#reasonOf(connection.error)
  }

  /** The next frame of the answer. @throws the connection's end, gateway_timeout */
  async next(timeoutMs?: number): Promise<Frame> {
    const frame = this.#frames.shift()
    if (frame) {
      this.#queuedBytes -= frame.payload.length
      if (this.#paused && this.#queuedBytes < queuedBytesMax / 2) {
        this.#paused = false
        this.pooled.connection.resume()
      }
      return frame
    }
    if (this.#error) throw this.#error
    this.#waiting = Promise.withResolvers<Frame>()
    return this.#inTime(this.#waiting.promise, timeoutMs)
  }

  /** Throws what the guest refused with, or that it answered nonsense. */
  expect(frame: Frame, type: number): void {
    if (frame.type === type) return
    if (frame.type !== FrameType.error) throw this.broken(`answer of type ${frame.type}`)
    const { errno, message } = readError(frame.payload)
    throw fileError(errno, this.path, message)
  }

  broken(what: string): PlatformError {
    return new PlatformError('bad_gateway', 'The sandbox answered with something else than the protocol', {
      cause: new ProtocolError(what),
    })
  }

  /** The answer is complete: the connection may serve the next request. */
  done(): void {
    this.#done = true
  }

  /** Gives up, whoever waits for an answer included. */
  cancel(reason: unknown): void {
    if (this.#released) return
    this.onClose(reason instanceof Error ? reason : new Error('cancelled'), true)
    this.release()
  }

  release(): void {
    if (this.#released) return
    this.#released = true
    this.pooled.operation = null
    const { connection } = this.pooled
    if (this.#done && this.#frames.length === 0 && !connection.closed) {
      if (this.#paused) connection.resume()
      this.pooled.pool.give(this.pooled)
    } else {
      this.pooled.pool.forget(this.pooled)
      connection.close(new Error('cancelled'))
    }
  }

  onFrame(frame: Frame): void {
    if (this.#waiting) {
      this.#waiting.resolve(frame)
      this.#waiting = null
      return
    }
    if (frame.type === FrameType.error) {
      const { errno, message } = readError(frame.payload)
      this.#failure.reject(fileError(errno, this.path, message))
    }
    this.#frames.push(frame)
    this.#queuedBytes += frame.payload.length
    if (this.#frames.length > framesMax) throw new ProtocolError('answers without a request')
    if (!this.#paused && this.#queuedBytes > queuedBytesMax) {
      this.#paused = true
      this.pooled.connection.pause()
    }
  }

  onClose(error: Error, isOurs = false): void {
    this.#error = isOurs ? error : this.#reasonOf(error)
    this.#failure.reject(this.#error)
    this.#waiting?.reject(this.#error)
    this.#waiting = null
  }

  #reasonOf(error: Error): PlatformError {
    if (PlatformError.is(error)) return error
    if (error instanceof ProtocolError) return this.broken(error.message)
    return new PlatformError('unavailable', 'The sandbox went away', { cause: error })
  }

  /** A frozen sandbox may take as long as it is frozen. */
  async #inTime<Value>(promise: Promise<Value>, timeoutMs = this.pooled.pool.stallMsMax): Promise<Value> {
    if (timeoutMs === Number.POSITIVE_INFINITY) return promise
    const onTimeout = () => {
      if (this.pooled.pool.suspended) timer = setTimeout(onTimeout, timeoutMs)
      else {
        this.pooled.connection.close(
          new PlatformError('gateway_timeout', `The sandbox did not answer within ${timeoutMs} ms`),
        )
      }
    }
    let timer = setTimeout(onTimeout, timeoutMs)
    try {
      return await promise
    } finally {
      clearTimeout(timer)
    }
  }
}

/** Small frames that one read of the socket may bring, and then some; more is a flood. */
const framesMax = 65_536
