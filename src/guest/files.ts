import { PlatformError } from '../errors.ts'
import type {
  ConcatenateOptions,
  FileChange,
  FileEntry,
  FileToWrite,
  GuestFiles,
  Identity,
  LineMatch,
  OpenFile,
  SearchOptions,
  TreeSummary,
  WalkOptions,
  WatchOptions,
} from '../spec/guest.ts'
import { readEntries, readEntry } from './codec.ts'
import { checkMode, checkPath, checkRange, fileEntry, frame, invalid, modeBits } from './file-requests.ts'
import { FilesPool, type FilesPoolOptions, type Operation } from './files-pool.ts'
import { writeAll } from './files-write-all.ts'
import { type Frame, FrameType, frameHeader, framePayloadBytesMax } from './frame.ts'
import { OpenFiles } from './open-files.ts'
import { PayloadReader } from './payload.ts'
import { Trees } from './trees.ts'

const dataBytesMax = framePayloadBytesMax
const toTheEnd = 0xffff_ffff_ffff_ffffn
/** A recursive removal may walk millions of files before it answers. */
const removeTimeoutMs = 600_000
/** A part may be as large as the disk. */
const appendTimeoutMs = 600_000
/** A smaller file is not worth a descriptor. */
const openBytesMin = 64 * 1024
/** A larger one may be dropped from the host's memory before it is sent, and to wait for the disk is the worker's part. */
const openBytesMax = 8 * 1024 * 1024

/** Files inside, each operation alone on a connection of a small pool. */
export class FilesChannel implements GuestFiles {
  #pool: FilesPool
  #open = new OpenFiles()
  #trees: Trees

  constructor(options: FilesPoolOptions) {
    this.#pool = new FilesPool(options)
    this.#trees = new Trees(this.#pool)
  }

  close(error: PlatformError): void {
    this.#pool.close(error)
    this.#open.revoke()
  }

  /** Whom operations that begin from now on are done as. */
  actAs(identity: Identity): void {
    this.#pool.actAs(identity)
  }

  suspend(): void {
    this.#pool.suspend()
  }

  resume(): void {
    this.#pool.resume()
  }

  async stat(path: string, options: { follow?: boolean } = {}): Promise<FileEntry> {
    checkPath(path)
    const request = frame(FrameType.stat, (writer) => writer.u8(options.follow === false ? 0 : 1).str(path))
    const answer = await this.#simple(path, request, FrameType.entryOk)
    return fileEntry(readEntry(answer))
  }

  async *list(path: string): AsyncGenerator<FileEntry[]> {
    checkPath(path)
    const operation = await this.#pool.start(path)
    try {
      operation.send(frame(FrameType.readdir, (writer) => writer.str(path)))
      for (;;) {
        const answer = await operation.next()
        if (answer.type === FrameType.end) return operation.done()
        operation.expect(answer, FrameType.entries)
        const entries = readEntries(answer.payload).map(fileEntry)
        if (entries.length > 0) yield entries
      }
    } finally {
      operation.release()
    }
  }

  async read(
    path: string,
    range: { offset?: number; length?: number } = {},
  ): Promise<{ entry: FileEntry; body: ReadableStream<Uint8Array> }> {
    checkPath(path)
    checkRange(range)
    const operation = await this.#pool.start(path)
    try {
      operation.send(
        frame(FrameType.read, (writer) =>
          writer
            .u64(range.offset ?? 0)
            .u64(range.length ?? toTheEnd)
            .str(path),
        ),
      )
      const entry = await entryOf(operation)
      return { entry, body: contentOf(operation, await operation.next(), range.length) }
    } catch (error) {
      operation.release()
      throw error
    }
  }

