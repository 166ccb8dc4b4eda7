/**
 * Deployments: what agents, functions and applications share. Code or an image becomes a revision, revisions get requests,
 * and what is served changes without a request lost.
 */
import { PlatformError } from '../errors.ts'
import { Background } from '../lib/background.ts'
import { badRequest, checkName } from '../lib/checks.ts'
import type { Clock } from '../lib/clock.ts'
import { sameEnv } from '../lib/environment.ts'
import { randomText, sortableId } from '../lib/ids.ts'
import { KeyedLock } from '../lib/keyed-lock.ts'
import type { Logger } from '../lib/log.ts'
import type { ProjectSettings } from '../lib/project-settings.ts'
import type { SecretBox } from '../lib/secret-box.ts'
import { snapshotReference } from '../sandboxes/index.ts'
import type { RootFilesystem } from '../spec/runtime.ts'
import type { Page, Store } from '../spec/store.ts'
import { applicationDraft, type DeploymentDraft, workloadDraft } from './draft.ts'
import type { Fleet, RevisionLease } from './fleet/index.ts'
import type { DeploymentImages } from './images.ts'
import { type DeploymentKind, deploymentKinds, kindFacts, type Transport } from './kinds.ts'
import {
  type DeploymentBody,
  isUnderWay,
  kindOf,
  noTraffic,
  pruned,
  type Revision,
  revisionOf,
  type StoredDeployment,
  withEvent,
  withoutRevisions,
  withRevision,
} from './record.ts'
import { type DeploymentListQuery, DeploymentRecords } from './records.ts'
import { Rollouts } from './rollouts.ts'
import { trafficOfNew, withRouting } from './routing.ts'
import type { ApplicationInput, WorkloadInput } from './schema.ts'
import { DeploymentSealing } from './sealing.ts'
import { failureOf, statusOf } from './status.ts'
import { DeploymentTable, type TableEntry } from './table.ts'
import { pick, stickyCookie, stickyCookieName, stickyValue } from './traffic.ts'
import type { DeploymentViewOptions } from './view.ts'

export { ApplicationForks } from './forks.ts'
export { RevisionImages } from './images.ts'
export { type DeploymentKind, deploymentKinds, kindFacts } from './kinds.ts'
export type { DeploymentBody, StoredDeployment } from './record.ts'
export {
  applicationInputSchema,
  applicationRevisionSchema,
  applicationSchema,
  revisionSchema,
  workloadInputSchema,
  workloadSchema,
} from './schema.ts'
export { stickyCookieName } from './traffic.ts'
export { applicationRevisionView, applicationView, revisionView, workloadView } from './view.ts'

const memoryMbMaxDefault = 256 * 1024
/** A removal that takes longer goes on after the request was answered. */
const removeWaitMsMax = 10_000
/** How often another revision is picked for a request whose revision was just taken away. */
const picksMax = 3

/** Who runs revisions. */
export type DeploymentFleet = Pick<Fleet, 'serve' | 'ready' | 'acquire' | 'retire' | 'revisionOf'>

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
interface BuildOwner {
  workspace: string
  kind: string
  name: string
  tag: string
}
export interface DeploymentBuild {
  owner: BuildOwner
  uploadedAt: number | null
}
export interface BuiltImage {
  image: string
  settings: Pick<ProjectSettings, 'env' | 'transport' | 'runtime'>
}

export interface DeploymentsOptions {
  store: Store
  fleet: DeploymentFleet
  /** Null: nothing can be built, and no code is taken. */
  builds: DeploymentBuilds | null
  images: DeploymentImages
  logs: { remove(workspace: string, kind: string, name: string): Promise<void> | void }
  secrets: Pick<SecretBox, 'seal' | 'open'>
  clock: Clock
  log: Logger
  memoryMbMax?: number
  /** Where deployments are whose client named no region; absent: answers tell none. */
  region?: string
  /** In [0, 1): decides who meets a canary. */
  random?: () => number
}

export interface DeploymentInput {
  workspace: string
  kind: DeploymentKind
  name: string
  input: WorkloadInput | ApplicationInput
  actor: string
  upload: boolean
  /** Upload addresses begin with it. */
  origin: string
  /** A snapshot that its files are of; its image is only what that is called by. */
  snapshotId?: string
}

export interface DeploymentChange {
  deployment: StoredDeployment
  /** Of the revision that it made; null: it made none. */
  revisionId: string | null
  uploadUrl: string | null
}

