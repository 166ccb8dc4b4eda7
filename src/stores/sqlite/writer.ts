import { PlatformError } from '../../errors.ts'
import type { Clock } from '../../lib/clock.ts'
import type { Logger } from '../../lib/log.ts'
import { WorkerThread } from '../../lib/worker-thread.ts'
import { storeWritesWaitingMax } from '../../spec/store.ts'
import { LogFolding } from './log-folding.ts'
import {
  type FromWriter,
  handedOver,
  type Mutation,
  type Outcome,
  type ResourceStep,
  type StepResult,
  type ToWriter,
  type WriteStep,
} from './protocol.ts'
import type { AddedWork } from './work-protocol.ts'

const bytesWaitingMax = 128 * 1024 * 1024
const groupMutationsMax = 256
const groupBytesMax = 8 * 1024 * 1024

interface Pending {
  mutation: Mutation
  bytes: number
  /** After the disk was full. */
  isSecondTry: boolean
  resolve(results: StepResult[]): void
  reject(error: unknown): void
}

export interface WriterOptions {
  path: string
  durability: 'power' | 'process'
  clock: Clock
  log: Logger
  startWorker: () => Bun.Worker
  startFolder: () => Bun.Worker
  /** How long the log may get before it is folded into the database. */
  foldFromPages?: number
  /** A group is on its way: until `onOver` nobody is to read what it writes, since a power cut may still undo it. */
  onBegin(): void
  onOver(): void
  /** The disk is full: whether there is room now. */
  makeRoom(): boolean
  /** In commit order, after the commit and before its promise resolves. */
  onCommit(mutation: Mutation, results: StepResult[]): void
  /** Something may have been committed that `onCommit` was not called for. */
  onLost(): void
}

/**
 * The store's side of the writer's thread. While one group is being committed the next one gathers, so that a burst
 * costs as many syncs as the disk can do and not one each.
 */
export class Writer {
  readonly #options: WriterOptions
  readonly #folding: LogFolding
  #queue: Pending[] = []
  #bytesWaiting = 0
  #inFlight: Pending[] | null = null
  readonly #thread: WorkerThread<ToWriter, Exclude<FromWriter, { type: 'closed' }>>
  #isAgain = false
  /** The thread is to fold the log whole before it writes, and nobody can stand in it for that. */
  #isFoldedFirst = false
  #gathering = false
  /** So many of the next are sent each by itself, since something among them cannot be sent. */
  #aloneNext = 0
  #closing: Promise<void> | null = null
  #onIdle: (() => void) | null = null

