import type { OutputRecord } from '../../spec/runtime.ts'

export type OutputStream = 'stdout' | 'stderr'

/** Process output as text, decoded across record borders. */
export interface OutputText {
  stream: OutputStream
  text: string
}

/** Inline in process answers: what the last screens of a terminal hold. */
export const inlineOutputBytesMax = 64 * 1024
/** In `/logs` and in the answer of a start that waited. */
export const fullOutputBytesMax = 4 * 1024 * 1024
/** A line longer than this is passed on in pieces. */
export const lineCharsMax = 64 * 1024

export const truncationLine = '[... truncated, see the process log file for the full output ...]\n'

/**
 * Turns the bytes of the two streams into text. A character whose bytes lie in two records comes out whole; what is
 * not UTF-8 comes out as U+FFFD.
 */
export class OutputDecoder {
  private readonly decoders = { stdout: newDecoder(), stderr: newDecoder() }

  decode(stream: OutputStream, data: Uint8Array): string {
    return this.decoders[stream].decode(data, { stream: true })
  }

  /** What was held back for bytes that never came. */
  *end(): Iterable<OutputText> {
    for (const stream of ['stdout', 'stderr'] as const) {
      const text = this.decoders[stream].decode()
      if (text !== '') yield { stream, text }
    }
  }
}

function newDecoder(): TextDecoder {
  return new TextDecoder('utf-8', { ignoreBOM: true })
}

/** The last `bytesMax` bytes of a text that is appended to. */
class TextTail {
  private parts: { text: string; bytes: number }[] = []
  private bytes = 0
  private truncated = false

  constructor(private readonly bytesMax: number) {}

  append(text: string): void {
    const bytes = Buffer.byteLength(text)
    this.parts.push({ text, bytes })
    this.bytes += bytes
    let drop = 0
    for (const part of this.parts) {
      if (this.bytes - part.bytes < this.bytesMax) break
      this.bytes -= part.bytes
      drop++
    }
    if (drop > 0) {
      this.parts.splice(0, drop)
      this.truncated = true
    }
  }

  markTruncated(): void {
    this.truncated = true
  }

  toString(): string {
    const joined = this.parts.map((part) => part.text).join('')
    if (this.bytes <= this.bytesMax) {
      if (this.parts.length > 1) this.parts = [{ text: joined, bytes: this.bytes }]
      return this.truncated ? truncationLine + joined : joined
    }
    const tail = Buffer.from(joined).subarray(-this.bytesMax)
    let start = 0
    while (start < tail.length && (tail[start]! & 0xc0) === 0x80) start++
    return truncationLine + tail.toString('utf8', start)
  }
}

export interface OutputSummary {
  /** All of stdout, then all of stderr, as clients of the cloud know it. */
  logs: string
  stdout: string
  stderr: string
}

/** The ends of stdout and of stderr. */
export class OutputTail {
  private readonly decoder = new OutputDecoder()
  private readonly stdout: TextTail
  private readonly stderr: TextTail

  constructor(bytesMax: number) {
    this.stdout = new TextTail(bytesMax)
    this.stderr = new TextTail(bytesMax)
  }

  push(record: OutputRecord): void {
    if (record.kind === 'truncated') {
      this.stdout.markTruncated()
      return
    }
    this.pushText(record.kind, this.decoder.decode(record.kind, record.data))
  }

  pushText(stream: OutputStream, text: string): void {
    if (text === '') return
    this[stream].append(text)
  }

  /** Nothing more will come: what was held back is shown. */
  end(): void {
    for (const { stream, text } of this.decoder.end()) this.pushText(stream, text)
  }

  summary(): OutputSummary {
    const stdout = this.stdout.toString()
    const stderr = this.stderr.toString()
    return { logs: stdout + stderr, stdout, stderr }
  }
}

/**
 * Cuts text into whole lines, without their line ends, per stream. Each line comes out once; one that is longer than
 * lineCharsMax in pieces, an unfinished one at the `end`.
 */
export class LineSplitter {
  private readonly rest = { stdout: '', stderr: '' }

  push({ stream, text }: OutputText): OutputLine[] {
    const lines = (this.rest[stream] + text).split('\n')
    let rest = lines.pop() ?? ''
    const whole = lines.map((line) => ({ stream, line: line.endsWith('\r') ? line.slice(0, -1) : line }))
    while (rest.length > lineCharsMax) {
      whole.push({ stream, line: rest.slice(0, lineCharsMax) })
      rest = rest.slice(lineCharsMax)
    }
    this.rest[stream] = rest
    return whole
  }

  end(): OutputLine[] {
    const unfinished: OutputLine[] = []
    for (const stream of ['stdout', 'stderr'] as const) {
      if (this.rest[stream] !== '') unfinished.push({ stream, line: this.rest[stream] })
      this.rest[stream] = ''
    }
    return unfinished
  }
}

export interface OutputLine {
  stream: OutputStream
  line: string
}
