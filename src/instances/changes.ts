import type { InstanceExit } from '../spec/runtime.ts'
import type { Entry } from './entry.ts'
import type { InstanceOwner } from './record.ts'

/** What happened to an instance without its owner asking. */
export type InstanceChange =
  | { type: 'exited'; exit: InstanceExit }
  | { type: 'restarted' }
  | { type: 'failed'; reason: string }

export type InstanceListener = (owner: InstanceOwner, instanceId: string, change: InstanceChange) => void

/** Tells owners what happened to their instances. */
export class InstanceChanges {
  readonly #listeners = new Set<InstanceListener>()

  listen(listener: InstanceListener): () => void {
    this.#listeners.add(listener)
    return () => this.#listeners.delete(listener)
  }

  tell({ owner, id }: Entry, change: InstanceChange): void {
    for (const listener of this.#listeners) listener(owner, id, change)
  }

  clear(): void {
    this.#listeners.clear()
  }
}
