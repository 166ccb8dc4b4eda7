import { Database } from 'bun:sqlite'
import { chmodSync, closeSync, existsSync, mkdirSync, openSync } from 'node:fs'
import { dirname } from 'node:path'
import { PlatformError } from '../../errors.ts'
import type { Clock } from '../../lib/clock.ts'
import { sortableId } from '../../lib/ids.ts'
import type { Logger } from '../../lib/log.ts'
import { othersTurn } from '../../lib/turns.ts'
import type { Queue } from '../../spec/queue.ts'
import {
  type BatchStep,
  batchStepsMax,
  findLimitDefault,
  findLimitMax,
  type IndexQuery,
  type NewResource,
  type Page,
  type PageQuery,
  type Resource,
  type ResourceChange,
  type ResourceEvent,
  type ResourceKey,
  type SortOrder,
  type Store,
} from '../../spec/store.ts'
import { type Change, ChangeFeed } from './change-feed.ts'
import { decodeCursor, encodeCursor, type Position } from './cursor.ts'
import { databaseVersion, knownVersion, migrate, refuseNewer } from './migrations.ts'
import type { Mutation, StepResult, WriteStep } from './protocol.ts'
import { SqliteQueue } from './queue.ts'
import { openReader, type Reader } from './reader.ts'
import {
  checkFilters,
  checkKey,
  checkPageQuery,
  checkText,
  checkTime,
  checkVersion,
  decodeRow,
  encodeBody,
  encodeIndexes,
  isCalled,
} from './resources.ts'
import type { ResourceRow } from './schema.ts'
import { Writer } from './writer.ts'

export interface SqliteStoreOptions {
  /** The database file; made, with its directory, when it is not there. */
  path: string
  clock: Clock
  log: Logger
  /** `process` survives kill -9 but may lose the last changes with the power. Default `power`. */
  durability?: 'power' | 'process'
  /** Called when the disk is full and something is to be changed or removed: whether there is room now. */
  makeRoom?: () => boolean
}

const setUpBusyTimeoutMs = 5000
/** Of a search, before others have their turn. */
const searchSliceRows = 50

/**
 * One SQLite file: reads on the calling thread, writes on a thread of their own that commits in groups.
 * @throws conflict when the file is of a newer version or of another program
 */
export async function openSqliteStore(
  options: SqliteStoreOptions,
): Promise<Store & { readonly queue: Queue }> {
  prepareDatabase(options.path, options.clock.now())
  return new SqliteStore(options)
}

class SqliteStore implements Store {
  readonly name = 'sqlite'
  readonly queue: SqliteQueue
  readonly #clock: Clock
  readonly #reader: Reader
  readonly #writer: Writer
  readonly #feed = new ChangeFeed()
  #closed: Promise<void> | null = null

