import { PlatformError } from '../errors.ts'
import type { ResolvedImage } from '../images/index.ts'
import type { Instances } from '../instances/index.ts'
import { Background } from '../lib/background.ts'
import type { Clock } from '../lib/clock.ts'
import type { Logger } from '../lib/log.ts'
import type { SecretBox } from '../lib/secret-box.ts'
import type { RootFilesystem } from '../spec/runtime.ts'
import type { BatchStep, Page, PageAsked, Store } from '../spec/store.ts'
import type { SandboxDraft } from './draft.ts'
import type { Sandboxes } from './index.ts'
import { isReplaceable } from './record.ts'
import { SnapshotFiles } from './snapshots/files.ts'
import { forkOf } from './snapshots/forks.ts'
import { imageOf, nothingRan, programOf, snapshotOfReference } from './snapshots/images.ts'
import {
  machineSpec,
  type SnapshotBody,
  type SnapshotSecrets,
  type StoredSnapshot,
  secretsPurpose,
  seedOf,
  shown,
  snapshotKey,
} from './snapshots/record.ts'
import { SnapshotRecords } from './snapshots/records.ts'
import { type ForkAnswer, type ForkInput, type SnapshotView, snapshotView } from './snapshots/schema.ts'
import { SnapshotTaking, type Wanted } from './snapshots/taking.ts'

export { snapshotReference } from './snapshots/images.ts'
export type { SnapshotBody, StoredSnapshot } from './snapshots/record.ts'
export {
  type ForkAnswer,
  type ForkInput,
  forkAnswerSchema,
  forkInputSchema,
  restoreAnswerSchema,
  sandboxSnapshotInputSchema,
  snapshotInputSchema,
  snapshotSchema,
} from './snapshots/schema.ts'

/** Of a sandbox, beside the others: those that were taken for a fork of it as it was. */
const implicitSnapshotsMax = 3

export interface SnapshotsOptions {
  store: Store
  sandboxes: Sandboxes
  instances: Instances
  secrets: Pick<SecretBox, 'seal' | 'open'>
  clock: Clock
  log: Logger
  /** Where snapshots are whose sandboxes named no region; absent: not told. */
  region?: string
  /** Which deployment stands on a snapshot, as people call it; null: none does. */
  userOf?: (workspace: string, snapshotId: string) => string | null
}

/**
 * Files of sandboxes as they were at one moment, with what the sandbox was and what ran in it, and what can be made of
 * that: the same sandbox as it was, or another one. Where the host keeps memory it is in it; else programs are started anew.
 *
 * A snapshot is recorded before its files are copied, and ready once they are whole and durable. What a crash cut off is
 * failed, and its files are removed. Sandboxes are made of one in the way they are made of an image: a new machine,
 * recorded once it runs, so that a restored sandbox has its old machine until it has the new one.
 */
export class Snapshots {
  readonly #records: SnapshotRecords
  readonly #files: SnapshotFiles
  readonly #taking: SnapshotTaking
  readonly #sandboxes: Sandboxes
  readonly #instances: Instances
  readonly #secrets: Pick<SecretBox, 'seal' | 'open'>
  readonly #region: string | undefined
  readonly #background: Background
  readonly #userOf: NonNullable<SnapshotsOptions['userOf']>
  /** Those that go with a sandbox, once its removal is written; by its workspace and name. */
  readonly #leaving = new Map<string, string[]>()

  constructor(options: SnapshotsOptions) {
    const { store, sandboxes, instances, secrets, clock, log } = options
    const background = new Background((error) => {
      if (!PlatformError.is(error)) log.error('work on a snapshot failed behind its request', { error })
    })
    const records = new SnapshotRecords(store)
    const files = new SnapshotFiles({ instances, background, log })
    this.#taking = new SnapshotTaking({ records, files, sandboxes, instances, secrets, background, clock })
    this.#records = records
    this.#files = files
    this.#sandboxes = sandboxes
    this.#instances = instances
    this.#secrets = secrets
    this.#region = options.region
    this.#background = background
    this.#userOf = options.userOf ?? (() => null)
    sandboxes.addDependent({
      removal: (workspace, _, uid) => this.#removalOfImplicit(workspace, uid),
      removed: (workspace, sandbox) => this.#removedWith(workspace, sandbox),
    })
  }

