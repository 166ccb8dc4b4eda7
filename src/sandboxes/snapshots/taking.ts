import { PlatformError } from '../../errors.ts'
import type { Instances } from '../../instances/index.ts'
import type { Background } from '../../lib/background.ts'
import { badRequest, checkText } from '../../lib/checks.ts'
import type { Clock } from '../../lib/clock.ts'
import { defined } from '../../lib/defined.ts'
import { randomText, sortableId } from '../../lib/ids.ts'
import { KeyedLock } from '../../lib/keyed-lock.ts'
import type { SecretBox } from '../../lib/secret-box.ts'
import type { MemoryKept } from '../../spec/runtime.ts'
import type { Sandboxes } from '../index.ts'
import type { StoredSandbox } from '../record.ts'
import type { SnapshotFiles } from './files.ts'
import {
  inheritedSpec,
  isSnapshotId,
  runtimeIdOf,
  type SnapshotBody,
  type SnapshotSecrets,
  type StoredSnapshot,
  secretsPurpose,
  shown,
  snapshotId,
} from './record.ts'
import type { SnapshotRecords } from './records.ts'

export const snapshotsPerSandboxMax = 50
const snapshotsPerWorkspaceMax = 500
const snapshotNameCharsMax = 63
/** Of one sandbox, at once. */
const askedMax = 16
/** How long an answer waits for a snapshot to be ready: less than clients and proxies wait for one. */
export const snapshotAnswerMsMax = 50_000

export interface Wanted {
  /** Absent: one is made up. */
  name?: string
  actor: string
  /** For a fork that asked for none. */
  implicit?: true
  /** For a deployment, which is named so. */
  taker?: string
}

/** A snapshot on its way, and what was told of it. */
interface Taking {
  snapshot: StoredSnapshot | null
  /** A client was told that it is pending. */
  told: boolean
  memory: MemoryKept | null
}

/** How snapshots come: recorded, captured while the sandbox stands still, and completed while it goes on. */
export class SnapshotTaking {
  readonly #records: SnapshotRecords
  readonly #files: SnapshotFiles
  readonly #sandboxes: Sandboxes
  readonly #instances: Instances
  readonly #secrets: Pick<SecretBox, 'seal' | 'open'>
  readonly #background: Background
  readonly #clock: Clock
  /** Of workspaces, while one more is counted. */
  readonly #lock = new KeyedLock()
  /** How many are asked for and not captured, by sandbox. */
  readonly #asked = new Map<string, number>()
  /** Those that are captured and not completed, by id. */
  readonly #completing = new Map<string, Promise<StoredSnapshot>>()

  constructor(options: {
    records: SnapshotRecords
    files: SnapshotFiles
    sandboxes: Sandboxes
    instances: Instances
    secrets: Pick<SecretBox, 'seal' | 'open'>
    background: Background
    clock: Clock
  }) {
    this.#records = options.records
    this.#files = options.files
    this.#sandboxes = options.sandboxes
    this.#instances = options.instances
    this.#secrets = options.secrets
    this.#background = options.background
    this.#clock = options.clock
  }

