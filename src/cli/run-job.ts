import { resolve } from 'node:path'
import type { Resource } from '../client/index.ts'
import { clientFor, withHints } from './client.ts'
import { CommandError, sameTarget, type Target, UsageError } from './command.ts'
import { installDependencies } from './dependencies.ts'
import { readEnvironment } from './environment.ts'
import { statsText } from './job-executions.ts'
import { at } from './kinds.ts'
import { platformVariables, StandInPrograms } from './local-environment.ts'
import { noteNext } from './next.ts'
import { note, print, printJson } from './output.ts'
import { lineOf, pathOf, readProject } from './served-project.ts'
import { shellQuote } from './shell.ts'

const pollMsMin = 100
const pollMsMax = 2_000
const over = new Set(['succeeded', 'failed', 'cancelled', 'timeout'])

interface JobFlags extends Target {
  wait?: boolean | undefined
  json?: boolean | undefined
}

/** Tells of an execution that began, and with --wait of how it ends; answers the exit code. */
export async function tellOfExecution(flags: JobFlags, job: string, begun: Response): Promise<number> {
  const text = await begun.text()
  if (!begun.ok) throw new CommandError(refusalOf(text), sameTarget(`hutch get job ${job}`, flags))
  const { executionId } = JSON.parse(text) as { executionId: string }
  if (!flags.wait) {
    if (flags.json) print(text)
    else print(executionId)
    noteNext(`hutch get job ${job} execution ${executionId}`, flags)
    return 0
  }
  if (!flags.json) note(`${executionId} begins`)
  const execution = await ended(flags, job, executionId)
  const status = String(execution.status)
  const stats = (execution.stats ?? {}) as Record<string, number>
  if (flags.json) printJson(execution)
  else print(`${executionId} ${status}: ${statsText(stats)}`)
  if (status === 'succeeded') return 0
  noteNext(`hutch logs job ${job} ${executionId}`, flags)
  return 1
}

/** Nothing but the platform itself answers here. */
function refusalOf(text: string): string {
  try {
    return (JSON.parse(text) as { message: string }).message
  } catch {
    return text
  }
}

async function ended(flags: Target, job: string, executionId: string): Promise<Resource> {
  const path = `/jobs/${encodeURIComponent(job)}/executions/${encodeURIComponent(executionId)}`
  const { resources } = clientFor(flags)
  const watch = `hutch get job ${job} execution ${executionId}`
  for (let pollMs = pollMsMin; ; pollMs = Math.min(pollMs * 1.5, pollMsMax)) {
    const execution = await withHints(flags, () => resources.get(path), { 0: watch })
    if (over.has(String(execution.status))) return execution
    await Bun.sleep(pollMs)
  }
}

interface LocalFlags extends Target {
  concurrent?: number | undefined
  json?: boolean | undefined
  'env-file'?: string[] | undefined
  secrets?: string[] | undefined
}

/**
 * Runs the program of this folder once for each task, with the task's parameters as `--name value` behind its line. Answers
 * the exit code: that of the first task that failed.
 */
export async function runLocally(flags: LocalFlags, body: string | undefined): Promise<number> {
  const directory = resolve('.')
  const served = readProject({ directory })
  if (served === null)
    throw new CommandError(`${directory} is no project: nothing says what is run`, 'hutch new job my-job')
  const tasks = tasksOf(body)
  const concurrent = flags.concurrent ?? 1
  if (concurrent < 1) throw new UsageError(`--concurrent ${concurrent} is not a number of tasks: 1 or more`)
  using programs = new StandInPrograms()
  const env = {
    ...served.settings.env,
    ...process.env,
    ...readEnvironment(flags, [directory]),
    ...platformVariables(flags, directory),
    BL_NAME: served.name,
    BL_TYPE: 'job',
    PATH: programs.after(process.env.PATH ?? ''),
  }
  await installDependencies(served, env)
  const { line } = lineOf(served, false)
  const path = programs.after(pathOf(directory, process.env.PATH))
  const started = performance.now()
  const codes = new Array<number>(tasks.length).fill(0)
  let next = 0
  const work = async () => {
    for (let index = next++; index < tasks.length; index = next++) {
      const child = Bun.spawn(['sh', '-c', [line, ...argumentsOf(tasks[index]!)].join(' ')], {
        cwd: directory,
        env: { ...env, PATH: path, BL_TASK_KEY: 'TASK_INDEX', TASK_INDEX: String(index) },
        stdio: ['ignore', 'inherit', 'inherit'],
      })
      codes[index] = await child.exited
      if (codes[index] !== 0) note(`task ${index} ended with exit code ${codes[index]}`)
    }
  }
  await Promise.all(Array.from({ length: Math.min(concurrent, tasks.length) }, work))
  const failed = codes.filter((code) => code !== 0).length
  const took = ((performance.now() - started) / 1000).toFixed(1)
  note(`${tasks.length} ${tasks.length === 1 ? 'task' : 'tasks'} in ${took} s, ${failed} failed`)
  return codes.find((code) => code !== 0) ?? 0
}

/** As the program would read them from a command line: what is no text is JSON. */
function argumentsOf(task: Record<string, unknown>): string[] {
  return Object.entries(task).flatMap(([name, value]) => [
    shellQuote(`--${name}`),
    shellQuote(typeof value === 'string' ? value : JSON.stringify(value)),
  ])
}

/** @throws UsageError */
function tasksOf(body: string | undefined): Record<string, unknown>[] {
  if (body === undefined) return [{}]
  let given: unknown
  try {
    given = JSON.parse(body)
  } catch (error) {
    throw new UsageError(`what is to be run is no JSON: ${(error as Error).message}`)
  }
  const tasks = at(given as Resource, 'tasks')
  const isTask = (one: unknown) => typeof one === 'object' && one !== null && !Array.isArray(one)
  if (Array.isArray(tasks) && tasks.every(isTask)) return tasks.length > 0 ? tasks : [{}]
  throw new UsageError('what is to be run is not {"tasks": [{...}, ...]}')
}
