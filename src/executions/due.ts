import type { Clock } from '../lib/clock.ts'
import { Deadlines } from '../lib/deadlines.ts'
import type { Logger } from '../lib/log.ts'
import type { Queue, Work } from '../spec/queue.ts'
import type { Attempts } from './attempts.ts'
import type { Groups } from './groups.ts'
import { bodyOf } from './records.ts'
import type { Transitions } from './transitions.ts'

/** Looked at again in vain, what is due waits for a free worker. */
const againMs = 1000
const overdueAtOnceMax = 200
const nextKey = 'next'

export interface DueOptions {
  queue: Queue
  clock: Clock
  log: Logger
  transitions: Transitions
  attempts: Attempts
  groups: Groups
  /** Whoever works may have something to claim. */
  wake(): void
}

/** What comes at its time: delayed work, agents that reported nothing in time, groups that take too long, leases that ran out. */
export class Due implements Disposable {
  readonly #options: DueOptions
  readonly #alarm: Deadlines
  #isOpen = false

  constructor(options: DueOptions) {
    const { clock, log } = options
    this.#options = options
    this.#alarm = new Deadlines({ clock, log, due: () => this.#look() })
  }

  open(): void {
    this.#isOpen = true
    this.#lookNext()
  }

  /** Something comes due then. */
  at(ms: number): void {
    if (!this.#isOpen) return
    const set = this.#alarm.get(nextKey)
    if (set === undefined || ms < set) this.#alarm.set(nextKey, ms)
  }

  [Symbol.dispose](): void {
    this.#isOpen = false
    this.#alarm[Symbol.dispose]()
  }

  async #look(): Promise<void> {
    if (!this.#isOpen) return
    const { queue, clock, wake } = this.#options
    await Promise.all(queue.overdue(clock.now(), overdueAtOnceMax).map((work) => this.#overdue(work)))
    wake()
    this.#lookNext()
  }

  #lookNext(): void {
    if (!this.#isOpen) return
    const now = this.#options.clock.now()
    const next = this.#options.queue.nextAt()
    if (next !== null) this.at(next <= now ? now + againMs : next)
  }

  async #overdue(work: Work): Promise<void> {
    const { transitions, attempts, groups } = this.#options
    const { timeoutMs, stop } = bodyOf(work)
    const seconds = timeoutMs / 1000
    if (work.parts !== null) {
      if (stop) await groups.stopParts(work.id, stop.reason)
      else await groups.stop(work.id, 'timed_out', `it took longer than ${seconds} seconds`)
    } else if (work.state === 'held') {
      const error = { code: 'timeout', message: `its agent reported nothing for ${seconds} seconds` }
      await transitions.change(work.id, (now) =>
        now.state === 'held' && now.version === work.version
          ? { expect: {}, state: 'timed_out', body: { ...bodyOf(now), error } }
          : null,
      )
    } else if (!attempts.isRunning(work.id)) {
      // Whoever had it is gone, and its time with it.
      await transitions.change(work.id, (now) =>
        now.state === 'running' && now.token === work.token
          ? { expect: { token: work.token }, state: 'waiting', attempts: now.attempts - 1 }
          : null,
      )
    }
  }
}
