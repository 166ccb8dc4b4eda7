const blockBytes = 512
const nameBytesMax = 100
const octalSizeMax = 8 ** 11
const types = { file: '0', link: '1', symlink: '2', directory: '5' } as const

export interface TarHeader {
  /** One byte a character. */
  path: string
  type: keyof typeof types
  mode: number
  modifiedNs: bigint
  bytes: number
  target: string
}

/** Writes tar archives: ustar, with pax headers for what that has no room for. Everything is root's. */
export class TarWriter {
  header(entry: TarHeader): Uint8Array {
    const seconds = entry.modifiedNs > 0n ? entry.modifiedNs / 1_000_000_000n : 0n
    const records: [string, string][] = []
    if (entry.path.length > nameBytesMax) records.push(['path', entry.path])
    if (entry.target.length > nameBytesMax) records.push(['linkpath', entry.target])
    if (entry.bytes >= octalSizeMax) records.push(['size', String(entry.bytes)])
    const block = headerBlock({ ...entry, flag: types[entry.type], seconds })
    if (records.length === 0) return block
    const content = Buffer.from(records.map(([key, value]) => paxRecord(key, value)).join(''), 'latin1')
    const pax = { path: 'pax', target: '', mode: 0o644, bytes: content.length, flag: 'x', seconds: 0n }
    return Buffer.concat([headerBlock(pax), content, this.padding(content.length), block])
  }

  /** Behind the bytes of a file. */
  padding(bytes: number): Uint8Array {
    return new Uint8Array((blockBytes - (bytes % blockBytes)) % blockBytes)
  }

  end(): Uint8Array {
    return new Uint8Array(2 * blockBytes)
  }
}

function headerBlock(entry: {
  path: string
  target: string
  mode: number
  bytes: number
  flag: string
  seconds: bigint
}): Buffer {
  const block = Buffer.alloc(blockBytes)
  block.write(entry.path.slice(0, nameBytesMax), 0, 'latin1')
  block.write(`${entry.mode.toString(8).padStart(7, '0')}\0`, 100)
  block.write('0000000\0', 108)
  block.write('0000000\0', 116)
  block.write(`${(entry.bytes >= octalSizeMax ? 0 : entry.bytes).toString(8).padStart(11, '0')}\0`, 124)
  block.write(`${entry.seconds.toString(8).padStart(11, '0').slice(-11)}\0`, 136)
  block.write('        ', 148)
  block.write(entry.flag, 156)
  block.write(entry.target.slice(0, nameBytesMax), 157, 'latin1')
  block.write('ustar\x0000', 257, 'latin1')
  let sum = 0
  for (const byte of block) sum += byte
  block.write(`${sum.toString(8).padStart(6, '0')}\0 `, 148)
  return block
}

/** `length key=value\n`, the length counting itself. */
function paxRecord(key: string, value: string): string {
  const rest = ` ${key}=${value}\n`
  let length = rest.length
  while (String(length).length + rest.length !== length) length = String(length).length + rest.length
  return `${length}${rest}`
}
