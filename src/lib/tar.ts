/**
 * Reads tar archives: ustar, pax and GNU, with long names, sparse files, extended attributes and large numbers. Everything
 * in an archive is a stranger's word: every length is bounded before memory is given to it.
 */
import { PlatformError } from '../errors.ts'
import type { ByteReader } from './byte-reader.ts'

const blockBytes = 512
/** Of one pax header or GNU long name. */
const extendedHeaderBytesMax = 1024 * 1024
const paxRecordsMax = 4096
const sparseExtentsMax = 100_000
const sparseMapBytesMax = 4 * 1024 * 1024
/** Extended headers in a row before an entry. */
const extendedHeadersMax = 16
const nsPerSecond = 1_000_000_000n
const secondsMax = 8_000_000_000n

export type TarType = 'file' | 'directory' | 'symlink' | 'link' | 'fifo' | 'character' | 'block' | 'other'

export interface TarEntry {
  type: TarType
  /** As written: one byte a character. */
  path: string
  linkPath: string
  mode: number
  uid: number
  gid: number
  modifiedNs: bigint
  /** Of the file once it is written out. */
  size: number
  xattrs: (readonly [name: string, value: Uint8Array])[]
  /** Bytes of the entry in the archive that were not read yet. */
  stored: number
  /** Where the stored bytes go; null: one after the other. */
  extents: Extent[] | null
}

interface Extent {
  offset: number
  length: number
}

/** What extended headers say of the next entry. */
interface Overrides {
  pax: Map<string, Uint8Array>
  path: string | null
  linkPath: string | null
}

const types: Record<string, TarType> = {
  '0': 'file',
  '\0': 'file',
  '7': 'file',
  S: 'file',
  '1': 'link',
  '2': 'symlink',
  '3': 'character',
  '4': 'block',
  '5': 'directory',
  '6': 'fifo',
}

export class TarReader {
  readonly #bytes: ByteReader
  readonly #global = new Map<string, Uint8Array>()
  #entry: TarEntry | null = null
  #padding = 0

  constructor(bytes: ByteReader) {
    this.#bytes = bytes
  }

