import { connect as connectSocket, type Socket } from 'node:net'
import { PlatformError } from '../errors.ts'
import {
  type Frame,
  FrameReader,
  FrameType,
  FrameWriter,
  PayloadReader,
  ProtocolError,
  protocolVersion,
  readError,
  receivedLimits,
} from './codec.ts'
import { errnoName, printable } from './errno.ts'

export type ConnectionRole = 'control' | 'files' | 'keeper'

const roleNumbers: Record<ConnectionRole, number> = { control: 1, files: 2, keeper: 1 }

/** Connecting and the greeting together. */
export const connectTimeoutMsDefault = 10_000
const connectAttemptsMax = 20
const connectRetryMs = 5
const queuedBytesMaxForPong = 64 * 1024

export interface ConnectionOptions {
  /** A unix socket's path, at most 107 bytes. */
  path: string
  role: ConnectionRole
  uid?: number
  gid?: number
  timeoutMs?: number
}

/** What happens on a connection after the greeting. `onClose` comes once, last; the error says why, if anything. */
export interface ConnectionHandler {
  onFrame(frame: Frame): void
  onClose(error: Error): void
}

/** One greeted connection to the helper. Any protocol error closes it. */
export class Connection {
  #socket: Socket
  #reader: FrameReader
  #handler: ConnectionHandler
  #greeted: ((result: bigint | Error) => void) | null = null
  #error: Error | null = null
  #closed = false
  #drained: (() => void)[] = []
  bootId = 0n

  private constructor(
    socket: Socket,
    role: ConnectionRole,
    handler: ConnectionHandler,
    greeted: (result: bigint | Error) => void,
  ) {
    this.#socket = socket
    this.#reader = new FrameReader(receivedLimits[role])
    this.#handler = handler
    this.#greeted = greeted
    socket.on('data', (chunk: Uint8Array) => this.#onData(chunk))
    socket.on('drain', () => this.#wakeWriters())
    socket.on('error', (error) => {
      this.#error ??= error
    })
    socket.on('close', () => this.#onClose())
  }

  /**
   * The handler may get frames before this resolves; when it rejects the handler hears nothing.
   * @throws unavailable when nothing answers, with the reason as cause
   */
  static async open(options: ConnectionOptions, handler: ConnectionHandler): Promise<Connection> {
    const timeoutMs = options.timeoutMs ?? connectTimeoutMsDefault
    const deadline = performance.now() + timeoutMs
    for (let attempt = 1; ; attempt++) {
      try {
        return await Connection.#openOnce(options, handler, Math.max(1, deadline - performance.now()))
      } catch (error) {
        // A full backlog refuses a unix socket with EAGAIN at once: the listener is alive, only busy.
        const busy = (error as NodeJS.ErrnoException).code === 'EAGAIN'
        if (!busy || attempt >= connectAttemptsMax || performance.now() > deadline) {
          if (PlatformError.is(error)) throw error
          throw new PlatformError('unavailable', 'The sandbox does not answer', { cause: error })
        }
        await new Promise((resolve) => setTimeout(resolve, connectRetryMs * attempt))
      }
    }
  }

  static async #openOnce(
    options: ConnectionOptions,
    handler: ConnectionHandler,
    timeoutMs: number,
  ): Promise<Connection> {
    const socket = connectSocket({ path: options.path })
    const greeting = Promise.withResolvers<bigint | Error>()
    const connection = new Connection(socket, options.role, handler, greeting.resolve)
    const timer = setTimeout(() => connection.close(new Error('no greeting in time')), timeoutMs)
    connection.send(
      new FrameWriter(FrameType.hello, 0)
        .u32(protocolVersion)
        .u8(roleNumbers[options.role])
        .u32(options.uid ?? 0)
        .u32(options.gid ?? 0)
        .finish(),
    )
    const result = await greeting.promise
    clearTimeout(timer)
    if (typeof result !== 'bigint') throw result
    connection.bootId = result
    return connection
  }

  get closed(): boolean {
    return this.#closed || this.#error !== null
  }

  /** Bytes accepted and not yet taken by the kernel. */
  get queuedBytes(): number {
    return this.#socket.writableLength
  }

  /** False: wait for `drained()` before sending more. */
  send(bytes: Uint8Array): boolean {
    if (this.closed) return false
    return this.#socket.write(bytes)
  }

  /** A `send` answered false, and its bytes are still here. */
  get full(): boolean {
    // Not whether anything is queued: below the socket's mark there is no 'drain' to wait for.
    return !this.closed && this.#socket.writableNeedDrain
  }

  /** Resolves when there is room for more, or the connection closed. */
  drained(): Promise<void> {
    if (!this.full) return Promise.resolve()
    return new Promise((resolve) => this.#drained.push(resolve))
  }

  pause(): void {
    this.#socket.pause()
  }

  resume(): void {
    this.#socket.resume()
  }

  close(error: Error = new Error('closed')): void {
    this.#error ??= error
    this.#socket.destroy()
    this.#wakeWriters()
  }

  /** Why it is closed, also before the handler heard of it; null while it is open. */
  get error(): Error | null {
    return this.#error ?? (this.#closed ? new Error('the other end closed the connection') : null)
  }

  #wakeWriters() {
    for (const wake of this.#drained.splice(0)) wake()
  }

  #onClose() {
    if (this.#closed) return
    this.#closed = true
    this.#wakeWriters()
    const reason = this.error ?? new Error('closed')
    if (this.#greeted === null) this.#handler.onClose(reason)
    else this.#greeted(reason)
  }

  #onData(chunk: Uint8Array) {
    try {
      for (const frame of this.#reader.push(chunk)) {
        if (this.#error !== null) return
        if (this.#greeted !== null) this.#onGreeting(frame)
        else if (frame.type === FrameType.ping) this.#onPing(frame.id)
        else this.#handler.onFrame(frame)
      }
    } catch (error) {
      this.close(error instanceof Error ? error : new Error(String(error)))
    }
  }

  #onPing(id: number) {
    if (this.queuedBytes > queuedBytesMaxForPong) throw new ProtocolError('pings without reading the answers')
    this.send(new FrameWriter(FrameType.pong, id).finish())
  }

  #onGreeting(frame: Frame) {
    if (frame.type === FrameType.error) {
      const { errno, message } = readError(frame.payload)
      throw new Error(`greeting refused: ${errnoName(errno)} ${printable(message)}`)
    }
    if (frame.type !== FrameType.helloOk) throw new ProtocolError(`greeting answered by type ${frame.type}`)
    const reader = new PayloadReader(frame.payload)
    const version = reader.u32()
    const bootId = reader.u64Exact()
    reader.end()
    if (version !== protocolVersion) throw new ProtocolError(`helper speaks version ${version}`)
    const greeted = this.#greeted
    this.#greeted = null
    greeted?.(bootId)
  }
}
