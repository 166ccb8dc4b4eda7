import { isIP } from 'node:net'

/** 4 or 16 bytes, in network order. */
export type Address = Uint8Array

/** Null for what is no numeric address; zones (`fe80::1%eth0`) are none. */
export function parseAddress(text: string): Address | null {
  const family = isIP(text)
  if (family === 4) return Uint8Array.from(text.split('.'), Number)
  if (family !== 6 || text.includes('%')) return null
  const [head = '', tail] = text.split('::')
  const left = groups(head)
  const right = tail === undefined ? [] : groups(tail)
  const bytes = new Uint8Array(16)
  bytes.set(left)
  bytes.set(right, 16 - right.length)
  return bytes
}

/** Bytes of colon-separated groups, of which the last may be a dotted IPv4 address. */
function groups(text: string): number[] {
  if (text === '') return []
  return text.split(':').flatMap((group) => {
    if (group.includes('.')) return group.split('.').map(Number)
    const value = Number.parseInt(group, 16)
    return [value >> 8, value & 0xff]
  })
}

export function formatAddress(address: Address): string {
  if (address.length === 4) return address.join('.')
  const words = Array.from(
    { length: 8 },
    (_, at) => ((address[2 * at]! << 8) | address[2 * at + 1]!) & 0xffff,
  )
  // The longest run of zeros is left out, when it has two words at least.
  let best = { at: -1, length: 1 }
  for (let at = 0; at < 8; at++) {
    let length = 0
    while (at + length < 8 && words[at + length] === 0) length++
    if (length > best.length) best = { at, length }
  }
  const hex = (part: number[]) => part.map((word) => word.toString(16)).join(':')
  if (best.at < 0) return hex(words)
  return `${hex(words.slice(0, best.at))}::${hex(words.slice(best.at + best.length))}`
}

/** As an address for requests in clear. */
export function originOf(address: Address, port: number): string {
  const text = formatAddress(address)
  return `http://${address.length === 16 ? `[${text}]` : text}:${port}`
}

/** A range of addresses, or one. */
export interface AddressRange {
  address: Address
  prefixBits: number
}

/** `10.0.0.0/8`, `fd00::/8` or a single address; null for anything else. */
function parseRange(text: string): AddressRange | null {
  const [host = '', bits, ...rest] = text.split('/')
  const address = parseAddress(host)
  if (address === null || rest.length > 0) return null
  const bitsMax = address.length * 8
  if (bits === undefined) return { address, prefixBits: bitsMax }
  if (!/^\d{1,3}$/.test(bits) || Number(bits) > bitsMax) return null
  return { address, prefixBits: Number(bits) }
}

function isWithin(address: Address, { address: base, prefixBits }: AddressRange): boolean {
  if (address.length !== base.length) return false
  const whole = prefixBits >> 3
  for (let at = 0; at < whole; at++) if (address[at] !== base[at]) return false
  const restBits = prefixBits & 7
  if (restBits === 0) return true
  const mask = (0xff << (8 - restBits)) & 0xff
  return (address[whole]! & mask) === (base[whole]! & mask)
}

export function sameAddress(one: Address, other: Address): boolean {
  return one.length === other.length && one.every((byte, at) => byte === other[at])
}

const mapped = range('::ffff:0:0/96')
const translated = range('64:ff9b::/96')
const compatible = range('::/96')

/**
 * The address that packets to it would really reach: IPv6 has several ways of writing an IPv4 address, and whoever
 * looks at prefixes alone is talked past.
 */
export function embeddedAddress(address: Address): Address {
  if (address.length === 4) return address
  if (isWithin(address, mapped) || isWithin(address, translated)) return address.slice(12)
  // ::1 and :: are no IPv4 addresses.
  if (isWithin(address, compatible) && (address[12] !== 0 || address[13] !== 0)) return address.slice(12)
  return address
}

/** Why an address is not one of the public internet; in order of appearance the first that fits. */
const special4: [AddressRange, string][] = [
  [range('0.0.0.0/8'), 'unspecified'],
  [range('127.0.0.0/8'), 'loopback'],
  [range('10.0.0.0/8'), 'private'],
  [range('172.16.0.0/12'), 'private'],
  [range('192.168.0.0/16'), 'private'],
  [range('100.64.0.0/10'), 'carrier'],
  [range('169.254.0.0/16'), 'link-local'],
  [range('192.0.0.0/24'), 'reserved'],
  [range('192.0.2.0/24'), 'reserved'],
  [range('192.88.99.0/24'), 'reserved'],
  [range('198.18.0.0/15'), 'reserved'],
  [range('198.51.100.0/24'), 'reserved'],
  [range('203.0.113.0/24'), 'reserved'],
  [range('224.0.0.0/4'), 'multicast'],
  [range('240.0.0.0/4'), 'reserved'],
]

