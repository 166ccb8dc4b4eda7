/**
 * Jobs: programs that are run to their end. An execution is one run of a job, and has tasks; each task is an instance of
 * its own, made for it and gone with it.
 */
import { destroyInstance } from '../deployments/fleet/index.ts'
import type { DeploymentKind, Deployments } from '../deployments/index.ts'
import { PlatformError } from '../errors.ts'
import { type Execution, type Executions, executionStatuses } from '../executions/index.ts'
import { quoted } from '../lib/checks.ts'
import { sortableId } from '../lib/ids.ts'
import { KeyedLock } from '../lib/keyed-lock.ts'
import type { SecretBox } from '../lib/secret-box.ts'
import { DataAddresses } from './data-address.ts'
import { type MachineHost, taskOwnerKind } from './machine.ts'
import { JobOrders } from './order.ts'
import { checkRequest, type ExecutionRequest } from './request.ts'
import { RunningTasks } from './running.ts'
import {
  clientId,
  type ExecutionNote,
  executionView,
  givenId,
  type JobExecutionView,
  noteOf,
  type TaskDetail,
  type TaskView,
  taskIndex,
  taskView,
} from './view.ts'

export { executionSchema, taskDetailSchema, taskSchema } from './view.ts'

const executionSource = 'job'
const taskSource = 'job-task'
/** Between the first two attempts at a task; doubled before each further one. */
const retryDelayMs = 1_000
const retryDelayMsMax = 60_000
/** Of an execution as a whole, which has as many tasks as it has. */
const executionTimeoutMsMax = 30 * 24 * 60 * 60 * 1000
/** Tasks that come with an execution that is read; there are pages of all of them. */
const tasksShownMax = 1000
const tasksReadAtOnce = 250
/** An end that takes longer goes on behind the answer. */
const cancelWaitMsMax = 10_000
const openStatuses = executionStatuses.filter((status) => ['queued', 'running', 'waiting'].includes(status))

export interface JobsOptions extends MachineHost {
  executions: Executions
  deployments: Pick<Deployments, 'jobRun' | 'get'>
  secrets: Pick<SecretBox, 'seal' | 'open' | 'deriveKey'>
  /** Of the whole platform: how many tasks run at once. */
  tasksMax: number
}

interface TaskPage {
  limit: number
  cursor?: string | undefined
}

export interface StartOptions {
  idempotency?: { key: string; digest?: string; keptMs?: number } | undefined
  labels?: Record<string, string>
  /** In place of the job's own. */
  limits?: { timeoutSeconds?: number; maxRetries?: number }
}

export interface StartedExecution {
  executionId: string
  /** It was there already, under the same id or key. */
  existing: boolean
}

export class Jobs {
  readonly #options: JobsOptions
  readonly #orders: JobOrders
  readonly #addresses: DataAddresses
  readonly #running: RunningTasks
  /** Of an id: who asks for it twice at once gets one execution. */
  readonly #starts = new KeyedLock()

