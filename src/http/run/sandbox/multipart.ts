import { PlatformError } from '../../../errors.ts'

const partHeaderBytesMax = 16 * 1024
const partsMax = 64

export interface MultipartPart {
  name: string
  filename: string | null
}

/** The boundary of a multipart/form-data body, or null when it is none. @throws bad_request without a boundary */
export function multipartBoundary(contentType: string | null): string | null {
  if (!contentType || !/^multipart\/form-data\b/i.test(contentType)) return null
  const match = /;\s*boundary=(?:"([^"]{1,200})"|([^\s;]{1,200}))/i.exec(contentType)
  if (!match) throw new PlatformError('bad_request', 'Content-Type: multipart/form-data has no boundary')
  return match[1] ?? match[2] ?? ''
}

/**
 * Reads multipart/form-data part by part, holding no more than a chunk and a boundary. The parts come in the body's
 * order: `next`, then `chunks` or `text` of that part; what was not read of a part is skipped.
 */
export class MultipartReader {
  /** Null when the body is here as a whole. */
  private readonly reader: ReadableStreamDefaultReader<Uint8Array> | null
  private readonly delimiter: Buffer
  /** A stream begins with a line end here, so that the first boundary looks like every other. */
  private buffer: Buffer = Buffer.from('\r\n')
  private inPart = true
  private count = 0

  constructor(body: ReadableStream<Uint8Array> | Uint8Array, boundary: string) {
    this.delimiter = Buffer.from(`\r\n--${boundary}`)
    if (!(body instanceof Uint8Array)) {
      this.reader = body.getReader()
      return
    }
    this.reader = null
    const bytes = Buffer.from(body.buffer, body.byteOffset, body.byteLength)
    const first = this.delimiter.subarray(2)
    // Not copied for the sake of the line end: of a body that begins with its first boundary, that is skipped at once.
    if (bytes.subarray(0, first.length).equals(first)) {
      this.buffer = bytes.subarray(first.length)
      this.inPart = false
    } else {
      this.buffer = Buffer.concat([this.buffer, bytes])
    }
  }

  /** Null behind the last part. @throws bad_request for what is no multipart/form-data */
  async next(): Promise<MultipartPart | null> {
    for await (const _ of this.chunks()) {
      // Skips what nobody read, and what stands before the first boundary.
    }
    await this.need(2)
    if (this.buffer.subarray(0, 2).equals(dashes)) {
      await this.drain()
      return null
    }
    if (++this.count > partsMax) throw malformed(`it has more than ${partsMax} parts`)
    const header = await this.header()
    const disposition = /^content-disposition:\s*form-data\b(.*)$/im.exec(header)?.[1] ?? ''
    const name = /;\s*name="((?:[^"\\]|\\.)*)"/i.exec(disposition)?.[1]
    if (name === undefined) throw malformed('a part has no name')
    this.inPart = true
    return { name, filename: /;\s*filename="((?:[^"\\]|\\.)*)"/i.exec(disposition)?.[1] ?? null }
  }

  /** The bytes of the current part. */
  async *chunks(): AsyncGenerator<Uint8Array, void, undefined> {
    while (this.inPart) {
      const at = this.buffer.indexOf(this.delimiter)
      if (at !== -1) {
        const last = this.buffer.subarray(0, at)
        this.buffer = this.buffer.subarray(at + this.delimiter.length)
        this.inPart = false
        if (last.length > 0) yield last
        return
      }
      const sure = this.buffer.length - this.delimiter.length + 1
      if (sure > 0) {
        const chunk = this.buffer.subarray(0, sure)
        this.buffer = this.buffer.subarray(sure)
        yield chunk
      }
      yield* this.crossed(await this.read())
    }
  }

  /** A short part as text. */
  async text(bytesMax: number): Promise<string> {
    const chunks: Uint8Array[] = []
    let bytes = 0
    for await (const chunk of this.chunks()) {
      bytes += chunk.length
      if (bytes > bytesMax) throw malformed(`a field is longer than ${bytesMax} bytes`)
      chunks.push(chunk)
    }
    return Buffer.concat(chunks).toString()
  }

  /** Gives up: the rest is not read. */
  async cancel(): Promise<void> {
    await this.reader?.cancel().catch(() => {})
  }

  private async header(): Promise<string> {
    for (;;) {
      // The line end behind the boundary counts, for a part without any header.
      const end = this.buffer.indexOf('\r\n\r\n')
      if (end !== -1) {
        const header = this.buffer.subarray(0, end).toString()
        this.buffer = this.buffer.subarray(end + 4)
        return header
      }
      if (this.buffer.length > partHeaderBytesMax) throw malformed('the header of a part is too long')
      await this.fill()
    }
  }

  private async need(bytes: number): Promise<void> {
    while (this.buffer.length < bytes) await this.fill()
  }

  /** Takes more in, and gives what lay before it, without copying it all, where no boundary lies across the border. */
  private *crossed(more: Buffer): Iterable<Uint8Array> {
    const carried = this.buffer
    const border = Buffer.concat([carried, more.subarray(0, this.delimiter.length - 1)])
    if (more.length < this.delimiter.length || border.includes(this.delimiter)) {
      this.buffer = Buffer.concat([carried, more])
      return
    }
    this.buffer = more
    if (carried.length > 0) yield carried
  }

  private async fill(): Promise<void> {
    this.buffer = Buffer.concat([this.buffer, await this.read()])
  }

  private async read(): Promise<Buffer> {
    const { done, value } = (await this.reader?.read()) ?? { done: true, value: undefined }
    if (done) throw malformed('it ends too early')
    return Buffer.from(value.buffer, value.byteOffset, value.byteLength)
  }

  /** What follows the last boundary has no meaning, and little of it is waited for. */
  private async drain(): Promise<void> {
    if (this.reader === null) return
    let bytes = 0
    for (;;) {
      const { done, value } = await this.reader.read()
      if (done) return
      bytes += value.length
      if (bytes > partHeaderBytesMax) return this.cancel()
    }
  }
}

const dashes = Buffer.from('--')

function malformed(why: string): PlatformError {
  return new PlatformError(
    'bad_request',
    `invalid request body: the multipart/form-data is malformed: ${why}`,
  )
}
