import { PlatformError } from '../errors.ts'
import type { Background } from '../lib/background.ts'
import type { Clock } from '../lib/clock.ts'
import { randomText } from '../lib/ids.ts'
import type { Instance } from '../spec/runtime.ts'
import type { BatchStep, Store } from '../spec/store.ts'
import { inWorkspace } from '../workspaces/index.ts'
import type { SandboxDraft } from './draft.ts'
import type { SandboxExpiry } from './expiry.ts'
import type { SandboxLeases } from './leases.ts'
import type { SandboxMachines } from './machines.ts'
import {
  deployed,
  indexesOf,
  notedRules,
  type SandboxBody,
  type SandboxSource,
  type StoredSandbox,
  sandboxKind,
  withEvent,
} from './record.ts'
import type { SandboxRecords } from './records.ts'
import type { SandboxRemoval } from './removal.ts'
import type { ProcessRestarts } from './restarts.ts'
import type { Sealing } from './sealing.ts'

export interface SandboxLimits {
  /** In the whole platform. */
  sandboxesMax: number
  /** Of one sandbox, MiB. */
  memoryMbMax: number
}

/** Whose sandbox is to be made, and in whose place. */
export interface Deployment {
  workspace: string
  name: string
  draft: SandboxDraft
  actor: string
  /** What is told of it once it runs. */
  message?: string
  /** One of this name that runs no more, and goes as the new one comes. */
  replaced: StoredSandbox | null
}

/** How a sandbox is told of that has no machine yet. */
export interface Announcement {
  status: 'DEPLOYING' | 'UPLOADING'
  message: string
  /** Where its image is to be built first. */
  source?: (uid: string) => SandboxSource
}

/** From a draft to a record, and a machine that runs as it says: the two are written in one batch. */
export class SandboxDeployments {
  readonly #store: Store
  readonly #records: SandboxRecords
  readonly #machines: SandboxMachines
  readonly #removal: SandboxRemoval
  readonly #sealing: Sealing
  readonly #leases: SandboxLeases
  readonly #restarts: ProcessRestarts
  readonly #expiry: SandboxExpiry
  readonly #clock: Clock
  readonly #limits: SandboxLimits
  readonly #background: Background

  constructor(options: {
    store: Store
    records: SandboxRecords
    machines: SandboxMachines
    removal: SandboxRemoval
    sealing: Sealing
    leases: SandboxLeases
    restarts: ProcessRestarts
    expiry: SandboxExpiry
    clock: Clock
    limits: SandboxLimits
    background: Background
  }) {
    this.#store = options.store
    this.#records = options.records
    this.#machines = options.machines
    this.#removal = options.removal
    this.#sealing = options.sealing
    this.#leases = options.leases
    this.#restarts = options.restarts
    this.#expiry = options.expiry
    this.#clock = options.clock
    this.#limits = options.limits
    this.#background = options.background
  }

  /** @throws bad_request, usage_limit_exceeded: the operator allows no such sandbox, or not one more */
  admit(draft: SandboxDraft): void {
    this.admitSize(draft)
    const { sandboxesMax } = this.#limits
    if (this.#machines.count >= sandboxesMax) {
      throw new PlatformError(
        'usage_limit_exceeded',
        `this platform holds ${sandboxesMax} sandboxes, the most it allows (sandboxesMax): delete one first`,
      )
    }
  }

  /** @throws bad_request: the operator allows no sandbox of this size */
  admitSize(draft: SandboxDraft): void {
    const { memoryMbMax } = this.#limits
    if (draft.spec.memoryMb > memoryMbMax) {
      throw new PlatformError(
        'bad_request',
        `spec.runtime.memory is ${draft.spec.memoryMb} MB; this platform allows at most ${memoryMbMax} (sandboxMemoryMbMax)`,
      )
    }
  }

