import { PlatformError } from '../errors.ts'
import type { Clock } from '../lib/clock.ts'
import { sortableId } from '../lib/ids.ts'
import type { EnqueuedWork, NewWork, Queue, Work, WorkKey } from '../spec/queue.ts'
import type { Attempts } from './attempts.ts'
import {
  type ExecutionStatus,
  ExecutionStopped,
  executionStatuses,
  type NewExecution,
  type NewParts,
  type PartCounts,
} from './execution.ts'
import { bodyOf, checkInput, newWork, refuseFull, targetText } from './records.ts'
import type { Transitions } from './transitions.ts'

/** Written in one commit; others' changes wait for no more than this. */
const writtenAtOnceMax = 250
const writtenBytesAtOnceMax = 4 * 1024 * 1024
export const partsMax = 100_000
const listedAtOnce = 500
const stoppedAtOnceMax = 100
const stopAgainMs = 30_000
const openStates = ['waiting', 'running', 'held'] as const

export interface GroupsOptions {
  queue: Queue
  clock: Clock
  transitions: Transitions
  attempts: Attempts
  waitingMax: number
  bytesMax: number
}

/** Executions of many parts: a parent that runs nothing itself, and ends once all of its parts did. */
export class Groups {
  readonly #options: GroupsOptions
  /** Ids of those whose parts are being written. */
  readonly #accepting = new Set<string>()

  constructor(options: GroupsOptions) {
    this.#options = options
  }

  /**
   * The parts are written first, closed to claims, then the parent with the key that opens them: whatever breaks off in
   * between leaves parts of nothing, which `removeAbandoned` finds.
   */
  async accept(
    asked: NewExecution,
    inputs: AsyncIterable<Uint8Array> | Iterable<Uint8Array>,
    each: NewParts,
  ): Promise<EnqueuedWork> {
    const { queue, clock, waitingMax, bytesMax } = this.#options
    const nowMs = clock.now()
    const id = asked.id ?? sortableId(nowMs)
    if (asked.idempotency) {
      const { key, digest } = asked.idempotency
      const known = queue.known(asked.workspace, key)
      if (known?.digest === digest) return { work: known.work, existing: true }
    }
    if (queue.get(id) || this.#accepting.has(id)) {
      throw new PlatformError('already_exists', `the execution "${id}" already exists`)
    }
    const key: WorkKey = {
      queue: each.source,
      workspace: asked.workspace,
      target: targetText(asked.target),
      key: id,
    }
    let count = 0
    this.#accepting.add(id)
    try {
      for await (const chunk of chunksOf(inputs)) {
        if (count + chunk.length > partsMax) {
          throw new PlatformError('bad_request', `at most ${partsMax} parts are allowed in one execution`)
        }
        const parts = chunk.map((input, offset) =>
          partOf(asked, each, { id, index: count + offset, input }, nowMs),
        )
        refuseFull(queue, bytesMax)
        await queue.enqueue(parts, { waitingMax })
        count += chunk.length
      }
      const parent = parentOf(asked, each, { id, parts: count }, nowMs)
      const [added] = await queue.enqueue([parent], { limitKey: { ...key, max: each.parallelMax } })
      if (added!.existing) await this.#removeParts(key)
      return added!
    } catch (error) {
      await this.#removeParts(key)
      throw error
    } finally {
      this.#accepting.delete(id)
    }
  }

  counts(id: string): PartCounts {
    const { states, retried } = this.#options.queue.counts(id)
    const { waiting = 0, held = 0, ...rest } = states
    const none = Object.fromEntries(executionStatuses.map((status) => [status, 0]))
    return { ...none, ...rest, queued: waiting, waiting: held, retried } as PartCounts
  }

