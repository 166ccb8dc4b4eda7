/**
 * Deployments: what agents, functions, applications and jobs share. Code or an image becomes a revision, revisions get requests,
 * and what is served changes without a request lost.
 */
import { PlatformError } from '../errors.ts'
import { Background } from '../lib/background.ts'
import { badRequest, checkName } from '../lib/checks.ts'
import type { Clock } from '../lib/clock.ts'
import { sortableId } from '../lib/ids.ts'
import { KeyedLock } from '../lib/keyed-lock.ts'
import type { Logger } from '../lib/log.ts'
import type { SecretBox } from '../lib/secret-box.ts'
import type { RootFilesystem } from '../spec/runtime.ts'
import type { Page, Store } from '../spec/store.ts'
import { BuildEvents, type BuildOwner, type BuiltImage, type DeploymentBuild } from './build-events.ts'
import { applicationDraft, type DeploymentDraft, jobDraft, workloadDraft } from './draft.ts'
import type { Fleet } from './fleet/index.ts'
import { isOpen, type Passage, type Passing, passageOf } from './gates.ts'
import type { DeploymentImages } from './images.ts'
import { type JobRun, JobRuns } from './job-runs.ts'
import { type DeploymentKind, deploymentKinds, kindFacts, type ServedKind } from './kinds.ts'
import { type CallbackRules, DeploymentTriggers, type TriggerChange } from './own-triggers.ts'
import {
  type ApplicationUrl,
  beingDeleted,
  type DeploymentBody,
  hostOf,
  noTraffic,
  type Revision,
  revisionOf,
  type StoredDeployment,
  withEvent,
  withoutRevisions,
} from './record.ts'
import { type DeploymentListQuery, DeploymentRecords } from './records.ts'
import { type Caller, type DeploymentLease, type DeploymentRequest, DeploymentRequests } from './requests.ts'
import { NextRevisions } from './revisions.ts'
import { Rollouts } from './rollouts.ts'
import { withRouting } from './routing.ts'
import type { ApplicationInput, JobInput, WorkloadInput } from './schema.ts'
import { DeploymentSealing } from './sealing.ts'
import { statusOf } from './status.ts'
import { DeploymentTable, type TableEntry } from './table.ts'
import type { DeploymentViewOptions } from './view.ts'

export { ApplicationForks } from './forks.ts'
export type { Passage, Passing } from './gates.ts'
export { RevisionImages } from './images.ts'
export type { JobRun } from './job-runs.ts'
export { type DeploymentKind, deploymentKinds, kindFacts } from './kinds.ts'
export type { DeploymentOf } from './own-triggers.ts'
export { type DeploymentBody, numberOf, type Revision, revisionOf, type StoredDeployment } from './record.ts'
export {
  applicationInputSchema,
  applicationRevisionSchema,
  applicationSchema,
  jobInputSchema,
  jobSchema,
  revisionSchema,
  triggerInputSchema,
  triggerSchema,
  workloadInputSchema,
  workloadSchema,
} from './schema.ts'
export { stickyCookieName } from './traffic.ts'
export { isEnabled, type StoredTrigger, type TriggerInput } from './triggers.ts'
export { versionOf } from './versions.ts'
export {
  applicationRevisionView,
  applicationView,
  jobView,
  revisionView,
  triggerView,
  workloadView,
} from './view.ts'

const memoryMbMaxDefault = 256 * 1024
/** Of one kind, in one workspace: what requests need of each is kept in memory. */
const deploymentsMax = 1000
/** A removal that takes longer goes on after the request was answered. */
const removeWaitMsMax = 10_000

/** Who runs revisions. */
export type DeploymentFleet = Pick<
  Fleet,
  'serve' | 'ready' | 'acquire' | 'acquireNow' | 'retire' | 'revisionOf'
>

