import type { Clock } from '../../lib/clock.ts'

/** A burst of new sandboxes is over by then. */
export const diskSettleAfterMs = 10_000
/** From one disk to the next: each has what it was written so far brought to the host's disk. */
const diskSettlePauseMs = 20

export interface SettlingDisk {
  /** Aborted when there is nothing left to settle. */
  readonly over: AbortSignal
  settleDisk(): Promise<void>
}

/**
 * Disk images begin in the host's page cache, so that nothing of a new sandbox waits for the host's disk. After a while
 * they go past it, one after the other: it would hold a second copy of what the sandbox has in its own.
 */
export class DiskSettling {
  #turn: Promise<void> = Promise.resolve()

  constructor(private readonly clock: Clock) {}

  begin(disk: SettlingDisk): void {
    this.clock
      .sleep(diskSettleAfterMs, disk.over)
      .then(() => this.#inTurn(disk))
      // It ended, or was let go of: whoever takes it up begins anew.
      .catch(() => {})
  }

  #inTurn(disk: SettlingDisk): Promise<void> {
    const mine = this.#turn.then(async () => {
      if (disk.over.aborted) return
      await disk.settleDisk().catch(() => {})
      await this.clock.sleep(diskSettlePauseMs, disk.over).catch(() => {})
    })
    this.#turn = mine
    return mine
  }
}
