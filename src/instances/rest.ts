import { PlatformError } from '../errors.ts'
import type { Clock } from '../lib/clock.ts'
import type { Logger } from '../lib/log.ts'
import type { BatchStep, Store } from '../spec/store.ts'
import { batchStepsMax, everyItem } from '../spec/store.ts'
import type { InstanceOwner } from './record.ts'

const restKind = 'instance_rest'

/** Instances that wake within so long have it written in one batch, behind what they were woken for. */
const wokenDelayMs = 50

interface RestBody {
  lastUsedAt: number
}

function restKey(workspace: string, id: string) {
  return { kind: restKind, workspace, name: id }
}

/**
 * When instances that rest were used last: written as one falls asleep or is stopped, removed as it wakes, so that
 * neither a restart nor a crash makes an idle one look used, nor a used one idle. Nobody waits for these writes: the
 * store commits them in the order they were asked for.
 */
export class RestRecords {
  readonly #store: Store
  readonly #log: Logger
  readonly #clock: Clock
  readonly #pending = new Set<Promise<unknown>>()
  /** Of instances that woke lately. */
  #woken: BatchStep[] = []
  /** What the store has, or will have once it wrote. */
  readonly #known = new Map<string, { workspace: string; lastUsedAt: number }>()

  constructor(store: Store, clock: Clock, log: Logger) {
    this.#store = store
    this.#clock = clock
    this.#log = log
  }

  /** At start: what earlier lives of the platform left. */
  async load(): Promise<void> {
    const recorded = everyItem((page) => this.#store.page<RestBody>({ kind: restKind, ...page }))
    for await (const { name, workspace, body } of recorded) {
      this.#known.set(name, { workspace, lastUsedAt: body.lastUsedAt })
    }
  }

  /** Null for an instance that does not rest. */
  lastUsedAt(id: string): number | null {
    return this.#known.get(id)?.lastUsedAt ?? null
  }

  add(owner: InstanceOwner, id: string, lastUsedAt: number): void {
    this.#write(this.#steps(owner, id, lastUsedAt))
  }

  async addAll(rests: { owner: InstanceOwner; id: string; lastUsedAt: number }[]): Promise<void> {
    const steps = rests.flatMap(({ owner, id, lastUsedAt }) => this.#steps(owner, id, lastUsedAt))
    for (let at = 0; at < steps.length; at += batchStepsMax) {
      this.#write(steps.slice(at, at + batchStepsMax))
    }
    await this.settled()
  }

  /** It rests no more; written soon. */
  woke(id: string): void {
    const known = this.#known.get(id)
    if (!known) return
    this.#known.delete(id)
    this.#woken.push({ op: 'remove', key: restKey(known.workspace, id) })
    if (this.#woken.length === 1) void this.#clock.sleep(wokenDelayMs).then(() => this.#writeWoken())
  }

  remove(id: string): void {
    this.woke(id)
    this.#writeWoken()
  }

  /** What a crash left of instances that were removed. */
  removeExcept(ids: ReadonlySet<string>): void {
    for (const id of [...this.#known.keys()]) if (!ids.has(id)) this.woke(id)
    this.#writeWoken()
  }

  async settled(): Promise<void> {
    this.#writeWoken()
    while (this.#pending.size > 0) await Promise.allSettled(this.#pending)
  }

  #steps(owner: InstanceOwner, id: string, lastUsedAt: number): BatchStep[] {
    const key = restKey(owner.workspace, id)
    const body: RestBody = { lastUsedAt }
    const creation: BatchStep = { op: 'create', input: { ...key, body } }
    const again = this.#known.has(id)
    this.#known.set(id, { workspace: owner.workspace, lastUsedAt })
    return again ? [{ op: 'remove', key }, creation] : [creation]
  }

  #writeWoken(): void {
    const steps = this.#woken
    this.#woken = []
    for (let at = 0; at < steps.length; at += batchStepsMax) this.#commit(steps.slice(at, at + batchStepsMax))
  }

  #write(steps: BatchStep[]): void {
    this.#writeWoken()
    this.#commit(steps)
  }

  #commit(steps: BatchStep[]): void {
    const written = this.#store.batch(steps).catch((error) => {
      // Worth no more than a sandbox that counts as used a little later than it was.
      const closed = PlatformError.is(error) && error.code === 'unavailable'
      if (!closed) this.#log.warn('the last use of an instance was not recorded', { error })
    })
    this.#pending.add(written)
    void written.finally(() => this.#pending.delete(written))
  }
}
