import type { OutputRecord } from '../../spec/guest.ts'

export type OutputStream = 'stdout' | 'stderr'

/** What a follower of a process gets: its output, and what happened to it besides. */
export type OutputChunk =
  | { kind: OutputStream; data: Uint8Array }
  /** Output before this is gone. */
  | { kind: 'truncated' }
  /** It failed and is started again, for the `attempt`th time. `note` says so in its logs. */
  | { kind: 'restart'; note: string; attempt: number; exitCode: number }

/** Inline in process answers: what the last screens of a terminal hold. */
export const inlineOutputBytesMax = 64 * 1024
/** In `/logs` and in the answer of a start that waited. */
export const fullOutputBytesMax = 4 * 1024 * 1024
/** Of a run whose first output is gone already, for those who come late. */
export const lateOutputBytesMax = 32 * 1024 * 1024
export const truncationLine = '[... truncated, see the process log file for the full output ...]\n'

/** The bytes of a stream, without the beginning of a character whose end is yet to come. */
export class WholeCharacters {
  private begun: Buffer = Buffer.alloc(0)

  push(data: Uint8Array): Buffer {
    const own = Buffer.from(data.buffer, data.byteOffset, data.byteLength)
    const bytes = this.begun.length > 0 ? Buffer.concat([this.begun, own]) : own
    const end = bytes.length - begunCharacterBytes(bytes)
    this.begun = Buffer.from(bytes.subarray(end))
    return bytes.subarray(0, end)
  }

  /** What was held back for bytes that never came. */
  end(): Buffer {
    const { begun } = this
    this.begun = Buffer.alloc(0)
    return begun
  }
}

function begunCharacterBytes(bytes: Buffer): number {
  for (let back = 1; back <= Math.min(3, bytes.length); back++) {
    const byte = bytes[bytes.length - back]!
    if ((byte & 0xc0) === 0x80) continue
    const whole = byte >= 0xf8 ? 1 : byte >= 0xf0 ? 4 : byte >= 0xe0 ? 3 : byte >= 0xc0 ? 2 : 1
    return whole > back ? back : 0
  }
  return 0
}

/** What is left of a stream: behind a line that says so, where it is not all. */
export interface KeptOutput {
  mark: string
  bytes: Buffer
}

const ringBytesFirst = 4096

/** The last `bytesMax` bytes of a text that is appended to, in a ring that grows no larger than that. */
class TextTail {
  private ring: Buffer = Buffer.alloc(0)
  /** Bytes in the ring; they end at `end`, where the next one goes. */
  private length = 0
  private end = 0
  private truncated = false

  constructor(private readonly bytesMax: number) {}

  append(part: Uint8Array): void {
    if (this.length + part.length > this.bytesMax) this.truncated = true
    const kept = part.length > this.bytesMax ? part.subarray(part.length - this.bytesMax) : part
    this.grow(Math.min(this.length + kept.length, this.bytesMax))
    const atEnd = Math.min(kept.length, this.ring.length - this.end)
    this.ring.set(kept.subarray(0, atEnd), this.end)
    this.ring.set(kept.subarray(atEnd), 0)
    this.end = kept.length > atEnd ? kept.length - atEnd : (this.end + atEnd) % Math.max(1, this.ring.length)
    this.length = Math.min(this.length + kept.length, this.ring.length)
  }

  markTruncated(): void {
    this.truncated = true
  }

  toString(): string {
    const { mark, bytes } = this.kept()
    return mark + bytes.toString()
  }

  /** Holds until more is appended. */
  kept(): KeptOutput {
    const bytes = this.linear()
    let start = 0
    // The oldest character may have lost its beginning.
    while (this.truncated && start < bytes.length && (bytes[start]! & 0xc0) === 0x80) start++
    return { mark: this.truncated ? truncationLine : '', bytes: bytes.subarray(start) }
  }

  private grow(bytes: number): void {
    if (bytes <= this.ring.length) return
    const size = Math.min(this.bytesMax, Math.max(bytes, 2 * this.ring.length, ringBytesFirst))
    const larger = Buffer.allocUnsafeSlow(size)
    larger.set(this.linear())
    this.ring = larger
    this.end = this.length % size
  }

  private linear(): Buffer {
    const start = this.end - this.length
    if (start >= 0) return this.ring.subarray(start, this.end)
    return Buffer.concat([this.ring.subarray(this.ring.length + start), this.ring.subarray(0, this.end)])
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
  private readonly characters = { stdout: new WholeCharacters(), stderr: new WholeCharacters() }
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
    this[record.kind].append(this.characters[record.kind].push(record.data))
  }

  pushText(stream: OutputStream, text: string): void {
    this[stream].append(Buffer.from(text))
  }

  /** Nothing more will come: what was held back is shown. */
  end(): void {
    for (const stream of ['stdout', 'stderr'] as const) this[stream].append(this.characters[stream].end())
  }

  /** The same as `summary`, without making text of it. */
  kept(): { stdout: KeptOutput; stderr: KeptOutput } {
    return { stdout: this.stdout.kept(), stderr: this.stderr.kept() }
  }

  summary(): OutputSummary {
    const stdout = this.stdout.toString()
    const stderr = this.stderr.toString()
    return { logs: stdout + stderr, stdout, stderr }
  }
}
