import { PlatformError } from '../errors.ts'
import type { Logger } from '../lib/log.ts'
import type {
  GuestProcess,
  GuestProcesses,
  Identity,
  OutputOptions,
  OutputRecord,
  ProcessDescent,
  SpawnSpec,
} from '../spec/runtime.ts'
import {
  type Frame,
  FrameType,
  FrameWriter,
  type OutputNotice,
  PayloadReader,
  ProtocolError,
  processIdMax,
  readError,
  readOutputNotice,
  readProcess,
  stdinBytesMax,
} from './codec.ts'
import { errnoName, printable } from './errno.ts'
import { OutputLog } from './output.ts'
import { Requests } from './requests.ts'
import { surveyDescent } from './sockets.ts'
import { checkTerminal, quoted, spawnFrame } from './spawn.ts'
import { type Tracked, tracked, unknownProcess } from './tracked.ts'

const processesMax = 4096
const scopes = { process: 0, group: 1, tree: 2 } as const

export interface ControlOptions {
  /** Path of the guest's socket. */
  socketPath: string
  /** The directory that process 1 writes output to, on this host. */
  logDir: string
  log: Logger
  requestTimeoutMs?: number
  workingDir?: { from: string; to: string } | null
  /** The connection was lost, and not by us: process 1 may have ended. */
  onLost?: () => void
}

/** All local readers of one process's output are one follower to the guest. */
interface Follower {
  readers: Set<FollowReader>
  endOffset: number
  eof: boolean
  /** An ATTACH was sent and not yet answered by OUTPUT: the guest may announce once. */
  armed: boolean
  acknowledged: number
}

interface FollowReader {
  position: number
  wake: () => void
}

/**
 * Processes inside, over control connections: one for requests and events, one more while stdin is written (where an
 * answer may take as long as the program likes). Survives lost connections; every exit is told once to every listener.
 */
export class ControlChannel implements GuestProcesses {
  #identity: Identity | null = null
  #requests: Requests
  #stdin: Requests
  #socketPath: string
  #tracked = new Map<number, Tracked>()
  #waiters = new Map<number, Set<PromiseWithResolvers<GuestProcess>>>()
  #listeners = new Map<(process: GuestProcess) => void, Set<number>>()
  #followers = new Map<number, Follower>()
  #stdinTurns = new Map<number, Promise<void>>()
  #listing: Promise<Map<number, Tracked>> | null = null
  /** Lists that are being answered, the oldest first: items carry no request. */
  #lists: Map<number, Tracked>[] = []
  #replacedDir: { from: string; to: string } | null
  #logDir: string
  #log: Logger