  constructor(options: WriterOptions) {
    this.#options = options
    const { path, clock, log, startFolder, foldFromPages } = options
    this.#folding = new LogFolding({
      ...{ path, clock, log },
      startWorker: startFolder,
      ...(foldFromPages === undefined ? {} : { foldFromPages }),
      onFree: () => this.#pump(),
    })
    this.#thread = new WorkerThread({
      start: options.startWorker,
      onStart: () => this.#opened(),
      onMessage: ({ outcomes, logPages }) => this.#settle(outcomes, logPages),
      onDied: (reason) => this.#died(reason),
    })
    this.#thread.begin()
  }

  submit(mutation: Mutation): Promise<StepResult[]> {
    if (this.#closing) return Promise.reject(new PlatformError('unavailable', 'the store is closed'))
    let bytes = 0
    for (const step of mutation) bytes += bytesOf(step)
    if (this.#queue.length >= storeWritesWaitingMax || this.#bytesWaiting + bytes > bytesWaitingMax) {
      const message = 'too many changes are waiting to be written: try again in a second'
      return Promise.reject(new PlatformError('unavailable', message, { retryAfterSeconds: 1 }))
    }
    this.#bytesWaiting += bytes
    return new Promise((resolve, reject) => {
      this.#queue.push({ mutation, bytes, isSecondTry: false, resolve, reject })
      if (this.#gathering || this.#inFlight) return
      this.#gathering = true
      // What one turn of the event loop submits goes into one commit.
      queueMicrotask(() => {
        this.#gathering = false
        this.#pump()
      })
    })
  }

  /** Writes what was submitted, folds the log into the database and ends the thread. */
  close(): Promise<void> {
    this.#closing ??= this.#close()
    return this.#closing
  }

  async #close(): Promise<void> {
    if (this.#inFlight || this.#queue.length > 0) {
      await new Promise<void>((resolve) => {
        this.#onIdle = resolve
      })
    }
    await this.#folding.close()
    await this.#thread.close({ type: 'close' })
  }

  #opened(): void {
    const { path, durability } = this.#options
    this.#thread.send({ type: 'open', path, durability, isAgain: this.#isAgain })
    this.#isFoldedFirst = this.#isAgain
    this.#isAgain = true
  }

  #pump(): void {
    if (this.#inFlight || this.#queue.length === 0 || this.#folding.commitsWait) return
    let bytes = 0
    let length = 0
    const mutationsMax = this.#aloneNext > 0 ? 1 : groupMutationsMax
    this.#aloneNext = Math.max(0, this.#aloneNext - 1)
    for (const { bytes: more } of this.#queue) {
      if (length === mutationsMax || (length > 0 && bytes + more > groupBytesMax)) break
      bytes += more
      length++
    }
    const group = this.#queue.splice(0, length)
    this.#bytesWaiting -= bytes
    this.#inFlight = group
    this.#thread.works()
    this.#folding.commitBegins()
    // Of the group that a new thread begins with some may be read a moment before it is durable.
    if (!this.#isFoldedFirst) this.#options.onBegin()
    const mutations = group.map(({ mutation }) => mutation)
    try {
      this.#thread.send({ type: 'commit', mutations }, mutations.flatMap(givenAway))
    } catch (cause) {
      this.#unsent(group, cause)
    }
  }

  /** What no thread can be given is refused; the others of its group have nothing to do with that. */
  #unsent(group: Pending[], cause: unknown): void {
    this.#inFlight = null
    this.#options.onOver()
    this.#folding.commitEnds(null)
    if (group.length > 1) {
      this.#aloneNext = group.length
      for (const { bytes } of group) this.#bytesWaiting += bytes
      this.#queue.unshift(...group)
    } else {
      this.#options.log.error('store: a change cannot be handed to the writer', { error: cause })
      const message = 'the change could not be written: nothing was changed'
      for (const { reject } of group) reject(new PlatformError('internal', message, { cause }))
    }
    this.#pump()
    this.#idle()
  }

  #settle(outcomes: Outcome[], logPages: number | null): void {
    const group = this.#inFlight
    if (!group) return
    if (logPages !== null) this.#isFoldedFirst = false
    this.#inFlight = null
    this.#options.onOver()
    this.#folding.commitEnds(logPages)
    const again = this.#againAfterRoom(group, outcomes)
    this.#queue.unshift(...again)
    this.#pump()
    for (const [index, pending] of group.entries()) {
      if (again.includes(pending)) continue
      const outcome = outcomes[index]!
      if (outcome.ok) {
        this.#options.onCommit(pending.mutation, outcome.results)
        pending.resolve(outcome.results)
      } else {
        pending.reject(this.#refusal(pending.mutation, outcome))
      }
    }
    this.#idle()
  }

  /** What a full disk refused and is written once more, in what was kept for it: it may be what makes room. */
  #againAfterRoom(group: Pending[], outcomes: Outcome[]): Pending[] {
    const refused = group.filter((pending, index) => {
      const outcome = outcomes[index]!
      return !outcome.ok && outcome.reason === 'disk_full' && !pending.isSecondTry && changesWhatIs(pending)
    })
    if (refused.length === 0 || !this.#options.makeRoom()) return []
    return refused.map((pending) => {
      pending.isSecondTry = true
      this.#bytesWaiting += pending.bytes
      return pending
    })
  }

  #idle(): void {
    if (this.#inFlight || this.#queue.length > 0) return
    this.#thread.rests()
    this.#onIdle?.()
  }

  #died(reason: string): void {
    this.#options.log.error('store: the writer stopped', { reason })
    const group = this.#inFlight
    this.#inFlight = null
    if (group) {
      this.#options.onOver()
      this.#folding.commitEnds(null)
      this.#options.onLost()
      const message = 'the store stopped while it wrote: read again to see whether the change was made'
      for (const { reject } of group) reject(new PlatformError('internal', message, { cause: reason }))
    }
    // Each start takes a group off the queue, so that a writer that cannot run fails them all and is left alone.
    this.#pump()
    this.#idle()
  }

  #refusal(mutation: Mutation, outcome: Extract<Outcome, { ok: false }>): PlatformError {
    switch (outcome.reason) {
      case 'already_exists':
      case 'not_found':
      case 'held':
      case 'version_mismatch':
        return resourceRefusal(mutation[outcome.step] as ResourceStep, outcome)
      case 'work_exists':
        return new PlatformError('already_exists', `the execution "${outcome.name}" already exists`)
      case 'other_request':
        return new PlatformError(
          'conflict',
          'the idempotency key was used for another request lately: use a new one for this',
        )
      case 'disk_full':
        return new PlatformError(
          'insufficient_storage',
          'the disk of the data directory is full: nothing was changed',
          {
            cause: outcome.detail,
          },
        )
      case 'failed':
        this.#options.log.error('store: a write failed', { detail: outcome.detail })
        return new PlatformError('internal', 'the change could not be written: nothing was changed', {
          cause: outcome.detail,
        })
    }
  }
}

