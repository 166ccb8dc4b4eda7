/**
 * Instances: the machines this platform keeps running, and the one user of the runtime. An owner (a sandbox) decides
 * that an instance lives; this folder sees to it that it does, over crashes of the platform and of the instance.
 */
import { PlatformError } from '../errors.ts'
import { abortable } from '../lib/abortable.ts'
import { Background } from '../lib/background.ts'
import type { Clock } from '../lib/clock.ts'
import type { Logger } from '../lib/log.ts'
import type { SecretBox } from '../lib/secret-box.ts'
import { Semaphore } from '../lib/semaphore.ts'
import type { Instance, RootFilesystem, Runtime } from '../spec/runtime.ts'
import type { Store } from '../spec/store.ts'
import { type CommitOutcome, InstanceArchives } from './archives.ts'
import { InstanceChanges, type InstanceListener } from './changes.ts'
import { type FoundInside, InstanceCreation, launchConcurrencyMax } from './creation.ts'
import type { Commit, Entry, InstanceState } from './entry.ts'
import type { InstanceOwner, NewInstance } from './record.ts'
import { InstanceRecovery } from './recovery.ts'
import { InstanceRemoval } from './removal.ts'
import { RestRecords } from './rest.ts'
import { InstanceRestarts, restartsMax } from './restarts.ts'
import { InstanceSealing } from './sealing.ts'
import { InstanceSnapshots } from './snapshots.ts'
import { Standby, type StandbyTimes } from './standby.ts'
import { InstanceTable } from './table.ts'

export type { ArchiveOutcome } from './archives.ts'
export type { InstanceChange } from './changes.ts'
export type { Commit, InstanceState } from './entry.ts'
export type { InstanceOwner, NewInstance } from './record.ts'

/** Held while something uses the instance: it is awake, and counts as active, until every lease is disposed. */
export interface InstanceLease extends Disposable {
  readonly instance: Instance
  readonly spec: NewInstance
  /**
   * From now on it stands for a connection that stays open: it counts for as long as something is said, which `touch`
   * tells, and for a while after.
   */
  asConnection(): { touch(): void }
}

export interface InstanceActivity {
  /** Who holds it now. */
  leases: number
  /** Now, while it is held. */
  lastUsedAt: number
  /** Frozen, until the next acquire. */
  standby: boolean
}

export interface InstancesOptions {
  store: Store
  runtime: Runtime
  secrets: SecretBox
  clock: Clock
  log: Logger
  /** Absent: instances never rest. */
  standby?: StandbyTimes
}

export class Instances {
  readonly #table: InstanceTable
  readonly #changes = new InstanceChanges()
  readonly #creation: InstanceCreation
  readonly #restarts: InstanceRestarts
  readonly #archives: InstanceArchives
  readonly snapshots: InstanceSnapshots
  readonly #removal: InstanceRemoval
  readonly #recovery: InstanceRecovery
  readonly #standby: Standby
  readonly #rests: RestRecords
  readonly #log: Logger
  /** Launches, restarts, removals. */
  readonly #background: Background

  constructor(options: InstancesOptions) {
    const { store, runtime, clock, log } = options
    const { standby: times = { freezeAfterMs: null, reclaimAfterMs: null } } = options
    const standby = new Standby({ ...times, clock, log })
    const rests = new RestRecords(store, clock, log)
    const table = new InstanceTable({ standby, rests, clock, log })
    const sealing = new InstanceSealing(options.secrets)
    const background = new Background((error) => log.error('work on an instance failed', { error }))
    // For what is owed already: it waits as long as it takes.
    const upkeep = new Semaphore({
      concurrencyMax: launchConcurrencyMax,
      waitingMax: Number.POSITIVE_INFINITY,
      what: 'instances are being restarted or removed',
    })
    const all = {
      store,
      runtime,
      table,
      rests,
      sealing,
      changes: this.#changes,
      background,
      upkeep,
      clock,
      log,
    }
    const restarts = new InstanceRestarts(all)
    const removal = new InstanceRemoval({ ...all, restarts })
    this.#creation = new InstanceCreation({ ...all, restarts })
    this.#archives = new InstanceArchives({ ...all, restarts })
    this.snapshots = new InstanceSnapshots(all)
    this.#recovery = new InstanceRecovery({ ...all, restarts, removal })
    this.#restarts = restarts
    this.#removal = removal
    this.#table = table
    this.#standby = standby
    this.#rests = rests
    this.#background = background
    this.#log = log
  }

