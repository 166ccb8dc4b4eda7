import { PlatformError } from '../errors.ts'
import type { ArchiveOutcome, Instances } from '../instances/index.ts'
import type { Background } from '../lib/background.ts'
import type { Clock } from '../lib/clock.ts'
import type { Logger } from '../lib/log.ts'
import type { SecretBox } from '../lib/secret-box.ts'
import type { BatchStep } from '../spec/store.ts'
import type { SandboxExpiry } from './expiry.ts'
import type { SandboxLeases } from './leases.ts'
import type { ProcessStart } from './processes.ts'
import { mayExpire, type SandboxBody, type StoredSandbox, withEvent } from './record.ts'
import type { SandboxRecords } from './records.ts'
import type { ProcessRestarts } from './restarts.ts'

/**
 * Sandboxes whose files are packed away: an archive holds what was written, and the commands that ran, not memory. What
 * comes back has its files, and its processes started anew.
 */
export class SandboxArchives {
  readonly #instances: Instances
  readonly #records: SandboxRecords
  readonly #leases: SandboxLeases
  readonly #restarts: ProcessRestarts
  readonly #expiry: SandboxExpiry
  readonly #background: Background
  readonly #secrets: Pick<SecretBox, 'seal' | 'open'>
  readonly #clock: Clock
  readonly #log: Logger

  constructor(options: {
    instances: Instances
    records: SandboxRecords
    leases: SandboxLeases
    restarts: ProcessRestarts
    expiry: SandboxExpiry
    background: Background
    secrets: Pick<SecretBox, 'seal' | 'open'>
    clock: Clock
    log: Logger
  }) {
    this.#instances = options.instances
    this.#records = options.records
    this.#leases = options.leases
    this.#restarts = options.restarts
    this.#expiry = options.expiry
    this.#background = options.background
    this.#secrets = options.secrets
    this.#clock = options.clock
    this.#log = options.log
  }

  /**
   * For who has the sandbox's turn. Resolves once it is ARCHIVING; the rest goes on in the background.
   * @throws conflict unless it runs, not_implemented
   */
  async archive(sandbox: StoredSandbox): Promise<StoredSandbox> {
    const { workspace, name } = sandbox
    const instanceId = this.#require(sandbox, 'DEPLOYED')
    let archiving = sandbox
    try {
      const archive = { startedAt: this.#clock.now(), sealedStarts: await this.#starts(sandbox) }
      const { done } = await this.#instances.archive(
        instanceId,
        async (step) => {
          archiving = await this.#records.change(
            sandbox,
            (current) => ({ ...this.#event(current, 'ARCHIVING', 'Archiving started'), archive }),
            [step],
          )
        },
        (step, outcome) => this.#noteOutcome(sandbox, step, outcome),
      )
      return this.#until(done, archiving)
    } finally {
      // What was known of its processes ends here, or is to accept new ones again.
      this.#leases.forget(workspace, name)
    }
  }

  /** As `archive`, once it is UNARCHIVING. @throws conflict unless it is archived, not_implemented */
  async unarchive(sandbox: StoredSandbox): Promise<StoredSandbox> {
    const instanceId = this.#require(sandbox, 'ARCHIVED')
    let unarchiving = sandbox
    const { done } = await this.#instances.unarchive(
      instanceId,
      async (step) => {
        unarchiving = await this.#records.change(
          sandbox,
          (current) => ({
            ...this.#event(current, 'UNARCHIVING', 'Restoring from its archive'),
            archive: { ...archiveOf(current), restoreStartedAt: this.#clock.now() },
          }),
          [step],
        )
      },
      (step, outcome) => this.#noteOutcome(sandbox, step, outcome),
    )
    return this.#until(done, unarchiving)
  }

