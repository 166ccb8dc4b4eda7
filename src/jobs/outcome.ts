import { constants } from 'node:os'
import type { AttemptOutcome } from '../executions/index.ts'
import type { Task } from './environment.ts'
import type { Ending } from './machine.ts'
import type { TaskNote } from './view.ts'

/** What an attempt comes to: only what exits with 0 succeeded. */
export function outcomeOf(task: Task, ending: Ending): AttemptOutcome {
  if (ending.how === 'unstartable') {
    const message = `The program of the job "${task.job}" could not be started: ${ending.reason}.`
    return { status: 'failed', error: { code: 'unstartable', message }, retry: false }
  }
  const result = Buffer.from(ending.lines.join('\n'))
  const type = 'text/plain'
  const signal = ending.how === 'ended' ? signalName(ending.signal) : null
  const note: TaskNote = { exitCode: ending.how === 'ended' ? ending.exitCode : null, signal }
  const shared = { result, type, note: { ...note } }
  if (ending.how === 'ended' && ending.exitCode === 0) return { status: 'succeeded', ...shared }
  const said =
    ending.lines.length === 0
      ? 'It wrote nothing.'
      : `Its last lines:\n${ending.lines.map((line) => `  ${line}`).join('\n')}`
  return {
    status: 'failed',
    error: { code: codeOf(ending), message: `${sentenceOf(task, ending, signal)} ${said}` },
    retry: true,
    ...shared,
  }
}

type Ended = Exclude<Ending, { how: 'unstartable' }>

function codeOf(ending: Ended): string {
  if (ending.outOfMemory) return 'out_of_memory'
  if (ending.how === 'lost') return 'instance_lost'
  return ending.signal === null ? 'exit_code' : 'signal'
}

function sentenceOf({ order }: Task, ending: Ended, signal: string | null): string {
  if (ending.outOfMemory)
    return `The program was ended, since it used more memory than its ${order.memoryMb} MB: give it more with runtime.memory.`
  if (ending.how === 'lost') return 'The instance of the task ended.'
  return signal === null
    ? `The program ended with exit code ${ending.exitCode ?? -1}.`
    : `The program ended by signal ${signal}.`
}

function signalName(signal: number | null): string | null {
  if (signal === null) return null
  return Object.entries(constants.signals).find(([, number]) => number === signal)?.[0] ?? String(signal)
}
