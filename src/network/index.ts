/** The network of instances: what they may reach outside, and the names they find it by. */
import { networkInterfaces } from 'node:os'
import {
  type Address,
  embeddedAddress,
  formatAddress,
  parseAddress,
  sameAddress,
  specialKind,
} from '../lib/addresses.ts'
import type { Clock } from '../lib/clock.ts'
import type { Logger } from '../lib/log.ts'
import { Semaphore } from '../lib/semaphore.ts'
import type { Egress, EgressConnection, EgressVerdict } from '../spec/egress.ts'
import { AllowList } from './allow-list.ts'
import { DnsServer } from './dns-server.ts'
import { type HostResolver, hostAddress, Names, platformAddress } from './names.ts'
import { VerdictLog } from './verdict-log.ts'

export { hostName } from './names.ts'
export { type CarriedSettings, hostRegistries, type InstallationSettings } from './registries.ts'

/** Doors of the platform itself, each a unix socket for one instance, made when it is first knocked at. */
export interface Doors {
  /** `api`: the sandbox's own API. `platform`: the whole platform. Null: this instance has none. */
  open(instanceId: string, door: 'api' | 'platform'): string | null
  /** Whether this instance reaches the platform at `hutch.internal`. */
  hasPlatform(instanceId: string): boolean
  close(instanceId: string): void
}

export interface NetworkOptions {
  /** What may be reached though it is not on the public internet. */
  allow: readonly string[]
  /** Names of the host's own package registries: their addresses are allowed, wherever they are. */
  registryNames: readonly { name: string; ports: readonly number[] }[]
  /** Made when missing. */
  dir: string
  clock: Clock
  log: Logger
  resolver?: HostResolver
}

const dnsPort = 53
const platformPorts = new Set([80, 443])
/** 10.201.0.0/16: addresses that mean something only inside. */
const insideNet = { first: 10, second: 201 }
const queriesPerInstanceMax = 64
const queriesWaitingMax = 64
const ownAddressesMs = 5_000
const loopback = Uint8Array.of(127, 0, 0, 1)
const refuse: EgressVerdict = { kind: 'refuse' }

/** Decides on what leaves instances. Verdicts are on addresses, not on names, so that no name can talk past them. */
export class Network implements Egress {
  readonly #allow: AllowList
  readonly #names: Names
  readonly #clock: Clock
  readonly #log: Logger
  readonly #verdicts: VerdictLog
  readonly #dns: DnsServer
  readonly #queries = new Map<string, Semaphore>()
  readonly #ownPorts = new Set<number>()
  readonly #doors = Promise.withResolvers<Doors>()
  #own: { until: number; addresses: Address[] } = { until: Number.NEGATIVE_INFINITY, addresses: [] }