  /** The next entry; what is left of the one before is skipped. Null at the end. @throws unprocessable */
  async next(): Promise<TarEntry | null> {
    await this.#finishEntry()
    const overrides: Overrides = { pax: new Map(), path: null, linkPath: null }
    for (let extended = 0; extended <= extendedHeadersMax; extended++) {
      const header = await this.#header()
      if (header === null) return null
      const flag = String.fromCharCode(header[156]!)
      const size = numberAt(header, 124, 12, 'size')
      if (flag === 'x' || flag === 'g') {
        for (const [key, value] of paxRecords(await this.#extendedHeader(size))) {
          const into = flag === 'x' ? overrides.pax : this.#global
          into.set(key, value)
          if (into.size > paxRecordsMax) throw broken('a pax header has too many records')
        }
      } else if (flag === 'L') overrides.path = untilNul(await this.#extendedHeader(size))
      else if (flag === 'K') overrides.linkPath = untilNul(await this.#extendedHeader(size))
      else return await this.#open(header, flag, size, overrides)
    }
    throw broken('an entry has too many extended headers')
  }

  /** The next bytes of the present entry and where in the file they belong; null at its end. A view. */
  async data(): Promise<{ offset: number; bytes: Uint8Array } | null> {
    const entry = this.#entry
    if (entry === null || entry.stored === 0) return null
    const extent = entry.extents?.[0]
    const bytes = await this.#bytes.some(Math.min(entry.stored, extent?.length ?? entry.stored))
    if (bytes === null) throw broken('the archive ends in the middle of an entry')
    const offset = extent ? extent.offset : entry.size - entry.stored
    entry.stored -= bytes.length
    if (extent) {
      extent.offset += bytes.length
      extent.length -= bytes.length
      if (extent.length === 0) entry.extents!.shift()
    }
    return { offset, bytes }
  }

  async #finishEntry(): Promise<void> {
    await this.#bytes.skip((this.#entry?.stored ?? 0) + this.#padding)
    this.#entry = null
    this.#padding = 0
  }

  /** A header block, checked; null at the end of the archive, marked by a block of zeros or not at all. */
  async #header(): Promise<Uint8Array | null> {
    let block = this.#bytes.take(blockBytes)
    if (block === null) {
      if (!(await this.#bytes.fill())) return null
      block = await this.#bytes.read(blockBytes)
    }
    if (block[0] === 0 && block.every((byte) => byte === 0)) return null
    let unsigned = 0
    let signed = 0
    for (let at = 0; at < blockBytes; at++) {
      const byte = at >= 148 && at < 156 ? 32 : block[at]!
      unsigned += byte
      signed += byte > 127 ? byte - 256 : byte
    }
    const sum = Number.parseInt(textAt(block, 148, 8).trim(), 8)
    if (sum !== unsigned && sum !== signed) throw broken('a header has the wrong checksum: not a tar archive')
    // The next read may bring another chunk into its place.
    return block.slice()
  }

  async #extendedHeader(size: number): Promise<Uint8Array> {
    if (size > extendedHeaderBytesMax) {
      throw broken(`an extended header has ${size} bytes, at most ${extendedHeaderBytesMax} are read`)
    }
    const content = (await this.#bytes.read(size)).slice()
    await this.#bytes.skip(paddingOf(size))
    return content
  }

  async #open(header: Uint8Array, flag: string, size: number, overrides: Overrides): Promise<TarEntry> {
    const pax = (key: string): Uint8Array | undefined => overrides.pax.get(key) ?? this.#global.get(key)
    const paxNumber = (key: string): number | undefined => {
      const value = pax(key)
      return value && decimal(value, key)
    }
    const paxText = (key: string): string | undefined => {
      const value = pax(key)
      return value && latin1(value)
    }
    const stored = paxNumber('size') ?? size
    const path = paxText('path') ?? overrides.path ?? headerPath(header)
    let type = types[flag] ?? 'other'
    // Before there was a type for directories.
    if (type === 'file' && flag !== 'S' && path.endsWith('/')) type = 'directory'
    const hasContent = type === 'file' || type === 'other'
    const entry: TarEntry = {
      type,
      path,
      linkPath: paxText('linkpath') ?? overrides.linkPath ?? textAt(header, 157, 100),
      mode: numberAt(header, 100, 8, 'mode') & 0o7777,
      uid: paxNumber('uid') ?? numberAt(header, 108, 8, 'uid'),
      gid: paxNumber('gid') ?? numberAt(header, 116, 8, 'gid'),
      modifiedNs: timeOf(pax('mtime'), header),
      size: hasContent ? stored : 0,
      xattrs: xattrsOf(overrides.pax),
      stored: hasContent ? stored : 0,
      extents: null,
    }
    this.#entry = entry
    this.#padding = hasContent ? paddingOf(stored) : 0
    if (type !== 'file') return entry
    if (flag === 'S') await this.#oldSparse(header, entry)
    else await this.#paxSparse(overrides.pax, entry)
    return entry
  }

  /** GNU's own: four extents in the header, the rest in blocks behind it. */
  async #oldSparse(header: Uint8Array, entry: TarEntry): Promise<void> {
    const extents: Extent[] = []
    const collect = (block: Uint8Array, at: number, count: number) => {
      for (let index = 0; index < count; index++, at += 24) {
        if (block[at] === 0) return
        extents.push({
          offset: numberAt(block, at, 12, 'sparse'),
          length: numberAt(block, at + 12, 12, 'sparse'),
        })
        if (extents.length > sparseExtentsMax) throw broken('a sparse file has too many parts')
      }
    }
    collect(header, 386, 4)
    for (let more = header[482] !== 0; more; ) {
      const block = await this.#bytes.read(blockBytes)
      collect(block, 0, 21)
      more = block[504] !== 0
    }
    this.#setSparse(entry, extents, numberAt(header, 483, 12, 'real size'))
  }

  /** pax 0.0, 0.1 and 1.0. */
  async #paxSparse(pax: Map<string, Uint8Array>, entry: TarEntry): Promise<void> {
    const text = (key: string) => {
      const value = pax.get(`GNU.sparse.${key}`)
      return value && latin1(value)
    }
    const realSize = text('realsize') ?? text('size')
    if (realSize === undefined) return
    const name = text('name')
    if (name !== undefined) entry.path = name
    let numbers: number[]
    if (text('major') === '1') {
      const before = this.#bytes.offset
      numbers = await this.#sparseMap()
      entry.stored -= this.#bytes.offset - before
      if (entry.stored < 0) throw broken('the map of a sparse file is longer than the entry')
    } else {
      const map = text('map')
      if (map === undefined) throw broken('a sparse file has no map')
      numbers = map === '' ? [] : map.split(',').map((number) => decimal(Buffer.from(number), 'sparse map'))
    }
    if (numbers.length % 2 !== 0 || numbers.length / 2 > sparseExtentsMax)
      throw broken('the map of a sparse file is wrong')
    const extents: Extent[] = []
    for (let at = 0; at < numbers.length; at += 2)
      extents.push({ offset: numbers[at]!, length: numbers[at + 1]! })
    this.#setSparse(entry, extents, decimal(Buffer.from(realSize), 'real size'))
  }

