import { closeSync } from 'node:fs'
import { PlatformError } from '../errors.ts'
import { messageSockets, receiveDescriptor } from '../lib/descriptors.ts'
import type { Logger } from '../lib/log.ts'
import { type ConnectRecord, readConnect, readError, readGuestState } from './codec.ts'
import { errnoName } from './errno.ts'
import { FrameType, FrameWriter } from './frame.ts'
import { type Ask, Requests } from './requests.ts'

/** The keeper keeps 256 ports open, the least recently used go first; these are surely still open. */
const knownPortsMax = 128
/** A keeper that lives answers at once; one that ended takes its socket away. */
const reconnectAttemptsMax = 4

export interface GuestState {
  state: 'running' | 'exited' | 'signaled'
  /** Exit code or signal. */
  code: number
}

/** A connection that waits at the keeper, which calls it by `id`. */
export interface LeavingConnection extends ConnectRecord {
  id: number
}

/** Who is told of what leaves the instance. Each connection is refused or brought a socket, each query answered. */
export interface KeeperEgress {
  onConnect(connection: LeavingConnection): void
  onQuery(id: number, query: Uint8Array): void
}

export interface KeeperOptions {
  socketPath: string
  log: Logger
  egress?: KeeperEgress | undefined
  /** Process 1 ended, as the keeper saw it; null when the keeper itself went away. Called once. */
  onEnd: (state: GuestState | null) => void
}

interface Listening {
  /** Null once it does. */
  opening: Promise<void> | null
}

/** The channel to an instance's keeper: ports, and the end of process 1. */
export class KeeperChannel {
  #requests: Requests
  /** Of its own, since a keeper of an earlier version closes the one that asks for a way out. */
  #departures: Requests
  #nextId = 1
  #listening = new Map<number, Listening>()
  /** A keeper of an earlier version knows no way to, and closes the connection that asks for it. */
  #reaches = true
  #ended = false
  /** As it was told last. */
  #state: GuestState = { state: 'running', code: 0 }
  #onEnd: KeeperOptions['onEnd']