  /** At start: goes on with what a crash cut off. */
  async resume(sandbox: StoredSandbox): Promise<void> {
    const { instanceId, status } = sandbox.body
    const way = status === 'UNARCHIVING' ? 'unarchive' : 'archive'
    const { done } = await this.#instances[way](instanceId ?? '', null, (step, outcome) =>
      this.#noteOutcome(sandbox, step, outcome),
    )
    this.#until(done, sandbox)
  }

  /** Its policies count again, once it is what it is to be. */
  #until(done: Promise<void>, sandbox: StoredSandbox): StoredSandbox {
    this.#expiry.unwatch(sandbox)
    this.#background.run(this.#watchAfter(done, sandbox))
    return sandbox
  }

  async #watchAfter(done: Promise<void>, { workspace, name }: StoredSandbox): Promise<void> {
    try {
      await done
    } catch (error) {
      this.#log.warn('an archive was not finished', { workspace, sandbox: name, error })
    }
    const found = await this.#records.get(workspace, name)
    if (found && mayExpire(found.body.status)) this.#expiry.watch(found)
  }

  #require(sandbox: StoredSandbox, wanted: 'DEPLOYED' | 'ARCHIVED'): string {
    const { status, instanceId } = sandbox.body
    if (status === wanted && instanceId !== null) return instanceId
    const what = wanted === 'DEPLOYED' ? 'archived: it does not run' : 'unarchived: it is not archived'
    throw new PlatformError(
      'conflict',
      `the sandbox "${sandbox.name}" cannot be ${what}, its status is ${status}`,
    )
  }

  async #noteOutcome(
    asked: StoredSandbox,
    step: BatchStep | null,
    outcome: ArchiveOutcome,
  ): Promise<boolean> {
    const sandbox = await this.#records.get(asked.workspace, asked.name)
    // Deleted meanwhile: whoever did that has written what becomes of the instance.
    if (sandbox?.body.instanceId !== asked.body.instanceId) return false
    if (outcome.type === 'unarchived' || outcome.type === 'not archived') await this.#restart(sandbox)
    let written = false
    const changed = await this.#records.change(
      sandbox,
      (current) => {
        written = current.status !== 'DELETING' && current.status !== 'TERMINATED'
        return written ? this.#changed(current, outcome) : null
      },
      step === null ? [] : [step],
    )
    const { status, instanceId } = changed.body
    if (status === 'DEPLOYED' && instanceId !== null) this.#leases.set(changed, instanceId)
    return written
  }

  #changed(current: SandboxBody, outcome: ArchiveOutcome): SandboxBody {
    const { archive: _, ...without } = current
    switch (outcome.type) {
      case 'archived':
        return {
          ...this.#event(current, 'ARCHIVED', `Archived, ${outcome.bytes} bytes`),
          archive: { ...archiveOf(current), createdAt: this.#clock.now(), bytes: outcome.bytes },
        }
      case 'unarchived':
        return this.#event(without, 'DEPLOYED', 'Restored from its archive')
      case 'not archived':
        return this.#event(without, 'DEPLOYED', `Archiving failed: ${outcome.reason}`)
      case 'lost':
        return this.#event(without, 'FAILED', `Archiving failed: ${outcome.reason}`)
      case 'not unarchived': {
        const { restoreStartedAt: __, ...archive } = archiveOf(current)
        return { ...this.#event(current, 'ARCHIVED', `Restoring failed: ${outcome.reason}`), archive }
      }
    }
  }

  #event(body: SandboxBody, status: SandboxBody['status'], message: string): SandboxBody {
    return withEvent(body, this.#clock.now(), { type: 'archive', status, message })
  }

  /** What runs, sealed, to be started again. */
  async #starts(sandbox: StoredSandbox): Promise<string> {
    using lease = await this.#leases.acquire(sandbox.workspace, sandbox.name)
    const starts = await this.#restarts.of(lease, await lease.processes.quiesce())
    return this.#secrets.seal(JSON.stringify(starts), purpose(sandbox))
  }

  /** What ran when a sandbox was archived, to be started again. */
  startsOf(sandbox: StoredSandbox): ProcessStart[] {
    const { archive } = sandbox.body
    return archive ? JSON.parse(this.#secrets.open(archive.sealedStarts, purpose(sandbox))) : []
  }

  /** Starts what ran when the sandbox was archived, or was to be. */
  async #restart(sandbox: StoredSandbox): Promise<void> {
    const { archive, instanceId } = sandbox.body
    if (!archive || instanceId === null) return
    this.#leases.set(sandbox, instanceId)
    await this.#restarts.start(sandbox, this.startsOf(sandbox))
  }
}

function archiveOf(body: SandboxBody): NonNullable<SandboxBody['archive']> {
  if (body.archive) return body.archive
  throw new PlatformError('internal', 'an archived sandbox has no record of its archive')
}

function purpose(sandbox: StoredSandbox): string {
  return `sandbox:${sandbox.body.uid}:archive`
}