  /** Decimal numbers, each on a line, the first saying how many pairs follow; padded to whole blocks. */
  async #sparseMap(): Promise<number[]> {
    const numbers: number[] = []
    let line = ''
    let wanted = -1
    for (let bytes = 0; bytes < sparseMapBytesMax; bytes += blockBytes) {
      for (const byte of await this.#bytes.read(blockBytes)) {
        if (wanted === numbers.length) break
        if (byte !== 10) {
          line += String.fromCharCode(byte)
          if (line.length > 20) throw broken('the map of a sparse file is wrong')
          continue
        }
        const number = decimal(Buffer.from(line), 'sparse map')
        line = ''
        if (wanted >= 0) numbers.push(number)
        else if (number > sparseExtentsMax) throw broken('a sparse file has too many parts')
        else wanted = number * 2
      }
      if (wanted === numbers.length) return numbers
    }
    throw broken('the map of a sparse file is too long')
  }

  #setSparse(entry: TarEntry, extents: Extent[], realSize: number): void {
    let end = 0
    let stored = 0
    for (const { offset, length } of extents) {
      if (offset < end || offset + length > realSize) throw broken('the map of a sparse file is wrong')
      end = offset + length
      stored += length
    }
    if (stored !== entry.stored) throw broken('a sparse file has other bytes than its map says')
    entry.extents = extents.filter(({ length }) => length > 0)
    entry.size = realSize
  }
}

/** `length key=value\n`, the length counting itself. A key given twice: the last counts; sparse 0.0 gathers into one. */
function* paxRecords(content: Uint8Array): Generator<[key: string, value: Uint8Array]> {
  const sparse: string[] = []
  for (let at = 0; at < content.length && content[at] !== 0; ) {
    const space = content.indexOf(32, at)
    if (space < 0 || space - at > 8) throw broken('a pax header is not well-formed')
    const length = decimal(content.subarray(at, space), 'pax record')
    const end = at + length
    const equals = content.indexOf(61, space)
    if (end > content.length || content[end - 1] !== 10 || equals < 0 || equals >= end || equals < space + 2)
      throw broken('a pax header is not well-formed')
    const key = latin1(content.subarray(space + 1, equals))
    const value = content.subarray(equals + 1, end - 1)
    if (key === 'GNU.sparse.offset' || key === 'GNU.sparse.numbytes') {
      sparse.push(latin1(value))
      if (sparse.length > sparseExtentsMax * 2) throw broken('a sparse file has too many parts')
    } else yield [key, value]
    at = end
  }
  if (sparse.length > 0) yield ['GNU.sparse.map', Buffer.from(sparse.join(','), 'latin1')]
}

