/** What agents remember together: values and vectors, each in a scope of its workspace, and what changed. */
import { PlatformError } from '../errors.ts'
import type { Clock } from '../lib/clock.ts'
import { KeyedLock } from '../lib/keyed-lock.ts'
import { othersTurn } from '../lib/turns.ts'
import { Journal, removalOf } from '../spec/journal.ts'
import { type BatchStep, everyItem, type Resource, type Store } from '../spec/store.ts'
import { inWorkspace } from '../workspaces/index.ts'
import { Followers } from './followers.ts'
import { matchesPattern } from './pattern.ts'
import { indexOf, type MemoryPlace, type MemoryScope, nameOf } from './place.ts'
import { Vectors, vectorKind } from './vectors.ts'

export { type MemoryPlace, type MemoryScope, memoryScopes } from './place.ts'
export type { MemoryVector } from './vectors.ts'

const valueKind = 'memory_value'
const changeKind = 'memory_change'
/** In a workspace. */
const valuesMax = 100_000
const changesKeptMax = 10_000
const valueBytesMax = 4 * 1024 * 1024
/** A change tells values up to this size, as JSON; of larger ones that there is one. */
const toldBytesMax = 64 * 1024
const historyMax = 1000
/** Read at once, so that large ones take little memory together. */
const changesReadMax = 50
const valuesReadMax = 3

interface ValueBody extends MemoryPlace {
  key: string
  data: unknown
}

export interface MemoryValue extends ValueBody {
  createdAt: number
  updatedAt: number
}

/** Who changed something, as they say. */
export interface MemoryAuthor {
  agentId: string
  actorId: string
  workflowId: string
}

interface ChangeBody extends MemoryPlace {
  key: string
  action: 'set' | 'delete'
  /** Absent: none, or one that is too large to be told. */
  data?: unknown
  previousData?: unknown
  author: MemoryAuthor
}

export interface MemoryChange extends ChangeBody {
  id: string
  at: number
}

export interface ChangeFilter {
  scope?: MemoryScope
  scopeId?: string
  /** One of them; `*` is any text. Absent: every key. */
  patterns?: readonly string[]
}

export class Memory {
  readonly vectors: Vectors
  readonly #store: Store
  readonly #clock: Clock
  readonly #changes: Journal<ChangeBody>
  readonly #followers = new Followers((workspace, signal) => this.#told(workspace, signal))
  readonly #lock = new KeyedLock()

  constructor({ store, clock }: { store: Store; clock: Clock }) {
    this.#store = store
    this.#clock = clock
    this.#changes = new Journal({ store, kind: changeKind, entriesMax: changesKeptMax })
    this.vectors = new Vectors(store)
  }

