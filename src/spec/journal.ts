import { sortableId } from '../lib/ids.ts'
import {
  type BatchStep,
  everyItem,
  type Page,
  pageLimitMax,
  type Resource,
  type SortOrder,
  type Store,
} from './store.ts'

/** Read at once to be removed, whatever size they have. */
const removedReadMax = 20
/** How many entries are added to a workspace's journal between two looks at how long it is. */
const lookEvery = 100

/**
 * A kind of resources that are only added, of which the oldest of a workspace go beyond `entriesMax`. An entry is as
 * durable as everything in the store; how soon the oldest go is not promised.
 */
export class Journal<Body extends object> {
  readonly kind: string
  readonly #store: Store
  readonly #entriesMax: number
  /** Added since the last look, by workspace; after a start as good as many. */
  readonly #added = new Map<string, number>()

  constructor(options: { store: Store; kind: string; entriesMax: number }) {
    this.kind = options.kind
    this.#store = options.store
    this.#entriesMax = options.entriesMax
  }

  /** For the batch that makes what it tells of; after that batch, `added`. */
  entry(workspace: string, nowMs: number, body: Body, indexes: Record<string, string>): BatchStep {
    const name = sortableId(nowMs)
    return { op: 'create', input: { kind: this.kind, workspace, name, body, indexes, createdAt: nowMs } }
  }

  async added(workspace: string): Promise<void> {
    const added = (this.#added.get(workspace) ?? lookEvery - 1) + 1
    this.#added.set(workspace, added % lookEvery)
    if (added < lookEvery) return
    for (;;) {
      const page = await this.page(workspace, { sort: 'createdAt:asc', limit: pageLimitMax })
      const beyond = page.data.slice(0, Math.max(0, page.total - this.#entriesMax))
      if (beyond.length === 0) return
      await this.#store.batch(
        beyond.map(({ kind, name }) => ({ op: 'remove', key: { kind, workspace, name } })),
      )
    }
  }

  page(
    workspace: string,
    query: { where?: Record<string, string | string[]>; sort?: SortOrder; limit?: number; cursor?: string },
  ): Promise<Page<Body>> {
    return this.#store.page<Body>({ kind: this.kind, workspace, ...query })
  }

  /** What is added from this call on, until `signal` aborts; ends early for who does not keep up. */
  follow(workspace: string, signal: AbortSignal): AsyncGenerator<Resource<Body>> {
    const changes = this.#store.watch({ kind: this.kind, workspace }, signal)
    return (async function* () {
      for await (const change of changes) {
        if (change.type === 'lost') return
        if (change.type === 'created') yield change.resource as Resource<Body>
      }
    })()
  }
}

/** Steps that remove every resource of these kinds from a workspace. */
export async function removalOf(
  store: Store,
  kinds: readonly string[],
  workspace: string,
): Promise<BatchStep[]> {
  const steps: BatchStep[] = []
  for (const kind of kinds) {
    for await (const { name } of everyItem((page) =>
      store.page({ kind, workspace, ...page, limit: removedReadMax }),
    ))
      steps.push({ op: 'remove', key: { kind, workspace, name } })
  }
  return steps
}