/** What is built for a deployment. */
export interface DeploymentBuilds {
  begin(owner: BuildOwner, origin: string): Promise<{ id: string; uploadUrl: string }>
  cancel(owner: { workspace: string; kind: string; name: string; tag?: string }): Promise<void>
  on(
    kind: string,
    handlers: {
      building(build: DeploymentBuild): Promise<void>
      built(build: DeploymentBuild, result: BuiltImage): Promise<void>
      failed(build: DeploymentBuild, message: string): Promise<void>
      redact?(build: DeploymentBuild): Promise<string[]>
    },
  ): void
}
export interface DeploymentsOptions {
  store: Store
  fleet: DeploymentFleet
  builds: DeploymentBuilds
  images: DeploymentImages
  logs: { remove(workspace: string, kind: string, name: string): Promise<void> | void }
  /** Ends what is under way of one that is being deleted, before its images go. May be called again. */
  ending?: (deployment: { workspace: string; kind: DeploymentKind; name: string }) => Promise<void>
  secrets: Pick<SecretBox, 'seal' | 'open'>
  clock: Clock
  log: Logger
  memoryMbMax?: number
  /** Where deployments are whose client named no region; absent: answers tell none. */
  region?: string
  callbacks: CallbackRules
  /** Applications have addresses below these; absent: by path alone. */
  domains?: string[]
  /** Whether a workspace may use such names; absent: none may. @throws bad_request that names the field */
  checkUrls?: (workspace: string, urls: ApplicationUrl[]) => Promise<void>
  /** In [0, 1): decides who meets a canary. */
  random?: () => number
}

export interface DeploymentInput {
  workspace: string
  kind: DeploymentKind
  name: string
  input: WorkloadInput | ApplicationInput | JobInput
  actor: string
  upload: boolean
  /** Upload addresses begin with it. */
  origin: string
  /** A snapshot that its files are of; its image is only what that is called by. */
  snapshotId?: string
}

export interface DeploymentChange extends TriggerChange {
  /** Of the revision that it made; null: it made none. */
  revisionId: string | null
  uploadUrl: string | null
}

export class Deployments {
  readonly triggers: DeploymentTriggers
  readonly #records: DeploymentRecords
  readonly #sealing: DeploymentSealing
  readonly #table = new DeploymentTable()
  readonly #rollouts: Rollouts
  readonly #next: NextRevisions
  readonly #requests: DeploymentRequests
  readonly #jobRuns: JobRuns
  readonly #watchers: ((deployment: StoredDeployment) => void)[] = []
  readonly #builds: DeploymentBuilds
  readonly #logs: DeploymentsOptions['logs']
  readonly #ending: NonNullable<DeploymentsOptions['ending']>
  readonly #clock: Clock
  readonly #memoryMbMax: number
  readonly #region: string | undefined
  readonly #domains: string[]
  readonly #checkUrls: DeploymentsOptions['checkUrls']
  readonly #background: Background
  /** Of a deployment: who changes what it is to be waits for its turn. */
  readonly #turns = new KeyedLock()

