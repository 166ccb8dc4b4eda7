import { PlatformError } from '../errors.ts'
import type { Clock } from '../lib/clock.ts'
import type { CreationImages } from './creation.ts'
import type { SandboxDeployments } from './deployments.ts'
import { checkSameName, dockerConfigOf, draftOf, needsNewInstance, type SandboxDraft } from './draft.ts'
import { notedRules, type StoredSandbox } from './record.ts'
import { notFound, type SandboxRecords } from './records.ts'
import type { SandboxInput } from './schema.ts'
import type { Sealing } from './sealing.ts'
import type { SandboxSources } from './sources.ts'
import type { SandboxTurns } from './turns.ts'

/** How a sandbox that is there becomes another: in place, or with a new machine, until which the old one serves. */
export class SandboxChanges {
  readonly #records: SandboxRecords
  readonly #turns: SandboxTurns
  readonly #deployments: SandboxDeployments
  readonly #sources: SandboxSources | null
  readonly #sealing: Sealing
  readonly #images: CreationImages
  readonly #clock: Clock
  readonly #memoryMbMax: number

  constructor(options: {
    records: SandboxRecords
    turns: SandboxTurns
    deployments: SandboxDeployments
    sources: SandboxSources | null
    sealing: Sealing
    images: CreationImages
    clock: Clock
    memoryMbMax: number
  }) {
    this.#records = options.records
    this.#turns = options.turns
    this.#deployments = options.deployments
    this.#sources = options.sources
    this.#sealing = options.sealing
    this.#images = options.images
    this.#clock = options.clock
    this.#memoryMbMax = options.memoryMbMax
  }

  /**
   * Replaces metadata and spec. A change of image, memory, storage or environment makes a new instance with empty
   * files; anything else leaves the running one alone.
   * @throws not_found, conflict when it is terminated or being deleted, bad_request
   */
  async update(workspace: string, name: string, input: SandboxInput, actor: string): Promise<StoredSandbox> {
    checkSameName(input, name)
    // Outside of the lock: the sandbox can be used and deleted while an image comes.
    const image = input.spec?.runtime?.image
    if (image) await (await this.#images.prepare(workspace, image, dockerConfigOf(input)))?.pulling
    return await this.#turns.run(workspace, name, async () => {
      const existing = await this.#turns.current(workspace, name)
      if (!existing) throw notFound(name)
      const { status } = existing.body
      if (status !== 'DEPLOYED' && status !== 'FAILED') {
        throw new PlatformError(
          'conflict',
          `the sandbox "${name}" cannot be changed, its status is ${status}`,
        )
      }
      await this.#sources?.drop(existing)
      const previous = this.#sealing.draftOf(existing)
      const draft = draftOf(input, previous, this.#clock.now(), this.#memoryMbMax)
      return this.#deployments.inUse(
        needsNewInstance(previous, draft)
          ? await this.#deployments.replaceMachine(
              existing,
              draft,
              actor,
              'Deployment successful, with a new instance',
            )
          : await this.#records.change(existing, (current) =>
              notedRules(
                this.#sealing.bodyOf(draft, { ...current, updatedBy: actor }),
                this.#clock.now(),
                current.spec.network,
              ),
            ),
      )
    })
  }

  /**
   * A new machine, with the seed of what `draftOf` makes of the sandbox as it is.
   * @throws not_found, conflict for one that is on its way to something else
   */
  async rebuild(
    workspace: string,
    name: string,
    draftOf: (current: SandboxDraft, sandbox: StoredSandbox) => SandboxDraft,
    { actor, message }: { actor: string; message: string },
  ): Promise<StoredSandbox> {
    return await this.#turns.whileExists(workspace, name, async (existing) => {
      const { status } = existing.body
      if (status !== 'DEPLOYED' && status !== 'FAILED' && status !== 'ARCHIVED') {
        throw new PlatformError(
          'conflict',
          `the sandbox "${name}" cannot be restored now, its status is ${status}`,
        )
      }
      const draft = draftOf(this.#sealing.draftOf(existing), existing)
      this.#deployments.admitSize(draft)
      await this.#sources?.drop(existing)
      return this.#deployments.inUse(await this.#deployments.replaceMachine(existing, draft, actor, message))
    })
  }
}
