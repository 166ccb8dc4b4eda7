import type { Clock } from '../lib/clock.ts'
import type { SandboxRecords } from './records.ts'

/** What became of requests to upgrade the API of a sandbox. */
export interface Upgrades {
  /** How many succeeded. */
  count: number
  last: { at: number; version: string; error?: string } | null
}

/**
 * The API of a sandbox is a part of the platform and always of its version, so that there is nothing to download: a
 * request to upgrade is answered by what runs, and counted.
 */
export class SandboxUpgrades {
  constructor(
    private readonly records: SandboxRecords,
    private readonly clock: Clock,
  ) {}

  async of(workspace: string, name: string): Promise<Upgrades> {
    const found = await this.records.get(workspace, name)
    return found?.body.upgrades ?? { count: 0, last: null }
  }

  /** `error`: why it cannot be had; it is not counted then. @throws not_found */
  async note(workspace: string, name: string, version: string, error?: string): Promise<void> {
    const found = await this.records.require(workspace, name)
    await this.records.change(found, (current) => {
      const count = (current.upgrades?.count ?? 0) + (error === undefined ? 1 : 0)
      const last = { at: this.clock.now(), version, ...(error === undefined ? {} : { error }) }
      return { ...current, upgrades: { count, last } }
    })
  }
}
