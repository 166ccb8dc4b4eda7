import { PlatformError } from '../errors.ts'
import type { Background } from '../lib/background.ts'
import { Semaphore } from '../lib/semaphore.ts'
import type { MemoryKept, Runtime, RuntimeSnapshots } from '../spec/runtime.ts'
import type { InstanceTable } from './table.ts'

/** Disks that are copied at once: more of them only make each take longer, in which its instance stands still. */
const capturesMax = 2
const capturesWaitingMax = 256

/** Snapshots of instances, by ids of the caller's. */
export class InstanceSnapshots {
  readonly #runtime: Runtime
  readonly #table: InstanceTable
  readonly #background: Background
  readonly #turns = new Semaphore({
    concurrencyMax: capturesMax,
    waitingMax: capturesWaitingMax,
    what: 'files of instances are being copied',
  })

  constructor(options: { runtime: Runtime; table: InstanceTable; background: Background }) {
    this.#runtime = options.runtime
    this.#table = options.table
    this.#background = options.background
  }

  /** @throws not_implemented where the host cannot */
  check(): void {
    this.#driver()
  }

  /**
   * Runs `work`, which captures, when there is room for that: to be waited for before anything stands still for it.
   * @throws too_many_requests
   */
  inTurn<Result>(work: () => Promise<Result>): Promise<Result> {
    return this.#turns.run(work, this.#background.closing)
  }

  /**
   * Copies the files of an instance, and the memory of its programs where that can be kept, as they are at one moment, in which it stands still: what is asked of it meanwhile
   * waits. For who holds a lease on it, or keeps one that is archived from being unarchived, and has a turn.
   * @throws not_implemented, not_found, conflict when it is neither running nor archived, insufficient_storage
   */
  async capture(id: string, snapshotId: string, signal: AbortSignal): Promise<MemoryKept | null> {
    const driver = this.#driver()
    const cut = AbortSignal.any([this.#background.closing, signal])
    const entry = this.#table.require(id)
    const { instance, state } = entry
    if (state !== 'archived' && (state !== 'running' || instance === null))
      throw new PlatformError('conflict', `the instance is ${state}, neither running nor archived`)
    if (instance === null) return await driver.capture(id, snapshotId, cut)
    await instance.freeze?.(cut)
    try {
      return await driver.capture(id, snapshotId, cut)
    } finally {
      await instance.thaw?.().catch((error) => {
        // Whoever uses it next wakes it then, or it has ended and is started again.
        if (entry.instance === instance) entry.activity.runsOn(instance)
        throw error
      })
    }
  }

  /** Nothing can be made from it before. Answers its bytes. Idempotent. */
  complete(snapshotId: string): Promise<number> {
    return this.#driver().complete(snapshotId, this.#background.closing)
  }

  /** Idempotent. */
  async remove(snapshotId: string): Promise<void> {
    await this.#runtime.snapshots?.remove(snapshotId)
  }

  /** Of whatever there is something left on this host. */
  async list(): Promise<string[]> {
    return (await this.#runtime.snapshots?.list()) ?? []
  }

  #driver(): RuntimeSnapshots {
    if (this.#runtime.snapshots) return this.#runtime.snapshots
    throw new PlatformError(
      'not_implemented',
      'there are no snapshots on this host; hutch doctor says what is missing',
    )
  }
}
