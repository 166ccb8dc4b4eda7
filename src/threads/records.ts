/** Tasks and what was said in them, in the store: every change by compare-and-set, and with what belongs to it in one batch. */
import { PlatformError } from '../errors.ts'
import { type BatchStep, everyItem, pageLimitMax, type Store } from '../spec/store.ts'
import { inWorkspace } from '../workspaces/index.ts'
import { apartKind, isSamePart, joined, light, split, type ThreadPart } from './apart.ts'
import {
  type Entry,
  type EntryBody,
  entryKind,
  indexesOf,
  type Thread,
  type ThreadBody,
  type ThreadStatus,
  threadKey,
  threadKind,
} from './record.ts'

/** Of a thread: a thousand turns that say nothing else. What programs tell beside it has less room. */
export const entriesMax = 2000
export const entriesWithEventsMax = 1500
/** Of all that is said in a thread, together. */
export const threadCharsMax = 32 * 1024 * 1024
const attemptsMax = 16
const stepsMax = 500

export interface ThreadFilter {
  agent?: string
  user?: string
  parent?: string
  triggering?: string
  status?: ThreadStatus[]
  internal?: string
  /** When it was made, in milliseconds since the epoch. */
  since?: number
  until?: number
}

export class ThreadRecords {
  readonly #store: Store

  constructor(store: Store) {
    this.#store = store
  }

  async get(workspace: string, id: string): Promise<Thread | null> {
    for (let look = 0; look < attemptsMax; look++) {
      const thread = await this.#store.get<ThreadBody>(threadKey(workspace, id))
      if (thread?.body.apart === undefined) return thread
      const part: ThreadPart | null = await this.#store.get(partKey(workspace, thread.body.apart))
      if (part !== null) return { ...thread, body: joined(thread.body, part.body) }
      // Its record was changed in between, and has another one.
    }
    throw new PlatformError('unavailable', `the task "${id.slice(0, 80)}" is being changed: try again`)
  }

