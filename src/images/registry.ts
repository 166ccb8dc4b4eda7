/** Client of OCI distribution registries: tokens, manifests by platform, blobs that are checked and taken up again. */

import { z } from 'zod'
import { PlatformError } from '../errors.ts'
import type { Clock } from '../lib/clock.ts'
import type { Dialer } from '../lib/dialer.ts'
import { flowBytesMin, flowing } from '../lib/flow.ts'
import type { Logger } from '../lib/log.ts'
import { isLoopbackHost } from '../lib/loopback.ts'
import { ReceivedFile } from '../lib/received-file.ts'
import type { RegistryCredentials } from './credentials.ts'
import type { ImageSource } from './install.ts'
import {
  configBytesMax,
  type Descriptor,
  forThisHost,
  isIndex,
  manifestBytesMax,
  manifestTypes,
  parseConfig,
  parseIndex,
  parseManifest,
} from './manifest.ts'
import { type RegistryReference, referenceText } from './reference.ts'

const redirectsMax = 5
const tokenBytesMax = 1024 * 1024
const errorBytesMax = 64 * 1024
/** In a row that bring nothing, and in all: each goes on where the last one broke off. */
const attemptsMax = 6
const attemptsInAllMax = 100
const backoffMsMin = 250
const backoffMsMax = 8_000
/** Until an answer begins, and then for each `flowBytesMin` of it. */
const stallMsMax = 60_000
const nestedIndexesMax = 4
const challengeCharsMax = 4096

export interface RegistryOptions {
  credentials: RegistryCredentials | null
  clock: Clock
  log: Logger
  /** Asked now and then while bytes come in. @throws insufficient_storage */
  checkSpace(): Promise<void>
  /** Of one compressed layer. */
  blobBytesMax: number
  dialer: Dialer
  stallMsMax?: number
}

/** An image of a registry, with its documents as they are. */
export interface RegistryImage extends ImageSource {
  configDocument: Uint8Array
  /** Lowest first. `open` answers the path of the blob, as it is stored there. */
  layers: { blob: Descriptor; open(signal: AbortSignal): Promise<string> }[]
}

/** One repository of a registry, with the tokens that it gave us. */
export class Registry {
  readonly #reference: RegistryReference
  readonly #options: RegistryOptions
  readonly #origin: string
  #authorization: string | null = null

  constructor(reference: RegistryReference, options: RegistryOptions) {
    this.#reference = reference
    this.#options = options
    const { host } = reference
    // Without encryption only where nobody is in between.
    this.#origin =
      host === 'docker.io'
        ? 'https://registry-1.docker.io'
        : `${isLoopbackHost(host) ? 'http' : 'https'}://${host}`
  }

