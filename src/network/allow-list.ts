import { PlatformError } from '../errors.ts'
import { type Address, AddressList, isAddressEntry, parseNameEntry } from '../lib/addresses.ts'

/** Ports of a name that is allowed without one. */
const webPorts = [80, 443]

/** What may be reached though it is not on the public internet. A name stands for what our own DNS finds for it. */
export class AllowList {
  readonly addresses: AddressList
  readonly #names = new Map<string, Set<number>>()

  /** @throws bad_request naming the entry */
  constructor(entries: readonly string[]) {
    this.addresses = new AddressList(entries.filter(isAddressEntry))
    for (const entry of entries) {
      if (isAddressEntry(entry)) continue
      const named = parseNameEntry(entry)
      if (named === null) {
        throw new PlatformError(
          'bad_request',
          `egressAllow: "${entry.slice(0, 100)}" is not an address, a range or a name, with a port or without`,
        )
      }
      this.allowName(named.name, named.port === null ? webPorts : [named.port])
    }
  }

  allowName(name: string, ports: readonly number[]): void {
    const known = this.#names.get(name) ?? new Set()
    for (const port of ports) known.add(port)
    this.#names.set(name, known)
  }

  names(): Iterable<string> {
    return this.#names.keys()
  }

  /** The ports that are allowed of what the name stands for; null when it is not on the list. */
  portsOf(name: string): ReadonlySet<number> | null {
    return this.#names.get(name) ?? null
  }

  has(address: Address, port: number): boolean {
    return this.addresses.has(address, port)
  }
}