const special6: [AddressRange, string][] = [
  [range('::/128'), 'unspecified'],
  [range('::1/128'), 'loopback'],
  [range('fc00::/7'), 'private'],
  [range('fe80::/10'), 'link-local'],
  [range('fec0::/10'), 'private'],
  [range('ff00::/8'), 'multicast'],
  // Protocol assignments; Teredo among them, which wraps an IPv4 address of anyone's choice.
  [range('2001::/23'), 'reserved'],
  [range('2001:db8::/32'), 'reserved'],
  [range('2002::/16'), 'tunnel'],
  [range('3fff::/20'), 'reserved'],
]
const global6 = range('2000::/3')

/** Null: an address of the public internet. */
export function specialKind(address: Address): string | null {
  const real = embeddedAddress(address)
  for (const [special, kind] of real.length === 4 ? special4 : special6)
    if (isWithin(real, special)) return kind
  if (real.length === 4) return null
  if (!isWithin(real, global6)) return 'reserved'
  return wrapsSpecial(real) ? 'tunnel' : null
}

/** ISATAP writes an IPv4 address into the last bytes of any prefix. */
function wrapsSpecial(address: Address): boolean {
  const isatap =
    (address[8]! & 0xfd) === 0 && address[9] === 0 && address[10] === 0x5e && address[11] === 0xfe
  return isatap && specialKind(address.slice(12)) !== null
}

function range(text: string): AddressRange {
  const parsed = parseRange(text)
  if (parsed === null) throw new Error(`${text} is not a range`)
  return parsed
}

/** False for what is no IP address at all. */
export function isPublicAddress(address: string): boolean {
  const parsed = parseAddress(address)
  return parsed !== null && specialKind(parsed) === null
}

/** Without brackets and zone, spelled as `formatAddress` does; an IPv4 address that is mapped into IPv6 as itself. */
export function plainAddress(address: string): string {
  const bare = address.replace(/^\[|\]$/g, '').replace(/%.*$/, '')
  const parsed = parseAddress(bare)
  if (parsed === null) return bare
  return formatAddress(isWithin(parsed, mapped) ? parsed.slice(12) : parsed)
}

/** `10.0.0.1`, `10.0.0.0/8`, `10.0.0.1:8000`, `fd00::/8`, `[::1]:8000`. */
const entryPattern =
  /^(?:\[([0-9a-fA-F:.]+(?:\/\d{1,3})?)\](?::(\d{1,5}))?|([0-9.]+(?:\/\d{1,2})?)(?::(\d{1,5}))?|([0-9a-fA-F:.]+(?:\/\d{1,3})?))$/

interface AddressEntry {
  range: AddressRange
  /** Null: every port. */
  port: number | null
}

/** Addresses and ranges, each for all ports or for one. */
export class AddressList {
  readonly #entries: AddressEntry[]

  /** @throws RangeError for an entry that is none */
  constructor(entries: readonly string[]) {
    this.#entries = entries.map((entry) => {
      const parsed = parseEntry(entry)
      if (!parsed) throw new RangeError(`${entry} is not an address or range`)
      return parsed
    })
  }

  has(address: string | Address, port: number): boolean {
    return this.#some(address, port, () => true)
  }

  /** The address itself is on the list, not only a range around it. */
  names(address: Address, port: number): boolean {
    return this.#some(address, port, ({ range }) => range.prefixBits === range.address.length * 8)
  }

  /** Address and port are both on the list. */
  namesPort(address: Address, port: number): boolean {
    return this.#some(address, port, (entry) => {
      return entry.port !== null && entry.range.prefixBits === entry.range.address.length * 8
    })
  }

  #some(address: string | Address, port: number, fits: (entry: AddressEntry) => boolean): boolean {
    const parsed = typeof address === 'string' ? parseAddress(plainAddress(address)) : address
    if (parsed === null) return false
    return this.#entries.some((entry) => {
      return (entry.port === null || entry.port === port) && isWithin(parsed, entry.range) && fits(entry)
    })
  }
}

export function isAddressEntry(entry: string): boolean {
  return parseEntry(entry) !== null
}

function parseEntry(entry: string): AddressEntry | null {
  const match = entryPattern.exec(entry)
  if (!match) return null
  const range = parseRange(match[1] ?? match[3] ?? match[5] ?? '')
  const portText = match[2] ?? match[4]
  const port = portText === undefined ? null : Number(portText)
  if (range === null || (port !== null && (port < 1 || port > 65_535))) return null
  return { range, port }
}

const namePattern =
  /^(?=.{1,253}$)[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9])?(\.[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9])?)*$/
const nameEntryPattern = /^([^:[\]/]+)(?::(\d{1,5}))?$/

/** A name with or without a port: `packages.example.com:8443`. Null for anything else, numeric addresses included. */
export function parseNameEntry(entry: string): { name: string; port: number | null } | null {
  const match = nameEntryPattern.exec(entry)
  const name = match?.[1]?.toLowerCase().replace(/\.$/, '') ?? ''
  if (match === null || !namePattern.test(name) || /^[\d.]+$/.test(name)) return null
  const port = match[2] === undefined ? null : Number(match[2])
  return port !== null && (port < 1 || port > 65_535) ? null : { name, port }
}

/** An address, a range or a name, with or without a port. */
export function isEgressEntry(entry: string): boolean {
  return isAddressEntry(entry) || parseNameEntry(entry) !== null
}
