import { type FileHandle, open } from 'node:fs/promises'
import { crc32, createDeflateRaw } from 'node:zlib'

/** What the format can say without its extensions for more. */
const entriesMax = 65_535
const bytesMax = 0xffff_ffff
const chunkBytes = 1024 * 1024
const nameBytesMax = 65_535

const localSignature = 0x04034b50
const centralSignature = 0x02014b50
const endSignature = 0x06054b50
/** 2.0, and in the directory: made on Unix, whose modes count. */
const versionNeeded = 20
const versionMadeBy = (3 << 8) | versionNeeded
const utf8Names = 0x800
const deflated = 8
const regularFile = 0o100000
const folder = 0o040000

interface Entry {
  name: Buffer
  mode: number
  modifiedAt: Date
  method: number
  crc: number
  compressedBytes: number
  bytes: number
  offset: number
}

export class ZipTooLarge extends Error {}

/** A zip archive written into a file of its own, piece by piece: no file is held in memory. */
export class ZipWriter implements AsyncDisposable {
  private readonly entries: Entry[] = []
  private offset = 0

  private constructor(private readonly file: FileHandle) {}

  /** The file is new and its owner's only. */
  static async create(path: string): Promise<ZipWriter> {
    return new ZipWriter(await open(path, 'wx', 0o600))
  }

  get count(): number {
    return this.entries.length
  }

  /** `name`: path in the archive, with slashes. `mode`: permissions. @throws ZipTooLarge */
  async addFile(
    name: string,
    content: AsyncIterable<Uint8Array>,
    mode: number,
    modifiedAt: Date,
  ): Promise<void> {
    const entry = this.begin(name, regularFile | (mode & 0o7777), modifiedAt, deflated)
    const deflate = createDeflateRaw()
    const fed = (async () => {
      for await (const chunk of content) {
        entry.crc = crc32(chunk, entry.crc)
        entry.bytes += chunk.length
        if (!deflate.write(chunk)) await new Promise((resolve) => deflate.once('drain', resolve))
      }
      deflate.end()
    })()
    fed.catch((error: Error) => deflate.destroy(error))
    for await (const chunk of deflate) {
      entry.compressedBytes += (chunk as Buffer).length
      await this.write(chunk as Buffer)
    }
    await fed
    if (entry.bytes > bytesMax) throw new ZipTooLarge(`${name} is larger than 4 GiB`)
    await this.finishEntry(entry)
  }

  /** @throws ZipTooLarge */
  async addFolder(name: string, mode: number, modifiedAt: Date): Promise<void> {
    await this.finishEntry(this.begin(`${name}/`, folder | (mode & 0o7777), modifiedAt, 0))
  }

  /** Writes the directory. The archive is whole then; answers its size in bytes. */
  async finish(): Promise<number> {
    const start = this.offset
    for (const entry of this.entries) await this.write(centralHeader(entry))
    const end = Buffer.alloc(22)
    end.writeUInt32LE(endSignature, 0)
    end.writeUInt16LE(this.entries.length, 8)
    end.writeUInt16LE(this.entries.length, 10)
    end.writeUInt32LE(this.offset - start, 12)
    end.writeUInt32LE(start, 16)
    await this.write(end)
    return this.offset
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.file.close()
  }

  private begin(path: string, mode: number, modifiedAt: Date, method: number): Entry {
    const name = Buffer.from(path)
    if (name.length > nameBytesMax) throw new ZipTooLarge(`${path.slice(0, 100)}... is too long a name`)
    if (this.entries.length >= entriesMax) throw new ZipTooLarge(`there are more than ${entriesMax} files`)
    const offset = this.offset
    // Its header is written once what it says is known.
    this.offset += 30 + name.length
    return { name, mode, modifiedAt, method, crc: 0, compressedBytes: 0, bytes: 0, offset }
  }

  private async finishEntry(entry: Entry): Promise<void> {
    const header = Buffer.concat([localHeader(entry), entry.name])
    await this.file.write(header, 0, header.length, entry.offset)
    this.entries.push(entry)
  }

  private async write(bytes: Buffer): Promise<void> {
    if (this.offset + bytes.length > bytesMax) throw new ZipTooLarge('it is larger than 4 GiB')
    for (let at = 0; at < bytes.length; ) {
      const length = Math.min(chunkBytes, bytes.length - at)
      const { bytesWritten } = await this.file.write(bytes, at, length, this.offset)
      at += bytesWritten
      this.offset += bytesWritten
    }
  }
}

/** From "version needed" to "length of the name", which both headers have. */
function common({ method, modifiedAt, crc, compressedBytes, bytes, name }: Entry): Buffer {
  const fields = Buffer.alloc(24)
  fields.writeUInt16LE(versionNeeded, 0)
  fields.writeUInt16LE(utf8Names, 2)
  fields.writeUInt16LE(method, 4)
  fields.writeUInt32LE(dosTime(modifiedAt), 6)
  fields.writeUInt32LE(crc, 10)
  fields.writeUInt32LE(compressedBytes, 14)
  fields.writeUInt32LE(bytes, 18)
  fields.writeUInt16LE(name.length, 22)
  return fields
}

function localHeader(entry: Entry): Buffer {
  const header = Buffer.alloc(30)
  header.writeUInt32LE(localSignature, 0)
  common(entry).copy(header, 4)
  return header
}

function centralHeader(entry: Entry): Buffer {
  const header = Buffer.alloc(46)
  header.writeUInt32LE(centralSignature, 0)
  header.writeUInt16LE(versionMadeBy, 4)
  common(entry).copy(header, 6)
  header.writeUInt32LE(((entry.mode & 0xffff) << 16) >>> 0, 38)
  header.writeUInt32LE(entry.offset, 42)
  return Buffer.concat([header, entry.name])
}

/** In UTC, to two seconds, from 1980 on. */
function dosTime(time: Date): number {
  const year = Math.min(Math.max(time.getUTCFullYear(), 1980), 2107)
  if (year !== time.getUTCFullYear()) return (1 << 21) | (1 << 16)
  const date = ((year - 1980) << 9) | ((time.getUTCMonth() + 1) << 5) | time.getUTCDate()
  const clock = (time.getUTCHours() << 11) | (time.getUTCMinutes() << 5) | (time.getUTCSeconds() >> 1)
  return ((date << 16) | clock) >>> 0
}
