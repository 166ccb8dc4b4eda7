import { constants } from 'node:os'
import type { GuestProcess } from '../../spec/guest.ts'
import type { ProcessRecord } from './records.ts'
import type { ProcessStatus } from './views.ts'

/** One run of a process that may be started again. */
export interface Run {
  readonly id: number
  /** Resolves when it ended and it is decided what follows. */
  readonly settled: Promise<void>
  settle(): void
}

export function newRun(id: number): Run {
  const { promise, resolve } = Promise.withResolvers<void>()
  return { id, settled: promise, settle: resolve }
}

export function statusOf(
  exitCode: number,
  bySignal: boolean,
  intent: ProcessRecord['intent'],
): Exclude<ProcessStatus, 'running'> {
  if (exitCode === 0) return 'completed'
  if (intent === 'stop') return 'stopped'
  return intent !== null && bySignal ? 'killed' : 'failed'
}

/** Itself, or a program that its shell ran: one that nobody here asked to end was then killed by the kernel, as a rule. */
export function wasKilled({ signal, exitCode }: Pick<GuestProcess, 'signal' | 'exitCode'>): boolean {
  const { SIGKILL } = constants.signals
  return signal === SIGKILL || exitCode === 128 + SIGKILL
}

/** What the logs say between two runs. */
export function restartNote(exitCode: number, attempt: number, max: number): string {
  const of = max < 0 ? 'unlimited' : String(max)
  return `\n[Process failed with exit code ${exitCode}. Attempting restart ${attempt}/${of}...]\n`
}

export function readRestartNote(note: string): { exitCode: number; attempt: number } {
  const [, exitCode, attempt] = /exit code (-?\d+)\. Attempting restart (\d+)/.exec(note) ?? []
  return { exitCode: Number(exitCode ?? -1), attempt: Number(attempt ?? 0) }
}

/** Resolves with the promise, or when the signal is aborted. */
export async function until(promise: Promise<void>, signal: AbortSignal): Promise<void> {
  if (signal.aborted) return
  const stop = new AbortController()
  await Promise.race([
    promise,
    new Promise<void>((resolve) =>
      signal.addEventListener('abort', () => resolve(), { once: true, signal: stop.signal }),
    ),
  ])
  stop.abort()
}
