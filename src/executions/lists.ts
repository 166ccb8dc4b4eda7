import { PlatformError } from '../errors.ts'
import { type Queue, type Work, type WorkQuery, workListMax } from '../spec/queue.ts'
import type { ExecutionFilter, ExecutionPage, ExecutionStatus } from './execution.ts'
import { statesOf, targetText, toExecution } from './records.ts'

export interface ListPage {
  limit?: number
  cursor?: string
  /** Default `newest`; `index`: the parts of a group, in their order. */
  sort?: 'newest' | 'oldest' | 'index'
}

const limitDefault = 50

/** Lists of executions of one source, or of all that are to be seen, in the order in which they were accepted. */
export class Lists {
  readonly #queue: Queue
  readonly #sources: () => string[]

  constructor(options: { queue: Queue; sources: () => string[] }) {
    this.#queue = options.queue
    this.#sources = options.sources
  }

  page(workspace: string, filter: ExecutionFilter, page: ListPage): ExecutionPage {
    const { queries, shown } = this.#asked(workspace, filter, page)
    return shown(queries.flatMap((query) => this.#queue.list(query)))
  }

  /** As `page`, others having their turn while it is looked for. */
  async search(workspace: string, filter: ExecutionFilter, page: ListPage): Promise<ExecutionPage> {
    const { queries, shown } = this.#asked(workspace, filter, page)
    const works: Work[] = []
    for (const query of queries) works.push(...(await this.#queue.search(query)))
    return shown(works)
  }

  /** @throws bad_request */
  #asked(
    workspace: string,
    filter: ExecutionFilter,
    page: ListPage,
  ): { queries: WorkQuery[]; shown: (works: Work[]) => ExecutionPage } {
    const { limit = limitDefault, sort = 'newest', cursor } = page
    if (!Number.isInteger(limit) || limit < 1 || limit > workListMax) {
      throw new PlatformError(
        'bad_request',
        `limit must be a whole number from 1 to ${workListMax}, got ${limit}`,
      )
    }
    const after = cursor ? decodeCursor(cursor, sort) : undefined
    const { target, group, labels, since, until } = filter
    const statuses = listed<ExecutionStatus>(filter.status)
    const query = {
      workspace,
      limit: Math.min(limit + 1, workListMax),
      sort,
      ...(after === undefined ? {} : { after }),
      ...(target ? { target: targetText(target) } : {}),
      ...(group === undefined ? {} : { group }),
      ...(labels ? { labels } : {}),
      ...(since === undefined ? {} : { since }),
      ...(until === undefined ? {} : { until }),
      ...(statuses ? { states: [...statesOf(statuses), ...(hasGroups(statuses) ? ['held'] : [])] } : {}),
    }
    // A group says by its parts of which source they are.
    const sources = group === undefined ? (listed(filter.source) ?? this.#sources()) : [undefined]
    return {
      queries: sources.map((queue) => ({ ...query, ...(queue === undefined ? {} : { queue }) })),
      shown(works) {
        works.sort((left, right) => difference(left, right, sort))
        const first = works.slice(0, limit)
        const last = first.at(-1)
        const data = first.map(toExecution).filter(({ status }) => statuses?.includes(status) ?? true)
        const at = sort === 'index' ? last?.index : last?.order
        return { data, nextCursor: works.length > limit && at != null ? `${sort}.${at}` : '' }
      },
    }
  }
}

/** Groups are held throughout, whatever they are called. */
function hasGroups(statuses: readonly ExecutionStatus[]): boolean {
  return !statuses.includes('waiting') && (statuses.includes('queued') || statuses.includes('running'))
}

function listed<Item>(given: Item | readonly Item[] | undefined): readonly Item[] | null {
  if (given === undefined) return null
  return Array.isArray(given) ? given : [given as Item]
}

function difference(left: Work, right: Work, sort: ListPage['sort']): number {
  if (sort === 'index') return (left.index ?? 0) - (right.index ?? 0)
  return sort === 'oldest' ? left.order - right.order : right.order - left.order
}

/** @throws bad_request */
function decodeCursor(cursor: string, sort: string): number {
  const [name, at] = cursor.split('.')
  if (name === sort && /^\d{1,15}$/.test(at ?? '')) return Number(at)
  throw new PlatformError(
    'bad_request',
    'cursor is not one that this platform gave out for this list and sort',
  )
}
