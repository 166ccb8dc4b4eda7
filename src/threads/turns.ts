/** Turns of threads as executions: taken up, done by whoever does them, told of by them, and written into their threads. */
import { PlatformError } from '../errors.ts'
import {
  type Attempt,
  type AttemptOutcome,
  type Execution,
  ExecutionStopped,
  type Executions,
} from '../executions/index.ts'
import type { Clock } from '../lib/clock.ts'
import type { Logger } from '../lib/log.ts'
import type { SecretBox } from '../lib/secret-box.ts'
import { conversation, type Message } from './conversation.ts'
import type { ThreadEvents } from './events.ts'
import { answered, endedTurn, endReport } from './outcome.ts'
import {
  hasEnded,
  type Json,
  type JsonObject,
  type Thread,
  type ThreadBody,
  type ThreadStatus,
} from './record.ts'
import { noSuchThread, type ThreadRecords } from './records.ts'

/** Of executions that are turns of threads. */
const turnSource = 'xpander'
/** In all, over every agent, and of one of them: those that workers do are not counted while they work. */
const runningMax = 512
const runningOfAgentMax = 64
/** Of one turn, from when it begins. */
const turnMsMax = 60 * 60_000
/** A program that could not be reached, or was starting, is asked again. */
const retry = { attemptsMax: 4, delayMs: 500, delayMsMax: 15_000 }
/** Of what came of a turn. */
export const resultCharsMax = 2 * 1024 * 1024
/** In the note of an execution, which has at most 64 KiB. */
const toldCharsMax = 16 * 1024
const reportedBytesMax = 256 * 1024

/** Whoever does a turn. `waiting`: it was taken up by somebody who reports. */
export type Performer = (
  turn: { thread: Thread; execution: Execution; messages: Message[]; tokens: JsonObject },
  tell: (type: string, data: Json) => void,
  signal: AbortSignal,
) => Promise<
  | { by: 'reporter' }
  | { by: 'program'; result: string }
  | { by: 'failure'; outcome: Extract<AttemptOutcome, { status: 'failed' }> }
>

/** What a program says of the turn that it works on. */
export interface TurnReport {
  status?: ThreadStatus
  result?: string | null
  internalStatus?: string | null
  title?: string | null
  /** By the names of its dialect, merged into what it said before. */
  reported?: JsonObject
  /** Which handing out of a turn it speaks of; what was handed out again since changes nothing. */
  lease?: number
}

export interface TurnsOptions {
  records: ThreadRecords
  events: ThreadEvents
  executions: Executions
  secrets: Pick<SecretBox, 'seal' | 'open'>
  clock: Clock
  log: Logger
  /** Work that nobody waits for. */
  background: (work: Promise<unknown>) => void
}

export class Turns {
  readonly #options: TurnsOptions
  readonly #records: ThreadRecords
  readonly #events: ThreadEvents
  /** By execution: more than one may see that it ended. */
  readonly #settling = new Map<string, Promise<Thread | null>>()
  #perform: Performer | null = null
  #onEnded: (thread: Thread) => void = () => {}

