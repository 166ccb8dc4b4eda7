import { PlatformError } from '../../errors.ts'
import type { Clock } from '../../lib/clock.ts'
import { othersTurn } from '../../lib/turns.ts'
import {
  type ChangedWork,
  type ClaimedWork,
  type EnqueuedWork,
  type EnqueueOptions,
  type InputRoom,
  type NewWork,
  type Queue,
  type Work,
  type WorkChange,
  type WorkCounts,
  type WorkDepth,
  type WorkKey,
  type WorkQuery,
  workBatchMax,
  workListMax,
  workResultBytesMax,
} from '../../spec/queue.ts'
import type { StepResult } from './protocol.ts'
import type { WorkRow, WorkStep, WorkStepResult } from './work-protocol.ts'
import type { WorkReader, WorkRowsQuery } from './work-reader.ts'
import { decodeWork, encodeLabels, encodeWork, encodeWorkBody } from './work-rows.ts'
import type { Writer } from './writer.ts'

/** So that a change in the meantime waits for no more than this. */
const removedAtOnceMax = 500
const retryAfterFullSeconds = 5
/** Of a search, before others have their turn. */
const searchedAtOnce = 500
const claimedBytesMax = 64 * 1024 * 1024
const roomDefault: InputRoom = {
  smallBytes: claimedBytesMax,
  largeBytesMax: claimedBytesMax,
  largeBytesOfTargetMax: claimedBytesMax,
  held: [],
}

export interface SqliteQueueOptions {
  clock: Clock
  writer: Writer
  /** @throws unavailable once closed */
  reader: () => WorkReader
}

/** Work in the store's database, written by its thread: one commit covers resources and work alike. */
export class SqliteQueue implements Queue {
  readonly #clock: Clock
  readonly #writer: Writer
  readonly #reader: () => WorkReader
  /** How many wait, by queue: what was committed, and what is on its way. Null: to be counted. */
  #waiting: Map<string, number> | null = null
  #isLost = false

  constructor({ clock, writer, reader }: SqliteQueueOptions) {
    this.#clock = clock
    this.#writer = writer
    this.#reader = reader
  }

  async enqueue(items: NewWork[], options: EnqueueOptions = {}): Promise<EnqueuedWork[]> {
    if (items.length > workBatchMax) {
      throw new PlatformError('bad_request', `${items.length} at once, at most ${workBatchMax} are allowed`)
    }
    if (items.length === 0) return []
    const steps = items.map((item) => ({
      op: 'work-add' as const,
      now: this.#now(),
      work: encodeWork(item),
      isGiven: item.inputIsGiven ?? false,
    }))
    const waiting = items.filter(({ state }) => state === 'waiting')
    const { waitingMax, limitKey } = options
    if (waitingMax !== undefined)
      for (const { queue } of waiting) this.#refuseOver(queue, waiting.length, waitingMax)
    for (const { queue } of waiting) this.#count(queue, 1)
    try {
      const limits = limitKey ? [{ op: 'work-limit' as const, ...limitKey }] : []
      const results = await this.#submit<'work-add' | 'work-limit'>([...steps, ...limits])
      return results.slice(0, steps.length).map((result, index) => {
        if (result.op !== 'work-add') throw new Error('answers are in the order of what was asked')
        if (result.existing && items[index]!.state === 'waiting') this.#count(items[index]!.queue, -1)
        return { work: decodeWork(result.row), existing: result.existing }
      })
    } catch (error) {
      for (const { queue } of waiting) this.#count(queue, -1)
      throw error
    }
  }

  async claim(queue: string, limit: number, room = roomDefault): Promise<ClaimedWork[]> {
    const [result] = await this.#submit([{ op: 'work-claim', now: this.#now(), queue, limit, room }])
    const { claimed } = result!
    this.#count(queue, -claimed.length)
    return claimed.map(({ row, input }) => ({ ...decodeWork(row), input }))
  }

