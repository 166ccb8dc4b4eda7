import { mkdir, readdir, rename, rm, statfs } from 'node:fs/promises'
import { join } from 'node:path'
import { PlatformError } from '../errors.ts'
import { sync } from '../lib/durable.ts'
import { flowing } from '../lib/flow.ts'
import { ReceivedFile } from '../lib/received-file.ts'
import { free } from '../lib/spent.ts'
import type { ArchiveType } from './record.ts'

/** For each 64 KiB of an archive. */
const stallMsMax = 60_000
/** What an upload leaves of the disk. */
const freeBytesMin = 256 * 1024 * 1024
/** With the local header of a file, or with the end of an archive without files. */
const zipBeginnings = ['PK\u0003\u0004', 'PK\u0005\u0006']

export interface Sent {
  body: ReadableStream<Uint8Array> | null
  type: ArchiveType
  /** As the client said; null: it did not. */
  length: number | null
  bytesMax: number
  signal: AbortSignal
}

/** Uploaded archives: nobody else's to read, whole or not there, gone once they were built. */
export class Archives {
  readonly #dir: string

  constructor(dir: string) {
    this.#dir = dir
  }

  pathOf(id: string): string {
    return join(this.#dir, `${id}.archive`)
  }

  /**
   * Resolves once the archive is on the disk for good, with its size; of one that breaks off nothing is kept.
   * @throws bad_request, body_too_large, bad_gateway, gateway_timeout, insufficient_storage, the signal's reason
   */
  async receive(id: string, sent: Sent): Promise<number> {
    const { length, bytesMax } = sent
    if (length !== null && length > bytesMax) throw tooLarge(bytesMax, `${length} bytes`)
    const draft = join(this.#dir, 'partial', id)
    await mkdir(join(this.#dir, 'partial'), { recursive: true, mode: 0o700 })
    await this.#checkSpace(length ?? 0)
    try {
      const bytes = await this.#write(draft, sent)
      await rename(draft, this.pathOf(id))
      await sync(this.#dir)
      return bytes
    } catch (error) {
      await rm(draft, { force: true })
      throw error
    }
  }

  async remove(id: string): Promise<void> {
    await rm(this.pathOf(id), { force: true })
  }

  async has(id: string): Promise<boolean> {
    return await Bun.file(this.pathOf(id)).exists()
  }

  /** At start: removes what broke off, and archives that nobody needs. */
  async removeExcept(wanted: ReadonlySet<string>): Promise<void> {
    await rm(join(this.#dir, 'partial'), { recursive: true, force: true })
    for (const name of await readdir(this.#dir).catch(() => [] as string[])) {
      const id = /^(.+)\.archive$/.exec(name)?.[1]
      if (id !== undefined && !wanted.has(id)) await this.remove(id)
    }
  }

  async #write(path: string, { body, type, length, bytesMax, signal }: Sent): Promise<number> {
    await using file = await ReceivedFile.open(path, () => this.#checkSpace(0))
    let first: Buffer = Buffer.alloc(0)
    for await (const bytes of flowing(body, { windowMs: stallMsMax, sender: 'the client', signal })) {
      if (file.size + bytes.length > bytesMax) throw tooLarge(bytesMax, 'more')
      if (first.length < 4) {
        first = Buffer.concat([first, bytes.subarray(0, 4)])
        if (type === 'zip' && first.length >= 4) checkZip(first)
      }
      await file.write(bytes)
      free(bytes)
    }
    signal.throwIfAborted()
    if (length !== null && file.size !== length) {
      throw new PlatformError(
        'bad_request',
        `the archive ended after ${file.size} bytes of ${length} (Content-Length): send it again`,
      )
    }
    if (file.size === 0) throw new PlatformError('bad_request', 'the body is empty: send the archive in it')
    if (type === 'zip') checkZip(first)
    await file.sync()
    return file.size
  }

  async #checkSpace(bytes: number): Promise<void> {
    const { bavail, bsize } = await statfs(this.#dir)
    if (bavail * bsize - bytes >= freeBytesMin) return
    throw new PlatformError(
      'insufficient_storage',
      `the host has no room for this archive: ${freeBytesMin / 1024 ** 2} MiB are to stay free`,
    )
  }
}

/** @throws bad_request */
function checkZip(first: Buffer): void {
  if (zipBeginnings.includes(first.toString('latin1', 0, 4))) return
  throw new PlatformError(
    'bad_request',
    'the body is no zip archive: send one, or say Content-Type: application/x-tar',
  )
}

function tooLarge(bytesMax: number, got: string): PlatformError {
  return new PlatformError(
    'body_too_large',
    `an archive has at most ${bytesMax} bytes, this one has ${got}: leave out what is not needed (.blaxelignore)`,
  )
}