function xattrsOf(pax: Map<string, Uint8Array>): [string, Uint8Array][] {
  const xattrs: [string, Uint8Array][] = []
  for (const [key, value] of pax) {
    if (key.startsWith('SCHILY.xattr.')) xattrs.push([key.slice('SCHILY.xattr.'.length), value])
    else if (key.startsWith('LIBARCHIVE.xattr.') && !pax.has(`SCHILY.xattr.${key.slice(17)}`))
      xattrs.push([key.slice('LIBARCHIVE.xattr.'.length), Buffer.from(latin1(value), 'base64')])
  }
  return xattrs
}

function headerPath(header: Uint8Array): string {
  const name = textAt(header, 0, 100)
  const isUstar = textAt(header, 257, 6) === 'ustar' && header[262] === 0
  const prefix = isUstar ? textAt(header, 345, 155) : ''
  return prefix === '' ? name : `${prefix}/${name}`
}

function timeOf(pax: Uint8Array | undefined, header: Uint8Array): bigint {
  if (pax === undefined) {
    const seconds = BigInt(numberAt(header, 136, 12, 'time', true))
    return clampSeconds(seconds) * nsPerSecond
  }
  const match = /^(-?)(\d{1,15})(?:\.(\d*))?$/.exec(latin1(pax))
  if (!match) throw broken('a time is not a number')
  const fraction = BigInt((match[3] ?? '').slice(0, 9).padEnd(9, '0'))
  const ns = clampSeconds(BigInt(match[2]!)) * nsPerSecond + fraction
  return match[1] === '-' ? -ns : ns
}

function clampSeconds(seconds: bigint): bigint {
  if (seconds > secondsMax) return secondsMax
  return seconds < -secondsMax ? -secondsMax : seconds
}

/** Octal digits, or the number itself behind a byte with its highest bit set. */
function numberAt(block: Uint8Array, at: number, length: number, what: string, signed = false): number {
  if (block[at]! & 0x80) {
    let value = BigInt(block[at]! & (signed ? 0x7f : 0x7f))
    for (let index = 1; index < length; index++) value = (value << 8n) | BigInt(block[at + index]!)
    const bits = BigInt(length * 8 - 1)
    if (block[at]! & 0x40) value -= 1n << bits
    if (!signed && value < 0n) throw broken(`a ${what} is negative`)
    if (value > BigInt(Number.MAX_SAFE_INTEGER) || value < BigInt(Number.MIN_SAFE_INTEGER)) {
      if (signed) return value < 0n ? Number.MIN_SAFE_INTEGER : Number.MAX_SAFE_INTEGER
      throw broken(`a ${what} is too large`)
    }
    return Number(value)
  }
  const text = textAt(block, at, length).trim()
  if (text === '') return 0
  if (!/^[0-7]+$/.test(text)) throw broken(`a ${what} is not a number`)
  return Number.parseInt(text, 8)
}

function decimal(bytes: Uint8Array, what: string): number {
  const text = latin1(bytes)
  const value = /^\d{1,16}$/.test(text) ? Number(text) : Number.NaN
  if (!Number.isSafeInteger(value)) throw broken(`${what}: not a number`)
  return value
}

function textAt(block: Uint8Array, at: number, length: number): string {
  return untilNul(block.subarray(at, at + length))
}

function untilNul(bytes: Uint8Array): string {
  const end = bytes.indexOf(0)
  return latin1(end < 0 ? bytes : bytes.subarray(0, end))
}

function latin1(bytes: Uint8Array): string {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString('latin1')
}

function paddingOf(size: number): number {
  return (blockBytes - (size % blockBytes)) % blockBytes
}

function broken(what: string): PlatformError {
  return new PlatformError('unprocessable', `the archive cannot be read: ${what}`)
}

/** A name of an archive, for people: its bytes are UTF-8 as a rule. */
export function shownPath(path: string): string {
  return JSON.stringify(Buffer.from(path.slice(0, 200), 'latin1').toString('utf8'))
}
