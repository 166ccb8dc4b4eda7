import type { Instances } from '../instances/index.ts'
import type { Clock } from '../lib/clock.ts'
import { Deadlines } from '../lib/deadlines.ts'
import type { Logger } from '../lib/log.ts'
import { expiresAtMs, mayExpire, retentionMs, type StoredSandbox } from './record.ts'

/** When sandboxes are over: their policies, the use that postpones an idle one, and the timer behind both. */
export class SandboxExpiry implements Disposable {
  readonly #instances: Instances
  readonly #clock: Clock
  readonly #deadlines: Deadlines

  constructor(options: {
    instances: Instances
    clock: Clock
    log: Logger
    /** Called when there may be something to do for a sandbox: terminate it, or forget a terminated one. */
    due: (workspace: string, name: string) => Promise<void>
  }) {
    this.#instances = options.instances
    this.#clock = options.clock
    this.#deadlines = new Deadlines({
      clock: options.clock,
      log: options.log,
      due: async (key) => {
        const [workspace, name] = key.split('/') as [string, string]
        await options.due(workspace, name)
      },
    })
  }

  /** Whether a living sandbox is to be terminated. */
  isOver(sandbox: StoredSandbox): boolean {
    if (!mayExpire(sandbox.body.status)) return false
    const at = expiresAtMs(sandbox, this.#lastUsedAt(sandbox))
    return at !== null && at <= this.#clock.now()
  }

  /** Whether a terminated sandbox is to be forgotten. */
  isForgotten(sandbox: StoredSandbox): boolean {
    return sandbox.body.status === 'TERMINATED' && forgottenAt(sandbox) <= this.#clock.now()
  }

  /** Sets, moves or drops the deadline, as the record says. */
  watch(sandbox: StoredSandbox): void {
    const at =
      sandbox.body.status === 'TERMINATED'
        ? forgottenAt(sandbox)
        : expiresAtMs(sandbox, this.#lastUsedAt(sandbox))
    if (at === null) this.unwatch(sandbox)
    else this.#deadlines.set(keyOf(sandbox), at)
  }

  unwatch(sandbox: StoredSandbox): void {
    this.#deadlines.delete(keyOf(sandbox))
  }

  [Symbol.dispose](): void {
    this.#deadlines[Symbol.dispose]()
  }

  /** A sandbox with a lease is in use now. One that just came back with the platform counts as used then. */
  #lastUsedAt(sandbox: StoredSandbox): number {
    const { instanceId } = sandbox.body
    const activity = instanceId === null ? null : this.#instances.activity(instanceId)
    return activity?.lastUsedAt ?? sandbox.updatedAt
  }
}

function forgottenAt(sandbox: StoredSandbox): number {
  return (sandbox.body.terminatedAt ?? sandbox.updatedAt) + retentionMs(sandbox)
}

function keyOf(sandbox: StoredSandbox): string {
  return `${sandbox.workspace}/${sandbox.name}`
}
