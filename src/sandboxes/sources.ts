import type { BuildHandlers, Builds, BuildView } from '../builds/index.ts'
import { PlatformError } from '../errors.ts'
import { type Images, newBuiltTag } from '../images/index.ts'
import { buildEventTypes } from '../lib/build-event-types.ts'
import type { Clock } from '../lib/clock.ts'
import type { Logs } from '../telemetry/index.ts'
import type { SandboxDeployments } from './deployments.ts'
import type { SandboxDraft } from './draft.ts'
import {
  failed,
  isReplaceable,
  noted,
  type SandboxBody,
  type SandboxSource,
  type StoredSandbox,
  sandboxKind,
} from './record.ts'
import { notFound, type SandboxRecords } from './records.ts'
import type { SandboxDependent, SandboxRemoval } from './removal.ts'
import type { Sealing } from './sealing.ts'
import type { SandboxTurns } from './turns.ts'

export type SourceBuilds = Pick<Builds, 'begin' | 'cancel' | 'newest' | 'on'>

export type SourceImages = Pick<Images, 'promote'>

interface Wanted {
  workspace: string
  name: string
  actor: string
  /** What the upload address begins with. */
  origin: string
}

export interface Announced {
  sandbox: StoredSandbox
  uploadUrl: string
}

/** Sandboxes whose image is built from an archive that somebody uploads: what there is meanwhile, and afterwards. */
export class SandboxSources implements SandboxDependent {
  readonly #builds: SourceBuilds
  readonly #images: SourceImages
  readonly #logs: Pick<Logs, 'remove'>
  readonly #records: SandboxRecords
  readonly #turns: SandboxTurns
  readonly #deployments: SandboxDeployments
  readonly #removal: SandboxRemoval
  readonly #sealing: Sealing
  readonly #clock: Clock

  constructor(options: {
    builds: SourceBuilds
    images: SourceImages
    logs: Pick<Logs, 'remove'>
    records: SandboxRecords
    turns: SandboxTurns
    deployments: SandboxDeployments
    removal: SandboxRemoval
    sealing: Sealing
    clock: Clock
  }) {
    this.#builds = options.builds
    this.#images = options.images
    this.#logs = options.logs
    this.#records = options.records
    this.#turns = options.turns
    this.#deployments = options.deployments
    this.#removal = options.removal
    this.#sealing = options.sealing
    this.#clock = options.clock
    const handlers: BuildHandlers = {
      building: (build) => this.#building(build),
      built: (build, { image }) => this.#built(build, image),
      failed: (build, message) => this.#failed(build, message),
    }
    options.builds.on(sandboxKind, handlers)
    options.removal.addDependent(this)
  }

