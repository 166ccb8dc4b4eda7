import type { GuestClient } from '../../guest/index.ts'
import type { InstanceCgroup } from './cgroups.ts'

/** Freezing of one instance. Whoever waits for its guest meanwhile goes on waiting: no request times out. */
export class InstanceStandby {
  readonly #group: InstanceCgroup
  readonly #guest: Pick<GuestClient, 'suspend' | 'resume'>
  #frozen = false

  constructor(group: InstanceCgroup, guest: Pick<GuestClient, 'suspend' | 'resume'>) {
    this.#group = group
    this.#guest = guest
  }

  get frozen(): boolean {
    return this.#frozen
  }

  /** Takes up an instance that was frozen by a process before this one. */
  adopt(): void {
    this.#frozen = true
    this.#guest.suspend()
  }

  async freeze(signal?: AbortSignal): Promise<void> {
    if (this.#frozen) return
    this.#guest.suspend()
    try {
      await this.#group.freeze(signal)
      this.#frozen = true
    } catch (error) {
      this.#guest.resume()
      throw error
    }
  }

  async thaw(): Promise<void> {
    await this.#group.thaw()
    this.#frozen = false
    this.#guest.resume()
  }
}
