import { randomBytes } from 'node:crypto'
import { type RevisionProgram, sessionProcessIdMin } from '../../../deployments/fleet/index.ts'
import { StdioServer } from '../../../deployments/stdio/index.ts'
import { PlatformError } from '../../../errors.ts'
import type { Clock } from '../../../lib/clock.ts'
import { Lingering } from '../../../lib/lingering.ts'
import type { Logger } from '../../../lib/log.ts'
import type { Instance } from '../../../spec/runtime.ts'
import type { SessionId } from '../session-ids.ts'
import { Session } from './session.ts'

/** Where servers are started, and how. */
export interface BridgeMachine {
  readonly instance: Instance
  readonly program: RevisionProgram
  /** Each line that a server writes for people. */
  onLine(line: string, stream: 'stdout' | 'stderr' | 'platform'): void
}

/** A session and the process that is its server. */
export interface Held {
  readonly id: SessionId
  /** Of what function, in which workspace. */
  readonly place: string
  readonly session: Session
  readonly server: StdioServer
  lastUsedMs: number
  /** Its client stopped listening, as one does that goes. */
  left: boolean
}

/** Each is a process. */
export const sessionsPerInstanceMax = 16
/** With those that are being ended. */
const processesPerInstanceMax = 2 * sessionsPerInstanceMax
const sessionsMax = 2048
/** A session that nobody has used for so long is over: most clients leave without a word. */
export const sessionIdleMs = 10 * 60_000
/** One whose client stopped listening and did not come back. */
export const sessionLeftMs = 60_000
/** One that was idle for so long gives way to a new one where there is no other room. */
const givesWayAfterMs = 10_000
const killSignal = 9

interface Room {
  readonly instance: Instance
  /** Whose process is there, the ended ones that are not gone yet included. */
  readonly held: Set<Held>
  beginning: number
  /** Processes of sessions that an earlier life of the platform began are over. */
  cleared: Promise<void>
  nextId: number
}

/** Which sessions there are, and in which instance; bounded, and over when nobody uses them. */
export class SessionTable {
  readonly #clock: Clock
  readonly #log: Logger
  readonly #byId = new Map<string, Held>()
  readonly #rooms = new Map<string, Room>()
  readonly #idle: Lingering<Held>
  readonly #left: Lingering<Held>

