/**
 * Work accepted to be done later: never lost, ended once, told to whoever asked. Who does what a source accepted is
 * registered by that source; this room keeps the record, the lease, the timeout, the turn and the number of attempts.
 */
import { PlatformError } from '../errors.ts'
import { ByteRoom } from '../lib/byte-room.ts'
import type { Clock } from '../lib/clock.ts'
import type { Logger } from '../lib/log.ts'
import type { Queue, Work } from '../spec/queue.ts'
import { Attempts } from './attempts.ts'
import { Callbacks } from './callbacks.ts'
import { Due } from './due.ts'
import { Ends } from './ends.ts'
import { ExecutionEvents, type WatchFilter } from './events.ts'
import {
  type ComposeCallback,
  type Execution,
  type ExecutionDepth,
  type ExecutionEvent,
  type ExecutionFilter,
  type ExecutionPage,
  type ExecutionReport,
  type ExecutionStatus,
  ExecutionStopped,
  type NewExecution,
  type NewParts,
  type PartCounts,
  type Runner,
  type RunnerOptions,
} from './execution.ts'
import { Groups } from './groups.ts'
import { type ListPage, Lists } from './lists.ts'
import { Meters, type SourceMeter } from './meters.ts'
import { bodyOf, isEnded, newWork, refuseFull, toExecution } from './records.ts'
import { replayOf } from './replays.ts'
import { Reports } from './reports.ts'
import { Retention } from './retention.ts'
import { Transitions } from './transitions.ts'
import { Workers } from './workers.ts'

export * from './execution.ts'
export { executionNoteBytesMax } from './records.ts'

export interface ExecutionsOptions {
  queue: Queue
  clock: Clock
  log: Logger
  /** How many of one source may wait, over all workspaces. */
  waitingMax: number
  /** What all of them may take on disk. */
  bytesMax: number
  /** How long, and how many of a workspace, ended ones are kept. */
  keptMs: number
  keptMax: number
  random?: () => number
}

interface Source {
  run: Runner
  options: RunnerOptions
  workers: Workers | null
}

const replayedAtOnceMax = 1000
const replaysAtOnce = 50
const stopGraceMs = 5000
/** Inputs on their way to the disk; whoever finds no room waits. */
const acceptingBytesMax = 48 * 1024 * 1024
const acceptingMax = 1000