  /** Ends a parent all of whose parts ended. */
  async finish(id: string): Promise<void> {
    await this.#options.transitions.change(id, (work) => {
      if (work.partsLeft !== 0) return null
      const body = bodyOf(work)
      const counts = this.counts(id)
      const status = body.stop?.status ?? outcomeOf(counts)
      const bad = counts.failed + counts.timed_out
      return {
        expect: { states: ['held'] },
        state: status,
        body: {
          ...body,
          note: { ...body.note, counts },
          ...(body.stop ? { statusReason: body.stop.reason } : {}),
          ...(status === 'failed'
            ? { error: { code: 'parts_failed', message: `${bad} of ${work.parts} parts did not succeed` } }
            : {}),
        },
      }
    })
  }

  /** No part begins any more, those that run are stopped; the parent ends with the last of them. */
  async stop(id: string, status: 'cancelled' | 'timed_out', reason: string): Promise<Work | null> {
    const { transitions, clock } = this.#options
    const stopping = await transitions.change(id, (work) => ({
      expect: { states: ['held'] },
      // A crash would leave it half stopped: it is looked at again then.
      until: clock.now() + stopAgainMs,
      body: { ...bodyOf(work), stop: { status, reason }, statusReason: reason },
    }))
    if (stopping) await this.stopParts(id, reason)
    return stopping
  }

  async stopParts(id: string, reason: string): Promise<void> {
    const { queue, attempts } = this.#options
    const parent = queue.get(id)
    const each = parent && bodyOf(parent).each
    if (!parent || !each) return
    for (;;) {
      const open = queue.list({
        workspace: parent.workspace,
        queue: each.source,
        group: id,
        states: openStates,
        limit: stoppedAtOnceMax,
        sort: 'index',
      })
      if (open.length === 0) break
      await Promise.all(
        open.map(async (part) => {
          await attempts.end(part.id, 'cancelled', { reason })
          attempts.stop(part.id, new ExecutionStopped('cancelled', reason))
        }),
      )
    }
    await this.finish(id)
  }

  /** What an end of the platform left of groups that were never accepted. */
  async removeAbandoned(): Promise<void> {
    for (const key of this.#options.queue.closedKeys()) await this.#removeParts(key)
  }

  async finishAll(): Promise<void> {
    for (const { id } of this.#options.queue.finishedGroups(listedAtOnce)) await this.finish(id)
  }

  async *inputs(parent: Work): AsyncIterable<Uint8Array> {
    for await (const { id } of this.parts(parent)) yield this.#options.queue.input(id) ?? new Uint8Array()
  }

  async *parts(parent: Work): AsyncIterable<Work> {
    const { queue } = this.#options
    const each = bodyOf(parent).each
    if (!each) return
    let after: number | undefined
    for (;;) {
      const parts = queue.list({
        workspace: parent.workspace,
        queue: each.source,
        group: parent.id,
        limit: listedAtOnce,
        sort: 'index',
        ...(after === undefined ? {} : { after }),
      })
      yield* parts
      if (parts.length < listedAtOnce) return
      after = parts.at(-1)!.index ?? undefined
    }
  }

  async #removeParts({ queue: source, workspace, key }: WorkKey): Promise<void> {
    const { queue } = this.#options
    for (;;) {
      const parts = queue.list({ workspace, queue: source, group: key, limit: listedAtOnce })
      if (parts.length === 0) return
      await Promise.all(parts.map(({ id }) => queue.remove(id)))
    }
  }
}

function outcomeOf(counts: PartCounts): ExecutionStatus {
  if (counts.failed > 0 || counts.timed_out > 0) return 'failed'
  return counts.cancelled > 0 ? 'cancelled' : 'succeeded'
}

function partOf(
  asked: NewExecution,
  each: NewParts,
  part: { id: string; index: number; input: Uint8Array },
  nowMs: number,
): NewWork {
  checkInput(part.input)
  const work = newWork(
    {
      workspace: asked.workspace,
      source: each.source,
      target: asked.target,
      input: part.input,
      labels: each.labels ?? {},
      timeoutMs: each.timeoutMs,
      ...(each.retry ? { retry: each.retry } : {}),
      ...(asked.priority === undefined ? {} : { priority: asked.priority }),
      ...(asked.runAt === undefined ? {} : { runAt: asked.runAt }),
      ...(asked.targetRunningMax === undefined ? {} : { targetRunningMax: asked.targetRunningMax }),
      concurrency: { key: part.id, max: 0 },
    },
    nowMs,
  )
  return { ...work, group: part.id, index: part.index }
}

function parentOf(
  asked: NewExecution,
  each: NewParts,
  { id, parts }: { id: string; parts: number },
  nowMs: number,
): NewWork {
  const work = newWork({ ...asked, id }, nowMs)
  return {
    ...work,
    state: 'held',
    until: nowMs + asked.timeoutMs,
    parts,
    body: { ...(work.body as object), each },
  }
}

async function* chunksOf(
  inputs: AsyncIterable<Uint8Array> | Iterable<Uint8Array>,
): AsyncIterable<Uint8Array[]> {
  let chunk: Uint8Array[] = []
  let bytes = 0
  for await (const input of inputs) {
    chunk.push(input)
    bytes += input.byteLength
    if (chunk.length < writtenAtOnceMax && bytes < writtenBytesAtOnceMax) continue
    yield chunk
    chunk = []
    bytes = 0
  }
  if (chunk.length > 0) yield chunk
}
