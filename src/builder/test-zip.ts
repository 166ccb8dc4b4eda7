/** For tests: zip archives as they are asked for and no better. */
import { crc32, deflateRawSync } from 'node:zlib'

export interface ZipEntry {
  path: string
  content?: string | Uint8Array
  /** Unix mode with the type; absent: the system that made it is DOS. */
  unixMode?: number
  method?: number
  flags?: number
  /** Sizes and checksum stand behind the data. */
  descriptor?: boolean
  /** Sizes and offset stand in the extra field. */
  zip64?: boolean
  /** Instead of what is so. */
  bytes?: number
  crc?: number
  /** Data of another entry, by its number. */
  dataOf?: number
  seconds?: number
}

export function zip(entries: ZipEntry[], options: { comment?: string; zip64?: boolean } = {}): Buffer {
  const parts: Buffer[] = []
  const directory: Buffer[] = []
  const offsets: number[] = []
  let at = 0
  const add = (...more: Buffer[]) => {
    for (const part of more) {
      parts.push(part)
      at += part.length
    }
  }
  for (const entry of entries) {
    const content = Buffer.from(entry.content ?? '')
    const method = entry.method ?? 8
    const data = method === 8 ? deflateRawSync(content) : content
    const crc = entry.crc ?? crc32(content)
    const bytes = entry.bytes ?? content.length
    const flags = (entry.flags ?? 0) | (entry.descriptor ? 8 : 0)
    const name = Buffer.from(entry.path)
    const offset = entry.dataOf === undefined ? at : offsets[entry.dataOf]!
    offsets.push(offset)
    const sizes = { crc, packed: data.length, bytes }
    if (entry.dataOf === undefined) {
      const told = entry.descriptor ? { crc: 0, packed: 0, bytes: 0 } : sizes
      const local = Buffer.alloc(30)
      local.writeUInt32LE(0x04034b50, 0)
      local.writeUInt16LE(20, 4)
      local.writeUInt16LE(flags, 6)
      local.writeUInt16LE(method, 8)
      writeSizes(local, 14, told)
      local.writeUInt16LE(name.length, 26)
      add(local, name, data)
      if (entry.descriptor) {
        const descriptor = Buffer.alloc(16)
        descriptor.writeUInt32LE(0x08074b50, 0)
        writeSizes(descriptor, 4, sizes)
        add(descriptor)
      }
    }
    const extras: Buffer[] = []
    if (entry.seconds !== undefined) {
      const time = Buffer.alloc(9)
      time.writeUInt16LE(0x5455, 0)
      time.writeUInt16LE(5, 2)
      time.writeUInt8(1, 4)
      time.writeInt32LE(entry.seconds, 5)
      extras.push(time)
    }
    if (entry.zip64) {
      const large = Buffer.alloc(28)
      large.writeUInt16LE(1, 0)
      large.writeUInt16LE(24, 2)
      large.writeBigUInt64LE(BigInt(bytes), 4)
      large.writeBigUInt64LE(BigInt(data.length), 12)
      large.writeBigUInt64LE(BigInt(offset), 20)
      extras.push(large)
    }
    const extra = Buffer.concat(extras)
    const central = Buffer.alloc(46)
    central.writeUInt32LE(0x02014b50, 0)
    central.writeUInt16LE((entry.unixMode === undefined ? 0 : 3 << 8) | 20, 4)
    central.writeUInt16LE(flags, 8)
    central.writeUInt16LE(method, 10)
    central.writeUInt16LE(0x21, 14)
    writeSizes(central, 16, entry.zip64 ? { crc, packed: 0xffffffff, bytes: 0xffffffff } : sizes)
    central.writeUInt16LE(name.length, 28)
    central.writeUInt16LE(extra.length, 30)
    central.writeUInt32LE(((entry.unixMode ?? 0) << 16) >>> 0, 38)
    central.writeUInt32LE(entry.zip64 ? 0xffffffff : offset, 42)
    directory.push(central, name, extra)
  }
  const start = at
  add(...directory)
  const length = at - start
  if (options.zip64) {
    const end64 = Buffer.alloc(56)
    end64.writeUInt32LE(0x06064b50, 0)
    end64.writeBigUInt64LE(44n, 4)
    end64.writeBigUInt64LE(BigInt(entries.length), 24)
    end64.writeBigUInt64LE(BigInt(entries.length), 32)
    end64.writeBigUInt64LE(BigInt(length), 40)
    end64.writeBigUInt64LE(BigInt(start), 48)
    const locator = Buffer.alloc(20)
    locator.writeUInt32LE(0x07064b50, 0)
    locator.writeBigUInt64LE(BigInt(at), 8)
    locator.writeUInt32LE(1, 16)
    add(end64, locator)
  }
  const end = Buffer.alloc(22)
  end.writeUInt32LE(0x06054b50, 0)
  end.writeUInt16LE(options.zip64 ? 0xffff : entries.length, 8)
  end.writeUInt16LE(options.zip64 ? 0xffff : entries.length, 10)
  end.writeUInt32LE(options.zip64 ? 0xffffffff : length, 12)
  end.writeUInt32LE(options.zip64 ? 0xffffffff : start, 16)
  end.writeUInt16LE(options.comment?.length ?? 0, 20)
  add(end, Buffer.from(options.comment ?? ''))
  return Buffer.concat(parts)
}

function writeSizes(
  block: Buffer,
  at: number,
  { crc, packed, bytes }: { crc: number; packed: number; bytes: number },
): void {
  block.writeUInt32LE(crc, at)
  block.writeUInt32LE(packed, at + 4)
  block.writeUInt32LE(bytes, at + 8)
}
