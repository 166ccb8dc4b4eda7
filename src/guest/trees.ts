import { PlatformError } from '../errors.ts'
import { compiled, compileGlobs, compileIgnored, compileLinePattern } from '../lib/patterns/index.ts'
import {
  type FileChange,
  type FileEntry,
  type LineMatch,
  type SearchOptions,
  type TreeFilter,
  type TreeSummary,
  type WalkOptions,
  type WatchOptions,
  watchesMax,
} from '../spec/guest.ts'
import { checkPath, fileEntry, frame } from './file-requests.ts'
import type { FilesPool, Operation } from './files-pool.ts'
import { FrameType, type FrameWriter } from './frame.ts'
import { putLinePattern, putProgram, readChanges, readFound, readMatches, readSummary } from './tree-codec.ts'

/** Of a tree may come nothing for long, when nothing in it belongs to the result. */
const treeTimeoutMs = 600_000
const requestBytesMax = 512 * 1024
const countMax = 0xffff_ffff
const contextLinesMax = 1000

const flag = { skipHidden: 1, details: 2, files: 4, directories: 8, exact: 16, binary: 32 }
const copyFlag = { exclusive: 1, attributes: 2 }

/** Operations on whole directory trees, each one request to a worker in the sandbox. */
export class Trees {
  constructor(private readonly pool: FilesPool) {}

  walk(path: string, options: WalkOptions = {}): AsyncGenerator<FileEntry[], TreeSummary> {
    const { types = 'all', details = true, depthMax = 0, resultsMax = countMax, signal } = options
    const flags =
      (details ? flag.details : 0) |
      (types === 'directories' ? 0 : flag.files) |
      (types === 'files' ? 0 : flag.directories)
    const request = treeRequest(FrameType.walk, path, (writer) => {
      writer
        .u8(flags | filterFlags(options))
        .u32(count(depthMax, 'depthMax'))
        .u32(count(resultsMax, 'resultsMax'))
      return putFilter(writer.str(path), options)
    })
    return this.#stream(
      path,
      request,
      FrameType.found,
      (payload) => readFound(payload).map(fileEntry),
      signal,
    )
  }

  search(path: string, options: SearchOptions): AsyncGenerator<LineMatch[], TreeSummary> {
    const { resultsMax = countMax, contextBefore = 0, contextAfter = 0, signal } = options
    const pattern = compiled('pattern', () =>
      compileLinePattern(options.pattern, {
        syntax: options.syntax,
        ignoreCase: options.ignoreCase ?? false,
      }),
    )
    const flags = filterFlags(options) | (pattern.exact ? flag.exact : 0) | (options.binary ? flag.binary : 0)
    const request = treeRequest(FrameType.search, path, (writer) => {
      writer
        .u8(flags)
        .u32(count(resultsMax, 'resultsMax'))
        .u32(count(contextBefore, 'contextBefore', contextLinesMax))
        .u32(count(contextAfter, 'contextAfter', contextLinesMax))
      return putLinePattern(putFilter(writer.str(path), options), pattern)
    })
    return this.#stream(path, request, FrameType.matches, readMatches, signal)
  }

  async watch(path: string, options: WatchOptions = {}): Promise<AsyncGenerator<FileChange[]>> {
    const request = treeRequest(FrameType.watch, path, (writer) =>
      putProgram(
        writer.u8(options.recursive ? 1 : 0).str(path),
        compiled('ignore', () => compileIgnored(options.ignore ?? [])),
      ),
    )
    options.signal?.throwIfAborted()
    const operation = await this.pool.startApart(path, { atOnceMax: watchesMax, what: 'watches' })
    const stop = cancelOn(options.signal, operation)
    try {
      operation.send(request)
      operation.expect(await operation.next(treeTimeoutMs), FrameType.ok)
    } catch (error) {
      stop()
      operation.release()
      throw usedUp(error) ?? error
    }
    return this.#changes(operation, stop)
  }

  async *#changes(operation: Operation, stop: () => void): AsyncGenerator<FileChange[]> {
    try {
      for (;;) {
        const answer = await operation.next(Number.POSITIVE_INFINITY)
        if (answer.type === FrameType.end) return operation.done()
        operation.expect(answer, FrameType.changes)
        yield readChanges(answer.payload)
      }
    } finally {
      stop()
      operation.release()
    }
  }

  async copy(
    from: string,
    to: string,
    options: { exclusive?: boolean; attributes?: boolean; signal?: AbortSignal } = {},
  ): Promise<TreeSummary> {
    checkPath(to)
    const flags =
      (options.exclusive ? copyFlag.exclusive : 0) | (options.attributes ? copyFlag.attributes : 0)
    const request = treeRequest(FrameType.copy, from, (writer) => writer.u8(flags).str(from).str(to))
    const copying = this.#stream(from, request, FrameType.summary, () => null, options.signal)
    const result = await copying.next()
    if (!result.done)
      throw new PlatformError('bad_gateway', 'The sandbox answered with something else than a copy')
    return result.value
  }

  /** Batches of results up to the summary, which ends it. */
  async *#stream<Batch>(
    path: string,
    request: Uint8Array,
    type: number,
    read: (payload: Uint8Array) => Batch,
    signal: AbortSignal | undefined,
  ): AsyncGenerator<Batch, TreeSummary> {
    signal?.throwIfAborted()
    const operation = await this.pool.start(path)
    const stop = cancelOn(signal, operation)
    try {
      operation.send(request)
      for (;;) {
        const answer = await operation.next(treeTimeoutMs)
        if (answer.type === FrameType.summary) {
          operation.done()
          return readSummary(answer.payload)
        }
        if (answer.type === FrameType.error) operation.done()
        operation.expect(answer, type)
        yield read(answer.payload)
      }
    } finally {
      stop()
      operation.release()
    }
  }
}

