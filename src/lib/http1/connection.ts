import type { Socket } from 'bun'
import { abortable } from '../abortable.ts'

/** Whoever a connection is for, at the time. */
export interface ConnectionUser {
  received(chunk: Buffer): void
  /** It is over. `error`: it was torn off. */
  broke(error: unknown): void
}

/** Where a server listens on this host. */
export interface ServerAddress {
  origin: string
  unix?: string
  /** A shorter way: a connected socket, by its descriptor, which is the caller's; null: not now, as above. */
  connect?(): Promise<number | null>
  /** What is said is encrypted, to who has a certificate of this name (or address). */
  tlsName?: string
}

/** One socket, which its users have one after the other. */
export class Connection {
  /** By the monotonic clock: without a user since. */
  idleSince = 0
  readonly #onIdle: (connection: Connection) => void
  readonly #onEnd: (connection: Connection) => void
  #socket: Socket<Connection> | null = null
  #user: ConnectionUser | null = null
  #over = false
  #paused = false
  /** What the kernel did not take yet, and whoever waits for that. */
  #unsent: Uint8Array | null = null
  #drained: PromiseWithResolvers<void> | null = null
  /** Until it is known who is at the other end, where that is asked. */
  #greeted: PromiseWithResolvers<void> | null = null

  private constructor(onIdle: (connection: Connection) => void, onEnd: (connection: Connection) => void) {
    this.#onIdle = onIdle
    this.#onEnd = onEnd
  }

  /**
   * `onIdle`: it has no user any more and can have the next one. `onEnd`: it is over. `unwanted`: nobody waits for it to be greeted.
   * @throws where nobody listens, or is who was asked for
   */
  static async open(
    server: ServerAddress,
    onIdle: (connection: Connection) => void,
    onEnd: (connection: Connection) => void,
    unwanted?: AbortSignal,
  ): Promise<Connection> {
    const data = new Connection(onIdle, onEnd)
    const { tlsName } = server
    const tls = tlsName === undefined ? {} : { tls: { serverName: tlsName, rejectUnauthorized: true } }
    const descriptor = (await server.connect?.()) ?? null
    if (tlsName !== undefined) data.#greeted = Promise.withResolvers()
    // Also where nobody comes to wait for it.
    data.#greeted?.promise.catch(() => {})
    if (descriptor !== null) {
      // Bun takes it over; its types know that of no function.
      const connect = Bun.connect as unknown as (options: Bun.FdSocketOptions<Connection>) => Promise<unknown>
      await connect({ fd: descriptor, data, socket: handlers, ...tls })
    } else if (server.unix !== undefined) {
      await Bun.connect<Connection>({ unix: server.unix, data, socket: handlers, ...tls })
    } else {
      const { hostname: name, port } = new URL(server.origin)
      const hostname = name.replace(/^\[|\]$/g, '')
      await Bun.connect<Connection>({
        hostname,
        port: Number(port || defaultPort),
        data,
        socket: handlers,
        ...tls,
      })
    }
    if (data.#greeted !== null) await data.#greeting(data.#greeted, unwanted)
    return data
  }

  async #greeting({ promise, reject }: PromiseWithResolvers<void>, unwanted?: AbortSignal): Promise<void> {
    const late = setTimeout(() => reject(new Error('no greeting in time')), greetingMsMax)
    try {
      await abortable(promise, unwanted)
    } catch (error) {
      this.close()
      throw error
    } finally {
      clearTimeout(late)
      this.#greeted = null
    }
  }

  /** The other end showed who it is, or did not. */
  greeted(error: Error | null): void {
    if (error === null) this.#greeted?.resolve()
    else this.#greeted?.reject(error)
  }

  opened(socket: Socket<Connection>): void {
    this.#socket = socket
    // Whoever asks keeps the process; a connection that waits for the next one does not.
    socket.unref()
  }

  /** It is this one's now. */
  serve(user: ConnectionUser): void {
    if (this.#over) user.broke(undefined)
    else this.#user = user
  }

  /** Its user is done; unless it is `reusable` it is over. */
  leave(reusable: boolean): void {
    this.#user = null
    if (!reusable || this.#over || this.#unsent !== null) {
      this.close()
      return
    }
    this.resume()
    this.#onIdle(this)
  }

  close(): void {
    this.#user = null
    this.#over = true
    this.#settleDrained()
    this.#socket?.terminate()
  }

  /** Takes in nothing more until `resume`. */
  pause(): void {
    if (this.#paused || this.#over) return
    this.#paused = true
    this.#socket?.pause()
  }

  resume(): void {
    if (!this.#paused || this.#over) return
    this.#paused = false
    this.#socket?.resume()
  }

  /**
   * Null when all of it is with the kernel, else resolves when that is so, or the connection is over. Until then the bytes
   * are not to change, and nothing else is to be written.
   */
  write(bytes: Uint8Array): Promise<void> | null {
    if (this.#over || this.#socket === null) return null
    if (this.#unsent !== null) throw new Error('one write at a time')
    const written = Math.max(0, this.#socket.write(bytes))
    return written < bytes.byteLength ? this.#wait(bytes.subarray(written)) : null
  }

  /** As `write`, of a text of one character a byte (latin1). */
  writeText(text: string): Promise<void> | null {
    const bytes = text.length
    if (this.#over || this.#socket === null) return null
    if (bytes > scratch.byteLength || this.#unsent !== null) return this.write(Buffer.from(text, 'latin1'))
    scratch.write(text, 'latin1')
    const written = Math.max(0, this.#socket.write(scratch, 0, bytes))
    return written < bytes ? this.#wait(Buffer.from(scratch.subarray(written, bytes))) : null
  }

  #wait(unsent: Uint8Array): Promise<void> {
    this.#unsent = unsent
    this.#drained = Promise.withResolvers()
    return this.#drained.promise
  }

  drain(): void {
    if (this.#unsent === null || this.#socket === null) return
    const written = Math.max(0, this.#socket.write(this.#unsent))
    if (written < this.#unsent.byteLength) this.#unsent = this.#unsent.subarray(written)
    else this.#settleDrained()
  }

  received(chunk: Buffer): void {
    // What nobody asked for is nobody's answer.
    if (this.#user === null) this.close()
    else this.#user.received(chunk)
  }

  ended(error: unknown): void {
    this.#over = true
    this.#settleDrained()
    this.#greeted?.reject(error ?? new Error('it ended before it said who it is'))
    const user = this.#user
    this.#user = null
    this.#onEnd(this)
    user?.broke(error)
  }

  #settleDrained(): void {
    this.#unsent = null
    this.#drained?.resolve()
    this.#drained = null
  }
}

const defaultPort = 80
/** Of TLS. */
const greetingMsMax = 10_000
/** For what is written at once and whole, as nearly all heads of requests are. */
const scratch = Buffer.allocUnsafeSlow(16 * 1024)

const handlers = {
  open: (socket: Socket<Connection>) => socket.data.opened(socket),
  handshake: (socket: Socket<Connection>, isTrusted: boolean, error: Error | null) =>
    socket.data.greeted(isTrusted ? null : (error ?? new Error('it is not who it says'))),
  data: (socket: Socket<Connection>, chunk: Buffer) => socket.data.received(chunk),
  drain: (socket: Socket<Connection>) => socket.data.drain(),
  close: (socket: Socket<Connection>, error?: unknown) => socket.data.ended(error),
  // `close` follows, with the same.
  error: () => {},
}
