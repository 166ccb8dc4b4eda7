/** Sandboxes: named machines that people and agents run code in. This door has the resource and its leases. */
import { join } from 'node:path'
import { PlatformError } from '../errors.ts'
import type { Instances } from '../instances/index.ts'
import { Background } from '../lib/background.ts'
import { checkName } from '../lib/checks.ts'
import type { Clock } from '../lib/clock.ts'
import { randomText } from '../lib/ids.ts'
import type { Logger } from '../lib/log.ts'
import type { SecretBox } from '../lib/secret-box.ts'
import type { Page, Store } from '../spec/store.ts'
import type { Logs } from '../telemetry/index.ts'
import { SandboxArchives } from './archives.ts'
import { SandboxChanges } from './changes.ts'
import { type CreationImages, type FoundOrCreated, SandboxCreation } from './creation.ts'
import { SandboxDeployments, type SandboxLimits } from './deployments.ts'
import { checkSameName, dockerConfigOf, draftOf, memoryMbMax, type SandboxDraft } from './draft.ts'
import { SandboxExpiry } from './expiry.ts'
import { SandboxInstanceNotes } from './instance-notes.ts'
import { type SandboxLease, SandboxLeases } from './leases.ts'
import { type MachineImages, SandboxMachines } from './machines.ts'
import { SandboxOutput } from './output-lines.ts'
import type { ProcessRecord, ProcessStart } from './processes.ts'
import { type SandboxBody, type StoredSandbox, sandboxKind, sandboxView, withEvent } from './record.ts'
import { notFound, type SandboxListQuery, SandboxRecords } from './records.ts'
import { SandboxRecovery } from './recovery.ts'
import { type SandboxDependent, SandboxRemoval } from './removal.ts'
import { ProcessRestarts } from './restarts.ts'
import type { SandboxInput, SandboxView } from './schema.ts'
import { Sealing } from './sealing.ts'
import { type Announced, SandboxSources, type SourceBuilds, type SourceImages } from './sources.ts'
import { type SandboxEndings, SandboxTurns } from './turns.ts'
import { SandboxUpgrades } from './upgrades.ts'

export { memoryMbDefault, programPorts, sandboxApiPort, sandboxApiPorts } from './draft.ts'
export { becomeUser, userEnv } from './identity.ts'
export type { SandboxLease } from './leases.ts'
export {
  Previews,
  type PreviewTarget,
  previewInputSchema,
  previewSchema,
  previewTokenInputSchema,
  previewTokenSchema,
} from './previews.ts'
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
export { sandboxInputSchema, sandboxSchema } from './schema.ts'
export {
  type ForkAnswer,
  type ForkInput,
  forkAnswerSchema,
  forkInputSchema,
  restoreAnswerSchema,
  type SnapshotBody,
  Snapshots,
  type StoredSnapshot,
  sandboxSnapshotInputSchema,
  snapshotInputSchema,
  snapshotReference,
  snapshotSchema,
} from './snapshots.ts'

export interface SandboxesOptions {
  store: Store
  instances: Instances
  images: MachineImages & CreationImages & SourceImages
  secrets: SecretBox
  clock: Clock
  log: Logger
  /** Process records go to `<dataDir>/sandboxes/<instance id>.processes`. */
  dataDir: string
  /** What images are built with from source, and what its logs are kept in; absent: none are built. */
  builds?: SourceBuilds
  logs?: Pick<Logs, 'remove'>
  /** What the operator allows; absent: only the limits of the kind itself. */
  limits?: SandboxLimits
  /** Where sandboxes run whose client named no region, as answers and BL_REGION tell it; absent: they tell none. */
  region?: string
}

export class Sandboxes {
  /** What their processes write. */
  readonly output: SandboxOutput
  readonly #records: SandboxRecords
  readonly #instances: Instances
  readonly #sealing: Sealing
  readonly #leases: SandboxLeases
  readonly #clock: Clock
  readonly #expiry: SandboxExpiry
  readonly #turns: SandboxTurns
  readonly #removal: SandboxRemoval
  readonly #creation: SandboxCreation
  readonly #changes: SandboxChanges
  readonly #archives: SandboxArchives
  readonly #restarts: ProcessRestarts
  readonly #recovery: SandboxRecovery
  readonly #sources: SandboxSources | null
  readonly #background: Background
  readonly #unlisten: () => void
  readonly #limits: SandboxLimits
  readonly #region: string | undefined