export interface DeploymentLease {
  lease: RevisionLease
  revisionId: string
  isPublic: boolean
  transport: Transport | null
  /** For the answer: keeps the client with this revision. */
  setCookie: string | null
}

export class Deployments {
  readonly #records: DeploymentRecords
  readonly #sealing: DeploymentSealing
  readonly #table = new DeploymentTable()
  readonly #rollouts: Rollouts
  readonly #fleet: DeploymentFleet
  readonly #builds: DeploymentBuilds | null
  readonly #images: DeploymentImages
  readonly #logs: DeploymentsOptions['logs']
  readonly #clock: Clock
  readonly #memoryMbMax: number
  readonly #region: string | undefined
  readonly #random: () => number
  readonly #background: Background
  /** Of a deployment: who changes what it is to be waits for its turn. */
  readonly #turns = new KeyedLock()

  constructor(options: DeploymentsOptions) {
    const { store, fleet, builds, images, clock, log } = options
    this.#background = new Background((error) => {
      if (!PlatformError.is(error)) log.error('work on a deployment failed behind its request', { error })
    })
    this.#records = new DeploymentRecords(store, (deployment) => this.#table.set(deployment))
    this.#sealing = new DeploymentSealing(options.secrets)
    this.#fleet = fleet
    this.#builds = builds
    this.#images = images
    this.#logs = options.logs
    this.#clock = clock
    this.#memoryMbMax = options.memoryMbMax ?? memoryMbMaxDefault
    this.#region = options.region
    this.#random = options.random ?? Math.random
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
    for (const kind of deploymentKinds) {
      builds?.on(kind, {
        building: (build) => this.#building(kind, build),
        built: (build, result) => this.#built(kind, build, result),
        failed: (build, message) => this.#buildFailed(kind, build, message),
        redact: (build) => this.#secretsOf(kind, build),
      })
    }
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
      // Nobody reads what one of this name before wrote.
      await this.#logs.remove(workspace, kindFacts[kind].plural, name)
      const draft = this.#draftOf(asked, null)
      const uid = sortableId(this.#clock.now())
      const { image, ...spec } = draft.spec
      const body: DeploymentBody = {
        uid,
        ...metadataOf(draft),
        createdBy: asked.actor,
        updatedBy: asked.actor,
        spec: { ...spec, image },
        sealedEnv: this.#sealing.sealEnv(uid, draft.env),
        revisions: [],
        traffic: noTraffic,
        state: draft.spec.enabled ? 'active' : 'deactivated',
        leftoverImages: [],
        events: [],
      }
      const revision = await this.#nextRevision(asked, body, draft)
      if (revision === null) {
        throw badRequest(
          `${kind === 'application' ? 'spec.image' : 'spec.runtime.image'}: missing: name an image, or send the code: ask with ?upload=true, and put its archive to the address in the header X-Blaxel-Upload-Url`,
        )
      }
      const created = await this.#records.create({ kind, workspace, name }, this.#withNew(body, revision))
      return await this.#begun(created, revision, asked)
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
      if (existing.body.state === 'deleting') throw taken(existing)
      const given = asked.input.metadata?.name
      if (given && given !== name) {
        throw badRequest(`metadata.name: ${kind}s cannot be renamed; send "${name}" or leave it out`)
      }
      const draft = this.#draftOf(asked, existing)
      const revision = await this.#nextRevision(asked, existing.body, draft)
      const before = existing.body.state
      const changed = await this.#records.change(existing, (current) => {
        const body: DeploymentBody = {
          ...current,
          ...metadataOf(draft),
          updatedBy: asked.actor,
          spec: { ...draft.spec, image: ownImage(current, draft.spec.image) ? null : draft.spec.image },
          sealedEnv: this.#sealing.sealEnv(current.uid, draft.env),
        }
        if (draft.displayName === undefined) delete body.displayName
        if (draft.externalId === undefined) delete body.externalId
        const led = draft.routing ? withRouting(body, draft.routing) : body
        return this.#withNew(this.#withState(led, draft.spec.enabled), revision)
      })
      const interrupt = changed.body.state !== before || changed.body.wanted !== existing.body.wanted
      return await this.#begun(changed, revision, asked, interrupt)
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

  /** Whether everybody may send it requests; false for what is not there. */
  isPublic(workspace: string, kind: DeploymentKind, name: string): boolean {
    return this.#table.get(workspace, kind, name)?.isPublic ?? false
  }

  /**
   * Picks a revision and an instance of it, by whom the client was served before where sessions stick.
   * @throws workload_not_found, workload_unavailable while nothing is served, and what the fleet throws
   */
  async acquire(
    workspace: string,
    kind: DeploymentKind,
    name: string,
    request: { cookie: string | null; cookiePath?: string },
    signal?: AbortSignal,
  ): Promise<DeploymentLease> {
    const cookieName = stickyCookieName(kind, name)
    for (let picks = 1; ; picks++) {
      const entry = this.#entryOf(workspace, kind, name)
      const { traffic, stickySessionTtl, transports, isPublic } = entry
      const sticky = stickySessionTtl > 0 ? stickyValue(request.cookie, cookieName) : null
      const revisionId = pick(traffic, sticky, this.#random())
      if (revisionId === null) throw await this.#unavailable(workspace, kind, name)
      try {
        const lease = await this.#fleet.acquire(revisionId, signal)
        return {
          lease,
          revisionId,
          isPublic,
          transport: transports.get(revisionId) ?? null,
          setCookie:
            stickySessionTtl > 0 && sticky !== revisionId
              ? stickyCookie(cookieName, revisionId, {
                  ttlSeconds: stickySessionTtl,
                  path: request.cookiePath ?? `/${workspace}/${kindFacts[kind].plural}/${name}`,
                })
              : null,
        }
      } catch (error) {
        // It was taken away in between: another one is served by now.
        const gone = PlatformError.is(error) && error.code === 'workload_not_found'
        if (!gone) throw error
        if (picks >= picksMax) throw await this.#unavailable(workspace, kind, name)
      }
    }
  }

  /** One instance of a deployment, whatever revision it is of; null when it is gone, or not of this deployment. */
  async acquireInstance(
    workspace: string,
    kind: DeploymentKind,
    name: string,
    instanceId: string,
    signal?: AbortSignal,
  ): Promise<DeploymentLease | null> {
    const { revisionIds, isPublic, transports } = this.#entryOf(workspace, kind, name)
    const revisionId = this.#fleet.revisionOf(instanceId)
    if (revisionId === null || !revisionIds.has(revisionId)) return null
    try {
      const lease = await this.#fleet.acquire(revisionId, signal, { instanceId })
      return { lease, revisionId, isPublic, transport: transports.get(revisionId) ?? null, setCookie: null }
    } catch (error) {
      if (PlatformError.is(error) && error.code === 'workload_not_found') return null
      throw error
    }
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
    options: { showSecrets?: boolean; events?: boolean } = {},
  ): DeploymentViewOptions {
    return {
      origin,
      nowMs: this.#clock.now(),
      events: options.events ?? true,
      ...(this.#region === undefined ? {} : { region: this.#region }),
      ...(options.showSecrets ? { env: this.#sealing.envOf(body) } : {}),
    }
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
    return asked.kind === 'application'
      ? applicationDraft(asked.input as ApplicationInput, options)
      : workloadDraft(asked.kind, asked.input as WorkloadInput, options)
  }

  /** The revision that is to be made; null when nothing that a revision holds changed. @throws bad_request */
  async #nextRevision(
    asked: DeploymentInput,
    body: DeploymentBody,
    draft: DeploymentDraft,
  ): Promise<Revision | null> {
    const { workspace, kind, actor, upload } = asked
    if (upload) this.#buildsHere()
    const now = this.#clock.now()
    const newest = body.revisions.findLast(({ phase }) => phase !== 'failed' && phase !== 'uploading')
    const snapshotId = upload ? undefined : (asked.snapshotId ?? snapshotOf(newest, draft.spec.image))
    const named = draft.spec.image ?? newest?.image ?? newest?.source
    const source = upload ? undefined : snapshotId === undefined ? named : snapshotReference(snapshotId)
    if (!upload && source === undefined) return null
    const image = source === undefined ? null : await this.#images.look(workspace, source)
    if (image?.registry && kind === 'application') {
      throw badRequest(
        `spec.image: ${JSON.stringify(source)} is of a registry; an application takes an image of the workspace: bring it here first (hutch images pull), or deploy from source`,
      )
    }
    if (
      !upload &&
      asked.snapshotId === undefined &&
      newest !== undefined &&
      image !== null &&
      !this.#differs(body, newest, draft, source, image)
    ) {
      return null
    }
    const id = `${kindFacts[kind].revisionPrefix}${randomText(12)}`
    const origin = body.revisions.find((one) => one.image !== undefined && one.image === source)
    const { memoryMb, minScale, maxScale, port, transport, envs } = draft.spec
    return {
      id,
      createdAt: now,
      createdBy: actor,
      phase: upload ? 'uploading' : 'deploying',
      spec: {
        image: origin ? origin.spec.image : upload ? null : (draft.spec.image ?? source ?? null),
        memoryMb,
        minScale,
        maxScale,
        envs,
        ...(port === undefined ? {} : { port }),
        ...(transport === undefined ? {} : { transport }),
      },
      sealedEnv: this.#sealing.sealRevisionEnv(body.uid, id, draft.env),
      traffic: trafficOfNew(body, draft.routing),
      ...(source === undefined ? {} : { source }),
      ...(snapshotId === undefined ? {} : { snapshotId }),
      ...(image?.registry && !draft.skipBuild ? { fresh: true } : {}),
      ...(draft.dockerConfig === undefined
        ? {}
        : { sealedDockerConfig: this.#sealing.sealDockerConfig(body.uid, id, draft.dockerConfig) }),
      ...(origin?.built ? { built: this.#builtAgain(body.uid, origin, id) } : {}),
    }
  }

  /** What the code of a revision says, for another one that stands on the same image. */
  #builtAgain(uid: string, origin: Revision, id: string): NonNullable<Revision['built']> {
    return {
      ...origin.built,
      sealedEnv: this.#sealing.sealBuiltEnv(uid, id, this.#sealing.builtEnv(uid, origin)),
    }
  }

  #differs(
    body: DeploymentBody,
    newest: Revision,
    draft: DeploymentDraft,
    source: string | undefined,
    image: { registry: boolean; digest: string | null },
  ): boolean {
    const { spec } = newest
    const sameImage = source === newest.image || source === newest.source || source === spec.image
    // A tag here may have been given to another image since.
    const moved =
      !image.registry &&
      newest.digest !== undefined &&
      image.digest !== null &&
      image.digest !== newest.digest
    return (
      !sameImage ||
      moved ||
      spec.memoryMb !== draft.spec.memoryMb ||
      spec.minScale !== draft.spec.minScale ||
      spec.maxScale !== draft.spec.maxScale ||
      spec.port !== draft.spec.port ||
      spec.transport !== draft.spec.transport ||
      !sameEnv(this.#sealing.revisionEnv(body.uid, newest), draft.env) ||
      this.#isAskedAnew(body, draft, image)
    )
  }

  /** The same once more, all of it: whoever says that of a registry's image wants what its tag is by now. */
  #isAskedAnew(body: DeploymentBody, draft: DeploymentDraft, image: { registry: boolean }): boolean {
    if (!image.registry || draft.skipBuild || draft.routing) return false
    const { labels, spec, displayName } = body
    return (
      JSON.stringify([labels, displayName, spec]) ===
      JSON.stringify([draft.labels, draft.displayName, draft.spec])
    )
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
  ): Promise<DeploymentChange> {
    const { workspace, kind, name } = deployment
    const owner = revision && { workspace, kind, name, tag: revision.id }
    const uploadUrl = owner && upload ? (await this.#buildsHere().begin(owner, origin)).uploadUrl : null
    void this.#rollouts.settle(deployment, { interrupt })
    return { deployment, revisionId: revision?.id ?? null, uploadUrl }
  }

  #buildsHere(): DeploymentBuilds {
    if (this.#builds) return this.#builds
    throw new PlatformError(
      'not_implemented',
      'upload=true: nothing can be built here: name an image instead',
    )
  }

  async #forget({ workspace, kind, name }: StoredDeployment): Promise<void> {
    await this.#builds?.cancel({ workspace, kind, name })
    await this.#logs.remove(workspace, kindFacts[kind as DeploymentKind].plural, name)
  }

  async #building(kind: DeploymentKind, build: DeploymentBuild): Promise<void> {
    await this.#changeRevision(kind, build, (body, revision) => {
      if (revision.phase !== 'uploading') return null
      const building = withRevision(body, revision.id, (one) => ({
        ...one,
        phase: 'building',
        uploadedAt: build.uploadedAt ?? this.#clock.now(),
      }))
      return withEvent(building, this.#clock.now(), {
        type: 'deployment',
        status: 'BUILDING',
        revision: revision.id,
        message: 'The code is here, and is being built',
      })
    })
  }

  async #built(kind: DeploymentKind, build: DeploymentBuild, result: BuiltImage): Promise<void> {
    const { settings, image } = result
    const transport = settings.transport ?? settings.runtime.transport
    const changed = await this.#changeRevision(kind, build, (body, revision) => {
      if (revision.phase !== 'uploading' && revision.phase !== 'building') return null
      const deploying = withRevision(body, revision.id, (one) => ({
        ...one,
        phase: 'deploying',
        uploadedAt: one.uploadedAt ?? build.uploadedAt ?? this.#clock.now(),
        image,
        built: {
          sealedEnv: this.#sealing.sealBuiltEnv(body.uid, one.id, settings.env),
          ...(transport === undefined ? {} : { transport }),
        },
      }))
      return withEvent(deploying, this.#clock.now(), {
        type: 'deployment',
        status: 'DEPLOYING',
        revision: revision.id,
        message: 'Built; the revision is being brought up',
      })
    })
    if (changed) void this.#rollouts.settle(changed)
  }

  /** Also of one whose code never came. */
  async #buildFailed(kind: DeploymentKind, build: DeploymentBuild, message: string): Promise<void> {
    await this.#changeRevision(kind, build, (body, revision) => {
      if (!isUnderWay(revision) || revision.phase === 'deploying') return null
      const failed = withRevision(body, revision.id, (one) => ({ ...one, phase: 'failed' }))
      const { active } = body.traffic
      return pruned(
        withEvent(failed, this.#clock.now(), {
          type: 'deployment',
          status: 'FAILED',
          revision: revision.id,
          message: active === null ? message : `${message}\nThe revision ${active} goes on serving.`,
        }),
      )
    })
  }

  /** What must not be in the log of a build. */
  async #secretsOf(kind: DeploymentKind, { owner }: DeploymentBuild): Promise<string[]> {
    const found = await this.#records.get(owner.workspace, kind, owner.name)
    const revision = found && revisionOf(found.body, owner.tag)
    return found && revision ? Object.values(this.#sealing.revisionEnv(found.body.uid, revision)) : []
  }

  /** Null when the revision is gone, or `change` left it as it is. */
  async #changeRevision(
    kind: DeploymentKind,
    { owner }: DeploymentBuild,
    change: (body: DeploymentBody, revision: Revision) => DeploymentBody | null,
  ): Promise<StoredDeployment | null> {
    const found = await this.#records.get(owner.workspace, kind, owner.name)
    if (!found) return null
    const changed = await this.#records.change(found, (body) => {
      const revision = revisionOf(body, owner.tag)
      return revision === undefined || body.state === 'deleting' ? null : change(body, revision)
    })
    return changed.version === found.version ? null : changed
  }

  #entryOf(workspace: string, kind: DeploymentKind, name: string): TableEntry {
    const entry = this.#table.get(workspace, kind, name)
    if (entry === null || entry.state === 'deleting') {
      throw new PlatformError(
        'workload_not_found',
        `there is no ${kindFacts[kind].title} "${name.slice(0, 64)}" in the workspace "${workspace}"`,
      )
    }
    if (entry.state === 'active') return entry
    throw new PlatformError(
      'workload_unavailable',
      `the ${kindFacts[kind].title} "${name}" is deactivated: activate it first (spec.enabled)`,
    )
  }

  /** Why nothing answers. */
  async #unavailable(workspace: string, kind: DeploymentKind, name: string): Promise<PlatformError> {
    const found = await this.#records.get(workspace, kind, name)
    const { title } = kindFacts[kind]
    if (!found) {
      return new PlatformError(
        'workload_not_found',
        `there is no ${title} "${name.slice(0, 64)}" in the workspace "${workspace}"`,
      )
    }
    const failure = failureOf(found.body)
    const status = statusOf(found.body, this.#clock.now())
    const why = failure === null ? `its status is ${status}` : `its last deployment failed: ${failure}`
    return new PlatformError('workload_unavailable', `the ${title} "${name}" is not served: ${why}`)
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

/** The snapshot that a revision's files are of, for another one whose image is called as before. */
function snapshotOf(newest: Revision | undefined, image: string | null): string | undefined {
  return image === null || image === newest?.spec.image ? newest?.snapshotId : undefined
}

/** Whether an image is one that was built for it, as who sends back what he read names it. */
function ownImage(body: DeploymentBody, image: string | null): boolean {
  return body.revisions.some((one) => one.image === image && one.spec.image === null)
}

function taken({ kind, name, body }: StoredDeployment): PlatformError {
  const { title } = kindFacts[kindOf({ kind } as StoredDeployment)]
  return body.state === 'deleting'
    ? new PlatformError('conflict', `the ${title} "${name}" is being deleted: try again when that is over`)
    : new PlatformError('already_exists', `the ${title} "${name}" exists already: update it (PUT) instead`)
}
