import { BlockList, isIP } from 'node:net'
import { PlatformError } from '../errors.ts'
import { BoundedMap } from '../lib/bounded-map.ts'
import { isLoopbackAddress } from '../lib/loopback.ts'

export interface HostOptions {
  /** Addresses listened on, as given with --host; loopback is always allowed. */
  listenHosts: string[]
  /** --url: where clients reach the platform, if not by the address they used. */
  publicUrl?: string
  /** --domain: names whose subdomains serve previews. */
  domains: string[]
  /** Addresses and CIDR ranges whose X-Forwarded-* headers count. */
  trustedProxies: string[]
}

export interface Authority {
  /** Lower-case, without port and brackets. */
  host: string
  /** Where addresses in answers start; '' when the host is not ours. */
  origin: string
  /** `base`: the platform itself. `subdomain`: below one of the domains. `foreign`: not ours. */
  kind: 'base' | 'subdomain' | 'foreign'
}

/** The name by which workloads inside instances reach the platform. */
const internalHost = 'hutch.internal'
const loopbackNames = new Set(['localhost', 'ip6-localhost', 'ip6-loopback'])
const wildcardAddresses = new Set(['0.0.0.0', '::', '*'])
const authoritiesMax = 1000
const authorityPattern = /^(?:\[([0-9a-f:.]+)\]|([a-z0-9._-]+))(?::(\d{1,5}))?$/

/**
 * Which `Host` values are ours. A name chosen by an attacker and resolved to a loopback address is not, which is
 * what keeps a web page from reaching the platform by DNS rebinding; ports may differ, so that tunnels work.
 */
export class Hosts {
  readonly #publicUrl: URL | null
  readonly #domains: string[]
  readonly #listenHosts: Set<string>
  readonly #anyAddress: boolean
  readonly #trustedProxies: BlockList | null
  readonly #known = {
    http: new BoundedMap<string, Authority>(authoritiesMax),
    https: new BoundedMap<string, Authority>(authoritiesMax),
  }

  /** @throws bad_request for a trusted proxy or URL that is none */
  constructor(options: HostOptions) {
    this.#publicUrl = options.publicUrl === undefined ? null : parseUrl(options.publicUrl)
    this.#domains = options.domains.map((domain) => domain.toLowerCase().replace(/\.$/, ''))
    this.#listenHosts = new Set(options.listenHosts.map((host) => bare(host.toLowerCase())))
    this.#anyAddress = options.listenHosts.some((host) => wildcardAddresses.has(bare(host)))
    this.#trustedProxies = options.trustedProxies.length === 0 ? null : blockList(options.trustedProxies)
  }

  /** Whom a request was sent to. `urlAuthority` stands in where there is no Host header. Never throws. */
  read(request: Request, urlAuthority: string, peer: { readonly address: string | null } | null): Authority {
    const { headers } = request
    if (this.#trustedProxies === null) return this.#authority(headers.get('host') ?? urlAuthority, 'http')
    const address = peer?.address ?? null
    const trusted = address !== null && isTrusted(this.#trustedProxies, address)
    const forwardedHost = trusted ? first(headers.get('x-forwarded-host')) : null
    const forwardedProto = trusted ? first(headers.get('x-forwarded-proto')) : null
    const scheme = forwardedProto?.toLowerCase() === 'https' ? 'https' : 'http'
    return this.#authority(forwardedHost ?? headers.get('host') ?? urlAuthority, scheme)
  }

  /** Where addresses start that are made without a request. */
  originFor(port: number): string {
    return this.#publicUrl?.origin ?? `http://localhost:${port}`
  }

  /** Whether a name is the platform's, or below one of its domains: such a host is never a sandbox's own. */
  owns(host: string): boolean {
    return host.endsWith(`.${internalHost}`) || this.#kindOf(host) !== 'foreign'
  }

  #authority(text: string, scheme: 'http' | 'https'): Authority {
    const known = this.#known[scheme].get(text)
    if (known !== undefined) return known
    const authority = this.#classify(text.toLowerCase(), scheme)
    if (text.length <= 300) this.#known[scheme].set(text, authority)
    return authority
  }

  #classify(text: string, scheme: 'http' | 'https'): Authority {
    const match = authorityPattern.exec(text)
    const host = (match?.[1] ?? match?.[2] ?? '').replace(/\.$/, '')
    const port = match?.[3] === undefined ? null : Number(match[3])
    if (host === '' || (port !== null && (port < 1 || port > 65535)))
      return { host, origin: '', kind: 'foreign' }
    const kind = this.#kindOf(host)
    return { host, kind, origin: kind === 'foreign' ? '' : this.#originOf(host, port, scheme, kind) }
  }

  #kindOf(host: string): Authority['kind'] {
    if (loopbackNames.has(host) || host === internalHost || this.#listenHosts.has(host)) return 'base'
    if (this.#publicUrl !== null && host === bare(this.#publicUrl.hostname)) return 'base'
    const family = isIP(host)
    // A page cannot make a browser send a numeric Host for a name of its own.
    if (family !== 0) return this.#anyAddress || isLoopbackAddress(host) ? 'base' : 'foreign'
    for (const domain of this.#domains) {
      if (host === domain) return 'base'
      if (host.endsWith(`.${domain}`)) return 'subdomain'
    }
    return 'foreign'
  }

  /** A host below a domain still gets addresses of the platform itself, not of that host. */
  #originOf(host: string, port: number | null, scheme: string, kind: Authority['kind']): string {
    const publicUrl = this.#publicUrl
    if (publicUrl !== null && (kind === 'subdomain' || host === bare(publicUrl.hostname)))
      return publicUrl.origin
    const domain = kind === 'subdomain' ? this.#domains.find((name) => host.endsWith(`.${name}`)) : undefined
    const name = domain ?? (host.includes(':') ? `[${host}]` : host)
    return `${scheme}://${name}${port === null ? '' : `:${port}`}`
  }
}

/** @throws misdirected */
export function refuseForeign(authority: Authority): void {
  if (authority.kind !== 'foreign') return
  throw new PlatformError(
    'misdirected',
    `Host: "${authority.host.slice(0, 100)}" is not a name of this platform: use localhost, or start it with --url or --domain`,
  )
}

function bare(host: string): string {
  return host.replace(/^\[|\]$/g, '')
}

function first(header: string | null): string | null {
  const value = header?.split(',')[0]?.trim()
  return value ? value : null
}

function parseUrl(text: string): URL {
  const url = URL.parse(text)
  if (url === null || !/^https?:$/.test(url.protocol)) {
    throw new PlatformError('bad_request', `url: "${text.slice(0, 200)}" is not an http or https URL`)
  }
  return url
}

function blockList(entries: string[]): BlockList {
  const list = new BlockList()
  for (const entry of entries) {
    const [address = '', prefix] = entry.split('/')
    const family = isIP(address) === 6 ? 'ipv6' : 'ipv4'
    const prefixLength = Number(prefix ?? (family === 'ipv6' ? 128 : 32))
    if (isIP(address) === 0 || !Number.isInteger(prefixLength)) {
      throw new PlatformError(
        'bad_request',
        `trustedProxies: "${entry.slice(0, 80)}" is not an address or range`,
      )
    }
    list.addSubnet(address, prefixLength, family)
  }
  return list
}

function isTrusted(proxies: BlockList, peerAddress: string): boolean {
  const address = peerAddress.startsWith('::ffff:') ? peerAddress.slice(7) : peerAddress
  return proxies.check(address, isIP(address) === 6 ? 'ipv6' : 'ipv4')
}
