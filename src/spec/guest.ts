/** The guest seam: what one can do inside an instance, with its programs and its files. */

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
  /**
   * Resolves when the bytes are accepted, behind those before them. Who gives up by the signal takes back what was not
   * on its way to the process yet. @throws conflict when stdin was not opened or is closed, the signal's reason
   */
  writeStdin(id: number, data: Uint8Array, signal?: AbortSignal): Promise<void>
  /** Behind what is being written. @throws as `writeStdin` */
  closeStdin(id: number, signal?: AbortSignal): Promise<void>
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
  /** Of output whose beginning is gone only so much of the end, from the start of a line. */
  lastBytes?: number
  signal?: AbortSignal
}

export interface ConcatenateOptions {
  mode?: number
  newFileMode?: number
  spend?: boolean
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
  /**
   * Writes a whole file, as `write` does, of what other regular files have in them, one behind the other. Their bytes
   * stay inside. With `spend` each is removed once it was added, so that no more room is taken than for one of them: what
   * fails then leaves those that it had not come to.
   */
  concatenate(parts: readonly string[], path: string, options?: ConcatenateOptions): Promise<FileEntry>
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
   * removed, or when it is aborted or returned. @throws too_many_requests beyond watchesMax at once, or what the host has
   * for a sandbox
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

/**
 * Each is a process of some 0.15 MiB, and one of the 128 inotify instances that a user of Linux has as a rule: as many are
 * left for the sandbox's own programs.
 */
export const watchesMax = 64

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
