import type { Clock } from '../lib/clock.ts'
import type { Logger } from '../lib/log.ts'
import type { Runtime } from '../spec/runtime.ts'
import type { BatchStep, Store } from '../spec/store.ts'

/** Anybody may ask, and asking costs a commit: so often at most. */
export const readinessAgeMsMax = 1_000
/** What takes longer is as good as broken for whoever waits. */
export const readinessTimeoutMs = 2_000

const key = { kind: 'readiness', workspace: '', name: 'probe' }
/** A commit like any other, which leaves nothing behind. */
const write: BatchStep[] = [
  { op: 'create', input: { ...key, body: {} } },
  { op: 'remove', key },
]

export interface ReadinessOptions {
  store: Pick<Store, 'batch'>
  runtime: Pick<Runtime, 'list'>
  clock: Clock
  log: Logger
}

/** Whether the platform can do its work now: a change can be committed and the runtime answers. */
export class Readiness {
  readonly #options: ReadinessOptions
  #last: { at: number; reason: Promise<string | null> } | null = null

  constructor(options: ReadinessOptions) {
    this.#options = options
  }

  /** Null when it can, else what it cannot do, for anybody to read. Never rejects. */
  reason(): Promise<string | null> {
    const now = this.#options.clock.monotonic()
    if (this.#last === null || now - this.#last.at >= readinessAgeMsMax) {
      this.#last = { at: now, reason: this.#probe() }
    }
    return this.#last.reason
  }

  async #probe(): Promise<string | null> {
    const { store, runtime } = this.#options
    const reasons = await Promise.all([
      this.#within(() => store.batch(write), 'the store cannot write'),
      this.#within(() => runtime.list(), 'the runtime does not answer'),
    ])
    return reasons.find((reason) => reason !== null) ?? null
  }

  async #within(work: () => Promise<unknown>, reason: string): Promise<string | null> {
    const { clock, log } = this.#options
    const over = new AbortController()
    const late = clock.sleep(readinessTimeoutMs, over.signal).then(() => {
      throw new Error(`no answer within ${readinessTimeoutMs} ms`)
    })
    late.catch(() => {})
    try {
      await Promise.race([work(), late])
      return null
    } catch (error) {
      log.warn('not ready', { reason, error: String(error) })
      return reason
    } finally {
      over.abort()
    }
  }
}