  async change(change: WorkChange): Promise<ChangedWork | null> {
    const { id, expect, state, body, labels, runAt, until, attempts, result, follow = [] } = change
    if (result && result.byteLength > workResultBytesMax) {
      throw new PlatformError(
        'body_too_large',
        `the result is ${result.byteLength} bytes, at most ${workResultBytesMax} can be stored`,
      )
    }
    const [answer] = await this.#submit([
      {
        op: 'work-change',
        now: this.#now(),
        id,
        expect,
        set: {
          ...(state === undefined ? {} : { state }),
          ...(body === undefined ? {} : { body: encodeWorkBody(body) }),
          ...(labels === undefined ? {} : { labels: encodeLabels(labels) }),
          ...(runAt === undefined ? {} : { runAt: Math.trunc(runAt) }),
          ...(until === undefined ? {} : { until: until === null ? null : Math.trunc(until) }),
          ...(attempts === undefined ? {} : { attempts }),
        },
        result: result ?? null,
        follow: follow.map(encodeWork),
      },
    ])
    const changed = answer!.changed
    if (!changed) return null
    const { row, previousState, groupPartsLeft, followed } = changed
    const waits = (one: string) => (one === 'waiting' ? 1 : 0)
    this.#count(row.queue, waits(row.state) - waits(previousState))
    for (const added of followed) this.#count(added.queue, waits(added.state))
    return { work: decodeWork(row), groupPartsLeft, followed: followed.map(decodeWork) }
  }

  async release(queue: string): Promise<number> {
    // At a start there mostly is nothing, and nothing need be written then.
    if (!this.#reader().isRunning(queue)) return 0
    const [result] = await this.#submit([{ op: 'work-release', now: this.#now(), queue }])
    this.#count(queue, result!.count)
    return result!.count
  }

  closedKeys(): WorkKey[] {
    return this.#reader().closedKeys()
  }

  get(id: string): Work | null {
    const row = this.#reader().get(id)
    return row && decodeWork(row)
  }

  known(workspace: string, key: string): { digest: string; work: Work } | null {
    const known = this.#reader().known(workspace, key, this.#now())
    return known && { digest: known.digest, work: decodeWork(known.row) }
  }

  input(id: string): Uint8Array | null {
    return this.#reader().input(id)
  }

  result(id: string): Uint8Array | null {
    return this.#reader().result(id)
  }

  list(query: WorkQuery): Work[] {
    const reader = this.#reader()
    return inOrder(
      query,
      askedOf(query).map((asked) => reader.list(asked)),
    )
  }

  async search(query: WorkQuery): Promise<Work[]> {
    const found: WorkRow[][] = []
    for (const asked of askedOf(query)) {
      found.push(isIndexed(asked) ? this.#reader().list(asked) : await this.#searched(asked))
    }
    return inOrder(query, found)
  }

  async #searched(asked: WorkRowsQuery): Promise<WorkRow[]> {
    const rows: WorkRow[] = []
    for (let after = asked.after; ; ) {
      const limit = asked.limit - rows.length
      const { found, end } = this.#reader().slice({ ...asked, after, limit }, searchedAtOnce)
      rows.push(...found)
      if (end === null || rows.length >= asked.limit) return rows
      after = end
      await othersTurn()
    }
  }

  counts(group: string): WorkCounts {
    return this.#reader().counts(group)
  }

  waiting(queue: string): number {
    this.#waiting ??= new Map(
      this.#reader()
        .waitingByQueue()
        .map((row) => [row.queue, row.waiting]),
    )
    return this.#waiting.get(queue) ?? 0
  }

  depth(filter: { queue?: string; workspace?: string; target?: string } = {}): WorkDepth {
    return this.#reader().depth(filter)
  }

  bytes(): number {
    return this.#reader().bytes()
  }

  nextAt(): number | null {
    return this.#reader().nextAt()
  }

  overdue(nowMs: number, limit: number): Work[] {
    return this.#reader().overdue(nowMs, limit).map(decodeWork)
  }

  finishedGroups(limit: number): Work[] {
    return this.#reader().finishedGroups(limit).map(decodeWork)
  }

  async prune(options: { endedBefore: number; keptMax: number; limit: number }): Promise<number> {
    const [result] = await this.#submit([{ op: 'work-prune', now: this.#now(), ...options }])
    return result!.removed.length + result!.expiredRequests
  }

  async remove(id: string): Promise<boolean> {
    const [result] = await this.#submit([{ op: 'work-remove', id }])
    this.#uncount(result!.removed)
    return result!.removed.length > 0
  }

  async removeWorkspace(workspace: string): Promise<void> {
    for (;;) {
      const [result] = await this.#submit([{ op: 'work-remove-some', workspace, limit: removedAtOnceMax }])
      this.#uncount(result!.removed)
      if (result!.removed.length < removedAtOnceMax) return
    }
  }

  /** Something may have been written that nobody heard of. */
  lose(): void {
    this.#waiting = null
    this.#isLost = true
  }

  async #submit<Op extends WorkStep['op']>(
    steps: Extract<WorkStep, { op: Op }>[],
  ): Promise<Extract<WorkStepResult, { op: Op }>[]> {
    // Counted before anything is on its way.
    this.waiting('')
    const results: StepResult[] = await this.#writer.submit(steps)
    return results as unknown as Extract<WorkStepResult, { op: Op }>[]
  }

  #refuseOver(queue: string, more: number, waitingMax: number): void {
    const waiting = this.waiting(queue)
    if (waiting + more <= waitingMax) return
    const coming = more > 1 ? `, and these are ${more}` : ''
    throw new PlatformError(
      'too_many_requests',
      `${waiting} executions of this kind are waiting${coming}, at most ${waitingMax} may: try again later`,
      { retryAfterSeconds: retryAfterFullSeconds },
    )
  }

  #count(queue: string, difference: number): void {
    if (this.#isLost || difference === 0) return
    const waiting = this.waiting(queue)
    this.#waiting?.set(queue, waiting + difference)
  }

  #uncount(removed: { queue: string; state: string }[]): void {
    for (const { queue, state } of removed) if (state === 'waiting') this.#count(queue, -1)
  }

  #now(): number {
    return Math.trunc(this.#clock.now())
  }
}

