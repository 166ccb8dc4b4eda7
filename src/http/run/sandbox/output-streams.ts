import { isUtf8 } from 'node:buffer'
import { free } from '../../../lib/spent.ts'
import {
  type KeptOutput,
  LineCutter,
  type OutputChunk,
  type OutputStream,
  type ProcessView,
  truncationLine,
  WholeCharacters,
} from '../../../sandboxes/processes.ts'

const newline = 10

export interface Handing {
  /** Each chunk is gone once the next one is asked for: for a reader that is done with it by then. */
  freeing?: boolean
}

/** `stdout:` or `stderr:` before each line. What is not the program's own has no prefix. */
export async function* prefixedLines(
  batches: AsyncIterable<OutputChunk[]>,
  { freeing = false }: Handing = {},
): AsyncGenerator<Uint8Array> {
  const cutter = new WholeLines()
  const truncated = Buffer.from(truncationLine)
  const put = ({ stream, bytes }: Lines, out: Output) => putFramed(bytes, prefixFrames[stream], out)
  for await (const batch of batches) {
    const out = new Output(batch)
    for (const chunk of batch) {
      if (chunk.kind === 'truncated') out.put(truncated)
      else for (const lines of cutter.of(chunk)) put(lines, out)
    }
    if (out.length > 0) yield out.bytes()
    if (freeing) out.free()
  }
  const out = new Output([])
  for (const lines of cutter.end()) put(lines, out)
  if (out.length > 0) yield out.bytes()
}

/** So long a begun line waits for its end: a question to the reader has none. */
const begunLineMsMax = 100

/** NDJSON: the output as it was written, an event a line with its end. A line that is not gone on with comes in parts. */
export async function* outputEvents(
  batches: AsyncIterable<OutputChunk[]>,
  { freeing = false }: Handing = {},
): AsyncGenerator<Uint8Array> {
  const cutter = new WholeLines({ endsAll: false })
  const truncated = Buffer.from('{"type":"truncated"}\n')
  for await (const batch of withPauses(batches, begunLineMsMax, () => cutter.waits)) {
    const out = new Output(batch ?? [])
    if (batch === null) for (const lines of cutter.begun()) putEvents(lines, out)
    else {
      for (const chunk of batch) {
        if (chunk.kind === 'truncated') out.put(truncated)
        else for (const lines of cutter.of(chunk)) putEvents(lines, out)
      }
    }
    if (out.length > 0) yield out.bytes()
    if (freeing) out.free()
  }
  const out = new Output([])
  for (const lines of cutter.end()) putEvents(lines, out)
  if (out.length > 0) yield out.bytes()
}

/** The same batches, and null whenever something waits and none came for so long. */
async function* withPauses(
  batches: AsyncIterable<OutputChunk[]>,
  pauseMs: number,
  waits: () => boolean,
): AsyncGenerator<OutputChunk[] | null> {
  const iterator = batches[Symbol.asyncIterator]()
  try {
    for (;;) {
      const next = iterator.next()
      if (waits()) {
        let timer: ReturnType<typeof setTimeout> | undefined
        const pause = new Promise<null>((resolve) => {
          timer = setTimeout(resolve, pauseMs, null)
        })
        const first = await Promise.race([next, pause]).finally(() => clearTimeout(timer))
        if (first === null) {
          next.catch(() => {})
          yield null
        }
      }
      const { done, value } = await next
      if (done) return
      yield value
    }
  } finally {
    // What it is about to give may never come: nobody waits for that.
    iterator.return?.().catch(() => {})
  }
}

/** NDJSON, output as it was written: text where it is UTF-8, else base64. */
export async function* outputRecords(batches: AsyncIterable<OutputChunk[]>): AsyncGenerator<Uint8Array> {
  const characters = { stdout: new WholeCharacters(), stderr: new WholeCharacters() }
  for await (const batch of batches) {
    const records: string[] = []
    for (const chunk of batch) {
      if (chunk.kind === 'truncated') {
        records.push(`${JSON.stringify({ type: 'truncated', data: truncationLine })}\n`)
      } else if (chunk.kind === 'restart') {
        const { note, attempt, exitCode } = chunk
        records.push(
          ...(['stdout', 'stderr'] as const).map((stream) => recordOf(stream, characters[stream].end())),
        )
        records.push(`${JSON.stringify({ type: 'restart', data: note, attempt, exitCode })}\n`)
      } else {
        records.push(recordOf(chunk.kind, characters[chunk.kind].push(chunk.data)))
      }
    }
    const text = records.join('')
    if (text !== '') yield Buffer.from(text)
  }
  for (const stream of ['stdout', 'stderr'] as const) {
    const text = recordOf(stream, characters[stream].end())
    if (text !== '') yield Buffer.from(text)
  }
}

