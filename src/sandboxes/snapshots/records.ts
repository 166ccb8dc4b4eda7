import { PlatformError } from '../../errors.ts'
import type { Page, PageAsked, Store } from '../../spec/store.ts'
import { everyItem, findLimitMax } from '../../spec/store.ts'
import { inWorkspace } from '../../workspaces/index.ts'
import {
  indexesOf,
  isSnapshotId,
  type SnapshotBody,
  type StoredSnapshot,
  snapshotKey,
  snapshotKind,
} from './record.ts'

/** The records of snapshots: they belong to a workspace, and outlive the sandboxes they were taken of. */
export class SnapshotRecords {
  readonly #store: Store

  constructor(store: Store) {
    this.#store = store
  }

  page(workspace: string, query: PageAsked): Promise<Page<SnapshotBody>> {
    return this.#store.page<SnapshotBody>({ kind: snapshotKind, workspace, ...query })
  }

  /** Of one sandbox, newest first. */
  async ofSandbox(workspace: string, uid: string): Promise<StoredSnapshot[]> {
    return await this.#find(workspace, 'source', uid)
  }

  async count(workspace: string): Promise<number> {
    return (await this.#store.page({ kind: snapshotKind, workspace, limit: 1 })).total
  }

  /** Of all workspaces. */
  every(): AsyncIterable<StoredSnapshot> {
    return everyItem((page) =>
      this.#store.page<SnapshotBody>({ kind: snapshotKind, sort: 'createdAt:asc', ...page }),
    )
  }

  /**
   * By id, or by a name that no other has; with `uid` only of that sandbox.
   * @throws not_found, conflict for a name of several
   */
  async require(workspace: string, idOrName: string, uid?: string): Promise<StoredSnapshot> {
    const index = isSnapshotId(idOrName) ? 'id' : 'name'
    const found = (await this.#find(workspace, index, idOrName)).filter(
      ({ body }) => uid === undefined || body.source.uid === uid,
    )
    const [first, second] = found
    if (first && !second) return first
    const shown = JSON.stringify(idOrName.slice(0, 80))
    if (second) {
      throw new PlatformError(
        'conflict',
        `several sandboxes of this workspace have a snapshot ${shown}: name it by its id, such as ${second.body.id}`,
      )
    }
    const where = uid === undefined ? 'in this workspace' : 'of this sandbox'
    throw new PlatformError('not_found', `there is no snapshot ${shown} ${where}`)
  }

  async create(workspace: string, body: SnapshotBody, createdAt: number): Promise<StoredSnapshot> {
    const [created] = await this.#store.batch([
      { op: 'create', input: { ...snapshotKey(workspace, body), body, indexes: indexesOf(body), createdAt } },
      inWorkspace(workspace),
    ])
    return created as StoredSnapshot
  }

  /** Answers null when it has been removed. */
  async change(
    { workspace, body, version }: StoredSnapshot,
    change: Partial<Pick<SnapshotBody, 'status' | 'bytes' | 'memoryKept' | 'reason'>>,
  ): Promise<StoredSnapshot | null> {
    try {
      return await this.#store.update<SnapshotBody>(snapshotKey(workspace, body), version, {
        body: { ...body, ...change },
      })
    } catch (error) {
      if (PlatformError.is(error) && error.code === 'not_found') return null
      throw error
    }
  }

  /** Answers false when it was gone. */
  remove({ workspace, body }: StoredSnapshot): Promise<boolean> {
    return this.#store.remove(snapshotKey(workspace, body))
  }

  async #find(workspace: string, index: string, value: string): Promise<StoredSnapshot[]> {
    if (value.includes('\0')) return []
    const query = { kind: snapshotKind, workspace, index, value, limit: findLimitMax }
    return await this.#store.find<SnapshotBody>(query)
  }
}
