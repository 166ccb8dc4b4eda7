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
 * Files of instances as they were at one moment. A snapshot outlives the instance it is of; `create` makes instances
 * from it. Memory and processes are not in it. Ids are chosen by the caller: [a-z0-9]{12,40}.
 */
export interface RuntimeSnapshots {
  /**
   * Copies the files of an instance that stands still meanwhile, which the caller sees to: it is frozen, has been
   * stopped or is packed, and stays so. When it rejects, nothing is left of the snapshot.
   * @throws not_found when the instance has left nothing, conflict when it is not still, insufficient_storage
   */
  capture(instanceId: string, snapshotId: string, signal?: AbortSignal): Promise<void>
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
  /** Working directory of processes and of relative paths. Made when missing. */
  workingDir: string
  /** For `create`: its files are those of this snapshot, which was taken on the same image. */
  snapshotId?: string
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

  /** Where requests to a port inside go. Opens the way if need be; says nothing of whether anyone listens. */
  address(port: number): Promise<PortAddress>

  /** Is there a listener on this port now? */
  listening(port: number): Promise<boolean>

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
}

export interface InstanceStats {
  memoryBytes: number
  cpuMs: number
  processes: number
  diskBytes: number | null
}

export interface InstanceExit {
  reason: 'stopped' | 'exited' | 'killed' | 'out_of_memory' | 'lost'
  exitCode: number | null
  signal: number | null
}

/** The program that is process 1 inside, as TypeScript sees it. Everything runs with the sandbox's own credentials. */
export interface Guest {
  readonly processes: GuestProcesses
  readonly files: GuestFiles
  /**
   * From now on everything that is asked here is done as this user, unless a request names another. Before: as root.
   * Absent where programs cannot be anybody else.
   */
  actAs?(identity: Identity): void
}

/** Ids as they are inside. */
export interface Identity {
  uid: number
  gid: number
}

export interface GuestProcesses {
  /**
   * Starts a program. `id` is chosen by the caller, unique in this instance, 1..2^31.
   * @throws unprocessable when it cannot be started (public message says why)
   */
  spawn(spec: SpawnSpec): Promise<{ pid: number; startedAt: number }>
  /** @throws not_found when it no longer runs */
  signal(id: number, signal: number, scope: 'process' | 'group' | 'tree'): Promise<void>
  /** What runs and what ended and was not forgotten yet. */
  list(): Promise<GuestProcess[]>
  /** Drops the record and the output of an ended process. Idempotent. */
  forget(id: number): Promise<void>
  /** Resolves when the process ended and its output up to then is readable. */
  wait(id: number, signal?: AbortSignal): Promise<GuestProcess>
  /** Called for every exit, also those that happened while nobody was connected. Returns the undo. */
  onExit(listener: (process: GuestProcess) => void): () => void
  /** Resolves when the bytes are accepted. @throws conflict when stdin was not opened or is closed */
  writeStdin(id: number, data: Uint8Array): Promise<void>
  closeStdin(id: number): Promise<void>
  resize(id: number, cols: number, rows: number): Promise<void>
  /** Everything that a process started, however far it went and though the process itself has ended, and its sockets. */
  descent(id: number): Promise<ProcessDescent>
  /**
   * Output in order. From `fromOffset` (0: the oldest kept). Without `follow` ends at what is there; with it, at the
   * end of output. A follower that is slow slows the process down rather than miss output. A first record of kind
   * 'truncated' says that older output is gone.
   */
  output(id: number, options?: OutputOptions): AsyncIterable<OutputRecord[]>
}

export interface SpawnSpec {
  id: number
  argv: string[]
  /** Complete: nothing is added. */
  env: Record<string, string>
  workingDir: string
  stdin: 'null' | 'pipe'
  /** Present: a pseudo terminal carries stdin, stdout and stderr. */
  pty?: { cols: number; rows: number }
  /** Output kept on disk; older output goes first. Default outputBytesMaxDefault. */
  outputBytesMax?: number
  uid?: number
  gid?: number
}

export const outputBytesMaxDefault = 32 * 1024 * 1024

export interface GuestProcess {
  id: number
  pid: number
  running: boolean
  startedAt: number
  endedAt: number | null
  exitCode: number | null
  /** Number of the signal that ended it. */
  signal: number | null
}

