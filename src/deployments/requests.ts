import { PlatformError } from '../errors.ts'
import type { Clock } from '../lib/clock.ts'
import type { AcquireOptions, Fleet, RevisionLease, RevisionRun } from './fleet/index.ts'
import { type DeploymentKind, kindFacts, type ServedKind, type Transport } from './kinds.ts'
import type { Revision, StoredDeployment } from './record.ts'
import type { DeploymentRecords } from './records.ts'
import { failureOf, statusOf } from './status.ts'
import type { DeploymentTable, TableEntry } from './table.ts'
import { pick, stickyCookie, stickyCookieName, stickyValue } from './traffic.ts'
import { Versions } from './versions.ts'

/** How often another revision is picked for a request whose revision was just taken away. */
const picksMax = 3

/** What decides who answers. */
export interface DeploymentRequest extends Pick<AcquireOptions, 'fits'> {
  cookie: string | null
  /** Where the cookie that keeps a client with its revision counts; default: the deployment's path. */
  cookiePath?: string
}

export interface DeploymentLease {
  lease: RevisionLease
  revisionId: string
  transport: Transport | null
  /** For the answer: keeps the client with this revision. */
  setCookie: string | null
}

/** Whoever waits, and may leave. */
export interface Caller {
  /** Not asked for where there is nothing to wait for: to make one costs more than to find an instance. */
  readonly signal: AbortSignal
}

/** A revision, null while nothing is served, and how it came to be that one. */
interface Picked {
  entry: TableEntry
  sticky: string | null
  revisionId: string | null
}

/** From a request to an instance of the revision that it is led to. */
export class DeploymentRequests {
  readonly #table: DeploymentTable
  readonly #fleet: Pick<Fleet, 'acquire' | 'acquireNow' | 'revisionOf'>
  readonly #records: DeploymentRecords
  readonly #clock: Clock
  readonly #random: () => number
  readonly #versions: Versions

  constructor(options: {
    table: DeploymentTable
    fleet: Pick<Fleet, 'acquire' | 'acquireNow' | 'revisionOf' | 'serve' | 'retire'>
    records: DeploymentRecords
    runOf: (deployment: StoredDeployment, kind: ServedKind, revision: Revision) => RevisionRun
    clock: Clock
    /** In [0, 1). */
    random: () => number
  }) {
    this.#table = options.table
    this.#fleet = options.fleet
    this.#records = options.records
    this.#clock = options.clock
    this.#random = options.random
    this.#versions = new Versions(options)
  }

  /**
   * Picks a revision and an instance of it, by whom the client was served before where sessions stick; at once where there
   * is nothing to wait for. `caller`: whose signal is asked for where there is.
   * @throws workload_not_found, workload_unavailable while nothing is served, and what the fleet throws
   */
  acquire(
    workspace: string,
    kind: DeploymentKind,
    name: string,
    request: DeploymentRequest,
    caller?: Caller,
  ): DeploymentLease | Promise<DeploymentLease> {
    const picked = this.#pick(workspace, kind, name, request)
    const lease =
      picked.revisionId === null ? null : this.#fleet.acquireNow(picked.revisionId, optionsOf(request))
    if (picked.revisionId !== null && lease !== null) {
      return leaseOf(lease, picked.revisionId, picked, request)
    }
    return this.#acquire(picked, request, caller)
  }