  /**
   * The image, its documents read and checked. Its layers are downloaded into `dir` when they are opened.
   * @throws not_found, forbidden, unprocessable, bad_gateway, unavailable
   */
  async open(dir: string, signal: AbortSignal): Promise<RegistryImage> {
    const { tag, digest } = this.#reference
    let { bytes, mediaType, found } = await this.#manifest(digest ?? tag ?? 'latest', digest, signal)
    for (let nested = 0; isIndex(mediaType, bytes); nested++) {
      if (nested >= nestedIndexesMax) throw new PlatformError('unprocessable', 'the index is nested too deep')
      const chosen = forThisHost(parseIndex(bytes))
      ;({ bytes, mediaType, found } = await this.#manifest(chosen.digest, chosen.digest, signal))
    }
    const manifest = parseManifest(bytes)
    if (manifest.config.size > configBytesMax) {
      throw new PlatformError(
        'unprocessable',
        `the configuration of the image has more than ${configBytesMax} bytes`,
      )
    }
    const answer = await this.#get(`blobs/${manifest.config.digest}`, signal)
    const config = await readAll(answer, configBytesMax, 'configuration', this.#stallMsMax)
    check(config, manifest.config.digest)
    return {
      digest: found,
      config: parseConfig(config),
      configDocument: config,
      layers: manifest.layers.map((layer, at) => ({
        blob: layer,
        open: (stop) => this.#download(layer, `${dir}/layer-${at}`, stop),
      })),
    }
  }

  get #stallMsMax(): number {
    return this.#options.stallMsMax ?? stallMsMax
  }

  async #manifest(
    name: string,
    digest: string | null,
    signal: AbortSignal,
  ): Promise<{ bytes: Uint8Array; mediaType: string; found: string }> {
    const answer = await this.#get(`manifests/${name}`, signal, { accept: manifestTypes.join(', ') })
    const bytes = await readAll(answer, manifestBytesMax, 'manifest', this.#stallMsMax)
    const found = `sha256:${new Bun.CryptoHasher('sha256').update(bytes).digest('hex')}`
    if (digest !== null) check(bytes, digest)
    const mediaType = (answer.headers.get('content-type') ?? '').split(';')[0]!.trim()
    if (mediaType.includes('docker.distribution.manifest.v1')) {
      throw new PlatformError(
        'unprocessable',
        `${referenceText(this.#reference)} is of Docker's first format, which nothing writes any more: push it again with a current tool`,
      )
    }
    return { bytes, mediaType, found }
  }

  /** Answers the path of the complete, checked file. */
  async #download(blob: Descriptor, path: string, signal: AbortSignal): Promise<string> {
    const { digest, size } = blob
    if (size > this.#options.blobBytesMax) {
      throw new PlatformError(
        'unprocessable',
        `a layer of the image has ${size} bytes, at most ${this.#options.blobBytesMax} are allowed (imageMbMax)`,
      )
    }
    await using file = await ReceivedFile.open(path, this.#options.checkSpace)
    let inAll = 0
    for (let attempt = 1; file.size < size; attempt++) {
      const before = file.size
      try {
        await this.#receive(blob, file, signal)
      } catch (error) {
        signal.throwIfAborted()
        // What the registry or the disk refused would be refused again; what broke off goes on where it was.
        if (PlatformError.is(error) && (!error.retryable || error.code === 'insufficient_storage'))
          throw error
        const slow = PlatformError.is(error) && error.code === 'gateway_timeout'
        if (file.size - before >= (slow ? flowBytesMin : 1)) attempt = 1
        if (attempt >= attemptsMax || ++inAll >= attemptsInAllMax) throw error
        const waitMs = Math.min(backoffMsMin * 2 ** (attempt - 1), backoffMsMax)
        this.#options.log.debug('a download is taken up again', { attempt, received: file.size, size })
        await this.#options.clock.sleep(waitMs, signal)
      }
    }
    const found = file.digest()
    if (found !== digest) throw damaged(digest, found)
    return path
  }

  async #receive({ digest, size }: Descriptor, file: ReceivedFile, signal: AbortSignal): Promise<void> {
    const from = file.size
    const answer = await this.#get(`blobs/${digest}`, signal, from > 0 ? { range: `bytes=${from}-` } : {})
    const resumed =
      answer.status === 206 && (answer.headers.get('content-range') ?? '').startsWith(`bytes ${from}-`)
    // Without ranges it begins again; what is there already is read past, so that nothing is written twice.
    let past = from > 0 && !resumed ? from : 0
    for await (const chunk of flowing(answer.body, { windowMs: this.#stallMsMax, sender: 'the registry' })) {
      signal.throwIfAborted()
      const bytes = past >= chunk.length ? null : chunk.subarray(past)
      past = Math.max(0, past - chunk.length)
      if (bytes === null) continue
      if (file.size + bytes.length > size) {
        throw new PlatformError(
          'unprocessable',
          `the registry sends more than the ${size} bytes of ${digest}`,
        )
      }
      await file.write(bytes)
    }
    if (file.size < size) throw broke(this.#reference.host, 'the answer ended early')
  }

  async #get(path: string, signal: AbortSignal, headers: Record<string, string> = {}): Promise<Response> {
    const url = `${this.#origin}/v2/${this.#reference.repository}/${path}`
    for (let asked = 0; ; asked++) {
      const answer = await this.#follow(url, headers, signal)
      if (answer.ok) return answer
      if (answer.status === 401 && asked === 0) {
        await answer.body?.cancel()
        await this.#authenticate(answer.headers.get('www-authenticate') ?? '', signal)
        continue
      }
      throw await this.#refusal(answer)
    }
  }

  /** Redirects lead to where the bytes are; what proves who we are stays with the registry. */
  async #follow(url: string, headers: Record<string, string>, signal: AbortSignal): Promise<Response> {
    let at = url
    for (let redirects = 0; redirects <= redirectsMax; redirects++) {
      const own = new URL(at).origin === this.#origin
      const answer = await this.#send(
        at,
        {
          ...headers,
          'accept-encoding': 'identity',
          ...(own && this.#authorization ? { authorization: this.#authorization } : {}),
        },
        signal,
      )
      const location = answer.headers.get('location')
      if (answer.status < 300 || answer.status >= 400 || answer.status === 304 || location === null)
        return answer
      await answer.body?.cancel()
      if (!URL.canParse(location, at)) throw broke(this.#reference.host, 'it redirects to no address')
      at = new URL(location, at).href
      this.#checkAddress(at)
    }
    throw broke(this.#reference.host, 'too many redirects')
  }

  async #send(url: string, headers: Record<string, string>, signal: AbortSignal): Promise<Response> {
    const { host } = this.#reference
    const { origin, host: at } = new URL(url)
    const late = new AbortController()
    // Until the headers are there; the body has its own.
    const timer = setTimeout(() => late.abort(), this.#stallMsMax)
    try {
      return await this.#options.dialer.open(url, {
        method: 'GET',
        headers,
        signal: AbortSignal.any([signal, late.signal]),
        what: `the registry ${host}`,
        trusted: origin === this.#origin || (isLoopbackHost(host) && isLoopbackHost(at)),
        raw: true,
      })
    } catch (error) {
      signal.throwIfAborted()
      if (PlatformError.is(error)) throw error
      throw broke(host, 'it does not answer', error)
    } finally {
      clearTimeout(timer)
    }
  }

  /** `Bearer realm="...",service="...",scope="..."`, or `Basic`. */
  async #authenticate(challenge: string, signal: AbortSignal): Promise<void> {
    const { credentials } = this.#options
    const scheme = /^\s*(\w+)/.exec(challenge.slice(0, challengeCharsMax))?.[1]?.toLowerCase()
    const { host } = this.#reference
    if (scheme === 'basic') {
      if (credentials === null) throw noCredentials(host)
      this.#authorization = basic(credentials)
      return
    }
    if (scheme !== 'bearer') throw broke(host, 'it asks for an unknown way to authenticate')
    const parameters = challengeParameters(challenge.slice(0, challengeCharsMax))
    const realm = parameters.realm ?? ''
    if (!URL.canParse(realm)) throw broke(host, 'it names no place to get a token')
    this.#checkAddress(realm)
    const url = new URL(realm)
    if (parameters.service) url.searchParams.set('service', parameters.service)
    url.searchParams.set('scope', parameters.scope ?? `repository:${this.#reference.repository}:pull`)
    const answer = await this.#send(
      url.href,
      credentials ? { authorization: basic(credentials) } : {},
      signal,
    )
    if (!answer.ok) {
      await answer.body?.cancel()
      if (answer.status === 401 || answer.status === 403) {
        throw credentials === null ? noCredentials(host) : wrongCredentials(host)
      }
      throw broke(host, `no token, status ${answer.status}`)
    }
    const body = await readAll(answer, tokenBytesMax, 'token', this.#stallMsMax)
    const token = tokenOf(body)
    if (token === null) throw broke(host, 'it gave no token')
    this.#authorization = `Bearer ${token}`
  }