interface Lines {
  stream: OutputStream
  /** Of lines with their ends, or of one that has none. */
  bytes: Buffer
}

/** Lines of whole characters. */
class WholeLines {
  private readonly cutter: LineCutter
  private readonly characters = { stdout: new WholeCharacters(), stderr: new WholeCharacters() }

  constructor(options?: ConstructorParameters<typeof LineCutter>[0]) {
    this.cutter = new LineCutter(options)
  }

  of(chunk: Exclude<OutputChunk, { kind: 'truncated' }>): Lines[] {
    if (chunk.kind !== 'restart') return this.push(chunk.kind, this.characters[chunk.kind].push(chunk.data))
    // Of stdout the note itself ends what was begun.
    const note = Buffer.concat([this.characters.stdout.end(), Buffer.from(chunk.note)])
    return [...this.endOf('stderr'), ...this.push('stdout', note)]
  }

  get waits(): boolean {
    return this.cutter.waits
  }

  /** What waits for its end, without it. */
  begun(): Lines[] {
    return outputStreams.flatMap((stream) => this.cutter.end(stream).map((bytes) => ({ stream, bytes })))
  }

  end(): Lines[] {
    return outputStreams.flatMap((stream) => this.endOf(stream))
  }

  private push(stream: OutputStream, data: Uint8Array): Lines[] {
    return this.cutter.push(stream, data).map((bytes) => ({ stream, bytes }))
  }

  private endOf(stream: OutputStream): Lines[] {
    const last = this.push(stream, this.characters[stream].end())
    return [...last, ...this.cutter.end(stream).map((bytes) => ({ stream, bytes }))]
  }
}

const outputStreams = ['stdout', 'stderr'] as const

/** What stands around lines, in bytes. */
interface Frame {
  first: Buffer
  /** In place of each line's end but the last one's. */
  between: Buffer
  last: Buffer
  /** Behind what has no end. */
  unended: Buffer
}

const prefixFrames = framesOf((stream) => `${stream}:`, '', '')
const eventFrames = framesOf((stream) => `{"type":"${stream}","data":"`, '\\n', '"}')

/** `lineEnd` is what a line's end becomes. */
function framesOf(
  start: (stream: OutputStream) => string,
  lineEnd: string,
  end: string,
): Record<OutputStream, Frame> {
  const frame = (stream: OutputStream) => ({
    first: Buffer.from(start(stream)),
    between: Buffer.from(`${lineEnd}${end}\n${start(stream)}`),
    last: Buffer.from(`${lineEnd}${end}\n`),
    unended: Buffer.from(`${end}\n`),
  })
  return { stdout: frame('stdout'), stderr: frame('stderr') }
}

/** Any of these is escaped in JSON; a line's end is not, since it becomes the end of an event. */
function isEscaped(byte: number): boolean {
  return (byte < 0x20 && byte !== newline) || byte === 0x22 || byte === 0x5c
}

/** Less is looked at byte by byte. */
const wordsBytesMin = 16

/** Four bytes at a time, and without making a string: that would be all there is to it, in time and in garbage. */
function hasEscaped(bytes: Buffer): boolean {
  const head = bytes.length < wordsBytesMin ? bytes.length : -bytes.byteOffset & 3
  const words = (bytes.length - head) >> 2
  for (let at = 0; at < head; at++) if (isEscaped(bytes[at]!)) return true
  for (let at = head + 4 * words; at < bytes.length; at++) if (isEscaped(bytes[at]!)) return true
  if (words === 0) return false
  const view = new Int32Array(bytes.buffer, bytes.byteOffset + head, words)
  for (let at = 0; at < words; at++) {
    const word = view[at]!
    const quote = word ^ 0x22222222
    const backslash = word ^ 0x5c5c5c5c
    const suspect =
      (((word - 0x20202020) & ~word) |
        ((quote - 0x01010101) & ~quote) |
        ((backslash - 0x01010101) & ~backslash)) &
      0x80808080
    if (suspect === 0) continue
    for (let shift = 0; shift < 32; shift += 8) if (isEscaped((word >>> shift) & 0xff)) return true
  }
  return false
}

function putEvents({ stream, bytes }: Lines, out: Output): void {
  // As it is where it can be: making strings of it costs several times as much as all else.
  if (isUtf8(bytes) && !hasEscaped(bytes)) {
    putFramed(bytes, eventFrames[stream], out)
    return
  }
  const lines = bytes.toString().split('\n')
  const rest = lines.pop() ?? ''
  const event = (data: string) => `${JSON.stringify({ type: stream, data })}\n`
  const events = lines.map((line) => event(`${line}\n`))
  if (rest !== '') events.push(event(rest))
  out.put(Buffer.from(events.join('')))
}

