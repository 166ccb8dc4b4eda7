/** Sandboxes: named machines that people and agents run code in. This door has the resource and its leases. */
import { join } from 'node:path'
import { PlatformError } from '../errors.ts'
import type { ResolvedImage } from '../images/index.ts'
import type {
  Commit,
  InstanceChange,
  InstanceOwner,
  InstanceState,
  Instances,
  NewInstance,
} from '../instances/index.ts'
import type { Clock } from '../lib/clock.ts'
import { randomText } from '../lib/ids.ts'
import { KeyedLock } from '../lib/keyed-lock.ts'
import type { Logger } from '../lib/log.ts'
import type { SecretBox } from '../lib/secret-box.ts'
import type { Instance } from '../spec/runtime.ts'
import type { BatchStep, Page, Store } from '../spec/store.ts'
import { SandboxArchives } from './archives.ts'
import {
  checkSandboxName,
  draftOf,
  memoryMbMax,
  needsNewInstance,
  type SandboxDraft,
  storageMbOf,
} from './draft.ts'
import { SandboxExpiry } from './expiry.ts'
import { becomeUser, isSandboxApi, wantedUser } from './identity.ts'
import { type SandboxLease, SandboxLeases } from './leases.ts'
import {
  indexesOf,
  isReplaceable,
  mayExpire,
  type SandboxBody,
  type StoredSandbox,
  sandboxKind,
  sandboxView,
  withEvent,
} from './record.ts'
import { keyOf, notFound, type SandboxListQuery, SandboxRecords } from './records.ts'
import type { SandboxEvent, SandboxInput, SandboxView } from './schema.ts'
import { Sealing } from './sealing.ts'
import { SandboxUpgrades } from './upgrades.ts'

export { defaultSandboxImage, memoryMbDefault, memoryMbMax, memoryMbMin, reservedPorts } from './draft.ts'
export type { SandboxLease } from './leases.ts'
export {
  Previews,
  type PreviewTarget,
  previewInputSchema,
  previewSchema,
  previewTokenInputSchema,
  previewTokenSchema,
} from './previews.ts'
export { maskedValue, type StoredSandbox } from './record.ts'
export type { SandboxListQuery } from './records.ts'
export {
  executionSchema,
  executionStatuses,
  executionView,
  Schedules,
  scheduleInputSchema,
  scheduleMetricsSchema,
  scheduleSchema,
  scheduleView,
} from './schedules.ts'
export {
  type SandboxInput,
  type SandboxStatus,
  type SandboxView,
  sandboxInputSchema,
  sandboxSchema,
} from './schema.ts'

/** Processes and threads in one sandbox. */
export const pidsPerSandboxMax = 4096
/** A removal that takes longer goes on after the request was answered. */
export const removeWaitMsMax = 10_000

/** How long an answer to create waits for an image to be pulled: less than clients and proxies wait for an answer. */
export const pullAnswerMsMax = 50_000

/** What belongs to a sandbox and goes when it goes. */
export interface SandboxDependent {
  /** Steps that remove it, for the batch that removes the sandbox; `uid` is that of this one alone. */
  removal(workspace: string, sandbox: string, uid: string): Promise<BatchStep[]>
  /** Called after that batch. */
  removed(workspace: string, sandbox: string): void
}

export interface SandboxesOptions {
  store: Store
  instances: Instances
  images: {
    /** @throws bad_request */
    resolve(workspace: string, reference: string): Promise<ResolvedImage>
    /** A pull that has to be over before `resolve` can answer; null: none. @throws bad_request */
    prepare(
      workspace: string,
      reference: string,
      options: { dockerConfig?: string },
    ): Promise<{ pulling: Promise<unknown> } | null>
  }
  secrets: SecretBox
  clock: Clock
  log: Logger
  /** Process records go to `<dataDir>/sandboxes/<instance id>.processes`. */
  dataDir: string
  /** What the operator allows; absent: only the limits of the kind itself. */
  limits?: SandboxLimits
  /** Where sandboxes run whose client named no region, as answers and BL_REGION tell it; absent: they tell none. */
  region?: string
}