export interface OutputOptions {
  fromOffset?: number
  follow?: boolean
  /** The data of a batch is needed no longer than until the next one is asked for: its memory may be used again. */
  reuseMemory?: boolean
  signal?: AbortSignal
}

export interface ProcessDescent {
  /** How many of them live, the process itself included. */
  living: number
  sockets: ProcessSocket[]
}

/** An internet socket that a process has open. */
export interface ProcessSocket {
  pid: number
  processName: string
  protocol: 'tcp' | 'udp'
  /** As netstat calls it: LISTEN, ESTABLISHED, ... */
  state: string
  localAddress: string
  localPort: number
  /** Of one that is not connected 0, and an address of zeros. */
  remoteAddress: string
  remotePort: number
}

export interface OutputRecord {
  kind: 'stdout' | 'stderr' | 'truncated'
  /** Milliseconds since the epoch, by the guest's clock. */
  at: number
  /** Offset just behind this record: give it as `fromOffset` to go on. */
  endOffset: number
  data: Uint8Array
}

export type FileType = 'file' | 'directory' | 'symlink' | 'fifo' | 'socket' | 'character' | 'block'

export interface FileEntry {
  name: string
  type: FileType
  /** Permission bits, 0..07777. */
  mode: number
  uid: number
  gid: number
  size: number
  modifiedMs: number
  links: number
  linkTarget?: string
}

/**
 * A regular file of an instance, open for reading. Programs inside may still change it, and its size. Whoever gets it
 * disposes it once nothing reads the descriptor any more, soon after it is `revoked`: the instance is gone then, but for
 * what holds its disk.
 */
export interface OpenFile extends Disposable {
  readonly descriptor: number
  /** Of the file when it was opened. */
  readonly bytes: number
  readonly revoked: boolean
}

/**
 * Files inside, by absolute path. Errors are PlatformErrors: not_found, already_exists, conflict (not empty, is a
 * directory, not a directory), forbidden, insufficient_storage, bad_request (NUL in a path, too long),
 * unprocessable otherwise; `details.errno` names the errno ('ENOENT').
 */
export interface GuestFiles {
  /** `follow: false`: of the link itself. */
  stat(path: string, options?: { follow?: boolean }): Promise<FileEntry>
  /** In the directory's order, in batches. */
  list(path: string): AsyncIterable<FileEntry[]>
  /**
   * A regular file's bytes. The stream's backpressure reaches the guest; cancelling it stops the read. Nobody else
   * holds its chunks: whoever reads them may free them, in their order.
   */
  read(
    path: string,
    range?: { offset?: number; length?: number },
  ): Promise<{ entry: FileEntry; body: ReadableStream<Uint8Array> }>
  /**
   * `read` of a whole file for a server to send: as the file itself, open in this process, where that is better than
   * its bytes. Absent where files cannot be handed over.
   */
  open?(
    path: string,
  ): Promise<{ entry: FileEntry; file: OpenFile } | { entry: FileEntry; body: ReadableStream<Uint8Array> }>
  /**
   * Writes a whole file: readers see the old content or the new, never a part; on any failure (also a full disk or
   * an aborted body) the old file stays. Parents are made (0755). An existing file keeps its mode and owner unless
   * `mode` is given; `newFileMode` is for a new file only. Writes through symbolic links. A stream is asked for more
   * only once what it gave is not needed any longer.
   */
  write(
    path: string,
    body: ReadableStream<Uint8Array> | Uint8Array,
    options?: { mode?: number; newFileMode?: number },
  ): Promise<FileEntry>
  makeDirectory(path: string, options?: { mode?: number; parents?: boolean }): Promise<void>
  /** @throws conflict for a directory that is not empty, unless recursive */
  remove(path: string, options?: { recursive?: boolean }): Promise<void>
  rename(from: string, to: string): Promise<void>
  setMode(path: string, mode: number): Promise<void>
  /** The absolute path with every link resolved. */
  realPath(path: string): Promise<string>