  /** As `Snapshots.create`. */
  async take(workspace: string, sandboxName: string, given: Wanted): Promise<StoredSnapshot> {
    this.#instances.snapshots.check()
    const wanted = given.name === undefined ? given : { ...given, name: checkName(given.name) }
    const taking: Taking = { snapshot: null, told: false, memory: null }
    // Whatever there is to refuse need not wait for its turn.
    await this.#sandboxes.get(workspace, sandboxName)
    // Its own turn first: who waits for a sandbox that is busy keeps nobody else from a snapshot.
    const taken = this.#awaited(workspace, sandboxName, () =>
      this.#sandboxes.whileExists(workspace, sandboxName, (sandbox) =>
        this.#instances.snapshots.inTurn(() => this.#capture(sandbox, wanted, taking)),
      ),
    ).then((captured) => this.#complete(captured, taking))
    this.#background.run(taken)
    const stop = new AbortController()
    const late = this.#clock.sleep(snapshotAnswerMsMax, stop.signal).then(
      () => {
        // Without a record there is nothing to tell of yet.
        if (taking.snapshot === null) return taken
        taking.told = true
        return taking.snapshot
      },
      () => taken,
    )
    try {
      return await Promise.race([taken, late])
    } finally {
      stop.abort()
    }
  }

  /** @throws too_many_requests */
  async #awaited<Result>(workspace: string, name: string, work: () => Promise<Result>): Promise<Result> {
    const key = `${workspace}/${name}`
    const others = this.#asked.get(key) ?? 0
    if (others >= askedMax) {
      throw new PlatformError(
        'too_many_requests',
        `${askedMax} snapshots of the sandbox "${name}" are asked for already: try again in a second`,
        { retryAfterSeconds: 1 },
      )
    }
    this.#asked.set(key, others + 1)
    try {
      return await work()
    } finally {
      const left = (this.#asked.get(key) ?? 1) - 1
      if (left === 0) this.#asked.delete(key)
      else this.#asked.set(key, left)
    }
  }

  /** Resolves when it is not on its way any more. */
  async over(id: string): Promise<void> {
    await this.#completing.get(id)?.catch(() => {})
  }

  /** For who keeps the sandbox from being changed. Answers when its files are copied and it goes on. */
  async #capture(sandbox: StoredSandbox, wanted: Wanted, taking: Taking): Promise<StoredSnapshot> {
    const { status, instanceId } = sandbox.body
    if ((status !== 'DEPLOYED' && status !== 'ARCHIVED') || instanceId === null) {
      throw new PlatformError(
        'conflict',
        `no snapshot of the sandbox "${sandbox.name}" can be taken now, its status is ${status}`,
      )
    }
    return await this.#sandboxes.whilePaused(sandbox, async (starts, records) => {
      const snapshot = await this.#record(sandbox, instanceId, { starts, records }, wanted)
      taking.snapshot = snapshot
      try {
        const signal = this.#background.closing
        const id = runtimeIdOf(snapshot.body.id)
        taking.memory = await this.#instances.snapshots.capture(instanceId, id, signal)
        return snapshot
      } catch (error) {
        await this.#giveUp(snapshot, error, taking)
        throw error
      }
    })
  }

  async #complete(snapshot: StoredSnapshot, taking: Taking): Promise<StoredSnapshot> {
    const { id } = snapshot.body
    const completing = this.#completed(snapshot, taking)
    this.#completing.set(id, completing)
    try {
      const ready = await completing
      await this.#note(ready, taking.memory)
      return ready
    } finally {
      this.#completing.delete(id)
    }
  }

  async #completed(snapshot: StoredSnapshot, taking: Taking): Promise<StoredSnapshot> {
    try {
      const bytes = await this.#instances.snapshots.complete(runtimeIdOf(snapshot.body.id))
      const { memory } = taking
      const ready = await this.#records.change(snapshot, {
        status: 'ready',
        bytes,
        ...(memory === null ? {} : { memoryKept: memory.kept }),
      })
      if (ready) return ready
      throw new PlatformError('conflict', `the snapshot ${shown(snapshot)} was deleted meanwhile`)
    } catch (error) {
      await this.#giveUp(snapshot, error, taking)
      throw error
    }
  }

  /** Whoever was told of it finds it failed; who was not is told now, and nothing is left. */
  async #giveUp(snapshot: StoredSnapshot, error: unknown, { told }: Taking): Promise<void> {
    // The next start knows what to do about it.
    if (this.#background.closing.aborted) return
    const reason = PlatformError.is(error) ? error.message : 'an internal error'
    if (told) await this.#records.change(snapshot, { status: 'failed', reason })
    else await this.#records.remove(snapshot)
    await this.#files.remove(snapshot.body.id)
  }

  /** Its record, pending: what is going to be there is known before it is. */
  async #record(
    sandbox: StoredSandbox,
    instanceId: string,
    ran: Required<Pick<SnapshotSecrets, 'starts' | 'records'>>,
    wanted: Wanted,
  ): Promise<StoredSnapshot> {
    const { workspace } = sandbox
    const machine = this.#instances.specOf(instanceId)
    if (machine === null) throw new PlatformError('conflict', `the sandbox "${sandbox.name}" has no files`)
    const { env, proxySecrets } = this.#sandboxes.draftOf(sandbox)
    const now = this.#clock.now()
    const id = snapshotId(sortableId(now))
    const secrets: SnapshotSecrets = { env, proxySecrets, machineEnv: machine.env, ...ran }
    const { image, workingDir, user, program, programAsRoot, programPort } = machine
    const body: SnapshotBody = {
      id,
      name: wanted.name ?? `${wanted.implicit || wanted.taker ? 'fork' : 'snapshot'}-${randomText(10)}`,
      source: { name: sandbox.name, uid: sandbox.body.uid, instanceId },
      createdBy: wanted.actor,
      status: 'pending',
      ...(wanted.implicit ? { implicit: true } : {}),
      ...(wanted.taker === undefined ? {} : { taker: wanted.taker }),
      spec: inheritedSpec(sandbox.body.spec),
      machine: { image, workingDir, ...defined({ user, program, programAsRoot, programPort }) },
      sealed: this.#secrets.seal(JSON.stringify(secrets), secretsPurpose(id)),
    }
    return await this.#lock.run(workspace, async () => {
      await this.#admit(workspace, body)
      const recorded = await this.#records.create(workspace, body, now)
      this.#files.keep(workspace, body)
      return recorded
    })
  }

  /** @throws already_exists, usage_limit_exceeded */
  async #admit(workspace: string, { name, source, implicit }: SnapshotBody): Promise<void> {
    const others = await this.#records.ofSandbox(workspace, source.uid)
    if (others.some((other) => other.body.name === name)) {
      throw new PlatformError(
        'already_exists',
        `the sandbox "${source.name}" has a snapshot ${JSON.stringify(name)} already`,
      )
    }
    if (implicit) return
    if (others.filter((other) => !other.body.implicit).length >= snapshotsPerSandboxMax) {
      throw new PlatformError(
        'usage_limit_exceeded',
        `the sandbox "${source.name}" has ${snapshotsPerSandboxMax} snapshots, the most there can be: delete one first`,
      )
    }
    if ((await this.#records.count(workspace)) >= snapshotsPerWorkspaceMax) {
      throw new PlatformError(
        'usage_limit_exceeded',
        `this workspace has ${snapshotsPerWorkspaceMax} snapshots, the most there can be: delete one first`,
      )
    }
  }

  async #note({ workspace, body }: StoredSnapshot, memory: MemoryKept | null): Promise<void> {
    const found = await this.#sandboxes.get(workspace, body.source.name).catch(() => null)
    if (found?.body.uid !== body.source.uid) return
    const message = `Snapshot ${JSON.stringify(body.name)} (${body.id}) taken, ${sizeText(body.bytes ?? 0)}${memoryNote(memory)}`
    await this.#sandboxes.note(found, { type: 'snapshot', message })
  }
}

function sizeText(bytes: number): string {
  return `${Math.ceil(bytes / 1024 ** 2)} MB`
}

function memoryNote(memory: MemoryKept | null): string {
  if (memory === null) return ''
  return memory.kept ? ', with memory' : `; programs will be started anew: ${memory.reason}`
}

function checkName(given: string): string {
  const name = checkText('name', given, snapshotNameCharsMax)
  if (name.trim() !== name || name === '') {
    throw badRequest('name: leave it out, or write one without spaces around it')
  }
  if (isSnapshotId(name)) throw badRequest('name: begins as the ids of snapshots do; use another')
  return name
}
