/** Reads zip archives by their central directory: stored and deflated, zip64, Unix modes, sizes behind the data. */
import { createReadStream } from 'node:fs'
import { type FileHandle, open } from 'node:fs/promises'
import { pipeline } from 'node:stream'
import { crc32, createInflateRaw } from 'node:zlib'
import type { PlatformError } from '../errors.ts'
import { shownPath } from '../lib/tar.ts'
import { type ArchiveEntry, archiveEntriesMax, refused } from './entry.ts'

const endSignature = 0x06054b50
const end64Signature = 0x06064b50
const locator64Signature = 0x07064b50
const centralSignature = 0x02014b50
const localSignature = 0x04034b50
const endBytes = 22
const locator64Bytes = 20
const end64Bytes = 56
const centralBytes = 46
const localBytes = 30
const commentBytesMax = 65_535
const directoryBytesMax = 128 * 1024 * 1024
const readBytes = 256 * 1024
const none16 = 0xffff
const none32 = 0xffffffff
const stored = 0
const deflated = 8
const encryptedFlag = 1
const unixSystems = new Set([3, 19])
const fileTypeMask = 0o170000
const symlinkType = 0o120000
const directoryType = 0o040000
const regularType = 0o100000
const linkBytesMax = 4096

interface Header {
  path: string
  system: number
  flags: number
  method: number
  crc: number
  packed: number
  bytes: number
  attributes: number
  modifiedNs: bigint
  /** Of its local header. */
  offset: number
}

/** In the order of the directory. @throws unprocessable */
export async function* walkZip(path: string): AsyncGenerator<ArchiveEntry> {
  await using file = await open(path, 'r')
  const { size } = await file.stat()
  const directory = await findDirectory(file, size)
  if (directory.entries > archiveEntriesMax) throw refused(`it has more than ${archiveEntriesMax} entries`)
  const bytes = await readExactly(file, directory.offset, directory.bytes)
  const headers = readDirectory(bytes, directory.entries)
  // Entries that share their bytes: a small archive could hold any amount.
  if (headers.reduce((sum, { packed }) => sum + packed, 0) > size) throw broken('its entries overlap')
  for (const header of headers) yield await entryOf(file, path, directory.offset, header)
}

async function entryOf(
  file: FileHandle,
  path: string,
  dataEnd: number,
  header: Header,
): Promise<ArchiveEntry> {
  const { flags, method, attributes, system, modifiedNs } = header
  const name = shownPath(header.path)
  if (flags & encryptedFlag) throw refused(`${name} is encrypted`)
  if (method !== stored && method !== deflated) {
    throw refused(`${name} is compressed by method ${method}; only stored and deflated ones can be read`)
  }
  if (method === stored && header.packed !== header.bytes) throw broken(`${name} has two sizes`)
  const unixMode = unixSystems.has(system) ? attributes >>> 16 : 0
  const kind = unixMode & fileTypeMask
  const isDirectory = kind === directoryType || header.path.endsWith('/')
  if (kind !== 0 && kind !== directoryType && kind !== regularType && kind !== symlinkType)
    throw refused(`${name} is a device, a socket or a named pipe, which is no source`)
  const content = () => contentOf(file, path, dataEnd, header)
  const type = isDirectory ? 'directory' : kind === symlinkType ? 'symlink' : 'file'
  const mode = unixMode & 0o777 || (isDirectory ? 0o755 : 0o644)
  return {
    path: header.path,
    type,
    mode,
    modifiedNs,
    bytes: type === 'file' ? header.bytes : 0,
    target: type === 'symlink' ? await linkTarget(header, content()) : '',
    content,
  }
}

async function linkTarget(header: Header, content: AsyncIterable<Uint8Array>): Promise<string> {
  if (header.bytes > linkBytesMax) throw refused(`the symbolic link ${shownPath(header.path)} is too long`)
  const parts: Uint8Array[] = []
  for await (const part of content) parts.push(part.slice())
  return Buffer.concat(parts).toString('latin1')
}

/** Ends after as many bytes as the directory says, and with the checksum it says. @throws unprocessable */
async function* contentOf(
  file: FileHandle,
  path: string,
  dataEnd: number,
  header: Header,
): AsyncGenerator<Uint8Array> {
  const name = shownPath(header.path)
  const local = await readExactly(file, header.offset, localBytes)
  const view = viewOf(local)
  if (view.getUint32(0, true) !== localSignature) throw broken(`${name} is not where it should be`)
  const start = header.offset + localBytes + view.getUint16(26, true) + view.getUint16(28, true)
  if (start + header.packed > dataEnd) throw broken(`${name} is longer than the archive`)
  let checksum = 0
  let bytes = 0
  if (header.packed > 0) {
    const raw = createReadStream(path, { start, end: start + header.packed - 1, highWaterMark: readBytes })
    const data = header.method === stored ? raw : createInflateRaw({ chunkSize: readBytes })
    // Its error reaches the reader below.
    if (data !== raw) pipeline(raw, data as ReturnType<typeof createInflateRaw>, () => {})
    try {
      for await (const part of data as AsyncIterable<Uint8Array>) {
        bytes += part.length
        if (bytes > header.bytes) throw broken(`${name} has more bytes than it says`)
        checksum = crc32(part, checksum)
        yield part
      }
    } catch (error) {
      throw (error as { code?: string }).code?.startsWith('Z_') ? broken(`${name} is damaged`, error) : error
    } finally {
      data.destroy()
      raw.destroy()
    }
  }
  if (bytes !== header.bytes) throw broken(`${name} has fewer bytes than it says`)
  if (checksum !== header.crc) throw broken(`${name} is damaged: its checksum is another`)
}

