import type { BatchStep, Page, PageQuery, Resource, ResourceKey, Store } from '../../spec/store.ts'
import { batchStepsMax, everyItem, pageLimitMax } from '../../spec/store.ts'
import {
  type ExecutionBody,
  executionIndexes,
  executionKind,
  purgeKind,
  type StoredExecution,
  scheduleIndex,
} from './record.ts'
import { executionStatuses } from './schema.ts'

/** What ran: a record for each run, as many as its schedule keeps, for as long as its sandbox lives. */
export class ScheduleHistory {
  readonly #store: Store

  constructor(store: Store) {
    this.#store = store
  }

  /** Newest first. A page may be short where `sinceMs` or `untilMs` cut it. @throws bad_request */
  async page(
    query: Omit<PageQuery, 'kind' | 'where'> & {
      sandboxUid?: string
      scheduleId?: string
      status?: string
      sinceMs?: number
      untilMs?: number
    },
  ): Promise<Page<ExecutionBody>> {
    const { sandboxUid, scheduleId, status, sinceMs = 0, untilMs = Number.POSITIVE_INFINITY, ...page } = query
    const found = await this.#store.page<ExecutionBody>({
      ...page,
      kind: executionKind,
      where: {
        status: executionStatuses.filter((one) => status === undefined || one === status),
        ...(sandboxUid === undefined ? {} : { sandbox: sandboxUid }),
        ...(scheduleId === undefined ? {} : { scheduleId }),
      },
    })
    const data = found.data.filter(({ createdAt }) => createdAt >= sinceMs && createdAt <= untilMs)
    const oldest = found.data.at(-1)?.createdAt ?? 0
    const over = page.sort !== 'createdAt:asc' && oldest < sinceMs
    return { ...found, data, ...(over ? { hasMore: false, nextCursor: '' } : {}) }
  }

  /** Of a workspace, from `sinceMs` on and before `untilMs`. */
  async counts(
    workspace: string,
    sinceMs: number,
    untilMs: number,
  ): Promise<{ succeeded: number; failed: number }> {
    const counts = { succeeded: 0, failed: 0 }
    for await (const { body, createdAt } of everyItem((page) => this.page({ ...page, workspace, sinceMs }))) {
      if (createdAt < untilMs) counts[body.status === 'succeeded' ? 'succeeded' : 'failed']++
    }
    return counts
  }

  /** Those whose command was to be submitted as a crash came, the oldest first. */
  pending(): AsyncIterable<StoredExecution> {
    return everyItem((page) =>
      this.#store.page<ExecutionBody>({
        ...page,
        kind: executionKind,
        where: { status: 'pending' },
        sort: 'createdAt:asc',
      }),
    )
  }

  /** Steps that record a run; the oldest ones go, so that with it there are as many as its schedule keeps. */
  async addition(
    workspace: string,
    execution: ExecutionBody,
    maxExecutions: number,
  ): Promise<[creation: BatchStep, ...surplus: BatchStep[]]> {
    const creation: BatchStep = {
      op: 'create',
      input: {
        kind: executionKind,
        workspace,
        name: `${execution.sandboxUid}/${execution.id}`,
        body: execution,
        indexes: executionIndexes(execution),
        createdAt: execution.executedAt,
      },
    }
    const kept = await this.#store.find<ExecutionBody>({
      kind: executionKind,
      workspace,
      index: 'schedule',
      value: scheduleIndex(execution),
      limit: Math.min(batchStepsMax, maxExecutions + pageLimitMax),
    })
    const removable = kept.slice(maxExecutions - 1).filter((one) => one.body.status !== 'pending')
    return [creation, ...removable.slice(0, pageLimitMax).map(removalOf)]
  }

  /** Steps for the batch that removes a sandbox; `purge` does the rest after it. */
  async removal(workspace: string, sandboxUid: string): Promise<BatchStep[]> {
    const [any] = await this.#ofSandbox(workspace, sandboxUid, 1)
    // More than one batch may hold: noted in this one, removed after it.
    const note: BatchStep = {
      op: 'create',
      input: { kind: purgeKind, workspace, name: sandboxUid, body: {} },
    }
    return any === undefined ? [] : [note]
  }

  /** Removes the history of sandboxes that are gone. */
  async purge(): Promise<void> {
    const noted = everyItem((page) => this.#store.page({ ...page, kind: purgeKind, sort: 'createdAt:asc' }))
    for await (const purge of noted) {
      for (;;) {
        const executions = await this.#ofSandbox(purge.workspace, purge.name, batchStepsMax)
        if (executions.length === 0) break
        await this.#store.batch(executions.map(removalOf))
      }
      await this.#store.remove(keyOf(purge))
    }
  }

  async #ofSandbox(workspace: string, sandboxUid: string, limit: number): Promise<StoredExecution[]> {
    return await this.#store.find<ExecutionBody>({
      kind: executionKind,
      workspace,
      index: 'sandbox',
      value: sandboxUid,
      limit,
    })
  }
}

function removalOf(execution: StoredExecution): BatchStep {
  return { op: 'remove', key: keyOf(execution) }
}

function keyOf({ kind, workspace, name }: Resource<unknown>): ResourceKey {
  return { kind, workspace, name }
}
