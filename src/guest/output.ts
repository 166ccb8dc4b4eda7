import {
  closeSync,
  constants,
  fstatSync,
  opendirSync,
  openSync,
  read as readCallback,
  readSync,
} from 'node:fs'
import { promisify } from 'node:util'
import { PlatformError } from '../errors.ts'
import type { OutputRecord } from '../spec/guest.ts'

const readFile = promisify(readCallback)

const recordHeaderBytes = 16
const recordBytesMax = 64 * 1024
/** Reads up to this size happen at once: cheaper than a trip through the thread pool, from memory as a rule. */
const readSyncBytesMax = 64 * 1024
const readBytesMax = 256 * 1024
/** A process keeps 9 segments; more than this is not ours. */
const segmentsMax = 256
const openFlags = constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK
const streams = [undefined, 'stdout', 'stderr'] as const
const noBytes = new Uint8Array(0)

export interface OutputLogOptions {
  /** It is being written, so that what is new in it is in memory: no trip through the thread pool at all. */
  live?: boolean
  /** Each batch may be overwritten by the next. */
  reuseMemory?: boolean
  /** Where its beginning is gone already, this much of what is left is read, and what goes on a line begun before is not. */
  lastBytes?: number | undefined
}

/**
 * One reader of one process's output log, written by process 1 of the instance (docs/guest-protocol.md). Nothing in
 * the log is believed: links are not followed, every length is checked, memory stays at one read buffer.
 */
export class OutputLog implements Disposable {
  #directory = -1
  #segment = -1
  #segmentStart = 0
  /** Offset of the next record to look at. */
  #position: number
  /** Records up to here are skipped: the caller's offset, which may lie in the middle of one, or what was read already. */
  #from: number
  #cut: Cut | null = null
  /** Read into again and again; what was read is copied from it, unless it may be overwritten. */
  #buffer: Buffer | null = null

  constructor(
    private readonly logDir: string,
    private readonly id: number,
    fromOffset: number,
    private readonly options: OutputLogOptions = {},
  ) {
    this.#from = fromOffset
    this.#position = fromOffset
  }

  get position(): number {
    return this.#position
  }

  /** Something of it was kept, be it empty. */
  get exists(): boolean {
    return this.#openDirectory()
  }

