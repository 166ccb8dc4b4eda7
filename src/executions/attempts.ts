import { PlatformError } from '../errors.ts'
import type { Clock } from '../lib/clock.ts'
import type { Logger } from '../lib/log.ts'
import { type ClaimedWork, type Work, workResultBytesMax } from '../spec/queue.ts'
import type { ExecutionEvents } from './events.ts'
import { type AttemptOutcome, type ExecutionError, ExecutionStopped, type Runner } from './execution.ts'
import { bodyOf, boundedError, checkNote, mergedNote, toExecution } from './records.ts'
import type { Decision, Transitions } from './transitions.ts'

/** How long a runner may take to let go once it was told to stop; then it is left alone. */
const stopMsMax = 30_000
const jitterShare = 0.2
const sleptMsMax = 24 * 60 * 60 * 1000
const empty = new Uint8Array()

export interface AttemptsOptions {
  clock: Clock
  log: Logger
  transitions: Transitions
  events: ExecutionEvents
  /** 0 to 1. */
  random(): number
}

interface Running {
  token: number
  controller: AbortController
}

/** Attempts under way: one runner call each, with its timeout, and what its outcome makes of the execution. */
export class Attempts {
  readonly #options: AttemptsOptions
  /** By id of the execution. */
  readonly #running = new Map<string, Running>()

  constructor(options: AttemptsOptions) {
    this.#options = options
  }

  isRunning(id: string): boolean {
    return this.#running.has(id)
  }

  /** Its runner hears of it now; nothing when there is none. */
  stop(id: string, reason: ExecutionStopped): void {
    this.#running.get(id)?.controller.abort(reason)
  }