  /** @throws already_exists, workspace_not_found */
  async create(workspace: string, id: string, body: ThreadBody, entries: EntryBody[]): Promise<Thread> {
    const whole = { ...body, entries: entries.length, chars: charsOf(entries) }
    const rest = this.#parted(workspace, id, whole, 1, null)
    const made = await this.#store.batch([
      inWorkspace(workspace),
      { op: 'create', input: { ...threadKey(workspace, id), body: rest.body, indexes: indexesOf(whole) } },
      ...rest.steps,
      ...entrySteps(workspace, id, 0, entries),
    ])
    return { ...(made[1] as Thread), body: rest.whole }
  }

  /** What is written of a record, and of what lies beside it. */
  #parted(
    workspace: string,
    id: string,
    whole: ThreadBody,
    version: number,
    before: ThreadBody | null,
  ): { body: ThreadBody; whole: ThreadBody; steps: BatchStep[] } {
    const earlier = before?.apart
    if (before !== null && earlier !== undefined && isSamePart(before, whole)) {
      const kept = { ...whole, apart: earlier }
      return { body: light(kept), whole: kept, steps: [] }
    }
    const { body, part } = split(whole)
    const gone: BatchStep[] =
      earlier === undefined ? [] : [{ op: 'remove', key: partKey(workspace, earlier) }]
    if (part === null) return { body, whole: body, steps: gone }
    const apart = `${id}.${version}`
    return {
      body: { ...body, apart },
      whole: { ...whole, apart },
      steps: [...gone, { op: 'create', input: { ...partKey(workspace, apart), body: part } }],
    }
  }

  /**
   * What `next` makes of it, with entries that come with that; null from `next` leaves it as it is.
   * @throws not_found, version_mismatch when others change it all the time
   */
  async change(
    workspace: string,
    id: string,
    next: (body: ThreadBody) => { body: ThreadBody; entries?: EntryBody[] } | null,
  ): Promise<Thread> {
    for (let attempt = 1; ; attempt++) {
      const thread = await this.get(workspace, id)
      if (thread === null) throw noSuchThread(id)
      const made = next(thread.body)
      if (made === null) return thread
      const entries = (made.entries ?? []).slice(0, Math.max(0, entriesMax - thread.body.entries))
      const body = {
        ...made.body,
        entries: thread.body.entries + entries.length,
        chars: thread.body.chars + charsOf(entries),
      }
      const rest = this.#parted(workspace, id, body, thread.version + 1, thread.body)
      const change = { body: rest.body, indexes: indexesOf(body) }
      try {
        const done = await this.#store.batch([
          { op: 'update', key: threadKey(workspace, id), expectedVersion: thread.version, change },
          ...rest.steps,
          ...entrySteps(workspace, id, thread.body.entries, entries),
        ])
        return { ...(done[0] as Thread), body: rest.whole }
      } catch (error) {
        const raced = PlatformError.is(error) && error.code === 'version_mismatch'
        if (!raced || attempt >= attemptsMax) throw error
      }
    }
  }

  /** Without what is large in them. */
  async list(
    workspace: string,
    filter: ThreadFilter,
    page: { offset: number; limit: number },
  ): Promise<{ items: Thread[]; total: number }> {
    const { since, until, ...named } = filter
    const where = Object.fromEntries(Object.entries(named).filter(([, value]) => value !== undefined))
    const query = {
      kind: threadKind,
      workspace,
      where: where as Record<string, string | string[]>,
      ...(since === undefined ? {} : { since }),
      ...(until === undefined ? {} : { until }),
    }
    const { data } = await this.#store.page<ThreadBody>({ ...query, ...page })
    return { items: data, total: await this.#store.count(query) }
  }

  /** Some of those that were begun first, without what is large in them, and how many there are. */
  async oldest(workspace: string): Promise<{ oldest: Thread[]; total: number }> {
    const { data, total } = await this.#store.page<ThreadBody>({
      ...{ kind: threadKind, workspace },
      ...{ sort: 'createdAt:asc', limit: pageLimitMax },
    })
    return { oldest: data, total }
  }

  /** Those of all workspaces whose newest turn has not ended, as far as is written; without what is large in them. */
  open(): AsyncIterable<Thread> {
    const status = ['pending', 'executing', 'paused']
    return everyItem((page) => this.#store.page<ThreadBody>({ kind: threadKind, where: { status }, ...page }))
  }

  /** What was said last comes first. */
  async *newest(workspace: string, id: string): AsyncIterable<EntryBody> {
    const read = (page: object) =>
      this.#store.page<EntryBody>({
        ...{ kind: entryKind, workspace, where: { thread: id } },
        ...page,
        sort: 'name:desc',
      })
    for await (const { body } of everyItem(read)) yield body
  }

  /** In the order in which it was said. */
  async entries(workspace: string, id: string): Promise<Entry[]> {
    const found: Entry[] = []
    const read = (page: object) =>
      this.#store.page<EntryBody>({
        ...{ kind: entryKind, workspace, where: { thread: id } },
        ...page,
        sort: 'name:asc',
      })
    for await (const { id: entryId, body } of everyItem(read)) found.push({ ...body, id: entryId })
    return found
  }

  /** With everything that was said in it. */
  async remove(workspace: string, id: string): Promise<boolean> {
    // Its record first: nobody sees half of a thread.
    const removed = await this.#removeRecord(workspace, id)
    await this.removeEntries(workspace, id)
    return removed
  }

  async #removeRecord(workspace: string, id: string): Promise<boolean> {
    for (let attempt = 1; ; attempt++) {
      const thread = await this.#store.get<ThreadBody>(threadKey(workspace, id))
      if (thread === null) return false
      const { apart } = thread.body
      try {
        await this.#store.batch([
          { op: 'remove', key: threadKey(workspace, id), expectedVersion: thread.version },
          ...(apart === undefined ? [] : [{ op: 'remove' as const, key: partKey(workspace, apart) }]),
        ])
        return true
      } catch (error) {
        const raced = PlatformError.is(error) && error.code === 'version_mismatch'
        if (!raced || attempt >= attemptsMax) throw error
      }
    }
  }

  async removeEntries(workspace: string, id: string): Promise<void> {
    for (;;) {
      const found = await this.#store.find({
        ...{ kind: entryKind, workspace, index: 'thread', value: id },
        limit: stepsMax,
      })
      if (found.length === 0) return
      await this.#store.batch(
        found.map(({ name }) => ({ op: 'remove', key: { kind: entryKind, workspace, name } })),
      )
    }
  }
}

export function noSuchThread(id: string): PlatformError {
  return new PlatformError('not_found', `there is no task "${id.slice(0, 80)}"`)
}

function charsOf(entries: EntryBody[]): number {
  const lengths = entries.map(
    ({ text, data, files, user }) => text.length + lengthOf(data) + lengthOf(files) + lengthOf(user),
  )
  return lengths.reduce((sum, length) => sum + length, 0)
}

function lengthOf(value: unknown): number {
  return value === undefined ? 0 : JSON.stringify(value).length
}

function partKey(workspace: string, name: string) {
  return { kind: apartKind, workspace, name }
}

function entrySteps(workspace: string, id: string, from: number, entries: EntryBody[]): BatchStep[] {
  return entries.map((body, index) => ({
    op: 'create',
    input: {
      kind: entryKind,
      workspace,
      // Sorts as it was said.
      name: `${id}.${String(from + index).padStart(6, '0')}`,
      body,
      indexes: { thread: id },
    },
  }))
}