  /**
   * Writes many files, each as `write` does, in one go: much faster than one by one. Stops at the first that cannot be
   * written, whose error it throws; those before it are written.
   */
  writeAll(files: readonly FileToWrite[]): Promise<void>
  /**
   * Everything below a directory, by relative path: level by level, each directory in the order of its names (by byte).
   * Links are not followed; /proc and the like are left out unless the walk begins in one. Aborting stops it.
   */
  walk(path: string, options?: WalkOptions): AsyncGenerator<FileEntry[], TreeSummary>
  /**
   * The lines of files that match, in no particular order, each line once. `path` may be a file; its matches then have
   * the path ''. @throws bad_request for a pattern or glob that means nothing, saying why
   */
  search(path: string, options: SearchOptions): AsyncGenerator<LineMatch[], TreeSummary>
  /**
   * What changes in a directory. Resolves once nothing that happens from then on is missed; ends when the directory is
   * removed, or when it is aborted or returned. At most watchesMax at once. @throws too_many_requests
   */
  watch(path: string, options?: WatchOptions): Promise<AsyncGenerator<FileChange[]>>
  /**
   * Copies a file, a link or a whole tree to exactly `to`; a directory that is there already is merged into. Files
   * appear whole. @throws already_exists with `exclusive`, unprocessable for a directory into itself
   */
  copy(
    from: string,
    to: string,
    options?: { exclusive?: boolean; signal?: AbortSignal },
  ): Promise<TreeSummary>
  /** As `rename`, also across file systems, where it copies, with owners and times, and then removes. */
  move(from: string, to: string, options?: { exclusive?: boolean; signal?: AbortSignal }): Promise<void>
  /** `follow: false`: of the link itself. */
  setOwner(path: string, owner: { uid?: number; gid?: number }, options?: { follow?: boolean }): Promise<void>
}

export const watchesMax = 16

export interface FileToWrite {
  path: string
  data: Uint8Array
  mode?: number
  newFileMode?: number
}

/**
 * Which entries of a tree. Globs are of paths relative to its root: one without a slash is about the last name, at any
 * depth; `*`, `?`, `[a-z]`, `{a,b}`, `**`.
 */
export interface TreeFilter {
  /** Without any, everything. */
  include?: readonly string[]
  /** Neither these nor what is below them. */
  exclude?: readonly string[]
  /** As `exclude`, of directories only. */
  excludeDirectories?: readonly string[]
  /** Names that begin with a dot are left out. */
  excludeHidden?: boolean
}

export interface WalkOptions extends TreeFilter {
  types?: 'all' | 'files' | 'directories'
  /** 1: only what is in the directory itself. */
  depthMax?: number
  resultsMax?: number
  /** False: names and types only, which is several times faster; the numbers are 0 then. Default true. */
  details?: boolean
  signal?: AbortSignal
}

export interface TreeSummary {
  /** Entries looked at, files searched, or files copied. */
  entries: number
  /** Bytes read or copied. */
  bytes: number
  /** What could not be looked at. */
  skipped: number
  /** There is more than was told. */
  truncated: boolean
}

export interface SearchOptions extends TreeFilter {
  /** A text, or a regular expression as ripgrep has them, of at most 4096 characters; within one line. */
  pattern: string
  syntax: 'literal' | 'regex'
  ignoreCase?: boolean
  resultsMax?: number
  /** Lines before and after, as far as 16 KiB go. */
  contextBefore?: number
  contextAfter?: number
  /** Also files with NUL bytes. */
  binary?: boolean
  signal?: AbortSignal
}

export interface LineMatch {
  path: string
  /** From 1. */
  line: number
  /** In bytes, from 1, of the first match in the line. */
  column: number
  /** Bytes of that match. */
  length: number
  /** The line, cut to 16 KiB. */
  text: string
  before: string[]
  after: string[]
}

export interface WatchOptions {
  recursive?: boolean
  /** Texts that an absolute path contains, or globs of absolute paths. */
  ignore?: readonly string[]
  signal?: AbortSignal
}

export interface FileChange {
  /** 'renamed': away from this path. 'lost': more happened than could be told; what is there now was looked at again. */
  kind: 'created' | 'written' | 'removed' | 'renamed' | 'attributes' | 'lost'
  directory: boolean
  /** Relative to what is watched, '' for itself. */
  path: string
}