  stopAll(reason: ExecutionStopped, which: (id: string) => boolean = () => true): void {
    for (const [id, { controller }] of this.#running) if (which(id)) controller.abort(reason)
  }

  /** Resolves when the runner is done, with what is to be written of it. */
  async run(work: ClaimedWork, runner: Runner): Promise<() => Promise<void>> {
    const { clock, events } = this.#options
    const execution = toExecution(work)
    const controller = new AbortController()
    const running = { token: work.token, controller }
    this.#running.set(work.id, running)
    const over = new AbortController()
    const timeout = this.#timeout(work, controller, over.signal)
    events.tell('started', execution)
    try {
      const attempt = {
        execution,
        input: work.input ?? empty,
        number: work.attempts,
        token: work.token,
        note: (progress: Record<string, unknown>) => events.tell('progress', execution, progress),
      }
      const ran = runner(attempt, controller.signal)
      const outcome = await Promise.race([ran, stopped(controller.signal, clock, over.signal)])
      if (outcome === null || controller.signal.aborted) return async () => await timeout.end?.()
      return () => this.#settle(work, outcome)
    } catch (error) {
      if (controller.signal.aborted) return async () => await timeout.end?.()
      return () => this.#settle(work, this.#broken(work, error))
    } finally {
      over.abort()
      if (this.#running.get(work.id) === running) this.#running.delete(work.id)
    }
  }

  /** Ends the execution by itself at its time, whatever its runner does. */
  #timeout(
    work: Work,
    controller: AbortController,
    over: AbortSignal,
  ): { end: (() => Promise<void>) | null } {
    const { clock } = this.#options
    const { timeoutMs } = bodyOf(work)
    const timeout: { end: (() => Promise<void>) | null } = { end: null }
    void (async () => {
      // Timers have a longest time.
      for (let leftMs = timeoutMs; leftMs > 0; leftMs -= sleptMsMax) {
        await clock.sleep(Math.min(leftMs, sleptMsMax), over)
      }
      if (controller.signal.aborted) return
      const error = timeoutError(timeoutMs)
      const end = async () => void (await this.end(work.id, 'timed_out', { error }, { token: work.token }))
      // At once; and once more with the runner's end where that could not be written.
      const ended = end().catch(() => end)
      timeout.end = async () => await (await ended)?.()
      controller.abort(new ExecutionStopped('timed_out', error.message))
    })().catch(() => {})
    return timeout
  }

  /** Null: it is not as expected any more. */
  end(
    id: string,
    status: 'failed' | 'cancelled' | 'timed_out',
    given: { error?: ExecutionError; reason?: string },
    expect: { token?: number } = {},
  ): Promise<Work | null> {
    return this.#options.transitions.change(id, (work) => {
      if (expect.token !== undefined && work.token !== expect.token) return null
      const body = bodyOf(work)
      return {
        expect: { ...expect, states: ['waiting', 'running', 'held'] },
        state: status,
        body: {
          ...body,
          ...(given.error ? { error: boundedError(given.error) } : {}),
          ...(given.reason ? { statusReason: given.reason } : {}),
        },
      }
    })
  }

  async #settle(work: Work, outcome: AttemptOutcome): Promise<void> {
    const { transitions } = this.#options
    // A token that is not the newest any more: somebody else has this work now, or it is over.
    const expect = { token: work.token, states: ['running'] }
    await transitions.change(work.id, (now) =>
      now.token === work.token && now.state === 'running' ? { ...this.#decide(now, outcome), expect } : null,
    )
  }

  #decide(work: Work, outcome: AttemptOutcome): Omit<Decision, 'expect'> {
    const { clock } = this.#options
    const body = bodyOf(work)
    const note = this.#note(work, outcome)
    switch (outcome.status) {
      case 'waiting':
        return { state: 'held', until: clock.now() + body.timeoutMs, body: { ...body, note } }
      case 'succeeded': {
        const { result, type } = outcome
        const tooLarge = resultError(result)
        if (tooLarge) return { state: 'failed', body: { ...body, note, error: tooLarge } }
        const { error: _, ...rest } = body
        return { state: 'succeeded', result, body: { ...rest, note, resultType: type } }
      }
      case 'failed': {
        const error = boundedError(outcome.error)
        const again = outcome.retry && work.attempts < body.attemptsMax
        if (again) {
          const runAt = clock.now() + (outcome.retryAfterMs ?? this.#delayMs(work))
          return { state: 'waiting', runAt, body: { ...body, note, error } }
        }
        const { result, type } = outcome
        const kept = result && !resultError(result) ? result : null
        return {
          state: 'failed',
          ...(kept ? { result: kept } : {}),
          body: {
            ...body,
            note,
            error,
            ...(kept && type ? { resultType: type } : {}),
            ...(outcome.retry && body.attemptsMax > 1 ? { isDead: true } : {}),
          },
        }
      }
    }
  }

  #note(work: Work, outcome: AttemptOutcome): Record<string, unknown> {
    const { note } = bodyOf(work)
    if (!outcome.note) return note
    try {
      const merged = mergedNote(note, outcome.note)
      checkNote(merged)
      return merged
    } catch (error) {
      this.#options.log.warn('executions: a note was too long and is left out', { id: work.id, error })
      return note
    }
  }

  /** Doubled for each attempt, and a fifth more or less, so that what failed together does not come back together. */
  #delayMs(work: Work): number {
    const { delayMs, delayMsMax } = bodyOf(work)
    const grown = Math.min(delayMs * 2 ** Math.min(work.attempts - 1, 30), delayMsMax)
    return Math.round(grown * (1 + jitterShare * (this.#options.random() * 2 - 1)))
  }

  #broken(work: Work, cause: unknown): AttemptOutcome {
    const isPublic = PlatformError.is(cause)
    if (!isPublic) this.#options.log.error('executions: a runner failed', { id: work.id, error: cause })
    const error = isPublic
      ? { code: cause.code, message: cause.message }
      : { code: 'internal', message: 'the platform failed to do it' }
    return { status: 'failed', error, retry: !isPublic || cause.retryable }
  }
}

function timeoutError(timeoutMs: number): ExecutionError {
  return { code: 'timeout', message: `it took longer than ${timeoutMs / 1000} seconds` }
}

function resultError(result: Uint8Array): ExecutionError | null {
  if (result.byteLength <= workResultBytesMax) return null
  const message = `the result is ${result.byteLength} bytes, at most ${workResultBytesMax} are kept`
  return { code: 'result_too_large', message }
}

/** Null once a runner that was told to stop had its time. */
async function stopped(signal: AbortSignal, clock: Clock, over: AbortSignal): Promise<null> {
  await new Promise<void>((resolve) => {
    signal.addEventListener('abort', () => resolve(), { once: true })
    over.addEventListener('abort', () => resolve(), { once: true })
  })
  if (!over.aborted) await clock.sleep(stopMsMax, over).catch(() => {})
  return null
}