  async open(
    path: string,
  ): Promise<{ entry: FileEntry; file: OpenFile } | { entry: FileEntry; body: ReadableStream<Uint8Array> }> {
    if (this.#open.full) return this.read(path)
    checkPath(path)
    using place = this.#open.place()
    const operation = await this.#pool.start(path)
    try {
      operation.sendWithHandover(
        frame(FrameType.open, (writer) => writer.u64(openBytesMin).u64(openBytesMax).str(path)),
      )
      const entry = await entryOf(operation)
      const answer = await operation.next()
      if (answer.type !== FrameType.opened) return { entry, body: contentOf(operation, answer) }
      const file = place.take(operation.receiveDescriptor())
      if (file === null) throw operation.broken('what was handed over is no plain file')
      operation.done()
      operation.release()
      return { entry, file }
    } catch (error) {
      operation.release()
      throw error
    }
  }

  async write(
    path: string,
    body: ReadableStream<Uint8Array> | Uint8Array,
    options: { mode?: number; newFileMode?: number } = {},
  ): Promise<FileEntry> {
    checkPath(path)
    const mode = modeBits(options)
    const operation = await this.#pool.start(path).catch(async (error) => {
      if (!(body instanceof Uint8Array)) await body.cancel(error).catch(() => {})
      throw error
    })
    try {
      operation.send(frame(FrameType.write, (writer) => writer.u32(mode).str(path)))
      if (body instanceof Uint8Array) await sendBytes(operation, body)
      else await sendStream(operation, body)
      operation.send(frameHeader(FrameType.end, 0, 0))
      return written(operation, await operation.next())
    } finally {
      operation.release()
    }
  }

  async concatenate(
    parts: readonly string[],
    path: string,
    options: ConcatenateOptions = {},
  ): Promise<FileEntry> {
    for (const each of [path, ...parts]) checkPath(each)
    const mode = modeBits(options)
    const operation = await this.#pool.start(path)
    try {
      operation.send(frame(FrameType.write, (writer) => writer.u32(mode).str(path)))
      let refusal: Frame | null = null
      for (const part of parts) {
        operation.send(frame(FrameType.append, (writer) => writer.str(part)))
        const answer = await operation.next(appendTimeoutMs)
        if (answer.type === FrameType.error) {
          refusal = answer
          break
        }
        operation.expect(answer, FrameType.ok)
        if (options.spend) await this.remove(part)
      }
      operation.send(frameHeader(FrameType.end, 0, 0))
      return written(operation, refusal ?? (await operation.next(appendTimeoutMs)))
    } finally {
      operation.release()
    }
  }

  async makeDirectory(path: string, options: { mode?: number; parents?: boolean } = {}): Promise<void> {
    checkPath(path)
    const mode = options.mode ?? 0o755
    checkMode(mode)
    const request = frame(FrameType.mkdir, (writer) =>
      writer
        .u32(mode)
        .u8(options.parents ? 1 : 0)
        .str(path),
    )
    await this.#simple(path, request, FrameType.ok)
  }

  async remove(path: string, options: { recursive?: boolean } = {}): Promise<void> {
    checkPath(path)
    const request = frame(FrameType.remove, (writer) => writer.u8(options.recursive ? 1 : 0).str(path))
    await this.#simple(path, request, FrameType.ok, options.recursive ? removeTimeoutMs : undefined)
  }

  async rename(from: string, to: string): Promise<void> {
    await this.#rename(FrameType.rename, from, to)
  }

  async #rename(type: FrameType, from: string, to: string): Promise<void> {
    checkPath(from)
    checkPath(to)
    await this.#simple(
      from,
      frame(type, (writer) => writer.str(from).str(to)),
      FrameType.ok,
    )
  }

  async setMode(path: string, mode: number): Promise<void> {
    checkPath(path)
    checkMode(mode)
    await this.#simple(
      path,
      frame(FrameType.chmod, (writer) => writer.u32(mode).str(path)),
      FrameType.ok,
    )
  }

  async realPath(path: string): Promise<string> {
    checkPath(path)
    const answer = await this.#simple(
      path,
      frame(FrameType.realpath, (writer) => writer.str(path)),
      FrameType.path,
    )
    const reader = new PayloadReader(answer)
    const real = reader.str()
    reader.end()
    return real
  }

  async writeAll(files: readonly FileToWrite[]): Promise<void> {
    await writeAll(this.#pool, files)
  }

  walk(path: string, options?: WalkOptions): AsyncGenerator<FileEntry[], TreeSummary> {
    return this.#trees.walk(path, options)
  }

  search(path: string, options: SearchOptions): AsyncGenerator<LineMatch[], TreeSummary> {
    return this.#trees.search(path, options)
  }

  watch(path: string, options?: WatchOptions): Promise<AsyncGenerator<FileChange[]>> {
    return this.#trees.watch(path, options)
  }

  copy(
    from: string,
    to: string,
    options: { exclusive?: boolean; signal?: AbortSignal } = {},
  ): Promise<TreeSummary> {
    return this.#trees.copy(from, to, options)
  }

  async move(
    from: string,
    to: string,
    options: { exclusive?: boolean; signal?: AbortSignal } = {},
  ): Promise<void> {
    try {
      return await this.#rename(options.exclusive ? FrameType.renameNew : FrameType.rename, from, to)
    } catch (error) {
      if (!PlatformError.is(error) || error.details?.errno !== 'EXDEV') throw error
    }
    await this.#trees.copy(from, to, { ...options, attributes: true })
    await this.remove(from, { recursive: true })
  }

  async setOwner(
    path: string,
    owner: { uid?: number; gid?: number },
    options: { follow?: boolean } = {},
  ): Promise<void> {
    checkPath(path)
    const request = frame(FrameType.chown, (writer) =>
      writer
        .u8(options.follow === false ? 0 : 1)
        .u32(ownerNumber(owner.uid))
        .u32(ownerNumber(owner.gid))
        .str(path),
    )
    await this.#simple(path, request, FrameType.ok)
  }

  async #simple(
    path: string,
    request: Uint8Array,
    expected: number,
    timeoutMs?: number,
  ): Promise<Uint8Array> {
    const operation = await this.#pool.start(path)
    try {
      operation.send(request)
      const answer = await operation.next(timeoutMs)
      if (answer.type === FrameType.error) operation.done()
      operation.expect(answer, expected)
      operation.done()
      return answer.payload
    } finally {
      operation.release()
    }
  }
}

