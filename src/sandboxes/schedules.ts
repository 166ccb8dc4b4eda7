/** Schedules: commands that run in a sandbox at their times, and the record of each run. */
import { PlatformError } from '../errors.ts'
import { Background } from '../lib/background.ts'
import type { Clock } from '../lib/clock.ts'
import { Deadlines } from '../lib/deadlines.ts'
import { sortableId } from '../lib/ids.ts'
import { KeyedLock } from '../lib/keyed-lock.ts'
import type { Logger } from '../lib/log.ts'
import type { SecretBox } from '../lib/secret-box.ts'
import { Semaphore } from '../lib/semaphore.ts'
import type { BatchStep, Page, PageAsked, ResourceKey, Store } from '../spec/store.ts'
import { everyItem } from '../spec/store.ts'
import type { Sandboxes } from './index.ts'
import { ScheduleHistory } from './schedules/history.ts'
import {
  draftOfSchedule,
  type ExecutionBody,
  executionKind,
  following,
  type ScheduleBody,
  type ScheduleDraft,
  type StoredExecution,
  type StoredSchedule,
  scheduleIndex,
  scheduleIndexes,
  scheduleKind,
} from './schedules/record.ts'
import { ScheduleRuns } from './schedules/runs.ts'
import type { ScheduleInput, ScheduleMetrics } from './schedules/schema.ts'

export { executionView, scheduleView } from './schedules/record.ts'
export {
  executionSchema,
  executionStatuses,
  scheduleInputSchema,
  scheduleMetricsSchema,
  scheduleSchema,
} from './schedules/schema.ts'

const schedulesPerSandboxMax = 100
/** Commands that are submitted at once; the others wait for their turn. */
export const runsMax = 32
const changeAttemptsMax = 8
const generatedIdsMax = 100_000

export interface SchedulesOptions {
  store: Store
  sandboxes: Sandboxes
  secrets: Pick<SecretBox, 'seal' | 'open'>
  clock: Clock
  log: Logger
}

/**
 * A moment that passed while the platform was down, or while its sandbox could not be asked, is made up for at the next
 * start: once, however many were missed. A run is recorded before its command is submitted, so that a crash in between
 * neither loses it nor submits it twice.
 */