export class Executions {
  readonly #options: ExecutionsOptions
  readonly #sources = new Map<string, Source>()
  readonly #callbacks: Callbacks
  readonly #events: ExecutionEvents
  readonly #ends = new Ends()
  readonly #meters: Meters
  readonly #transitions: Transitions
  readonly #attempts: Attempts
  readonly #groups: Groups
  readonly #lists: Lists
  readonly #reports: Reports
  readonly #retention: Retention
  readonly #due: Due
  readonly #accepting = new ByteRoom({
    ...{ bytesMax: acceptingBytesMax, waitingMax: acceptingMax, what: 'requests are being accepted' },
  })
  /** Ids of what is on its way to the disk. */
  readonly #unannounced = new Set<string>()
  #isOpen = false
  #closing = false

  constructor(options: ExecutionsOptions) {
    const { queue, clock, log, random = Math.random } = options
    this.#options = options
    this.#meters = new Meters(clock)
    this.#events = new ExecutionEvents({ clock, isHidden: (source) => this.#isHidden(source) })
    this.#callbacks = new Callbacks(options)
    this.#transitions = new Transitions({
      queue,
      log,
      follow: (execution, result) => this.#callbacks.of(execution, result),
      changed: (work, previous) => this.#changed(work, previous),
      followed: (work) => this.#accepted(work),
      groupEnded: (group) => this.#inBackground(this.#groups.finish(group), group),
    })
    this.#attempts = new Attempts({
      ...{ clock, log, random },
      transitions: this.#transitions,
      events: this.#events,
    })
    this.#groups = new Groups({
      ...{ queue, clock },
      transitions: this.#transitions,
      attempts: this.#attempts,
      waitingMax: options.waitingMax,
      bytesMax: options.bytesMax,
    })
    this.#lists = new Lists({ queue, sources: () => this.shownSources() })
    this.#reports = new Reports({ clock, transitions: this.#transitions, attempts: this.#attempts })
    this.#retention = new Retention({ ...options, also: () => this.#groups.finishAll() })
    this.#due = new Due({
      ...{ queue, clock, log },
      ...{ transitions: this.#transitions, attempts: this.#attempts, groups: this.#groups },
      wake: () => this.#wakeAll(),
    })
  }

  /** Who does what a source accepted: called once for each attempt, with a signal whose reason is an `ExecutionStopped`. */
  runner(source: string, run: Runner, options: RunnerOptions): void {
    if (this.#sources.has(source)) throw new Error(`${source} has a runner`)
    this.#sources.set(source, { run, options, workers: null })
    if (this.#isOpen) this.#inBackground(this.#start(source), source)
  }

  /** Composes what follows the end of one that was accepted with a callback of this dialect. */
  callbacks(dialect: string, compose: ComposeCallback): void {
    this.#callbacks.register(dialect, compose)
  }

  /**
   * Durable once it resolves. `existing`: accepted before, under the same idempotency key.
   * @throws bad_request, body_too_large, conflict for an idempotency key of another request, already_exists for an id
   * that is taken, too_many_requests
   */
  async accept(asked: NewExecution): Promise<{ execution: Execution; existing: boolean }> {
    this.#refuseWhenClosing()
    const { queue, clock, waitingMax, bytesMax } = this.#options
    const work = newWork(asked, clock.now())
    refuseFull(queue, bytesMax)
    const bytes = asked.input.byteLength
    const room = this.#accepting.take(bytes)
    if (room) await room
    this.#unannounced.add(work.id)
    const enqueued = queue.enqueue([work], { waitingMax })
    // In the same turn, so that accepting it and claiming it are one commit where a worker is free. Where none is,
    // the next one that gets free looks behind it.
    if (work.runAt <= clock.now()) this.#sources.get(asked.source)?.workers?.wake(1)
    try {
      const [added] = await enqueued
      const { existing } = added!
      const execution = toExecution(added!.work)
      if (!existing) {
        this.#announce(execution)
        if (work.runAt > clock.now()) this.#due.at(work.runAt)
      }
      return { execution, existing }
    } finally {
      this.#unannounced.delete(work.id)
      this.#accepting.leave(bytes)
    }
  }

  /**
   * One that is made of parts, whose inputs these are: it runs nothing itself and ends with its last part, `note.counts`
   * saying how they ended. `timeoutMs` of the parent is for all of it.
   * @throws what `accept` throws
   */
  async acceptGroup(
    asked: NewExecution,
    inputs: AsyncIterable<Uint8Array> | Iterable<Uint8Array>,
    each: NewParts,
  ): Promise<{ execution: Execution; existing: boolean }> {
    this.#refuseWhenClosing()
    const { work, existing } = await this.#groups.accept(asked, inputs, each)
    if (!existing) {
      this.#accepted(work)
      this.#sources.get(each.source)?.workers?.wake()
      if (work.partsLeft === 0) await this.#groups.finish(work.id)
    }
    return { execution: this.get(work.workspace, work.id) ?? toExecution(work), existing }
  }

  get(workspace: string, id: string): Execution | null {
    const work = this.#find(workspace, id)
    return work && toExecution(work)
  }

  input(workspace: string, id: string): Uint8Array | null {
    return this.#find(workspace, id) ? this.#options.queue.input(id) : null
  }

  result(workspace: string, id: string): Uint8Array | null {
    return this.#find(workspace, id) ? this.#options.queue.result(id) : null
  }

  /** Whether it is shown where executions of all sources are: a hidden source's is by its owner, unless it is a part. */
  isShown({ source, group }: Execution): boolean {
    return group !== null || !this.#isHidden(source)
  }

  shownSources(): string[] {
    return [...this.#sources.keys()].filter((source) => !this.#isHidden(source))
  }

  /** Of the parts of a group. */
  counts(id: string): PartCounts {
    return this.#groups.counts(id)
  }

  /** One of a group, by its number. */
  part(workspace: string, group: string, index: number): Execution | null {
    const found = this.#options.queue.list({ workspace, group, sort: 'index', after: index - 1, limit: 1 })[0]
    return found?.index === index ? toExecution(found) : null
  }

  /** @throws bad_request */
  list(workspace: string, filter: ExecutionFilter = {}, page: ListPage = {}): ExecutionPage {
    return this.#lists.page(workspace, filter, page)
  }

  /** As `list`, for what may take long to look for: others have their turn meanwhile. @throws bad_request */
  async search(workspace: string, filter: ExecutionFilter = {}, page: ListPage = {}): Promise<ExecutionPage> {
    return await this.#lists.search(workspace, filter, page)
  }

  /** Its runner is stopped; a group ends once its parts did. @throws not_found, conflict when it has ended */
  async cancel(
    workspace: string,
    id: string,
    reason = 'cancelled',
  ): Promise<{ previous: ExecutionStatus; execution: Execution }> {
    const before = this.#known(workspace, id)
    const previous = toExecution(before).status
    if (before.parts !== null && !isEnded(before)) {
      await this.#groups.stop(id, 'cancelled', reason)
    } else {
      const cancelled = await this.#attempts.end(id, 'cancelled', { reason })
      if (!cancelled) throw endedAlready(this.#known(workspace, id))
      this.#attempts.stop(id, new ExecutionStopped('cancelled', reason))
    }
    return { previous, execution: toExecution(this.#known(workspace, id)) }
  }

  /** What its agent says of one that it works on. @throws not_found, bad_request, conflict when it ended otherwise */
  async report(workspace: string, id: string, report: ExecutionReport): Promise<Execution> {
    const before = this.#known(workspace, id)
    return toExecution(await this.#reports.take(before, report, () => this.#known(workspace, id)))
  }

  /**
   * Once more, as a new execution with the label `replayOf`. @throws not_found, conflict for one that goes on, is a part,
   * or was only told of
   */
  async replay(workspace: string, id: string): Promise<Execution> {
    const work = this.#known(workspace, id)
    const { queue, clock } = this.#options
    const { toldOnly = false, newId } = this.#sources.get(work.queue)?.options ?? {}
    if (toldOnly)
      throw new PlatformError(
        'conflict',
        `the execution "${id}" was done within its agent, which only told of it: replay the call that it came of`,
      )
    const named = newId === undefined ? {} : { id: newId(clock.now()) }
    const again = { ...replayOf(work, queue.input(id)), ...named }
    const { each } = bodyOf(work)
    if (work.parts === null || !each) return (await this.accept(again)).execution
    return (await this.acceptGroup(again, this.#groups.inputs(work), each)).execution
  }

  /** Those that ended and match, the newest first, at most a thousand. Answers the new ones. */
  async replayMany(
    workspace: string,
    filter: ExecutionFilter,
    which: (execution: Execution) => boolean = () => true,
  ): Promise<Execution[]> {
    const { data } = this.list(workspace, filter, { limit: replayedAtOnceMax })
    const ended = data.filter(
      (one) =>
        one.endedAt !== null &&
        one.group === null &&
        !this.#sources.get(one.source)?.options.toldOnly &&
        which(one),
    )
    const replayed: Execution[] = []
    for (let at = 0; at < ended.length; at += replaysAtOnce) {
      const some = ended.slice(at, at + replaysAtOnce)
      replayed.push(...(await Promise.all(some.map(({ id }) => this.replay(workspace, id)))))
    }
    return replayed
  }

  /** One that ended goes at once, one that does not is cancelled first. False: there was none. */
  async remove(workspace: string, id: string): Promise<boolean> {
    const work = this.#find(workspace, id)
    if (!work) return false
    if (!isEnded(work)) await this.cancel(workspace, id, 'deleted')
    for await (const part of this.#groups.parts(work)) await this.#options.queue.remove(part.id)
    return await this.#options.queue.remove(id)
  }

  /** Resolves once it ended; null after `timeoutMs`, when `signal` aborts, or for one that there is not. */
  async ended(
    workspace: string,
    id: string,
    { timeoutMs, signal }: { timeoutMs: number; signal?: AbortSignal },
  ): Promise<Execution | null> {
    const waiting = this.#ends.wait(id)
    try {
      const execution = this.get(workspace, id)
      if (!execution || execution.endedAt !== null) return execution
      const over = new AbortController()
      const slept = this.#options.clock
        .sleep(timeoutMs, signal ? AbortSignal.any([signal, over.signal]) : over.signal)
        .then(
          () => null,
          () => null,
        )
      const ended = await Promise.race([waiting.ended, slept])
      over.abort()
      return ended
    } finally {
      waiting.stop()
    }
  }

  /** Changes, and what runners say, from this call on; first what is kept in memory of events after `since`. */
  watch(filter: WatchFilter, signal: AbortSignal, since?: number): AsyncIterable<ExecutionEvent> {
    return this.#events.watch(filter, signal, since)
  }

  /** What is kept in memory of events after `since`. */
  happened(filter: WatchFilter, since: number): ExecutionEvent[] {
    return this.#events.since(filter, since)
  }

  depth(filter: { source?: string; workspace?: string; target?: string } = {}): ExecutionDepth {
    const { queue, clock } = this.#options
    const { source, ...rest } = filter
    const { waiting, running, held, oldestWaitingAt } = queue.depth({
      ...rest,
      ...(source === undefined ? {} : { queue: source }),
    })
    const oldestWaitingMs = oldestWaitingAt === null ? 0 : Math.max(0, clock.now() - oldestWaitingAt)
    return { waiting, running, reported: held, oldestWaitingMs }
  }

  /** What waits and runs of every source in a workspace, and what it did there since the platform started. */
  metrics(workspace: string): ({ source: string } & ExecutionDepth & SourceMeter)[] {
    return [...this.#sources.keys()].map((source) => ({
      source,
      ...this.depth({ source, workspace }),
      ...this.#meters.read(workspace, source),
    }))
  }

  /** All of a workspace, as it is deleted. */
  async removal(workspace: string): Promise<void> {
    this.#meters.forget(workspace)
    await this.#options.queue.removeWorkspace(workspace)
    const gone = new ExecutionStopped('cancelled', 'its workspace was deleted')
    this.#attempts.stopAll(gone, (id) => this.#options.queue.get(id) === null)
  }

  /** What an earlier platform was doing is done again, without counting as an attempt. */
  async open(): Promise<void> {
    if (this.#isOpen) return
    this.#isOpen = true
    await this.#groups.removeAbandoned()
    for (const source of this.#sources.keys()) await this.#start(source)
    await this.#groups.finishAll()
    this.#retention.open()
    this.#due.open()
  }

  async close(): Promise<void> {
    if (this.#closing) return
    this.#closing = true
    this.#due[Symbol.dispose]()
    const retention = this.#retention.close()
    const closed = [...this.#sources.values()].map(({ workers }) => workers?.close(stopGraceMs))
    this.#attempts.stopAll(new ExecutionStopped('closing', 'the platform is stopping'))
    await Promise.all([retention, ...closed])
    this.#events.close()
    this.#ends.close()
  }

  async #start(source: string): Promise<void> {
    const { queue, clock, log } = this.#options
    const known = this.#sources.get(source)
    if (!known || known.workers) return
    known.workers = new Workers({
      ...{ source, queue, clock, log },
      runningMax: known.options.runningMax,
      attempt: (work) => {
        this.#announce(toExecution(work))
        this.#meters.started(work.workspace, source, work.attempts)
        return this.#attempts.run(work, known.run)
      },
    })
    await queue.release(source)
    known.workers.wake()
  }

  #wakeAll(): void {
    for (const { workers } of this.#sources.values()) workers?.wake()
  }

  /** It is accepted: told before it is told that it began, whichever of the two is heard first here. */
  #announce(execution: Execution): void {
    if (!this.#unannounced.delete(execution.id)) return
    this.#meters.accepted(execution.workspace, execution.source)
    this.#events.tell('created', execution)
  }

  /** New, and durable. */
  #accepted(work: Work): void {
    this.#meters.accepted(work.workspace, work.queue)
    this.#events.tell('created', toExecution(work))
    if (work.state === 'held' && work.until !== null) this.#due.at(work.until)
    else if (work.runAt > this.#options.clock.now()) this.#due.at(work.runAt)
    else this.#sources.get(work.queue)?.workers?.wake(1)
  }

  #changed(work: Work, previous: Work): void {
    const execution = toExecution(work)
    if (isEnded(work) && !isEnded(previous)) {
      this.#meters.ended(work.workspace, work.queue, execution.status)
      this.#ends.tell(execution)
      this.#events.tell('ended', execution)
      try {
        this.#sources.get(work.queue)?.options.ended?.(execution)
      } catch (error) {
        this.#options.log.error('executions: who was told of an end failed', { id: work.id, error })
      }
      if (previous.state === 'held') this.#sources.get(work.queue)?.workers?.wake(1)
      return
    }
    this.#events.tell('updated', execution)
    if (work.state === 'held' && work.until !== null) this.#due.at(work.until)
    else if (work.state === 'waiting') this.#due.at(work.runAt)
  }

  #inBackground(work: Promise<unknown>, id: string): void {
    work.catch((error) => {
      if (!this.#closing) this.#options.log.error('executions: it could not be gone on with', { id, error })
    })
  }

  #isHidden(source: string): boolean {
    return this.#sources.get(source)?.options.hidden === true
  }

  #find(workspace: string, id: string): Work | null {
    const work = this.#options.queue.get(id)
    return work?.workspace === workspace ? work : null
  }

  /** @throws not_found */
  #known(workspace: string, id: string): Work {
    const work = this.#find(workspace, id)
    if (!work) throw new PlatformError('not_found', `the execution "${id.slice(0, 200)}" does not exist`)
    return work
  }

  /** @throws unavailable */
  #refuseWhenClosing(): void {
    if (!this.#closing) return
    throw new PlatformError('unavailable', 'the platform is stopping', { retryAfterSeconds: 5 })
  }
}

function endedAlready({ id, state }: Work): PlatformError {
  return new PlatformError('conflict', `the execution "${id}" has ended: ${state}`)
}
