import { PlatformError } from '../errors.ts'
import type { Background } from '../lib/background.ts'
import type { Logger } from '../lib/log.ts'
import type { Semaphore } from '../lib/semaphore.ts'
import type { Instance, Runtime } from '../spec/runtime.ts'
import type { BatchStep } from '../spec/store.ts'
import type { Commit, Entry } from './entry.ts'
import { type InstanceRecord, instanceKey, runningRecord, runtimeSpec } from './record.ts'
import type { InstanceRestarts } from './restarts.ts'

/** How packing or unpacking went; `bytes` is the archive's size. */
export type ArchiveOutcome =
  | { type: 'archived'; bytes: number }
  /** It runs, on this machine. */
  | { type: 'unarchived'; instance: Instance }
  /** It runs again, as before. */
  | { type: 'not archived'; reason: string }
  /** It stays archived. */
  | { type: 'not unarchived'; reason: string }
  /** Neither archived nor running. */
  | { type: 'lost'; reason: string }

/**
 * As `Commit`, with what there is to tell; without a step there is nothing to be written with it. Answers whether it
 * wrote the step.
 */
export type CommitOutcome = (step: BatchStep | null, outcome: ArchiveOutcome) => Promise<boolean>

/**
 * Instances whose files are packed: nothing of them runs. Each change is recorded before it begins and once it is done,
 * so that the next start goes on where a crash cut it off.
 */
export class InstanceArchives {
  readonly #runtime: Runtime
  readonly #restarts: InstanceRestarts
  readonly #upkeep: Semaphore
  readonly #background: Background
  readonly #log: Logger

  constructor(options: {
    runtime: Runtime
    restarts: InstanceRestarts
    upkeep: Semaphore
    background: Background
    log: Logger
  }) {
    this.#runtime = options.runtime
    this.#restarts = options.restarts
    this.#upkeep = options.upkeep
    this.#background = options.background
    this.#log = options.log
  }

  /**
   * Resolves once `begin` did: from then on the instance cannot be acquired. `done` resolves after `end`, or without it
   * where the instance is to go meanwhile, or the platform stops. Without `begin`, goes on with what an earlier life of the
   * platform began. @throws conflict, not_implemented, what `begin` throws
   */
  async archive(entry: Entry, begin: Commit | null, end: CommitOutcome): Promise<{ done: Promise<void> }> {
    const pack = this.#runtime.pack?.bind(this.#runtime)
    if (!pack) throw notHere()
    if (begin !== null) await this.#begin(entry, 'running', 'archiving', begin)
    const done = this.#background.track(this.#unlessCalledOff(entry, this.#pack(entry, pack, end)))
    entry.ready = done.then(() => {
      throw new PlatformError('workload_unavailable', 'the instance is archived')
    })
    entry.ready.catch(() => {})
    return { done }
  }

