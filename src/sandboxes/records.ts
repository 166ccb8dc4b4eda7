import { PlatformError } from '../errors.ts'
import type { BatchStep, Page, PageAsked, ResourceKey, Store } from '../spec/store.ts'
import { everyItem } from '../spec/store.ts'
import { checkExternalId } from './draft.ts'
import { indexesOf, type SandboxBody, type StoredSandbox, sandboxKind } from './record.ts'
import { type SandboxStatus, sandboxStatuses } from './schema.ts'

const changeAttemptsMax = 8

export interface SandboxListQuery extends PageAsked {
  externalId?: string
  /** Comma separated; wins over `showTerminated`. */
  status?: string
  showTerminated?: boolean
}

/** The records of sandboxes in the store: lists and compare-and-set. */
export class SandboxRecords {
  readonly #store: Store

  constructor(store: Store) {
    this.#store = store
  }

  async get(workspace: string, name: string): Promise<StoredSandbox | null> {
    return await this.#store.get<SandboxBody>({ kind: sandboxKind, workspace, name })
  }

  /** @throws not_found */
  async require(workspace: string, name: string): Promise<StoredSandbox> {
    const found = await this.get(workspace, name)
    if (!found) throw notFound(name)
    return found
  }

  /** @throws bad_request */
  async list(workspace: string, query: SandboxListQuery): Promise<Page<SandboxBody>> {
    const { externalId, showTerminated, ...page } = query
    const status = query.status
      ? statusesOf(query.status)
      : sandboxStatuses.filter((one) => showTerminated || one !== 'TERMINATED')
    return await this.#store.page<SandboxBody>({
      kind: sandboxKind,
      workspace,
      ...page,
      where: {
        status,
        ...(externalId === undefined ? {} : { externalId: checkExternalId(externalId) }),
      },
    })
  }

  /** The newest that lives. @throws not_found, bad_request */
  async getByExternalId(workspace: string, externalId: string): Promise<StoredSandbox> {
    const page = await this.#store.page<SandboxBody>({
      kind: sandboxKind,
      workspace,
      limit: 1,
      where: {
        externalId: checkExternalId(externalId),
        status: sandboxStatuses.filter((status) => status !== 'TERMINATED' && status !== 'DELETING'),
      },
    })
    const found = page.data[0]
    if (!found) throw new PlatformError('not_found', `no sandbox has the external id "${externalId}"`)
    return found
  }

  /** Every sandbox of the platform, oldest first. */
  every(): AsyncIterable<StoredSandbox> {
    return everyItem((page) =>
      this.#store.page<SandboxBody>({ kind: sandboxKind, sort: 'createdAt:asc', ...page }),
    )
  }

  /**
   * Compare-and-set until it took, in one batch with `more`. `change` sees the record as it is by then; answering
   * null leaves it alone, and `more` unwritten. @throws not_found
   */
  async change(
    sandbox: StoredSandbox,
    change: (current: SandboxBody) => SandboxBody | null,
    more: BatchStep[] = [],
  ): Promise<StoredSandbox> {
    let current = sandbox
    for (let attempt = 1; ; attempt++) {
      const body = change(current.body)
      if (body === null) return current
      try {
        const [updated] = await this.#store.batch([
          {
            op: 'update',
            key: keyOf(current),
            expectedVersion: current.version,
            change: { body, indexes: indexesOf(body) },
          },
          ...more,
        ])
        return updated as StoredSandbox
      } catch (error) {
        const raced = PlatformError.is(error) && error.code === 'version_mismatch'
        if (!raced || attempt >= changeAttemptsMax) throw error
        const fresh = await this.get(current.workspace, current.name)
        if (!fresh) throw notFound(current.name)
        current = fresh
      }
    }
  }
}

export function keyOf({ kind, workspace, name }: StoredSandbox): ResourceKey {
  return { kind, workspace, name }
}

export function notFound(name: string): PlatformError {
  return new PlatformError('not_found', `there is no sandbox "${name.slice(0, 64)}" in this workspace`)
}

function statusesOf(text: string): SandboxStatus[] {
  return text.split(',').map((part) => {
    const status = part.trim() as SandboxStatus
    if (!sandboxStatuses.includes(status)) {
      throw new PlatformError(
        'bad_request',
        `status: "${status.slice(0, 40)}" is not one of ${sandboxStatuses.join(', ')}`,
      )
    }
    return status
  })
}
