import { PlatformError } from '../errors.ts'
import type { Clock } from '../lib/clock.ts'
import { openWorkStates, type Work, workResultBytesMax } from '../spec/queue.ts'
import type { Attempts } from './attempts.ts'
import { type ExecutionReport, ExecutionStopped } from './execution.ts'
import { bodyOf, boundedError, boundedMessage, checkNote, isEnded, mergedNote } from './records.ts'
import type { Transitions } from './transitions.ts'

/** What agents say of executions that they took up: how far they are, and how they ended. */
export class Reports {
  readonly #clock: Clock
  readonly #transitions: Transitions
  readonly #attempts: Attempts

  constructor(options: { clock: Clock; transitions: Transitions; attempts: Attempts }) {
    this.#clock = options.clock
    this.#transitions = options.transitions
    this.#attempts = options.attempts
  }

  /** @throws bad_request, body_too_large, conflict for another end than it had */
  async take(before: Work, report: ExecutionReport, again: () => Work): Promise<Work> {
    const { status, result } = report
    if (before.parts !== null) {
      throw new PlatformError('conflict', `the execution "${before.id}" ends with its parts`)
    }
    if (result && result.byteLength > workResultBytesMax) {
      throw new PlatformError(
        'body_too_large',
        `the result is ${result.byteLength} bytes, at most ${workResultBytesMax} are kept`,
      )
    }
    const ends = status !== undefined && status !== 'running' && status !== 'waiting'
    const changed = await this.#transitions.change(before.id, (work) => {
      if (isEnded(work)) return null
      return {
        expect: { states: openWorkStates },
        ...this.#stateOf(work, report),
        ...(result ? { result } : {}),
        ...(report.labels ? { labels: report.labels } : {}),
        body: this.#bodyOf(work, report),
      }
    })
    if (changed) {
      if (ends)
        this.#attempts.stop(before.id, new ExecutionStopped('cancelled', 'its agent said how it ended'))
      return changed
    }
    const now = again()
    if (!ends || now.state === status) return now
    throw new PlatformError('conflict', `the execution "${now.id}" has ended: ${now.state}, not ${status}`)
  }

  #stateOf(work: Work, { status, quietMs }: ExecutionReport): { state?: string; until?: number } {
    if (status === undefined) return {}
    // Said by an agent that reports: its time begins anew with each word of it, for one that nobody runs here.
    if (status === 'running' || status === 'waiting') {
      return work.state === 'held' ? { until: this.#clock.now() + (quietMs ?? bodyOf(work).timeoutMs) } : {}
    }
    return { state: status }
  }

  #bodyOf(work: Work, { note, error, type, statusReason, status }: ExecutionReport): object {
    const body = bodyOf(work)
    const merged = mergedNote(body.note, note)
    if (note) checkNote(merged)
    const { error: _, ...succeeded } = body
    return {
      ...(status === 'succeeded' ? succeeded : body),
      note: merged,
      ...(error ? { error: boundedError(error) } : {}),
      ...(type ? { resultType: type } : {}),
      ...(statusReason ? { statusReason: boundedMessage(statusReason) } : {}),
    }
  }
}
