import { PlatformError } from '../errors.ts'
import type { FileToWrite } from '../spec/guest.ts'
import { readError } from './codec.ts'
import { fileError } from './errno.ts'
import { checkPath, frame, modeBits } from './file-requests.ts'
import type { FilesPool, Operation } from './files-pool.ts'
import { FrameType, frameHeader } from './frame.ts'

/** Sent and not answered yet. */
const aheadFilesMax = 256
const aheadBytesMax = 1024 * 1024
/** What goes out in one write. */
const batchBytes = 64 * 1024
/** Larger files are not copied into a batch. */
const largeBytesMin = 64 * 1024
const dataBytesMax = 1024 * 1024

/** Writes files one behind the other over one connection, without waiting for each to be answered. */
export async function writeAll(pool: FilesPool, files: readonly FileToWrite[]): Promise<void> {
  const first = files[0]
  if (!first) return
  for (const { path } of files) checkPath(path)
  const operation = await pool.start(first.path)
  const batch = new Batch(operation)
  let answered = 0
  let aheadBytes = 0
  let failure: unknown = null
  const settle = async () => {
    const file = files[answered++] as FileToWrite
    const answer = await operation.next()
    aheadBytes -= file.data.length
    if (answer.type === FrameType.error) {
      const { errno, message } = readError(answer.payload)
      failure ??= failureAt(file.path, fileError(errno, file.path, message))
    } else operation.expect(answer, FrameType.entryOk)
  }
  try {
    let sent = 0
    for (const file of files) {
      if (failure) break
      batch.add(frame(FrameType.write, (writer) => writer.u32(modeBits(file)).str(file.path)))
      for (let at = 0; at < file.data.length; at += dataBytesMax) {
        const part = file.data.subarray(at, at + dataBytesMax)
        batch.add(frameHeader(FrameType.data, 0, part.length))
        batch.add(part)
        await operation.drained()
      }
      batch.add(frameHeader(FrameType.end, 0, 0))
      sent++
      aheadBytes += file.data.length
      while (!failure && (sent - answered >= aheadFilesMax || aheadBytes > aheadBytesMax)) {
        batch.flush()
        await settle()
      }
    }
    batch.flush()
    while (answered < sent) await settle()
    operation.done()
  } finally {
    operation.release()
  }
  if (failure) throw failure
}

/** Of many files, the one that it was. */
function failureAt(path: string, error: PlatformError): PlatformError {
  return new PlatformError(error.code, error.message, { details: { ...error.details, path } })
}

/** Small frames that leave together. */
class Batch {
  #bytes = Buffer.allocUnsafe(batchBytes)
  #used = 0

  constructor(private readonly operation: Operation) {}

  add(bytes: Uint8Array): void {
    if (this.#used + bytes.length > batchBytes) this.flush()
    if (bytes.length >= largeBytesMin) {
      this.operation.send(bytes)
      return
    }
    this.#bytes.set(bytes, this.#used)
    this.#used += bytes.length
  }

  flush(): void {
    if (this.#used === 0) return
    this.operation.send(this.#bytes.subarray(0, this.#used))
    // The connection may keep what it was given until the kernel takes it.
    this.#bytes = Buffer.allocUnsafe(batchBytes)
    this.#used = 0
  }
}
