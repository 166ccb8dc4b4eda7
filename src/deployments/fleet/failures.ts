import { constants } from 'node:os'
import { PlatformError } from '../../errors.ts'
import type { GuestProcess } from '../../spec/guest.ts'
import { type RevisionRun, titleOf } from './run.ts'

/** How a program came to its end, or did not come to its beginning. */
export type Ending =
  | { how: 'ended'; process: Pick<GuestProcess, 'exitCode' | 'signal'>; outOfMemory: boolean }
  /** The machine, and the program with it. */
  | { how: 'lost'; outOfMemory: boolean }
  | { how: 'silent'; waitedMs: number }
  | { how: 'unstartable'; reason: string }

/** What the owner of a program is told of its end: why, what to do about it, and what it said last. */
export function failureOf(
  run: RevisionRun,
  ending: Ending,
  listened: boolean,
  lines: string[],
): PlatformError {
  const worth = lines.filter((line) => line.trim() !== '')
  const said =
    worth.length === 0
      ? 'It wrote nothing.'
      : `Its last lines:\n${worth.map((line) => `  ${line}`).join('\n')}`
  return new PlatformError('unprocessable', `${sentenceOf(run, ending, listened)} ${said}`)
}

function sentenceOf(run: RevisionRun, ending: Ending, listened: boolean): string {
  const { port, kind } = run
  const before = listened ? '' : ` before it listened on port ${port}`
  switch (ending.how) {
    case 'silent':
      return (
        `Default STARTUP TCP probe failed for container "${kind}" on port ${port}. The instance was not started. ` +
        `Connection failed with status DEADLINE_EXCEEDED: nothing listened there within ` +
        `${Math.round(ending.waitedMs / 1000)} s. Let the server bind to the host and port of the environment ` +
        'variables HOST and PORT, which are set for it.'
      )
    case 'unstartable':
      return `The program of ${titleOf(run)} could not be started: ${ending.reason}.`
    case 'lost':
      return ending.outOfMemory ? outOfMemory(run, before) : `The instance of ${titleOf(run)} ended${before}.`
    case 'ended':
      return ending.outOfMemory
        ? outOfMemory(run, before)
        : `The program of ${titleOf(run)} ended ${manner(ending.process)}${before}.`
  }
}

function outOfMemory(run: RevisionRun, before: string): string {
  return (
    `The program of ${titleOf(run)} was ended${before}, since it used more memory than its ${run.memoryMb} MB: ` +
    'give it more with runtime.memory.'
  )
}

function manner({ exitCode, signal }: Pick<GuestProcess, 'exitCode' | 'signal'>): string {
  if (signal === null) return `with exit code ${exitCode ?? -1}`
  const name = Object.entries(constants.signals).find(([, number]) => number === signal)?.[0]
  return `by signal ${name ?? signal}`
}