  constructor(options: ControlOptions) {
    this.#socketPath = options.socketPath
    this.#logDir = options.logDir
    this.#replacedDir = options.workingDir ?? null
    this.#log = options.log
    const shared = { path: options.socketPath, log: options.log, timeoutMs: options.requestTimeoutMs }
    this.#requests = new Requests({
      ...shared,
      role: 'control',
      onEvent: (frame) => this.#onEvent(frame),
      onOpen: () => this.#reconcile(),
      wanted: () => this.#waiters.size > 0 || this.#listeners.size > 0 || this.#followers.size > 0,
      onGivenUp: (error) => this.#failAll(error),
      onLost: options.onLost,
    })
    // Exits are told on this connection as well; the first one has them already.
    this.#stdin = new Requests({
      ...shared,
      role: 'control',
      onEvent: (frame) => frame.type === FrameType.exit,
    })
  }

  /** Connects now rather than at the first request. */
  async open(): Promise<void> {
    await this.#requests.open()
  }

  /** While suspended no request times out: a frozen guest answers nobody. */
  suspend(): void {
    this.#requests.suspend()
    this.#stdin.suspend()
  }

  resume(): void {
    this.#requests.resume()
    this.#stdin.resume()
  }

  /** Everything that waits is rejected with `error`, and so is whatever comes later. */
  close(error: PlatformError): void {
    this.#requests.close(error)
    this.#stdin.close(error)
    this.#failAll(error)
  }

  /** Whom programs are started as that say nothing themselves. */
  actAs(identity: Identity): void {
    this.#identity = identity
  }

  /** Asks process 1 to end everything. There is no answer: watch for the end of process 1. */
  async shutdown(graceMs: number): Promise<void> {
    await this.#requests.notify(new FrameWriter(FrameType.shutdown, 0).u32(graceMs).finish())
  }

  async spawn(spec: SpawnSpec): Promise<{ pid: number; startedAt: number }> {
    const frame = spawnFrame({ ...this.#identity, ...spec }, this.#workingDir(spec.workingDir))
    let started = { pid: 0, startedAt: 0 }
    const answer = await this.#requests.request(spec.id, frame, FrameType.spawned, {
      // At once: the exit may follow in the same breath.
      onAnswer: (answer) => {
        if (answer.type === FrameType.spawned) started = this.#onSpawned(spec.id, answer)
      },
    })
    if (answer.type === FrameType.spawned) return started
    const { errno, message } = readError(answer.payload)
    const name = errnoName(errno)
    throw new PlatformError(
      'unprocessable',
      `cannot start ${quoted(spec.argv[0])}: ${printable(message) || name}`,
      {
        details: { errno: name },
      },
    )
  }

  #onSpawned(id: number, frame: Frame): { pid: number; startedAt: number } {
    const reader = new PayloadReader(frame.payload)
    const pid = reader.u32()
    const startedAt = reader.u64()
    reader.end()
    if (this.#tracked.size >= processesMax) throw new ProtocolError('more processes than the guest may hold')
    this.#tracked.set(id, {
      endOffset: 0,
      process: { id, pid, running: true, startedAt, endedAt: null, exitCode: null, signal: null },
    })
    for (const told of this.#listeners.values()) told.delete(id)
    return { pid, startedAt }
  }

  async signal(id: number, signal: number, scope: 'process' | 'group' | 'tree'): Promise<void> {
    const frame = new FrameWriter(FrameType.signal, id).u32(signal).u8(scopes[scope]).finish()
    const answer = await this.#requests.request(id, frame, FrameType.ok)
    if (answer.type !== FrameType.error) return
    const { errno } = readError(answer.payload)
    const name = errnoName(errno)
    if (name === 'ESRCH') throw new PlatformError('not_found', `process ${id} does not run`)
    throw new PlatformError(
      name === 'EINVAL' ? 'bad_request' : 'unprocessable',
      `signal ${signal} cannot be sent to process ${id}: ${name}`,
      { details: { errno: name } },
    )
  }

  async list(): Promise<GuestProcess[]> {
    const items = await this.#list()
    return [...items.values()].map(({ process }) => process)
  }

  async forget(id: number): Promise<void> {
    const answer = await this.#requests.request(
      id,
      new FrameWriter(FrameType.forget, id).finish(),
      FrameType.ok,
    )
    if (answer.type === FrameType.error) {
      throw new PlatformError('conflict', `process ${id} runs: only an ended process can be forgotten`)
    }
    this.#tracked.delete(id)
    for (const told of this.#listeners.values()) told.delete(id)
  }

  async wait(id: number, signal?: AbortSignal): Promise<GuestProcess> {
    signal?.throwIfAborted()
    await this.#track(id)
    // Without a connection nobody would ever tell.
    await this.#requests.open()
    signal?.throwIfAborted()
    const tracked = this.#tracked.get(id)
    if (!tracked) throw unknownProcess(id)
    if (!tracked.process.running) return tracked.process
    const waiter = Promise.withResolvers<GuestProcess>()
    const waiters = this.#waiters.get(id) ?? new Set()
    this.#waiters.set(id, waiters.add(waiter))
    const onAbort = () => waiter.reject(signal?.reason)
    signal?.addEventListener('abort', onAbort, { once: true })
    try {
      return await waiter.promise
    } finally {
      signal?.removeEventListener('abort', onAbort)
      waiters.delete(waiter)
      if (waiters.size === 0 && this.#waiters.get(id) === waiters) this.#waiters.delete(id)
    }
  }

  onExit(listener: (process: GuestProcess) => void): () => void {
    const told = new Set<number>()
    // A wrapper, so that one function may listen twice.
    const entry = (process: GuestProcess) => listener(process)
    this.#listeners.set(entry, told)
    queueMicrotask(() => {
      for (const { process } of [...this.#tracked.values()]) {
        if (!process.running && this.#listeners.has(entry)) this.#tell(entry, told, process)
      }
    })
    this.#requests
      .open()
      .catch((error) => this.#log.debug('guest cannot be reached', { error: String(error) }))
    return () => this.#listeners.delete(entry)
  }

  async writeStdin(id: number, data: Uint8Array): Promise<void> {
    // One turn after the other: bytes of two writers never mix, and answers cannot be confused.
    await this.#inTurn(id, async () => {
      for (let at = 0; at < data.length; at += stdinBytesMax) {
        const part = data.subarray(at, at + stdinBytesMax)
        const frame = new FrameWriter(FrameType.stdin, id, part.length).raw(part).finish()
        await this.#stdinRequest(id, frame)
      }
    })
  }

  async closeStdin(id: number): Promise<void> {
    await this.#inTurn(id, () => this.#stdinRequest(id, new FrameWriter(FrameType.closeStdin, id).finish()))
  }

  async resize(id: number, cols: number, rows: number): Promise<void> {
    checkTerminal(cols, rows)
    const frame = new FrameWriter(FrameType.resize, id).u16(cols).u16(rows).finish()
    const answer = await this.#requests.request(id, frame, FrameType.ok)
    if (answer.type !== FrameType.error) return
    const name = errnoName(readError(answer.payload).errno)
    if (name === 'ESRCH') throw new PlatformError('not_found', `process ${id} does not run`)
    throw new PlatformError('conflict', `process ${id} has no terminal`, { details: { errno: name } })
  }

  async descent(id: number): Promise<ProcessDescent> {
    const tracked = await this.#find(id)
    // A pid of one that ended may be somebody else's by now.
    const pid = tracked?.process.running ? tracked.process.pid : 0
    return surveyDescent(this.#socketPath, { id, pid })
  }

  async *output(id: number, options: OutputOptions = {}): AsyncGenerator<OutputRecord[]> {
    const { fromOffset = 0, follow = false, reuseMemory = false, signal } = options
    if (!Number.isSafeInteger(fromOffset) || fromOffset < 0) {
      throw new PlatformError(
        'bad_request',
        `fromOffset ${fromOffset} is not an offset: use 0 or an endOffset`,
      )
    }
    signal?.throwIfAborted()
    const tracked = await this.#find(id)
    const live = follow && tracked?.process.running === true
    using log = new OutputLog(this.#logDir, id, fromOffset, { live, reuseMemory })
    if (tracked === undefined) {
      // Of an earlier life of the machine: it ended with that, what it wrote is still there.
      if (!log.exists) throw unknownProcess(id)
      yield* abortable(log.read(), signal)
      return
    }
    if (!tracked.process.running) {
      if (fromOffset < tracked.endOffset) yield* abortable(log.read(), signal)
      return
    }
    if (follow) yield* this.#follow(id, log, signal)
    else yield* abortable(log.read(), signal)
  }

  async *#follow(id: number, log: OutputLog, signal?: AbortSignal): AsyncGenerator<OutputRecord[]> {
    let announced = Promise.withResolvers<void>()
    const reader: FollowReader = { position: log.position, wake: () => announced.resolve() }
    const follower = this.#followers.get(id) ?? {
      readers: new Set(),
      endOffset: 0,
      eof: false,
      armed: false,
      acknowledged: -1,
    }
    this.#followers.set(id, follower)
    follower.readers.add(reader)
    signal?.addEventListener('abort', reader.wake, { once: true })
    try {
      await this.#attach(id, follower)
      for (;;) {
        announced = Promise.withResolvers<void>()
        const roundStart = log.position
        // Asked before reading, so that what is written in between is announced and read in the next round.
        const ended = this.#isEnded(id) || follower.eof
        for await (const records of log.read()) {
          signal?.throwIfAborted()
          yield records
          reader.position = log.position
          if (reader.position - follower.acknowledged >= acknowledgeBytes) await this.#attach(id, follower)
        }
        signal?.throwIfAborted()
        reader.position = log.position
        if (ended) return
        // A flood is taken in larger pieces: asking for each small one costs more than the bytes do.
        if (log.position - roundStart >= floodBytes) await Bun.sleep(floodPauseMs)
        if (!follower.armed) await this.#attach(id, follower)
        if (this.#isEnded(id) || follower.eof || follower.endOffset > log.position) continue
        if (this.#requests.failure) throw this.#requests.failure
        await announced.promise
        signal?.throwIfAborted()
        if (this.#requests.failure) throw this.#requests.failure
      }
    } finally {
      signal?.removeEventListener('abort', reader.wake)
      follower.readers.delete(reader)
      if (follower.readers.size === 0 && this.#followers.get(id) === follower) {
        this.#followers.delete(id)
        this.#requests
          .request(id, new FrameWriter(FrameType.detach, id).finish(), FrameType.ok)
          .catch((error) => this.#log.debug('detach failed', { error: String(error) }))
      }
    }
  }

  /** Tells the guest what the slowest reader has, and lets it announce once more. */
  async #attach(id: number, follower: Follower): Promise<void> {
    let consumed = Number.MAX_SAFE_INTEGER
    for (const reader of follower.readers) consumed = Math.min(consumed, reader.position)
    follower.acknowledged = consumed
    follower.armed = true
    const frame = new FrameWriter(FrameType.attach, id).u64(consumed).finish()
    const answer = await this.#requests.request(id, frame, FrameType.ok)
    // Already gone (ESRCH): it ended, and what it wrote is read without the guest.
    if (answer.type === FrameType.error) follower.eof = true
  }

  #workingDir(wanted: string): string {
    if (this.#replacedDir === null) return wanted
    const { from, to } = this.#replacedDir
    return wanted === from || wanted.startsWith(`${from}/`) ? to + wanted.slice(from.length) : wanted
  }

  #isEnded(id: number): boolean {
    return this.#tracked.get(id)?.process.running !== true
  }

  async #track(id: number): Promise<Tracked> {
    const known = await this.#find(id)
    if (known) return known
    throw unknownProcess(id)
  }

  async #find(id: number): Promise<Tracked | undefined> {
    return this.#tracked.get(id) ?? (await this.#list()).get(id)
  }

  async #stdinRequest(id: number, frame: Uint8Array): Promise<void> {
    const answer = await this.#stdin.request(id, frame, FrameType.ok, { timeout: false })
    if (answer.type !== FrameType.error) return
    const name = errnoName(readError(answer.payload).errno)
    if (name === 'ESRCH') throw new PlatformError('not_found', `process ${id} does not run`)
    const why = name === 'EPIPE' ? 'is closed' : 'was not opened'
    throw new PlatformError('conflict', `stdin of process ${id} ${why}`, { details: { errno: name } })
  }

  async #inTurn(id: number, work: () => Promise<void>): Promise<void> {
    const before = this.#stdinTurns.get(id) ?? Promise.resolve()
    const turn = before.then(work, work)
    this.#stdinTurns.set(id, turn)
    try {
      await turn
    } finally {
      if (this.#stdinTurns.get(id) === turn) this.#stdinTurns.delete(id)
    }
  }

  #list(): Promise<Map<number, Tracked>> {
    this.#listing ??= this.#runList().finally(() => {
      this.#listing = null
    })
    return this.#listing
  }

  async #runList(): Promise<Map<number, Tracked>> {
    const items = new Map<number, Tracked>()
    const drop = () => {
      this.#lists = this.#lists.filter((list) => list !== items)
    }
    const before = [...this.#tracked.keys()]
    try {
      const answer = await this.#requests.request(
        0,
        new FrameWriter(FrameType.list, 0).finish(),
        FrameType.end,
        {
          onSent: () => this.#lists.push(items),
          onAnswer: drop,
        },
      )
      if (answer.type === FrameType.error)
        throw new PlatformError('unavailable', 'The sandbox cannot list processes')
    } finally {
      drop()
    }
    for (const item of items.values()) this.#learn(item)
    for (const id of before) {
      if (!items.has(id) && !this.#requests.pending(id)) this.#tracked.delete(id)
    }
    return items
  }

  /** After every connect: what happened meanwhile. */
  async #reconcile(): Promise<void> {
    const items = await this.#runList()
    for (const id of [...this.#tracked.keys(), ...this.#waiters.keys()]) {
      if (items.has(id) || this.#requests.pending(id)) continue
      this.#tracked.delete(id)
      this.#rejectWaiters(id, new PlatformError('not_found', `process ${id} is gone from this sandbox`))
    }
    for (const [id, follower] of this.#followers) {
      follower.armed = false
      for (const reader of follower.readers) reader.wake()
      if (!items.has(id)) follower.eof = true
    }
  }

  #learn(next: Tracked) {
    const id = next.process.id
    const known = this.#tracked.get(id)
    if (known && !known.process.running) return
    this.#tracked.set(id, next)
    if (next.process.running) return
    for (const waiter of this.#waiters.get(id) ?? []) waiter.resolve(next.process)
    // Nobody reads its stdin any more, so answers that wait for that are due.
    this.#stdin.expect(id)
    for (const reader of this.#followers.get(id)?.readers ?? []) reader.wake()
    for (const [listener, told] of [...this.#listeners]) this.#tell(listener, told, next.process)
  }

  #tell(listener: (process: GuestProcess) => void, told: Set<number>, process: GuestProcess) {
    if (told.has(process.id)) return
    told.add(process.id)
    try {
      listener(process)
    } catch (error) {
      this.#log.error('an exit listener failed', { error: String(error) })
    }
  }

  /** Answers whether the event was expected. */
  #onEvent(frame: Frame): boolean {
    if (frame.type === FrameType.exit) {
      const next = tracked(readProcess(frame.payload))
      const known = this.#tracked.get(next.process.id)
      // An id that nobody asked for is refused, or a guest could fill our memory with them.
      if (next.process.running || (known && !known.process.running)) return false
      if (!known && !this.#requests.pending(next.process.id)) return false
      this.#learn(next)
      return true
    }
    if (frame.type === FrameType.output) {
      const notice = readOutputNotice(frame.payload)
      return this.#onOutput(frame.id, notice)
    }
    const items = this.#lists[0]
    if (frame.type === FrameType.item && items) {
      const item = tracked(readProcess(frame.payload))
      if (items.size >= processesMax) throw new ProtocolError('more processes than the guest may hold')
      if (item.process.id < 1 || item.process.id > processIdMax)
        throw new ProtocolError('impossible process id')
      items.set(item.process.id, item)
      return true
    }
    return false
  }

  #onOutput(id: number, notice: OutputNotice): boolean {
    const follower = this.#followers.get(id)
    if (!follower?.armed) return false
    follower.armed = false
    follower.endOffset = notice.endOffset
    follower.eof ||= notice.eof
    for (const reader of follower.readers) reader.wake()
    return true
  }

  #rejectWaiters(id: number, error: PlatformError) {
    for (const waiter of this.#waiters.get(id) ?? []) waiter.reject(error)
  }

  #failAll(error: PlatformError) {
    for (const id of [...this.#waiters.keys()]) this.#rejectWaiters(id, error)
    for (const follower of this.#followers.values()) {
      for (const reader of follower.readers) reader.wake()
    }
  }
}

/** A reader says how far it is after this many bytes, so that the process need not wait for the next round. */
const acknowledgeBytes = 1024 * 1024
const floodBytes = 64 * 1024
const floodPauseMs = 1

async function* abortable<Item>(items: AsyncIterable<Item>, signal?: AbortSignal): AsyncGenerator<Item> {
  for await (const item of items) {
    signal?.throwIfAborted()
    yield item
  }
}