  constructor({ path, clock, log, durability = 'power', makeRoom }: SqliteStoreOptions) {
    this.#clock = clock
    this.#reader = openReader(path)
    this.#writer = new Writer({
      ...{ path, durability, clock, log },
      makeRoom: makeRoom ?? (() => false),
      startWorker: () => threadOf('writer'),
      startFolder: () => threadOf('folder'),
      onBegin: () => this.#reader.hold(),
      onOver: () => this.#reader.letGo(),
      onCommit: (mutation, results) => this.#publish(mutation, results),
      onLost: () => {
        this.#feed.lose()
        this.queue.lose()
      },
    })
    this.queue = new SqliteQueue({ clock, writer: this.#writer, reader: () => this.#read().work })
  }

  async create<Body>(input: NewResource<Body>): Promise<Resource<Body>> {
    const [created] = await this.#mutate([this.#step({ op: 'create', input })])
    return created as Resource<Body>
  }

  async get<Body>(key: ResourceKey): Promise<Resource<Body> | null> {
    checkKey(key)
    const row = this.#read().get(key)
    return row ? decodeRow<Body>(row) : null
  }

  async find<Body>(query: IndexQuery): Promise<Resource<Body>[]> {
    checkKey(query)
    checkText('index', query.index)
    checkText('value', query.value)
    const { limit = findLimitDefault } = query
    if (!Number.isInteger(limit) || limit < 1 || limit > findLimitMax) {
      throw new PlatformError(
        'bad_request',
        `limit must be an integer from 1 to ${findLimitMax}, got ${limit}`,
      )
    }
    return this.#read()
      .find({ ...query, limit })
      .map((row) => decodeRow<Body>(row))
  }

  async update<Body>(
    key: ResourceKey,
    expectedVersion: number,
    change: ResourceChange<Body>,
  ): Promise<Resource<Body>> {
    const [updated] = await this.#mutate([this.#step({ op: 'update', key, expectedVersion, change })])
    return updated as Resource<Body>
  }

  async remove(key: ResourceKey, expectedVersion?: number): Promise<boolean> {
    const [removed] = await this.#mutate([this.#step({ op: 'remove', key, expectedVersion })])
    return removed as boolean
  }

  async batch(steps: BatchStep[]): Promise<(Resource | boolean)[]> {
    if (steps.length > batchStepsMax) {
      throw new PlatformError(
        'bad_request',
        `a batch of ${steps.length} steps, at most ${batchStepsMax} are allowed`,
      )
    }
    if (steps.length === 0) return []
    return this.#mutate(steps.map((step) => this.#step(step)))
  }

  async page<Body>(query: PageQuery): Promise<Page<Body>> {
    const { limit, sort } = checkPageQuery(query)
    const nowMs = this.#clock.now()
    if (query.anchor === 'end') {
      const backwards = sort === 'createdAt:asc' ? 'createdAt:desc' : 'createdAt:asc'
      const { rows, total } = await this.#rows(query, backwards, null, limit)
      const data = rows.reverse().map((row) => decodeRow<Body>(row))
      return { data, nextCursor: '', hasMore: false, total }
    }
    const after = query.cursor ? decodeCursor(query.cursor, query, sort, nowMs) : null
    // One more than asked for tells whether there is another page.
    const { rows, total } = await this.#rows(query, sort, after, limit + 1)
    const hasMore = rows.length > limit
    const shown = hasMore ? rows.slice(0, limit) : rows
    const last = shown.at(-1)
    return {
      data: shown.map((row) => decodeRow<Body>(row)),
      nextCursor: hasMore && last ? encodeCursor(query, sort, positionOf(last, sort), nowMs) : '',
      hasMore,
      total,
    }
  }

  async count(query: Pick<PageQuery, 'kind' | 'workspace' | 'where' | 'since' | 'until'>): Promise<number> {
    checkKey(query)
    checkFilters(query)
    return this.#read().count(query)
  }

  /** At most `count` rows that match, and how many there are of the kind. A search reads a slice at a time, and others between. */
  async #rows(
    query: PageQuery,
    sort: SortOrder,
    after: Position | null,
    count: number,
  ): Promise<{ rows: ResourceRow[]; total: number }> {
    const text = (query.search ?? '').toLowerCase()
    if (text === '') return this.#read().page(query, sort, after, count)
    const { rows: first, total } = this.#read().page(query, sort, after, searchSliceRows)
    const found: ResourceRow[] = []
    for (let slice = first; ; ) {
      for (const row of slice) if (found.length < count && isCalled(row, text)) found.push(row)
      const last = slice.at(-1)
      if (last === undefined || slice.length < searchSliceRows || found.length >= count)
        return { rows: found, total }
      await othersTurn()
      slice = this.#read().page(query, sort, positionOf(last, sort), searchSliceRows).rows
    }
  }

  watch(filter: { kind?: string; workspace?: string }, signal: AbortSignal): AsyncIterable<ResourceEvent> {
    if (this.#closed) throw new PlatformError('unavailable', 'the store is closed')
    return this.#feed.watch(filter, signal)
  }

  [Symbol.asyncDispose](): Promise<void> {
    this.#closed ??= this.#close()
    return this.#closed
  }

  async #close(): Promise<void> {
    const drained = this.#writer.close()
    // First, so that the writer is the last to leave: SQLite lets the last one fold the log away.
    this.#reader.close()
    await drained
    this.#feed.close()
  }

  #read(): Reader {
    if (this.#closed) throw new PlatformError('unavailable', 'the store is closed')
    return this.#reader
  }

  async #mutate(mutation: Mutation): Promise<(Resource | boolean)[]> {
    const results = await this.#writer.submit(mutation)
    return results.map((result, index) => {
      const row = rowAfter(mutation[index]!, result)
      return row ? decodeRow(row) : result.op !== 'remove' || result.id !== null
    })
  }

  #step(step: BatchStep): WriteStep {
    const now = checkTime('the clock', Math.trunc(this.#clock.now()))
    switch (step.op) {
      case 'create': {
        const { kind, workspace, name, body, indexes = {}, createdAt = now } = step.input
        checkKey({ kind, workspace, name })
        checkTime('createdAt', createdAt)
        return {
          op: 'create',
          id: sortableId(now),
          kind,
          workspace,
          name,
          createdAt,
          updatedAt: createdAt,
          indexes: encodeIndexes(indexes),
          body: encodeBody(body),
        }
      }
      case 'update': {
        const { kind, workspace, name } = step.key
        checkKey(step.key)
        const { body, indexes } = step.change
        return {
          op: 'update',
          kind,
          workspace,
          name,
          expectedVersion: checkVersion(step.expectedVersion),
          updatedAt: now,
          indexes: indexes === undefined ? null : encodeIndexes(indexes),
          body: encodeBody(body),
        }
      }
      case 'remove': {
        const { kind, workspace, name } = step.key
        checkKey(step.key)
        const expectedVersion = step.expectedVersion === undefined ? null : checkVersion(step.expectedVersion)
        return { op: 'remove', kind, workspace, name, expectedVersion }
      }
      case 'require': {
        const { kind, workspace, name } = step.key
        checkKey(step.key)
        return { op: 'require', kind, workspace, name }
      }
      case 'requireNone': {
        const { kind, workspace } = step
        checkKey({ kind, workspace })
        return { op: 'requireNone', kind, workspace, name: '' }
      }
    }
  }

  #publish(mutation: Mutation, results: StepResult[]): void {
    for (const [index, step] of mutation.entries()) {
      const change = changeOf(step, results[index]!)
      if (change) this.#feed.emit(change)
    }
  }
}

