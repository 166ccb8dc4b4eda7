import type { OutputStream } from './output.ts'

/** A line longer than this is passed on in pieces. */
const lineBytesMax = 1024 * 1024

const newline = 10
const noBytes = Buffer.alloc(0)

/**
 * Cuts the bytes of the two streams into whole lines, each of them once. What begins a line waits for its end; a line
 * that is longer than `lineBytesMax` comes in pieces. What has no end of its own gets one, unless it is to stay as it was.
 */
export class LineCutter {
  private readonly begun: Record<OutputStream, Buffer> = { stdout: noBytes, stderr: noBytes }
  private readonly ended: (bytes: Buffer) => Buffer

  constructor({ endsAll = true }: { endsAll?: boolean } = {}) {
    this.ended = endsAll ? withEnd : (bytes) => bytes
  }

  /** Whole lines with their ends, in pieces that each hold one line or more. Views of `data`, where they can be. */
  push(stream: OutputStream, data: Uint8Array): Buffer[] {
    const bytes = Buffer.from(data.buffer, data.byteOffset, data.byteLength)
    const lastEnd = bytes.lastIndexOf(newline)
    const begun = this.begun[stream]
    if (lastEnd === -1) return this.begin(stream, Buffer.concat([begun, bytes]))
    const whole: Buffer[] = []
    let start = 0
    if (begun.length > 0) {
      start = bytes.indexOf(newline) + 1
      whole.push(Buffer.concat([begun, bytes.subarray(0, start)]))
    }
    if (start <= lastEnd) whole.push(bytes.subarray(start, lastEnd + 1))
    whole.push(...this.begin(stream, Buffer.from(bytes.subarray(lastEnd + 1))))
    return whole
  }

  /** What waits for an end that will not come. */
  end(stream: OutputStream): Buffer[] {
    const begun = this.begun[stream]
    this.begun[stream] = noBytes
    return begun.length === 0 ? [] : [this.ended(begun)]
  }

  /** Whether something waits for its end. */
  get waits(): boolean {
    return this.begun.stdout.length + this.begun.stderr.length > 0
  }

  private begin(stream: OutputStream, bytes: Buffer): Buffer[] {
    const pieces: Buffer[] = []
    let start = 0
    while (bytes.length - start > lineBytesMax) {
      const end = characterStart(bytes, start + lineBytesMax)
      pieces.push(this.ended(bytes.subarray(start, end)))
      start = end
    }
    this.begun[stream] = bytes.subarray(start)
    return pieces
  }
}

function withEnd(bytes: Buffer): Buffer {
  const line = Buffer.allocUnsafe(bytes.length + 1)
  line.set(bytes)
  line[bytes.length] = newline
  return line
}

/** Where the UTF-8 character begins that the byte at `at` belongs to; `at` itself for what is no UTF-8. */
function characterStart(bytes: Uint8Array, at: number): number {
  for (let start = at; start > at - 4; start--) if ((bytes[start]! & 0xc0) !== 0x80) return start
  return at
}
