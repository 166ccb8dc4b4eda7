import { PlatformError } from '../errors.ts'
import type { Clock } from '../lib/clock.ts'
import type { Logger } from '../lib/log.ts'
import type { NewWork, Queue } from '../spec/queue.ts'
import type { ComposeCallback, Execution } from './execution.ts'
import { bodyOf, newWork } from './records.ts'

/** What follows the end of an execution, made by whoever speaks the dialect of its callback. */
export class Callbacks {
  readonly #options: { queue: Queue; clock: Clock; log: Logger }
  readonly #composers = new Map<string, ComposeCallback>()

  constructor(options: { queue: Queue; clock: Clock; log: Logger }) {
    this.#options = options
  }

  register(dialect: string, compose: ComposeCallback): void {
    this.#composers.set(dialect, compose)
  }

  /** For the transaction that ends it. */
  of(execution: Execution, result: Uint8Array | null): NewWork[] {
    const { queue, clock, log } = this.#options
    const work = queue.get(execution.id)
    const callback = work && bodyOf(work).callback
    const compose = callback && this.#composers.get(callback.dialect)
    if (!callback || !compose) return []
    const composed = (told: Uint8Array | null) => {
      const follow = compose({ ...execution, endedAt: clock.now() }, told, callback)
      return follow ? [newWork(follow, clock.now())] : []
    }
    try {
      try {
        return composed(result)
      } catch (error) {
        // With its result it is more than can be sent: how it ended is told all the same.
        if (result === null || !PlatformError.is(error) || error.code !== 'body_too_large') throw error
        return composed(null)
      }
    } catch (error) {
      log.error('executions: a callback could not be composed', { id: execution.id, error })
      return []
    }
  }
}
