/**
 * Instances: the machines this platform keeps running, and the one user of the runtime. An owner (a sandbox) decides
 * that an instance lives; this folder sees to it that it does, over crashes of the platform and of the instance.
 */
import { PlatformError } from '../errors.ts'
import type { Clock } from '../lib/clock.ts'
import { sortableId } from '../lib/ids.ts'
import type { Logger } from '../lib/log.ts'
import type { SecretBox } from '../lib/secret-box.ts'
import { Semaphore } from '../lib/semaphore.ts'
import type {
  Instance,
  InstanceExit,
  InstanceHandle,
  InstanceSpec,
  RootFilesystem,
  Runtime,
} from '../spec/runtime.ts'
import type { Resource, Store } from '../spec/store.ts'
import { Activity } from './activity.ts'
import { type CommitOutcome, InstanceArchives } from './archives.ts'
import type { Commit, Entry, InstanceState } from './entry.ts'
import {
  everyInstanceRecord,
  type InstanceOwner,
  type InstanceRecord,
  instanceKey,
  type NewInstance,
} from './record.ts'
import { RestRecords } from './rest.ts'
import { Standby, type StandbyTimes } from './standby.ts'

export type { ArchiveOutcome } from './archives.ts'
export type { Commit, InstanceState } from './entry.ts'
export type { InstanceOwner, NewInstance } from './record.ts'
export type { StandbyTimes } from './standby.ts'

/** Launches under way at once: more only makes each of them slower. */
export const launchConcurrencyMax = 16
export const launchQueueMax = 1024
export const launchTimeoutMsMax = 60_000
const adoptionConcurrencyMax = 256
/** How long a start of the platform waits for instances that do not answer at once. */
export const recoveryWaitMsMax = 250
/** Unexpected ends within `restartWindowMs` before an instance is given up. */
export const restartsMax = 5
export const restartWindowMs = 60_000
export const restartBackoffMsMin = 200
export const restartBackoffMsMax = 10_000
export const destroyAttemptsMax = 6
const destroyBackoffMsMin = 100

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

/** What happened to an instance without its owner asking. */
export type InstanceChange =
  | { type: 'exited'; exit: InstanceExit }
  | { type: 'restarted' }
  | { type: 'failed'; reason: string }