  constructor(options: TurnsOptions) {
    this.#options = options
    this.#records = options.records
    this.#events = options.events
    options.executions.runner(turnSource, (attempt, signal) => this.#run(attempt, signal), {
      runningMax,
      ended: (execution) => options.background(this.settle(execution)),
    })
  }

  /** Who does turns; `ended` is told of each that ended, whoever ended it. */
  performer(perform: Performer, ended: (thread: Thread) => void): void {
    this.#perform = perform
    this.#onEnded = ended
  }

  async accept({ workspace, name: id, body }: Thread): Promise<void> {
    const { executionId, agentId, turn, input, callback } = body
    const given: { dialect: string } | undefined = callback as never
    await this.#options.executions.accept({
      workspace,
      source: turnSource,
      target: { kind: 'agent', name: agentId },
      targetRunningMax: runningOfAgentMax,
      id: executionId,
      input: Buffer.from(JSON.stringify({ thread: id, turn, ...input })),
      inputIsGiven: true,
      labels: { thread: id, turn: String(turn) },
      timeoutMs: turnMsMax,
      retry,
      ...(given === undefined ? {} : { callback: given }),
    })
  }

  /** At start, one that cannot be accepted. */
  async undone({ workspace, name: id, body }: Thread, error: unknown): Promise<void> {
    const message = PlatformError.is(error) ? error.message : 'it could not be taken up'
    this.#options.log.warn('a turn could not be taken up', { thread: id, error })
    await this.#records.change(workspace, id, (current) =>
      current.executionId === body.executionId && !hasEnded(current)
        ? { body: { ...current, status: 'error', result: message, finishedAt: this.#options.clock.now() } }
        : null,
    )
  }

  async #run({ execution }: Attempt, signal: AbortSignal): Promise<AttemptOutcome> {
    const thread = await this.#taken(execution)
    if (thread === null || this.#perform === null) {
      return {
        status: 'failed',
        error: { code: 'superseded', message: 'the thread of this turn is gone, or went on without it' },
        retry: false,
      }
    }
    const { workspace, name: id } = thread
    const turn = {
      thread,
      execution,
      messages: await this.messages(thread),
      tokens: this.tokensOf(thread),
    }
    const tell = (type: string, data: Json) =>
      this.#events.tell(workspace, id, { type, at: this.#options.clock.now(), data })
    const done = await this.#perform(turn, tell, signal)
    if (signal.reason instanceof ExecutionStopped) throw signal.reason
    if (done.by === 'reporter') return { status: 'waiting' }
    return done.by === 'failure' ? done.outcome : answered(thread.body, done.result)
  }

  /** The thread whose newest turn this execution is; one that is replayed becomes that. */
  async #taken(execution: Execution): Promise<Thread | null> {
    const { workspace, labels } = execution
    const id = labels.thread ?? ''
    const thread = await this.#records.get(workspace, id)
    if (thread === null) return null
    if (thread.body.executionId === execution.id) return thread
    if (labels.replayOf !== thread.body.executionId) return null
    let adopted = false
    const changed = await this.#records.change(workspace, id, (body) => {
      adopted = body.executionId === labels.replayOf && hasEnded(body)
      if (!adopted) return null
      return {
        body: {
          ...body,
          executionId: execution.id,
          status: 'pending',
          result: null,
          internalStatus: null,
          isManuallyStopped: false,
          finishedAt: null,
        },
      }
    })
    return adopted ? changed : null
  }

  /** Says that it is worked on. */
  async executing({ workspace, name: id, body }: Thread, version: string | null): Promise<void> {
    const changed = await this.#records.change(workspace, id, (current) => {
      if (current.executionId !== body.executionId || hasEnded(current)) return null
      return {
        body: {
          ...current,
          status: 'executing',
          startedAt: current.startedAt ?? this.#options.clock.now(),
          reported: { ...current.reported, ...(version === null ? {} : { agent_version: version }) },
        },
      }
    })
    this.#tell(changed, 'task_updated')
  }

  async #note(thread: Thread, report: TurnReport): Promise<Thread> {
    const { status, result, internalStatus, title, reported = {} } = report
    const goesOn = status !== undefined && !hasEnded({ status })
    const { workspace, name: id } = thread
    const changed = await this.#records.change(workspace, id, (body) => {
      if (hasEnded(body) || body.executionId !== thread.body.executionId) return null
      const now = this.#options.clock.now()
      const next: ThreadBody = {
        ...body,
        ...(goesOn ? { status } : {}),
        ...(goesOn && result !== undefined ? { result } : {}),
        ...(internalStatus === undefined ? {} : { internalStatus }),
        ...(title == null ? {} : { title }),
        startedAt: body.startedAt ?? (status === undefined || status === 'pending' ? null : now),
        pausedAt: status === 'paused' ? now : body.pausedAt,
        reported: boundedReport({ ...body.reported, ...reported }),
      }
      return { body: next }
    })
    if (goesOn) this.#tell(changed, 'task_updated')
    return changed
  }

  /** A thread as its newest turn stands. @throws not_found */
  async current(workspace: string, id: string): Promise<Thread> {
    const thread = await this.#records.get(workspace, id)
    if (thread === null) throw noSuchThread(id)
    if (hasEnded(thread.body)) return thread
    const execution = this.#options.executions.get(workspace, thread.body.executionId)
    // It ended this very moment, and its record says so in the next.
    return execution?.endedAt == null ? thread : ((await this.settle(execution)) ?? thread)
  }

  /** What its program says; what is stale, or comes after its end, changes nothing. */
  async report(thread: Thread, said: TurnReport): Promise<Thread> {
    const report = bounded(said)
    const { status, lease } = report
    const { workspace, name: id } = thread
    if (hasEnded(thread.body) || (lease !== undefined && lease < thread.body.leases)) return thread
    if (status !== undefined && hasEnded({ status })) {
      const told = toldOf(report)
      // What fits is kept by the execution itself, in the transaction that ends it.
      if (told === null) await this.#note(thread, report)
      const end = endReport(thread.body, status, report.result ?? thread.body.result)
      try {
        const execution = await this.#options.executions.report(workspace, thread.body.executionId, {
          ...end,
          ...(told === null ? {} : { note: { told } }),
        })
        return (await this.settle(execution)) ?? thread
      } catch (error) {
        // Somebody said before how it ended, which stays.
        if (!PlatformError.is(error) || error.code !== 'conflict') throw error
        return await this.current(workspace, id)
      }
    }
    // A word of it is a sign of life.
    const alive = this.#options.executions
      .report(workspace, thread.body.executionId, { status: 'running' })
      .catch((error) => {
        if (!PlatformError.is(error)) throw error
      })
    const [noted] = await Promise.all([this.#note(thread, report), alive])
    return noted
  }

  /** Writes how a turn ended into its thread, once. Null: there is no such thread, or it went on. */
  settle(execution: Execution): Promise<Thread | null> {
    const known = this.#settling.get(execution.id)
    if (known !== undefined) return known
    const settling = this.#settle(execution).finally(() => this.#settling.delete(execution.id))
    this.#settling.set(execution.id, settling)
    return settling
  }

  async #settle(execution: Execution): Promise<Thread | null> {
    const { workspace, id: executionId, labels, endedAt, startedAt } = execution
    if (endedAt === null) return null
    const told = (execution.note.told ?? {}) as Told
    const id = labels.thread ?? ''
    const kept = this.#options.executions.result(workspace, executionId)
    const answer = kept === null || kept.byteLength === 0 ? null : Buffer.from(kept).toString()
    const end = endedTurn(execution, answer)
    let wrote = false
    try {
      const thread = await this.#records.change(workspace, id, (body) => {
        wrote = body.executionId === executionId && !hasEnded(body)
        if (!wrote) return null
        const said = end.status === 'completed' ? (end.result ?? '') : answer
        return {
          body: {
            ...body,
            ...end,
            internalStatus: internalStatusOf(told.internalStatus ?? body.internalStatus, end.internalStatus),
            title: told.title ?? body.title,
            reported: { ...body.reported, ...told.reported },
            startedAt: body.startedAt ?? startedAt,
            finishedAt: endedAt,
          },
          entries:
            said === null ? [] : [{ role: 'assistant' as const, turn: body.turn, at: endedAt, text: said }],
        }
      })
      if (wrote) {
        this.#tell(thread, 'task_finished')
        this.#onEnded(thread)
      }
      return thread
    } catch (error) {
      if (PlatformError.is(error) && error.code === 'not_found') return null
      throw error
    }
  }

  async messages({ workspace, name, body }: Thread): Promise<Message[]> {
    return await conversation(this.#records.newest(workspace, name), body.turn)
  }

  /** Credentials for the program, as they are kept. */
  seal(id: string, tokens: JsonObject): string {
    return this.#options.secrets.seal(JSON.stringify(tokens), tokensPurpose(id))
  }

  /** What only the program is to read. */
  tokensOf({ name, body }: Thread): JsonObject {
    if (body.sealedTokens === undefined) return {}
    return JSON.parse(this.#options.secrets.open(body.sealedTokens, tokensPurpose(name))) as JsonObject
  }

  #tell(thread: Thread, type: string): void {
    this.#events.tell(thread.workspace, thread.name, { type, at: thread.updatedAt, data: null, thread })
  }
}

