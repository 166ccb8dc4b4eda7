import type { ResolvedImage } from '../images/index.ts'
import type { Commit, Instances, NewInstance } from '../instances/index.ts'
import type { Background } from '../lib/background.ts'
import type { Instance } from '../spec/runtime.ts'
import type { BatchStep } from '../spec/store.ts'
import { type SandboxDraft, storageMbOf } from './draft.ts'
import { giveName } from './hostname.ts'
import { becomeUser, programOf, userOfScript, wantedUser } from './identity.ts'
import type { SandboxLeases } from './leases.ts'
import { sandboxKind } from './record.ts'

/** Processes and threads in one sandbox. */
const pidsPerSandboxMax = 4096

export interface MachineImages {
  /** @throws bad_request */
  resolve(workspace: string, reference: string): Promise<ResolvedImage>
}

/** The instances that sandboxes run on: begun as a draft says, and ended together with what is written of that. */
export class SandboxMachines {
  readonly #instances: Instances
  readonly #images: MachineImages
  readonly #leases: SandboxLeases
  readonly #background: Background
  readonly #region: string | undefined

  constructor(options: {
    instances: Instances
    images: MachineImages
    leases: SandboxLeases
    background: Background
    /** Told inside as BL_REGION where a draft names none; undefined: none is. */
    region: string | undefined
  }) {
    this.#instances = options.instances
    this.#images = options.images
    this.#leases = options.leases
    this.#background = options.background
    this.#region = options.region
  }

  /** How many there are, without those whose files are packed away. */
  get count(): number {
    return this.#instances.owned(sandboxKind).filter(({ state }) => state !== 'archived').length
  }

  /** Holds the image until the instance itself does. @throws as `instances.create`, bad_request for its image */
  async start(workspace: string, name: string, draft: SandboxDraft, commit: Commit): Promise<Instance> {
    const { seed } = draft
    const resolving = seed ? Promise.resolve(seed.image) : this.#images.resolve(workspace, draft.spec.image)
    try {
      return await this.#instances.create(
        { kind: sandboxKind, workspace, name },
        resolving.then((image) => this.#instanceOf(workspace, name, draft, image)),
        commit,
        async (instance, spec) => {
          // Before anybody asks what runs in it.
          if (seed && instance.memory?.kept) await this.#leases.placeRecords(instance.id, seed.records)
          if (seed) await giveName(instance.guest.files, { from: seed.hostname, to: name })
          if (!seed && spec.user === undefined && spec.program && (await resolving).sandboxApi) {
            const user = await userOfScript(instance.guest, spec.program, spec)
            if (user !== null) return { user, programAsRoot: true }
          }
          if (spec.user && !spec.programAsRoot) await becomeUser(instance.guest, spec.user)
          return {}
        },
      )
    } finally {
      const image = await resolving.catch(() => null)
      image?.[Symbol.dispose]()
    }
  }

  /**
   * Runs `write` with the step that marks an instance as ending, and without one where there is no instance. Answers
   * null for one that was ending already: its step is written. `gone` resolves when nothing is left.
   */
  async end<Result>(
    instanceId: string | null,
    write: (steps: BatchStep[]) => Promise<Result>,
  ): Promise<{ written: { value: Result } | null; gone: Promise<void> }> {
    if (instanceId === null || this.#instances.activity(instanceId) === null) {
      return { written: { value: await write([]) }, gone: Promise.resolve() }
    }
    let written: { value: Result } | null = null
    const { gone } = await this.#instances.destroy(instanceId, async (step) => {
      written = { value: await write([step]) }
    })
    return { written, gone: gone.then(() => this.#leases.removeFiles(instanceId)) }
  }

  /** As `end`, but writes in any case, and what takes longer goes on behind the answer. */
  async endAlong<Result>(
    instanceId: string | null,
    write: (steps: BatchStep[]) => Promise<Result>,
  ): Promise<Result> {
    const { written, gone } = await this.end(instanceId, write)
    this.#background.run(gone)
    return written === null ? await write([]) : written.value
  }

  #instanceOf(workspace: string, name: string, draft: SandboxDraft, image: ResolvedImage): NewInstance {
    const own = { ...image.env, ...draft.env }
    const program = [...image.entrypoint, ...image.command]
    const started = programOf(program, own)
    const { programPort } = image
    const user = draft.seed ? image.user : wantedUser(image.user, own, program)
    const region = draft.spec.region ?? this.#region
    return {
      hostname: name,
      image: image.root,
      memoryMb: draft.spec.memoryMb,
      storageMb: storageMbOf(draft.spec),
      pidsMax: pidsPerSandboxMax,
      ...(user === '' ? {} : { user }),
      ...(started.length === 0 ? {} : { program: started }),
      ...(draft.seed && image.programAsRoot ? { programAsRoot: true as const } : {}),
      ...(programPort === undefined ? {} : { programPort }),
      env: {
        ...(user === '' ? { HOME: '/root' } : {}),
        ...own,
        BL_NAME: name,
        BL_TYPE: 'sandbox',
        BL_WORKSPACE: workspace,
        ...(region === undefined ? {} : { BL_REGION: region }),
      },
      workingDir: image.workingDir || '/',
      ...(draft.seed ? { snapshotId: draft.seed.snapshotId } : {}),
      ...(draft.seed && !draft.seed.anew ? { withMemory: true as const } : {}),
    }
  }
}