  /**
   * At start, after `instances.recover()`: what was being taken is failed, and files that no record knows are removed.
   * What stood still for it goes on.
   */
  async open(): Promise<void> {
    for await (const snapshot of this.#records.every()) {
      const { status, source } = snapshot.body
      if (status === 'ready') this.#files.keep(snapshot.workspace, snapshot.body)
      if (status !== 'pending') continue
      await this.#records.change(snapshot, { status: 'failed', reason: 'the platform was stopped meanwhile' })
      const waking = this.#instances.acquire(source.instanceId)
      this.#background.run(waking.then((lease) => lease[Symbol.dispose]()))
    }
    await this.#files.removeOthers()
  }

  async close(): Promise<void> {
    this.#background.close()
    await this.#background.settled()
  }

  /** The root file systems that snapshots stand on. */
  roots(): Iterable<{ workspace: string; name: string; root: RootFilesystem }> {
    return this.#files.roots()
  }

  /**
   * Takes a snapshot of a sandbox that runs, rests or is archived. Resolves when it is ready, or pending after
   * `snapshotAnswerMsMax`. @throws not_found, conflict, already_exists, usage_limit_exceeded, not_implemented,
   * insufficient_storage; then no record is left
   */
  create(workspace: string, sandboxName: string, wanted: Wanted): Promise<StoredSnapshot> {
    this.#background.refuseWhenClosing()
    return this.#taking.take(workspace, sandboxName, wanted)
  }

  list(workspace: string, query: PageAsked): Promise<Page<SnapshotBody>> {
    return this.#records.page(workspace, query)
  }

  /** Of one sandbox, newest first. @throws not_found */
  async ofSandbox(workspace: string, sandboxName: string): Promise<StoredSnapshot[]> {
    const { body } = await this.#sandboxes.get(workspace, sandboxName)
    return await this.#records.ofSandbox(workspace, body.uid)
  }

  /** By id or name; with `sandboxName` only of that sandbox. @throws not_found, conflict for a name of several */
  async get(workspace: string, idOrName: string, sandboxName?: string): Promise<StoredSnapshot> {
    if (sandboxName === undefined) return await this.#records.require(workspace, idOrName)
    const { body } = await this.#sandboxes.get(workspace, sandboxName)
    return await this.#records.require(workspace, idOrName, body.uid)
  }