/** Where a list goes on behind a row. */
function positionOf(row: ResourceRow, sort: SortOrder): Position {
  return sort.startsWith('name:') ? [row.name, row.workspace] : [row.createdAt, row.id]
}

function changeOf(step: WriteStep, result: StepResult): Change | null {
  if (!('kind' in step)) return null
  const row = rowAfter(step, result)
  if (row) return { type: step.op === 'create' ? 'created' : 'updated', row }
  if (result.op !== 'remove' || result.id === null) return null
  return {
    type: 'removed',
    key: { kind: step.kind, workspace: step.workspace, name: step.name },
    id: result.id,
  }
}

/** The row as the step left it, put together from what was sent and what came back. */
function rowAfter(step: WriteStep, result: StepResult): ResourceRow | null {
  if (step.op === 'create') {
    const { id, kind, workspace, name, createdAt, updatedAt, indexes, body } = step
    return { id, kind, workspace, name, version: 1, createdAt, updatedAt, indexes, body }
  }
  if (step.op === 'update' && result.op === 'update') {
    const { kind, workspace, name, updatedAt, body } = step
    const { id, version, createdAt, indexes } = result
    return { id, kind, workspace, name, version, createdAt, updatedAt, indexes, body }
  }
  return null
}

/** Makes or migrates the file. A file of a newer version is only ever opened for reading. */
function prepareDatabase(path: string, nowMs: number): void {
  try {
    if (existsSync(path)) {
      const probe = new Database(path, { readonly: true })
      try {
        const version = databaseVersion(probe, path)
        refuseNewer(version, path)
        if (version === knownVersion) return
      } finally {
        probe.close()
      }
    } else {
      mkdirSync(dirname(path), { recursive: true, mode: 0o700 })
      // SQLite gives the log and the shared memory the mode of the database.
      closeSync(openSync(path, 'a', 0o600))
    }
    chmodSync(path, 0o600)
    const database = new Database(path, { readwrite: true })
    try {
      database.exec(`PRAGMA busy_timeout = ${setUpBusyTimeoutMs}`)
      database.exec('PRAGMA journal_mode = WAL')
      database.exec('PRAGMA synchronous = FULL')
      migrate(database, path, nowMs)
    } finally {
      database.close()
    }
  } catch (error) {
    if (PlatformError.is(error)) throw error
    const reason = error instanceof Error ? error.message : String(error)
    throw new PlatformError('internal', `the database ${path} cannot be opened: ${reason}`, { cause: error })
  }
}

/**
 * In a compiled executable a module lies where it lay below `src`, the root of the build's entry points, of which
 * the workers are some; `import.meta.url` there names a chunk.
 */
function threadOf(name: 'writer' | 'folder'): Bun.Worker {
  const isCompiled = import.meta.url.startsWith('file:///$bunfs/')
  const file = `${name}.worker.ts`
  const module = isCompiled
    ? `/$bunfs/root/stores/sqlite/${file}`
    : new URL(`./${file}`, import.meta.url).href
  return new Worker(module) as unknown as Bun.Worker
}