  /** Every instance of one kind of owner. */
  owned(kind: string): { id: string; owner: InstanceOwner; state: InstanceState }[] {
    return this.#table.every().filter((entry) => entry.owner.kind === kind)
  }

  /** The root file systems that instances stand on, whatever state they are in, and how to call who does. */
  *roots(): Iterable<{ workspace: string; name: string; root: RootFilesystem }> {
    for (const { owner, spec } of this.#table.every())
      yield { workspace: owner.workspace, name: `the ${owner.kind} ${owner.name}`, root: spec.image }
  }

  /** What an instance was started as, whatever state it is in; null for one that is not known here. */
  specOf(id: string): NewInstance | null {
    return this.#table.get(id)?.spec ?? null
  }

  /** Null for an instance that is not known here. */
  ownerOf(id: string): InstanceOwner | null {
    return this.#table.get(id)?.owner ?? null
  }

  onChange(listener: InstanceListener): () => void {
    return this.#changes.listen(listener)
  }

  /**
   * Makes an instance. `commit` is called once it runs, with the step that records it; the owner's record goes into
   * the same batch. `check` sees it before that. When this rejects, also because `commit` did, nothing is left of the instance.
   * @throws unavailable when closing, too_many_requests, and what Runtime.create throws
   */
  async create(
    owner: InstanceOwner,
    spec: NewInstance | Promise<NewInstance>,
    commit: Commit,
    check?: (instance: Instance, spec: NewInstance) => Promise<FoundInside>,
  ): Promise<Instance> {
    const creation = { owner, spec, commit, ...(check ? { check } : {}) }
    return await this.#background.track(this.#creation.create(creation))
  }

  /**
   * The instance, awake: thawed when it rests, waited for while it is started again.
   * @throws workload_not_found for an id that is none (any more), workload_unavailable when it was given up
   */
  async acquire(id: string, signal?: AbortSignal): Promise<InstanceLease> {
    const entry = this.#table.get(id)
    if (entry === undefined || entry.state === 'ending') {
      throw new PlatformError('workload_not_found', 'this instance does not exist any more')
    }
    const hold = entry.activity.hold()
    try {
      const instance = await this.#awake(entry, signal)
      return new HeldInstance(entry, instance, hold)
    } catch (error) {
      hold[Symbol.dispose]()
      throw error
    }
  }

  /** As `acquire`, where there is nothing to wait for; else null. */
  acquireNow(id: string): InstanceLease | null {
    const entry = this.#table.get(id)
    if (entry?.state !== 'running' || entry.instance === null || !entry.activity.awake) return null
    return new HeldInstance(entry, entry.instance, entry.activity.hold())
  }

  /** The instance as it is, frozen or not, and no use of it. @throws as `acquire` */
  async acquireAsIs(id: string, signal?: AbortSignal): Promise<InstanceLease> {
    const entry = this.#table.get(id)
    if (entry === undefined || entry.state === 'ending') {
      throw new PlatformError('workload_not_found', 'this instance does not exist any more')
    }
    const instance = await this.#running(entry, signal)
    return { instance, spec: entry.spec, asConnection: () => ({ touch() {} }), [Symbol.dispose]: () => {} }
  }

  /**
   * Keeps an instance from resting until disposed; counts as use unless `quiet`, and does not wake it. Nothing for an
   * unknown id.
   */
  hold(id: string, options: { quiet?: boolean } = {}): Disposable {
    return this.#table.get(id)?.activity.hold(options) ?? { [Symbol.dispose]: () => {} }
  }

  async #awake(entry: Entry, signal: AbortSignal | undefined): Promise<Instance> {
    for (let attempt = 1; ; attempt++) {
      const instance = await this.#running(entry, signal)
      const waking = entry.activity.wake()
      if (waking === null) return instance
      try {
        await abortable(waking, signal)
      } catch (error) {
        // It may have ended while it stood still: then it is started again.
        if (signal?.aborted || entry.instance === instance || attempt >= restartsMax) throw error
      }
      if (entry.instance === instance) return instance
    }
  }

