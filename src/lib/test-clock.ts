import type { Clock } from './clock.ts'

/** Lets everything that is ready run to its next wait. */
const settleRounds = 20

/** A clock that stands still until a test moves it. */
export class FakeClock implements Clock {
  #wall: number
  #steady = 0
  readonly #sleepers = new Set<{ at: number; wake: () => void }>()

  constructor(startMs = Date.UTC(2030, 0, 1, 12)) {
    this.#wall = startMs
  }

  now(): number {
    return this.#wall
  }

  monotonic(): number {
    return this.#steady
  }

  /** How many wait for this clock. */
  get sleepers(): number {
    return this.#sleepers.size
  }

  sleep(ms: number, signal?: AbortSignal): Promise<void> {
    return new Promise((resolve, reject) => {
      if (signal?.aborted) return reject(signal.reason)
      if (ms <= 0) return resolve()
      const onAbort = () => {
        if (this.#sleepers.delete(sleeper)) reject(signal!.reason)
      }
      const sleeper = {
        at: this.#steady + ms,
        wake: () => {
          this.#sleepers.delete(sleeper)
          signal?.removeEventListener('abort', onAbort)
          resolve()
        },
      }
      this.#sleepers.add(sleeper)
      signal?.addEventListener('abort', onAbort, { once: true })
    })
  }

  /** Time passes; whoever is due wakes, all at the new time. */
  advance(ms: number): void {
    this.#wall += ms
    this.#steady += ms
    for (const sleeper of this.#sleepers) if (sleeper.at <= this.#steady) sleeper.wake()
  }

  /** Time passes step by step: each sleeper wakes at its own moment and runs to its next wait before time goes on. */
  async turn(ms: number): Promise<void> {
    const end = this.#steady + ms
    for (;;) {
      await settle()
      const next = Math.min(...[...this.#sleepers].map((sleeper) => sleeper.at))
      if (next > end) break
      this.advance(Math.max(0, next - this.#steady))
    }
    this.advance(end - this.#steady)
    await settle()
  }

  /** Somebody sets the wall clock; no time passes. */
  jump(ms: number): void {
    this.#wall += ms
  }
}

/**
 * The time of the machine, for tests of real things, that can be moved ahead: what comes after a while is given minutes,
 * which no slow machine uses up, and comes at once when a test says so.
 */
export class HurriedClock implements Clock {
  #aheadMs = 0
  readonly #sleepers = new Set<{ at: number; wake: () => void; timer: Timer }>()

  now(): number {
    return Date.now() + this.#aheadMs
  }

  monotonic(): number {
    return performance.now() + this.#aheadMs
  }

  sleep(ms: number, signal?: AbortSignal): Promise<void> {
    return new Promise((resolve, reject) => {
      if (signal?.aborted) return reject(signal.reason)
      const end = () => {
        clearTimeout(sleeper.timer)
        this.#sleepers.delete(sleeper)
        signal?.removeEventListener('abort', onAbort)
      }
      const wake = () => {
        end()
        resolve()
      }
      const onAbort = () => {
        end()
        reject(signal?.reason)
      }
      const sleeper = { at: this.monotonic() + ms, wake, timer: setTimeout(wake, ms) }
      this.#sleepers.add(sleeper)
      signal?.addEventListener('abort', onAbort, { once: true })
    })
  }

  /** Time passes; whoever is due wakes. */
  advance(ms: number): void {
    this.#aheadMs += ms
    for (const sleeper of this.#sleepers) {
      clearTimeout(sleeper.timer)
      sleeper.timer = setTimeout(sleeper.wake, Math.max(0, sleeper.at - this.monotonic()))
    }
  }
}

async function settle(): Promise<void> {
  for (let round = 0; round < settleRounds; round++) await new Promise((resolve) => setImmediate(resolve))
}
