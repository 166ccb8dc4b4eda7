import { PlatformError } from '../errors.ts'
import type { Page, PageAsked, ResourceKey, Store } from '../spec/store.ts'
import { everyItem } from '../spec/store.ts'
import { inWorkspace } from '../workspaces/index.ts'
import { type DeploymentKind, deploymentKinds, deploymentStatuses } from './kinds.ts'
import type { DeploymentBody, DeploymentStatus, StoredDeployment } from './record.ts'
import { statusOf } from './status.ts'

const changeAttemptsMax = 8
/** Of other kinds of resources: no deployment has one, and clients may ask for all there are. */
const statusesElsewhere = ['TERMINATED', 'BUILT', 'ARCHIVING', 'ARCHIVED', 'UNARCHIVING']

export interface DeploymentListQuery extends PageAsked {
  /** Comma separated, in any case. */
  status?: string
}

/** The records of deployments in the store: lists and compare-and-set. */
export class DeploymentRecords {
  readonly #store: Store
  readonly #changed: (deployment: StoredDeployment) => void

  /** `changed` is called with every record that was written, before its writer goes on. */
  constructor(store: Store, changed: (deployment: StoredDeployment) => void) {
    this.#store = store
    this.#changed = changed
  }

  async get(workspace: string, kind: DeploymentKind, name: string): Promise<StoredDeployment | null> {
    return await this.#store.get<DeploymentBody>({ kind, workspace, name })
  }

  /** @throws not_found */
  async require(workspace: string, kind: DeploymentKind, name: string): Promise<StoredDeployment> {
    const found = await this.get(workspace, kind, name)
    if (!found) throw notFound(kind, name)
    return found
  }

  /** @throws bad_request */
  async list(
    workspace: string,
    kind: DeploymentKind,
    query: DeploymentListQuery,
  ): Promise<Page<DeploymentBody>> {
    const { status, ...page } = query
    return await this.#store.page<DeploymentBody>({
      kind,
      workspace,
      ...page,
      ...(status ? { where: { status: statusesOf(status) } } : {}),
    })
  }

  /** Every deployment of the platform, oldest first. */
  async *every(): AsyncIterable<StoredDeployment> {
    for (const kind of deploymentKinds)
      yield* everyItem((page) => this.#store.page<DeploymentBody>({ kind, sort: 'createdAt:asc', ...page }))
  }

  /** @throws already_exists */
  async create(key: ResourceKey, body: DeploymentBody): Promise<StoredDeployment> {
    const [created] = await this.#store.batch([
      { op: 'create', input: { ...key, body, indexes: indexesOf(body) } },
      inWorkspace(key.workspace),
    ])
    this.#changed(created as StoredDeployment)
    return created as StoredDeployment
  }

  /**
   * Compare-and-set until it took. `change` sees the record as it is by then; answering null leaves it alone.
   * @throws not_found
   */
  async change(
    deployment: StoredDeployment,
    change: (current: DeploymentBody) => DeploymentBody | null,
  ): Promise<StoredDeployment> {
    let current = deployment
    for (let attempt = 1; ; attempt++) {
      const body = change(current.body)
      if (body === null) return current
      try {
        const updated = await this.#store.update<DeploymentBody>(keyOf(current), current.version, {
          body,
          indexes: indexesOf(body),
        })
        this.#changed(updated)
        return updated
      } catch (error) {
        const raced = PlatformError.is(error) && error.code === 'version_mismatch'
        if (!raced || attempt >= changeAttemptsMax) throw error
        const fresh = await this.get(current.workspace, current.kind as DeploymentKind, current.name)
        if (fresh?.body.uid !== deployment.body.uid) throw notFound(current.kind, current.name)
        current = fresh
      }
    }
  }

  async remove(deployment: StoredDeployment): Promise<void> {
    await this.#store.remove(keyOf(deployment))
  }
}

export function keyOf({ kind, workspace, name }: ResourceKey): ResourceKey {
  return { kind, workspace, name }
}

export function notFound(kind: string, name: string): PlatformError {
  return new PlatformError('not_found', `there is no ${kind} "${name.slice(0, 64)}" in this workspace`)
}

/** As it is once nothing is shown for longer than it lasted: lists are filtered by that. */
function indexesOf(body: DeploymentBody): Record<string, string> {
  return { status: statusOf(body, Number.POSITIVE_INFINITY) }
}

function statusesOf(text: string): string[] {
  return text.split(',').map((part) => {
    const status = part.trim().toUpperCase()
    if (deploymentStatuses.includes(status as DeploymentStatus) || statusesElsewhere.includes(status))
      return status
    throw new PlatformError(
      'bad_request',
      `status: "${part.trim().slice(0, 40)}" is not one of ${deploymentStatuses.join(', ')}`,
    )
  })
}