  /** Where a registry sends us to must be encrypted; that it is not private sees the dialer to. */
  #checkAddress(address: string): void {
    const url = URL.canParse(address) ? new URL(address) : null
    const { host } = this.#reference
    if (url?.origin === this.#origin || url?.protocol === 'https:') return
    if (url?.protocol === 'http:' && isLoopbackHost(host) && isLoopbackHost(url.host)) return
    throw new PlatformError(
      'bad_gateway',
      `the registry ${host} sends us to ${(url?.origin ?? address).slice(0, 200)}, where this platform does not go`,
    )
  }

  async #refusal(answer: Response): Promise<PlatformError> {
    const { host } = this.#reference
    const body = await readAll(answer, errorBytesMax, 'error', this.#stallMsMax).catch(() => new Uint8Array())
    const cause = new Error(`status ${answer.status}: ${Buffer.from(body).toString('utf8').slice(0, 1000)}`)
    const image = referenceText(this.#reference)
    if (answer.status === 404) {
      return new PlatformError(
        'not_found',
        `${image} does not exist, or is not for us to see: check its name and tag`,
        { cause },
      )
    }
    if (answer.status === 401 || answer.status === 403) {
      return this.#options.credentials === null ? noCredentials(host, cause) : wrongCredentials(host, cause)
    }
    if (answer.status === 429) {
      return new PlatformError(
        'too_many_requests',
        `the registry ${host} wants us to wait before the next pull`,
        { cause },
      )
    }
    return broke(host, `status ${answer.status}`, cause)
  }
}

function basic({ username, password }: RegistryCredentials): string {
  return `Basic ${Buffer.from(`${username}:${password}`).toString('base64')}`
}

function challengeParameters(challenge: string): Record<string, string> {
  const parameters: Record<string, string> = {}
  for (const match of challenge.matchAll(/(\w+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))/g)) {
    parameters[match[1]!.toLowerCase()] = match[2]?.replace(/\\(.)/g, '$1') ?? match[3] ?? ''
  }
  return parameters
}

