import type { Clock } from '../lib/clock.ts'
import { KeyedLock } from '../lib/keyed-lock.ts'
import type { BatchStep } from '../spec/store.ts'
import type { SandboxExpiry } from './expiry.ts'
import type { SandboxLeases } from './leases.ts'
import type { SandboxMachines } from './machines.ts'
import { type StoredSandbox, withEvent } from './record.ts'
import { notFound, type SandboxRecords } from './records.ts'

/** What ends with a sandbox whose time is over, while its record stays to be seen. */
export interface SandboxEndings {
  steps(sandbox: StoredSandbox): Promise<BatchStep[]>
  /** Called once they are written. */
  ended(sandbox: StoredSandbox): void
}

/**
 * One at a time changes what a sandbox is, and nobody sees one live on whose time is over: looking at it ends it, if the
 * timer did not yet.
 */
export class SandboxTurns {
  readonly #records: SandboxRecords
  readonly #machines: SandboxMachines
  readonly #leases: SandboxLeases
  readonly #expiry: SandboxExpiry
  readonly #clock: Clock
  readonly #endings: SandboxEndings
  readonly #lock = new KeyedLock()

  constructor(options: {
    records: SandboxRecords
    machines: SandboxMachines
    leases: SandboxLeases
    expiry: SandboxExpiry
    clock: Clock
    endings: SandboxEndings
  }) {
    this.#records = options.records
    this.#machines = options.machines
    this.#leases = options.leases
    this.#expiry = options.expiry
    this.#clock = options.clock
    this.#endings = options.endings
  }

  /** Runs `work` when all earlier work under this name is over. */
  run<Result>(workspace: string, name: string, work: () => Promise<Result>): Promise<Result> {
    return this.#lock.run(`${workspace}/${name}`, work)
  }

  /** The record, after what its policies ask for by now; for who has no turn. */
  async read(workspace: string, name: string): Promise<StoredSandbox | null> {
    const found = await this.#records.get(workspace, name)
    return found && this.#expiry.isOver(found)
      ? await this.run(workspace, name, () => this.current(workspace, name))
      : found
  }

  /** As `read`, for who has the turn. */
  async current(workspace: string, name: string): Promise<StoredSandbox | null> {
    const found = await this.#records.get(workspace, name)
    return found && (await this.kept(found))
  }

  /** The sandbox, or what is left of it when its time is over. For who has the turn. */
  async kept(sandbox: StoredSandbox): Promise<StoredSandbox> {
    return this.#expiry.isOver(sandbox) ? await this.#terminate(sandbox) : sandbox
  }

  /** Runs `work` while the sandbox cannot be removed or replaced. @throws not_found */
  async whileExists<Result>(
    workspace: string,
    name: string,
    work: (sandbox: StoredSandbox) => Promise<Result>,
  ): Promise<Result> {
    return await this.run(workspace, name, async () => {
      const found = await this.current(workspace, name)
      if (!found || found.body.status === 'TERMINATED' || found.body.status === 'DELETING')
        throw notFound(name)
      return await work(found)
    })
  }

  async #terminate(sandbox: StoredSandbox): Promise<StoredSandbox> {
    const { instanceId } = sandbox.body
    this.#leases.forget(sandbox.workspace, sandbox.name)
    const belongings = await this.#endings.steps(sandbox)
    const terminated = await this.#machines.endAlong(instanceId, (more) =>
      this.#records.change(
        sandbox,
        (current) => {
          const now = this.#clock.now()
          const event = { type: 'expiration', status: 'TERMINATED', message: 'Its time was over' } as const
          return { ...withEvent(current, now, event), instanceId: null, terminatedAt: now }
        },
        [...more, ...belongings],
      ),
    )
    this.#endings.ended(terminated)
    this.#expiry.watch(terminated)
    return terminated
  }
}
