import { isUtf8 } from 'node:buffer'
import {
  LineCutter,
  type OutputChunk,
  type OutputStream,
  truncationLine,
  WholeCharacters,
} from '../../../sandboxes/processes.ts'

const newline = 10

/** `stdout:` or `stderr:` before each line. What is not the program's own has no prefix. */
export async function* prefixedLines(batches: AsyncIterable<OutputChunk[]>): AsyncGenerator<Uint8Array> {
  const lines = new WholeLines()
  for await (const batch of batches) {
    const parts = batch.flatMap((chunk) =>
      chunk.kind === 'truncated' ? [Buffer.from(truncationLine)] : lines.of(chunk).map(prefixed),
    )
    if (parts.length > 0) yield joined(parts)
  }
  const rest = lines.end().map(prefixed)
  if (rest.length > 0) yield joined(rest)
}

/** NDJSON, a line of output an event. */
export async function* lineEvents(batches: AsyncIterable<OutputChunk[]>): AsyncGenerator<Uint8Array> {
  const lines = new WholeLines()
  for await (const batch of batches) {
    const events = batch.flatMap((chunk) =>
      chunk.kind === 'truncated' ? [Buffer.from('{"type":"truncated"}\n')] : lines.of(chunk).map(eventsOf),
    )
    if (events.length > 0) yield joined(events)
  }
  const rest = lines.end().map(eventsOf)
  if (rest.length > 0) yield joined(rest)
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
  bytes: Buffer
}

class WholeLines {
  private readonly cutter = new LineCutter()

  of(chunk: Exclude<OutputChunk, { kind: 'truncated' }>): Lines[] {
    if (chunk.kind !== 'restart') return this.push(chunk.kind, chunk.data)
    // Of stdout the note itself ends what was begun.
    return [...this.endOf('stderr'), ...this.push('stdout', Buffer.from(chunk.note))]
  }

  end(): Lines[] {
    return [...this.endOf('stdout'), ...this.endOf('stderr')]
  }

  private push(stream: OutputStream, data: Uint8Array): Lines[] {
    return this.cutter.push(stream, data).map((bytes) => ({ stream, bytes }))
  }

  private endOf(stream: OutputStream): Lines[] {
    return this.cutter.end(stream).map((bytes) => ({ stream, bytes }))
  }
}

/** What stands around lines, in bytes. */
interface Frame {
  first: Buffer
  /** In place of each line's end but the last one's. */
  between: Buffer
  last: Buffer
}

const prefixFrames = framesOf('', (stream) => `${stream}:`, '\n')
const eventFrames = framesOf('"}', (stream) => `{"type":"${stream}","data":"`, '"}\n')

function framesOf(
  end: string,
  start: (stream: OutputStream) => string,
  last: string,
): Record<OutputStream, Frame> {
  const frame = (stream: OutputStream) => ({
    first: Buffer.from(start(stream)),
    between: Buffer.from(`${end}\n${start(stream)}`),
    last: Buffer.from(last),
  })
  return { stdout: frame('stdout'), stderr: frame('stderr') }
}

function prefixed({ stream, bytes }: Lines): Buffer {
  return framed(bytes, prefixFrames[stream])
}

/** Anything that JSON escapes; a line's end is none of them, since it becomes the end of an event. */
// biome-ignore lint/suspicious/noControlCharactersInRegex: these are the ones that JSON escapes
const escaped = /[\x00-\x09\x0b-\x1f"\\]/

function eventsOf({ stream, bytes }: Lines): Buffer {
  // As it is where it can be: making strings of it costs several times as much as all else.
  if (isUtf8(bytes) && !escaped.test(bytes.toString('latin1'))) return framed(bytes, eventFrames[stream])
  const lines = bytes.toString('utf8', 0, bytes.length - 1).split('\n')
  const event = (line: string) =>
    `${JSON.stringify({ type: stream, data: line.endsWith('\r') ? line.slice(0, -1) : line })}\n`
  return Buffer.from(lines.map(event).join(''))
}

/** A guess at how long lines are, to make room for what stands around them. */
const lineBytesGuessed = 64

/** Whole lines, each in its frame. */
function framed(bytes: Buffer, { first, between, last }: Frame): Buffer {
  const lines = Math.ceil(bytes.length / lineBytesGuessed)
  let out: Buffer = Buffer.allocUnsafe(bytes.length + (lines + 2) * between.length)
  out.set(first)
  let used = first.length
  for (let start = 0; ; ) {
    const end = bytes.indexOf(newline, start)
    if (used + end - start + between.length > out.length) {
      const larger: Buffer = Buffer.allocUnsafe(2 * out.length + bytes.length)
      out.copy(larger, 0, 0, used)
      out = larger
    }
    bytes.copy(out, used, start, end)
    used += end - start
    start = end + 1
    const behind = start < bytes.length ? between : last
    out.set(behind, used)
    used += behind.length
    if (behind === last) return out.subarray(0, used)
  }
}

function recordOf(stream: OutputStream, bytes: Buffer): string {
  if (bytes.length === 0) return ''
  const record = isUtf8(bytes)
    ? { type: stream, data: bytes.toString() }
    : { type: stream, data: bytes.toString('base64'), encoding: 'base64' }
  return `${JSON.stringify(record)}\n`
}

function joined(parts: Buffer[]): Buffer {
  return parts.length === 1 ? parts[0]! : Buffer.concat(parts)
}
