import { lookup } from 'node:dns/promises'
import { isIP } from 'node:net'
import { networkInterfaces } from 'node:os'
import { PlatformError } from '../errors.ts'
import { AddressList, isPublicAddress, plainAddress } from './addresses.ts'
import { isLoopbackAddress } from './loopback.ts'

export interface DialerOptions {
  /** Addresses, ranges or either with a port, that are not public and may be dialled all the same. */
  privateTargets: readonly string[]
  /** The platform's own: never dialled at an address of this host, whatever is allowed. */
  ownPorts: () => readonly number[]
  /** Whether nobody but this machine reaches the platform, so that its users may have it dial this machine. Absent: no. */
  loopbackOpen?: () => boolean
  resolve?: (host: string) => Promise<string[]>
}

export interface DialerRequest {
  method: string
  headers: Record<string, string>
  body?: string | Uint8Array<ArrayBuffer>
  signal?: AbortSignal
  /** For all of it, the answer's body included. */
  timeoutMs: number
  /** Of the answer. */
  bodyBytesMax: number
  /** What is dialled, for messages: `Morph`. */
  what: string
}

/** Which addresses may be dialled besides public ones. */
export interface DialerReach {
  /** The operator has named this host for this purpose: it may be private. */
  trusted?: boolean
  /** A user asks for this: it may be this machine itself, where that is open and but for the platform's own ports. */
  loopback?: boolean
}

export type DialerOpening = Pick<DialerRequest, 'method' | 'headers' | 'body' | 'signal' | 'what'> &
  DialerReach & {
    /** The body as it was sent, whatever its encoding. */
    raw?: boolean
  }

export interface DialerAnswer {
  status: number
  headers: Headers
  body: string
}

const addressesMax = 8
/** Nothing was sent when a connection fails with one of these: the next address may be tried. */
const notConnected = new Set([
  'ConnectionRefused',
  'ECONNREFUSED',
  'ENETUNREACH',
  'EHOSTUNREACH',
  'EADDRNOTAVAIL',
])

/**
 * Makes the platform's own requests to the outside. A name is resolved once and the request goes to an address that was
 * looked at, so that a name cannot point elsewhere a moment later; redirects are answers like any other. Where the
 * environment names a proxy (HTTPS_PROXY) the way leads through that, to the same address, unless that is this machine.
 */
export class Dialer {
  readonly #options: DialerOptions
  readonly #allowed: AddressList

  constructor(options: DialerOptions) {
    this.#options = options
    this.#allowed = new AddressList(options.privateTargets)
  }

  /** @throws bad_request for an address that may not be dialled, bad_gateway when there is no (whole) answer */
  async request(
    address: string,
    request: DialerRequest & Pick<DialerReach, 'loopback'>,
  ): Promise<DialerAnswer> {
    const url = parsed(address, request.what)
    const port = url.port === '' ? (url.protocol === 'https:' ? 443 : 80) : Number(url.port)
    const timeout = AbortSignal.timeout(request.timeoutMs)
    const signal = request.signal ? AbortSignal.any([request.signal, timeout]) : timeout
    const { what, loopback = false, signal: caller } = request
    const targets = await this.#targets(url, port, { what, reach: { loopback }, signal, caller })
    for (const [index, target] of targets.entries()) {
      try {
        const response = await this.#send(url, target, request, signal)
        return await read(response, request)
      } catch (error) {
        request.signal?.throwIfAborted()
        if (PlatformError.is(error)) throw error
        if (isNotConnected(error) && index < targets.length - 1) continue
        const why = timeout.aborted ? `did not answer within ${request.timeoutMs / 1000} s` : whyNot(error)
        throw new PlatformError('bad_gateway', `${request.what} at ${url.host} ${why}`, { cause: error })
      }
    }
    throw new PlatformError('bad_gateway', `${request.what}: ${url.hostname} has no address`)
  }

  /**
   * The answer with its body unread; `signal` goes on counting for that.
   * @throws as `request`, and what `signal` was aborted with
   */
  async open(address: string, opening: DialerOpening): Promise<Response> {
    const { what, signal } = opening
    const url = parsed(address, what)
    const port = url.port === '' ? (url.protocol === 'https:' ? 443 : 80) : Number(url.port)
    const targets = await this.#targets(url, port, { what, reach: opening, signal, caller: signal })
    for (const [index, target] of targets.entries()) {
      try {
        return await this.#send(url, target, opening, signal)
      } catch (cause) {
        signal?.throwIfAborted()
        if (isNotConnected(cause) && index < targets.length - 1) continue
        throw new PlatformError('bad_gateway', `${what} at ${url.host} ${whyNot(cause)}`, { cause })
      }
    }
    throw new PlatformError('bad_gateway', `${what}: ${url.hostname} has no address`)
  }

  /**
   * Whether an address that somebody gives for later could be dialled now; a name that is not known at this moment may be
   * later. @throws bad_request
   */
  async check(address: string, options: DialerReach & { what: string; signal?: AbortSignal }): Promise<void> {
    const { what, signal } = options
    const url = parsed(address, what)
    const port = url.port === '' ? (url.protocol === 'https:' ? 443 : 80) : Number(url.port)
    try {
      await this.#targets(url, port, { what, reach: options, signal, caller: undefined })
    } catch (error) {
      if (PlatformError.is(error) && error.code === 'bad_gateway') return
      throw error
    }
  }