function resourceRefusal(
  step: ResourceStep,
  outcome: Extract<Outcome, { reason: 'already_exists' | 'not_found' | 'held' | 'version_mismatch' }>,
): PlatformError {
  const which = `${step.kind} ${JSON.stringify(step.name)}`
  switch (outcome.reason) {
    case 'already_exists':
      return new PlatformError('already_exists', `${which} already exists`)
    case 'not_found':
      return new PlatformError('not_found', `${which} does not exist`)
    case 'held':
      return new PlatformError('conflict', `the workspace "${step.workspace}" has a ${step.kind}`)
    case 'version_mismatch': {
      const expected = 'expectedVersion' in step ? step.expectedVersion : null
      return new PlatformError(
        'version_mismatch',
        `${which} was changed meanwhile: it is at version ${outcome.storedVersion}, not ${expected}. Read it again`,
      )
    }
  }
}

/** Changes or removes something: what only adds can wait until there is room. */
function changesWhatIs({ mutation }: Pending): boolean {
  const keyOf = (step: WriteStep) =>
    'kind' in step ? JSON.stringify([step.kind, step.workspace, step.name]) : ''
  const added = new Set(mutation.filter(({ op }) => op === 'create').map(keyOf))
  return mutation.some(
    (step) =>
      ((step.op === 'update' || step.op === 'remove') && !added.has(keyOf(step))) ||
      (step.op.startsWith('work-') && step.op !== 'work-add'),
  )
}

/** Of what is written once and never again, whatever comes of it. */
function givenAway(mutation: Mutation): ArrayBuffer[] {
  const [step] = mutation
  if (mutation.length !== 1 || step?.op !== 'work-add' || !step.isGiven) return []
  return handedOver(step.work.input)
}

function bytesOf(step: WriteStep): number {
  const overhead = 256
  switch (step.op) {
    case 'create':
    case 'update':
      return overhead + step.body.length + (step.indexes?.length ?? 0)
    case 'work-add':
      return overhead + bytesOfWork(step.work)
    case 'work-change': {
      let bytes = overhead + (step.set.body?.length ?? 0) + (step.result?.byteLength ?? 0)
      for (const work of step.follow) bytes += overhead + bytesOfWork(work)
      return bytes
    }
    default:
      return overhead
  }
}

function bytesOfWork({ body, labels, input }: AddedWork): number {
  return body.length + labels.length + (input?.byteLength ?? 0)
}
