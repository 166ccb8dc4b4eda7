import { promises as hostDns } from 'node:dns'
import { networkInterfaces } from 'node:os'
import { type Address, formatAddress, parseAddress, specialKind } from '../lib/addresses.ts'
import { BoundedMap } from '../lib/bounded-map.ts'
import type { Clock } from '../lib/clock.ts'
import type { AllowList } from './allow-list.ts'
import {
  buildAnswer,
  encodeName,
  parseQuery,
  plainAnswer,
  type Question,
  type ResourceRecord,
  recordTypes,
  responseCodes,
} from './message.ts'

/** The platform, as programs inside call it. */
const platformName = 'hutch.internal'
/** The loopback of this host, of which nothing can be reached but what the operator allows. */
export const hostName = 'host.hutch.internal'
export const platformAddress = Uint8Array.of(10, 201, 0, 1)
export const hostAddress = Uint8Array.of(10, 201, 0, 3)

/** The resolver of this host does not say for how long its answers hold. */
const ttlSeconds = 30
const cachedMs = 15_000
const cachedFailureMs = 2_000
const cachedNamesMax = 2_000
const answersMax = 32
/** A name that is allowed leads to these addresses, also for programs that remember what it stood for. */
const allowedMs = 60 * 60_000
const refreshMsMin = 5_000
const interfacesMs = 5_000

/** What this host's resolver says. Anything but these is an answer that failed. */
export interface HostResolver {
  /** Empty: the name does not exist. @throws when it could not be asked */
  addresses(name: string): Promise<string[]>
  /** Data of records other than addresses, encoded. @throws when it could not be asked */
  records(name: string, type: number): Promise<Uint8Array[]>
}

type Found = { addresses: Address[] } | 'failed'

/** Answers the DNS queries of instances, by the resolver of this host. */
export class Names {
  readonly #resolver: HostResolver
  readonly #allow: AllowList
  readonly #clock: Clock
  readonly #found = new BoundedMap<string, { until: number; found: Promise<Found> }>(cachedNamesMax)
  /** By address and port: until when an allowed name leads there. */
  readonly #led = new BoundedMap<string, number>(cachedNamesMax)
  #refreshedAt = Number.NEGATIVE_INFINITY
  #refreshing: Promise<void> | null = null
  #interfaces: { until: number; hasIpv6: boolean } = { until: Number.NEGATIVE_INFINITY, hasIpv6: false }

  constructor(options: {
    resolver?: HostResolver
    allow: AllowList
    clock: Clock
  }) {
    this.#resolver = options.resolver ?? systemResolver
    this.#allow = options.allow
    this.#clock = options.clock
  }

  /** Null: no answer at all. `platformNamed`: to who asks, `hutch.internal` is a name. */
  async answer(
    query: Uint8Array,
    transport: 'udp' | 'tcp',
    { platformNamed }: { platformNamed: boolean },
  ): Promise<Uint8Array | null> {
    const question = parseQuery(query)
    if (question === null) return null
    if ('code' in question) return plainAnswer(question.id, question.code)
    const bytesMax = transport === 'udp' ? question.answerBytesMax : tcpAnswerBytesMax
    const answer = (code: number, records: ResourceRecord[] = []) =>
      buildAnswer(question, code, records, bytesMax)
    if (question.class !== internetClass) return answer(responseCodes.refused)
    const { type } = question
    const asked = type === anyType ? recordTypes.a : type
    if (asked === recordTypes.a || asked === recordTypes.aaaa) {
      const found = await this.#visible(question.name, platformNamed)
      if (found === 'failed') return answer(responseCodes.serverFailure)
      if (found.addresses.length === 0) return answer(responseCodes.nameError)
      return answer(responseCodes.noError, this.#records(question, asked, found.addresses))
    }
    return await this.#other(question, answer)
  }

  /** Of a name, as programs inside find it; none for one that does not exist, or could not be asked for. */
  async addresses(written: string, { platformNamed }: { platformNamed: boolean }): Promise<Address[]> {
    const name = written.toLowerCase().replace(/\.$/, '')
    const found = await this.#visible(name, platformNamed)
    if (found === 'failed') return []
    const ofType = (type: number) => this.#records({ name }, type, found.addresses)
    return [...ofType(recordTypes.a), ...ofType(recordTypes.aaaa)].map(({ data }) => data)
  }

  async #visible(name: string, platformNamed: boolean): Promise<Found> {
    const hidden = name === platformName && !platformNamed
    return hidden ? { addresses: [] } : await this.#lookup(name)
  }

  #records({ name }: Pick<Question, 'name'>, type: number, addresses: Address[]): ResourceRecord[] {
    const length = type === recordTypes.a ? 4 : 16
    // Whoever has no way to IPv6 must not be sent there first: every connection would be tried in vain.
    if (length === 16 && !this.#hasIpv6() && name !== 'localhost') return []
    return addresses
      .filter((address) => address.length === length)
      .slice(0, answersMax)
      .map((data) => ({ type, ttlSeconds, data }))
  }