/** Lines, each in its frame. */
function putFramed(bytes: Buffer, { first, between, last, unended }: Frame, out: Output): void {
  out.put(first)
  for (let start = 0; ; ) {
    const end = bytes.indexOf(newline, start)
    if (end === -1) {
      out.copy(bytes, start, bytes.length)
      out.put(unended)
      return
    }
    out.copy(bytes, start, end)
    start = end + 1
    if (start === bytes.length) break
    out.put(between)
  }
  out.put(last)
}

/** A guess at how long lines are, to make room for what stands around them. */
const lineBytesGuessed = 64
const frameBytesGuessed = 32

/** What one batch becomes. */
class Output {
  length = 0
  private room: Buffer

  constructor(batch: OutputChunk[]) {
    let bytes = frameBytesGuessed
    for (const chunk of batch) if ('data' in chunk) bytes += chunk.data.length
    this.room = Buffer.allocUnsafe(bytes + Math.ceil(bytes / lineBytesGuessed) * frameBytesGuessed)
  }

  put(bytes: Buffer): void {
    this.need(bytes.length)
    this.room.set(bytes, this.length)
    this.length += bytes.length
  }

  copy(bytes: Buffer, start: number, end: number): void {
    this.need(end - start)
    bytes.copy(this.room, this.length, start, end)
    this.length += end - start
  }

  bytes(): Buffer {
    return this.room.subarray(0, this.length)
  }

  /** At once: the collector would let tens of megabytes of it lie. */
  free(): void {
    // Less may be a part of what others use as well.
    if (this.room.length === this.room.buffer.byteLength) free(this.room)
  }

  private need(bytes: number): void {
    if (this.length + bytes <= this.room.length) return
    const larger: Buffer = Buffer.allocUnsafe(2 * this.room.length + bytes)
    this.room.copy(larger, 0, 0, this.length)
    this.room = larger
  }
}

function recordOf(stream: OutputStream, bytes: Buffer): string {
  if (bytes.length === 0) return ''
  const record = isUtf8(bytes)
    ? { type: stream, data: bytes.toString() }
    : { type: stream, data: bytes.toString('base64'), encoding: 'base64' }
  return `${JSON.stringify(record)}\n`
}

/**
 * The process as JSON in a string of JSON, in pieces and without making text of its output: whole, that would be larger
 * than everything else that is held for a stream.
 */
export function* resultEvent(
  { logs: _, stdout: __, stderr: ___, ...fields }: ProcessView,
  output: { stdout: KeptOutput; stderr: KeptOutput },
): Generator<Uint8Array> {
  const begin = JSON.stringify(fields).slice(0, -1)
  yield Buffer.from(`{"type":"result","data":"${escapedText(`${begin},"logs":"`)}`)
  yield* escapedTwice(output.stdout)
  yield* escapedTwice(output.stderr)
  yield Buffer.from(escapedText('","stdout":"'))
  yield* escapedTwice(output.stdout)
  yield Buffer.from(escapedText('","stderr":"'))
  yield* escapedTwice(output.stderr)
  yield Buffer.from(`${escapedText('"}')}"}\n`)
}

const pieceBytes = 64 * 1024
const noBytes = Buffer.alloc(0)
/** What a line's end becomes when it is escaped twice. */
const lineEndTwice = Buffer.from('\\\\n')

function escapedText(text: string): string {
  return JSON.stringify(text).slice(1, -1)
}

function* escapedTwice({ mark, bytes }: KeptOutput): Generator<Uint8Array> {
  if (mark !== '') yield Buffer.from(escapedText(escapedText(mark)))
  const characters = new WholeCharacters()
  for (let at = 0; at < bytes.length; at += pieceBytes) {
    const piece = characters.push(bytes.subarray(at, at + pieceBytes))
    if (piece.length > 0) yield pieceTwice(piece)
  }
  const rest = characters.end()
  if (rest.length > 0) yield pieceTwice(rest)
}

function pieceTwice(piece: Buffer): Uint8Array {
  if (!isUtf8(piece) || hasEscaped(piece)) return Buffer.from(escapedText(escapedText(piece.toString())))
  const out = new Output([{ kind: 'stdout', data: piece }])
  for (let start = 0; start < piece.length; ) {
    const end = piece.indexOf(newline, start)
    out.copy(piece, start, end === -1 ? piece.length : end)
    out.put(end === -1 ? noBytes : lineEndTwice)
    start = end === -1 ? piece.length : end + 1
  }
  return out.bytes()
}