const tokenSchema = z.object({
  token: z.string().min(1).optional(),
  access_token: z.string().min(1).optional(),
})

function tokenOf(body: Uint8Array): string | null {
  try {
    const { token, access_token } = tokenSchema.parse(JSON.parse(Buffer.from(body).toString('utf8')))
    const given = token ?? access_token ?? null
    return given !== null && /^[\x21-\x7e]+$/.test(given) ? given : null
  } catch {
    return null
  }
}

async function readAll(
  answer: Response,
  bytesMax: number,
  what: string,
  stallMs: number,
): Promise<Uint8Array> {
  const chunks: Uint8Array[] = []
  let length = 0
  for await (const chunk of flowing(answer.body, { windowMs: stallMs, sender: 'the registry' })) {
    length += chunk.length
    if (length > bytesMax) {
      throw new PlatformError('unprocessable', `the ${what} of the image has more than ${bytesMax} bytes`)
    }
    chunks.push(chunk)
  }
  return Buffer.concat(chunks)
}

function check(bytes: Uint8Array, digest: string): void {
  const found = `sha256:${new Bun.CryptoHasher('sha256').update(bytes).digest('hex')}`
  if (found !== digest) throw damaged(digest, found)
}

function damaged(digest: string, found: string): PlatformError {
  return new PlatformError(
    'unprocessable',
    `the registry sent something else than ${digest}: its digest is ${found}`,
  )
}

function broke(host: string, what: string, cause?: unknown): PlatformError {
  return new PlatformError('bad_gateway', `the registry ${host} cannot be used: ${what}`, { cause })
}

function noCredentials(host: string, cause?: unknown): PlatformError {
  return new PlatformError(
    'forbidden',
    `the registry ${host} wants credentials: give them with hutch images login ${host}`,
    { cause },
  )
}

function wrongCredentials(host: string, cause?: unknown): PlatformError {
  return new PlatformError(
    'forbidden',
    `the registry ${host} refuses the credentials kept for it: renew them with hutch images login ${host}`,
    { cause },
  )
}
