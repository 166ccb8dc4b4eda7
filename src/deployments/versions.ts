import { badRequest, quoted } from '../lib/checks.ts'
import type { Fleet, RevisionLease, RevisionRun } from './fleet/index.ts'
import type { ServedKind } from './kinds.ts'
import {
  type DeploymentBody,
  isUsable,
  numberOf,
  type Revision,
  revisionOf,
  routed,
  type StoredDeployment,
} from './record.ts'
import type { DeploymentRecords } from './records.ts'

/** Requests for a revision of the client's choice. One that gets no others has an instance while somebody asks for it. */
export class Versions {
  readonly #records: DeploymentRecords
  readonly #fleet: Pick<Fleet, 'acquire' | 'serve' | 'retire'>
  readonly #runOf: (deployment: StoredDeployment, kind: ServedKind, revision: Revision) => RevisionRun
  /** Served for who asks for them; by their id, whose they are. */
  readonly #served = new Map<string, { workspace: string; kind: ServedKind; name: string }>()

  constructor(options: {
    records: DeploymentRecords
    fleet: Pick<Fleet, 'acquire' | 'serve' | 'retire'>
    runOf: (deployment: StoredDeployment, kind: ServedKind, revision: Revision) => RevisionRun
  }) {
    this.#records = options.records
    this.#fleet = options.fleet
    this.#runOf = options.runOf
  }

  /** @throws bad_request, not_found, and what the fleet throws */
  async acquire(
    workspace: string,
    kind: ServedKind,
    name: string,
    version: string,
    signal?: AbortSignal,
  ): Promise<{ lease: RevisionLease; revisionId: string }> {
    const deployment = await this.#records.require(workspace, kind, name)
    const revision = versionOf(deployment.body, version)
    if (!routed(deployment.body).has(revision.id)) {
      await this.#retireGone()
      this.#fleet.serve({ ...this.#runOf(deployment, kind, revision), minScale: 0 })
      this.#served.set(revision.id, { workspace, kind, name })
    }
    return { lease: await this.#fleet.acquire(revision.id, signal), revisionId: revision.id }
  }

  /** Those whose deployment, or revision, is no more. */
  async #retireGone(): Promise<void> {
    for (const [id, { workspace, kind, name }] of this.#served) {
      const deployment = await this.#records.get(workspace, kind, name)
      if (deployment && revisionOf(deployment.body, id)) continue
      this.#served.delete(id)
      this.#fleet.retire(id).catch(() => {})
    }
  }
}

/** By its number, its id, or `draft`: the newest that can serve. @throws bad_request that names those that there are */
export function versionOf(body: DeploymentBody, version: string): Revision {
  const usable = body.revisions.filter((revision) => isUsable(revision) && revision.image !== undefined)
  const found =
    version === 'draft'
      ? usable.at(-1)
      : usable.find((revision) => revision.id === version || String(numberOf(body, revision)) === version)
  if (found !== undefined) return found
  const known = usable.map((revision) => numberOf(body, revision)).join(', ')
  throw badRequest(
    `version: ${quoted(version)} is no version that is kept; there ${known === '' ? 'is none' : `are ${known}, and "draft"`}`,
  )
}