/** Of how it failed its program's own word says most, unless it was not the program that failed. */
function internalStatusOf(said: string | null, code: string | null): string | null {
  return code === null || code.startsWith('agent_') ? (said ?? code) : code
}

/** What its program says of a turn beside how it ended. */
interface Told {
  internalStatus?: string | null
  title?: string
  reported?: JsonObject
}

/** Null: it is more than an execution keeps beside its result. */
function toldOf({ internalStatus, title, reported = {} }: TurnReport): Told | null {
  const told: Told = {
    ...(internalStatus == null ? {} : { internalStatus }),
    ...(title == null ? {} : { title }),
    reported,
  }
  return JSON.stringify(told).length <= toldCharsMax ? told : null
}

/** An answer that is too long is no answer. */
function bounded(report: TurnReport): TurnReport {
  if ((report.result?.length ?? 0) <= resultCharsMax) return report
  const result = `the result is longer than ${resultCharsMax} characters`
  return { ...report, status: 'error', result, internalStatus: 'answer_too_large' }
}

/** @throws body_too_large */
export function boundedReport(reported: JsonObject): JsonObject {
  if (JSON.stringify(reported).length <= reportedBytesMax) return reported
  throw new PlatformError(
    'body_too_large',
    `what the program tells of its task is more than ${reportedBytesMax / 1024} KiB`,
  )
}

function tokensPurpose(id: string): string {
  return `thread/${id}/tokens`
}