  /** All records that are there, in batches; to be called again when there are more. */
  async *read(): AsyncGenerator<OutputRecord[]> {
    for (;;) {
      if (this.#segment < 0) {
        const fromStart = this.#position === 0
        const truncated = this.#openSegment()
        if (truncated && fromStart) await this.#cutTo(this.options.lastBytes)
        if (truncated) yield [truncated]
        if (this.#segment < 0) return
      }
      const at = this.#position - this.#segmentStart
      this.#buffer ??= Buffer.allocUnsafeSlow(readSyncBytesMax)
      const buffer = this.#buffer
      const length =
        this.options.live || buffer.length <= readSyncBytesMax
          ? readSync(this.#segment, buffer, 0, buffer.length, at)
          : (await readFile(this.#segment, buffer, 0, buffer.length, at)).bytesRead
      const records: OutputRecord[] = []
      const used = this.#parse(buffer.subarray(0, length), records)
      if (records.length > 0) yield records
      if (used === 0 && length < buffer.length) {
        if (!this.#nextSegment(at + length)) return
      } else if (length === buffer.length && buffer.length < readBytesMax) {
        this.#buffer = Buffer.allocUnsafeSlow(readBytesMax)
      }
    }
  }

  /** All that is there is looked through once for that: how much it is stands nowhere. */
  async #cutTo(lastBytes: number | undefined): Promise<void> {
    if (lastBytes === undefined) return
    let bytes = 0
    using all = new OutputLog(this.logDir, this.id, this.#position, { reuseMemory: true })
    for await (const records of all.read()) for (const { data } of records) bytes += data.length
    if (bytes > lastBytes) this.#cut = new Cut(bytes - lastBytes)
  }

  [Symbol.dispose]() {
    this.#closeSegment()
    if (this.#directory >= 0) closeSync(this.#directory)
    this.#directory = -1
  }

  #closeSegment() {
    if (this.#segment >= 0) closeSync(this.#segment)
    this.#segment = -1
  }

  #openDirectory(): boolean {
    const flags = constants.O_RDONLY | constants.O_DIRECTORY | constants.O_NOFOLLOW
    if (this.#directory < 0) this.#directory = openIfThere(`${this.logDir}/${this.id}`, flags)
    return this.#directory >= 0
  }

  /** Opens the segment that `position` lies in; else the oldest behind it, saying that something is missing. */
  #openSegment(): OutputRecord | null {
    if (!this.#openDirectory()) return null
    // The common case without listing: a log is read from its beginning, or from where the last segment ended.
    if (this.#tryOpen(this.#position)) return null
    const starts = this.#segmentStarts()
    const inside = starts.filter((start) => start <= this.#position).at(-1)
    if (inside !== undefined && this.#tryOpen(inside)) {
      const kept = fstatSync(this.#segment).size
      if (this.#position < inside + kept) {
        this.#from = Math.max(this.#from, this.#position)
        this.#position = inside
        return null
      }
      const next = starts.find((start) => start > this.#position)
      if (next === undefined) return null
      this.#closeSegment()
    }
    for (const start of starts) {
      if (start <= this.#position || !this.#tryOpen(start)) continue
      this.#position = start
      return { kind: 'truncated', at: 0, endOffset: start, data: noBytes }
    }
    return null
  }

  /** No whole record is left in this segment, which was `seenBytes` long; false when nothing follows yet. */
  #nextSegment(seenBytes: number): boolean {
    const ended = this.#segment
    if (fstatSync(ended).size > seenBytes) return true
    if (this.#position > this.#segmentStart && this.#tryOpen(this.#position)) {
      closeSync(ended)
      return true
    }
    if (!this.#segmentStarts().some((start) => start > this.#position)) return false
    this.#closeSegment()
    return true
  }

  #tryOpen(start: number): boolean {
    const name = start.toString(16).padStart(16, '0')
    const file = openIfThere(`/proc/self/fd/${this.#directory}/${name}`, openFlags)
    if (file < 0) return false
    if (!fstatSync(file).isFile()) {
      closeSync(file)
      throw damaged('a segment that is not a regular file')
    }
    this.#segment = file
    this.#segmentStart = start
    return true
  }

  #segmentStarts(): number[] {
    const starts: number[] = []
    const directory = opendirSync(`/proc/self/fd/${this.#directory}`)
    try {
      for (let seen = 0; ; seen++) {
        const entry = directory.readSync()
        if (entry === null) break
        if (seen > segmentsMax) throw damaged('too many segments')
        if (!/^[0-9a-f]{16}$/.test(entry.name)) continue
        const start = Number.parseInt(entry.name, 16)
        if (Number.isSafeInteger(start)) starts.push(start)
      }
    } finally {
      directory.closeSync()
    }
    return starts.sort((a, b) => a - b)
  }

  /** Whole records of `bytes` into `records`; answers how many bytes they took. */
  #parse(bytes: Uint8Array, records: OutputRecord[]): number {
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
    const own = this.options.reuseMemory ? bytes : new Uint8Array(bytes)
    let at = 0
    while (bytes.length - at >= recordHeaderBytes) {
      const length = view.getUint32(at, true)
      const kind = streams[view.getUint32(at + 4, true)]
      if (length > recordBytesMax || kind === undefined) throw damaged('a record header that makes no sense')
      if (bytes.length - at - recordHeaderBytes < length) break
      const unixMs = Number(view.getBigUint64(at + 8, true))
      const dataAt = at + recordHeaderBytes
      at = dataAt + length
      this.#position += recordHeaderBytes + length
      if (this.#position <= this.#from) continue
      const data = own.subarray(dataAt, at)
      const kept = this.#cut ? this.#cut.of(kind, data) : data
      if (kept === null) continue
      records.push({ kind, at: Math.min(unixMs, dateMsMax), endOffset: this.#position, data: kept })
    }
    return at
  }
}

const newline = 10

/** Takes the first bytes off records, and then of each stream what is left of a line that lost its beginning. */
class Cut {
  /** By its last byte that was taken off: whether a stream is within a line. */
  readonly #within = { stdout: false, stderr: false }

  constructor(private bytes: number) {}

  of(stream: 'stdout' | 'stderr', data: Uint8Array): Uint8Array | null {
    const taken = Math.min(this.bytes, data.length)
    this.bytes -= taken
    if (taken > 0) this.#within[stream] = data[taken - 1] !== newline
    const rest = data.subarray(taken)
    if (rest.length === 0) return null
    if (!this.#within[stream]) return rest
    this.#within[stream] = false
    // A line that fills a whole record is worth more than a clean beginning.
    const kept = rest.subarray(rest.indexOf(newline) + 1)
    return kept.length === 0 ? null : kept
  }
}

const dateMsMax = 8.64e15

function openIfThere(path: string, flags: number): number {
  try {
    return openSync(path, flags)
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code
    if (code === 'ENOENT') return -1
    if (code === 'ELOOP' || code === 'ENOTDIR' || code === 'ENXIO') throw damaged('something else than a log')
    throw error
  }
}

function damaged(what: string): PlatformError {
  return new PlatformError('bad_gateway', "The process's output log is damaged", {
    cause: new Error(`found ${what}`),
  })
}