  constructor(options: SandboxesOptions) {
    const { store, instances, images, clock, log, region } = options
    const limits = options.limits ?? { sandboxesMax: Number.POSITIVE_INFINITY, memoryMbMax }
    const records = new SandboxRecords(store)
    const sealing = new Sealing(options.secrets)
    const background = new Background((error) => {
      if (!PlatformError.is(error)) log.error('work on a sandbox failed behind its request', { error })
    })
    const expiry = new SandboxExpiry({
      instances,
      clock,
      log,
      due: (workspace, name) => this.#due(workspace, name),
    })
    const leases = new SandboxLeases({
      instances,
      filesDir: join(options.dataDir, 'sandboxes'),
      clock,
      log,
      read: (workspace, name) => turns.read(workspace, name),
      upgrades: new SandboxUpgrades(records, clock),
      programFailed: (id, reason) => background.run(notes.programFailed(id, reason)),
      endedForMemory: (id, process) => background.run(notes.endedForMemory(id, process)),
      background,
    })
    const notes = new SandboxInstanceNotes({ instances, records, leases, clock })
    const restarts = new ProcessRestarts({ leases, clock, log })
    const machines = new SandboxMachines({ instances, images, leases, background, region })
    const endings: SandboxEndings = {
      steps: (sandbox) => removal.endingSteps(sandbox),
      ended: (sandbox) => removal.noteEnded(sandbox),
    }
    const turns = new SandboxTurns({ records, machines, leases, expiry, clock, endings })
    const removal = new SandboxRemoval({
      store,
      records,
      turns,
      machines,
      leases,
      expiry,
      background,
      clock,
    })
    const deployments = new SandboxDeployments({
      store,
      records,
      machines,
      removal,
      sealing,
      leases,
      restarts,
      expiry,
      clock,
      limits,
      background,
    })
    const archives = new SandboxArchives({ ...options, records, leases, restarts, expiry, background })
    this.output = new SandboxOutput({ leases, clock })
    this.#records = records
    this.#instances = instances
    this.#sealing = sealing
    this.#leases = leases
    this.#clock = clock
    this.#expiry = expiry
    this.#turns = turns
    this.#removal = removal
    this.#archives = archives
    this.#restarts = restarts
    this.#background = background
    this.#limits = limits
    this.#region = region
    this.#creation = new SandboxCreation({
      records,
      turns,
      deployments,
      removal,
      images,
      background,
      clock,
    })
    const { builds, logs } = options
    this.#sources =
      builds && logs
        ? new SandboxSources({ builds, images, logs, records, turns, deployments, removal, sealing, clock })
        : null
    this.#changes = new SandboxChanges({
      records,
      turns,
      deployments,
      sources: this.#sources,
      sealing,
      images,
      clock,
      memoryMbMax: limits.memoryMbMax,
    })
    this.#recovery = new SandboxRecovery({
      store,
      records,
      instances,
      leases,
      expiry,
      archives,
      removal,
      deployments,
      sources: this.#sources,
      background,
      clock,
    })
    this.#unlisten = instances.onChange((owner, id, change) => {
      if (owner.kind === sandboxKind) background.run(notes.change(owner, id, change))
    })
  }

  addDependent(dependent: SandboxDependent): void {
    this.#removal.addDependent(dependent)
  }

  /** At start, after `instances.recover()` and `new Previews()`: brings records and instances into agreement, sets the deadlines. */
  async open(): Promise<void> {
    await this.#recovery.run()
  }

  /**
   * Resolves when the sandbox can be used, or, while its image is still being pulled after `pullAnswerMsMax`, in the
   * state DEPLOYING.
   * @throws bad_request, already_exists, and what starting an instance throws; then no record is left
   */
  async create(workspace: string, input: SandboxInput, options: { actor: string }): Promise<StoredSandbox> {
    return await this.#creation.create(this.#wanted(workspace, input, options))
  }

  /** As `create`, unless there is a sandbox of this name. @throws as `create` */
  async findOrCreate(
    workspace: string,
    input: SandboxInput,
    options: { actor: string },
  ): Promise<FoundOrCreated> {
    return await this.#creation.findOrCreate(this.#wanted(workspace, input, options))
  }

  #wanted(workspace: string, input: SandboxInput, options: { actor: string }) {
    this.#background.refuseWhenClosing()
    const name = checkName(input.metadata?.name || `sandbox-${randomText(10)}`)
    const draft = draftOf(input, null, this.#clock.now(), this.#limits.memoryMbMax)
    return { workspace, name, draft, ...dockerConfigOf(input), ...options }
  }

  /** A sandbox of an image that is built from an archive to be uploaded. @throws bad_request, already_exists */
  async createFromSource(
    workspace: string,
    input: SandboxInput,
    options: { actor: string; origin: string },
  ): Promise<Announced> {
    this.#background.refuseWhenClosing()
    const name = checkName(input.metadata?.name || `sandbox-${randomText(10)}`)
    return await this.#fromSource.create({ workspace, name, ...options }, (image) =>
      draftOf(ofImage(input, image), null, this.#clock.now(), this.#limits.memoryMbMax),
    )
  }

  /** As `createFromSource`, for one that there is: it goes on as it is until then. @throws not_found, conflict */
  async updateFromSource(
    workspace: string,
    name: string,
    input: SandboxInput,
    options: { actor: string; origin: string },
  ): Promise<Announced> {
    this.#background.refuseWhenClosing()
    checkSameName(input, name)
    return await this.#fromSource.update({ workspace, name, ...options }, (previous, image) =>
      draftOf(ofImage(input, image), previous, this.#clock.now(), this.#limits.memoryMbMax),
    )
  }

  get #fromSource(): SandboxSources {
    if (this.#sources !== null) return this.#sources
    throw new PlatformError('not_implemented', 'upload=true: this platform builds no images')
  }

  /** @throws not_found */
  async get(workspace: string, name: string): Promise<StoredSandbox> {
    const found = await this.#turns.read(workspace, name)
    if (!found) throw notFound(name)
    return found
  }

  /** Runs `work` while the sandbox cannot be removed or replaced. @throws not_found */
  whileExists<Result>(
    workspace: string,
    name: string,
    work: (sandbox: StoredSandbox) => Promise<Result>,
  ): Promise<Result> {
    return this.#turns.whileExists(workspace, name, work)
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
    await this.#turns.read(over.workspace, over.name)
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
    this.#background.refuseWhenClosing()
    return await this.#changes.update(workspace, name, input, options.actor)
  }

  /**
   * Deletes a sandbox with its files, its previews and everything in it; answers its last state. Usually nothing is
   * left when this resolves; a removal that takes longer goes on. @throws not_found
   */
  async remove(workspace: string, name: string): Promise<StoredSandbox> {
    this.#background.refuseWhenClosing()
    return await this.#removal.remove(workspace, name)
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

  /** A new sandbox as `draft` says. @throws already_exists, and what starting an instance throws */
  async launch(
    workspace: string,
    name: string,
    draft: SandboxDraft,
    options: { actor: string; message: string },
  ): Promise<StoredSandbox> {
    this.#background.refuseWhenClosing()
    return await this.#creation.create({ workspace, name: checkName(name), draft, ...options })
  }

  /**
   * A new machine for a sandbox, with the seed of what `draftOf` makes of the sandbox as it is: the old one serves until
   * the new one runs. @throws not_found, conflict for one that is on its way to something else
   */
  async rebuild(
    workspace: string,
    name: string,
    draftOf: (current: SandboxDraft, sandbox: StoredSandbox) => SandboxDraft,
    options: { actor: string; message: string },
  ): Promise<StoredSandbox> {
    this.#background.refuseWhenClosing()
    return await this.#changes.rebuild(workspace, name, draftOf, options)
  }

  /** What a sandbox is to be, secrets in the clear. */
  draftOf(sandbox: StoredSandbox): SandboxDraft {
    return this.#sealing.draftOf(sandbox)
  }

  /**
   * Runs `work` with what runs in a sandbox that is DEPLOYED or ARCHIVED, to be started elsewhere, and what is known of
   * that and of what ended, to go on elsewhere; nothing is started
   * meanwhile. For who keeps the sandbox from being changed, as `whileExists` does. @throws as `acquire`
   */
  async whilePaused<Result>(
    sandbox: StoredSandbox,
    work: (starts: ProcessStart[], records: ProcessRecord[]) => Promise<Result>,
  ): Promise<Result> {
    if (sandbox.body.status === 'ARCHIVED') return await work(this.#archives.startsOf(sandbox), [])
    using lease = await this.#leases.acquire(sandbox.workspace, sandbox.name)
    using paused = await lease.processes.pause()
    return await work(await this.#restarts.of(lease, paused.running), lease.processes.known())
  }

  /** Adds an event to a sandbox that is still there; its status stays. */
  async note(sandbox: StoredSandbox, event: { type: string; message: string }): Promise<void> {
    const found = await this.#records.get(sandbox.workspace, sandbox.name)
    if (found?.body.uid !== sandbox.body.uid) return
    await this.#records.change(found, (current) =>
      current.uid === sandbox.body.uid
        ? withEvent(current, this.#clock.now(), { ...event, status: current.status })
        : null,
    )
  }

  async #changeArchive(
    workspace: string,
    name: string,
    begin: (sandbox: StoredSandbox) => Promise<StoredSandbox>,
  ): Promise<StoredSandbox> {
    this.#background.refuseWhenClosing()
    return await this.#turns.run(workspace, name, async () => {
      const existing = await this.#turns.current(workspace, name)
      if (!existing || existing.body.status === 'DELETING') throw notFound(name)
      return await begin(existing)
    })
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

  /**
   * As it is answered. `showSecrets`: with the values of its environment. `created`: to who creates it, who is told the
   * secrets of its proxy that way as they were sent, and never again.
   */
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
      ...(options.created ? { proxySecrets: this.#sealing.proxySecrets(sandbox.body) } : {}),
    })
  }

  /** Lets go of timers and listeners after what is under way ended; `instances.close` decides about the machines. */
  async close(): Promise<void> {
    this.#background.close()
    this.#expiry[Symbol.dispose]()
    this.#unlisten()
    await this.settled()
    await this.#leases.close()
  }

  /** Resolves when nothing goes on behind answered requests. */
  settled(): Promise<void> {
    return this.#background.settled()
  }

  async #due(workspace: string, name: string): Promise<void> {
    this.#background.refuseWhenClosing()
    await this.#turns.run(workspace, name, async () => {
      const found = await this.#records.get(workspace, name)
      if (!found) return
      if (this.#expiry.isForgotten(found)) await this.#removal.forget(found)
      else this.#expiry.watch(await this.#turns.kept(found))
    })
  }
}

function ofImage(input: SandboxInput, image: string): SandboxInput {
  return { ...input, spec: { ...input.spec, runtime: { ...input.spec?.runtime, image } } }
}