  /** As it is answered. */
  async view(snapshot: StoredSnapshot): Promise<SnapshotView> {
    const { name, uid } = snapshot.body.source
    const sandbox = await this.#sandboxes.get(snapshot.workspace, name).catch(() => null)
    const deleted =
      sandbox?.body.uid !== uid || sandbox.body.status === 'TERMINATED' || sandbox.body.status === 'DELETING'
    return snapshotView(snapshot, { deleted, region: this.#region })
  }

  /**
   * Removes a snapshot; its files once nothing is being made of them any more. Idempotent.
   * @throws conflict while a deployment stands on it
   */
  async remove(snapshot: StoredSnapshot): Promise<void> {
    this.#background.refuseWhenClosing()
    const user = this.#userOf(snapshot.workspace, snapshot.body.id)
    if (user !== null) {
      throw new PlatformError(
        'conflict',
        `the snapshot ${shown(snapshot)} is used by ${user}: delete that first`,
      )
    }
    await this.#taking.over(snapshot.body.id)
    await this.#records.remove(snapshot)
    this.#files.removeSoon(snapshot.body.id)
  }

  /**
   * Makes a sandbox what it was: a machine with the snapshot's files, image, memory, storage, environment and ports, and
   * what ran there started anew. Its name, previews, policies and network rules stay.
   * @throws not_found unless it is one of its own, conflict, and what starting an instance throws: then nothing changed
   */
  async restore(
    workspace: string,
    sandboxName: string,
    idOrName: string,
    { actor }: { actor: string },
  ): Promise<StoredSnapshot> {
    const snapshot = await this.#ready(await this.get(workspace, idOrName, sandboxName))
    using _hold = this.#files.hold(snapshot.body.id)
    const secrets = this.#secretsOf(snapshot)
    await this.#sandboxes.rebuild(
      workspace,
      sandboxName,
      (current, sandbox) => {
        if (sandbox.body.uid !== snapshot.body.source.uid) throw otherSandbox(snapshot)
        return {
          ...current,
          spec: { ...withoutMachine(current.spec), ...machineSpec(snapshot.body.spec) },
          env: secrets.env,
          seed: seedOf(snapshot, secrets),
        }
      },
      { actor, message: `Restored from the snapshot ${shown(snapshot)}` },
    )
    return snapshot
  }

  /** A new sandbox from a snapshot. @throws bad_request, already_exists, conflict, and what starting one throws */
  async fork(asked: StoredSnapshot, input: ForkInput, { actor }: { actor: string }): Promise<ForkAnswer> {
    const { name, more } = forkOf(input)
    const snapshot = await this.#ready(asked)
    using _hold = this.#files.hold(snapshot.body.id)
    const draft = more(this.#draftOf(snapshot))
    const { source } = snapshot.body
    const message = `Forked from the snapshot ${shown(snapshot)} of the sandbox "${source.name}"`
    await this.#sandboxes.launch(snapshot.workspace, name, draft, { actor, message })
    return { type: 'sandbox', name, snapshotId: snapshot.body.id }
  }

  /**
   * A new sandbox from one that runs or is archived: from a snapshot of it, or from it as it is, of which a snapshot is
   * taken then. @throws as `fork` and `create`
   */
  async forkSandbox(
    workspace: string,
    sandboxName: string,
    input: ForkInput,
    options: { actor: string },
  ): Promise<ForkAnswer> {
    if (input.snapshotId) {
      return await this.fork(await this.get(workspace, input.snapshotId, sandboxName), input, options)
    }
    // Before a snapshot is taken that nothing comes of.
    await this.#refuseTaken(workspace, forkOf(input).name)
    const snapshot = await this.create(workspace, sandboxName, { ...options, implicit: true })
    try {
      const answer = await this.fork(snapshot, input, options)
      await this.#prune(snapshot)
      return answer
    } catch (error) {
      await this.remove(snapshot)
      throw error
    }
  }

  /**
   * A snapshot that a deployment is to stand on: one that is named, or taken of the sandbox as it is. It stays while
   * `userOf` knows of somebody. @throws as `create`, bad_request when nothing ran in it
   */
  async forDeployment(
    workspace: string,
    from: { sandboxName: string; snapshotId: string | null } | StoredSnapshot,
    wanted: { taker: string; actor: string },
  ): Promise<{ snapshot: StoredSnapshot; env: Record<string, string> }> {
    const taking = 'sandboxName' in from && from.snapshotId === null
    const asked = taking
      ? await this.create(workspace, from.sandboxName, wanted)
      : 'sandboxName' in from
        ? await this.get(workspace, from.snapshotId ?? '', from.sandboxName)
        : from
    const snapshot = await this.#ready(asked)
    const secrets = this.#secretsOf(snapshot)
    if (programOf(snapshot.body.machine.program ?? [], secrets.starts) === null) {
      if (taking) await this.remove(snapshot)
      throw nothingRan(snapshot.body.source.name)
    }
    return { snapshot, env: secrets.env }
  }

  /** What a reference to a snapshot stands for; null for a reference to an image. @throws not_found, conflict */
  async image(workspace: string, reference: string): Promise<ResolvedImage | null> {
    const id = snapshotOfReference(reference)
    if (id === null) return null
    const snapshot = await this.#ready(await this.#records.require(workspace, id))
    return imageOf(snapshot, this.#secretsOf(snapshot), this.#files.hold(id))
  }

  /** Nobody stands on it any more: it goes if it was taken for that alone. Idempotent. @throws conflict */
  async letGo(workspace: string, reference: string): Promise<void> {
    const id = snapshotOfReference(reference)
    if (id === null) return
    const found = await this.#records.require(workspace, id).catch(() => null)
    if (found?.body.taker !== undefined) await this.remove(found)
  }

  /** @throws conflict */
  async #ready(snapshot: StoredSnapshot): Promise<StoredSnapshot> {
    const { id } = snapshot.body
    await this.#taking.over(id)
    const found = await this.#records.require(snapshot.workspace, id)
    if (found.body.status === 'ready') return found
    const { status, reason } = found.body
    const why = status === 'failed' ? `it could not be taken${reason ? `: ${reason}` : ''}` : 'it is pending'
    throw new PlatformError('conflict', `the snapshot ${shown(found)} cannot be used: ${why}`)
  }

  async #refuseTaken(workspace: string, name: string): Promise<void> {
    const found = await this.#sandboxes.get(workspace, name).catch(() => null)
    if (!found || isReplaceable(found.body.status)) return
    throw new PlatformError(
      'already_exists',
      `the sandbox "${name}" exists already in this workspace (status ${found.body.status})`,
    )
  }

  /** The older ones of those that were taken for forks. */
  async #prune({ workspace, body }: StoredSnapshot): Promise<void> {
    const all = await this.#records.ofSandbox(workspace, body.source.uid)
    const implicit = all.filter((other) => other.body.implicit && other.body.status !== 'pending')
    for (const old of implicit.slice(implicitSnapshotsMax)) {
      if (this.#userOf(workspace, old.body.id) === null) await this.remove(old)
    }
  }

  async #removalOfImplicit(workspace: string, uid: string): Promise<BatchStep[]> {
    const all = await this.#records.ofSandbox(workspace, uid)
    const going = all.filter(({ body }) => body.implicit && this.#userOf(workspace, body.id) === null)
    for (const { body } of going) {
      const key = `${workspace}/${body.source.name}`
      this.#leaving.set(key, [...(this.#leaving.get(key) ?? []), body.id])
    }
    return going.map(({ body }) => ({ op: 'remove', key: snapshotKey(workspace, body) }))
  }

  #removedWith(workspace: string, sandbox: string): void {
    const key = `${workspace}/${sandbox}`
    for (const id of this.#leaving.get(key) ?? []) this.#files.removeSoon(id)
    this.#leaving.delete(key)
  }

  #draftOf(snapshot: StoredSnapshot): SandboxDraft {
    const secrets = this.#secretsOf(snapshot)
    const { env, proxySecrets } = secrets
    return { labels: {}, spec: snapshot.body.spec, env, proxySecrets, seed: seedOf(snapshot, secrets) }
  }

  #secretsOf({ body }: StoredSnapshot): SnapshotSecrets {
    return JSON.parse(this.#secrets.open(body.sealed, secretsPurpose(body.id))) as SnapshotSecrets
  }
}

/** Without what another machine brings along. */
function withoutMachine(spec: SandboxDraft['spec']): Partial<SandboxDraft['spec']> {
  const machine = Object.keys(machineSpec(spec))
  return Object.fromEntries(Object.entries(spec).filter(([field]) => !machine.includes(field)))
}

function otherSandbox(snapshot: StoredSnapshot): PlatformError {
  return new PlatformError('not_found', `the snapshot ${shown(snapshot)} is not of this sandbox`)
}
