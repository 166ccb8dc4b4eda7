import { PlatformError } from '../errors.ts'
import { everyItem, type Store } from '../spec/store.ts'
import { inWorkspace } from '../workspaces/index.ts'
import {
  type BuildBody,
  type BuildOwner,
  buildKind,
  indexesOf,
  ownerKey,
  type StoredBuild,
} from './record.ts'

const changeAttemptsMax = 8

/** The records of builds in the store: by id, by owner, by upload address. */
export class BuildRecords {
  readonly #store: Store

  constructor(store: Store) {
    this.#store = store
  }

  async create(workspace: string, id: string, body: BuildBody): Promise<StoredBuild> {
    const [created] = await this.#store.batch([
      { op: 'create', input: { kind: buildKind, workspace, name: id, body, indexes: indexesOf(body) } },
      inWorkspace(workspace),
    ])
    return created as StoredBuild
  }

  async get(workspace: string, id: string): Promise<StoredBuild | null> {
    return await this.#store.get<BuildBody>({ kind: buildKind, workspace, name: id })
  }

  async byToken(hash: string): Promise<StoredBuild | null> {
    const [found] = await this.#store.find<BuildBody>({
      kind: buildKind,
      index: 'token',
      value: hash,
      limit: 1,
    })
    return found ?? null
  }

  /** Newest first. */
  async ofOwner(owner: Omit<BuildOwner, 'tag'>): Promise<StoredBuild[]> {
    return await this.#store.find<BuildBody>({
      kind: buildKind,
      workspace: owner.workspace,
      index: 'owner',
      value: ownerKey(owner),
    })
  }

  /** Those whose owners wait for something, oldest first. */
  underWay(): AsyncIterable<StoredBuild> {
    return everyItem((page) =>
      this.#store.page<BuildBody>({
        kind: buildKind,
        sort: 'createdAt:asc',
        where: { over: 'false' },
        ...page,
      }),
    )
  }

  /** Every one of a workspace. */
  ofWorkspace(workspace: string): AsyncIterable<StoredBuild> {
    return everyItem((page) =>
      this.#store.page<BuildBody>({ kind: buildKind, workspace, sort: 'createdAt:asc', ...page }),
    )
  }

  /**
   * Compare-and-set until it took. `change` sees the record as it is by then; answering null leaves it alone. Null for one
   * that is gone.
   */
  async change(
    build: StoredBuild,
    change: (current: BuildBody) => BuildBody | null,
  ): Promise<StoredBuild | null> {
    let current: StoredBuild | null = build
    for (let attempt = 1; current !== null; attempt++) {
      const body = change(current.body)
      if (body === null) return current
      try {
        return await this.#store.update<BuildBody>(keyOf(current), current.version, {
          body,
          indexes: indexesOf(body),
        })
      } catch (error) {
        const code = PlatformError.is(error) ? error.code : null
        if (code === 'not_found') return null
        if (code !== 'version_mismatch' || attempt >= changeAttemptsMax) throw error
        current = await this.get(build.workspace, build.name)
      }
    }
    return null
  }

  async remove(build: StoredBuild): Promise<void> {
    await this.#store.remove(keyOf(build))
  }
}

export function keyOf({ workspace, name }: Pick<StoredBuild, 'workspace' | 'name'>) {
  return { kind: buildKind, workspace, name }
}
