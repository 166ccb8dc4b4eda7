import { platformEnvironment, platformOrigin, programDefaults } from '../deployments/fleet/index.ts'
import type { JobOrder } from './order.ts'

/** The variable that says which of the tasks it is, and the name of that variable. */
const indexVariable = 'TASK_INDEX'

/** One task of an execution. */
export interface Task {
  workspace: string
  job: string
  /** As its client calls it. */
  executionId: string
  index: number
  attempt: number
  order: JobOrder
  /** Where it reads what it was given. */
  dataToken: string
}

/** What the program of a task finds: what its image says, over that its owner's, over that what makes it this task. */
export function taskEnvironment(
  task: Task,
  imageEnv: Record<string, string>,
  region: string | undefined,
): Record<string, string> {
  const { workspace, job: name, order } = task
  return {
    ...programDefaults,
    ...imageEnv,
    ...order.env,
    ...platformEnvironment({ workspace, kind: 'job', name, revisionId: order.revisionId }, region),
    BL_EXECUTION_DATA_URL: `${platformOrigin}/-/executions/${task.dataToken}`,
    BL_EXECUTION_ID: task.executionId,
    BL_TASK_KEY: indexVariable,
    [indexVariable]: String(task.index),
    BL_TASK_ATTEMPT: String(task.attempt),
  }
}