export class Schedules {
  readonly #store: Store
  readonly #sandboxes: Sandboxes
  readonly #secrets: SchedulesOptions['secrets']
  readonly #clock: Clock
  readonly #deadlines: Deadlines
  readonly #lock = new KeyedLock()
  readonly #runs: ScheduleRuns
  readonly #history: ScheduleHistory
  readonly #turns = new Semaphore({
    concurrencyMax: runsMax,
    waitingMax: Number.POSITIVE_INFINITY,
    what: 'scheduled commands are being submitted',
  })
  readonly #background: Background

  constructor(options: SchedulesOptions) {
    this.#store = options.store
    this.#sandboxes = options.sandboxes
    this.#secrets = options.secrets
    this.#clock = options.clock
    const background = new Background((error) => {
      if (!background.closing.aborted) options.log.error('a scheduled run failed', { error })
    })
    this.#background = background
    this.#history = new ScheduleHistory(options.store)
    this.#runs = new ScheduleRuns({
      store: options.store,
      sandboxes: options.sandboxes,
      log: options.log,
      closing: this.#background.closing,
      openEnv: (uid, sealed) => this.#openEnv(uid, sealed),
    })
    this.#deadlines = new Deadlines({ clock: options.clock, log: options.log, due: (key) => this.#due(key) })
    this.#sandboxes.addDependent({
      removal: (workspace, _, uid) => this.#removal(workspace, uid),
      removed: () => this.#background.run(this.#history.purge()),
    })
  }

  /** At start, after the sandboxes: sets every deadline, and finishes what a crash cut off. */
  async open(): Promise<void> {
    await this.#history.purge()
    const schedules = everyItem((page) =>
      this.#store.page<ScheduleBody>({ ...page, kind: scheduleKind, sort: 'createdAt:asc' }),
    )
    for await (const schedule of schedules) this.#watch(schedule)
    for await (const execution of this.#history.pending()) {
      this.#background.run(this.#turns.run(() => this.#runs.resume(execution)))
    }
  }

  async close(): Promise<void> {
    this.#background.close()
    this.#deadlines[Symbol.dispose]()
    await this.settled()
  }

  /** Resolves when no run is being submitted. */
  settled(): Promise<void> {
    return this.#background.settled()
  }

  /** @throws not_found (sandbox), already_exists, bad_request, also for more than `schedulesPerSandboxMax` */
  async create(workspace: string, sandbox: string, input: ScheduleInput): Promise<StoredSchedule> {
    const draft = draftOfSchedule(input, this.#clock.now(), null)
    return await this.#sandboxes.whileExists(workspace, sandbox, async ({ body: { uid } }) => {
      const others = await this.#ofSandbox(workspace, uid)
      if (others.length >= schedulesPerSandboxMax) {
        throw new PlatformError(
          'bad_request',
          `the sandbox "${sandbox}" has ${schedulesPerSandboxMax} schedules, the most it may have: delete one first`,
        )
      }
      const id = input.id || (await this.#freeId(workspace, uid, others))
      const body = this.#bodyOf(draft, { id, sandbox, sandboxUid: uid })
      try {
        const created = await this.#store.create<ScheduleBody>({
          ...scheduleKey(workspace, uid, id),
          body,
          indexes: scheduleIndexes(body),
          createdAt: this.#clock.now(),
        })
        this.#watch(created)
        return created
      } catch (error) {
        if (!PlatformError.is(error) || error.code !== 'already_exists') throw error
        throw new PlatformError('already_exists', `the sandbox "${sandbox}" has a schedule "${id}" already`)
      }
    })
  }

  /** @throws not_found */
  async get(workspace: string, sandbox: string, id: string): Promise<StoredSchedule> {
    const uid = await this.#uidOf(workspace, sandbox)
    const found = await this.#store.get<ScheduleBody>(scheduleKey(workspace, uid, id))
    if (!found) throw scheduleNotFound(sandbox, id)
    return found
  }

  /** Replaces all but its id. @throws not_found, bad_request */
  async update(
    workspace: string,
    sandbox: string,
    id: string,
    input: ScheduleInput,
  ): Promise<StoredSchedule> {
    if (input.id && input.id !== id) {
      throw new PlatformError('bad_request', `id: a schedule cannot be renamed; send "${id}" or leave it out`)
    }
    return await this.#sandboxes.whileExists(workspace, sandbox, async ({ body: { uid } }) => {
      for (let attempt = 1; ; attempt++) {
        const existing = await this.#store.get<ScheduleBody>(scheduleKey(workspace, uid, id))
        if (!existing) throw scheduleNotFound(sandbox, id)
        const previous = { ...existing.body, env: this.env(existing) }
        const draft = draftOfSchedule(input, this.#clock.now(), previous)
        const body = this.#bodyOf(draft, existing.body)
        try {
          const change = { body, indexes: scheduleIndexes(body) }
          const updated = await this.#store.update<ScheduleBody>(keyOf(existing), existing.version, change)
          this.#watch(updated)
          return updated
        } catch (error) {
          // It ran in this moment.
          if (!isRaced(error) || attempt >= changeAttemptsMax) throw error
        }
      }
    })
  }

  /** Its history stays. Answers its last state. @throws not_found */
  async remove(workspace: string, sandbox: string, id: string): Promise<StoredSchedule> {
    const found = await this.get(workspace, sandbox, id)
    this.#deadlines.delete(deadlineOf(found))
    await this.#store.remove(keyOf(found))
    return found
  }

  /** Of one sandbox, or of the whole workspace. @throws not_found (sandbox), bad_request */
  async list(
    workspace: string,
    query: PageAsked & { sandbox?: string; type?: string },
  ): Promise<Page<ScheduleBody>> {
    const { sandbox, type, ...page } = query
    return await this.#store.page<ScheduleBody>({
      ...page,
      kind: scheduleKind,
      workspace,
      where: {
        ...(sandbox === undefined ? {} : { sandbox: await this.#uidOf(workspace, sandbox) }),
        ...(type === 'cron' || type === 'at' ? { type } : {}),
      },
    })
  }

  /** Newest first. A page may be short where `sinceMs` or `untilMs` cut it. @throws not_found (sandbox), bad_request */
  async executions(
    workspace: string,
    query: PageAsked & {
      sandbox?: string
      scheduleId?: string
      status?: string
      sinceMs?: number
      untilMs?: number
    },
  ): Promise<Page<ExecutionBody>> {
    const { sandbox, ...rest } = query
    const of = sandbox === undefined ? {} : { sandboxUid: await this.#uidOf(workspace, sandbox) }
    return await this.#history.page({ ...rest, ...of, workspace })
  }

  /** Counts of a workspace, of runs from `sinceMs` on and before `untilMs`. */
  async metrics(workspace: string, sinceMs: number, untilMs: number): Promise<ScheduleMetrics> {
    const counts = await this.#history.counts(workspace, sinceMs, untilMs)
    let sandboxes = 0
    const deployed = { status: 'DEPLOYED' }
    for await (const _ of everyItem((page) => this.#sandboxes.list(workspace, { ...page, ...deployed })))
      sandboxes++
    return {
      executions: counts.succeeded + counts.failed,
      executionsByStatus: counts,
      sandboxes,
      schedules: (await this.#store.page({ kind: scheduleKind, workspace, limit: 1 })).total,
      since: new Date(sinceMs).toISOString(),
      until: new Date(untilMs).toISOString(),
    }
  }

  /** The values of its environment. */
  env({ body }: StoredSchedule): Record<string, string> {
    return this.#openEnv(body.sandboxUid, body.sealedEnv)
  }

  #watch(schedule: StoredSchedule): void {
    this.#deadlines.set(deadlineOf(schedule), schedule.body.nextAt)
  }

  async #due(deadline: string): Promise<void> {
    if (this.#background.closing.aborted) return
    const [workspace = '', name = ''] = deadline.split('\n')
    await this.#background.track(
      this.#lock.run(deadline, async () => {
        const schedule = await this.#store.get<ScheduleBody>({ kind: scheduleKind, workspace, name })
        if (!schedule) return
        if (schedule.body.nextAt > this.#clock.now()) return this.#watch(schedule)
        const execution = await this.#begin(schedule)
        if (execution) this.#background.run(this.#turns.run(() => this.#runs.submit(execution)))
      }),
    )
  }

  /** Records the run and, with it, when the schedule comes next. Null when the schedule was changed meanwhile. */
  async #begin(schedule: StoredSchedule): Promise<StoredExecution | null> {
    const { body, workspace } = schedule
    const now = this.#clock.now()
    const nextAt = following(body, now)
    const id = sortableId(now)
    const execution: ExecutionBody = {
      id,
      scheduleId: body.id,
      sandbox: body.sandbox,
      sandboxUid: body.sandboxUid,
      status: 'pending',
      statusCode: 0,
      executedAt: now,
      processName: body.name ?? `${body.id}-${id}`,
      timeoutSeconds: body.timeoutSeconds,
      command: {
        command: body.command,
        ...(body.workingDir === undefined ? {} : { workingDir: body.workingDir }),
        sealedEnv: body.sealedEnv,
        keepAlive: body.keepAlive,
      },
    }
    const advance: BatchStep =
      nextAt === null
        ? { op: 'remove', key: keyOf(schedule), expectedVersion: schedule.version }
        : {
            op: 'update',
            key: keyOf(schedule),
            expectedVersion: schedule.version,
            change: { body: { ...body, nextAt } },
          }
    try {
      const addition = await this.#history.addition(workspace, execution, body.maxExecutions)
      const results = await this.#store.batch([advance, ...addition])
      if (nextAt !== null) this.#deadlines.set(deadlineOf(schedule), nextAt)
      return results[1] as StoredExecution
    } catch (error) {
      if (!isRaced(error)) throw error
      const fresh = await this.#store.get<ScheduleBody>(keyOf(schedule))
      if (fresh) this.#watch(fresh)
      return null
    }
  }

  #bodyOf(
    { env, ...draft }: ScheduleDraft,
    of: Pick<ScheduleBody, 'id' | 'sandbox' | 'sandboxUid'>,
  ): ScheduleBody {
    const { id, sandbox, sandboxUid } = of
    const sealedEnv = this.#secrets.seal(JSON.stringify(env), purpose(sandboxUid))
    return { ...draft, id, sandbox, sandboxUid, variables: Object.keys(env), sealedEnv }
  }

  #openEnv(sandboxUid: string, sealed: string): Record<string, string> {
    return JSON.parse(this.#secrets.open(sealed, purpose(sandboxUid))) as Record<string, string>
  }

  async #freeId(workspace: string, uid: string, others: StoredSchedule[]): Promise<string> {
    const taken = new Set(others.map(({ body }) => body.id))
    for (let number = 0; number < generatedIdsMax; number++) {
      const id = `schedule-${number}`
      if (taken.has(id)) continue
      const value = scheduleIndex({ sandboxUid: uid, scheduleId: id })
      // One that ran and is gone keeps its history to itself.
      const [used] = await this.#store.find({
        kind: executionKind,
        workspace,
        index: 'schedule',
        value,
        limit: 1,
      })
      if (!used) return id
    }
    throw new PlatformError('bad_request', 'id: no generated id is free any more; send one')
  }

  async #ofSandbox(workspace: string, uid: string): Promise<StoredSchedule[]> {
    return await this.#store.find<ScheduleBody>({
      kind: scheduleKind,
      workspace,
      index: 'sandbox',
      value: uid,
      limit: schedulesPerSandboxMax,
    })
  }

  async #removal(workspace: string, uid: string): Promise<BatchStep[]> {
    const schedules = await this.#ofSandbox(workspace, uid)
    for (const schedule of schedules) this.#deadlines.delete(deadlineOf(schedule))
    const steps: BatchStep[] = schedules.map((schedule) => ({ op: 'remove', key: keyOf(schedule) }))
    return [...steps, ...(await this.#history.removal(workspace, uid))]
  }

  async #uidOf(workspace: string, sandbox: string): Promise<string> {
    return (await this.#sandboxes.get(workspace, sandbox)).body.uid
  }
}

function scheduleKey(workspace: string, uid: string, id: string): ResourceKey {
  return { kind: scheduleKind, workspace, name: `${uid}/${id}` }
}

function keyOf({ kind, workspace, name }: ResourceKey): ResourceKey {
  return { kind, workspace, name }
}

function deadlineOf({ workspace, name }: ResourceKey): string {
  return `${workspace}\n${name}`
}

function purpose(sandboxUid: string): string {
  return `sandbox:${sandboxUid}:schedule`
}

function isRaced(error: unknown): boolean {
  return PlatformError.is(error) && (error.code === 'version_mismatch' || error.code === 'not_found')
}

function scheduleNotFound(sandbox: string, id: string): PlatformError {
  return new PlatformError('not_found', `the sandbox "${sandbox}" has no schedule "${id.slice(0, 64)}"`)
}