  async #running(entry: Entry, signal: AbortSignal | undefined): Promise<Instance> {
    if (entry.state === 'archiving' || entry.state === 'archived') {
      throw new PlatformError('workload_unavailable', 'the instance is archived')
    }
    return entry.state === 'running' && entry.instance ? entry.instance : await abortable(entry.ready, signal)
  }

  /** Null when it is not known here. */
  activity(id: string): InstanceActivity | null {
    const entry = this.#table.get(id)
    if (!entry) return null
    const { holders, lastUsedAt, asleep } = entry.activity
    return { leases: holders, lastUsedAt, standby: asleep }
  }

  /**
   * Ends an instance and packs its files; nothing of it runs then. Resolves once `begin` did: it cannot be acquired
   * from then on. `end` is called with the step that records what came of it; `done` resolves after that. With null for
   * `begin` goes on with what an earlier life of the platform began.
   * @throws not_found, conflict unless it runs, not_implemented, and what `begin` throws: then it runs on
   */
  async archive(id: string, begin: Commit | null, end: CommitOutcome): Promise<{ done: Promise<void> }> {
    return await this.#archives.archive(this.#table.require(id), begin, end)
  }

  /** Unpacks the files of an archived instance and starts it. As `archive`. */
  async unarchive(id: string, begin: Commit | null, end: CommitOutcome): Promise<{ done: Promise<void> }> {
    return await this.#archives.unarchive(this.#table.require(id), begin, end)
  }

  /** Starts one again that a crash left between two states; `onChange` tells what came of it. @throws not_found */
  revive(id: string): void {
    this.#restarts.begin(this.#table.require(id), 0)
  }

  /**
   * Ends an instance and removes its files. Resolves once `commit` did: from then on it cannot be acquired and will
   * be gone, also after a crash. `gone` resolves when nothing is left. On an instance that is ending already it tries
   * again what failed, without `commit`.
   * @throws not_found, and what `commit` throws: then the instance lives on
   */
  async destroy(id: string, commit: Commit): Promise<{ gone: Promise<void> }> {
    return await this.#removal.destroy(this.#table.require(id), commit)
  }

  /**
   * At start, before anything else of this class: takes up every recorded instance and removes everything that is not
   * recorded. As a rule those that still run are adopted when this resolves; one that does not answer within
   * `recoveryWaitMsMax` stays `starting`, as those do that must be started again from their files, and `acquire` waits
   * for it. Removals that take longer go on.
   */
  async recover(): Promise<void> {
    await this.#recovery.run()
  }

  /** Resolves when no launch, restart or removal is under way. */
  settled(): Promise<void> {
    return this.#background.settled()
  }

  /**
   * Lets go of every instance: with `keepInstances` they go on running and the next start adopts them, without it
   * they are stopped, their files stay, and the next start starts them again; of those whose files are worth nothing
   * nothing stays. Idempotent.
   */
  async close(options: { keepInstances: boolean }): Promise<void> {
    this.#background.close()
    this.#standby[Symbol.dispose]()
    await this.settled()
    await this.#rests.addAll(this.#rested(options))
    await Promise.all(
      this.#table.every().map(async (entry) => {
        const { instance } = entry
        entry.instance = null
        entry.activity.runsOn(null)
        try {
          if (!options.keepInstances) await instance?.stop()
        } catch (error) {
          this.#log.error('an instance could not be stopped', { instance: entry.id, error })
        } finally {
          await instance?.[Symbol.asyncDispose]().catch(() => {})
        }
        if (options.keepInstances || !entry.spec.ephemeral || entry.state === 'ending') return
        // What could not be removed is at the next start, which finds that it does not run.
        await this.#removal.finish(entry.id, entry.owner).catch(() => {})
      }),
    )
    this.#table.clear()
    this.#changes.clear()
  }

  /** Those whose last use is told to the next start: with machines that go on running, only those that rest. */
  #rested({ keepInstances }: { keepInstances: boolean }): {
    owner: InstanceOwner
    id: string
    lastUsedAt: number
  }[] {
    if (keepInstances) return []
    const stopped = this.#table.every().filter(({ state }) => state !== 'ending')
    return stopped.map(({ owner, id, activity }) => ({ owner, id, lastUsedAt: activity.lastUsedAt }))
  }
}

class HeldInstance implements InstanceLease {
  readonly instance: Instance
  readonly spec: NewInstance
  readonly #entry: Entry
  #hold: Disposable

  constructor(entry: Entry, instance: Instance, hold: Disposable) {
    this.instance = instance
    this.spec = entry.spec
    this.#entry = entry
    this.#hold = hold
  }

  asConnection(): { touch(): void } {
    const connection = this.#entry.activity.holdConnection()
    this.#hold[Symbol.dispose]()
    this.#hold = connection
    return connection
  }

  [Symbol.dispose](): void {
    this.#hold[Symbol.dispose]()
  }
}
