import type { OutputRecord } from '../../spec/runtime.ts'

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

/** Parts smaller than this are put together: a program that writes byte by byte is not to cost a part for each. */
const smallPartBytes = 4096
const blockBytes = 16 * 1024

/** The last `bytesMax` bytes of a text that is appended to. */
class TextTail {
  private parts: Uint8Array[] = []
  private bytes = 0
  private truncated = false
  /** The last part lies in it, if it is there: its first `blockUsed` bytes are taken. */
  private block: Buffer | null = null
  private blockUsed = 0

  constructor(private readonly bytesMax: number) {}

  append(part: Uint8Array): void {
    if (part.length === 0) return
    if (part.length < smallPartBytes) this.appendSmall(part)
    else {
      this.parts.push(part)
      this.block = null
    }
    this.bytes += part.length
    let drop = 0
    for (const { length } of this.parts) {
      if (this.bytes - length < this.bytesMax) break
      this.bytes -= length
      drop++
    }
    if (drop > 0) {
      this.parts.splice(0, drop)
      this.truncated = true
    }
  }

  private appendSmall(part: Uint8Array): void {
    if (this.block === null || this.blockUsed + part.length > this.block.length) {
      this.block = Buffer.allocUnsafeSlow(blockBytes)
      this.blockUsed = 0
      this.parts.push(this.block.subarray(0, 0))
    }
    this.block.set(part, this.blockUsed)
    this.blockUsed += part.length
    this.parts[this.parts.length - 1] = this.block.subarray(0, this.blockUsed)
  }

  markTruncated(): void {
    this.truncated = true
  }

  toString(): string {
    // One part from now on, with nothing around it that what it was a part of would keep in memory.
    const joined = Buffer.concat(this.parts)
    this.parts = [joined]
    this.block = null
    let start = Math.max(0, joined.length - this.bytesMax)
    const cut = start > 0
    while (cut && start < joined.length && (joined[start]! & 0xc0) === 0x80) start++
    return (this.truncated || cut ? truncationLine : '') + joined.toString('utf8', start)
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

  summary(): OutputSummary {
    const stdout = this.stdout.toString()
    const stderr = this.stderr.toString()
    return { logs: stdout + stderr, stdout, stderr }
  }
}