  /** A sandbox that gets its machine once its image was built. @throws already_exists, bad_request, too_many_requests */
  async create(wanted: Wanted, draftOf: (image: string) => SandboxDraft): Promise<Announced> {
    const { workspace, name, actor } = wanted
    return await this.#turns.run(workspace, name, async () => {
      const existing = await this.#turns.current(workspace, name)
      if (existing && !isReplaceable(existing.body.status)) {
        throw new PlatformError(
          'already_exists',
          `the sandbox "${name}" exists already in this workspace (status ${existing.body.status})`,
        )
      }
      const tag = newBuiltTag()
      const draft = draftOf(imageOf(name, tag))
      this.#deployments.admit(draft)
      const sandbox = await this.#deployments.announce(
        { workspace, name, draft, actor, replaced: existing },
        { status: 'UPLOADING', message: waiting, source: (uid) => this.#sourceOf(uid, tag, draft, actor) },
      )
      return await this.#begin(sandbox, tag, wanted, () => this.#removal.forget(sandbox))
    })
  }

  /**
   * A new image for a sandbox there is: what runs goes on until the new one can. @throws not_found, bad_request,
   * conflict for one that is on its way to something else, too_many_requests
   */
  async update(
    wanted: Wanted,
    draftOf: (previous: SandboxDraft, image: string) => SandboxDraft,
  ): Promise<Announced> {
    const { workspace, name, actor } = wanted
    return await this.#turns.run(workspace, name, async () => {
      const existing = await this.#turns.current(workspace, name)
      if (!existing || existing.body.status === 'TERMINATED') throw notFound(name)
      const { status } = existing.body
      if (status !== 'DEPLOYED' && status !== 'FAILED' && existing.body.source === undefined) {
        throw new PlatformError(
          'conflict',
          `the sandbox "${name}" cannot be changed, its status is ${status}`,
        )
      }
      const tag = newBuiltTag()
      const draft = draftOf(this.#sealing.draftOf(existing), imageOf(name, tag))
      this.#deployments.admitSize(draft)
      const sandbox = await this.#records.change(existing, (current) => {
        const { uploadedAt: _, ...before } = current
        const body = { ...before, source: this.#sourceOf(current.uid, tag, draft, actor) }
        return inPhase(body, this.#clock.now(), 'UPLOADING', waiting)
      })
      return await this.#begin(sandbox, tag, wanted, async () => {
        await this.#records.change(sandbox, (current) =>
          current.source?.tag === tag ? { ...existing.body, events: current.events } : null,
        )
      })
    })
  }

  /** Ends what is being built for a sandbox that is to be something else now. */
  async drop({ workspace, name, body }: StoredSandbox): Promise<void> {
    if (body.source !== undefined) await this.#builds.cancel({ workspace, kind: sandboxKind, name })
  }

  /** At start: one whose build nobody knows of waits for nothing. */
  async recover(sandbox: StoredSandbox): Promise<StoredSandbox> {
    const { workspace, name, body } = sandbox
    const { source } = body
    if (source === undefined || source.phase === 'FAILED') return sandbox
    const newest = await this.#builds.newest({ workspace, kind: sandboxKind, name })
    const underWay = newest?.status === 'uploading' || newest?.status === 'building'
    if (underWay && newest.owner.tag === source.tag) return sandbox
    return await this.#records.change(sandbox, (current) =>
      current.source?.tag === source.tag
        ? this.#withoutSource(current, 'its creation was interrupted, upload again')
        : null,
    )
  }

  async removal(workspace: string, sandbox: string): Promise<[]> {
    await this.#builds.cancel({ workspace, kind: sandboxKind, name: sandbox })
    await this.#logs.remove(workspace, 'sandboxes', sandbox)
    return []
  }

  removed(): void {}

  async #begin(
    sandbox: StoredSandbox,
    tag: string,
    { origin }: Wanted,
    undo: () => Promise<void>,
  ): Promise<Announced> {
    const { workspace, name } = sandbox
    try {
      const { uploadUrl } = await this.#builds.begin({ workspace, kind: sandboxKind, name, tag }, origin)
      return { sandbox, uploadUrl }
    } catch (error) {
      await undo()
      throw error
    }
  }

  #building(build: BuildView): Promise<void> {
    const uploadedAt = build.uploadedAt ?? this.#clock.now()
    return this.#change(build, (body) =>
      body.source.phase === 'BUILDING'
        ? null
        : inPhase({ ...body, uploadedAt }, this.#clock.now(), 'BUILDING', 'Building the image'),
    )
  }

  async #built(build: BuildView, image: string): Promise<void> {
    const { workspace, name, tag } = build.owner
    await this.#images.promote(workspace, { type: sandboxKind, name, tag })
    await this.#change(build, (body) =>
      inPhase(body, this.#clock.now(), 'DEPLOYING', `Built ${image}, starting it`),
    )
    await this.#turns.run(workspace, name, async () => {
      const existing = await this.#turns.current(workspace, name)
      const source = existing?.body.source
      // What a crash kept from being written is that the build is over.
      if (existing?.body.spec.image === image && existing.body.instanceId !== null) return
      if (!existing || source?.tag !== tag) {
        throw new PlatformError('conflict', `the sandbox "${name}" was changed while its image was built`)
      }
      const draft = this.#sealing.draftOfSource(existing.body.uid, source.sealedDraft)
      const wanted = { ...draft, spec: { ...draft.spec, image } }
      if (existing.body.instanceId === null) this.#deployments.admit(wanted)
      this.#deployments.inUse(
        await this.#deployments.replaceMachine(existing, wanted, source.actor, 'Deployment successful'),
      )
    })
  }

  #failed(build: BuildView, message: string): Promise<void> {
    return this.#change(build, (body) => {
      if (build.uploadedAt !== null || body.instanceId === null) return this.#withoutSource(body, message)
      // Nobody took the offer: it is as if it had not been made.
      const { source: _, ...rest } = body
      return noted(rest, this.#clock.now(), { type: buildEventTypes.failed, status: rest.status, message })
    })
  }

  /** It has no machine, or goes on as it was. */
  #withoutSource(body: SandboxBody, reason: string): SandboxBody {
    const now = this.#clock.now()
    const { source, ...rest } = body
    if (source && body.instanceId !== null) {
      const failed = { ...rest, source: { ...source, failedAt: now } }
      return inPhase(failed, now, 'FAILED', `${reason}\nWhat ran before goes on`)
    }
    return failed(rest, now, reason, buildEventTypes.failed)
  }

  /** Leaves alone a sandbox that is gone, or waits for another build. */
  async #change(
    { owner }: BuildView,
    change: (body: SandboxBody & { source: SandboxSource }) => SandboxBody | null,
  ): Promise<void> {
    const found = await this.#records.get(owner.workspace, owner.name)
    if (!found) return
    await this.#records
      .change(found, (current) => {
        const { source } = current
        return source?.tag === owner.tag && source.phase !== 'FAILED' ? change({ ...current, source }) : null
      })
      .catch((error) => {
        if (!PlatformError.is(error) || error.code !== 'not_found') throw error
      })
  }

  #sourceOf(uid: string, tag: string, draft: SandboxDraft, actor: string): SandboxSource {
    return { tag, phase: 'UPLOADING', sealedDraft: this.#sealing.sourceOf(uid, draft), actor }
  }
}

const eventTypes: Record<SandboxSource['phase'], string> = {
  UPLOADING: 'deployment',
  BUILDING: buildEventTypes.started,
  DEPLOYING: 'deployment',
  FAILED: buildEventTypes.failed,
}
const waiting = 'Waiting for the source to be uploaded'

function imageOf(name: string, tag: string): string {
  return `sandbox/${name}:${tag}`
}

/** One that runs keeps its status: clients are told of the phase, and everything else of what runs. */
function inPhase(
  body: SandboxBody,
  nowMs: number,
  phase: SandboxSource['phase'],
  message: string,
): SandboxBody {
  const source = body.source && { ...body.source, phase }
  const told = noted(body, nowMs, { type: eventTypes[phase], status: phase, message })
  return {
    ...told,
    ...(source ? { source } : {}),
    status: body.instanceId === null ? phase : body.status,
  }
}