async function entryOf(operation: Operation): Promise<FileEntry> {
  return entryIn(operation, await operation.next())
}

function entryIn(operation: Operation, answer: Frame): FileEntry {
  if (answer.type === FrameType.error) operation.done()
  operation.expect(answer, FrameType.entryOk)
  return fileEntry(readEntry(answer.payload))
}

/**
 * The end of a write, after END: an error that came before it leaves the connection in step only once END is behind it.
 */
function written(operation: Operation, answer: Frame): FileEntry {
  const entry = entryIn(operation, answer)
  operation.done()
  return entry
}

/** What stands behind the entry of a file that is read, from the first frame on. Releases the operation at its end. */
function contentOf(
  operation: Operation,
  first: Frame,
  bytesMax = Number.POSITIVE_INFINITY,
): ReadableStream<Uint8Array> {
  let bytesLeft = bytesMax
  const bytesOf = (answer: Frame): Uint8Array | null => {
    if (answer.type === FrameType.end) {
      operation.done()
      operation.release()
      return null
    }
    operation.expect(answer, FrameType.data)
    bytesLeft -= answer.payload.length
    if (bytesLeft < 0 || answer.payload.length === 0) throw operation.broken('wrong amount of data')
    return answer.payload
  }
  const pass = (controller: ReadableStreamDefaultController<Uint8Array>, bytes: Uint8Array | null) => {
    if (bytes === null) controller.close()
    else controller.enqueue(bytes)
  }
  const start = bytesOf(first)
  return new ReadableStream<Uint8Array>({
    // With bytes at hand from the start the headers of an answer leave in one piece.
    start: (controller) => pass(controller, start),
    async pull(controller) {
      try {
        pass(controller, bytesOf(await operation.next()))
      } catch (error) {
        operation.release()
        controller.error(error)
      }
    },
    cancel: () => operation.release(),
  })
}

async function sendBytes(operation: Operation, bytes: Uint8Array): Promise<void> {
  for (let at = 0; at < bytes.length; at += dataBytesMax) {
    const part = bytes.subarray(at, at + dataBytesMax)
    if (operation.sentBytes >= turnBytes) {
      operation.sentBytes = 0
      await new Promise((resolve) => setImmediate(resolve))
    }
    const header = frameHeader(FrameType.data, 0, part.length)
    if (part.length <= smallBytesMax) {
      operation.send(Buffer.concat([header, part]))
    } else {
      operation.send(header)
      operation.send(part)
    }
    await operation.drained()
  }
}

/** After so much that never had to wait for the guest, others get a turn. */
const turnBytes = 1024 * 1024

/** Below this one write of a copy is cheaper than two writes. */
const smallBytesMax = 16 * 1024

async function sendStream(operation: Operation, body: ReadableStream<Uint8Array>): Promise<void> {
  const reader = body.getReader()
  let fail: (error: unknown) => void = () => {}
  // Told once: a race for each chunk would keep every chunk for as long as the operation lasts.
  operation.failed.catch((error) => fail(error))
  const next = () =>
    new Promise<Awaited<ReturnType<typeof reader.read>>>((resolve, reject) => {
      fail = reject
      if (operation.error) reject(operation.error)
      reader.read().then(resolve, reject)
    })
  try {
    for (;;) {
      const { done, value } = await next()
      if (done) return
      await sendBytes(operation, value)
    }
  } catch (error) {
    // Not awaited: a source may take its time to hear of it, and the caller should not.
    reader.cancel(error).catch(() => {})
    throw error
  }
}

const keepOwner = 0xffff_ffff

function ownerNumber(id: number | undefined): number {
  if (id === undefined) return keepOwner
  if (Number.isInteger(id) && id >= 0 && id < keepOwner) return id
  throw invalid(`${id} is no number of a user or group`, 'EINVAL')
}
