import type { NewInstance } from '../../instances/index.ts'
import { defined } from '../../lib/defined.ts'
import type { Resource, ResourceKey } from '../../spec/store.ts'
import type { SandboxDraft, SandboxSeed } from '../draft.ts'
import type { ProcessRecord, ProcessStart } from '../processes.ts'
import type { SandboxSpec } from '../record.ts'

export const snapshotKind = 'snapshot'
const idPrefix = 'snap_'

/** How a snapshot rests in the store, under its name and id, so that lists can be sorted by name. */
export interface SnapshotBody {
  id: string
  name: string
  source: {
    name: string
    /** Of this one sandbox: a later one of the same name is another. */
    uid: string
    instanceId: string
  }
  createdBy: string
  status: 'pending' | 'ready' | 'failed'
  /** On the disk of the host. */
  bytes?: number
  /** Memory of its programs is in it, too; absent where nothing ran, or while it is pending. */
  memoryKept?: boolean
  /** Why it failed. */
  reason?: string
  /** Taken for a fork that asked for none: only the newest of a sandbox are kept, and go with it. */
  implicit?: true
  /** Taken for a deployment that stands on it, and goes when that is done with it. */
  taker?: string
  /** What a sandbox that is made from it gets of the one that it was taken of. */
  spec: SandboxSpec
  /** What the files stand on, and the image's program and user. */
  machine: Pick<NewInstance, 'image' | 'workingDir' | 'user' | 'program' | 'programAsRoot' | 'programPort'>
  /** A `SnapshotSecrets`. */
  sealed: string
}

export interface SnapshotSecrets {
  env: Record<string, string>
  proxySecrets: SandboxDraft['proxySecrets']
  /** Of the machine: also what its image says. */
  machineEnv: Record<string, string>
  /** What ran. */
  starts: ProcessStart[]
  /** What was known of that, and of what had ended: for a machine in which it goes on. Absent in older ones. */
  records?: ProcessRecord[]
}

export type StoredSnapshot = Resource<SnapshotBody>

/** `runtimeId` is what the runtime calls a snapshot: an id of [a-z0-9]. */
export function snapshotId(runtimeId: string): string {
  return `${idPrefix}${runtimeId}`
}

export function runtimeIdOf(id: string): string {
  return id.slice(idPrefix.length)
}

/** Names do not look like this, so that either can be asked for. */
export function isSnapshotId(text: string): boolean {
  return text.startsWith(idPrefix)
}

export function snapshotKey(workspace: string, { name, id }: { name: string; id: string }): ResourceKey {
  return { kind: snapshotKind, workspace, name: `${name} ${id}` }
}

export function indexesOf(body: SnapshotBody): Record<string, string> {
  return { id: body.id, name: body.name, source: body.source.uid }
}

export function secretsPurpose(id: string): string {
  return `snapshot:${id}`
}

/** Those parts of a spec that are about the machine, and hold wherever its files go. */
export function machineSpec(spec: SandboxSpec): SandboxSpec {
  const { image, memoryMb, storageMb, ports, envs, generation, extraArgs, terminationGracePeriodSeconds } =
    spec
  return {
    image,
    memoryMb,
    envs,
    ...defined({ storageMb, ports, generation, extraArgs, terminationGracePeriodSeconds }),
  }
}

/** What a fork gets besides: how long a sandbox lives is its own affair, where and behind what it runs is not. */
export function inheritedSpec(spec: SandboxSpec): SandboxSpec {
  const { region, vpc, network } = spec
  return { ...machineSpec(spec), ...defined({ region, vpc, network }) }
}

export function seedOf(
  { body }: StoredSnapshot,
  { machineEnv, starts, records = [] }: SnapshotSecrets,
): SandboxSeed {
  const { image, workingDir, user = '', program = [], programAsRoot, programPort } = body.machine
  return {
    snapshotId: runtimeIdOf(body.id),
    hostname: body.source.name,
    starts,
    records,
    image: {
      reference: body.spec.image,
      root: image,
      env: machineEnv,
      workingDir,
      user,
      entrypoint: program,
      command: [],
      ...(programAsRoot ? { programAsRoot } : {}),
      ...(programPort === undefined ? {} : { programPort }),
      ports: [],
      // Held by the record of the snapshot, which whoever uses it keeps from being removed.
      [Symbol.dispose]() {},
    },
  }
}

/** For people. */
export function shown({ body }: StoredSnapshot): string {
  return `${JSON.stringify(body.name)} (${body.id})`
}
