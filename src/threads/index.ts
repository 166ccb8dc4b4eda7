/**
 * Threads: conversations with agents. Each turn is an execution of its own, and the thread's record says how the newest
 * one stands. Clients of xpander call a thread a task, and so do messages to them.
 */
import { PlatformError } from '../errors.ts'
import type { Executions } from '../executions/index.ts'
import { Background } from '../lib/background.ts'
import type { Clock } from '../lib/clock.ts'
import { sortableId } from '../lib/ids.ts'
import { JsonSchema, SchemaError } from '../lib/json-schema/index.ts'
import type { Logger } from '../lib/log.ts'
import type { SecretBox } from '../lib/secret-box.ts'
import { removalOf } from '../spec/journal.ts'
import type { Store } from '../spec/store.ts'
import { apartKind } from './apart.ts'
import { type ThreadEvent, ThreadEvents } from './events.ts'
import { threadIdOf, turnKey, wasAsked, withKey } from './keys.ts'
import { isSchema, stoppedReason } from './outcome.ts'
import {
  type Entry,
  entryKind,
  hasEnded,
  type Json,
  type JsonObject,
  type Thread,
  type ThreadBody,
  type TurnInput,
  threadKind,
} from './record.ts'
import {
  entriesMax,
  entriesWithEventsMax,
  noSuchThread,
  type ThreadFilter,
  ThreadRecords,
  threadCharsMax,
} from './records.ts'
import { boundedReport, type Performer, type TurnReport, Turns } from './turns.ts'

export { type Agent, Agents } from './agents.ts'
export type { Message } from './conversation.ts'
export type { ThreadEvent } from './events.ts'
export { endedTurn, isSchema } from './outcome.ts'
export { type Entry, hasEnded, type Json, type JsonObject, type Thread, threadStatuses } from './record.ts'
export { type Performer, resultCharsMax, type TurnReport } from './turns.ts'
export { type Worker, Workers } from './workers.ts'

/** Whatever is one word of an address; what begins with a dot is none. */
const idPattern = /^[^\s/.\p{C}][^\s/\p{C}]{0,127}$/u
const eventTextCharsMax = 64 * 1024
/** Of one workspace. */
const threadsMax = 100_000
const pruneEvery = 100
/** What is asked, and what is answered. */
const entriesOfTurn = 2

const noEvents: AsyncIterable<ThreadEvent> = { async *[Symbol.asyncIterator]() {} }

export interface NewTurn {
  workspace: string
  agentId: string
  /** Of a thread: one that is there goes on, another begins with it. */
  id?: string
  input: TurnInput
  options: JsonObject
  /** For the program alone. */
  tokens?: JsonObject
  version?: string
  source: string
  title?: string
  idempotencyKey?: string
  /** Where its end is told, for whoever composes that; secrets sealed. */
  callback?: { dialect: string } & JsonObject
  /** What happens to it is told from its very beginning, until the signal aborts. */
  watch?: AbortSignal
}

/** A turn to wait for. */
export interface BegunTurn {
  workspace: string
  id: string
  executionId: string
  isOver: boolean
}

export function begunTurn({ workspace, name: id, body }: Thread): BegunTurn {
  return { workspace, id, executionId: body.executionId, isOver: hasEnded(body) }
}

export interface ThreadsOptions {
  store: Store
  executions: Executions
  secrets: Pick<SecretBox, 'seal' | 'open'>
  clock: Clock
  log: Logger
}

export class Threads {
  readonly #options: ThreadsOptions
  readonly #records: ThreadRecords
  readonly #events = new ThreadEvents()
  readonly #background: Background
  /** Since the last look at how many there are, by workspace; after a start as good as many. */
  readonly #begun = new Map<string, number>()
  readonly #turns: Turns