  /** A new sandbox, that runs. For who has the turn of its name. */
  async launch(deployment: Deployment): Promise<StoredSandbox> {
    const { workspace, name, draft, replaced, message = 'Deployment successful' } = deployment
    const startedAt = this.#clock.now()
    const body = this.#bodyOf(deployment, startedAt, {
      status: 'DEPLOYING',
      message: 'Deployment started',
    })
    const gone = replaced ? await this.#removal.steps(replaced) : []
    let created: StoredSandbox | undefined
    const instance = await this.#machines.start(workspace, name, draft, async (step, instanceId) => {
      const running = deployed({ ...body, instanceId }, this.#clock.now(), message)
      created = await this.#write(deployment, running, startedAt, gone, [step])
    })
    if (replaced) this.#removal.noteForgotten(replaced)
    return this.inUse(await this.#noteMemory(created!, instance))
  }

  /** A new sandbox whose machine is to come: until `replaceMachine` it has that status. For who has the turn. */
  async announce(deployment: Deployment, told: Announcement): Promise<StoredSandbox> {
    const { replaced } = deployment
    const startedAt = this.#clock.now()
    const body = this.#bodyOf(deployment, startedAt, told)
    const gone = replaced ? await this.#removal.steps(replaced) : []
    const announced = await this.#write(deployment, body, startedAt, gone, [])
    if (replaced) this.#removal.noteForgotten(replaced)
    return announced
  }

  /**
   * A new machine, with empty files or those of its draft's seed, for a sandbox there is. The old one serves until the new one runs; when that
   * cannot be had, nothing has changed. For who has the turn.
   */
  async replaceMachine(
    existing: StoredSandbox,
    draft: SandboxDraft,
    actor: string,
    message: string,
  ): Promise<StoredSandbox> {
    const { workspace, name, body } = existing
    let updated: StoredSandbox | undefined
    const instance = await this.#machines.start(workspace, name, draft, async (step, instanceId) => {
      updated = await this.#machines.endAlong(body.instanceId, (more) =>
        this.#records.change(
          existing,
          (current) =>
            deployed(
              notedRules(
                this.#sealing.bodyOf(draft, { ...current, updatedBy: actor, instanceId }),
                this.#clock.now(),
                current.spec.network,
              ),
              this.#clock.now(),
              message,
            ),
          [step, ...more],
        ),
      )
    })
    return await this.#noteMemory(updated!, instance)
  }

  /** Can be used from now on, as its record says. */
  inUse(sandbox: StoredSandbox): StoredSandbox {
    const { instanceId, status } = sandbox.body
    if (instanceId !== null && status === 'DEPLOYED') {
      this.#leases.set(sandbox, instanceId)
      this.bringToLife(sandbox)
    }
    this.#expiry.watch(sandbox)
    return sandbox
  }

  /** In the background: what is to run in one that has a machine, also where a crash cut that off. */
  bringToLife(sandbox: StoredSandbox): void {
    if (sandbox.body.sealedStarts === undefined) this.#leases.warm(sandbox.workspace, sandbox.name)
    else this.#background.run(this.#startWhatRan(sandbox))
  }

  /** Whether what ran in a snapshot goes on, where there was something that could. */
  async #noteMemory(sandbox: StoredSandbox, { memory }: Instance): Promise<StoredSandbox> {
    if (sandbox.body.sealedStarts === undefined) return sandbox
    const message = memory?.kept
      ? 'Programs of the snapshot go on where they were'
      : `Programs of the snapshot are started anew${memory ? `: ${memory.reason}` : ''}`
    return await this.#records.change(sandbox, (current) =>
      withEvent(current, this.#clock.now(), { type: 'snapshot', status: current.status, message }),
    )
  }

  /** What ran in the snapshot that a sandbox was made from. */
  async #startWhatRan(sandbox: StoredSandbox): Promise<void> {
    await this.#restarts.start(sandbox, this.#sealing.starts(sandbox.body))
    await this.#records.change(sandbox, ({ sealedStarts, ...started }) =>
      sealedStarts === undefined || started.instanceId !== sandbox.body.instanceId ? null : started,
    )
  }

  #bodyOf({ draft, actor }: Deployment, startedAt: number, announced: Announcement): SandboxBody {
    const { status, message, source } = announced
    const time = new Date(startedAt).toISOString()
    const uid = randomText(20)
    const body = this.#sealing.bodyOf(draft, {
      uid,
      createdBy: actor,
      updatedBy: actor,
      instanceId: null,
      status,
      events: [{ time, type: 'deployment', status, message }],
    })
    const told = notedRules(body, startedAt)
    return source === undefined ? told : { ...told, source: source(uid) }
  }

  async #write(
    { workspace, name, replaced }: Deployment,
    body: SandboxBody,
    createdAt: number,
    gone: BatchStep[],
    along: BatchStep[],
  ): Promise<StoredSandbox> {
    const creation: BatchStep = {
      op: 'create',
      input: { kind: sandboxKind, workspace, name, body, indexes: indexesOf(body), createdAt },
    }
    const results = await this.#machines.endAlong(replaced?.body.instanceId ?? null, (more) =>
      this.#store.batch([...gone, creation, ...along, inWorkspace(workspace), ...more]),
    )
    return results[gone.length] as StoredSandbox
  }
}