  /** Durable, together with the change that tells of it, once it resolves. @throws bad_request, body_too_large, usage_limit_exceeded */
  async set(
    workspace: string,
    place: MemoryPlace,
    key: string,
    data: unknown,
    author: MemoryAuthor,
  ): Promise<MemoryValue> {
    const name = nameOf(place, key)
    if (Buffer.byteLength(JSON.stringify(data)) > valueBytesMax) {
      throw new PlatformError('body_too_large', `data: must be at most ${valueBytesMax} bytes as JSON`)
    }
    const id = { kind: valueKind, workspace, name }
    const body: ValueBody = { ...place, key, data }
    const stored = await this.#lock.run(`${workspace}\n${name}`, async () => {
      const existing = await this.#store.get<ValueBody>(id)
      if (existing === null) await this.#admit(workspace)
      const previous = existing === null ? {} : { previousData: existing.body.data }
      const [made] = await this.#store.batch([
        existing === null
          ? { op: 'create', input: { ...id, body, indexes: { place: indexOf(place) } } }
          : { op: 'update', key: id, expectedVersion: existing.version, change: { body } },
        this.#change(workspace, { ...place, key, action: 'set', data, ...previous, author }),
        inWorkspace(workspace),
      ])
      return made as Resource<ValueBody>
    })
    await this.#changes.added(workspace)
    return viewOf(stored)
  }

  async get(workspace: string, place: MemoryPlace, key: string): Promise<MemoryValue | null> {
    const found = await this.#store.get<ValueBody>({ kind: valueKind, workspace, name: nameOf(place, key) })
    return found && viewOf(found)
  }

  /** False when there was nothing. */
  async remove(workspace: string, place: MemoryPlace, key: string, author: MemoryAuthor): Promise<boolean> {
    const name = nameOf(place, key)
    const id = { kind: valueKind, workspace, name }
    const removed = await this.#lock.run(`${workspace}\n${name}`, async () => {
      const existing = await this.#store.get<ValueBody>(id)
      if (existing === null) return false
      const previousData = existing.body.data
      await this.#store.batch([
        { op: 'remove', key: id, expectedVersion: existing.version },
        this.#change(workspace, { ...place, key, action: 'delete', previousData, author }),
        inWorkspace(workspace),
      ])
      return true
    })
    if (removed) await this.#changes.added(workspace)
    return removed
  }

  /** Everything of a place, by key. */
  async *list(workspace: string, place: MemoryPlace): AsyncGenerator<MemoryValue> {
    const where = { place: indexOf(place) }
    const all = everyItem((page) =>
      this.#store.page<ValueBody>({
        kind: valueKind,
        workspace,
        where,
        sort: 'name:asc',
        ...page,
        limit: valuesReadMax,
      }),
    )
    for await (const stored of all) yield viewOf(stored)
  }

  /** Changes that were made, the newest `limit` of those that fit, the oldest of them first. */
  async history(
    workspace: string,
    filter: ChangeFilter & { sinceMs?: number; limit?: number },
  ): Promise<MemoryChange[]> {
    const { sinceMs = 0, limit = 100 } = filter
    const wantedMax = Math.min(limit, historyMax)
    const found: MemoryChange[] = []
    let cursor: string | undefined
    for (let read = 0; read < changesKeptMax && found.length < wantedMax; read += changesReadMax) {
      const page = await this.#changes.page(workspace, {
        limit: changesReadMax,
        ...(cursor ? { cursor } : {}),
      })
      for (const stored of page.data) {
        if (stored.createdAt < sinceMs) return found.reverse()
        const change = changeOf(stored)
        if (isWanted(change, filter) && found.length < wantedMax) found.push(change)
      }
      if (!page.hasMore) break
      cursor = page.nextCursor
      await othersTurn()
    }
    return found.reverse()
  }

  /** Changes made from this call on, until `signal` aborts; ends early for who does not keep up. */
  follow(workspace: string, filter: ChangeFilter, signal: AbortSignal): AsyncGenerator<MemoryChange> {
    const changes = this.#followers.follow(workspace, signal)
    return (async function* () {
      for await (const change of changes) if (isWanted(change, filter)) yield change
    })()
  }

  #told(workspace: string, signal: AbortSignal): AsyncIterable<MemoryChange> {
    const changes = this.#changes.follow(workspace, signal)
    return (async function* () {
      for await (const stored of changes) yield changeOf(stored)
    })()
  }

  /** Steps that forget all of a workspace. */
  removal(workspace: string): Promise<BatchStep[]> {
    return removalOf(this.#store, [valueKind, vectorKind, changeKind], workspace)
  }

  #change(workspace: string, change: ChangeBody): BatchStep {
    const { data, previousData, ...rest } = change
    const body = {
      ...rest,
      ...(isTellable(data) ? { data } : {}),
      ...(isTellable(previousData) ? { previousData } : {}),
    }
    return this.#changes.entry(workspace, this.#clock.now(), body, {})
  }

  /** @throws usage_limit_exceeded */
  async #admit(workspace: string): Promise<void> {
    const { total } = await this.#store.page({ kind: valueKind, workspace, limit: 1 })
    if (total < valuesMax) return
    throw new PlatformError(
      'usage_limit_exceeded',
      `this workspace remembers ${total} values, the most there can be: delete some first`,
    )
  }
}

function isTellable(data: unknown): boolean {
  return data !== undefined && Buffer.byteLength(JSON.stringify(data)) <= toldBytesMax
}

function isWanted(change: MemoryChange, { scope, scopeId, patterns }: ChangeFilter): boolean {
  if (scope !== undefined && change.scope !== scope) return false
  if (scopeId !== undefined && change.scopeId !== scopeId) return false
  return patterns === undefined || patterns.some((pattern) => matchesPattern(pattern, change.key))
}

function viewOf({ body, createdAt, updatedAt }: Resource<ValueBody>): MemoryValue {
  return { ...body, createdAt, updatedAt }
}

function changeOf({ name, body, createdAt }: Resource<ChangeBody>): MemoryChange {
  return { ...body, id: name, at: createdAt }
}
