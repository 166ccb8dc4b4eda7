import { PlatformError } from '../errors.ts'
import type { LayerAttributes, LayerEntry, LayerSink, Layers } from '../spec/layers.ts'
import { FrameType, FrameWriter, framePayloadBytesMax } from './frame.ts'

/** Small frames travel together. */
const batchBytesMax = 256 * 1024
const dataBytesMax = framePayloadBytesMax - 8
const answerBytesMax = 4096
/** Errors of the disk rather than of the entry. */
const diskFull = new Set([28, 122])

/** Layers written by the helper, in a process that has nothing but the directory. */
export class HelperLayers implements Layers {
  constructor(private readonly helperPath: string) {}

  async open(directory: string): Promise<LayerSink> {
    return new HelperSink(this.helperPath, directory)
  }

  async empty(directory: string): Promise<void> {
    const child = Bun.spawn([this.helperPath, 'empty'], { ...confined, cwd: directory, stdin: 'ignore' })
    const failure = failureOf(await readAnswer(child.stdout), await child.exited)
    if (failure) throw failure
  }
}

const confined = { stdout: 'pipe', stderr: 'ignore', env: {} } as const

class HelperSink implements LayerSink {
  readonly #child: Bun.Subprocess<'pipe', 'pipe', 'ignore'>
  readonly #answer: Promise<PlatformError | null>
  #batch = new Uint8Array(batchBytesMax)
  #batchBytes = 0
  #pending: Promise<unknown>[] = []
  #failure: PlatformError | null = null
  #ended = false

  constructor(helperPath: string, directory: string) {
    this.#child = Bun.spawn([helperPath, 'unpack'], { ...confined, cwd: directory, stdin: 'pipe' })
    this.#answer = Promise.all([readAnswer(this.#child.stdout), this.#child.exited]).then(([line, code]) => {
      this.#failure = failureOf(line, code)
      this.#ended = true
      return this.#failure
    })
    this.#answer.catch(() => {})
  }

  entry(entry: LayerEntry): void {
    switch (entry.type) {
      case 'directory':
        this.#send(frameOf(FrameType.unpackDirectory, entry.path))
        this.#attributes(entry)
        return
      case 'fifo':
        this.#send(frameOf(FrameType.unpackFifo, entry.path))
        this.#attributes(entry)
        return
      case 'file':
        this.#send(bytesOf(new FrameWriter(FrameType.unpackFile, 0).u64(entry.size), entry.path))
        return
      case 'symlink':
        this.#send(frameOf(FrameType.unpackSymlink, entry.path, entry.target))
        this.#attributes(entry)
        return
      case 'link':
        this.#send(frameOf(FrameType.unpackLink, entry.path, entry.target))
        return
      case 'whiteout':
        this.#send(frameOf(FrameType.unpackWhiteout, entry.path))
        return
      case 'opaque':
        this.#send(frameOf(FrameType.unpackOpaque, entry.path))
    }
  }

  data(offset: number, bytes: Uint8Array): void {
    for (let at = 0; at < bytes.length; at += dataBytesMax) {
      const part = bytes.subarray(at, at + dataBytesMax)
      this.#send(
        new FrameWriter(FrameType.unpackData, 0, 8 + part.length)
          .u64(offset + at)
          .raw(part)
          .finish(),
      )
    }
  }

  complete(
    attributes: LayerAttributes,
    xattrs: readonly (readonly [name: string, value: Uint8Array])[],
  ): void {
    this.#attributes(attributes)
    for (const [name, value] of xattrs) {
      this.#send(text(new FrameWriter(FrameType.unpackXattr, 0), name).raw(value).finish())
    }
  }

  modified(path: string, modifiedNs: bigint): void {
    const writer = new FrameWriter(FrameType.unpackTimes, 0).u64(BigInt.asUintN(64, modifiedNs))
    this.#send(bytesOf(writer, path))
  }

  async drained(): Promise<void> {
    if (this.#ended) throw this.#failure ?? endedEarly()
    if (this.#pending.length === 0) return
    const pending = this.#pending
    this.#pending = []
    // Whoever ended does not read any more: a write would wait for ever.
    await Promise.race([Promise.all(pending).catch(() => {}), this.#answer])
    if (this.#ended) throw this.#failure ?? endedEarly()
  }

  async finish(): Promise<void> {
    this.#send(new FrameWriter(FrameType.unpackFinish, 0).finish())
    this.#flush()
    await this.#child.stdin.end()
    const failure = await this.#answer
    if (failure) throw failure
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (!this.#ended) this.#child.kill('SIGKILL')
    await this.#answer.catch(() => {})
  }

  #attributes({ mode, uid, gid, modifiedNs }: LayerAttributes): void {
    const writer = new FrameWriter(FrameType.unpackAttributes, 0).u32(mode).u32(uid).u32(gid)
    this.#send(writer.u64(BigInt.asUintN(64, modifiedNs)).finish())
  }

  #send(frame: Uint8Array): void {
    if (this.#batchBytes + frame.length > batchBytesMax) this.#flush()
    if (frame.length > batchBytesMax) {
      this.#write(frame)
      return
    }
    this.#batch.set(frame, this.#batchBytes)
    this.#batchBytes += frame.length
  }

  #flush(): void {
    if (this.#batchBytes === 0) return
    this.#write(this.#batch.subarray(0, this.#batchBytes))
    this.#batch = new Uint8Array(batchBytesMax)
    this.#batchBytes = 0
  }

  #write(bytes: Uint8Array): void {
    if (this.#ended) return
    try {
      this.#child.stdin.write(bytes)
      const flushed = this.#child.stdin.flush()
      if (flushed instanceof Promise) {
        flushed.catch(() => {})
        this.#pending.push(flushed)
      }
    } catch {
      // It ended; its answer says why.
    }
  }
}

function bytesOf(writer: FrameWriter, ...texts: string[]): Uint8Array {
  for (const one of texts) text(writer, one)
  return writer.finish()
}

function frameOf(type: FrameType, ...texts: string[]): Uint8Array {
  return bytesOf(new FrameWriter(type, 0), ...texts)
}

/** One byte a character. */
function text(writer: FrameWriter, value: string): FrameWriter {
  const bytes = Buffer.from(value, 'latin1')
  return writer.u32(bytes.length).raw(bytes)
}

async function readAnswer(stream: ReadableStream<Uint8Array>): Promise<string> {
  let answer = ''
  for await (const chunk of stream) {
    answer += Buffer.from(chunk).toString('latin1')
    if (answer.length > answerBytesMax) break
  }
  return answer.slice(0, answerBytesMax)
}

function failureOf(answer: string, code: number): PlatformError | null {
  if (answer === 'ok\n' && code === 0) return null
  const said = /^error stage=(\S+) errno=(\d+) (.*)$/m.exec(answer)
  if (!said) return endedEarly(`the helper ended with ${code}: ${answer.slice(0, 200)}`)
  const [stage, errno, message = ''] = [said[1], Number(said[2]), said[3]]
  if (diskFull.has(errno)) {
    return new PlatformError('insufficient_storage', 'the host has no room for the image', {
      cause: new Error(message),
    })
  }
  if (stage === 'entry') {
    return new PlatformError('unprocessable', `the layer has an entry that cannot be made (${message})`)
  }
  return new PlatformError('unavailable', 'image layers cannot be written on this host', {
    cause: new Error(`${stage}: ${message}`),
  })
}

function endedEarly(cause = 'the helper ended early'): PlatformError {
  return new PlatformError('unavailable', 'image layers cannot be written on this host', {
    cause: new Error(cause),
  })
}
