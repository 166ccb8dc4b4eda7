import { BlockList, isIP } from 'node:net'

/**
 * IP addresses as targets of connections: which are of the public internet, and which of the others an operator
 * opened. Addresses that carry an IPv4 address inside are judged as that one, or as private where the way is a tunnel's.
 */

/** `10.0.0.1`, `10.0.0.0/8`, `10.0.0.1:8000`, `fd00::/8`, `[::1]:8000`. */
const entryPattern =
  /^(?:\[([0-9a-fA-F:.]+(?:\/\d{1,3})?)\](?::(\d{1,5}))?|([0-9.]+(?:\/\d{1,2})?)(?::(\d{1,5}))?|([0-9a-fA-F:.]+(?:\/\d{1,3})?))$/

const special = new BlockList()
for (const range of [
  ...['0.0.0.0/8', '10.0.0.0/8', '100.64.0.0/10', '127.0.0.0/8', '169.254.0.0/16', '172.16.0.0/12'],
  ...['192.0.0.0/24', '192.0.2.0/24', '192.31.196.0/24', '192.52.193.0/24', '192.88.99.0/24'],
  ...['192.168.0.0/16', '192.175.48.0/24', '198.18.0.0/15', '198.51.100.0/24', '203.0.113.0/24'],
  ...['224.0.0.0/4', '240.0.0.0/4'],
]) {
  const [address = '', bits] = range.split('/')
  special.addSubnet(address, Number(bits), 'ipv4')
}

const globalUnicast = new BlockList()
globalUnicast.addSubnet('2000::', 3, 'ipv6')
// Tunnels, documentation, benchmarks and other uses that are no place of the internet.
for (const [address, bits] of [
  ['2001::', 23],
  ['2001:db8::', 32],
  ['2002::', 16],
  ['2620:4f:8000::', 48],
  ['3fff::', 20],
] as const) {
  special.addSubnet(address, bits, 'ipv6')
}

/** False for what is no IP address at all. */
export function isPublicAddress(address: string): boolean {
  const plain = plainAddress(address)
  if (isIP(plain) === 4) return !special.check(plain, 'ipv4')
  return isIP(plain) === 6 && globalUnicast.check(plain, 'ipv6') && !special.check(plain, 'ipv6')
}

/** Without brackets and zone; an IPv4 address that is mapped into IPv6 as itself. */
export function plainAddress(address: string): string {
  const bare = address.replace(/^\[|\]$/g, '').replace(/%.*$/, '')
  if (isIP(bare) !== 6) return bare
  // As the URL parser spells it, which writes mapped addresses in hexadecimal.
  const canonical = new URL(`http://[${bare}]/`).hostname.slice(1, -1)
  const mapped = /^::ffff:([0-9a-f]{1,4}):([0-9a-f]{1,4})$/.exec(canonical)
  if (!mapped) return canonical
  const [high, low] = [Number.parseInt(mapped[1]!, 16), Number.parseInt(mapped[2]!, 16)]
  return [high >> 8, high & 255, low >> 8, low & 255].join('.')
}

/** Addresses and ranges, each for all ports or for one. */
export class AddressList {
  readonly #anyPort = new BlockList()
  readonly #byPort = new Map<number, BlockList>()

  /** @throws RangeError for an entry that is none */
  constructor(entries: readonly string[]) {
    for (const entry of entries) {
      const parsed = parseEntry(entry)
      if (!parsed) throw new RangeError(`${entry} is not an address or range`)
      const { address, bits, port } = parsed
      let list = this.#anyPort
      if (port !== null) {
        list = this.#byPort.get(port) ?? new BlockList()
        this.#byPort.set(port, list)
      }
      list.addSubnet(address, bits, isIP(address) === 4 ? 'ipv4' : 'ipv6')
    }
  }

  has(address: string, port: number): boolean {
    const plain = plainAddress(address)
    const family = isIP(plain)
    if (family === 0) return false
    const kind = family === 4 ? 'ipv4' : 'ipv6'
    return this.#anyPort.check(plain, kind) || (this.#byPort.get(port)?.check(plain, kind) ?? false)
  }
}

export function isAddressEntry(entry: string): boolean {
  return parseEntry(entry) !== null
}

function parseEntry(entry: string): { address: string; bits: number; port: number | null } | null {
  const match = entryPattern.exec(entry)
  if (!match) return null
  const [address = '', bitsText] = (match[1] ?? match[3] ?? match[5] ?? '').split('/')
  const portText = match[2] ?? match[4]
  const family = isIP(address)
  const port = portText === undefined ? null : Number(portText)
  if (family === 0 || (port !== null && (port < 1 || port > 65535))) return null
  const bitsMax = family === 4 ? 32 : 128
  const bits = bitsText === undefined ? bitsMax : Number(bitsText)
  return bits <= bitsMax ? { address, bits, port } : null
}
