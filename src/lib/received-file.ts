import { type FileHandle, open } from 'node:fs/promises'
import { PlatformError } from '../errors.ts'

const bytesPerSpaceCheck = 64 * 1024 * 1024

/** What somebody sends, as it comes in: written, counted and hashed, while the host has room. */
export class ReceivedFile implements AsyncDisposable {
  readonly #file: FileHandle
  readonly #hash = new Bun.CryptoHasher('sha256')
  readonly #checkSpace: () => Promise<void>
  #size = 0
  #checkedAt = 0

  private constructor(file: FileHandle, checkSpace: () => Promise<void>) {
    this.#file = file
    this.#checkSpace = checkSpace
  }

  /**
   * Begins the file anew.
   * @param checkSpace asked now and then. @throws insufficient_storage
   */
  static async open(path: string, checkSpace: () => Promise<void>): Promise<ReceivedFile> {
    const file = await open(path, 'w', 0o600).catch((error: Error) => {
      throw diskError(error)
    })
    return new ReceivedFile(file, checkSpace)
  }

  get size(): number {
    return this.#size
  }

  /** The bytes are the caller's again afterwards. @throws insufficient_storage, internal */
  async write(bytes: Uint8Array): Promise<void> {
    try {
      for (let at = 0; at < bytes.length; ) {
        at += (await this.#file.write(bytes, at, bytes.length - at)).bytesWritten
      }
    } catch (error) {
      throw diskError(error as Error)
    }
    this.#hash.update(bytes)
    this.#size += bytes.length
    if (this.#size - this.#checkedAt < bytesPerSpaceCheck) return
    this.#checkedAt = this.#size
    await this.#checkSpace()
  }

  /** Of all that was written; to be asked once. */
  digest(): string {
    return `sha256:${this.#hash.digest('hex')}`
  }

  /** What was written is on the disk, whatever happens. @throws insufficient_storage, internal */
  async sync(): Promise<void> {
    await this.#file.sync().catch((error: Error) => {
      throw diskError(error)
    })
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#file.close()
  }
}

function diskError(cause: Error): PlatformError {
  const { code } = cause as NodeJS.ErrnoException
  return code === 'ENOSPC' || code === 'EDQUOT'
    ? new PlatformError('insufficient_storage', 'the host has no room for what is being sent', { cause })
    : new PlatformError('internal', 'what is being sent cannot be stored on this host', { cause })
}