function difference(left: WorkRow, right: WorkRow, sort: WorkQuery['sort']): number {
  if (sort === 'index') return (left.position ?? 0) - (right.position ?? 0)
  return sort === 'oldest' ? left.seq - right.seq : right.seq - left.seq
}

/** A state at a time: of each an index has the order. @throws bad_request */
function askedOf(query: WorkQuery): WorkRowsQuery[] {
  const { workspace, queue, target, states, group, labels, since, until, limit, after } = query
  if (!Number.isInteger(limit) || limit < 1 || limit > workListMax) {
    throw new PlatformError('bad_request', `limit must be a whole number from 1 to ${workListMax}`)
  }
  return (states ?? [null]).map((state) => ({
    workspace,
    queue: queue ?? null,
    target: target ?? null,
    state,
    group: group ?? null,
    labels: Object.entries(labels ?? {}),
    since: since ?? null,
    until: until ?? null,
    sort: query.sort ?? 'newest',
    after: after ?? null,
    limit,
  }))
}

/** An index has just what is asked for, in the order of the list; or it is a group, whose parts have no such index. */
function isIndexed({ queue, target, state, group, labels, since, until }: WorkRowsQuery): boolean {
  if (queue === null || group !== null) return true
  return since === null && until === null && labels.length === 0 && (target === null || state === null)
}

function inOrder({ sort = 'newest', limit }: WorkQuery, found: WorkRow[][]): Work[] {
  const rows = found.flat()
  if (found.length > 1) rows.sort((left, right) => difference(left, right, sort))
  return rows.slice(0, limit).map(decodeWork)
}
