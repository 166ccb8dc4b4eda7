/**
 * Deployments: what agents, functions, applications and jobs share. Code or an image becomes a revision, revisions get requests,
 * and what is served changes without a request lost.
 */
import { PlatformError } from '../errors.ts'
import { Background } from '../lib/background.ts'
import type { Clock } from '../lib/clock.ts'
import { KeyedLock } from '../lib/keyed-lock.ts'
import type { Logger } from '../lib/log.ts'
import type { SecretBox } from '../lib/secret-box.ts'
import type { RootFilesystem } from '../spec/runtime.ts'
import type { Page, Store } from '../spec/store.ts'
import { BuildEvents, type BuildOwner, type BuiltImage, type DeploymentBuild } from './build-events.ts'
import { type DeploymentChange, DeploymentChanges, type DeploymentInput } from './changes.ts'
import type { Fleet } from './fleet/index.ts'
import { isOpen, type Passage, type Passing, passageOf } from './gates.ts'
import type { DeploymentImages } from './images.ts'
import { type JobRun, JobRuns } from './job-runs.ts'
import { type DeploymentKind, deploymentKinds, kindFacts, type ServedKind } from './kinds.ts'
import { type CallbackRules, type DeploymentOf, DeploymentTriggers } from './own-triggers.ts'
import {
  type ApplicationUrl,
  type DeploymentBody,
  type Revision,
  revisionOf,
  type StoredDeployment,
  withEvent,
} from './record.ts'
import { type DeploymentListQuery, DeploymentRecords } from './records.ts'
import { type Caller, type DeploymentLease, type DeploymentRequest, DeploymentRequests } from './requests.ts'
import { NextRevisions } from './revisions.ts'
import { Rollouts } from './rollouts.ts'
import { DeploymentSealing } from './sealing.ts'
import { statusOf } from './status.ts'
import { DeploymentTable, type TableEntry } from './table.ts'
import type { DeploymentViewOptions } from './view.ts'

export type { DeploymentChange } from './changes.ts'
export { ApplicationForks } from './forks.ts'
export type { Passage, Passing, Tries } from './gates.ts'
export { RevisionImages } from './images.ts'
export type { JobRun } from './job-runs.ts'
export { type DeploymentKind, deploymentKinds, kindFacts } from './kinds.ts'
export type { DeploymentOf } from './own-triggers.ts'
export { numberOf, type Revision, revisionOf, type StoredDeployment } from './record.ts'
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

export class Deployments {
  readonly triggers: DeploymentTriggers
  readonly #records: DeploymentRecords
  readonly #sealing: DeploymentSealing
  readonly #table = new DeploymentTable()
  readonly #rollouts: Rollouts
  readonly #changes: DeploymentChanges
  readonly #requests: DeploymentRequests
  readonly #jobRuns: JobRuns
  readonly #watchers: ((deployment: StoredDeployment) => void)[] = []
  readonly #builds: DeploymentBuilds
  readonly #logs: DeploymentsOptions['logs']
  readonly #ending: NonNullable<DeploymentsOptions['ending']>
  readonly #clock: Clock
  readonly #region: string | undefined
  readonly #domains: string[]
  readonly #background: Background

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
    this.#region = options.region
    this.#domains = options.domains ?? []
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
    const drawn = { ...parts, random: options.random ?? Math.random }
    this.#requests = new DeploymentRequests({
      ...drawn,
      runOf: (deployment, kind, revision) => this.#rollouts.runOf(deployment, kind, revision),
    })
    this.#jobRuns = new JobRuns(drawn)
    const turns = new KeyedLock()
    const turn = <Result>({ workspace, kind, name }: DeploymentOf, work: () => Promise<Result>) =>
      turns.run(`${workspace}/${kind}/${name}`, work)
    this.triggers = new DeploymentTriggers({
      ...parts,
      rules: options.callbacks,
      turn,
    })
    this.#changes = new DeploymentChanges({
      ...parts,
      ...{ turn, builds, logs: options.logs, triggers: this.triggers },
      ...{ next: new NextRevisions(parts), rollouts: this.#rollouts, background: this.#background },
      checkUrls: options.checkUrls,
      memoryMbMax: options.memoryMbMax ?? memoryMbMaxDefault,
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
  create(asked: DeploymentInput): Promise<DeploymentChange> {
    return this.#changes.create(asked)
  }

  /**
   * Changes a deployment; makes a revision when what a revision is changed, or code is to come.
   * @throws not_found, bad_request, conflict while it is being deleted
   */
  update(asked: DeploymentInput): Promise<DeploymentChange> {
    return this.#changes.update(asked)
  }

  /**
   * Ends a deployment with all its instances, builds, and images that were built for it; answers its last state. Usually
   * nothing is left when this resolves. @throws not_found
   */
  remove(workspace: string, kind: DeploymentKind, name: string): Promise<StoredDeployment> {
    return this.#changes.remove(workspace, kind, name)
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
        {
          advice: {
            action: `Enable one of its triggers of the type http-async, or ask without async=true.`,
            doNot: 'Retry before one is enabled.',
          },
        },
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

  async #forget({ workspace, kind, name }: StoredDeployment): Promise<void> {
    await this.#builds.cancel({ workspace, kind, name })
    await this.#ending({ workspace, kind: kind as DeploymentKind, name })
    await this.#logs.remove(workspace, kindFacts[kind as DeploymentKind].plural, name)
  }
}
