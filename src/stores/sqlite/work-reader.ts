import type { Database, Statement } from 'bun:sqlite'
import { isOpenState as isOpen, type WorkCounts, type WorkDepth, type WorkKey } from '../../spec/queue.ts'
import type { WorkRow } from './work-protocol.ts'

export interface WorkRowsQuery {
  workspace: string
  queue: string | null
  target: string | null
  state: string | null
  group: string | null
  labels: readonly (readonly [string, string])[]
  since: number | null
  until: number | null
  sort: 'newest' | 'oldest' | 'index'
  after: number | null
  limit: number
}

/** The read side of work: prepared statements on the store's reading connection, which it also closes. */
export class WorkReader {
  readonly #database: Database
  readonly #byId
  readonly #request
  readonly #input
  readonly #result
  readonly #counts
  readonly #nextAt
  readonly #overdue
  readonly #finished
  readonly #others = new Map<string, Statement>()
  /** By shape. */
  readonly #lists = new Map<string, Statement>()

  constructor(database: Database) {
    this.#database = database
    this.#byId = database.prepare<WorkRow, [string]>('SELECT * FROM work WHERE id = ?')
    this.#request = database.prepare<{ digest: string; id: string }, [string, string, number]>(
      'SELECT digest, id FROM work_requests WHERE workspace = ? AND key = ? AND expires_at > ?',
    )
    this.#input = database.prepare<{ bytes: Uint8Array }, [string]>(
      'SELECT bytes FROM work_inputs WHERE seq = (SELECT seq FROM work WHERE id = ?)',
    )
    this.#result = database.prepare<{ bytes: Uint8Array }, [string]>(
      'SELECT bytes FROM work_results WHERE seq = (SELECT seq FROM work WHERE id = ?)',
    )
    this.#counts = database.prepare<{ state: string; count: number; retried: number }, [string]>(
      'SELECT state, count(*) AS count, sum(attempts > 1) AS retried FROM work WHERE group_id = ? GROUP BY state',
    )
    this.#nextAt = database.prepare<{ at: number | null }, []>(
      `SELECT min(at) AS at FROM (
         SELECT min(run_at) AS at FROM work WHERE state = 'waiting' AND ready = 0
         UNION ALL SELECT min(until) FROM work WHERE until IS NOT NULL)`,
    )
    this.#overdue = database.prepare<WorkRow, [number, number]>(
      'SELECT * FROM work WHERE until IS NOT NULL AND until <= ? ORDER BY until LIMIT ?',
    )
    this.#finished = database.prepare<WorkRow, [number]>(
      'SELECT * FROM work WHERE parts_left = 0 AND ended_at IS NULL LIMIT ?',
    )
  }

  get(id: string): WorkRow | null {
    return this.#byId.get(id)
  }

  known(workspace: string, key: string, nowMs: number): { digest: string; row: WorkRow } | null {
    const request = this.#request.get(workspace, key, nowMs)
    const row = request && this.get(request.id)
    return request && row ? { digest: request.digest, row } : null
  }

  input(id: string): Uint8Array | null {
    return this.#input.get(id)?.bytes ?? null
  }

  result(id: string): Uint8Array | null {
    return this.#result.get(id)?.bytes ?? null
  }

  counts(group: string): WorkCounts {
    const counts: WorkCounts = { states: {}, retried: 0 }
    for (const { state, count, retried } of this.#counts.all(group)) {
      counts.states[state] = count
      counts.retried += retried
    }
    return counts
  }

  /** Of the database's pages that are in use. */
  bytes(): number {
    const one = (name: string) => Object.values(this.#pragma(name).get() ?? {})[0] ?? 0
    return (one('page_count') - one('freelist_count')) * one('page_size')
  }

  nextAt(): number | null {
    return this.#nextAt.get()?.at ?? null
  }

  overdue(nowMs: number, limit: number): WorkRow[] {
    return this.#overdue.all(nowMs, limit)
  }

  finishedGroups(limit: number): WorkRow[] {
    return this.#finished.all(limit)
  }

  closedKeys(): WorkKey[] {
    return this.#once<WorkKey>(
      this.#others,
      `SELECT t.queue, t.workspace, t.target, k.name AS key FROM work_keys k JOIN work_targets t ON t.id = k.target_id
       WHERE k.running_max = 0`,
    ).all()
  }

  isRunning(queue: string): boolean {
    const sql = 'SELECT 1 FROM work_targets WHERE queue = ? AND busy > held LIMIT 1'
    return this.#once<object>(this.#others, sql).get(queue) !== null
  }

  waitingByQueue(): { queue: string; waiting: number }[] {
    return this.#once<{ queue: string; waiting: number }>(
      this.#others,
      'SELECT queue, sum(waiting) AS waiting FROM work_targets GROUP BY queue',
    ).all()
  }

  depth(filter: { queue?: string; workspace?: string; target?: string }): WorkDepth {
    const given = (['queue', 'workspace', 'target'] as const).filter((name) => filter[name] !== undefined)
    const where = given.map((name) => `${name} = ?`).join(' AND ') || 'true'
    const values = given.map((name) => filter[name] as string)
    type Counts = { waiting: number; busy: number; held: number }
    const counts = this.#once<Counts>(
      this.#others,
      `SELECT coalesce(sum(waiting), 0) AS waiting, coalesce(sum(busy), 0) AS busy, coalesce(sum(held), 0) AS held
       FROM work_targets WHERE ${where}`,
    ).get(...values)
    // In the order of the index: the first that fits is the oldest.
    const order = filter.queue !== undefined && filter.workspace !== undefined ? 'seq' : 'created_at'
    const oldest = this.#once<{ at: number }>(
      this.#others,
      `SELECT created_at AS at FROM work WHERE ended_at IS NULL AND state = 'waiting' AND ${where} ORDER BY ${order} LIMIT 1`,
    ).get(...values)
    const { waiting = 0, busy = 0, held = 0 } = counts ?? {}
    return { waiting, running: busy - held, held, oldestWaitingAt: waiting > 0 ? (oldest?.at ?? null) : null }
  }

  list(query: WorkRowsQuery): WorkRow[] {
    const { labels, sort, after, limit } = query
    const [first, ...others] = labels
    const filters = filtersOf(query, others)
    // The rows of one label are in the order of the list: read from there, a page is as quick whether few have it or all.
    if (first)
      filters.add('label.workspace = ? AND label.name = ? AND label.value = ?', query.workspace, ...first)
    const table = first ? 'work_labels label CROSS JOIN work ON work.seq = label.seq' : 'work'
    const column = sort === 'index' ? 'position' : first ? 'label.seq' : 'seq'
    const { compares, direction } = orderOf(sort)
    if (after !== null) filters.add(`${column} ${compares} ?`, after)
    const sql = `SELECT work.* FROM ${table} WHERE ${filters.text} ORDER BY ${column} ${direction} LIMIT ?`
    return this.#once<WorkRow>(this.#lists, sql).all(...filters.values, limit)
  }

  /**
   * What `list` finds in the next `rows` of what an index has in the order of the list, and where these end; null: there are no more.
   * Of a workspace and a queue, and not of a group.
   */
  slice(query: WorkRowsQuery, rows: number): { found: WorkRow[]; end: number | null } {
    const { sort, after, limit } = query
    const { compares, direction } = orderOf(sort)
    const base = indexedOf(query)
    if (after !== null) base.add(`seq ${compares} ?`, after)
    const order = `ORDER BY seq ${direction}`
    const slice = `SELECT seq FROM ${base.table} WHERE ${base.text} ${order} LIMIT ${rows}`
    const filters = filtersOf(query, query.labels)
    const sql = `SELECT work.* FROM (${slice}) slice CROSS JOIN work ON work.seq = slice.seq WHERE ${filters.text}
      ORDER BY slice.seq ${direction} LIMIT ?`
    const found = this.#once<WorkRow>(this.#lists, sql).all(...base.values, ...filters.values, limit)
    const last = `SELECT seq FROM ${base.table} WHERE ${base.text} ${order} LIMIT 1 OFFSET ${rows - 1}`
    return { found, end: this.#once<{ seq: number }>(this.#lists, last).get(...base.values)?.seq ?? null }
  }

  #pragma(name: string): Statement<Record<string, number>, []> {
    return this.#once<Record<string, number>>(this.#others, `PRAGMA ${name}`) as Statement<
      Record<string, number>,
      []
    >
  }

  /** Prepared once for each text; there are as many as combinations of filters. */
  #once<Row>(kept: Map<string, Statement>, sql: string): Statement<Row, (string | number)[]> {
    let statement = kept.get(sql)
    if (!statement) {
      statement = this.#database.prepare(sql) as Statement
      kept.set(sql, statement)
    }
    return statement as Statement<Row, (string | number)[]>
  }
}

