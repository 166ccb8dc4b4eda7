import type { Resource } from '../client/index.ts'
import { at, type Kind } from './kinds.ts'
import { age, print, printable } from './output.ts'
import { printResources } from './resource-output.ts'

type Listed = Pick<Kind, 'kind' | 'plural' | 'columns'>

export const jobExecutions: Listed = {
  kind: 'JobExecution',
  plural: 'executions',
  columns: [
    ['EXECUTION', (resource) => String(resource.metadata?.id)],
    ['STATUS', (resource) => String(resource.status ?? '-')],
    ['TASKS', (resource) => String(statsOf(resource).total ?? '-')],
    ['SUCCEEDED', (resource) => String(statsOf(resource).success ?? '-')],
    ['FAILED', (resource) => String(statsOf(resource).failure ?? '-')],
    ['AGE', (resource) => age(resource.metadata?.createdAt)],
  ],
}

export const jobTasks: Listed = {
  kind: 'JobTask',
  plural: 'tasks',
  columns: [
    ['TASK', (resource) => String(resource.index)],
    ['STATUS', (resource) => String(resource.status ?? '-')],
    ['EXIT CODE', (resource) => String(resource.exitCode ?? '-')],
    ['ATTEMPTS', (resource) => String(resource.attempts ?? '-')],
    ['AGE', (resource) => age(resource.metadata?.startedAt as string | undefined)],
    ['REASON', (resource) => reasonOf(resource) ?? '-'],
  ],
}

function statsOf(resource: Resource): Record<string, number> {
  return (resource.stats ?? {}) as Record<string, number>
}

/** `998 succeeded, 2 failed, 3 of them tried more than once` */
export function statsText(stats: Record<string, number>): string {
  const { success = 0, failure = 0, cancelled = 0, running = 0, retried = 0, total = 0 } = stats
  const pending = total - success - failure - cancelled - running
  const parts = [
    [success, 'succeeded'],
    [failure, 'failed'],
    [cancelled, 'cancelled'],
    [running, 'running'],
    [pending, 'to come'],
  ].flatMap(([count, word]) => (count === 0 ? [] : [`${count} ${word}`]))
  return `${parts.join(', ') || 'no tasks'}${retried > 0 ? `; ${retried} tried again` : ''}`
}

/** An execution for people, with its tasks. */
export function describeExecution(execution: Resource): void {
  const { metadata, status, stats, reason, tasks = [] } = execution
  printRows([
    ['execution', metadata?.id],
    ['job', metadata?.job],
    ['status', status],
    ['reason', reason],
    ['tasks', statsText((stats ?? {}) as Record<string, number>)],
    ['at once', at(execution, 'spec.parallelism')],
    ['timeout', secondsText(at(execution, 'spec.timeout'))],
    ['memory', at(execution, 'spec.memoryOverride')],
    ['variables', Object.keys((at(execution, 'spec.envOverride') ?? {}) as object).join(', ')],
    ['revision', at(execution, 'spec.revision')],
    ['created', metadata?.createdAt],
    ['started', metadata?.startedAt],
    ['ended', metadata?.completedAt],
  ])
  print('')
  printResources(jobTasks, tasks as Resource[], 'table')
}

/** A task for people, with what it wrote last. */
export function describeTask(task: Resource): void {
  const { metadata, status, exitCode, attempts, parameters, output } = task
  printRows([
    ['task', metadata?.name],
    ['status', status],
    ['reason', reasonOf(task)],
    ['exit code', exitCode],
    ['attempts', attempts],
    ['given', JSON.stringify(parameters)],
    ['started', metadata?.startedAt],
    ['ended', metadata?.completedAt],
  ])
  if (typeof output !== 'string' || output === '') return
  print('')
  for (const line of output.split('\n')) print(printable(line))
}

/** Why a task stands as it does, where its status does not say it. */
function reasonOf({ status, conditions }: Resource): string | undefined {
  const [condition] = (conditions ?? []) as { reason?: string }[]
  return condition?.reason === status ? undefined : condition?.reason
}

function printRows(rows: [title: string, value: unknown][]): void {
  for (const [title, value] of rows) {
    if (value === undefined || value === null || value === '') continue
    print(`${title.padEnd(12)} ${printable(String(value))}`)
  }
}

function secondsText(seconds: unknown): string | undefined {
  return typeof seconds === 'number' ? `${seconds} s` : undefined
}
