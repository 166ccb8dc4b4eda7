/** What a client may ask of one execution. */
import { PlatformError } from '../errors.ts'
import { badRequest, checkRange, quoted } from '../lib/checks.ts'
import { envsOf } from '../lib/environment.ts'

const tasksMax = 10_000
const taskBytesMax = 256 * 1024
const tasksBytesMax = 16 * 1024 * 1024
const overridesMax = 100
const memoryMbMin = 128
const givenIdPattern = /^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$/

export interface ExecutionRequest {
  /** Each an object of parameters; default: one task without any. */
  tasks?: readonly Record<string, unknown>[] | null
  /** Over those of the job, for this execution alone. */
  env?: Record<string, string | number | boolean> | null
  /** MB, at most those of the job. */
  memory?: number | null
  /** Chosen by the client. */
  executionId?: string | null
  /** False: refused instead of queued where the platform has no room for a task now. */
  allowQueue?: boolean | null
}

/** Checked. */
export interface ExecutionAsk {
  /** JSON of each. */
  tasks: string[]
  env: Record<string, string>
  memoryMb: number | null
  executionId: string | null
}

/** @throws bad_request that names the field, body_too_large */
export function checkRequest(request: ExecutionRequest, memoryMbMax: number): ExecutionAsk {
  const { memory, executionId } = request
  if (memory !== null && memory !== undefined && memory > memoryMbMax) {
    throw badRequest(
      `memory: ${memory} is more than the ${memoryMbMax} MB of the job; an execution can have less, not more`,
    )
  }
  return {
    tasks: tasksOf(request.tasks),
    env: envOf(request.env ?? {}),
    // Clients that write every field write 0 for "as it is".
    memoryMb: memory ? checkRange('memory', memory, memoryMbMin, memoryMbMax) : null,
    executionId: executionId ? checkGivenId(executionId) : null,
  }
}

function tasksOf(given: ExecutionRequest['tasks']): string[] {
  const tasks = given && given.length > 0 ? given : [{}]
  if (tasks.length > tasksMax) {
    throw badRequest(`tasks: ${tasks.length} tasks, at most ${tasksMax} in one execution`)
  }
  let bytes = 0
  const texts = tasks.map((task, index) => {
    const text = JSON.stringify(task)
    if (text.length > taskBytesMax)
      throw badRequest(`tasks[${index}]: ${text.length} characters of JSON, at most ${taskBytesMax}`)
    bytes += text.length
    return text
  })
  if (bytes > tasksBytesMax) {
    throw new PlatformError(
      'body_too_large',
      `tasks: ${bytes} characters of JSON in all, at most ${tasksBytesMax}`,
    )
  }
  return texts
}

function envOf(given: Record<string, string | number | boolean>): Record<string, string> {
  const entries = Object.entries(given).map(([name, value]) => ({ name, value: String(value) }))
  if (entries.length > overridesMax)
    throw badRequest(`env: ${entries.length} variables, at most ${overridesMax} for one execution`)
  return envsOf('env', entries, null).env
}

function checkGivenId(id: string): string {
  if (givenIdPattern.test(id)) return id
  throw badRequest(
    `executionId: ${quoted(id)} is not 1 to 64 letters, digits, "-" and "_", beginning with a letter or digit`,
  )
}
