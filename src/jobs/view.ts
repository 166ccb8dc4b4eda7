/** Executions of jobs and their tasks, as they are answered. */
import { z } from 'zod'
import type { Execution, PartCounts } from '../executions/index.ts'
import { defined } from '../lib/defined.ts'

const executionStatuses = ['pending', 'running', 'cancelling', 'cancelled', 'failed', 'succeeded'] as const
type JobExecutionStatus = (typeof executionStatuses)[number]

const taskStatuses = ['pending', 'running', 'reconciling', 'succeeded', 'failed', 'cancelled'] as const
type TaskStatus = (typeof taskStatuses)[number]

export const taskSchema = z.lazy(() =>
  z.object({
    metadata: z.object({
      name: z.string(),
      createdAt: z.string(),
      scheduledAt: z.string(),
      startedAt: z.string().optional(),
      completedAt: z.string().optional(),
      updatedAt: z.string(),
    }),
    spec: z.object({ maxRetries: z.number(), timeout: z.string() }),
    status: z.enum(taskStatuses),
    conditions: z.array(
      z.object({
        type: z.string(),
        state: z.string(),
        reason: z.string(),
        message: z.string(),
        severity: z.string(),
      }),
    ),
    index: z.number(),
    attempts: z.number(),
    /** Of the last attempt that ended by itself. */
    exitCode: z.number().optional(),
  }),
)
export type TaskView = z.output<typeof taskSchema>

/** One alone has more of it. */
export const taskDetailSchema = z.lazy(() =>
  taskSchema.unwrap().extend({
    /** What it was given. */
    parameters: z.unknown(),
    /** The last lines that it wrote. */
    output: z.string(),
  }),
)
export type TaskDetail = z.output<typeof taskDetailSchema>

export const executionSchema = z.lazy(() =>
  z.object({
    metadata: z.object({
      id: z.string(),
      job: z.string(),
      workspace: z.string(),
      createdAt: z.string(),
      startedAt: z.string().optional(),
      completedAt: z.string().optional(),
      updatedAt: z.string(),
    }),
    spec: z.object({
      revision: z.string(),
      parallelism: z.number(),
      /** Seconds, of one task. */
      timeout: z.number(),
      memoryOverride: z.number().optional(),
      envOverride: z.record(z.string(), z.string()).optional(),
    }),
    stats: z.object({
      total: z.number(),
      success: z.number(),
      failure: z.number(),
      cancelled: z.number(),
      running: z.number(),
      retried: z.number(),
    }),
    status: z.enum(executionStatuses),
    /** Why it is not what it was to be. */
    reason: z.string().optional(),
    tasks: z.array(taskSchema).optional(),
  }),
)
export type JobExecutionView = z.output<typeof executionSchema>

/** What is noted of an execution, for whoever reads it: nothing of it is secret. */
export interface ExecutionNote {
  revisionId: string
  parallelism: number
  timeoutSeconds: number
  maxRetries: number
  memoryOverrideMb: number | null
  /** Names of the variables that it has of its own. */
  envOverride: string[]
}

/** Of a task, by its last attempt. */
export interface TaskNote {
  exitCode?: number | null
  signal?: string | null
}

/** Ids that clients choose are theirs: others may choose the same. No name has a dot in it. */
export function givenId(workspace: string, job: string, executionId: string): string {
  return `${workspace}.${job}.${executionId}`
}

/** As its client calls it. */
export function clientId({ id, workspace, target }: Execution): string {
  const prefix = givenId(workspace, target.name, '')
  return id.startsWith(prefix) ? id.slice(prefix.length) : id
}

export function noteOf(execution: Execution): ExecutionNote {
  return execution.note as unknown as ExecutionNote
}

