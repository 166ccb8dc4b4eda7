/** The attempts at tasks that are under way. */
import { PlatformError } from '../errors.ts'
import type { Attempt, AttemptOutcome, Executions } from '../executions/index.ts'
import type { DataAddresses } from './data-address.ts'
import type { Task } from './environment.ts'
import { type MachineHost, runTask } from './machine.ts'
import type { JobOrders } from './order.ts'
import { outcomeOf } from './outcome.ts'
import { clientId } from './view.ts'

/** Where the host has no room for an instance just now. */
const noRoomDelayMs = 1_000
const noRoomDelayMsMax = 30_000
const noRoomCodes = ['unavailable', 'too_many_requests', 'insufficient_storage']

export interface RunningTasksOptions {
  host: MachineHost
  executions: Pick<Executions, 'get'>
  orders: JobOrders
  addresses: DataAddresses
}

export class RunningTasks {
  readonly #options: RunningTasksOptions
  /** By the execution that they are of. */
  readonly #running = new Map<string, Set<Promise<unknown>>>()

  constructor(options: RunningTasksOptions) {
    this.#options = options
  }

  /** Whether something of an execution runs, also what is being ended. */
  has(id: string): boolean {
    return this.#running.has(id)
  }

  of(id: string): Iterable<Promise<unknown>> {
    return this.#running.get(id) ?? []
  }

  async run(attempt: Attempt, signal: AbortSignal): Promise<AttemptOutcome> {
    const { executions, orders, addresses } = this.#options
    const { execution, number } = attempt
    const { workspace, group, index, target } = execution
    const parent = group === null ? null : executions.get(workspace, group)
    if (group === null || parent === null || index === null)
      throw new Error(`the task ${execution.id} is of no execution`)
    const order = orders.of({ workspace, job: target.name, id: group })
    const task: Task = {
      workspace,
      job: target.name,
      executionId: clientId(parent),
      index,
      attempt: number,
      order,
      dataToken: addresses.tokenOf(workspace, group),
    }
    const running = this.#attempt(task, signal)
    const leave = this.#enter(group, running)
    try {
      return await running
    } finally {
      leave()
    }
  }

  async #attempt(task: Task, signal: AbortSignal): Promise<AttemptOutcome> {
    const { host } = this.#options
    const { clock, log } = host
    for (let delayMs = noRoomDelayMs; ; delayMs = Math.min(delayMs * 2, noRoomDelayMsMax)) {
      try {
        return outcomeOf(task, await runTask(task, host, signal))
      } catch (error) {
        if (signal.aborted) throw signal.reason
        // Nobody's program is to blame for that: it is no attempt.
        if (!PlatformError.is(error) || !noRoomCodes.includes(error.code)) throw error
        log.info('a task waits for room on this host', {
          job: task.job,
          task: task.index,
          reason: error.message,
        })
        await clock.sleep(delayMs, signal)
      }
    }
  }

  #enter(id: string, running: Promise<unknown>): () => void {
    const others = this.#running.get(id) ?? new Set()
    this.#running.set(id, others.add(running))
    return () => {
      others.delete(running)
      if (others.size === 0) this.#running.delete(id)
    }
  }
}
