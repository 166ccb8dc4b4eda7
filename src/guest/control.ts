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
} from '../spec/guest.ts'
import { Adoptions } from './adoption.ts'
import { processIdMax, readError, readOutputNotice, readProcess } from './codec.ts'
import { errnoName, printable } from './errno.ts'
import { OutputFollowers } from './followers.ts'
import { type Frame, FrameType, FrameWriter, ProtocolError } from './frame.ts'
import { OutputLog } from './output.ts'
import { PayloadReader } from './payload.ts'
import { type Ask, Requests } from './requests.ts'
import { surveyDescent } from './sockets.ts'
import { checkTerminal, quoted, spawnFrame } from './spawn.ts'
import { GuestStdin } from './stdin.ts'
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

/**
 * Processes inside, as the guest tells of them. Survives lost connections; every exit is told once to every listener.
 */
export class ControlChannel implements GuestProcesses {
  /** Programs that were elsewhere. */
  readonly adoptions: Adoptions
  #identity: Identity | null = null
  #requests: Requests
  #stdin: GuestStdin
  #socketPath: string
  #tracked = new Map<number, Tracked>()
  #waiters = new Map<number, Set<PromiseWithResolvers<GuestProcess>>>()
  #listeners = new Map<(process: GuestProcess) => void, Set<number>>()
  #followers: OutputFollowers
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
      onOpen: (ask) => this.#reconcile(ask),
      wanted: () => this.#waiters.size > 0 || this.#listeners.size > 0 || this.#followers.size > 0,
      onGivenUp: (error) => this.#failAll(error),
      onLost: options.onLost,
    })
    this.adoptions = new Adoptions(this.#requests)
    this.#followers = new OutputFollowers({
      requests: this.#requests,
      isEnded: (id) => this.#tracked.get(id)?.process.running !== true,
      log: options.log,
    })
    this.#stdin = new GuestStdin(shared)
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

  writeStdin(id: number, data: Uint8Array, signal?: AbortSignal): Promise<void> {
    return this.#stdin.write(id, data, signal)
  }

  closeStdin(id: number, signal?: AbortSignal): Promise<void> {
    return this.#stdin.end(id, signal)
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
    const { fromOffset = 0, follow = false, reuseMemory = false, lastBytes, signal } = options
    if (!Number.isSafeInteger(fromOffset) || fromOffset < 0) {
      throw new PlatformError(
        'bad_request',
        `fromOffset ${fromOffset} is not an offset: use 0 or an endOffset`,
      )
    }
    signal?.throwIfAborted()
    const tracked = await this.#find(id)
    const live = follow && tracked?.process.running === true
    using log = new OutputLog(this.#logDir, id, fromOffset, { live, reuseMemory, lastBytes })
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
    if (follow) yield* this.#followers.follow(id, log, signal)
    else yield* abortable(log.read(), signal)
  }

  #workingDir(wanted: string): string {
    if (this.#replacedDir === null) return wanted
    const { from, to } = this.#replacedDir
    return wanted === from || wanted.startsWith(`${from}/`) ? to + wanted.slice(from.length) : wanted
  }

  async #track(id: number): Promise<Tracked> {
    const known = await this.#find(id)
    if (known) return known
    throw unknownProcess(id)
  }

  async #find(id: number): Promise<Tracked | undefined> {
    return this.#tracked.get(id) ?? (await this.#list()).get(id)
  }

  #list(): Promise<Map<number, Tracked>> {
    this.#listing ??= this.#runList(this.#requests.request).finally(() => {
      this.#listing = null
    })
    return this.#listing
  }

  async #runList(ask: Ask): Promise<Map<number, Tracked>> {
    const items = new Map<number, Tracked>()
    const drop = () => {
      this.#lists = this.#lists.filter((list) => list !== items)
    }
    const before = [...this.#tracked.keys()]
    try {
      const answer = await ask(0, new FrameWriter(FrameType.list, 0).finish(), FrameType.end, {
        onSent: () => this.#lists.push(items),
        onAnswer: drop,
      })
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
  async #reconcile(ask: Ask): Promise<void> {
    const items = await this.#runList(ask)
    for (const id of [...this.#tracked.keys(), ...this.#waiters.keys()]) {
      if (items.has(id) || this.#requests.pending(id)) continue
      this.#tracked.delete(id)
      this.#rejectWaiters(id, new PlatformError('not_found', `process ${id} is gone from this sandbox`))
    }
    this.#followers.reconnected((id) => items.has(id))
  }

  #learn(next: Tracked) {
    const id = next.process.id
    const known = this.#tracked.get(id)
    if (known && !known.process.running) return
    this.#tracked.set(id, next)
    if (next.process.running) return
    for (const waiter of this.#waiters.get(id) ?? []) waiter.resolve(next.process)
    this.#stdin.ended(id)
    this.#followers.wake(id)
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
      return this.#followers.announced(frame.id, readOutputNotice(frame.payload))
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

  #rejectWaiters(id: number, error: PlatformError) {
    for (const waiter of this.#waiters.get(id) ?? []) waiter.reject(error)
  }

  #failAll(error: PlatformError) {
    for (const id of [...this.#waiters.keys()]) this.#rejectWaiters(id, error)
    this.#followers.wakeAll()
  }
}

async function* abortable<Item>(items: AsyncIterable<Item>, signal?: AbortSignal): AsyncGenerator<Item> {
  for await (const item of items) {
    signal?.throwIfAborted()
    yield item
  }
}
