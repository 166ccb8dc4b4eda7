/**
 * Workers: programs elsewhere that do the turns of an agent. They come by a connection of their own, so that they need no
 * address; turns are leased to them, and what they say comes as reports. One that is lost gives its leases back.
 */
import type { Clock } from '../lib/clock.ts'
import { Deadlines } from '../lib/deadlines.ts'
import type { Logger } from '../lib/log.ts'
import type { Threads } from './index.ts'
import type { Thread } from './record.ts'

/** As many as its library works on at once. */
const leasesOfWorkerMax = 6
const workersOfAgentMax = 256
/** Its library says something every two seconds. */
const silentMsMax = 20_000
/** A worker whose connection broke comes back in seconds: until then nobody else gets what it works on. */
const lostMs = 15_000
/**
 * And where one did come back that may be the same: it goes on with what it has and cannot say so. Only what is never
 * heard of again is given to another.
 */
const succeededMs = 5 * 60_000
/** A turn that so many were lost with is not the workers' fault. */
const lossesMax = 5

export interface WorkerConnection {
  workspace: string
  agentId: string
  /** Who came: one of the same principal may be another's successor. */
  principalId: string
  name: string
  /** Gets every turn of the agent, and not only those that name it. */
  isFor: 'all' | 'named'
  hand(thread: Thread): void
  close(): void
}

export interface Worker extends WorkerConnection {
  readonly id: string
  readonly connectedAt: number
  heardAt: number
  isBusy: boolean
  leases: number
}

interface Turn {
  workspace: string
  agentId: string
  threadId: string
  executionId: string
  /** The one that it is for, where its client says so. */
  workerId: string | null
  losses: number
  /** Without a worker: that one is gone, and may come back. */
  lease: { worker: Worker | null } | null
}

export class Workers {
  readonly #threads: Threads
  readonly #clock: Clock
  readonly #log: Logger
  readonly #workers = new Map<string, Worker>()
  /** By agent, in the order in which they came. */
  readonly #agents = new Map<string, Set<Worker>>()
  readonly #turns = new Map<string, Turn>()
  /** Of those, by agent the ones that nobody has. */
  readonly #waiting = new Map<string, Set<Turn>>()
  readonly #leased = new Set<Turn>()
  readonly #deadlines: Deadlines
  #closed = false

  constructor(options: { threads: Threads; clock: Clock; log: Logger }) {
    this.#threads = options.threads
    this.#clock = options.clock
    this.#log = options.log
    this.#deadlines = new Deadlines({ ...options, due: (key) => this.#due(key) })
  }

  /** What workers had when the platform ended: they come back, or what they had is given to others. */
  async open(): Promise<void> {
    for await (const thread of this.#threads.reported()) {
      if (thread.body.options.run_locally === true) continue
      const turn = this.#turnOf(thread)
      this.#turns.set(turn.executionId, turn)
      if (thread.body.leases === 0) {
        this.#wait(turn)
        continue
      }
      turn.lease = { worker: null }
      this.#leased.add(turn)
      this.#deadlines.set(`turn ${turn.executionId}`, this.#clock.now() + lostMs)
    }
  }