/** `goesOn`: something of it runs, though it may be written already that it is over. */
export function executionView(
  execution: Execution,
  counts: PartCounts,
  goesOn: boolean,
): Omit<JobExecutionView, 'tasks'> {
  const { revisionId, parallelism, timeoutSeconds, memoryOverrideMb, envOverride } = noteOf(execution)
  const status = statusOf(execution, goesOn)
  return {
    metadata: {
      id: clientId(execution),
      job: execution.target.name,
      workspace: execution.workspace,
      ...timesOf(execution, status),
    },
    spec: {
      revision: revisionId,
      parallelism,
      timeout: timeoutSeconds,
      ...(memoryOverrideMb === null ? {} : { memoryOverride: memoryOverrideMb }),
      ...(envOverride.length === 0
        ? {}
        : { envOverride: Object.fromEntries(envOverride.map((name) => [name, '***'])) }),
    },
    stats: {
      total: execution.parts ?? 0,
      success: counts.succeeded,
      failure: counts.failed + counts.timed_out,
      cancelled: counts.cancelled,
      running: counts.running,
      retried: counts.retried,
    },
    status,
    ...defined({ reason: reasonOf(execution, counts) }),
  }
}

function reasonOf({ statusReason, error, parts }: Execution, counts: PartCounts): string | undefined {
  if (statusReason !== null) return statusReason
  return error === null ? undefined : `${counts.failed + counts.timed_out} of ${parts} tasks did not succeed`
}

/** In the words of clients, of which some wait for ever unless it is succeeded, failed or cancelled. */
function statusOf({ status, stopping }: Execution, goesOn: boolean): JobExecutionStatus {
  if (stopping !== null) return 'cancelling'
  if (status === 'cancelled') return goesOn ? 'cancelling' : 'cancelled'
  if (status === 'queued') return 'pending'
  if (status === 'succeeded') return 'succeeded'
  return status === 'failed' || status === 'timed_out' ? 'failed' : 'running'
}

export function taskView(task: Execution, parent: ExecutionNote): TaskView {
  const { exitCode } = task.note as TaskNote
  const status = taskStatusOf(task)
  return {
    metadata: {
      name: taskName(task.index ?? 0),
      scheduledAt: iso(task.runAt),
      ...timesOf(task, status),
    },
    spec: { maxRetries: parent.maxRetries, timeout: `${parent.timeoutSeconds}s` },
    status,
    conditions: conditionsOf(task, status),
    index: task.index ?? 0,
    attempts: task.attempts,
    ...(typeof exitCode === 'number' ? { exitCode } : {}),
  }
}

export function taskName(index: number): string {
  return `task-${index}`
}

/** Null for what is no name of a task. */
export function taskIndex(name: string): number | null {
  const match = /^(?:task-)?(\d{1,6})$/.exec(name)
  return match === null ? null : Number(match[1])
}

function taskStatusOf({ status, attempts }: Execution): TaskStatus {
  switch (status) {
    case 'queued':
      // It was tried, and will be again.
      return attempts > 0 ? 'reconciling' : 'pending'
    case 'running':
    case 'waiting':
      return 'running'
    case 'timed_out':
      return 'failed'
    default:
      return status
  }
}

function conditionsOf(task: Execution, status: TaskStatus): TaskView['conditions'] {
  const { error, statusReason } = task
  if (error === null && status !== 'succeeded' && status !== 'cancelled') return []
  const ended = task.endedAt !== null
  return [
    {
      type: ended ? 'Completed' : 'Retry',
      state: status === 'succeeded' ? 'True' : 'False',
      reason:
        status === 'succeeded'
          ? 'succeeded'
          : status === 'cancelled'
            ? 'cancelled'
            : (error?.code ?? 'failed'),
      message: (status === 'succeeded' ? null : (statusReason ?? error?.message)) ?? '',
      severity: status === 'failed' ? 'ERROR' : status === 'succeeded' ? 'INFO' : 'WARNING',
    },
  ]
}

function timesOf({ acceptedAt, startedAt, endedAt }: Execution, status: string) {
  return {
    createdAt: iso(acceptedAt),
    ...(startedAt === null ? {} : { startedAt: iso(startedAt) }),
    // What is being ended is not over.
    ...(endedAt === null || status === 'cancelling' ? {} : { completedAt: iso(endedAt) }),
    updatedAt: iso(endedAt ?? startedAt ?? acceptedAt),
  }
}

function iso(ms: number): string {
  return new Date(ms).toISOString()
}