/** What the kernel counts for a user, which tells of it as it does of open files and of a full disk. */
function usedUp(error: unknown): PlatformError | null {
  const errno = PlatformError.is(error) ? error.details?.errno : undefined
  const setting = { EMFILE: 'max_user_instances', ENOSPC: 'max_user_watches' }[String(errno)]
  if (setting === undefined) return null
  const message = `no more can be watched in this sandbox: end other watches, or have the host's fs.inotify.${setting} raised`
  return new PlatformError('too_many_requests', message, { cause: error })
}

/** The worker stops when its connection closes. */
function cancelOn(signal: AbortSignal | undefined, operation: Operation): () => void {
  if (!signal) return () => {}
  const cancel = () => operation.cancel(signal.reason)
  signal.addEventListener('abort', cancel, { once: true })
  if (signal.aborted) cancel()
  return () => signal.removeEventListener('abort', cancel)
}

function treeRequest(type: FrameType, path: string, fill: (writer: FrameWriter) => FrameWriter): Uint8Array {
  checkPath(path)
  const request = frame(type, fill)
  if (request.length > requestBytesMax) {
    throw new PlatformError('bad_request', 'the patterns are too large together')
  }
  return request
}

function filterFlags(filter: TreeFilter): number {
  return filter.excludeHidden ? flag.skipHidden : 0
}

function putFilter(writer: FrameWriter, filter: TreeFilter): FrameWriter {
  putProgram(
    writer,
    compiled('excludeDirectories', () => compileGlobs(filter.excludeDirectories ?? [])),
  )
  putProgram(
    writer,
    compiled('include', () => compileGlobs(filter.include ?? [])),
  )
  return putProgram(
    writer,
    compiled('exclude', () => compileGlobs(filter.exclude ?? [])),
  )
}

function count(value: number, field: string, max = countMax): number {
  if (Number.isInteger(value) && value >= 0 && value <= max) return value
  throw new PlatformError('bad_request', `${field} ${value} is not a whole number from 0 to ${max}`)
}