  close(): void {
    this.#closed = true
    this.#deadlines[Symbol.dispose]()
    for (const worker of this.#workers.values()) worker.close()
  }

  /** Null: there are as many of the agent as there can be. */
  connect(connection: WorkerConnection): Worker | null {
    const key = agentKey(connection)
    const others = this.#agents.get(key) ?? new Set<Worker>()
    if (this.#closed || others.size >= workersOfAgentMax) return null
    const now = this.#clock.now()
    const worker: Worker = {
      ...connection,
      id: crypto.randomUUID(),
      connectedAt: now,
      heardAt: now,
      isBusy: false,
      leases: 0,
    }
    others.add(worker)
    this.#agents.set(key, others)
    this.#workers.set(worker.id, worker)
    this.#deadlines.set(`worker ${worker.id}`, now + silentMsMax)
    for (const turn of this.#leased) {
      const lost = turn.lease?.worker === null && agentKey(turn) === key
      if (lost) this.#deadlines.set(`turn ${turn.executionId}`, now + succeededMs)
    }
    return worker
  }

  /** It can be given work from now on. */
  ready(worker: Worker): void {
    this.#pump(agentKey(worker))
  }

  /** Its connection is over. */
  gone(worker: Worker): void {
    if (!this.#workers.delete(worker.id)) return
    const key = agentKey(worker)
    const others = this.#agents.get(key)
    others?.delete(worker)
    if (others?.size === 0) this.#agents.delete(key)
    this.#deadlines.delete(`worker ${worker.id}`)
    if (this.#closed) return
    for (const turn of this.#leased) {
      if (turn.lease?.worker !== worker) continue
      turn.lease.worker = null
      this.#deadlines.set(`turn ${turn.executionId}`, this.#clock.now() + lostMs)
    }
  }

  get(workspace: string, id: string): Worker | null {
    const worker = this.#workers.get(id)
    return worker?.workspace === workspace ? worker : null
  }

  /** Those of an agent. */
  of(workspace: string, agentId: string): Worker[] {
    return [...(this.#agents.get(agentKey({ workspace, agentId })) ?? [])]
  }

  heard(worker: Worker): void {
    worker.heardAt = this.#clock.now()
  }

  busy(worker: Worker, isBusy: boolean): void {
    worker.isBusy = isBusy
    if (!isBusy) this.#pump(agentKey(worker))
  }

  /** It says that it works on nothing any more. */
  finished(worker: Worker): void {
    for (const turn of this.#leased) {
      if (turn.lease?.worker === worker) this.#giveBack(turn)
    }
    this.#pump(agentKey(worker))
  }

  /** Whether a worker is there that this turn would be given to. */
  serves(thread: Thread): boolean {
    const turn = this.#turnOf(thread)
    return this.of(turn.workspace, turn.agentId).some((worker) => this.#isFor(worker, turn))
  }

  /** To be done by whichever worker has room for it, now or once one comes. */
  offer(thread: Thread): void {
    const turn = this.#turnOf(thread)
    this.#turns.set(turn.executionId, turn)
    this.#wait(turn)
    this.#pump(agentKey(turn))
  }

  /** It is over, whoever ended it. */
  ended({ body }: Thread): void {
    const turn = this.#turns.get(body.executionId)
    if (turn === undefined) return
    this.#forget(turn)
    this.#pump(agentKey(turn))
  }

  #wait(turn: Turn): void {
    const key = agentKey(turn)
    const waiting = this.#waiting.get(key) ?? new Set()
    waiting.add(turn)
    this.#waiting.set(key, waiting)
  }

  #unwait(turn: Turn): void {
    const key = agentKey(turn)
    const waiting = this.#waiting.get(key)
    waiting?.delete(turn)
    if (waiting?.size === 0) this.#waiting.delete(key)
  }

  /** Its lease is over, and it waits again. */
  #giveBack(turn: Turn): void {
    if (turn.lease?.worker) turn.lease.worker.leases--
    turn.lease = null
    this.#leased.delete(turn)
    if (this.#turns.has(turn.executionId)) this.#wait(turn)
  }

  #forget(turn: Turn): void {
    this.#turns.delete(turn.executionId)
    this.#deadlines.delete(`turn ${turn.executionId}`)
    this.#giveBack(turn)
    this.#unwait(turn)
  }

  #pump(key: string): void {
    for (const turn of this.#waiting.get(key) ?? []) {
      if (!this.of(turn.workspace, turn.agentId).some(hasRoom)) return
      const worker = this.#freeFor(turn, key)
      if (worker !== null) void this.#hand(turn, worker)
    }
  }

  #freeFor(turn: Turn, key: string): Worker | null {
    let best: Worker | null = null
    for (const worker of this.#agents.get(key) ?? []) {
      if (!hasRoom(worker) || !this.#isFor(worker, turn)) continue
      if (best === null || worker.leases < best.leases) best = worker
    }
    return best
  }

  async #hand(turn: Turn, worker: Worker): Promise<void> {
    const lease: NonNullable<Turn['lease']> = { worker }
    this.#unwait(turn)
    turn.lease = lease
    this.#leased.add(turn)
    worker.leases++
    let thread: Thread | null
    try {
      thread = await this.#threads.lease(turn.workspace, turn.threadId, turn.executionId, worker.id)
    } catch (error) {
      this.#log.warn('a turn could not be given to a worker', { thread: turn.threadId, error })
      // As if that worker had been lost: later it is tried again.
      if (lease.worker !== null) lease.worker.leases--
      lease.worker = null
      this.#deadlines.set(`turn ${turn.executionId}`, this.#clock.now() + lostMs)
      return
    }
    if (thread === null) this.#forget(turn)
    // It left meanwhile: what is owed then was said by `gone`.
    else if (turn.lease === lease && lease.worker !== null) worker.hand(thread)
  }

  async #due(key: string): Promise<void> {
    const [what, id = ''] = key.split(' ')
    if (what === 'worker') this.#look(id)
    else await this.#lost(id)
  }

  /** A connection that stands, and whose worker says nothing, leads nowhere. */
  #look(id: string): void {
    const worker = this.#workers.get(id)
    if (worker === undefined) return
    if (this.#clock.now() - worker.heardAt < silentMsMax) {
      this.#deadlines.set(`worker ${id}`, worker.heardAt + silentMsMax)
      return
    }
    this.gone(worker)
    worker.close()
  }

  async #lost(executionId: string): Promise<void> {
    const turn = this.#turns.get(executionId)
    if (turn === undefined || turn.lease === null || turn.lease.worker !== null) return
    turn.losses++
    if (turn.losses < lossesMax) {
      this.#giveBack(turn)
      this.#pump(agentKey(turn))
      return
    }
    this.#forget(turn)
    await this.#threads.report(turn.workspace, turn.threadId, {
      status: 'error',
      result: `its workers were lost, ${lossesMax} of them one after the other`,
      internalStatus: 'worker_lost',
    })
  }

  /** One that names a worker is for that one, as long as it is there. */
  #isFor(worker: Worker, { workerId }: Turn): boolean {
    const isNamed = workerId !== null && this.#workers.has(workerId)
    return isNamed ? workerId === worker.id : worker.isFor === 'all'
  }

  #turnOf({ workspace, name, body }: Thread): Turn {
    const { worker_id: asked } = body.options
    return {
      workspace,
      agentId: body.agentId,
      threadId: name,
      executionId: body.executionId,
      workerId: typeof asked === 'string' ? asked : null,
      losses: 0,
      lease: null,
    }
  }
}

function hasRoom({ isBusy, leases }: Worker): boolean {
  return !isBusy && leases < leasesOfWorkerMax
}

function agentKey({ workspace, agentId }: { workspace: string; agentId: string }): string {
  return `${workspace}/${agentId}`
}
