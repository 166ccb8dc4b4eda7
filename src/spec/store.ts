import { othersTurn } from '../lib/turns.ts'

/**
 * The store seam: named resources with versions, indexes, pages and a change feed.
 *
 * Guarantees every driver gives:
 * - A mutation that resolved is durable: it survives kill -9 of the process and, unless the driver was opened
 *   with `durability: 'process'`, loss of power.
 * - Reads see every mutation that resolved before the read began (read your writes).
 * - `create`, `update`, `remove` and `batch` are atomic, `batch` as a whole.
 * - Bodies are plain JSON of at most `resourceBodyBytesMax`; what is returned is a copy the caller owns.
 * - Kinds, workspaces, names, index names and values are any Unicode text without NUL of at most
 *   `resourceNameLengthMax` UTF-16 units, kept as they are: no case folding, no normalisation. Else: bad_request.
 * - More than `storeWritesWaitingMax` mutations waiting for the disk, or a closed store: unavailable. A full disk:
 *   insufficient_storage, with nothing changed.
 */
export interface Store extends AsyncDisposable {
  readonly name: string

  /** @throws already_exists when (kind, workspace, name) is taken, also by a concurrent caller. */
  create<Body>(input: NewResource<Body>): Promise<Resource<Body>>

  /** Null when absent. */
  get<Body>(key: ResourceKey): Promise<Resource<Body> | null>

  /** Resources of a kind whose index `index` equals `value`, newest first, at most `limit` (default 100, at most 1000). */
  find<Body>(query: IndexQuery): Promise<Resource<Body>[]>

  /**
   * Replaces the body, and the indexes when given, when the stored version is `expectedVersion`.
   * @throws not_found, version_mismatch
   */
  update<Body>(
    key: ResourceKey,
    expectedVersion: number,
    change: ResourceChange<Body>,
  ): Promise<Resource<Body>>

  /**
   * Answers false when there was nothing to remove, whatever `expectedVersion`.
   * @throws version_mismatch when there is one and its version is not `expectedVersion`
   */
  remove(key: ResourceKey, expectedVersion?: number): Promise<boolean>

  /**
   * All or nothing, in order, at most `batchStepsMax` steps. Answers what each made of its resource, whether a removal
   * found one, and true for a requirement. @throws what the first failing step throws
   */
  batch(steps: BatchStep[]): Promise<(Resource | boolean)[]>

  /**
   * One page. Following the cursors gives every resource that was there throughout exactly once, whatever is created
   * and removed meanwhile. @throws bad_request for a cursor that is malformed, older than 24 h or of another query,
   * and for a limit, sort or filter that is not allowed
   */
  page<Body>(query: PageQuery): Promise<Page<Body>>

  /** How many `page` would find with this, all pages together. */
  count(query: Pick<PageQuery, 'kind' | 'workspace' | 'where' | 'since' | 'until'>): Promise<number>

  /**
   * Changes committed after the call, in commit order, until `signal` aborts or the store closes. A consumer that
   * falls more than `watchBufferMax` changes behind gets one `{ type: 'lost' }` instead of them and must read again;
   * later changes follow it.
   */
  watch(filter: { kind?: string; workspace?: string }, signal: AbortSignal): AsyncIterable<ResourceEvent>
}

export const watchBufferMax = 4096
export const pageLimitDefault = 50
export const pageLimitMax = 200
export const pageFiltersMax = 16
export const pageOffsetMax = 1_000_000
export const cursorAgeMsMax = 24 * 60 * 60 * 1000
export const findLimitDefault = 100
export const findLimitMax = 1000
export const batchStepsMax = 1000
export const resourceNameLengthMax = 1024
export const resourceBodyBytesMax = 16 * 1024 * 1024
export const storeWritesWaitingMax = 10_000

/** `workspace` is '' for what belongs to the whole platform (workspaces, users). */
export interface ResourceKey {
  kind: string
  workspace: string
  name: string
}

export interface NewResource<Body = unknown> extends ResourceKey {
  body: Body
  /** index name -> value; the driver indexes them for `find` and `page`. */
  indexes?: Record<string, string>
  /** Milliseconds since the epoch; default: the driver's clock. */
  createdAt?: number
}

export interface ResourceChange<Body = unknown> {
  body: Body
  /** Absent: unchanged. */
  indexes?: Record<string, string>
}

export interface Resource<Body = unknown> extends ResourceKey {
  /** Unique for ever, also when the name is used again. Sorts by creation. */
  id: string
  /** 1 at creation, one more at each update. */
  version: number
  createdAt: number
  updatedAt: number
  indexes: Record<string, string>
  body: Body
}

export interface IndexQuery {
  kind: string
  /** Absent: any workspace. */
  workspace?: string
  index: string
  value: string
  limit?: number
}

/** Names sort by code point; equal times by id. */
export const sortOrders = ['createdAt:desc', 'createdAt:asc', 'name:asc', 'name:desc'] as const
export type SortOrder = (typeof sortOrders)[number]

export interface PageQuery {
  kind: string
  workspace?: string
  /** 1..pageLimitMax, default pageLimitDefault. */
  limit?: number
  cursor?: string
  /** Default createdAt:desc. */
  sort?: SortOrder
  /** Every named index must equal its value, or one of its values. */
  where?: Record<string, string | string[]>
  /** What the name, `displayName` of the body or a key or value of its `labels` has in it, in any case; '' filters nothing. */
  search?: string
  /** Created then or later, and then or before; milliseconds since the epoch. */
  since?: number
  until?: number
  /** `end`: the last page, in the same order, without the cursors to it. For orders by time alone, and with no cursor. */
  anchor?: 'end'
  /** How many of the first are left out, at most `pageOffsetMax`: for clients that count pages. With no cursor, search or anchor. */
  offset?: number
}

/** What a client may say about a page of any list. */
export type PageAsked = Pick<PageQuery, 'limit' | 'cursor' | 'sort' | 'search' | 'anchor'>

export interface Page<Body = unknown> {
  data: Resource<Body>[]
  /** '' on the last page. */
  nextCursor: string
  hasMore: boolean
  /** How many of this kind the workspace holds, filters ignored. */
  total: number
}

const pagesMax = 100_000

/** Every item of a list, one page after the other; `read` is `store.page` with what it is to look for, or alike. */
export async function* everyItem<Body>(
  read: (page: { limit: number; cursor?: string }) => Promise<Page<Body>>,
): AsyncIterable<Resource<Body>> {
  let cursor: string | undefined
  for (let count = 0; count < pagesMax; count++) {
    const page = await read({ limit: pageLimitMax, ...(cursor ? { cursor } : {}) })
    yield* page.data
    if (!page.hasMore) return
    cursor = page.nextCursor
    await othersTurn()
  }
}

export type BatchStep =
  | { op: 'create'; input: NewResource }
  | { op: 'update'; key: ResourceKey; expectedVersion: number; change: ResourceChange }
  | { op: 'remove'; key: ResourceKey; expectedVersion?: number }
  /** Changes nothing; the batch fails with not_found unless the resource is there. */
  | { op: 'require'; key: ResourceKey }
  /** Changes nothing; the batch fails with conflict when the workspace has a resource of the kind. */
  | { op: 'requireNone'; kind: string; workspace: string }

export type ResourceEvent =
  | { type: 'created' | 'updated'; resource: Resource }
  | { type: 'removed'; key: ResourceKey; id: string }
  | { type: 'lost' }