  async #acquire(first: Picked, request: DeploymentRequest, caller?: Caller): Promise<DeploymentLease> {
    let picked = first
    for (let picks = 1; ; picks++) {
      const { revisionId, entry } = picked
      const { workspace, kind, name } = entry
      if (revisionId === null) throw await this.#unavailable(workspace, kind, name)
      try {
        const lease = await this.#fleet.acquire(revisionId, caller?.signal, optionsOf(request))
        return leaseOf(lease, revisionId, picked, request)
      } catch (error) {
        // It was taken away in between: another one is served by now.
        const gone = PlatformError.is(error) && error.code === 'workload_not_found'
        if (!gone) throw error
        if (picks >= picksMax) throw await this.#unavailable(workspace, kind, name)
      }
      picked = this.#pick(workspace, kind, name, request)
    }
  }

  /**
   * An instance of one revision, whatever traffic it has: by its number, its id, or `draft` for the newest that can serve.
   * @throws bad_request for a version that there is not, workload_not_found, and what the fleet throws
   */
  async acquireVersion(
    workspace: string,
    kind: ServedKind,
    name: string,
    version: string,
    signal?: AbortSignal,
  ): Promise<DeploymentLease> {
    const { transports } = this.#entryOf(workspace, kind, name)
    const { lease, revisionId } = await this.#versions.acquire(workspace, kind, name, version, signal)
    return { lease, revisionId, transport: transports.get(revisionId) ?? null, setCookie: null }
  }

  /** @throws workload_not_found, workload_unavailable */
  #pick(workspace: string, kind: DeploymentKind, name: string, { cookie }: DeploymentRequest): Picked {
    const entry = this.#entryOf(workspace, kind, name)
    const { traffic, stickySessionTtl } = entry
    const sticky = stickySessionTtl > 0 ? stickyValue(cookie, stickyCookieName(kind, name)) : null
    return { entry, sticky, revisionId: pick(traffic, sticky, this.#random()) }
  }

  /** One instance of a deployment, whatever revision it is of; null when it is gone, or not of this deployment. */
  async acquireInstance(
    workspace: string,
    kind: DeploymentKind,
    name: string,
    instanceId: string,
    caller?: Caller,
  ): Promise<DeploymentLease | null> {
    const { revisionIds, transports } = this.#entryOf(workspace, kind, name)
    const revisionId = this.#fleet.revisionOf(instanceId)
    if (revisionId === null || !revisionIds.has(revisionId)) return null
    try {
      const lease = await this.#fleet.acquire(revisionId, caller?.signal, { instanceId })
      return { lease, revisionId, transport: transports.get(revisionId) ?? null, setCookie: null }
    } catch (error) {
      if (PlatformError.is(error) && error.code === 'workload_not_found') return null
      throw error
    }
  }

  #entryOf(workspace: string, kind: DeploymentKind, name: string): TableEntry {
    const entry = this.#table.get(workspace, kind, name)
    if (entry === null || entry.state === 'deleting') {
      throw new PlatformError(
        'workload_not_found',
        `there is no ${kind} "${name.slice(0, 64)}" in the workspace "${workspace}"`,
      )
    }
    if (entry.state === 'active') return entry
    throw new PlatformError(
      'workload_unavailable',
      `the ${kind} "${name}" is deactivated: activate it first (spec.enabled)`,
      {
        advice: {
          action: `Activate it: update the ${kind} with spec.enabled: true.`,
          doNot: 'Retry before it is active.',
        },
      },
    )
  }

  /** Why nothing answers. */
  async #unavailable(workspace: string, kind: DeploymentKind, name: string): Promise<PlatformError> {
    const found = await this.#records.get(workspace, kind, name)
    if (!found) {
      return new PlatformError(
        'workload_not_found',
        `there is no ${kind} "${name.slice(0, 64)}" in the workspace "${workspace}"`,
      )
    }
    const failure = failureOf(found.body)
    const status = statusOf(found.body, this.#clock.now())
    const why = failure === null ? `its status is ${status}` : `its last deployment failed: ${failure}`
    return new PlatformError(
      'workload_unavailable',
      `the ${kind} "${name}" is not served: ${why}`,
      failure === null
        ? {}
        : {
            advice: {
              action: 'Correct what the message says, and deploy it again.',
              doNot: 'Retry before it is deployed.',
            },
          },
    )
  }
}

const anyInstance: AcquireOptions = {}

function optionsOf({ fits }: DeploymentRequest): AcquireOptions {
  return fits === undefined ? anyInstance : { fits }
}

function leaseOf(
  lease: RevisionLease,
  revisionId: string,
  { entry, sticky }: Picked,
  { cookiePath }: DeploymentRequest,
): DeploymentLease {
  const { workspace, kind, name, transports, stickySessionTtl } = entry
  return {
    lease,
    revisionId,
    transport: transports.get(revisionId) ?? null,
    setCookie:
      stickySessionTtl > 0 && sticky !== revisionId
        ? stickyCookie(stickyCookieName(kind, name), revisionId, {
            ttlSeconds: stickySessionTtl,
            path: cookiePath ?? `/${workspace}/${kindFacts[kind].plural}/${name}`,
          })
        : null,
  }
}