  /** As `archive`; before `end` is called, the instance can be acquired again. */
  async unarchive(entry: Entry, begin: Commit | null, end: CommitOutcome): Promise<{ done: Promise<void> }> {
    const unpack = this.#runtime.unpack?.bind(this.#runtime)
    const pack = this.#runtime.pack?.bind(this.#runtime)
    if (!unpack || !pack) throw notHere()
    if (begin !== null) await this.#begin(entry, 'archived', 'unarchiving', begin)
    const done = this.#background.track(
      this.#unlessCalledOff(entry, this.#unpack(entry, { pack, unpack }, end)),
    )
    entry.ready = done.then(() => {
      if (entry.instance !== null) return entry.instance
      throw new PlatformError('workload_unavailable', 'the instance is archived')
    })
    entry.ready.catch(() => {})
    return { done }
  }

  async #begin(
    entry: Entry,
    from: 'running' | 'archived',
    to: 'archiving' | 'unarchiving',
    begin: Commit,
  ): Promise<void> {
    if (entry.state !== from) {
      throw new PlatformError('conflict', `the instance is ${entry.state}, not ${from}`)
    }
    entry.state = to
    entry.activity.runsOn(null)
    try {
      await this.#write(entry, this.#step(entry, to), async (step) => {
        await begin(step, entry.id)
        return true
      })
    } catch (error) {
      if (entry.state === to) {
        entry.state = from
        entry.activity.runsOn(entry.instance)
      }
      throw error
    }
  }

  /** Whoever ends it takes it from there, or the next start. */
  async #unlessCalledOff(entry: Entry, work: Promise<void>): Promise<void> {
    const signal = this.#signal(entry)
    await work.catch((error) => {
      if (!signal.aborted) throw error
    })
  }

  async #pack(entry: Entry, pack: NonNullable<Runtime['pack']>, end: CommitOutcome): Promise<void> {
    const signal = this.#signal(entry)
    let bytes: number
    try {
      const { instance } = entry
      if (instance !== null) {
        await instance.stop()
        entry.instance = null
        await instance[Symbol.asyncDispose]()
      }
      bytes = await this.#upkeep.run(() => pack(entry.id, signal))
    } catch (error) {
      if (signal.aborted) throw error
      this.#log.error('an instance could not be archived', { instance: entry.id, error })
      return await this.#handBack(entry, reasonOf(error), end)
    }
    signal.throwIfAborted()
    entry.state = 'archived'
    await this.#end(entry, this.#step(entry, 'archived'), { type: 'archived', bytes }, end)
  }

  async #handBack(entry: Entry, reason: string, end: CommitOutcome): Promise<void> {
    const signal = this.#signal(entry)
    let instance: Instance
    try {
      instance = await this.#upkeep.run(() => this.#runtime.restart(runtimeSpec(entry.id, entry.spec)))
    } catch (error) {
      this.#log.error('an instance could not be started again', { instance: entry.id, error })
      signal.throwIfAborted()
      entry.state = 'failed'
      await end(null, { type: 'lost', reason: reasonOf(error) })
      return
    }
    if (signal.aborted) {
      await instance[Symbol.asyncDispose]()
      throw signal.reason
    }
    entry.state = 'running'
    this.#restarts.settle(entry, instance)
    await this.#end(entry, this.#running(entry, instance), { type: 'not archived', reason }, end)
  }

  async #unpack(
    entry: Entry,
    { pack, unpack }: { pack: NonNullable<Runtime['pack']>; unpack: NonNullable<Runtime['unpack']> },
    end: CommitOutcome,
  ): Promise<void> {
    const signal = this.#signal(entry)
    let instance: Instance
    try {
      await this.#upkeep.run(() => unpack(entry.id, signal))
      instance = await this.#upkeep.run(() => this.#runtime.restart(runtimeSpec(entry.id, entry.spec)))
    } catch (error) {
      if (signal.aborted) throw error
      this.#log.error('an instance could not be unarchived', { instance: entry.id, error })
      await this.#upkeep.run(() => pack(entry.id, signal))
      signal.throwIfAborted()
      entry.state = 'archived'
      const outcome = { type: 'not unarchived', reason: reasonOf(error) } as const
      return await this.#end(entry, this.#step(entry, 'archived'), outcome, end)
    }
    if (signal.aborted) {
      await instance[Symbol.asyncDispose]()
      throw signal.reason
    }
    entry.state = 'running'
    this.#restarts.settle(entry, instance)
    await this.#end(entry, this.#running(entry, instance), { type: 'unarchived', instance }, end)
  }

  async #end(entry: Entry, step: BatchStep, outcome: ArchiveOutcome, end: CommitOutcome): Promise<void> {
    await this.#write(entry, step, (written) => end(written, outcome))
  }

  /** The version counts as written before anybody can see what is: the store writes in the order it was asked. */
  async #write(entry: Entry, step: BatchStep, write: (step: BatchStep) => Promise<boolean>): Promise<void> {
    entry.version++
    let written = false
    try {
      written = await write(step)
    } finally {
      if (!written) entry.version--
    }
  }

  #signal(entry: Entry): AbortSignal {
    return AbortSignal.any([this.#background.closing, entry.ending.signal])
  }

  #running(entry: Entry, instance: Instance): BatchStep {
    return this.#update(entry, runningRecord(entry, instance.handle))
  }

  #step(entry: Entry, state: 'archiving' | 'archived' | 'unarchiving'): BatchStep {
    const { env: _, ...spec } = entry.spec
    return this.#update(entry, { state, owner: entry.owner, spec, env: entry.sealedEnv })
  }

  #update(entry: Entry, body: InstanceRecord): BatchStep {
    const key = instanceKey(entry.owner, entry.id)
    return { op: 'update', key, expectedVersion: entry.version, change: { body } }
  }
}

function reasonOf(error: unknown): string {
  return PlatformError.is(error) ? error.message : 'an internal error'
}

function notHere(): PlatformError {
  return new PlatformError(
    'not_implemented',
    'sandboxes cannot be archived on this host; hutch doctor says what is missing',
  )
}
