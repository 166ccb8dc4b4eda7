/** What clients ask of deployments: one that is new, or other than it was, or gone. Each change is one write of its record. */
import { PlatformError } from '../errors.ts'
import type { Background } from '../lib/background.ts'
import { badRequest, checkName } from '../lib/checks.ts'
import type { Clock } from '../lib/clock.ts'
import { sortableId } from '../lib/ids.ts'
import type { BuildOwner } from './build-events.ts'
import { applicationDraft, type DeploymentDraft, jobDraft, workloadDraft } from './draft.ts'
import { type DeploymentKind, kindFacts } from './kinds.ts'
import type { DeploymentOf, DeploymentTriggers, TriggerChange } from './own-triggers.ts'
import {
  type ApplicationUrl,
  beingDeleted,
  type DeploymentBody,
  hostOf,
  noTraffic,
  type Revision,
  type StoredDeployment,
  withEvent,
  withoutRevisions,
  withPolicies,
} from './record.ts'
import type { DeploymentRecords } from './records.ts'
import type { NextRevisions } from './revisions.ts'
import type { Rollouts } from './rollouts.ts'
import { withRouting } from './routing.ts'
import type { ApplicationInput, JobInput, WorkloadInput } from './schema.ts'
import type { DeploymentSealing } from './sealing.ts'
import type { DeploymentTable } from './table.ts'

/** Of one kind, in one workspace: what requests need of each is kept in memory. */
const deploymentsMax = 1000
/** A removal that takes longer goes on after the request was answered. */
const removeWaitMsMax = 10_000

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

export interface DeploymentChangesOptions {
  records: DeploymentRecords
  table: DeploymentTable
  sealing: DeploymentSealing
  next: NextRevisions
  rollouts: Rollouts
  triggers: DeploymentTriggers
  builds: { begin(owner: BuildOwner, origin: string): Promise<{ uploadUrl: string }> }
  logs: { remove(workspace: string, kind: string, name: string): Promise<void> | void }
  /** Whether a workspace may use such names; absent: none may. @throws bad_request that names the field */
  checkUrls: ((workspace: string, urls: ApplicationUrl[]) => Promise<void>) | undefined
  /** Of a deployment: who changes what it is to be waits for its turn. */
  turn: <Result>(of: DeploymentOf, work: () => Promise<Result>) => Promise<Result>
  background: Background
  clock: Clock
  memoryMbMax: number
}

export class DeploymentChanges {
  readonly #records: DeploymentRecords
  readonly #table: DeploymentTable
  readonly #sealing: DeploymentSealing
  readonly #next: NextRevisions
  readonly #rollouts: Rollouts
  readonly #triggers: DeploymentTriggers
  readonly #builds: DeploymentChangesOptions['builds']
  readonly #logs: DeploymentChangesOptions['logs']
  readonly #checkUrls: DeploymentChangesOptions['checkUrls']
  readonly #turn: DeploymentChangesOptions['turn']
  readonly #background: Background
  readonly #clock: Clock
  readonly #memoryMbMax: number

  constructor(options: DeploymentChangesOptions) {
    this.#records = options.records
    this.#table = options.table
    this.#sealing = options.sealing
    this.#next = options.next
    this.#rollouts = options.rollouts
    this.#triggers = options.triggers
    this.#builds = options.builds
    this.#logs = options.logs
    this.#checkUrls = options.checkUrls
    this.#turn = options.turn
    this.#background = options.background
    this.#clock = options.clock
    this.#memoryMbMax = options.memoryMbMax
  }

  /** A new deployment. @throws bad_request, already_exists, conflict while one of this name is being deleted */
  async create(asked: DeploymentInput): Promise<DeploymentChange> {
    const { workspace, kind } = asked
    this.#background.refuseWhenClosing()
    const name = checkName(asked.name)
    return await this.#turn({ workspace, kind, name }, async () => {
      const existing = await this.#records.get(workspace, kind, name)
      if (existing) throw taken(existing)
      await this.#admit(workspace, kind)
      // Nobody reads what one of this name before wrote.
      await this.#logs.remove(workspace, kindFacts[kind].plural, name)
      const draft = this.#draftOf(asked, null)
      await this.#admitUrls(asked, draft)
      const uid = sortableId(this.#clock.now())
      const { image, ...spec } = draft.spec
      const { states, revealed } = await this.#triggers.statesOf({ uid, spec: {} }, spec.triggers ?? [])
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
      const first = this.#withNew(withPolicies(body, undefined, this.#clock.now()), revision)
      const created = await this.#records.create({ kind, workspace, name }, first)
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
    return await this.#turn({ workspace, kind, name }, async () => {
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
      const { states, revealed } = await this.#triggers.statesOf(existing.body, draft.spec.triggers ?? [])
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
        const told = withPolicies(body, current.spec.policies, this.#clock.now())
        const led = draft.routing ? withRouting(told, draft.routing, revision !== null) : told
        return this.#withNew(this.#withState(led, draft.spec.enabled), revision)
      })
      const interrupt =
        revision?.phase === 'deploying' ||
        changed.body.state !== before ||
        changed.body.wanted !== existing.body.wanted
      return { ...(await this.#begun(changed, revision, asked, interrupt)), revealed }
    })
  }

  /**
   * Ends a deployment with all its instances, builds, and images that were built for it; answers its last state. Usually
   * nothing is left when this resolves. @throws not_found
   */
  async remove(workspace: string, kind: DeploymentKind, name: string): Promise<StoredDeployment> {
    this.#background.refuseWhenClosing()
    const deleting = await this.#turn({ workspace, kind, name }, async () => {
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
