import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { silentLogger } from '../lib/log.ts'
import { HurriedClock } from '../lib/test-clock.ts'
import type { Queue } from '../spec/queue.ts'
import { openSqliteStore } from '../stores/sqlite/index.ts'
import {
  type Attempt,
  type AttemptOutcome,
  type Execution,
  Executions,
  type ExecutionsOptions,
  type NewExecution,
  type RunnerOptions,
} from './index.ts'

export const bytes = (text: string) => new TextEncoder().encode(text)
export const text = (given: Uint8Array | null) => (given === null ? null : new TextDecoder().decode(given))

/** An attempt that waits for the test to say how it went. */
export interface Begun {
  attempt: Attempt
  signal: AbortSignal
  end(outcome: AttemptOutcome): void
  fail(error: unknown): void
}

export const success = (result = 'done'): AttemptOutcome => ({
  status: 'succeeded',
  result: bytes(result),
  type: 'text/plain',
})

export const failure = (
  given: Partial<Extract<AttemptOutcome, { status: 'failed' }>> = {},
): AttemptOutcome => ({
  status: 'failed',
  error: { code: 'agent_error', message: 'it broke' },
  retry: true,
  ...given,
})

/** Executions on a real store and a clock that can be moved ahead, whose runners do what the test says. */
export class TestExecutions implements AsyncDisposable {
  readonly clock: HurriedClock
  readonly dir: string
  executions!: Executions
  /** Attempts that wait for the test, in the order in which they began. */
  readonly begun: Begun[] = []
  readonly #options: Partial<ExecutionsOptions>
  readonly #ownsDir: boolean
  readonly #over: (queue: Queue) => Queue
  #waiting: (() => void)[] = []
  #store!: Awaited<ReturnType<typeof openSqliteStore>>

  constructor(options: Partial<ExecutionsOptions> & { dir?: string; over?: (queue: Queue) => Queue } = {}) {
    const { dir, over = (queue) => queue, ...rest } = options
    this.#over = over
    this.clock = new HurriedClock()
    this.#ownsDir = dir === undefined
    this.dir = dir ?? mkdtempSync(join(tmpdir(), 'hutch-executions-'))
    this.#options = rest
  }

  static async open(
    options: ConstructorParameters<typeof TestExecutions>[0] & { runner?: RunnerOptions } = {},
  ) {
    const { runner = { runningMax: 10 }, ...rest } = options
    const test = new TestExecutions(rest)
    await test.start()
    test.run('agent', runner)
    await test.executions.open()
    return test
  }

  async start(): Promise<void> {
    const { clock } = this
    this.#store = await openSqliteStore({ path: join(this.dir, 'hutch.db'), clock, log: silentLogger })
    this.executions = new Executions({
      ...{ queue: this.#over(this.#store.queue), clock, log: silentLogger },
      ...{
        waitingMax: 10_000,
        bytesMax: 1024 ** 3,
        keptMs: 7 * 24 * 3600 * 1000,
        keptMax: 10_000,
        random: () => 0.5,
      },
      ...this.#options,
    })
  }

  get queue() {
    return this.#store.queue
  }

  /** A runner whose attempts the test ends. */
  run(source: string, options: RunnerOptions): void {
    this.executions.runner(
      source,
      (attempt, signal) =>
        new Promise<AttemptOutcome>((end, fail) => {
          signal.addEventListener('abort', () => fail(signal.reason), { once: true })
          this.begun.push({ attempt, signal, end, fail })
          for (const wake of this.#waiting.splice(0)) wake()
        }),
      options,
    )
  }

  /** The attempt that began next; waits for it. */
  async next(): Promise<Begun> {
    while (this.begun.length === 0) await new Promise<void>((resolve) => this.#waiting.push(resolve))
    return this.begun.shift()!
  }

  asked(given: Partial<NewExecution> = {}): NewExecution {
    return {
      workspace: 'main',
      source: 'agent',
      target: { kind: 'agent', name: 'echo' },
      input: bytes('hello'),
      timeoutMs: 600_000,
      ...given,
    }
  }

  async accept(given: Partial<NewExecution> = {}): Promise<Execution> {
    return (await this.executions.accept(this.asked(given))).execution
  }

  async ended(id: string): Promise<Execution> {
    const execution = await this.executions.ended('main', id, { timeoutMs: 3_600_000 })
    if (!execution) throw new Error(`${id} did not end`)
    return execution
  }

  /** Until it is so. */
  async became(id: string, holds: (execution: Execution) => boolean): Promise<Execution> {
    const watching = new AbortController()
    const events = this.executions.watch({ workspace: 'main', id }, watching.signal)
    const now = this.executions.get('main', id)
    if (now && holds(now)) {
      watching.abort()
      return now
    }
    for await (const { execution } of events) if (holds(execution)) return execution
    throw new Error(`${id} never became what was expected`)
  }

  /** As kill -9 leaves it: nothing of what runs is written any more. */
  async reopen(): Promise<void> {
    await this.stop()
    await this.start()
  }

  async stop(): Promise<void> {
    await this.executions.close()
    await this.#store[Symbol.asyncDispose]()
    this.begun.length = 0
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.stop()
    if (this.#ownsDir) rmSync(this.dir, { recursive: true })
  }
}
