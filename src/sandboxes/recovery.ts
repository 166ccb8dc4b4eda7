import type { InstanceState, Instances } from '../instances/index.ts'
import type { Background } from '../lib/background.ts'
import type { Clock } from '../lib/clock.ts'
import type { Store } from '../spec/store.ts'
import type { SandboxArchives } from './archives.ts'
import type { SandboxDeployments } from './deployments.ts'
import type { SandboxExpiry } from './expiry.ts'
import type { SandboxLeases } from './leases.ts'
import { deployed, failed, type StoredSandbox, sandboxKind } from './record.ts'
import type { SandboxRecords } from './records.ts'
import type { SandboxRemoval } from './removal.ts'
import type { SandboxSources } from './sources.ts'

/** At start: brings records and instances into agreement, and goes on with what an earlier life left half done. */
export class SandboxRecovery {
  readonly #store: Store
  readonly #records: SandboxRecords
  readonly #instances: Instances
  readonly #leases: SandboxLeases
  readonly #expiry: SandboxExpiry
  readonly #archives: SandboxArchives
  readonly #removal: SandboxRemoval
  readonly #deployments: SandboxDeployments
  readonly #sources: SandboxSources | null
  readonly #background: Background
  readonly #clock: Clock

  constructor(options: {
    store: Store
    records: SandboxRecords
    instances: Instances
    leases: SandboxLeases
    expiry: SandboxExpiry
    archives: SandboxArchives
    removal: SandboxRemoval
    deployments: SandboxDeployments
    sources: SandboxSources | null
    background: Background
    clock: Clock
  }) {
    this.#store = options.store
    this.#records = options.records
    this.#instances = options.instances
    this.#leases = options.leases
    this.#expiry = options.expiry
    this.#archives = options.archives
    this.#removal = options.removal
    this.#deployments = options.deployments
    this.#sources = options.sources
    this.#background = options.background
    this.#clock = options.clock
  }

  async run(): Promise<void> {
    const known = new Map(this.#instances.owned(sandboxKind).map((owned) => [owned.id, owned]))
    await this.#leases.removeFilesExcept(new Set(known.keys()))
    for await (const sandbox of this.#records.every()) {
      const { instanceId } = sandbox.body
      const instance = instanceId === null ? undefined : known.get(instanceId)
      if (instanceId !== null) known.delete(instanceId)
      await this.#reconcile(sandbox, instance?.state)
    }
    // Made for an update or a create whose second write never came.
    for (const { id } of known.values()) {
      const { gone } = await this.#instances.destroy(id, (step) => this.#store.batch([step]))
      this.#background.run(gone)
    }
  }

  async #reconcile(found: StoredSandbox, instance: InstanceState | undefined): Promise<void> {
    const sandbox = (await this.#sources?.recover(found)) ?? found
    const { status } = sandbox.body
    if (isToCome(sandbox)) {
      this.#expiry.watch(sandbox)
    } else if (status === 'DELETING') {
      await this.#removal.forget(sandbox)
    } else if (status === 'TERMINATED' || (status === 'ARCHIVED' && instance === 'archived')) {
      this.#expiry.watch(sandbox)
    } else if ((status === 'ARCHIVING' || status === 'UNARCHIVING' || status === 'ARCHIVED') && instance) {
      await this.#archives.resume(sandbox)
    } else if (instance === undefined || instance === 'failed') {
      this.#expiry.watch(await this.#giveUp(sandbox, instance))
    } else {
      const running = await this.#takeUp(sandbox, instance)
      this.#expiry.watch(running)
      this.#deployments.bringToLife(running)
    }
  }

  async #giveUp(sandbox: StoredSandbox, instance: 'failed' | undefined): Promise<StoredSandbox> {
    const reason = instance
      ? 'its instance could not be brought back'
      : sandbox.body.status === 'DEPLOYING'
        ? 'its creation was interrupted, create it again'
        : 'its instance was lost'
    return await this.#records.change(sandbox, (current) =>
      current.status === 'FAILED' ? null : failed(current, this.#clock.now(), reason),
    )
  }

  async #takeUp(sandbox: StoredSandbox, instance: InstanceState): Promise<StoredSandbox> {
    if (instance !== 'starting' && instance !== 'running') this.#instances.revive(sandbox.body.instanceId!)
    return await this.#records.change(sandbox, (current) =>
      current.status === 'FAILED' ? deployed(current, this.#clock.now(), 'Runs again') : null,
    )
  }
}

/** Its image is being built, or waited for. */
function isToCome({ body }: StoredSandbox): boolean {
  return body.source !== undefined && body.instanceId === null && body.status !== 'DELETING'
}