  async #other(
    question: Question,
    answer: (code: number, records?: ResourceRecord[]) => Uint8Array,
  ): Promise<Uint8Array> {
    if (!forwardedTypes.has(question.type) || isInternal(question.name)) return answer(responseCodes.noError)
    try {
      const found = await this.#resolver.records(question.name, question.type)
      return answer(
        responseCodes.noError,
        found.slice(0, answersMax).map((data) => ({ type: question.type, ttlSeconds, data })),
      )
    } catch {
      return answer(responseCodes.serverFailure)
    }
  }

  async #lookup(name: string): Promise<Found> {
    if (isInternal(name)) return { addresses: this.#internal(name) }
    const now = this.#clock.monotonic()
    const known = this.#found.get(name)
    if (known !== undefined && known.until > now) return await known.found
    const entry = { until: now + cachedMs, found: this.#ask(name) }
    this.#found.set(name, entry)
    const found = await entry.found
    if (found === 'failed') entry.until = now + cachedFailureMs
    else this.#note(name, found.addresses)
    return found
  }

  async #ask(name: string): Promise<Found> {
    if (name === '') return { addresses: [] }
    try {
      const addresses = (await this.#resolver.addresses(name)).map(parseAddress)
      return { addresses: addresses.filter((address) => address !== null) }
    } catch {
      return 'failed'
    }
  }

  #internal(name: string): Address[] {
    if (name === 'localhost' || name.endsWith('.localhost')) return [loopback4, loopback6]
    if (name === hostName) return [hostAddress]
    return name === platformName ? [platformAddress] : []
  }

  /** An allowed name stands for addresses that are allowed from now on, by its ports. */
  #note(name: string, addresses: Address[]): void {
    const ports = this.#allow.portsOf(name)
    if (ports === null) return
    const until = this.#clock.monotonic() + allowedMs
    for (const address of addresses) {
      for (const port of ports) this.#led.set(placeOf(address, port), until)
    }
  }

  /** Whether a name that the operator allows leads there. Asks again for those names when it does not seem so. */
  async leadsTo(address: Address, port: number): Promise<boolean> {
    if (this.#leads(address, port)) return true
    const now = this.#clock.monotonic()
    if (this.#refreshing === null && now - this.#refreshedAt < refreshMsMin) return false
    this.#refreshedAt = now
    this.#refreshing ??= this.#refresh().finally(() => {
      this.#refreshing = null
    })
    await this.#refreshing
    return this.#leads(address, port)
  }

  #leads(address: Address, port: number): boolean {
    return (this.#led.get(placeOf(address, port)) ?? Number.NEGATIVE_INFINITY) > this.#clock.monotonic()
  }

  async #refresh(): Promise<void> {
    await Promise.all([...this.#allow.names()].map((name) => this.#lookup(name)))
  }

  #hasIpv6(): boolean {
    const now = this.#clock.monotonic()
    if (this.#interfaces.until <= now) {
      const addresses = Object.values(networkInterfaces()).flatMap((list) => list ?? [])
      const hasIpv6 = addresses.some(({ family, address }) => {
        const parsed = family === 'IPv6' ? parseAddress(address) : null
        return parsed !== null && specialKind(parsed) === null
      })
      this.#interfaces = { until: now + interfacesMs, hasIpv6 }
    }
    return this.#interfaces.hasIpv6
  }
}

const internetClass = 1
const anyType = 255
const tcpAnswerBytesMax = 16 * 1024
const forwardedTypes = new Set<number>([recordTypes.srv, recordTypes.txt, recordTypes.mx])
const loopback4 = Uint8Array.of(127, 0, 0, 1)
const loopback6 = Uint8Array.of(...new Array(15).fill(0), 1)

/** Names that mean something here and are nobody else's to answer. */
function isInternal(name: string): boolean {
  return (
    name === 'localhost' ||
    name.endsWith('.localhost') ||
    name === platformName ||
    name.endsWith(`.${platformName}`)
  )
}

function placeOf(address: Address, port: number): string {
  return `${formatAddress(address)} ${port}`
}

/** The codes of answers that say that there is nothing, rather than that nobody could be asked. */
const nothingCodes = new Set(['ENOTFOUND', 'ENODATA', 'EAI_NONAME', 'DNS_ENOTFOUND', 'DNS_ENODATA'])

const systemResolver: HostResolver = {
  async addresses(name) {
    return await orNothing(async () => {
      const found = await hostDns.lookup(name, { all: true })
      return found.map(({ address }) => address)
    })
  },
  async records(name, type) {
    const found = await orNothing(() => lookupRecords(name, type))
    return found.filter((data) => data !== null)
  },
}

async function lookupRecords(name: string, type: number): Promise<(Uint8Array | null)[]> {
  if (type === recordTypes.srv) {
    const found = await hostDns.resolveSrv(name)
    return found.map((srv) => withName([srv.priority, srv.weight, srv.port], srv.name))
  }
  if (type === recordTypes.mx) {
    const found = await hostDns.resolveMx(name)
    return found.map((mx) => withName([mx.priority], mx.exchange))
  }
  const found = await hostDns.resolveTxt(name)
  return found.map((strings) => {
    const parts = strings.map((text) => Buffer.from(text))
    if (parts.some((part) => part.length > 255)) return null
    return Buffer.concat(parts.flatMap((part) => [Buffer.of(part.length), part]))
  })
}

function withName(numbers: number[], name: string): Uint8Array | null {
  const encoded = encodeName(name)
  if (encoded === null) return null
  return Uint8Array.from([...numbers.flatMap((number) => [number >> 8, number & 0xff]), ...encoded])
}

async function orNothing<Item>(ask: () => Promise<Item[]>): Promise<Item[]> {
  try {
    return await ask()
  } catch (error) {
    if (nothingCodes.has(String((error as { code?: string }).code))) return []
    throw error
  }
}
