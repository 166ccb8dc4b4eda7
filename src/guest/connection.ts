import type { Socket } from 'bun'
import { PlatformError } from '../errors.ts'
import { sendWithDescriptor } from '../lib/descriptors.ts'
import { readError } from './codec.ts'
import { errnoName, printable } from './errno.ts'
import {
  type Frame,
  FrameReader,
  FrameType,
  FrameWriter,
  ProtocolError,
  protocolVersion,
  receivedLimits,
} from './frame.ts'
import { PayloadReader } from './payload.ts'

/** Of whose properties the types of Bun leave one out: -1 once it is closed. */
type DescribedSocket = Socket & { readonly fd: number }

export type ConnectionRole = 'control' | 'files' | 'keeper' | 'sockets' | 'dialler'

const roleNumbers: Record<ConnectionRole, number> = {
  control: 1,
  files: 2,
  keeper: 1,
  sockets: 3,
  dialler: 1,
}

/** Connecting and the greeting together. */
const connectTimeoutMsDefault = 10_000
const connectAttemptsMax = 7
const connectRetryMs = 5
const queuedBytesMaxForPong = 64 * 1024
const gatheredBytesMax = 4 * 1024

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
  #socket: Socket | null = null
  #reader: FrameReader
  #handler: ConnectionHandler
  #greeted: ((result: bigint | Error) => void) | null = null
  #error: Error | null = null
  #closed = false
  /** What the kernel has not taken yet. */
  #queue: Uint8Array[] = []
  #queuedBytes = 0
  #drained: (() => void)[] = []
  bootId = 0n

  private constructor(
    role: ConnectionRole,
    handler: ConnectionHandler,
    greeted: (result: bigint | Error) => void,
  ) {
    this.#reader = new FrameReader(receivedLimits[role], role === 'files' ? FrameType.data : null)
    this.#handler = handler
    this.#greeted = greeted
  }

  /**
   * The handler may get frames before this resolves; when it rejects the handler hears nothing. `onHello` gets the
   * connection of each attempt: what it sends goes out right behind the greeting, which saves a round trip.
   * @throws unavailable when nothing answers, with the reason as cause
   */
  static async open(
    options: ConnectionOptions,
    handler: ConnectionHandler,
    onHello?: (connection: Connection) => void,
  ): Promise<Connection> {
    const timeoutMs = options.timeoutMs ?? connectTimeoutMsDefault
    const deadline = performance.now() + timeoutMs
    for (let attempt = 1; ; attempt++) {
      try {
        const leftMs = Math.max(1, deadline - performance.now())
        return await Connection.#openOnce(options, handler, leftMs, onHello)
      } catch (error) {
        // So a full backlog is reported too: the listener may be alive, only busy.
        const refused = (error as NodeJS.ErrnoException).code === 'ECONNREFUSED'
        if (!refused || attempt >= connectAttemptsMax || performance.now() > deadline) {
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
    onHello: ((connection: Connection) => void) | undefined,
  ): Promise<Connection> {
    const greeting = Promise.withResolvers<bigint | Error>()
    const connection = new Connection(options.role, handler, greeting.resolve)
    const timer = setTimeout(() => connection.close(new Error('no greeting in time')), timeoutMs)
    connection.send(
      new FrameWriter(FrameType.hello, 0)
        .u32(protocolVersion)
        .u8(roleNumbers[options.role])
        .u32(options.uid ?? 0)
        .u32(options.gid ?? 0)
        .finish(),
    )
    onHello?.(connection)
    // Reported by connectError too: that is the one place that does not wait for this promise.
    Bun.connect({ unix: options.path, socket: connection.#callbacks() }).catch(() => {})
    const result = await greeting.promise
    clearTimeout(timer)
    if (typeof result !== 'bigint') throw result
    connection.bootId = result
    return connection
  }

  #callbacks() {
    return {
      binaryType: 'uint8array' as const,
      open: (socket: Socket) => {
        // Given up while it was connecting.
        if (this.#error !== null) return void socket.terminate()
        this.#socket = socket
        this.#flush()
      },
      data: (_: Socket, chunk: Uint8Array) => this.#onData(chunk),
      drain: () => this.#flush(),
      connectError: (_: Socket, error: Error) => this.#end(error),
      error: (_: Socket, error: Error) => {
        this.#error ??= error
      },
      close: () => this.#end(new Error('the other end closed the connection')),
    }
  }

  get closed(): boolean {
    return this.#closed || this.#error !== null
  }

  /** Bytes accepted and not yet taken by the kernel. */
  get queuedBytes(): number {
    return this.#queuedBytes
  }

  /** False: wait for `drained()` before sending more. The bytes must not change until they are sent. */
  send(bytes: Uint8Array): boolean {
    if (this.closed) return false
    let sent = 0
    if (this.#socket !== null && this.#queue.length === 0) sent = Math.max(0, this.#socket.write(bytes))
    if (sent === bytes.length) return true
    this.#queue.push(sent === 0 ? bytes : bytes.subarray(sent))
    this.#queuedBytes += bytes.length - sent
    return false
  }

  /** The same, with a descriptor beside the bytes. False: nothing was sent, since something else waits to be. */
  sendWithDescriptor(bytes: Uint8Array, descriptor: number): boolean {
    const { fd: socket = -1 } = (this.#socket ?? {}) as Partial<DescribedSocket>
    if (this.closed || socket < 0 || this.#queue.length > 0) return false
    const sent = sendWithDescriptor(socket, bytes, descriptor)
    if (sent <= 0) return false
    if (sent < bytes.length) this.send(bytes.subarray(sent))
    return true
  }

  /** A `send` answered false, and its bytes are still here. */
  get full(): boolean {
    return !this.closed && this.#queue.length > 0
  }

  /** Resolves when there is room for more, or the connection closed. */
  drained(): Promise<void> {
    if (!this.full) return Promise.resolve()
    return new Promise((resolve) => this.#drained.push(resolve))
  }

  pause(): void {
    this.#socket?.pause()
  }

  resume(): void {
    this.#socket?.resume()
  }

  close(error: Error = new Error('closed')): void {
    this.#end(error)
    this.#socket?.terminate()
  }

  /** Why it is closed, also before the handler heard of it; null while it is open. */
  get error(): Error | null {
    return this.#error
  }

  #wakeWriters() {
    for (const wake of this.#drained.splice(0)) wake()
  }

  #flush() {
    // What gathered while it was connecting is small, and one write wakes the other side once.
    if (this.#queue.length > 1 && this.#queuedBytes <= gatheredBytesMax)
      this.#queue = [Buffer.concat(this.#queue)]
    while (this.#queue.length > 0 && !this.closed) {
      const bytes = this.#queue[0]!
      const sent = Math.max(0, this.#socket?.write(bytes) ?? 0)
      if (this.closed) return
      this.#queuedBytes -= sent
      if (sent < bytes.length) {
        // The rest goes out at the next drain.
        if (sent > 0) this.#queue[0] = bytes.subarray(sent)
        return
      }
      this.#queue.shift()
    }
    this.#wakeWriters()
  }

  #end(error: Error) {
    this.#error ??= error
    if (this.#closed) return
    this.#closed = true
    this.#queue = []
    this.#queuedBytes = 0
    // Later: whoever closes is not told in the middle of its work, nor before it knows that the connection is open.
    setImmediate(() => this.#onClose())
  }

  #onClose() {
    this.#wakeWriters()
    const reason = this.#error ?? new Error('closed')
    if (this.#greeted === null) this.#handler.onClose(reason)
    else this.#greeted(reason)
  }

  #onData(chunk: Uint8Array) {
    if (this.closed) return
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