class Conditions {
  readonly #texts: string[] = []
  readonly values: (string | number)[] = []

  add(text: string, ...values: (string | number)[]): void {
    this.#texts.push(text)
    this.values.push(...values)
  }

  get text(): string {
    return this.#texts.join(' AND ')
  }
}

function orderOf(sort: WorkRowsQuery['sort']) {
  return sort === 'newest' ? { compares: '<', direction: 'DESC' } : { compares: '>', direction: 'ASC' }
}

/** All that is asked for of a row of `work`, its place in the list left out. */
function filtersOf(query: WorkRowsQuery, labels: WorkRowsQuery['labels']): Conditions {
  const { workspace, queue, target, state, group, since, until } = query
  const filters = new Conditions()
  filters.add('work.workspace = ?', workspace)
  if (queue !== null) filters.add('queue = ?', queue)
  if (target !== null) filters.add('target = ?', target)
  if (group !== null) filters.add('group_id = ?', group)
  if (state !== null) {
    filters.add('state = ?', state)
    filters.add(isOpen(state) ? 'ended_at IS NULL' : 'ended_at IS NOT NULL')
  }
  if (since !== null) filters.add('created_at >= ?', since)
  if (until !== null) filters.add('created_at <= ?', until)
  for (const [name, value] of labels) {
    filters.add(
      'EXISTS (SELECT 1 FROM work_labels o WHERE o.workspace = ? AND o.name = ? AND o.value = ? AND o.seq = work.seq)',
      ...[workspace, name, value],
    )
  }
  return filters
}

/** As much of what is asked for as one index has, in the order of the list. */
function indexedOf({
  workspace,
  queue,
  target,
  state,
  labels,
}: WorkRowsQuery): Conditions & { table: string } {
  const indexed = Object.assign(new Conditions(), { table: 'work' })
  indexed.add('workspace = ?', workspace)
  const [label] = labels
  if (label) {
    indexed.table = 'work_labels'
    indexed.add('name = ? AND value = ?', ...label)
    return indexed
  }
  if (queue !== null) indexed.add('queue = ?', queue)
  if (state !== null) {
    indexed.add('state = ?', state)
    indexed.add(isOpen(state) ? 'ended_at IS NULL' : 'ended_at IS NOT NULL')
  } else if (target !== null) indexed.add('target = ?', target)
  return indexed
}