export type InstanceListener = (owner: InstanceOwner, instanceId: string, change: InstanceChange) => void

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
  readonly #store: Store
  readonly #runtime: Runtime
  readonly #secrets: SecretBox
  readonly #clock: Clock
  readonly #log: Logger
  readonly #standby: Standby
  readonly #rests: RestRecords
  readonly #archives: InstanceArchives
  readonly #entries = new Map<string, Entry>()
  readonly #listeners = new Set<InstanceListener>()
  readonly #launches = new Semaphore({
    concurrencyMax: launchConcurrencyMax,
    waitingMax: launchQueueMax,
    what: 'instances are being started',
  })
  /** For what is owed already: restarts and removals wait as long as it takes. */
  readonly #upkeep = new Semaphore({
    concurrencyMax: launchConcurrencyMax,
    waitingMax: Number.POSITIVE_INFINITY,
    what: 'instances are being restarted or removed',
  })
  /** Apart from the others: those that do not answer must not hold up those that do. */
  readonly #adoptions = new Semaphore({
    concurrencyMax: adoptionConcurrencyMax,
    waitingMax: Number.POSITIVE_INFINITY,
    what: 'instances are being looked for',
  })
  /** Work that `close` waits for: launches, restarts, removals. */
  readonly #pending = new Set<Promise<unknown>>()
  readonly #closing = new AbortController()

  constructor(options: InstancesOptions) {
    this.#store = options.store
    this.#runtime = options.runtime
    this.#secrets = options.secrets
    this.#clock = options.clock
    this.#log = options.log
    const { standby = { freezeAfterMs: null, reclaimAfterMs: null }, clock, log } = options
    this.#standby = new Standby({ ...standby, clock, log })
    this.#rests = new RestRecords(options.store, log)
    this.#archives = new InstanceArchives({
      runtime: options.runtime,
      log,
      closing: this.#closing.signal,
      upkeep: (work) => this.#upkeep.run(work),
      track: (work) => this.#track(work),
      spec: (entry) => this.#runtimeSpec(entry.id, entry.spec),
      runningRecord: (entry, handle) => this.#runningRecord(entry, handle),
      settle: (entry, instance) => this.#settle(entry, instance),
    })
  }

  /** Every instance of one kind of owner. */
  owned(kind: string): { id: string; owner: InstanceOwner; state: InstanceState }[] {
    return [...this.#entries.values()].filter((entry) => entry.owner.kind === kind)
  }

  /** The root file systems that instances stand on, whatever state they are in. */
  *roots(): Iterable<{ workspace: string; name: string; root: RootFilesystem }> {
    for (const { owner, spec } of this.#entries.values())
      yield { workspace: owner.workspace, name: owner.name, root: spec.image }
  }

  /** Null for an instance that is not known here. */
  ownerOf(id: string): InstanceOwner | null {
    return this.#entries.get(id)?.owner ?? null
  }

  onChange(listener: InstanceListener): () => void {
    this.#listeners.add(listener)
    return () => this.#listeners.delete(listener)
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
    check?: (instance: Instance, spec: NewInstance) => Promise<void>,
  ): Promise<Instance> {
    return await this.#track(this.#create(sortableId(this.#clock.now()), owner, spec, commit, check))
  }

  async #create(
    id: string,
    owner: InstanceOwner,
    wanted: NewInstance | Promise<NewInstance>,
    commit: Commit,
    check: ((instance: Instance, spec: NewInstance) => Promise<void>) | undefined,
  ): Promise<Instance> {
    if (wanted instanceof Promise) wanted.catch(() => {})
    this.#refuseWhenClosing()
    // Not recorded until it runs: what a crash leaves of it has no record, and the next start removes that.
    let instance: Instance | null = null
    try {
      const spec = await wanted
      const sealedEnv = this.#sealEnv(id, spec.env)
      instance = await this.#launches.run(() => {
        this.#refuseWhenClosing()
        return this.#runtime.create(this.#runtimeSpec(id, spec))
      })
      const entry: Entry = {
        id,
        owner,
        spec,
        sealedEnv,
        version: 1,
        instance,
        ready: Promise.resolve(instance),
        state: 'running',
        ...this.#fresh(id, owner),
      }
      await check?.(instance, spec)
      // Known before it is recorded, so that whoever reads the record finds it.
      this.#entries.set(id, entry)
      await commit(
        {
          op: 'create',
          input: { ...instanceKey(owner, id), body: this.#runningRecord(entry, instance.handle) },
        },
        id,
      )
      this.#watch(entry, instance)
      return instance
    } catch (error) {
      this.#entries.get(id)?.activity.runsOn(null)
      this.#entries.delete(id)
      await this.#undo(id, instance)
      throw error
    }
  }

  async #undo(id: string, instance: Instance | null): Promise<void> {
    if (instance === null) return
    try {
      await instance[Symbol.asyncDispose]().catch(() => {})
      await this.#runtime.destroy(id)
    } catch (error) {
      // No record knows it: the next start removes what is left.
      this.#log.error('could not take back a failed launch', { instance: id, error })
    }
  }

  /**
   * The instance, awake: thawed when it rests, waited for while it is started again.
   * @throws workload_not_found for an id that is none (any more), workload_unavailable when it was given up
   */
  async acquire(id: string, signal?: AbortSignal): Promise<InstanceLease> {
    const entry = this.#entries.get(id)
    if (entry === undefined || entry.state === 'ending') {
      throw new PlatformError('workload_not_found', 'this instance does not exist any more')
    }
    let hold: Disposable = entry.activity.hold()
    try {
      const instance = await this.#awake(entry, signal)
      return {
        instance,
        spec: entry.spec,
        asConnection() {
          const connection = entry.activity.holdConnection()
          hold[Symbol.dispose]()
          hold = connection
          return connection
        },
        [Symbol.dispose]: () => hold[Symbol.dispose](),
      }
    } catch (error) {
      hold[Symbol.dispose]()
      throw error
    }
  }

  /** The instance as it is, frozen or not, and no use of it. @throws as `acquire` */
  async acquireAsIs(id: string, signal?: AbortSignal): Promise<InstanceLease> {
    const entry = this.#entries.get(id)
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
    return this.#entries.get(id)?.activity.hold(options) ?? { [Symbol.dispose]: () => {} }
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
    const entry = this.#entries.get(id)
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
    return await this.#archives.archive(this.#entry(id), begin, end)
  }

  /** Unpacks the files of an archived instance and starts it. As `archive`. */
  async unarchive(id: string, begin: Commit | null, end: CommitOutcome): Promise<{ done: Promise<void> }> {
    return await this.#archives.unarchive(this.#entry(id), begin, end)
  }

  /** Starts one again that a crash left between two states; `onChange` tells what came of it. @throws not_found */
  revive(id: string): void {
    this.#startAgain(this.#entry(id), 0)
  }

  #entry(id: string): Entry {
    const entry = this.#entries.get(id)
    if (entry === undefined) throw new PlatformError('not_found', `there is no instance ${id}`)
    return entry
  }

  /**
   * Ends an instance and removes its files. Resolves once `commit` did: from then on it cannot be acquired and will
   * be gone, also after a crash. `gone` resolves when nothing is left. On an instance that is ending already it tries
   * again what failed, without `commit`.
   * @throws not_found, and what `commit` throws: then the instance lives on
   */
  async destroy(id: string, commit: Commit): Promise<{ gone: Promise<void> }> {
    const entry = this.#entry(id)
    if (entry.state !== 'ending') {
      const before = entry.state
      entry.state = 'ending'
      entry.activity.runsOn(null)
      entry.ending.abort()
      await entry.ready.catch(() => {})
      try {
        await commit(
          {
            op: 'update',
            key: instanceKey(entry.owner, id),
            expectedVersion: entry.version,
            change: { body: { state: 'destroying', owner: entry.owner } satisfies InstanceRecord },
          },
          id,
        )
      } catch (error) {
        entry.ending = new AbortController()
        if (before === 'archived') entry.state = before
        else if (entry.instance === null) this.#startAgain(entry, 0)
        else {
          entry.state = 'running'
          entry.activity.runsOn(entry.instance)
        }
        throw error
      }
    }
    if (entry.gone === null) {
      entry.gone = this.#track(this.#finishDestroy(id, entry.owner, entry))
      entry.gone.catch(() => {
        entry.gone = null
      })
    }
    return { gone: entry.gone }
  }

  async #finishDestroy(id: string, owner: InstanceOwner, entry?: Entry): Promise<void> {
    for (let attempt = 1; ; attempt++) {
      try {
        await this.#upkeep.run(() => this.#runtime.destroy(id))
        break
      } catch (error) {
        if (attempt >= destroyAttemptsMax || this.#closing.signal.aborted) {
          // The record stays `destroying`: the next start goes on.
          this.#log.error('an instance could not be removed', { instance: id, attempt, error })
          throw error
        }
        await this.#clock
          .sleep(destroyBackoffMsMin * 2 ** (attempt - 1), this.#closing.signal)
          .catch(() => {})
      }
    }
    // Only now: a driver learns of the end through the instance's own channels.
    await entry?.instance?.[Symbol.asyncDispose]().catch(() => {})
    await this.#store.remove(instanceKey(owner, id))
    this.#rests.remove(id)
    this.#entries.delete(id)
  }

  /**
   * At start, before anything else of this class: takes up every recorded instance and removes everything that is not
   * recorded. As a rule those that still run are adopted when this resolves; one that does not answer within
   * `recoveryWaitMsMax` stays `starting`, as those do that must be started again from their files, and `acquire` waits
   * for it. Removals that take longer go on.
   */
  async recover(): Promise<void> {
    await this.#rests.load()
    const recorded = new Set<string>()
    const underway: Promise<unknown>[] = []
    for await (const resource of everyInstanceRecord(this.#store)) {
      recorded.add(resource.name)
      underway.push(this.#recoverOne(resource))
    }
    this.#rests.removeExcept(recorded)
    const orphans = (await this.#runtime.list()).filter((id) => !recorded.has(id))
    for (const id of orphans) {
      this.#log.warn('removing an instance that no record knows', { instance: id })
      underway.push(
        this.#track(this.#upkeep.run(() => this.#runtime.destroy(id))).catch((error) =>
          this.#log.error('an orphan could not be removed', { instance: id, error }),
        ),
      )
    }
    const done = new AbortController()
    await Promise.race([
      Promise.all(underway),
      this.#clock.sleep(recoveryWaitMsMax, done.signal).catch(() => {}),
    ])
    done.abort()
  }

  async #recoverOne(resource: Resource<InstanceRecord>): Promise<void> {
    const { name: id, body: record } = resource
    if (record.state === 'creating' || record.state === 'destroying') {
      await this.#track(this.#finishDestroy(id, record.owner)).catch(() => {})
      return
    }
    const entry: Entry = {
      id,
      owner: record.owner,
      spec: { ...record.spec, env: {} },
      sealedEnv: record.env,
      version: resource.version,
      instance: null,
      ready: notStarted,
      state: record.state === 'running' ? 'starting' : record.state,
      ...this.#fresh(id, record.owner),
    }
    this.#entries.set(id, entry)
    try {
      entry.spec.env = this.#openEnv(id, record.env)
    } catch (error) {
      this.#log.error('the environment of an instance cannot be decrypted', { instance: id, error })
      entry.state = 'failed'
      this.#emit(entry, {
        type: 'failed',
        reason: 'its environment cannot be decrypted with this secret.key',
      })
      return
    }
    // Its owner knows what is to be done about it.
    if (record.state !== 'running') return
    const adoption = this.#adopt(entry, record.handle)
    entry.ready = this.#track(adoption.then((adopted) => adopted ?? this.#restart(entry, 0)))
    entry.ready.catch(() => {})
    await adoption
  }

  /** Null when it does not run any more, or cannot be reached. */
  async #adopt(entry: Entry, handle: InstanceHandle): Promise<Instance | null> {
    let instance: Instance | null = null
    try {
      instance = await this.#adoptions.run(() => this.#runtime.recover(handle))
    } catch (error) {
      this.#log.warn('an instance could not be adopted, it is started again', { instance: entry.id, error })
      await instance?.[Symbol.asyncDispose]().catch(() => {})
      return null
    }
    if (instance !== null) this.#settle(entry, instance)
    return instance
  }

  #settle(entry: Entry, instance: Instance): void {
    entry.instance = instance
    entry.ready = Promise.resolve(instance)
    if (entry.state === 'starting') entry.state = 'running'
    // One that goes on resting keeps what is recorded of its last use.
    if (!instance.frozen) this.#rests.remove(entry.id)
    this.#watch(entry, instance)
  }

  #watch(entry: Entry, instance: Instance): void {
    if (entry.state === 'running') entry.activity.runsOn(instance)
    void instance.exited.then((exit) => {
      if (entry.instance !== instance || entry.state !== 'running' || this.#closing.signal.aborted) return
      this.#log.warn('an instance ended by itself', { instance: entry.id, owner: entry.owner.name, ...exit })
      this.#emit(entry, { type: 'exited', exit })
      entry.instance = null
      entry.activity.runsOn(null)
      const now = this.#clock.monotonic()
      entry.exits = entry.exits.filter((at) => now - at < restartWindowMs)
      entry.exits.push(now)
      void instance[Symbol.asyncDispose]().catch(() => {})
      this.#startAgain(entry, entry.exits.length - 1)
    })
  }

  /** `attempt` 0 starts at once. */
  #startAgain(entry: Entry, attempt: number): void {
    entry.state = 'starting'
    const ready = this.#track(this.#restart(entry, attempt))
    entry.ready = ready
    ready.catch(() => {})
  }

  async #restart(entry: Entry, firstAttempt: number): Promise<Instance> {
    let reason = 'it ended too often'
    for (let attempt = firstAttempt; attempt < restartsMax; attempt++) {
      if (attempt > 0) {
        const ms = Math.min(restartBackoffMsMin * 2 ** (attempt - 1), restartBackoffMsMax)
        const cut = AbortSignal.any([this.#closing.signal, entry.ending.signal])
        await this.#clock.sleep(ms, cut).catch(() => {})
      }
      this.#refuseWhenClosing()
      if (entry.state === 'ending')
        throw new PlatformError('workload_not_found', 'this instance is being removed')
      try {
        const instance = await this.#upkeep.run(() =>
          this.#runtime.restart(this.#runtimeSpec(entry.id, entry.spec)),
        )
        await this.#recordRestart(entry, instance)
        this.#settle(entry, instance)
        this.#emit(entry, { type: 'restarted' })
        return instance
      } catch (error) {
        this.#log.error('an instance could not be started again', { instance: entry.id, attempt, error })
        reason = PlatformError.is(error) ? error.message : 'it could not be started again'
        if (PlatformError.is(error) && error.code === 'not_found') break
      }
    }
    if (entry.state === 'starting') entry.state = 'failed'
    this.#emit(entry, { type: 'failed', reason })
    throw new PlatformError('workload_unavailable', `the instance does not run: ${reason}`)
  }

  async #recordRestart(entry: Entry, instance: Instance): Promise<void> {
    try {
      const updated = await this.#store.update<InstanceRecord>(
        instanceKey(entry.owner, entry.id),
        entry.version,
        { body: this.#runningRecord(entry, instance.handle) },
      )
      entry.version = updated.version
    } catch (error) {
      await instance.stop().catch(() => {})
      await instance[Symbol.asyncDispose]().catch(() => {})
      throw error
    }
  }

  /** Resolves when no launch, restart or removal is under way. */
  async settled(): Promise<void> {
    while (this.#pending.size > 0) await Promise.allSettled(this.#pending)
  }

  /**
   * Lets go of every instance: with `keepInstances` they go on running and the next start adopts them, without it
   * they are stopped, their files stay, and the next start starts them again. Idempotent.
   */
  async close(options: { keepInstances: boolean }): Promise<void> {
    this.#closing.abort(
      new PlatformError('unavailable', 'the platform is stopping', { retryAfterSeconds: 5 }),
    )
    this.#standby[Symbol.dispose]()
    await this.settled()
    await this.#rests.addAll(this.#rested(options))
    await Promise.all(
      [...this.#entries.values()].map(async (entry) => {
        const { instance } = entry
        if (instance === null) return
        entry.instance = null
        entry.activity.runsOn(null)
        try {
          if (!options.keepInstances) await instance.stop()
        } catch (error) {
          this.#log.error('an instance could not be stopped', { instance: entry.id, error })
        } finally {
          await instance[Symbol.asyncDispose]().catch(() => {})
        }
      }),
    )
    this.#entries.clear()
    this.#listeners.clear()
  }

  /** Those whose last use is told to the next start: with machines that go on running, only those that rest. */
  #rested({ keepInstances }: { keepInstances: boolean }): {
    owner: InstanceOwner
    id: string
    lastUsedAt: number
  }[] {
    if (keepInstances) return []
    const stopped = [...this.#entries.values()].filter(({ state }) => state !== 'ending')
    return stopped.map(({ owner, id, activity }) => ({ owner, id, lastUsedAt: activity.lastUsedAt }))
  }

  #fresh(id: string, owner: InstanceOwner): Pick<Entry, 'ending' | 'gone' | 'activity' | 'exits'> {
    const activity = new Activity({
      instanceId: id,
      standby: this.#standby,
      clock: this.#clock,
      log: this.#log,
      lastUsedAt: this.#rests.lastUsedAt(id) ?? this.#clock.now(),
      onRest: (lastUsedAt) => this.#rests.add(owner, id, lastUsedAt),
      onWake: () => this.#rests.remove(id),
    })
    return { ending: new AbortController(), gone: null, activity, exits: [] }
  }

  #refuseWhenClosing(): void {
    if (this.#closing.signal.aborted) throw this.#closing.signal.reason
  }

  #track<Result>(work: Promise<Result>): Promise<Result> {
    this.#pending.add(work)
    const done = () => this.#pending.delete(work)
    work.then(done, done)
    return work
  }

  #emit(entry: Entry, change: InstanceChange): void {
    for (const listener of this.#listeners) listener(entry.owner, entry.id, change)
  }

  #runtimeSpec(id: string, spec: NewInstance): InstanceSpec {
    return { ...spec, id, signal: AbortSignal.timeout(launchTimeoutMsMax) }
  }

  #runningRecord(entry: Entry, handle: InstanceHandle): InstanceRecord {
    const { env: _, ...spec } = entry.spec
    return { state: 'running', owner: entry.owner, handle, spec, env: entry.sealedEnv }
  }

  #sealEnv(id: string, env: Record<string, string>): string {
    return this.#secrets.seal(JSON.stringify(env), `instance:${id}`)
  }

  #openEnv(id: string, sealed: string): Record<string, string> {
    return JSON.parse(this.#secrets.open(sealed, `instance:${id}`)) as Record<string, string>
  }
}

const notStarted = Promise.reject(new PlatformError('workload_unavailable', 'the instance does not run'))
notStarted.catch(() => {})

async function abortable<Result>(work: Promise<Result>, signal: AbortSignal | undefined): Promise<Result> {
  if (!signal) return await work
  signal.throwIfAborted()
  return await new Promise<Result>((resolve, reject) => {
    const onAbort = () => reject(signal.reason)
    signal.addEventListener('abort', onAbort, { once: true })
    work.then(resolve, reject).finally(() => signal.removeEventListener('abort', onAbort))
  })
}