  constructor(options: JobsOptions) {
    this.#options = options
    const { executions, secrets, tasksMax } = options
    this.#orders = new JobOrders({ secrets, input: (workspace, id) => executions.input(workspace, id) })
    this.#addresses = new DataAddresses(secrets)
    this.#running = new RunningTasks({
      host: options,
      executions,
      orders: this.#orders,
      addresses: this.#addresses,
    })
    // Its tasks do the work; but it is the execution that is shown.
    executions.runner(executionSource, runNothing, { runningMax: 1, newId })
    executions.runner(taskSource, (attempt, signal) => this.#running.run(attempt, signal), {
      runningMax: tasksMax,
      hidden: true,
    })
  }

  /** At start, before executions go on: what tasks left running is ended, since they are begun again. */
  async open(): Promise<void> {
    const { instances } = this.#options
    await Promise.all(
      instances.owned(taskOwnerKind).map(async ({ id, state }) => {
        if (state === 'ending') return
        await destroyInstance(id, this.#options)
      }),
    )
  }

  /**
   * Begins an execution of a job; durable once it resolves. With an id or a key that was seen before, and the same request,
   * answers the execution that there is.
   * @throws not_found, bad_request, conflict while there is nothing to run, or for an id or key that was used for something
   * else, too_many_requests
   */
  async start(
    workspace: string,
    job: string,
    request: ExecutionRequest,
    how: StartOptions = {},
  ): Promise<StartedExecution> {
    const { idempotency, labels = {} } = how
    const { deployments, executions, clock, tasksMax } = this.#options
    const run = await deployments.jobRun(workspace, job)
    const ask = checkRequest(request, run.memoryMb)
    if (request.allowQueue === false && executions.depth({ source: taskSource }).running >= tasksMax) {
      throw new PlatformError(
        'too_many_requests',
        `${tasksMax} tasks run on this platform, the most at once, and allowQueue is false: try again later`,
        { retryAfterSeconds: 1 },
      )
    }
    const digest = digestOf(request)
    const executionId = ask.executionId ?? newId(clock.now())
    const id = ask.executionId === null ? executionId : givenId(workspace, job, executionId)
    const order = {
      ...run,
      memoryMb: ask.memoryMb ?? run.memoryMb,
      env: { ...run.env, ...ask.env },
      limits: { ...run.limits, ...how.limits },
    }
    const { limits } = order
    const note: ExecutionNote & { digest: string } = {
      revisionId: run.revisionId,
      parallelism: Math.min(limits.maxConcurrentTasks ?? tasksMax, ask.tasks.length),
      timeoutSeconds: limits.timeoutSeconds,
      maxRetries: limits.maxRetries,
      memoryOverrideMb: ask.memoryMb,
      envOverride: Object.keys(ask.env),
      digest,
    }
    return await this.#starts.run(id, async () => {
      const earlier = ask.executionId === null ? null : executions.get(workspace, id)
      if (earlier !== null) return this.#same(earlier, executionId, digest)
      const { execution, existing } = await executions
        .acceptGroup(
          {
            workspace,
            source: executionSource,
            target: { kind: 'job', name: job },
            input: this.#orders.seal({ workspace, job }, order, ask.tasks),
            id,
            labels: { image: run.image, revision: run.revisionId, ...labels },
            note: { ...note },
            timeoutMs: executionTimeoutMsMax,
            ...(idempotency === undefined
              ? {}
              : {
                  idempotency: {
                    ...idempotency,
                    key: `job/${job}/${idempotency.key}`,
                    digest: idempotency.digest ?? digest,
                  },
                }),
          },
          ask.tasks.map((task) => Buffer.from(task)),
          {
            source: taskSource,
            timeoutMs: limits.timeoutSeconds * 1000,
            retry: { attemptsMax: limits.maxRetries + 1, delayMs: retryDelayMs, delayMsMax: retryDelayMsMax },
            parallelMax: limits.maxConcurrentTasks ?? tasksMax,
          },
        )
        .catch((error: unknown) => {
          throw idempotency === undefined ? error : inClientsWords(error, idempotency.key)
        })
      return { executionId: clientId(execution), existing }
    })
  }

  /** @throws not_found */
  get(workspace: string, job: string, executionId: string): JobExecutionView {
    const execution = this.#require(workspace, job, executionId)
    const tasks: TaskView[] = []
    for (let cursor: string | undefined = ''; cursor !== undefined && tasks.length < tasksShownMax; ) {
      const page = this.#tasks(execution, { limit: tasksReadAtOnce, cursor })
      tasks.push(...page.data)
      cursor = page.nextCursor || undefined
    }
    return { ...this.#view(execution), tasks }
  }

  /** Newest first unless asked otherwise. @throws not_found for a job that there is not */
  async list(
    workspace: string,
    job: string,
    page: { limit: number; cursor?: string | undefined; sort?: 'newest' | 'oldest' | undefined },
  ): Promise<{ data: JobExecutionView[]; nextCursor: string }> {
    const { executions, deployments } = this.#options
    const { limit, cursor, sort = 'newest' } = page
    const filter = { source: executionSource, target: { kind: 'job', name: job } }
    const found = executions.list(workspace, filter, { limit, sort, ...(cursor ? { cursor } : {}) })
    // What a job that is gone did is kept for a while.
    if (found.data.length === 0) await deployments.get(workspace, 'job', job)
    return { data: found.data.map((execution) => this.#view(execution)), nextCursor: found.nextCursor }
  }

  /** In their order. @throws not_found */
  tasks(
    workspace: string,
    job: string,
    executionId: string,
    page: TaskPage,
  ): { data: TaskView[]; nextCursor: string } {
    return this.#tasks(this.#require(workspace, job, executionId), page)
  }

  /** One task, with what it was given and what it wrote last. @throws not_found */
  task(workspace: string, job: string, executionId: string, name: string): TaskDetail {
    const { executions } = this.#options
    const execution = this.#require(workspace, job, executionId)
    const index = taskIndex(name)
    const task = index === null ? null : executions.part(workspace, execution.id, index)
    if (task === null) throw new PlatformError('not_found', `the execution has no task ${quoted(name)}`)
    const input = executions.input(workspace, task.id)
    const result = executions.result(workspace, task.id)
    return {
      ...taskView(task, noteOf(execution)),
      parameters: input === null ? null : JSON.parse(Buffer.from(input).toString()),
      output: result === null ? '' : Buffer.from(result).toString(),
    }
  }

  /** Ends what runs of an execution, and begins nothing more of it. Of one that ended: as it is. @throws not_found */
  async cancel(workspace: string, job: string, executionId: string): Promise<JobExecutionView> {
    const { executions } = this.#options
    const execution = this.#require(workspace, job, executionId)
    if (execution.endedAt === null) await this.#cancel(workspace, execution.id, 'cancelled by a client')
    return this.#view(executions.get(workspace, execution.id) ?? execution)
  }

  /** Of a deployment that is being deleted: ends its executions, and waits (for a while) until nothing of them runs. */
  async endAll({
    workspace,
    kind,
    name,
  }: {
    workspace: string
    kind: DeploymentKind
    name: string
  }): Promise<void> {
    if (kind !== 'job') return
    const { executions, clock } = this.#options
    const filter = { source: executionSource, target: { kind, name }, status: openStatuses }
    const ending = new Set<Promise<unknown>>()
    for (;;) {
      const { data } = executions.list(workspace, filter, { limit: 100 })
      if (data.length === 0) break
      for (const { id } of data) {
        for (const running of this.#running.of(id)) ending.add(running)
        await this.#cancel(workspace, id, 'its job was deleted')
      }
    }
    const late = new AbortController()
    const waited = clock.sleep(cancelWaitMsMax, late.signal).catch(() => {})
    await Promise.race([Promise.allSettled(ending), waited])
    late.abort()
  }

  /** JSON `{"tasks":[...]}`, for whoever has its address. @throws not_found, also once it is over */
  data(token: string): Uint8Array {
    const named = this.#addresses.executionOf(token)
    const execution = named && this.#options.executions.get(named.workspace, named.id)
    if (!execution || execution.source !== executionSource || execution.endedAt !== null) {
      throw new PlatformError('not_found', 'there is no execution under this address (any more)')
    }
    return this.#orders.tasks(execution)
  }

  /** What an image is needed for, as people call it, by what was not run yet; null: nothing. */
  userOf(workspace: string, image: string): string | null {
    const filter = { source: executionSource, status: openStatuses, labels: { image } }
    const [execution] = this.#options.executions.list(workspace, filter, { limit: 1 }).data
    return execution === undefined ? null : `an execution of the job ${execution.target.name}`
  }

  /** What runs in an instance, as whom it speaks to the platform; null for one of something else. */
  workloadOf(
    instanceId: string,
  ): { kind: string; workspace: string; name: string; labels: Record<string, string> } | null {
    const owner = this.#options.instances.ownerOf(instanceId)
    if (owner?.task === undefined) return null
    const { workspace, name, task } = owner
    return { kind: 'job', workspace, name, labels: task.labels }
  }

  #tasks(execution: Execution, { limit, cursor }: TaskPage): { data: TaskView[]; nextCursor: string } {
    const filter = { source: taskSource, group: execution.id }
    const page = { limit, sort: 'index' as const, ...(cursor ? { cursor } : {}) }
    const { data, nextCursor } = this.#options.executions.list(execution.workspace, filter, page)
    const note = noteOf(execution)
    return { data: data.map((task) => taskView(task, note)), nextCursor }
  }

  /** What is told of it: counts of what is written, and whether something of it runs on. */
  #view(execution: Execution): Omit<JobExecutionView, 'tasks'> {
    const counts = this.#options.executions.counts(execution.id)
    return executionView(execution, counts, this.#running.has(execution.id))
  }

  #require(workspace: string, job: string, executionId: string): Execution {
    const { executions } = this.#options
    for (const id of [executionId, givenId(workspace, job, executionId)]) {
      const found = executions.get(workspace, id)
      const isIts = found?.source === executionSource && found.target.name === job
      if (isIts && clientId(found) === executionId) return found
    }
    throw new PlatformError(
      'not_found',
      `there is no execution ${quoted(executionId)} of the job "${job.slice(0, 64)}"`,
    )
  }

  #same(earlier: Execution, executionId: string, digest: string): StartedExecution {
    if (earlier.note.digest === digest) return { executionId, existing: true }
    throw new PlatformError(
      'conflict',
      `executionId: ${quoted(executionId)} was used for another request: choose another one`,
    )
  }

  async #cancel(workspace: string, id: string, reason: string): Promise<void> {
    try {
      await this.#options.executions.cancel(workspace, id, reason)
    } catch (error) {
      // It ended meanwhile.
      if (!PlatformError.is(error) || error.code !== 'conflict') throw error
    }
  }
}

/** Keys are kept apart by job: what the client knows is its own. */
function inClientsWords(error: unknown, key: string): unknown {
  if (!PlatformError.is(error) || error.code !== 'conflict') return error
  return new PlatformError(
    'conflict',
    `Idempotency-Key: ${quoted(key)} was used for another request: use a new one for this`,
  )
}

async function runNothing(): Promise<never> {
  throw new Error('an execution of a job runs nothing itself')
}

function newId(nowMs: number): string {
  return `exec-${sortableId(nowMs)}`
}

function digestOf({ tasks, env, memory }: ExecutionRequest): string {
  const text = JSON.stringify([tasks ?? [], env ?? {}, memory ?? 0])
  return new Bun.CryptoHasher('sha256').update(text).digest('base64url')
}
