import type { Guest } from './guest.ts'
/**
 * The runtime seam: machines ("instances") and what one can do with them. The only user is `instances/`.
 *
 * Who owns what: a runtime owns everything under an instance's directory, its cgroups, mounts and processes. The
 * caller owns the decision when an instance lives. Handles are plain JSON, versioned, and mean something only to
 * the driver that made them.
 */
export interface Runtime extends AsyncDisposable {
  readonly name: 'namespace' | 'process' | 'fake' | (string & {})
  readonly capabilities: RuntimeCapabilities

  /**
   * Makes and starts an instance. When it rejects, nothing is left: no process, mount, cgroup or directory.
   * @throws bad_request (spec cannot be honoured), unavailable (host out of something), insufficient_storage, not_found
   * (its snapshot)
   */
  create(spec: InstanceSpec): Promise<Instance>

  /** The running instance behind a handle, or null when it no longer runs. Idempotent. */
  recover(handle: InstanceHandle): Promise<Instance | null>

  /** Starts again, from its files, an instance that was stopped. @throws not_found when its files are gone */
  restart(spec: InstanceSpec): Promise<Instance>

  /**
   * Ends an instance and packs its files into an archive in their place; answers its bytes. When it rejects, also
   * because it was aborted, the files are as they were and `restart` starts it. Absent where it cannot be done.
   * Idempotent.
   */
  pack?(instanceId: string, signal?: AbortSignal): Promise<number>

  /**
   * Puts the files of a packed instance back, for `restart`. When it rejects, they stay packed. Idempotent.
   * @throws not_found when it has left nothing
   */
  unpack?(instanceId: string, signal?: AbortSignal): Promise<void>

  /** Copies of the files of instances, kept apart from them. Present when capabilities.snapshots. */
  readonly snapshots?: RuntimeSnapshots

  /** Removes every trace of an instance, running or not. Idempotent: also after a half-done create. */
  destroy(instanceId: string): Promise<void>

  /** Ids of all instances that left something on this host, running or not: to find orphans. */
  list(): Promise<string[]>
}

/**
 * Files of instances as they were at one moment, and where `capabilities.memory` the memory of their programs at that
 * moment. A snapshot outlives the instance it is of; `create` makes instances from it. Ids are chosen by the caller:
 * [a-z0-9]{12,40}.
 */
export interface RuntimeSnapshots {
  /**
   * Copies the files of an instance that stands still meanwhile, which the caller sees to: it is frozen, has been
   * stopped or is packed, and stays so. When it rejects, nothing is left of the snapshot. Memory that cannot be kept does
   * not keep files from being: the answer says why. Null: nothing ran.
   * @throws not_found when the instance has left nothing, conflict when it is not still, insufficient_storage
   */
  capture(instanceId: string, snapshotId: string, signal?: AbortSignal): Promise<MemoryKept | null>
  /**
   * Makes what was captured sound and durable; answers its bytes. Before that it is no snapshot: nothing can be made
   * from it. Idempotent. @throws not_found
   */
  complete(snapshotId: string, signal?: AbortSignal): Promise<number>
  /** Removes a snapshot, or what there is of it. Idempotent. */
  remove(snapshotId: string): Promise<void>
  /** Ids of all that left something on this host, complete or not. */
  list(): Promise<string[]>
}

/** Of programs; where it is not kept, why, for people. */
export type MemoryKept = { kept: true } | { kept: false; reason: string }

export interface RuntimeCapabilities {
  isolation: 'kernel-shared' | 'virtual-machine' | 'none'
  /** Each limit: how it is enforced, 'none' when it is not. */
  limits: { memory: string; cpu: string; pids: string; disk: string }
  /** 'freeze' keeps memory and stops CPU; 'signal' stops processes one by one; 'none'. */
  standby: 'freeze' | 'signal' | 'none'
  /** Memory of a frozen instance can be given back to the host. */
  reclaim: boolean
  /** Files of instances can be packed: `pack` and `unpack` are there. */
  archive: boolean
  /** Files of instances can be copied as they are at one moment: `snapshots` is there. */
  snapshots: boolean
  /** Snapshots have the memory of programs too, which go on in instances that are made from them. */
  memory: boolean
  /** Root inside can be given mounts of its own: `InstanceSpec.ownMounts`. */
  ownMounts: boolean
  /** Connections to the outside: each decided on by `Egress`, made by the host without anyone's word, or none at all. */
  network: 'relay' | 'host' | 'none'
  /** Instances outlive the process that made them. */
  survivesRestart: boolean
  /** For people: what is missing on this host, why, and what to do about it. */
  notes: CapabilityNote[]
}