  /** @throws bad_request for an entry of `allow` that is none */
  constructor(options: NetworkOptions) {
    this.#clock = options.clock
    this.#log = options.log
    this.#allow = new AllowList(options.allow)
    for (const { name, ports } of options.registryNames) this.#allow.allowName(name, ports)
    this.#names = new Names({
      allow: this.#allow,
      clock: options.clock,
      ...(options.resolver ? { resolver: options.resolver } : {}),
    })
    this.#verdicts = new VerdictLog(options.log, options.clock)
    this.#dns = new DnsServer({
      dir: options.dir,
      log: options.log,
      answer: (instanceId, query) => this.#answer(instanceId, query, 'tcp'),
    })
  }

  /** What knocks at a door waits until then. */
  useDoors(doors: Doors): void {
    this.#doors.resolve(doors)
  }

  /** Ports that the platform itself listens on. */
  setOwnPorts(ports: Iterable<number>): void {
    this.#ownPorts.clear()
    for (const port of ports) this.#ownPorts.add(port)
  }

  async decide(connection: EgressConnection): Promise<EgressVerdict> {
    try {
      return await this.#decide(connection)
    } catch (error) {
      this.#log.error('no verdict on an outgoing connection', { instance: connection.instanceId, error })
      return refuse
    }
  }

  async #decide(connection: EgressConnection): Promise<EgressVerdict> {
    const { instanceId, kind, address, port } = connection
    if (kind === 'api') return await this.#door(instanceId, 'api')
    if (port === dnsPort) {
      return { kind: 'hand_over', path: this.#dns.path(), preamble: this.#dns.preamble(instanceId) }
    }
    if (sameAddress(address, platformAddress)) {
      const doors = await this.#doors.promise
      if (!platformPorts.has(port) || !doors.hasPlatform(instanceId))
        return this.#refused(connection, 'no door')
      return await this.#door(instanceId, 'platform')
    }
    const target = sameAddress(address, hostAddress) ? loopback : address
    const reason = target === address && isInside(address) ? 'reserved' : await this.#objection(target, port)
    if (reason !== null) return this.#refused(connection, reason)
    this.#verdicts.allowed(connection)
    return { kind: 'dial', address: formatAddress(target), port }
  }

  async #door(instanceId: string, door: 'api' | 'platform'): Promise<EgressVerdict> {
    const path = (await this.#doors.promise).open(instanceId, door)
    return path === null ? refuse : { kind: 'hand_over', path }
  }

  #refused(connection: EgressConnection, reason: string): EgressVerdict {
    this.#verdicts.refused(connection, reason)
    return refuse
  }

  /** Null when it may be reached. */
  async #objection(address: Address, port: number): Promise<string | null> {
    const real = embeddedAddress(address)
    const isLoopback = specialKind(real) === 'loopback'
    if (isLoopback || this.#ownAddresses().some((own) => sameAddress(own, real))) {
      if (this.#ownPorts.has(port)) return this.#allow.addresses.namesPort(address, port) ? null : 'platform'
      // A range that happens to have this machine in it does not open this machine.
      if (this.#allow.addresses.names(address, port)) return null
      if (!isLoopback && (await this.#names.leadsTo(address, port))) return null
      return isLoopback ? 'loopback' : 'this host'
    }
    const kind = specialKind(address)
    if (kind === null || this.#allow.has(address, port)) return null
    return (await this.#names.leadsTo(address, port)) ? null : kind
  }

  #ownAddresses(): Address[] {
    const now = this.#clock.monotonic()
    if (this.#own.until <= now) {
      const addresses = Object.values(networkInterfaces())
        .flatMap((list) => list ?? [])
        .map(({ address }) => parseAddress(address))
        .filter((address) => address !== null)
      this.#own = { until: now + ownAddressesMs, addresses }
    }
    return this.#own.addresses
  }

  /** Null also for one more than may wait: whoever asked asks again. */
  async answerQuery(instanceId: string, query: Uint8Array): Promise<Uint8Array | null> {
    return await this.#answer(instanceId, query, 'udp')
  }

  async #answer(instanceId: string, query: Uint8Array, transport: 'udp' | 'tcp'): Promise<Uint8Array | null> {
    try {
      return await this.#lookups(instanceId).run(async () => {
        const platformNamed = (await this.#doors.promise).hasPlatform(instanceId)
        return await this.#names.answer(query, transport, { platformNamed })
      })
    } catch {
      return null
    }
  }

  /**
   * What a host's name (or address) stands for to programs of an instance; none where it stands for nothing.
   * @throws too_many_requests as they get no answer
   */
  async addressesOf(instanceId: string, host: string): Promise<Address[]> {
    const address = parseAddress(host)
    if (address !== null) return [address]
    return await this.#lookups(instanceId).run(async () => {
      const platformNamed = (await this.#doors.promise).hasPlatform(instanceId)
      return await this.#names.addresses(host, { platformNamed })
    })
  }

  #lookups(instanceId: string): Semaphore {
    let queries = this.#queries.get(instanceId)
    if (queries === undefined) {
      queries = new Semaphore({
        concurrencyMax: queriesPerInstanceMax,
        waitingMax: queriesWaitingMax,
        what: 'names are being looked up',
      })
      this.#queries.set(instanceId, queries)
    }
    return queries
  }

  failed(connection: EgressConnection, errno: string): void {
    this.#verdicts.failed(connection, errno)
  }

  ended(instanceId: string): void {
    this.#queries.delete(instanceId)
    this.#verdicts.forget(instanceId)
    void this.#doors.promise.then((doors) => doors.close(instanceId))
  }

  close(): void {
    this.#dns.close()
  }
}

function isInside(address: Address): boolean {
  const real = embeddedAddress(address)
  return real.length === 4 && real[0] === insideNet.first && real[1] === insideNet.second
}