  async #targets(
    url: URL,
    port: number,
    from: {
      what: string
      reach: DialerReach
      signal: AbortSignal | undefined
      /** The part of `signal` that is the caller's. */
      caller: AbortSignal | undefined
    },
  ): Promise<string[]> {
    const { what, reach, signal, caller } = from
    const host = url.hostname.replace(/^\[|\]$/g, '')
    let addresses: string[]
    try {
      const resolve = this.#options.resolve ?? resolveName
      addresses = isIP(host) ? [host] : await within(resolve(host), signal)
    } catch (cause) {
      if (caller?.aborted) throw caller.reason
      throw new PlatformError('bad_gateway', `${what}: the name ${host} cannot be resolved`, { cause })
    }
    const open = addresses.slice(0, addressesMax).filter((candidate) => this.#mayDial(candidate, port, reach))
    if (open.length > 0 || addresses.length === 0) return open
    throw new PlatformError(
      'bad_request',
      `${what}: ${url.host} is a private address, which the platform does not dial unless its operator lists it in privateTargets`,
    )
  }

  #mayDial(address: string, port: number, { trusted, loopback }: DialerReach): boolean {
    if (this.#options.ownPorts().includes(port) && isOfThisHost(address)) return false
    if (loopback && this.#options.loopbackOpen?.() && isLoopbackAddress(plainAddress(address))) return true
    return trusted === true || isPublicAddress(address) || this.#allowed.has(address, port)
  }

  #send(
    url: URL,
    target: string,
    request: Pick<DialerRequest, 'method' | 'headers' | 'body'> & { raw?: boolean },
    signal: AbortSignal | undefined,
  ): Promise<Response> {
    const dialled = new URL(url)
    dialled.hostname = isIP(target) === 6 ? `[${target}]` : target
    const name = url.hostname.replace(/^\[|\]$/g, '')
    const init: BunFetchRequestInit = {
      method: request.method,
      headers: { ...request.headers, host: url.host },
      redirect: 'manual',
      ...(signal ? { signal } : {}),
      ...(request.raw ? { decompress: false } : {}),
      // A connection that is kept would be shared by all names at this address, whatever certificate was checked.
      keepalive: false,
      ...(request.body === undefined ? {} : { body: request.body }),
      // Only this machine reaches itself.
      ...(isOfThisHost(target) ? { proxy: false } : {}),
      ...(url.protocol === 'https:' && !isIP(name) ? { tls: { serverName: name } } : {}),
    }
    return fetch(dialled, init)
  }
}

function isNotConnected(error: unknown): boolean {
  const code = (error as { code?: unknown }).code
  return typeof code === 'string' && notConnected.has(code)
}

/** As whoever gave the address can make use of it. */
function whyNot(error: unknown): string {
  const code = String((error as { code?: unknown }).code ?? '')
  if (/CERT|SIGNATURE/.test(code)) return `cannot be reached: its certificate is not trusted (${code})`
  if (code === 'ECONNREFUSED' || code === 'ConnectionRefused')
    return 'cannot be reached: nothing listens there'
  if (code === 'ECONNRESET') return 'closed the connection before its answer was complete'
  return 'cannot be reached'
}

/** Resolving a name cannot be stopped, only left. */
async function within<Value>(work: Promise<Value>, signal: AbortSignal | undefined): Promise<Value> {
  if (!signal) return work
  const { promise, reject } = Promise.withResolvers<never>()
  const onAbort = () => reject(signal.reason)
  if (signal.aborted) onAbort()
  signal.addEventListener('abort', onAbort, { once: true })
  try {
    return await Promise.race([work, promise])
  } finally {
    signal.removeEventListener('abort', onAbort)
    work.catch(() => {})
  }
}

async function resolveName(host: string): Promise<string[]> {
  const found = await lookup(host, { all: true })
  return found.map(({ address }) => address)
}

function parsed(address: string, what: string): URL {
  let url: URL | null = null
  try {
    url = new URL(address)
  } catch {}
  if (!url || !['http:', 'https:'].includes(url.protocol) || url.username !== '' || url.password !== '') {
    throw new PlatformError(
      'bad_request',
      `${what}: its address must be an http or https URL without a user name`,
    )
  }
  return url
}

function isOfThisHost(address: string): boolean {
  const plain = plainAddress(address)
  if (plain.startsWith('127.') || plain === '::1' || plain === '0.0.0.0' || plain === '::') return true
  for (const own of Object.values(networkInterfaces())) {
    if (own?.some((entry) => plainAddress(entry.address) === plain)) return true
  }
  return false
}

async function read(response: Response, request: DialerRequest): Promise<DialerAnswer> {
  const chunks: Uint8Array[] = []
  let bytes = 0
  for await (const chunk of response.body ?? []) {
    bytes += chunk.length
    if (bytes > request.bodyBytesMax) {
      throw new PlatformError(
        'bad_gateway',
        `${request.what} answered with more than ${request.bodyBytesMax} bytes`,
      )
    }
    chunks.push(chunk)
  }
  return { status: response.status, headers: response.headers, body: Buffer.concat(chunks, bytes).toString() }
}