export interface CapabilityNote {
  /** e.g. 'cgroup', 'user namespace', 'disk limit' */
  subject: string
  ok: boolean
  detail: string
  /** The next thing to do, when not ok. */
  remedy?: string
}

/** What a driver says before it is opened; `hutch up` refuses a driver that is not usable, with `reason`. */
export interface RuntimeProbe {
  usable: boolean
  reason: string
  notes: CapabilityNote[]
}

export interface InstanceSpec {
  /** [a-z0-9]{12,40}: chosen by the caller, unique on this host. */
  id: string
  hostname: string
  image: RootFilesystem
  /** MiB. CPU share follows: memoryMb / 2048 cores. */
  memoryMb: number
  /** MiB of disk for everything the instance writes. */
  storageMb: number
  pidsMax: number
  /** What a process started with no environment of its own gets. */
  env: Record<string, string>
  /** Nothing of the platform listens inside on the port of a sandbox's own API: it is free for programs. */
  withoutApi?: boolean
  /** Working directory of processes and of relative paths. Made when missing. */
  workingDir: string
  /**
   * Root inside may mount, in a namespace of its own, for tools that build images: where the plain disk of the instance is
   * mounted for that. What it is given read-only it cannot make writable.
   */
  ownMounts?: string
  /** For `create`: its files are those of this snapshot, which was taken on the same image. */
  snapshotId?: string
  /** With `snapshotId`: programs whose memory is in it go on, as the very processes that they were. */
  withMemory?: true
  signal?: AbortSignal
}

/** An image made ready on this host: read-only layers, topmost first. */
export interface RootFilesystem {
  /** Content address, `sha256:...`. */
  digest: string
  /** Directories of this host. The driver stacks them read-only under the instance's own writable layer. */
  layers: string[]
  mounts: RootMount[]
}

/** A read-only host directory (or file) that gets a writable overlay (`overlay`) or is plainly bound (`bind`). */
export interface RootMount {
  source: string
  target: string
  kind: 'overlay' | 'bind'
  /** Of an overlay: a layer above the source, which hides what stands whited out there. */
  mask?: string
}

export interface InstanceHandle {
  driver: string
  version: number
  id: string
  state: unknown
}

export interface Instance extends AsyncDisposable {
  readonly id: string
  readonly handle: InstanceHandle
  readonly guest: Guest
  /** Of one that was just made `withMemory`: whether programs of its snapshot go on in it. */
  readonly memory?: MemoryKept

  /** Where requests to a port inside go. Opens the way if need be, at once where it is open; says nothing of whether anyone listens. */
  address(port: number): PortAddress | Promise<PortAddress>

  /** Is there a listener on this port now? */
  listening(port: number): Promise<boolean>

  /** Where a connection goes that is made as a program inside makes one, to an address of 4 or 16 bytes. */
  wayOut(address: Uint8Array, port: number): PortAddress

  /**
   * Present when capabilities.standby is not 'none'. Both idempotent. An aborted freeze rejects with the signal's
   * reason, thawed again. Whoever talks to the guest of a frozen instance waits until it is thawed.
   */
  freeze?(signal?: AbortSignal): Promise<void>
  thaw?(): Promise<void>
  /** Frozen now, also by an earlier life of the platform: `recover` leaves it so. Absent: it cannot be. */
  readonly frozen?: boolean
  /**
   * Gives memory of a frozen instance back to the host; answers bytes. Present when capabilities.reclaim. May be thawed
   * meanwhile; aborted, it rejects soon, with what was given back so far gone.
   */
  reclaim?(signal?: AbortSignal): Promise<number>

  stats(): Promise<InstanceStats>

  /** Ends every process, keeps the files. Idempotent. */
  stop(): Promise<void>

  /** Resolves once, when process 1 ended for whatever reason. */
  readonly exited: Promise<InstanceExit>

  /** Lets go of channels and descriptors; the machine goes on running. */
  [Symbol.asyncDispose](): Promise<void>
}

/** `unix`: a socket path for `fetch(url, { unix })`; without it, `origin` is dialled directly. */
export interface PortAddress {
  origin: string
  unix?: string
  /**
   * Where there is a shorter way than these: a socket that is connected to the port, by its descriptor, which is the caller's.
   * Null: not now. @throws when nothing accepts connections there
   */
  connect?(): Promise<number | null>
}

export interface InstanceStats {
  memoryBytes: number
  cpuMs: number
  processes: number
  /** Programs that the kernel ended for want of memory, so far; absent where nobody counts. */
  oomKills?: number
  diskBytes: number | null
  /** It takes no writes until the machine is started again: the host had no room for what had to be written. */
  diskClosed?: boolean
}

export interface InstanceExit {
  reason: 'stopped' | 'exited' | 'killed' | 'out_of_memory' | 'lost'
  exitCode: number | null
  signal: number | null
}