  constructor({ clock, log }: { clock: Clock; log: Logger }) {
    this.#clock = clock
    this.#log = log
    this.#idle = new Lingering({ afterMs: sessionIdleMs, clock, log, due: (held) => this.#due(held) })
    this.#left = new Lingering({
      afterMs: sessionLeftMs,
      clock,
      log,
      due: (held) => held.left && this.#due(held),
    })
  }

  get size(): number {
    return this.#byId.size
  }

  /** Whether one more session has room in this instance. */
  fits(instanceId: string): boolean {
    const room = this.#rooms.get(instanceId)
    return room === undefined || this.#hasPlace(room)
  }

  find(place: string, id: SessionId): Held | null {
    const held = this.#byId.get(id.session)
    return held !== undefined && held.place === place && held.id.instanceId === id.instanceId ? held : null
  }

  /** @throws too_many_requests when there is no room, unprocessable when the program cannot be started */
  async begin(place: string, machine: BridgeMachine): Promise<Held> {
    const { instance, program, onLine } = machine
    const room = this.#roomOf(instance)
    this.#makePlace(room)
    room.beginning++
    try {
      await room.cleared
      const started = Promise.withResolvers<StdioServer>()
      const session: Session = new Session({
        clock: this.#clock,
        server: {
          write: async (text) => await (await started.promise).write(text),
          end: () => void started.promise.then((server) => server.end()),
        },
      })
      const server = await StdioServer.start({
        ...{ guest: instance.guest, id: room.nextId++, program, clock: this.#clock, onLine },
        onMessage: (text) => session.hear(text),
      })
      started.resolve(server)
      const id = { instanceId: instance.id, session: randomBytes(16).toString('hex') }
      const held: Held = { id, place, session, server, lastUsedMs: this.#clock.monotonic(), left: false }
      this.#byId.set(id.session, held)
      room.held.add(held)
      void server.ended.then(({ reason, asked }) => {
        if (!asked) onLine(`a session ended: ${reason}`, 'platform')
        held.session.close(reason)
        this.#forget(held)
        room.held.delete(held)
        this.#leave(room)
      })
      return held
    } finally {
      room.beginning--
      this.#leave(room)
    }
  }

  /** Somebody is done with it for now. */
  used(held: Held): void {
    if (!this.#byId.has(held.id.session)) return
    held.lastUsedMs = this.#clock.monotonic()
    this.#idle.add(held)
  }

  /** Its client listens, or stopped to. */
  listening(held: Held, listens: boolean): void {
    held.left = !listens
    if (!this.#byId.has(held.id.session)) return
    if (listens) this.#left.delete(held)
    else this.#left.add(held)
  }

  end(held: Held, reason: string): void {
    this.#forget(held)
    held.session.close(reason)
    held.server.end()
  }

  close(): void {
    this.#idle[Symbol.dispose]()
    this.#left[Symbol.dispose]()
    for (const held of [...this.#byId.values()]) {
      held.session.close('the platform is restarting')
      held.server.release()
    }
  }

  #due(held: Held): void {
    if (held.session.busy) this.used(held)
    else this.end(held, 'nobody used it')
  }

  #forget(held: Held): void {
    this.#byId.delete(held.id.session)
    this.#idle.delete(held)
    this.#left.delete(held)
  }

  #makePlace(room: Room): void {
    if (this.#byId.size >= sessionsMax) {
      throw new PlatformError('too_many_requests', `${sessionsMax} sessions are open here, the most allowed`)
    }
    if (!this.#hasPlace(room)) {
      throw new PlatformError(
        'too_many_requests',
        `${sessionsPerInstanceMax} sessions are in use in this instance, the most allowed: end one, or raise maxScale`,
        { retryAfterSeconds: 10 },
      )
    }
    if (this.#live(room) < sessionsPerInstanceMax) return
    const oldest = this.#oldestIdle(room)
    if (oldest !== null) this.end(oldest, 'another session needed its place')
  }

  /** Processes that take their time to end keep nobody out, as long as they are few. */
  #hasPlace(room: Room): boolean {
    if (room.held.size + room.beginning >= processesPerInstanceMax) return false
    return this.#live(room) < sessionsPerInstanceMax || this.#oldestIdle(room) !== null
  }

  #live(room: Room): number {
    let live = room.beginning
    for (const { id } of room.held) if (this.#byId.has(id.session)) live++
    return live
  }

  /** Of those whose client has left, else of those that were idle for a while. */
  #oldestIdle(room: Room): Held | null {
    const before = this.#clock.monotonic() - givesWayAfterMs
    let oldest: Held | null = null
    for (const held of room.held) {
      if (held.session.busy || !this.#byId.has(held.id.session)) continue
      if (!held.left && held.lastUsedMs > before) continue
      const older = oldest === null || held.lastUsedMs < oldest.lastUsedMs
      if (oldest === null || (held.left === oldest.left ? older : held.left)) oldest = held
    }
    return oldest
  }

  #roomOf(instance: Instance): Room {
    const known = this.#rooms.get(instance.id)
    if (known?.instance === instance) return known
    const room: Room = {
      ...{ instance, held: new Set<Held>(), beginning: 0 },
      cleared: Promise.resolve(),
      nextId: sessionProcessIdMin,
    }
    room.cleared = this.#clear(room).catch((error) => {
      this.#log.debug('processes of earlier sessions were not looked for', { instance: instance.id, error })
    })
    this.#rooms.set(instance.id, room)
    return room
  }

  async #clear(room: Room): Promise<void> {
    const { processes } = room.instance.guest
    for (const { id, running } of await processes.list()) {
      if (id < sessionProcessIdMin) continue
      room.nextId = Math.max(room.nextId, id + 1)
      if (running) await processes.signal(id, killSignal, 'tree').catch(() => {})
      else await processes.forget(id).catch(() => {})
    }
  }

  /** Nothing is remembered of an instance without sessions. */
  #leave(room: Room): void {
    const { id } = room.instance
    if (room.held.size + room.beginning === 0 && this.#rooms.get(id) === room) this.#rooms.delete(id)
  }
}