  constructor(options: KeeperOptions) {
    this.#onEnd = options.onEnd
    this.#requests = new Requests({
      path: options.socketPath,
      role: 'keeper',
      log: options.log,
      onEvent: (frame) => {
        if (frame.type === FrameType.connect && options.egress) {
          options.egress.onConnect({ id: frame.id, ...readConnect(frame.payload) })
          return true
        }
        if (frame.type === FrameType.query && options.egress) {
          options.egress.onQuery(frame.id, frame.payload.slice())
          return true
        }
        if (frame.type !== FrameType.guest) return false
        this.#learn(readGuestState(frame.payload))
        return true
      },
      onOpen: async (ask) => {
        const egress = options.egress ? this.#takeEgress(ask) : null
        await Promise.all([egress, this.#status(ask)])
      },
      // Its ports may be dropped while nobody is there to ask for them.
      onLost: () => this.#listening.clear(),
      wanted: () => !this.#ended,
      reconnectAttemptsMax,
      onGivenUp: () => this.#end(null),
    })
    this.#departures = new Requests({
      path: options.socketPath,
      role: 'keeper',
      log: options.log,
      onEvent: (frame) => frame.type === FrameType.guest,
    })
  }

  /** Connects, and says what process 1 does then. @throws unavailable when there is no keeper */
  async open(): Promise<GuestState> {
    await this.#requests.open()
    return this.#state
  }

  async #status(ask: Ask): Promise<void> {
    const id = this.#id()
    const answer = await ask(id, new FrameWriter(FrameType.status, id).finish(), FrameType.guest)
    if (answer.type === FrameType.error) throw refused(answer.payload, 'status')
    this.#learn(readGuestState(answer.payload))
  }

  #learn(state: GuestState) {
    this.#state = state
    if (state.state !== 'running') this.#end(state)
  }

  /** From then on `p<port>` beside the keeper's socket leads to the port inside; null: it does so already. */
  listen(port: number): Promise<void> | null {
    const known = this.#listening.get(port)
    if (known !== undefined) {
      this.#listening.delete(port)
      this.#listening.set(port, known)
      return known.opening
    }
    const listening: Listening = { opening: null }
    listening.opening = this.#listen(port).then(
      () => {
        listening.opening = null
      },
      (error) => {
        if (this.#listening.get(port) === listening) this.#listening.delete(port)
        throw error
      },
    )
    this.#listening.set(port, listening)
    if (this.#listening.size > knownPortsMax) {
      const [oldest] = this.#listening.keys()
      if (oldest !== undefined) this.#listening.delete(oldest)
    }
    return listening.opening
  }

  async #listen(port: number): Promise<void> {
    const id = this.#id()
    const answer = await this.#requests.request(
      id,
      new FrameWriter(FrameType.listen, id).u16(port).finish(),
      FrameType.ok,
    )
    if (answer.type === FrameType.error) throw refused(answer.payload, `port ${port}`)
  }

  /**
   * A socket that is connected to the port inside, by its descriptor, which is the caller's: nothing stands between the two.
   * Null where it cannot be had now: then by `listen`. @throws unavailable when nothing accepts connections there
   */
  async reach(port: number): Promise<number | null> {
    if (!this.#reaches) return null
    const frame = (id: number) => new FrameWriter(FrameType.reach, id).u16(port).finish()
    try {
      return await this.#handedOver(this.#requests, frame, `port ${port}`)
    } catch (error) {
      if (!(error instanceof NoAnswer)) throw error
      if (!PlatformError.is(error.cause) || error.cause.code !== 'too_many_requests') this.#reaches = false
      return null
    }
  }

  /**
   * A socket that is connected as that of a program inside is that asks for this address, of 4 or 16 bytes: what does not
   * stay inside waits at the keeper for a verdict, and leaves by its relay. By its descriptor, which is the caller's.
   * @throws unavailable where there is no way
   */
  async depart(address: Uint8Array, port: number): Promise<number> {
    const frame = (id: number) => new FrameWriter(FrameType.depart, id).u16(port).raw(address).finish()
    const departed = await this.#handedOver(this.#departures, frame, 'way out')
    if (departed === null) throw new PlatformError('unavailable', 'Too much leaves the sandbox at once')
    return departed
  }

  /** The socket that the keeper makes for this request; null: not now. @throws unavailable with why, NoAnswer */
  async #handedOver(
    requests: Requests,
    frame: (id: number) => Uint8Array,
    what: string,
  ): Promise<number | null> {
    const ends = messageSockets()
    if (ends === null) return null
    const [own, theirs] = ends
    try {
      const id = this.#id()
      // A dial may take as long as a full backlog does; the keeper gives it up.
      const options = { descriptor: theirs, timeout: false }
      const answer = await requests.request(id, frame(id), FrameType.ok, options).catch((cause) => {
        throw new NoAnswer(cause)
      })
      if (answer.type !== FrameType.error) return receiveDescriptor(own)
      // It dials many already.
      if (errnoName(readError(answer.payload).errno) === 'EAGAIN') return null
      throw refused(answer.payload, what)
    } finally {
      closeSync(own)
      closeSync(theirs)
    }
  }

  async probe(port: number): Promise<boolean> {
    const id = this.#id()
    const answer = await this.#requests.request(
      id,
      new FrameWriter(FrameType.probe, id).u16(port).finish(),
      FrameType.ok,
    )
    return answer.type === FrameType.ok
  }

  async #takeEgress(ask: Ask): Promise<void> {
    const id = this.#id()
    const answer = await ask(id, new FrameWriter(FrameType.egress, id, 0).finish(), FrameType.ok)
    if (answer.type === FrameType.error) throw refused(answer.payload, 'network')
  }

  /** Resets a connection that waits. One that is gone already needs nothing more. */
  refuse(connection: number): void {
    this.#requests.notify(new FrameWriter(FrameType.refuse, connection, 0).finish()).catch(() => {})
  }

  answerQuery(id: number, answer: Uint8Array): void {
    const frame = new FrameWriter(FrameType.answer, id, answer.length).raw(answer)
    this.#requests.notify(frame.finish()).catch(() => {})
  }

  /** Its disk image is written past the host's page cache from now on. Idempotent; nothing where there is no image. */
  async settleDisk(): Promise<void> {
    await this.#requests.notify(new FrameWriter(FrameType.settle, 0).finish())
  }

  /** SIGKILL to process 1; its end is told by `onEnd`. */
  async kill(): Promise<void> {
    await this.#requests.notify(new FrameWriter(FrameType.kill, 0).finish())
  }

  close(error: PlatformError): void {
    this.#ended = true
    this.#requests.close(error)
    this.#departures.close(error)
  }

  #id(): number {
    this.#nextId = (this.#nextId % 0xffff_fff0) + 1
    return this.#nextId
  }

  #end(state: GuestState | null) {
    if (this.#ended) return
    this.#ended = true
    this.#onEnd(state)
  }
}

class NoAnswer extends PlatformError {
  constructor(cause: unknown) {
    super('unavailable', 'The sandbox does not answer', { cause })
  }
}

function refused(payload: Uint8Array, what: string): PlatformError {
  const { errno } = readError(payload)
  return new PlatformError('unavailable', `The sandbox's ${what} cannot be opened: ${errnoName(errno)}`)
}