async function findDirectory(
  file: FileHandle,
  size: number,
): Promise<{ offset: number; bytes: number; entries: number }> {
  const tailBytes = Math.min(size, endBytes + commentBytesMax)
  const tail = await readExactly(file, size - tailBytes, tailBytes)
  const view = viewOf(tail)
  for (let at = tailBytes - endBytes; at >= 0; at--) {
    if (view.getUint32(at, true) !== endSignature) continue
    if (at + endBytes + view.getUint16(at + 20, true) !== tailBytes) continue
    const end = size - tailBytes + at
    if (view.getUint16(at + 4, true) !== view.getUint16(at + 6, true)) throw broken('it is in several parts')
    const found = {
      entries: view.getUint16(at + 10, true),
      bytes: view.getUint32(at + 12, true),
      offset: view.getUint32(at + 16, true),
    }
    const isZip64 = found.entries === none16 || found.bytes === none32 || found.offset === none32
    const directory = (isZip64 ? await findDirectory64(file, end) : null) ?? found
    if (directory.bytes > directoryBytesMax) throw broken('its directory is too long')
    if (directory.offset + directory.bytes > end) throw broken('its directory is not where it should be')
    return directory
  }
  throw broken('it is no zip archive, or cut short')
}

async function findDirectory64(
  file: FileHandle,
  end: number,
): Promise<{ offset: number; bytes: number; entries: number } | null> {
  if (end < locator64Bytes) return null
  const locator = viewOf(await readExactly(file, end - locator64Bytes, locator64Bytes))
  if (locator.getUint32(0, true) !== locator64Signature) return null
  const at = safeNumber(locator.getBigUint64(8, true))
  if (at + end64Bytes > end) throw broken('its directory is not where it should be')
  const view = viewOf(await readExactly(file, at, end64Bytes))
  if (view.getUint32(0, true) !== end64Signature) throw broken('its directory is not where it should be')
  return {
    entries: safeNumber(view.getBigUint64(32, true)),
    bytes: safeNumber(view.getBigUint64(40, true)),
    offset: safeNumber(view.getBigUint64(48, true)),
  }
}

function readDirectory(bytes: Uint8Array, entries: number): Header[] {
  const view = viewOf(bytes)
  const headers: Header[] = []
  let at = 0
  while (headers.length < entries) {
    if (at + centralBytes > bytes.length || view.getUint32(at, true) !== centralSignature)
      throw broken('its directory is damaged')
    const [nameBytes, extraBytes, commentBytes] = [28, 30, 32].map((field) =>
      view.getUint16(at + field, true),
    )
    const nameAt = at + centralBytes
    const extraAt = nameAt + nameBytes!
    const next = extraAt + extraBytes! + commentBytes!
    if (next > bytes.length) throw broken('its directory is damaged')
    const header: Header = {
      path: Buffer.from(bytes.subarray(nameAt, extraAt)).toString('latin1'),
      system: view.getUint8(at + 5),
      flags: view.getUint16(at + 8, true),
      method: view.getUint16(at + 10, true),
      modifiedNs: dosTimeNs(view.getUint16(at + 14, true), view.getUint16(at + 12, true)),
      crc: view.getUint32(at + 16, true),
      packed: view.getUint32(at + 20, true),
      bytes: view.getUint32(at + 24, true),
      attributes: view.getUint32(at + 38, true),
      offset: view.getUint32(at + 42, true),
    }
    readExtra(header, bytes.subarray(extraAt, extraAt + extraBytes!))
    headers.push(header)
    at = next
  }
  return headers
}

/** Sizes beyond 4 GiB, and times in seconds since the epoch. */
function readExtra(header: Header, extra: Uint8Array): void {
  const view = viewOf(extra)
  for (let at = 0; at + 4 <= extra.length; ) {
    const id = view.getUint16(at, true)
    const end = at + 4 + view.getUint16(at + 2, true)
    if (end > extra.length) return
    if (id === 1) {
      let field = at + 4
      for (const key of ['bytes', 'packed', 'offset'] as const) {
        if (header[key] !== none32) continue
        if (field + 8 > end) throw broken(`${shownPath(header.path)} has no size`)
        header[key] = safeNumber(view.getBigUint64(field, true))
        field += 8
      }
    } else if (id === 0x5455 && end - at >= 9 && view.getUint8(at + 4) & 1) {
      header.modifiedNs = BigInt(view.getInt32(at + 5, true)) * 1_000_000_000n
    }
    at = end
  }
}

/** Of no zone: taken as UTC, so that it is the same everywhere. */
function dosTimeNs(date: number, time: number): bigint {
  const ms = Date.UTC(
    1980 + (date >>> 9),
    ((date >>> 5) & 15) - 1,
    date & 31,
    time >>> 11,
    (time >>> 5) & 63,
    (time & 31) * 2,
  )
  return BigInt(ms) * 1_000_000n
}

async function readExactly(file: FileHandle, position: number, length: number): Promise<Uint8Array> {
  const bytes = new Uint8Array(length)
  for (let filled = 0; filled < length; ) {
    const { bytesRead } = await file.read(bytes, filled, length - filled, position + filled)
    if (bytesRead === 0) throw broken('it is cut short')
    filled += bytesRead
  }
  return bytes
}

function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
}

function safeNumber(value: bigint): number {
  if (value > BigInt(Number.MAX_SAFE_INTEGER)) throw broken('a number in it is too large')
  return Number(value)
}

function broken(what: string, cause?: unknown): PlatformError {
  return refused(`it cannot be read, ${what}`, cause)
}