  constructor(options: ThreadsOptions) {
    this.#options = options
    this.#records = new ThreadRecords(options.store)
    this.#background = new Background((error) => {
      if (!this.#background.closing.aborted)
        options.log.error('the end of a turn could not be written', { error })
    })
    this.#turns = new Turns({
      ...options,
      records: this.#records,
      events: this.#events,
      background: (work) => this.#background.run(work),
    })
  }

  /** Who does turns; `ended` is told of each that ended, whoever ended it. */
  performer(perform: Performer, ended: (thread: Thread) => void): void {
    this.#turns.performer(perform, ended)
  }

  /** After the executions opened: what a crash left undone is done. */
  async open(): Promise<void> {
    for await (const { workspace, name } of this.#records.open()) {
      const thread = await this.#records.get(workspace, name)
      if (thread === null || hasEnded(thread.body)) continue
      const { body } = thread
      const execution = this.#options.executions.get(workspace, body.executionId)
      if (execution !== null) await this.#turns.settle(execution)
      // It was written and not accepted yet: nobody was answered, and whoever asks again with its key gets it.
      else await this.#turns.accept(thread).catch((error) => this.#turns.undone(thread, error))
    }
  }

  /** Those whose newest turn somebody works on who reports; without what is large in them. */
  async *reported(): AsyncIterable<Thread> {
    for await (const thread of this.#records.open()) {
      const execution = this.#options.executions.get(thread.workspace, thread.body.executionId)
      if (execution?.status === 'waiting') yield thread
    }
  }

  async close(): Promise<void> {
    this.#background.close()
    await this.#background.settled()
  }

  /**
   * Begins a thread, or its next turn. Durable once it resolves. `existing`: this request was here before.
   * @throws bad_request, conflict while its turn before goes on, and what `Executions.accept` throws
   */
  async begin(
    asked: NewTurn,
  ): Promise<{ thread: Thread; existing: boolean; events: AsyncIterable<ThreadEvent> }> {
    this.#background.refuseWhenClosing()
    const { workspace, idempotencyKey, agentId, input, options, version } = asked
    const now = this.#options.clock.now()
    checkSchema(options)
    if (asked.id !== undefined && !idPattern.test(asked.id)) {
      throw new PlatformError(
        'bad_request',
        `id: "${asked.id.slice(0, 80)}" is not an id: up to 128 characters without spaces and slashes`,
      )
    }
    const key =
      idempotencyKey === undefined
        ? null
        : turnKey(
            workspace,
            idempotencyKey,
            [agentId, asked.id ?? null, input, options, version ?? null],
            now,
          )
    const id = asked.id ?? (key === null ? crypto.randomUUID() : threadIdOf(key))
    const executionId = sortableId(now)
    const body = this.#newBody(asked, id, executionId, now)
    const entry = {
      role: 'user' as const,
      turn: 1,
      at: now,
      text: input.text,
      ...(input.files.length > 0 ? { files: input.files } : {}),
      ...(input.user === null ? {} : { user: input.user }),
    }
    const found: { before: ThreadBody | null; existing: boolean } = { before: null, existing: false }
    let thread: Thread
    try {
      thread = await this.#records.create(workspace, id, { ...body, keys: withKey([], key) }, [entry])
    } catch (error) {
      if (!PlatformError.is(error) || error.code !== 'already_exists') throw error
      await this.get(workspace, id)
      thread = await this.#records.change(workspace, id, (current) => {
        found.before = null
        found.existing = key !== null && wasAsked(current, key)
        if (found.existing) return null
        if (!hasEnded(current)) throw stillGoesOn(id, current)
        if (current.agentId !== agentId) throw otherAgent(id, current.agentId)
        const isFull = current.entries + entriesOfTurn > entriesMax || current.chars > threadCharsMax
        if (isFull) throw full(id)
        found.before = current
        const turn = current.turn + 1
        const next = {
          ...body,
          turn,
          title: asked.title ?? current.title,
          // What was handed out before says nothing of this turn.
          leases: current.leases + 1,
          keys: withKey(current.keys, key),
        }
        return { body: next, entries: [{ ...entry, turn }] }
      })
    }
    const { existing } = found
    const events = asked.watch ? this.watch(workspace, id, asked.watch) : noEvents
    if (!existing) {
      try {
        await this.#turns.accept(thread)
      } catch (error) {
        // Nothing was promised: the thread is as it was.
        await this.#takeBack(thread, found.before)
        throw error
      }
      await this.#prune(workspace)
    }
    return { thread: existing ? await this.get(workspace, id) : thread, existing, events }
  }

  /** @throws not_found */
  async get(workspace: string, id: string): Promise<Thread> {
    return await this.#turns.current(workspace, id)
  }

  /** Without what is large in them: of texts there is the beginning. */
  async list(
    workspace: string,
    filter: ThreadFilter,
    page: { offset: number; limit: number },
  ): Promise<{ items: Thread[]; total: number }> {
    return await this.#records.list(workspace, filter, page)
  }

  /** Everything that was said, in order. @throws not_found */
  async entries(workspace: string, id: string): Promise<Entry[]> {
    await this.get(workspace, id)
    return await this.#records.entries(workspace, id)
  }

  /** Ends its turn; one that ended already stays as it is. @throws not_found */
  async stop(workspace: string, id: string): Promise<Thread> {
    const thread = await this.get(workspace, id)
    if (hasEnded(thread.body)) return thread
    try {
      const { execution } = await this.#options.executions.cancel(
        workspace,
        thread.body.executionId,
        stoppedReason,
      )
      return (await this.#turns.settle(execution)) ?? thread
    } catch (error) {
      if (!PlatformError.is(error) || error.code !== 'conflict') throw error
      return await this.get(workspace, id)
    }
  }

  /** With all that was said in it; its turn ends. @throws not_found */
  async remove(workspace: string, id: string): Promise<void> {
    await this.stop(workspace, id)
    if (!(await this.#records.remove(workspace, id))) throw noSuchThread(id)
  }

  /** Something that its program did, for whoever watches and for the thread; stale ones are told nobody. @throws not_found */
  async happened(workspace: string, id: string, type: string, data: Json): Promise<void> {
    const thread = await this.get(workspace, id)
    if (hasEnded(thread.body)) return
    this.#events.tell(workspace, id, { type, at: this.#options.clock.now(), data })
    // Pieces of the answer come again with the answer.
    if (type === 'chunk') return
    const text = JSON.stringify(data) ?? 'null'
    const kept = text.length > eventTextCharsMax ? { shortened: text.slice(0, eventTextCharsMax) } : data
    await this.#records.change(workspace, id, (body) =>
      body.entries >= entriesWithEventsMax || body.chars > threadCharsMax / 2
        ? null
        : {
            body,
            entries: [
              { role: 'event', turn: body.turn, at: this.#options.clock.now(), text: '', type, data: kept },
            ],
          },
    )
  }

  /** What it cost, also once it ended. @throws not_found */
  async measured(workspace: string, id: string, reported: JsonObject): Promise<void> {
    await this.#records.change(workspace, id, (body) => ({
      body: { ...body, reported: boundedReport({ ...body.reported, ...reported }) },
    }))
  }

  /** Handed to somebody who reports; answers the number of this lease. Null: there is nothing to do any more. */
  async lease(workspace: string, id: string, executionId: string, workerId: string): Promise<Thread | null> {
    let leased = false
    const thread = await this.#records
      .change(workspace, id, (body) => {
        leased = body.executionId === executionId && !hasEnded(body)
        if (!leased) return null
        return {
          body: { ...body, leases: body.leases + 1, reported: { ...body.reported, worker_id: workerId } },
        }
      })
      .catch((error) => {
        if (PlatformError.is(error) && error.code === 'not_found') return null
        throw error
      })
    return leased ? thread : null
  }

  /** Resolves once its newest turn ended; with how it stands then, after `timeoutMs` or when the signal aborts too. @throws not_found */
  async ended(
    { workspace, id, executionId, isOver }: BegunTurn,
    options: { timeoutMs: number; signal?: AbortSignal },
  ): Promise<Thread> {
    if (!isOver) await this.#options.executions.ended(workspace, executionId, options)
    return await this.get(workspace, id)
  }

  /** What happens to it from this call on. */
  watch(workspace: string, id: string, signal: AbortSignal): AsyncIterable<ThreadEvent> {
    return this.#events.watch(workspace, id, signal)
  }

  /** What its program, or whoever works on it, says. What is stale, or comes after its end, changes nothing. @throws not_found */
  async report(workspace: string, id: string, report: TurnReport): Promise<Thread> {
    return await this.#turns.report(await this.get(workspace, id), report)
  }

  /** Says that it is worked on, by which version of its program. */
  async executing(thread: Thread, version: string | null): Promise<void> {
    await this.#turns.executing(thread, version)
  }

  /** What only the program is to read. */
  tokensOf(thread: Thread): JsonObject {
    return this.#turns.tokensOf(thread)
  }

  /** Steps that remove every thread of a workspace. */
  async removal(workspace: string) {
    return await removalOf(this.#options.store, [threadKind, apartKind, entryKind], workspace)
  }

  #newBody(asked: NewTurn, id: string, executionId: string, now: number): ThreadBody {
    const { tokens = {}, callback } = asked
    const hasTokens = Object.keys(tokens).length > 0
    return {
      agentId: asked.agentId,
      turn: 1,
      executionId,
      turnAt: now,
      input: asked.input,
      options: asked.options,
      ...(hasTokens ? { sealedTokens: this.#turns.seal(id, tokens) } : {}),
      version: asked.version ?? null,
      source: asked.source,
      title: asked.title ?? null,
      status: 'pending',
      internalStatus: null,
      result: null,
      isManuallyStopped: false,
      startedAt: null,
      pausedAt: null,
      finishedAt: null,
      leases: 0,
      reported: {},
      entries: 0,
      chars: 0,
      keys: [],
      ...(callback === undefined ? {} : { callback }),
    }
  }

  /** The threads that were begun first go, of those that nobody works on. */
  async #prune(workspace: string): Promise<void> {
    const begun = (this.#begun.get(workspace) ?? pruneEvery - 1) + 1
    this.#begun.set(workspace, begun % pruneEvery)
    if (begun < pruneEvery) return
    const { oldest, total } = await this.#records.oldest(workspace)
    for (const { name, body } of oldest.slice(0, Math.max(0, total - threadsMax))) {
      if (hasEnded(body)) await this.#records.remove(workspace, name)
    }
  }

  async #takeBack({ workspace, name: id, body }: Thread, before: ThreadBody | null): Promise<void> {
    if (before === null) {
      await this.#records.remove(workspace, id)
      return
    }
    await this.#records.change(workspace, id, (current) =>
      current.executionId === body.executionId ? { body: before } : null,
    )
  }
}

/** @throws bad_request */
function checkSchema({ output_schema: schema }: JsonObject): void {
  if (!isSchema(schema)) return
  try {
    new JsonSchema(schema)
  } catch (error) {
    if (error instanceof SchemaError)
      throw new PlatformError('bad_request', `output_schema: ${error.message}`)
    throw error
  }
}

function stillGoesOn(id: string, { status }: ThreadBody): PlatformError {
  return new PlatformError(
    'conflict',
    `id: the task "${id.slice(0, 80)}" is ${status}: wait until its turn has ended, or stop it, before the next one`,
  )
}

function full(id: string): PlatformError {
  return new PlatformError(
    'conflict',
    `id: the thread "${id.slice(0, 80)}" has as much in it as a thread can have: begin another`,
  )
}

function otherAgent(id: string, agentId: string): PlatformError {
  return new PlatformError(
    'conflict',
    `id: the task "${id.slice(0, 80)}" is a conversation with the agent "${agentId}"`,
  )
}
