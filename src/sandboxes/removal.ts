import type { Background } from '../lib/background.ts'
import type { Clock } from '../lib/clock.ts'
import type { BatchStep, Store } from '../spec/store.ts'
import type { SandboxExpiry } from './expiry.ts'
import type { SandboxLeases } from './leases.ts'
import type { SandboxMachines } from './machines.ts'
import { type StoredSandbox, withEvent } from './record.ts'
import { keyOf, notFound, type SandboxRecords } from './records.ts'
import type { SandboxTurns } from './turns.ts'

/** A removal that takes longer goes on after the request was answered. */
const removeWaitMsMax = 10_000

/** What belongs to a sandbox and goes when it goes. */
export interface SandboxDependent {
  /** It goes as soon as the sandbox's time is over, not only with its record. */
  endsAtOnce?: true
  /** Steps that remove it, for the batch that removes or terminates the sandbox; `uid` is that of this one alone. */
  removal(workspace: string, sandbox: string, uid: string): Promise<BatchStep[]>
  /** Called after that batch. */
  removed(workspace: string, sandbox: string): void
}

/** How sandboxes go, with everything that belongs to them. */
export class SandboxRemoval {
  readonly #store: Store
  readonly #records: SandboxRecords
  readonly #turns: SandboxTurns
  readonly #machines: SandboxMachines
  readonly #leases: SandboxLeases
  readonly #expiry: SandboxExpiry
  readonly #background: Background
  readonly #clock: Clock
  readonly #dependents: SandboxDependent[] = []

  constructor(options: {
    store: Store
    records: SandboxRecords
    turns: SandboxTurns
    machines: SandboxMachines
    leases: SandboxLeases
    expiry: SandboxExpiry
    background: Background
    clock: Clock
  }) {
    this.#store = options.store
    this.#records = options.records
    this.#turns = options.turns
    this.#machines = options.machines
    this.#leases = options.leases
    this.#expiry = options.expiry
    this.#background = options.background
    this.#clock = options.clock
  }

  addDependent(dependent: SandboxDependent): void {
    this.#dependents.push(dependent)
  }

  /** Answers its last state, after at most `removeWaitMsMax`: what takes longer goes on. @throws not_found */
  async remove(workspace: string, name: string): Promise<StoredSandbox> {
    const marked = Promise.withResolvers<StoredSandbox>()
    marked.promise.catch(() => {})
    const removal = this.#turns.run(workspace, name, async () => {
      const existing = await this.#records.get(workspace, name)
      if (!existing) throw notFound(name)
      const deleting = await this.#markDeleting(existing)
      marked.resolve(deleting.sandbox)
      await deleting.gone
      await this.forget(deleting.sandbox)
      return deleting.sandbox
    })
    this.#background.run(removal)
    removal.catch(marked.reject)
    const timeout = new AbortController()
    const late = this.#clock.sleep(removeWaitMsMax, timeout.signal).then(
      () => marked.promise,
      () => marked.promise,
    )
    try {
      return await Promise.race([removal, late])
    } finally {
      timeout.abort()
    }
  }

  /** For who has its turn: removes the record of a sandbox that has no machine (any more). */
  async forget(sandbox: StoredSandbox): Promise<void> {
    await this.#store.batch(await this.steps(sandbox))
    this.noteForgotten(sandbox)
  }

  /** What `forget` writes, to be written together with something else; `noteForgotten` is to be called after that. */
  async steps(sandbox: StoredSandbox): Promise<BatchStep[]> {
    return [...(await stepsOf(this.#dependents, sandbox)), { op: 'remove', key: keyOf(sandbox) }]
  }

  /** What goes with a sandbox whose time is over, while its record stays; `noteEnded` is to be called after that. */
  async endingSteps(sandbox: StoredSandbox): Promise<BatchStep[]> {
    return await stepsOf(this.#endingAtOnce(), sandbox)
  }

  noteEnded({ workspace, name }: StoredSandbox): void {
    for (const dependent of this.#endingAtOnce()) dependent.removed(workspace, name)
  }

  #endingAtOnce(): SandboxDependent[] {
    return this.#dependents.filter(({ endsAtOnce }) => endsAtOnce)
  }

  noteForgotten(sandbox: StoredSandbox): void {
    this.#expiry.unwatch(sandbox)
    this.#leases.forget(sandbox.workspace, sandbox.name)
    for (const dependent of this.#dependents) dependent.removed(sandbox.workspace, sandbox.name)
  }

  async #markDeleting(existing: StoredSandbox): Promise<{ sandbox: StoredSandbox; gone: Promise<void> }> {
    this.#leases.forget(existing.workspace, existing.name)
    const { written, gone } = await this.#machines.end(existing.body.instanceId, (more) =>
      this.#records.change(
        existing,
        (current) =>
          withEvent(current, this.#clock.now(), {
            type: 'deletion',
            status: 'DELETING',
            message: 'Deletion requested',
          }),
        more,
      ),
    )
    return { sandbox: written?.value ?? existing, gone }
  }
}

async function stepsOf(
  dependents: SandboxDependent[],
  { workspace, name, body: { uid } }: StoredSandbox,
): Promise<BatchStep[]> {
  return (await Promise.all(dependents.map((dependent) => dependent.removal(workspace, name, uid)))).flat()
}