  constructor(options: DeploymentsOptions) {
    const { store, fleet, builds, images, clock, log } = options
    this.#background = new Background((error) => {
      if (!PlatformError.is(error)) log.error('work on a deployment failed behind its request', { error })
    })
    this.#records = new DeploymentRecords(store, (deployment) => this.#changed(deployment))
    this.#sealing = new DeploymentSealing(options.secrets)
    this.#builds = builds
    this.#logs = options.logs
    this.#ending = options.ending ?? (async () => {})
    this.#clock = clock
    this.#memoryMbMax = options.memoryMbMax ?? memoryMbMaxDefault
    this.#region = options.region
    this.#domains = options.domains ?? []
    this.#checkUrls = options.checkUrls
    this.#rollouts = new Rollouts({
      records: this.#records,
      sealing: this.#sealing,
      fleet,
      images,
      background: this.#background,
      clock,
      log,
      forget: (deployment) => this.#forget(deployment),
      gone: (deployment) => this.#table.delete(deployment),
    })
    const parts = { table: this.#table, records: this.#records, sealing: this.#sealing, fleet, images, clock }
    this.#next = new NextRevisions(parts)
    const drawn = { ...parts, random: options.random ?? Math.random }
    this.#requests = new DeploymentRequests({
      ...drawn,
      runOf: (deployment, kind, revision) => this.#rollouts.runOf(deployment, kind, revision),
    })
    this.#jobRuns = new JobRuns(drawn)
    this.triggers = new DeploymentTriggers({
      ...parts,
      rules: options.callbacks,
      turn: ({ workspace, kind, name }, work) => this.#turn(workspace, kind, name, work),
    })
    const events = new BuildEvents({
      ...parts,
      settle: (deployment) => void this.#rollouts.settle(deployment, { interrupt: true }),
    })
    for (const kind of deploymentKinds) builds.on(kind, events)
  }

  /** At start, before the fleet opens: tells it what is served. */
  async load(): Promise<void> {
    for await (const deployment of this.#records.every()) {
      this.#table.set(deployment)
      this.#rollouts.serve(deployment)
    }
  }

  /** At start, once the fleet is open: goes on with what is owed. */
  async open(): Promise<void> {
    for await (const deployment of this.#records.every()) void this.#rollouts.settle(deployment)
  }

  async close(): Promise<void> {
    this.#background.close()
    await this.#background.settled()
  }

  /** A new deployment. @throws bad_request, already_exists, conflict while one of this name is being deleted */
  async create(asked: DeploymentInput): Promise<DeploymentChange> {
    const { workspace, kind } = asked
    this.#background.refuseWhenClosing()
    const name = checkName(asked.name)
    return await this.#turn(workspace, kind, name, async () => {
      const existing = await this.#records.get(workspace, kind, name)
      if (existing) throw taken(existing)
      await this.#admit(workspace, kind)
      // Nobody reads what one of this name before wrote.
      await this.#logs.remove(workspace, kindFacts[kind].plural, name)
      const draft = this.#draftOf(asked, null)
      await this.#admitUrls(asked, draft)
      const uid = sortableId(this.#clock.now())
      const { image, ...spec } = draft.spec
      const { states, revealed } = await this.triggers.statesOf({ uid, spec: {} }, spec.triggers ?? [])
      const body: DeploymentBody = {
        uid,
        ...metadataOf(draft),
        createdBy: asked.actor,
        updatedBy: asked.actor,
        spec: { ...spec, image },
        sealedEnv: this.#sealing.sealEnv(uid, draft.env),
        triggerStates: states,
        revisions: [],
        traffic: noTraffic,
        state: draft.spec.enabled ? 'active' : 'deactivated',
        leftoverImages: [],
        events: [],
      }
      const revision = await this.#next.next(asked, body, draft)
      if (revision === null) {
        throw badRequest(
          `${kind === 'application' ? 'spec.image' : 'spec.runtime.image'}: missing: name an image, or send the code: ask with ?upload=true, and put its archive to the address in the header X-Blaxel-Upload-Url`,
        )
      }
      const created = await this.#records.create({ kind, workspace, name }, this.#withNew(body, revision))
      return { ...(await this.#begun(created, revision, asked)), revealed }
    })
  }

  /**
   * Changes a deployment; makes a revision when what a revision is changed, or code is to come.
   * @throws not_found, bad_request, conflict while it is being deleted
   */
  async update(asked: DeploymentInput): Promise<DeploymentChange> {
    const { workspace, kind, name } = asked
    this.#background.refuseWhenClosing()
    return await this.#turn(workspace, kind, name, async () => {
      const existing = await this.#records.require(workspace, kind, name)
      if (existing.body.state === 'deleting') throw beingDeleted(existing)
      const given = asked.input.metadata?.name
      if (given && given !== name) {
        throw badRequest(`metadata.name: ${kind}s cannot be renamed; send "${name}" or leave it out`)
      }
      const draft = this.#draftOf(asked, existing)
      await this.#admitUrls(asked, draft)
      const revision = await this.#next.next(asked, existing.body, draft)
      const before = existing.body.state
      const { states, revealed } = await this.triggers.statesOf(existing.body, draft.spec.triggers ?? [])
      const changed = await this.#records.change(existing, (current) => {
        const body: DeploymentBody = {
          ...current,
          ...metadataOf(draft),
          updatedBy: asked.actor,
          spec: { ...draft.spec, image: ownImage(current, draft.spec.image) ? null : draft.spec.image },
          sealedEnv: this.#sealing.sealEnv(current.uid, draft.env),
          triggerStates: states,
        }
        if (draft.displayName === undefined) delete body.displayName
        if (draft.externalId === undefined) delete body.externalId
        const led = draft.routing ? withRouting(body, draft.routing, revision !== null) : body
        return this.#withNew(this.#withState(led, draft.spec.enabled), revision)
      })
      const interrupt =
        revision?.phase === 'deploying' ||
        changed.body.state !== before ||
        changed.body.wanted !== existing.body.wanted
      return { ...(await this.#begun(changed, revision, asked, interrupt)), revealed }
    })
  }

  /** @throws not_found */
  async get(workspace: string, kind: DeploymentKind, name: string): Promise<StoredDeployment> {
    const found = await this.#records.require(workspace, kind, name)
    // A write can be read before its writer hears of it: requests go by what was told here from now on.
    this.#table.set(found)
    return found
  }

  async find(workspace: string, kind: DeploymentKind, name: string): Promise<StoredDeployment | null> {
    return await this.#records.get(workspace, kind, name)
  }

  /** What an execution of a job that begins now is of. @throws not_found, conflict while there is nothing to run */
  jobRun(workspace: string, name: string): Promise<JobRun> {
    return this.#jobRuns.of(workspace, name)
  }

  /** Of all workspaces. */
  every(): AsyncIterable<StoredDeployment> {
    return this.#records.every()
  }

  list(workspace: string, kind: DeploymentKind, query: DeploymentListQuery): Promise<Page<DeploymentBody>> {
    return this.#records.list(workspace, kind, query)
  }

  /** Newest first. @throws not_found */
  async revisions(
    workspace: string,
    kind: DeploymentKind,
    name: string,
  ): Promise<{ deployment: StoredDeployment; revisions: Revision[] }> {
    const deployment = await this.#records.require(workspace, kind, name)
    return { deployment, revisions: deployment.body.revisions.toReversed() }
  }

  /**
   * Ends a deployment with all its instances, builds, and images that were built for it; answers its last state. Usually
   * nothing is left when this resolves. @throws not_found
   */
  async remove(workspace: string, kind: DeploymentKind, name: string): Promise<StoredDeployment> {
    this.#background.refuseWhenClosing()
    const deleting = await this.#turn(workspace, kind, name, async () => {
      const existing = await this.#records.require(workspace, kind, name)
      return await this.#records.change(existing, (body) =>
        body.state === 'deleting'
          ? null
          : withEvent({ ...body, state: 'deleting', traffic: noTraffic }, this.#clock.now(), {
              type: 'deletion',
              status: 'DELETING',
              message: 'Deletion requested',
            }),
      )
    })
    const stop = new AbortController()
    const late = this.#clock.sleep(removeWaitMsMax, stop.signal).catch(() => {})
    await Promise.race([this.#rollouts.settle(deleting, { interrupt: true }), late])
    stop.abort()
    return deleting
  }

  /** Whether who comes so needs no credential; false for what is not there. */
  isOpen(workspace: string, kind: DeploymentKind, name: string, passing: Passing): boolean {
    const entry = this.#table.get(workspace, kind, name)
    return entry !== null && isOpen(entry.gates, passing)
  }

  /** Where a request goes; what is not there tells when it is acquired. @throws workload_unavailable */
  passage(workspace: string, kind: DeploymentKind, name: string, passing: Passing): Passage {
    const entry = this.#table.get(workspace, kind, name)
    if (entry === null) return { later: null, path: null }
    if (passing.isAsync && entry.gates.asyncOff)
      throw new PlatformError(
        'workload_unavailable',
        `the ${kind} "${name}" answers nothing later: its triggers of the type http-async are disabled`,
      )
    return passageOf(entry.gates, passing)
  }

  /** Told of every deployment as it changes, and of its end: then its state is `deleting`. */
  watch(watcher: (deployment: StoredDeployment) => void): void {
    this.#watchers.push(watcher)
  }

  /** What is known of it without a look at its record. */
  standing(
    workspace: string,
    kind: DeploymentKind,
    name: string,
  ): Pick<TableEntry, 'uid' | 'state' | 'gates'> | null {
    return this.#table.get(workspace, kind, name)
  }

  /** Whether there is one of this name, in whatever state. */
  isKnown(workspace: string, kind: DeploymentKind, name: string): boolean {
    return this.#table.get(workspace, kind, name) !== null
  }

  /**
   * Picks a revision and an instance of it, by whom the client was served before where sessions stick; at once where there
   * is nothing to wait for.
   * @throws workload_not_found, workload_unavailable while nothing is served, and what the fleet throws
   */
  acquire(
    workspace: string,
    kind: DeploymentKind,
    name: string,
    request: DeploymentRequest,
    caller?: Caller,
  ): DeploymentLease | Promise<DeploymentLease> {
    return this.#requests.acquire(workspace, kind, name, request, caller)
  }

  /** @throws bad_request for a version that there is not, workload_not_found, and what the fleet throws */
  acquireVersion(
    workspace: string,
    kind: ServedKind,
    name: string,
    version: string,
    signal?: AbortSignal,
  ): Promise<DeploymentLease> {
    return this.#requests.acquireVersion(workspace, kind, name, version, signal)
  }

  /** One instance of a deployment, whatever revision it is of; null when it is gone, or not of this deployment. */
  acquireInstance(
    workspace: string,
    kind: DeploymentKind,
    name: string,
    instanceId: string,
    caller?: Caller,
  ): Promise<DeploymentLease | null> {
    return this.#requests.acquireInstance(workspace, kind, name, instanceId, caller)
  }

  /** Adds to its events that a revision does not hold; what is served stays as it is. Never rejects. */
  noteCrash(
    run: { workspace: string; kind: DeploymentKind; name: string; id: string },
    message: string,
  ): void {
    if (this.#background.closing.aborted) return
    this.#background.run(this.#noteCrash(run, message))
  }

  async #noteCrash(
    { workspace, kind, name, id }: { workspace: string; kind: DeploymentKind; name: string; id: string },
    message: string,
  ): Promise<void> {
    const found = await this.#records.get(workspace, kind, name)
    if (!found) return
    await this.#records.change(found, (body) => {
      if (body.state !== 'active' || revisionOf(body, id) === undefined) return null
      const status = statusOf(body, Number.POSITIVE_INFINITY)
      return withEvent(body, this.#clock.now(), { type: 'instance', status, revision: id, message })
    })
  }

  /** Which application of a workspace has a host of its own; null: none. No work. */
  applicationAt(workspace: string, host: string): string | null {
    return this.#table.applicationAt(workspace, host)
  }

  /** Which application has a host at a domain or below it; null: none. */
  domainUser(workspace: string, domain: string): string | null {
    for (const { workspace: its, name, hosts } of this.#table.every())
      if (its === workspace && hosts.some((host) => host === domain || host.endsWith(`.${domain}`)))
        return name
    return null
  }

  /** Which of them stands on an image, or a snapshot, as people call it; null: none does. */
  userOf(workspace: string, image: string): string | null {
    for (const entry of this.#table.every())
      if (entry.workspace === workspace && entry.images.has(image)) return `the ${entry.kind} ${entry.name}`
    return null
  }

  /** What images revisions stand on, whether an instance of them runs or not; kept in memory, for who asks at any time. */
  *roots(): Iterable<{ workspace: string; name: string; root: RootFilesystem }> {
    for (const { workspace, kind, name, digests } of this.#table.every())
      for (const digest of digests)
        yield { workspace, name: `the ${kind} ${name}`, root: { digest, layers: [], mounts: [] } }
  }

  viewOptions(
    { body }: StoredDeployment,
    origin: string,
    options: { showSecrets?: boolean; events?: boolean; revealed?: readonly string[] } = {},
  ): DeploymentViewOptions {
    const told = options.showSecrets ? (body.spec.triggers ?? []).map(({ id }) => id) : options.revealed
    const callbackSecrets = (told ?? []).flatMap((id) => {
      const [newest] = this.triggers.secretsOf(body, id)
      return newest === undefined ? [] : [[id, newest] as const]
    })
    return {
      origin,
      domains: this.#domains,
      nowMs: this.#clock.now(),
      events: options.events ?? true,
      ...(this.#region === undefined ? {} : { region: this.#region }),
      ...(options.showSecrets ? { env: this.#sealing.envOf(body) } : {}),
      ...(callbackSecrets.length > 0 ? { callbackSecrets: Object.fromEntries(callbackSecrets) } : {}),
    }
  }

  #changed(deployment: StoredDeployment): void {
    this.#table.set(deployment)
    for (const watcher of this.#watchers) watcher(deployment)
  }

  /** @throws bad_request, conflict */
  async #admitUrls({ workspace, name }: DeploymentInput, { spec }: DeploymentDraft): Promise<void> {
    const { urls = [] } = spec
    if (urls.length === 0) return
    if (!this.#checkUrls)
      throw new PlatformError('not_implemented', 'spec.urls: this platform has no custom domains')
    await this.#checkUrls(workspace, urls)
    for (const host of urls.map(hostOf)) {
      const other = this.#table.applicationAt(workspace, host)
      if (other !== null && other !== name)
        throw new PlatformError(
          'conflict',
          `spec.urls: "${host}" is an address of the application "${other}"`,
        )
    }
  }

  /** @throws usage_limit_exceeded */
  async #admit(workspace: string, kind: DeploymentKind): Promise<void> {
    const { total } = await this.#records.list(workspace, kind, { limit: 1 })
    if (total < deploymentsMax) return
    throw new PlatformError(
      'usage_limit_exceeded',
      `this workspace has ${total} ${kindFacts[kind].plural}, the most there can be: delete one first`,
    )
  }

  #turn<Result>(
    workspace: string,
    kind: DeploymentKind,
    name: string,
    work: () => Promise<Result>,
  ): Promise<Result> {
    return this.#turns.run(`${workspace}/${kind}/${name}`, work)
  }

  #draftOf(asked: DeploymentInput, existing: StoredDeployment | null): DeploymentDraft {
    const options = {
      previous: existing && this.#sealing.draftOf(existing),
      upload: asked.upload,
      memoryMbMax: this.#memoryMbMax,
    }
    if (asked.kind === 'application') return applicationDraft(asked.input as ApplicationInput, options)
    return asked.kind === 'job'
      ? jobDraft(asked.input as JobInput, options)
      : workloadDraft(asked.kind, asked.input as WorkloadInput, options)
  }

  /** With a revision more, in the place of those that nothing was uploaded for. */
  #withNew(body: DeploymentBody, revision: Revision | null): DeploymentBody {
    if (revision === null) return body
    const now = this.#clock.now()
    const unused = new Set(body.revisions.filter(({ phase }) => phase === 'uploading'))
    const rest = revision.phase === 'uploading' ? withoutRevisions(body, unused) : body
    const status = revision.phase === 'uploading' ? 'UPLOADING' : 'DEPLOYING'
    return withEvent({ ...rest, revisions: [...rest.revisions, revision] }, now, {
      type: 'deployment',
      status,
      revision: revision.id,
      message: status === 'UPLOADING' ? 'Waiting for the code' : `Deploying ${revision.source}`,
    })
  }

  #withState(body: DeploymentBody, enabled: boolean): DeploymentBody {
    const now = this.#clock.now()
    if (!enabled && body.state === 'active') {
      return withEvent({ ...body, state: 'deactivating' }, now, {
        type: 'deactivation',
        status: 'DEACTIVATING',
        message: 'Deactivation requested',
      })
    }
    if (enabled && (body.state === 'deactivated' || body.state === 'deactivating')) {
      const before = body.wanted ?? body.traffic
      // Where nothing was served before, what was prepared meanwhile is to be.
      const prepared = body.revisions.findLast(({ phase, traffic }) => phase === 'prepared' && traffic > 0)
      const wanted =
        before.active === null && prepared ? { active: prepared.id, canary: null, canaryPercent: 0 } : before
      const active: DeploymentBody = {
        ...body,
        state: 'active',
        ...(wanted.active === null ? {} : { wanted }),
      }
      return withEvent(active, now, {
        type: 'activation',
        status: 'DEPLOYING',
        message: 'Activation requested',
      })
    }
    return body
  }

  async #begun(
    deployment: StoredDeployment,
    revision: Revision | null,
    { upload, origin }: DeploymentInput,
    interrupt = false,
  ): Promise<Omit<DeploymentChange, 'revealed'>> {
    const { workspace, kind, name } = deployment
    const owner = revision && { workspace, kind, name, tag: revision.id }
    const uploadUrl = owner && upload ? (await this.#builds.begin(owner, origin)).uploadUrl : null
    void this.#rollouts.settle(deployment, { interrupt })
    return { deployment, revisionId: revision?.id ?? null, uploadUrl }
  }

  async #forget({ workspace, kind, name }: StoredDeployment): Promise<void> {
    await this.#builds.cancel({ workspace, kind, name })
    await this.#ending({ workspace, kind: kind as DeploymentKind, name })
    await this.#logs.remove(workspace, kindFacts[kind as DeploymentKind].plural, name)
  }
}

function metadataOf(draft: DeploymentDraft): Pick<DeploymentBody, 'displayName' | 'externalId' | 'labels'> {
  const { displayName, externalId, labels } = draft
  return {
    labels,
    ...(displayName === undefined ? {} : { displayName }),
    ...(externalId === undefined ? {} : { externalId }),
  }
}

/** Whether an image is one that was built for it, as who sends back what he read names it. */
function ownImage(body: DeploymentBody, image: string | null): boolean {
  return body.revisions.some((one) => one.image === image && one.spec.image === null)
}

function taken(existing: StoredDeployment): PlatformError {
  const { kind, name, body } = existing
  return body.state === 'deleting'
    ? beingDeleted(existing)
    : new PlatformError('already_exists', `the ${kind} "${name}" exists already: update it (PUT) instead`)
}