export interface SandboxLimits {
  /** In the whole platform. */
  sandboxesMax: number
  /** Of one sandbox, MiB. */
  memoryMbMax: number
}

export class Sandboxes {
  readonly #store: Store
  readonly #records: SandboxRecords
  readonly #instances: Instances
  readonly #images: SandboxesOptions['images']
  readonly #sealing: Sealing
  readonly #leases: SandboxLeases
  readonly #clock: Clock
  readonly #log: Logger
  readonly #lock = new KeyedLock()
  readonly #dependents: SandboxDependent[] = []
  readonly #expiry: SandboxExpiry
  readonly #archives: SandboxArchives
  readonly #background = new Set<Promise<unknown>>()
  readonly #closing = new AbortController()
  readonly #unlisten: () => void
  readonly #limits: SandboxLimits
  readonly #region: string | undefined

  constructor(options: SandboxesOptions) {
    this.#store = options.store
    this.#records = new SandboxRecords(options.store)
    this.#instances = options.instances
    this.#images = options.images
    this.#sealing = new Sealing(options.secrets)
    this.#limits = options.limits ?? { sandboxesMax: Number.POSITIVE_INFINITY, memoryMbMax }
    this.#region = options.region
    this.#clock = options.clock
    this.#log = options.log
    this.#leases = new SandboxLeases({
      instances: options.instances,
      filesDir: join(options.dataDir, 'sandboxes'),
      clock: options.clock,
      log: options.log,
      read: (workspace, name) => this.#read(workspace, name),
      upgrades: new SandboxUpgrades(this.#records, options.clock),
      programFailed: (id, reason) => this.#inBackground(this.#noteProgram(id, reason)),
    })
    this.#archives = new SandboxArchives({ ...options, records: this.#records, leases: this.#leases })
    this.#expiry = new SandboxExpiry({
      instances: options.instances,
      clock: options.clock,
      log: options.log,
      due: (workspace, name) => this.#due(workspace, name),
    })
    this.#unlisten = this.#instances.onChange((owner, id, change) => {
      if (owner.kind === sandboxKind) this.#inBackground(this.#noteChange(owner, id, change))
    })
  }

  addDependent(dependent: SandboxDependent): void {
    this.#dependents.push(dependent)
  }

  /** At start, after `instances.recover()` and `new Previews()`: brings records and instances into agreement, sets the deadlines. */
  async open(): Promise<void> {
    const known = new Map(this.#instances.owned(sandboxKind).map((owned) => [owned.id, owned]))
    await this.#leases.removeFilesExcept(new Set(known.keys()))
    for await (const sandbox of this.#records.every()) {
      const { instanceId } = sandbox.body
      const instance = instanceId === null ? undefined : known.get(instanceId)
      if (instanceId !== null) known.delete(instanceId)
      await this.#reconcile(sandbox, instance?.state)
    }
    // Made for an update or a create whose second write never came.
    for (const { id } of known.values()) {
      const { gone } = await this.#instances.destroy(id, (step) => this.#store.batch([step]))
      this.#inBackground(gone)
    }
  }

  async #reconcile(sandbox: StoredSandbox, instance: InstanceState | undefined): Promise<void> {
    const { status } = sandbox.body
    if (status === 'DELETING') {
      await this.#removeRecord(sandbox)
    } else if (status === 'TERMINATED' || (status === 'ARCHIVED' && instance === 'archived')) {
      this.#expiry.watch(sandbox)
    } else if ((status === 'ARCHIVING' || status === 'UNARCHIVING' || status === 'ARCHIVED') && instance) {
      this.#afterwards(sandbox, (await this.#archives.resume(sandbox)).done)
    } else if (instance === undefined || instance === 'failed') {
      const reason = instance
        ? 'its instance could not be brought back'
        : status === 'DEPLOYING'
          ? 'its creation was interrupted, create it again'
          : 'its instance was lost'
      this.#expiry.watch(
        await this.#records.change(sandbox, (current) =>
          current.status === 'FAILED' ? null : this.#failed(current, reason),
        ),
      )
    } else {
      if (instance !== 'starting' && instance !== 'running') this.#instances.revive(sandbox.body.instanceId!)
      const running = await this.#records.change(sandbox, (current) =>
        current.status === 'FAILED' ? this.#deployed(current, 'Runs again') : null,
      )
      this.#expiry.watch(running)
      this.#warm(running)
    }
  }

  /**
   * Resolves when the sandbox can be used, or, while its image is still being pulled after `pullAnswerMsMax`, in the
   * state DEPLOYING. With `createIfNotExist` answers the sandbox of this name if there is one.
   * @throws bad_request, already_exists, and what starting an instance throws; then no record is left
   */
  async create(
    workspace: string,
    input: SandboxInput,
    options: { actor: string; createIfNotExist?: boolean },
  ): Promise<StoredSandbox> {
    this.#refuseWhenClosing()
    const name = checkSandboxName(input.metadata?.name || `sandbox-${randomText(10)}`)
    const draft = draftOf(input, null, this.#clock.now(), this.#limits.memoryMbMax)
    let pull: { pending: StoredSandbox; pulling: Promise<unknown> } | null = null
    const answer = await this.#lock.run(lockKey(workspace, name), async () => {
      const existing = await this.#current(workspace, name)
      if (existing && !isReplaceable(existing.body.status)) {
        if (options.createIfNotExist && existing.body.status !== 'DELETING') return existing
        throw new PlatformError(
          'already_exists',
          `the sandbox "${name}" exists already in this workspace (status ${existing.body.status})`,
          existing.body.status === 'DELETING' ? { details: { reason: 'DELETION_IN_PROGRESS' } } : {},
        )
      }
      this.#refuseBeyondLimits(draft)
      const missing = await this.#images.prepare(workspace, draft.spec.image, dockerConfigOf(input))
      if (missing === null) return await this.#launch(workspace, name, draft, options.actor, existing)
      const pending = await this.#recordPull(workspace, name, draft, options.actor, existing)
      pull = { pending, pulling: missing.pulling }
      return pending
    })
    return pull === null ? answer : await this.#launchPulled(pull, draft, options.actor)
  }

  /** A record that shows what goes on while the image comes. */
  async #recordPull(
    workspace: string,
    name: string,
    draft: SandboxDraft,
    actor: string,
    replaced: StoredSandbox | null,
  ): Promise<StoredSandbox> {
    const now = this.#clock.now()
    const started = deploymentStarted(now, `Deployment started: pulling ${draft.spec.image}`)
    const body = this.#sealing.bodyOf(draft, {
      uid: randomText(20),
      createdBy: actor,
      updatedBy: actor,
      instanceId: null,
      status: 'DEPLOYING',
      events: [started],
    })
    const gone = replaced ? await this.#removal(replaced) : []
    const creation: BatchStep = {
      op: 'create',
      input: { kind: sandboxKind, workspace, name, body, indexes: indexesOf(body), createdAt: now },
    }
    const results = await this.#endingAlong(replaced?.body.instanceId ?? null, (more) =>
      this.#store.batch([...gone, creation, ...more]),
    )
    if (replaced) this.#afterRemoval(replaced)
    return results[gone.length] as StoredSandbox
  }

  async #launchPulled(
    { pending, pulling }: { pending: StoredSandbox; pulling: Promise<unknown> },
    draft: SandboxDraft,
    actor: string,
  ): Promise<StoredSandbox> {
    const { workspace, name } = pending
    let answered = false
    const inTurn = <Result>(work: (current: StoredSandbox | null) => Promise<Result>) =>
      this.#lock.run(lockKey(workspace, name), async () => {
        const found = await this.#current(workspace, name)
        return await work(
          found?.body.uid === pending.body.uid && found.body.status === 'DEPLOYING' ? found : null,
        )
      })
    const launched = (async () => {
      try {
        await pulling
        this.#refuseWhenClosing()
        return await inTurn(async (current) => {
          if (current === null) {
            throw new PlatformError(
              'conflict',
              `the sandbox "${name}" was deleted while its image was pulled`,
            )
          }
          this.#refuseBeyondLimits(draft)
          const sandbox = await this.#replaceInstance(current, draft, actor, 'Deployment successful')
          this.#leases.set(sandbox, sandbox.body.instanceId!)
          this.#expiry.watch(sandbox)
          this.#warm(sandbox)
          return sandbox
        })
      } catch (error) {
        // Whoever was told of it finds it failed; who was not is told now, and nothing is left.
        const reason = PlatformError.is(error) ? error.message : 'it could not be started'
        await inTurn(async (current) => {
          if (current === null) return
          if (answered) await this.#records.change(current, (body) => this.#failed(body, reason))
          else await this.#removeRecord(current)
        })
        throw error
      }
    })()
    this.#inBackground(launched)
    const stop = new AbortController()
    const late = this.#clock.sleep(pullAnswerMsMax, stop.signal).then(
      async () => {
        answered = true
        return (await this.#records.get(workspace, name)) ?? pending
      },
      () => launched,
    )
    try {
      return await Promise.race([launched, late])
    } finally {
      stop.abort()
    }
  }

  #refuseBeyondLimits(draft: SandboxDraft): void {
    const { sandboxesMax, memoryMbMax: allowedMb } = this.#limits
    if (draft.spec.memoryMb > allowedMb) {
      throw new PlatformError(
        'bad_request',
        `spec.runtime.memory is ${draft.spec.memoryMb} MB; this platform allows at most ${allowedMb} (sandboxMemoryMbMax)`,
      )
    }
    const held = this.#instances.owned(sandboxKind).filter(({ state }) => state !== 'archived')
    if (held.length >= sandboxesMax) {
      throw new PlatformError(
        'usage_limit_exceeded',
        `this platform holds ${sandboxesMax} sandboxes, the most it allows (sandboxesMax): delete one first`,
      )
    }
  }

  async #launch(
    workspace: string,
    name: string,
    draft: SandboxDraft,
    actor: string,
    replaced: StoredSandbox | null,
  ): Promise<StoredSandbox> {
    const uid = randomText(20)
    const startedAt = this.#clock.now()
    const started = deploymentStarted(startedAt, 'Deployment started')
    const gone = replaced ? await this.#removal(replaced) : []
    let created: StoredSandbox | undefined
    const instance = await this.#start(workspace, name, draft, async (step, instanceId) => {
      const body = this.#deployed(
        this.#sealing.bodyOf(draft, {
          uid,
          createdBy: actor,
          updatedBy: actor,
          instanceId,
          status: 'DEPLOYING',
          events: [started],
        }),
        'Deployment successful',
      )
      const creation: BatchStep = {
        op: 'create',
        input: { kind: sandboxKind, workspace, name, body, indexes: indexesOf(body), createdAt: startedAt },
      }
      const steps = [...gone, creation, step]
      const results = await this.#endingAlong(replaced?.body.instanceId ?? null, (more) =>
        this.#store.batch([...steps, ...more]),
      )
      created = results[gone.length] as StoredSandbox
    })
    if (replaced) this.#afterRemoval(replaced)
    this.#leases.set(created!, instance.id)
    this.#expiry.watch(created!)
    this.#warm(created!)
    return created!
  }

  /** @throws not_found */
  async get(workspace: string, name: string): Promise<StoredSandbox> {
    const found = await this.#read(workspace, name)
    if (!found) throw notFound(name)
    return found
  }

  /** Runs `work` while the sandbox cannot be removed or replaced. @throws not_found */
  async whileExists<Result>(
    workspace: string,
    name: string,
    work: (sandbox: StoredSandbox) => Promise<Result>,
  ): Promise<Result> {
    return await this.#lock.run(lockKey(workspace, name), async () => {
      const found = await this.#current(workspace, name)
      if (!found || found.body.status === 'TERMINATED' || found.body.status === 'DELETING')
        throw notFound(name)
      return await work(found)
    })
  }

  list(workspace: string, query: SandboxListQuery): Promise<Page<SandboxBody>> {
    return this.#records.list(workspace, query)
  }

  /** The newest sandbox that lives under an external id. @throws not_found */
  async getByExternalId(workspace: string, externalId: string): Promise<StoredSandbox> {
    const found = await this.#records.getByExternalId(workspace, externalId)
    return this.#expiry.isOver(found) ? await this.#afterExpiry(found, externalId) : found
  }

  /** The newest may just be over, and an older one live on. */
  async #afterExpiry(over: StoredSandbox, externalId: string): Promise<StoredSandbox> {
    await this.#read(over.workspace, over.name)
    return await this.#records.getByExternalId(over.workspace, externalId)
  }

  /**
   * Replaces metadata and spec. A change of image, memory, storage or environment makes a new instance with empty
   * files; anything else leaves the running one alone.
   * @throws not_found, conflict when it is terminated or being deleted, bad_request
   */
  async update(
    workspace: string,
    name: string,
    input: SandboxInput,
    options: { actor: string },
  ): Promise<StoredSandbox> {
    this.#refuseWhenClosing()
    if (input.metadata?.name && input.metadata.name !== name) {
      throw new PlatformError(
        'bad_request',
        `metadata.name: a sandbox cannot be renamed; send "${name}" or leave it out`,
      )
    }
    // Outside of the lock: the sandbox can be used and deleted while an image comes.
    const image = input.spec?.runtime?.image
    if (image) await (await this.#images.prepare(workspace, image, dockerConfigOf(input)))?.pulling
    return await this.#lock.run(lockKey(workspace, name), async () => {
      const existing = await this.#current(workspace, name)
      if (!existing) throw notFound(name)
      const { status } = existing.body
      if (status !== 'DEPLOYED' && status !== 'FAILED') {
        throw new PlatformError(
          'conflict',
          `the sandbox "${name}" cannot be changed, its status is ${status}`,
        )
      }
      const previous = this.#sealing.draftOf(existing)
      const draft = draftOf(input, previous, this.#clock.now(), this.#limits.memoryMbMax)
      const updated = needsNewInstance(previous, draft)
        ? await this.#replaceInstance(
            existing,
            draft,
            options.actor,
            'Deployment successful, with a new instance',
          )
        : await this.#records.change(existing, (current) => ({
            ...this.#sealing.bodyOf(draft, { ...current, updatedBy: options.actor }),
          }))
      if (updated.body.instanceId !== null && updated.body.status === 'DEPLOYED') {
        this.#leases.set(updated, updated.body.instanceId)
        this.#warm(updated)
      }
      this.#expiry.watch(updated)
      return updated
    })
  }

  /** The old instance serves until the new one runs; when that cannot be had, nothing has changed. */
  async #replaceInstance(
    existing: StoredSandbox,
    draft: SandboxDraft,
    actor: string,
    message: string,
  ): Promise<StoredSandbox> {
    const { workspace, name, body } = existing
    let updated: StoredSandbox | undefined
    await this.#start(workspace, name, draft, async (step, instanceId) => {
      updated = await this.#endingAlong(body.instanceId, (more) =>
        this.#records.change(
          existing,
          (current) =>
            this.#deployed(
              this.#sealing.bodyOf(draft, { ...current, updatedBy: actor, instanceId }),
              message,
            ),
          [step, ...more],
        ),
      )
    })
    return updated!
  }

  /**
   * Deletes a sandbox with its files, its previews and everything in it; answers its last state. Usually nothing is
   * left when this resolves; a removal that takes longer goes on. @throws not_found
   */
  async remove(workspace: string, name: string): Promise<StoredSandbox> {
    this.#refuseWhenClosing()
    const marked = Promise.withResolvers<StoredSandbox>()
    marked.promise.catch(() => {})
    const removal = this.#lock.run(lockKey(workspace, name), async () => {
      const existing = await this.#records.get(workspace, name)
      if (!existing) throw notFound(name)
      const deleting = await this.#markDeleting(existing)
      marked.resolve(deleting.sandbox)
      await deleting.gone
      await this.#removeRecord(deleting.sandbox)
      return deleting.sandbox
    })
    this.#inBackground(removal)
    removal.catch(marked.reject)
    const timeout = new AbortController()
    const late = this.#clock.sleep(removeWaitMsMax, timeout.signal).then(
      () => marked.promise,
      () => marked.promise,
    )
    try {
      return await Promise.race([removal, late])
    } finally {
      timeout.abort()
    }
  }

  /**
   * Packs a sandbox's files away; nothing of it runs then, and its processes are started anew when it comes back.
   * Answers while that goes on. @throws not_found, conflict unless it runs, not_implemented
   */
  archive(workspace: string, name: string): Promise<StoredSandbox> {
    return this.#changeArchive(workspace, name, (sandbox) => this.#archives.archive(sandbox))
  }

  /** Brings an archived sandbox back. As `archive`. @throws not_found, conflict unless it is archived, not_implemented */
  unarchive(workspace: string, name: string): Promise<StoredSandbox> {
    return this.#changeArchive(workspace, name, (sandbox) => this.#archives.unarchive(sandbox))
  }

  async #changeArchive(
    workspace: string,
    name: string,
    begin: (sandbox: StoredSandbox) => Promise<{ sandbox: StoredSandbox; done: Promise<void> }>,
  ): Promise<StoredSandbox> {
    this.#refuseWhenClosing()
    return await this.#lock.run(lockKey(workspace, name), async () => {
      const existing = await this.#current(workspace, name)
      if (!existing || existing.body.status === 'DELETING') throw notFound(name)
      const { sandbox, done } = await begin(existing)
      this.#expiry.unwatch(sandbox)
      this.#afterwards(sandbox, done)
      return sandbox
    })
  }

  /** Its policies count again, once it is what it is to be. */
  #afterwards({ workspace, name }: StoredSandbox, done: Promise<void>): void {
    const watch = async () => {
      try {
        await done
      } catch (error) {
        if (!this.#closing.signal.aborted) {
          this.#log.warn('an archive was not finished', { workspace, sandbox: name, error })
        }
      }
      const found = await this.#records.get(workspace, name)
      if (found && mayExpire(found.body.status)) this.#expiry.watch(found)
    }
    this.#inBackground(watch())
  }

  async #markDeleting(existing: StoredSandbox): Promise<{ sandbox: StoredSandbox; gone: Promise<void> }> {
    const { instanceId } = existing.body
    this.#leases.forget(existing.workspace, existing.name)
    let sandbox = existing
    const mark = async (more: BatchStep[]) => {
      sandbox = await this.#records.change(
        existing,
        (current) =>
          withEvent(current, this.#clock.now(), {
            type: 'deletion',
            status: 'DELETING',
            message: 'Deletion requested',
          }),
        more,
      )
    }
    if (instanceId === null || this.#instances.activity(instanceId) === null) {
      await mark([])
      return { sandbox, gone: Promise.resolve() }
    }
    const { gone } = await this.#instances.destroy(instanceId, (step) => mark([step]))
    return { sandbox, gone: gone.then(() => this.#leases.removeFiles(instanceId)) }
  }

  /**
   * The running sandbox, for as long as the lease is held. Waits while its instance is started again.
   * @throws workload_not_found when there is none, workload_unavailable when it does not run (now)
   */
  acquire(workspace: string, name: string, signal?: AbortSignal): Promise<SandboxLease> {
    return this.#leases.acquire(workspace, name, signal)
  }

  /** For a request of the sandbox's own programs: no use of it, and nothing to wake. @throws as `acquire` */
  acquireFromInside(workspace: string, name: string, signal?: AbortSignal): Promise<SandboxLease> {
    return this.#leases.acquireAsIs(workspace, name, signal)
  }

  /** As it is answered. `showSecrets`: with the values of its environment. */
  view(
    sandbox: StoredSandbox,
    origin: string,
    options: { showSecrets?: boolean; created?: boolean; events?: boolean } = {},
  ): SandboxView {
    const { instanceId } = sandbox.body
    const activity = instanceId === null ? null : this.#instances.activity(instanceId)
    return sandboxView(sandbox, {
      origin,
      clock: this.#clock,
      lastUsedAt: activity?.lastUsedAt ?? null,
      standby: activity?.standby ?? false,
      ...(this.#region === undefined ? {} : { region: this.#region }),
      events: options.events ?? true,
      ...(options.showSecrets ? { env: this.#sealing.env(sandbox.body) } : {}),
      ...(options.showSecrets || options.created
        ? { proxySecrets: this.#sealing.proxySecrets(sandbox.body) }
        : {}),
    })
  }

  /** Lets go of timers and listeners after what is under way ended; `instances.close` decides about the machines. */
  async close(): Promise<void> {
    this.#closing.abort(
      new PlatformError('unavailable', 'the platform is stopping', { retryAfterSeconds: 5 }),
    )
    this.#expiry[Symbol.dispose]()
    this.#unlisten()
    await this.settled()
    await this.#leases.close()
  }

  /** Resolves when nothing goes on behind answered requests. */
  async settled(): Promise<void> {
    while (this.#background.size > 0) await Promise.allSettled(this.#background)
  }

  /** Holds the image until the instance itself does. */
  async #start(workspace: string, name: string, draft: SandboxDraft, commit: Commit): Promise<Instance> {
    const resolving = this.#images.resolve(workspace, draft.spec.image)
    try {
      return await this.#instances.create(
        { kind: sandboxKind, workspace, name },
        resolving.then((image) => this.#instanceSpec(workspace, name, draft, image)),
        commit,
        async (instance, spec) => {
          if (spec.user) await becomeUser(instance.guest, spec.user)
        },
      )
    } finally {
      const image = await resolving.catch(() => null)
      image?.[Symbol.dispose]()
    }
  }

  #instanceSpec(workspace: string, name: string, draft: SandboxDraft, image: ResolvedImage): NewInstance {
    const own = { ...image.env, ...draft.env }
    const program = [...image.entrypoint, ...image.command]
    const user = wantedUser(image.user, own, program)
    const region = draft.spec.region ?? this.#region
    return {
      hostname: name,
      image: image.root,
      memoryMb: draft.spec.memoryMb,
      storageMb: storageMbOf(draft.spec),
      pidsMax: pidsPerSandboxMax,
      ...(user === '' ? {} : { user }),
      ...(program.length === 0 || isSandboxApi(program) ? {} : { program }),
      env: {
        ...(user === '' ? { HOME: '/root' } : {}),
        ...own,
        BL_NAME: name,
        BL_TYPE: 'sandbox',
        BL_WORKSPACE: workspace,
        ...(region === undefined ? {} : { BL_REGION: region }),
      },
      workingDir: image.workingDir || '/',
    }
  }

  #deployed(body: SandboxBody, message: string): SandboxBody {
    return withEvent(body, this.#clock.now(), { type: 'deployment', status: 'DEPLOYED', message })
  }

  #failed(body: SandboxBody, reason: string): SandboxBody {
    return withEvent(body, this.#clock.now(), {
      type: 'instance',
      status: 'FAILED',
      message: `Failed: ${reason}`,
    })
  }

  /** The record, after what its policies ask for by now. */
  async #read(workspace: string, name: string): Promise<StoredSandbox | null> {
    const found = await this.#records.get(workspace, name)
    return found && this.#expiry.isOver(found)
      ? await this.#lock.run(lockKey(workspace, name), () => this.#current(workspace, name))
      : found
  }

  /** As `#read`, for who holds the lock. */
  async #current(workspace: string, name: string): Promise<StoredSandbox | null> {
    const found = await this.#records.get(workspace, name)
    return found && this.#expiry.isOver(found) ? await this.#expire(found) : found
  }

  async #due(workspace: string, name: string): Promise<void> {
    this.#refuseWhenClosing()
    await this.#lock.run(lockKey(workspace, name), async () => {
      const found = await this.#records.get(workspace, name)
      if (!found) return
      if (this.#expiry.isForgotten(found)) await this.#removeRecord(found)
      else if (this.#expiry.isOver(found)) await this.#expire(found)
      else this.#expiry.watch(found)
    })
  }

  /** Terminates a sandbox whose time is over. */
  async #expire(sandbox: StoredSandbox): Promise<StoredSandbox> {
    const { instanceId } = sandbox.body
    this.#leases.forget(sandbox.workspace, sandbox.name)
    const terminated = await this.#endingAlong(instanceId, (more) =>
      this.#records.change(
        sandbox,
        (current) => {
          const now = this.#clock.now()
          const event = { type: 'expiration', status: 'TERMINATED', message: 'Its time was over' } as const
          return { ...withEvent(current, now, event), instanceId: null, terminatedAt: now }
        },
        more,
      ),
    )
    this.#expiry.watch(terminated)
    return terminated
  }

  /** Runs `write` with the step that marks an instance (if there is one) as ending; it is removed behind the answer. */
  async #endingAlong<Result>(
    instanceId: string | null,
    write: (steps: BatchStep[]) => Promise<Result>,
  ): Promise<Result> {
    if (instanceId === null || this.#instances.activity(instanceId) === null) return await write([])
    let result: { value: Result } | undefined
    const { gone } = await this.#instances.destroy(instanceId, async (step) => {
      result = { value: await write([step]) }
    })
    this.#inBackground(gone.then(() => this.#leases.removeFiles(instanceId)))
    // An instance that was ending already has its step written.
    return result ? result.value : await write([])
  }

  async #noteChange(owner: InstanceOwner, instanceId: string, change: InstanceChange): Promise<void> {
    const sandbox = await this.#records.get(owner.workspace, owner.name)
    if (!sandbox || sandbox.body.instanceId !== instanceId) return
    if (change.type === 'failed') this.#leases.forget(sandbox.workspace, sandbox.name)
    if (change.type === 'restarted') this.#warm(sandbox)
    await this.#records.change(sandbox, (current) => {
      if (current.instanceId !== instanceId) return null
      if (current.status !== 'DEPLOYED' && current.status !== 'FAILED') return null
      if (change.type === 'failed') return this.#failed(current, change.reason)
      const message =
        change.type === 'restarted'
          ? 'Started again from its files'
          : `Ended unexpectedly (${change.exit.reason.replaceAll('_', ' ')})`
      const status = change.type === 'restarted' ? 'DEPLOYED' : current.status
      return withEvent(current, this.#clock.now(), { type: 'instance', status, message })
    })
  }

  /** The sandbox can be used all the same, so its status stays; its owner finds the reason among the events. */
  async #noteProgram(instanceId: string, reason: string): Promise<void> {
    const owner = this.#instances.ownerOf(instanceId)
    const sandbox = owner && (await this.#records.get(owner.workspace, owner.name))
    if (!sandbox) return
    await this.#records.change(sandbox, (current) =>
      current.instanceId === instanceId
        ? withEvent(current, this.#clock.now(), {
            type: 'instance',
            status: current.status,
            message: `The image's own program (ENTRYPOINT and CMD) did not start: ${reason}`,
          })
        : null,
    )
  }

  async #removal(sandbox: StoredSandbox): Promise<BatchStep[]> {
    const dependents = await Promise.all(
      this.#dependents.map((dependent) =>
        dependent.removal(sandbox.workspace, sandbox.name, sandbox.body.uid),
      ),
    )
    return [...dependents.flat(), { op: 'remove', key: keyOf(sandbox) }]
  }

  async #removeRecord(sandbox: StoredSandbox): Promise<void> {
    await this.#store.batch(await this.#removal(sandbox))
    this.#afterRemoval(sandbox)
  }

  #afterRemoval(sandbox: StoredSandbox): void {
    this.#expiry.unwatch(sandbox)
    this.#leases.forget(sandbox.workspace, sandbox.name)
    for (const dependent of this.#dependents) dependent.removed(sandbox.workspace, sandbox.name)
  }

  #inBackground(work: Promise<unknown>): void {
    const logged = work.catch((error) => {
      if (!PlatformError.is(error)) this.#log.error('work on a sandbox failed behind its request', { error })
    })
    this.#background.add(logged)
    void logged.finally(() => this.#background.delete(logged))
  }

  #warm(sandbox: StoredSandbox): void {
    this.#inBackground(this.#leases.warm(sandbox.workspace, sandbox.name))
  }

  #refuseWhenClosing(): void {
    if (this.#closing.signal.aborted) throw this.#closing.signal.reason
  }
}

function deploymentStarted(nowMs: number, message: string): SandboxEvent {
  return { time: new Date(nowMs).toISOString(), type: 'deployment', status: 'DEPLOYING', message }
}

function dockerConfigOf(input: SandboxInput): { dockerConfig?: string } {
  const dockerConfig = input.spec?.runtime?.dockerConfig
  return dockerConfig ? { dockerConfig } : {}
}

function lockKey(workspace: string, name: string): string {
  return `${workspace}/${name}`
}
