/** Bringing images here: pulls from registries and imports of archives, and what is to be told of them meanwhile. */
import { createHash } from 'node:crypto'
import { PlatformError } from '../errors.ts'
import type { Clock } from '../lib/clock.ts'
import type { Dialer } from '../lib/dialer.ts'
import { flowing } from '../lib/flow.ts'
import type { Logger } from '../lib/log.ts'
import { withoutPort } from '../lib/loopback.ts'
import { openArchive } from './archive.ts'
import type { LayerCollector } from './collector.ts'
import { type Credentials, fromDockerConfig, type RegistryCredentials } from './credentials.ts'
import { type ImageSource, install } from './install.ts'
import { cannotUnpack, type LayerStore } from './layer-store.ts'
import type { ImageBase, ImageRecords, ImageTag, StoredImage } from './records.ts'
import {
  checkImageName,
  checkResourceType,
  checkTag,
  localName,
  type RegistryReference,
  type ResourceType,
  referenceText,
  tagDefault,
  tagOfDigest,
} from './reference.ts'
import { Registry, type RegistryImage } from './registry.ts'
import type { ImageName, ImageTransfer } from './view.ts'

/** Pulls and imports under way at once. */
const transfersMax = 8
const transferMsMax = 2 * 60 * 60 * 1000
/** For each `flowBytesMin` of an archive: what packs it while it is sent may think before it goes on. */
const archiveStallMsMax = 5 * 60 * 1000
const transfersKeptMax = 1000

export interface PullOptions {
  /** What it is called here; default: as in the registry. */
  type?: string
  name?: string
  tag?: string
  /** A Docker config.json, for this pull only. */
  dockerConfig?: string
}

export interface ImportOptions {
  type?: string
  name: string
  tag?: string
  /** Which image of the archive, where there are several. */
  reference?: string
  signal?: AbortSignal
}

/** What a pull ended with. */
export interface Pulled {
  image: StoredImage
  tag: ImageTag
}

export interface TransfersOptions {
  layers: LayerStore
  /** Whether a driver here starts from layers. */
  able: boolean
  records: ImageRecords
  credentials: Credentials
  collector: LayerCollector
  registries: readonly string[]
  imageBytesMax: number
  dialer: Dialer
  clock: Clock
  log: Logger
  stallMsMax?: number
  /** Called when one ended, whichever way. */
  ended: () => void
}

export class Transfers {
  readonly #options: TransfersOptions
  readonly #pulls = new Map<string, Promise<Pulled>>()
  readonly #imports = new Set<Promise<Pulled>>()
  /** Under way, and how the last one ended that did not go well. */
  readonly #told = new Map<string, ImageTransfer>()
  readonly #closed = new AbortController()
  #running = 0

  constructor(options: TransfersOptions) {
    this.#options = options
  }

  /** What goes on with an image, or went wrong last; null: nothing. */
  of(at: ImageName): ImageTransfer | null {
    return this.#told.get(transferKey(at)) ?? null
  }

  /** Images of a workspace that are under way. */
  *underWay(workspace: string): Iterable<ImageName> {
    for (const [key, { status }] of this.#told) {
      const at = nameOfTransfer(key)
      if (at.workspace === workspace && status === 'BUILDING') yield at
    }
  }

  /** Nothing begins any more, and what is under way ends. */
  async close(reason: PlatformError): Promise<void> {
    this.#closed.abort(reason)
    await Promise.allSettled([...this.#pulls.values(), ...this.#imports])
  }

  /** @throws bad_request, not_implemented */
  checkAllowed(host: string): void {
    if (!this.#options.able) throw cannotUnpack()
    if (this.#isAllowed(host)) return
    throw new PlatformError(
      'bad_request',
      `the registry ${host} is not allowed on this platform; allowed are ${this.#options.registries.join(', ') || 'none'}; hutch up --registry HOST allows others (registries)`,
    )
  }

  /** Takes in an archive: an OCI layout or what `docker save` writes. */
  async import(workspace: string, body: ReadableStream<Uint8Array>, options: ImportOptions): Promise<Pulled> {
    const { type = 'sandbox', name, tag = tagDefault, reference } = options
    const target = { type, name, tag, ...(options.signal ? { signal: options.signal } : {}) }
    return await this.install(workspace, target, (dir, signal) =>
      openArchive(flowing(body, { windowMs: archiveStallMsMax, sender: 'the client', signal }), {
        dir,
        limits: {
          bytesMax: this.#options.imageBytesMax,
          checkSpace: () => this.#options.layers.checkSpace(),
        },
        ...(reference === undefined ? {} : { reference }),
        signal,
      }),
    )
  }

  /** Pulls an image, also when it is here already: its tag may have moved. One pull for all who ask at once. */
  async pull(workspace: string, reference: RegistryReference, options: PullOptions): Promise<Pulled> {
    this.checkAllowed(reference.host)
    const source = referenceText(reference)
    const target = {
      type: checkResourceType(options.type ?? 'sandbox', 'type'),
      name: options.name === undefined ? null : checkImageName(options.name, 'name'),
      tag: checkTag(options.tag ?? reference.tag ?? tagOfDigest(reference.digest), 'tag'),
    }
    const given =
      options.dockerConfig === undefined
        ? null
        : fromDockerConfig(options.dockerConfig, reference.host, 'dockerConfig')
    // Who brings other credentials may see something else: a pull of one's own then.
    const key = JSON.stringify([
      workspace,
      source,
      target,
      given && createHash('sha256').update(JSON.stringify(given)).digest('hex'),
    ])
    const running = this.#pulls.get(key)
    if (running) return await running
    const pulling = this.#pullNow(workspace, reference, { ...target, source }, given)
    this.#pulls.set(key, pulling)
    try {
      return await pulling
    } finally {
      this.#pulls.delete(key)
    }
  }

  /**
   * An image of a registry for who builds on it: nothing of it is kept here. Its layers are downloaded into `dir` as they are
   * opened. @throws as `pull`
   */
  async open(
    workspace: string,
    reference: RegistryReference,
    options: { dockerConfig?: string; dir: string; signal: AbortSignal },
  ): Promise<RegistryImage> {
    this.checkAllowed(reference.host)
    const { dockerConfig, dir, signal } = options
    const given =
      dockerConfig === undefined ? null : fromDockerConfig(dockerConfig, reference.host, 'dockerConfig')
    const registry = await this.#registry(workspace, reference, given)
    return await registry.open(dir, AbortSignal.any([signal, this.#closed.signal]))
  }

  /** Takes in what `open` brings, under a name of this workspace. */
  async install(
    workspace: string,
    options: { type: string; name: string; tag: string; base?: ImageBase; signal?: AbortSignal },
    open: (dir: string, signal: AbortSignal) => Promise<ImageSource>,
  ): Promise<Pulled> {
    const target = {
      type: checkResourceType(options.type, 'type'),
      name: checkImageName(options.name, 'name'),
      tag: checkTag(options.tag, 'tag'),
      source: null,
      ...(options.base === undefined ? {} : { base: options.base }),
    }
    const signal = options.signal
      ? AbortSignal.any([options.signal, this.#closed.signal])
      : this.#closed.signal
    const installing = this.#transfer(workspace, target, signal, open)
    this.#imports.add(installing)
    try {
      return await installing
    } finally {
      this.#imports.delete(installing)
    }
  }

  async #registry(
    workspace: string,
    reference: RegistryReference,
    given: RegistryCredentials | null,
  ): Promise<Registry> {
    const { clock, log, dialer, imageBytesMax, stallMsMax, layers } = this.#options
    return new Registry(reference, {
      credentials: await this.#options.credentials.find(workspace, reference.host, given),
      clock,
      log,
      checkSpace: () => layers.checkSpace(),
      blobBytesMax: imageBytesMax,
      dialer,
      ...(stallMsMax === undefined ? {} : { stallMsMax }),
    })
  }

  async #pullNow(
    workspace: string,
    reference: RegistryReference,
    target: { type: ResourceType; name: string | null; tag: string; source: string },
    given: RegistryCredentials | null,
  ): Promise<Pulled> {
    const name = target.name ?? (await this.freeName(workspace, target.type, reference))
    const registry = await this.#registry(workspace, reference, given)
    return await this.#transfer(workspace, { ...target, name }, this.#closed.signal, (dir, signal) =>
      registry.open(dir, signal),
    )
  }

  /** The image's own name, or with a piece of its origin's digest where another origin's image has that. */
  async freeName(workspace: string, type: ResourceType, reference: RegistryReference): Promise<string> {
    const name = localName(reference)
    const origin = `${reference.host}/${reference.repository}`
    const present = await this.#options.records.get(workspace, type, name)
    const isOther = (source: string | null) =>
      source === null || !(source.startsWith(`${origin}:`) || source.startsWith(`${origin}@`))
    if (!present?.body.tags.some((tag) => isOther(tag.source))) return name
    return `${name.slice(0, 100)}-${createHash('sha256').update(origin).digest('hex').slice(0, 8)}`
  }

  async #transfer(
    workspace: string,
    target: { type: ResourceType; name: string; tag: string; source: string | null; base?: ImageBase },
    stop: AbortSignal,
    open: (dir: string, signal: AbortSignal) => Promise<ImageSource>,
  ): Promise<Pulled> {
    if (!this.#options.able) throw cannotUnpack()
    const { base } = target
    stop.throwIfAborted()
    if (this.#running >= transfersMax) {
      throw new PlatformError('too_many_requests', `${transfersMax} images are being fetched already`, {
        retryAfterSeconds: 5,
      })
    }
    this.#running++
    const at = { workspace, type: target.type, name: target.name, tag: target.tag }
    this.#note(at, 'BUILDING', target.source === null ? 'Importing an archive' : `Pulling ${target.source}`)
    const started = this.#options.clock.monotonic()
    let letGo = () => {}
    const late = new AbortController()
    const timer = setTimeout(() => late.abort(tookTooLong()), transferMsMax)
    const signal = AbortSignal.any([stop, late.signal])
    try {
      await using scratch = await this.#options.layers.workspace()
      const source = await open(scratch.path, signal)
      letGo = this.#options.collector.hold(source.config.diffIds)
      const installed = await install(source, this.#options.layers, {
        bytesMax: this.#options.imageBytesMax,
        signal,
      })
      const image = await this.#options.records.setTag(
        workspace,
        target,
        { ...installed, settings: source.config.settings, ...(base === undefined ? {} : { base }) },
        this.#options.clock.now(),
      )
      this.#options.collector.named(installed.layers)
      this.#options.log.info('an image is here', {
        workspace,
        image: `${target.type}/${target.name}:${target.tag}`,
        bytes: installed.bytes,
        ms: Math.round(this.#options.clock.monotonic() - started),
      })
      const tag = image.body.tags.find((one) => one.name === target.tag)!
      this.#told.delete(transferKey(at))
      return { image, tag }
    } catch (error) {
      this.#note(at, 'FAILED', PlatformError.is(error) ? error.message : 'it could not be fetched')
      throw error
    } finally {
      clearTimeout(timer)
      this.#running--
      letGo()
      this.#options.ended()
    }
  }

  #isAllowed(host: string): boolean {
    return this.#options.registries.some((allowed) =>
      allowed.startsWith('*.') ? withoutPort(host).endsWith(allowed.slice(1)) : allowed === host,
    )
  }

  #note(at: ImageName & { tag: string }, status: ImageTransfer['status'], message: string): void {
    const key = transferKey(at)
    this.#told.delete(key)
    this.#told.set(key, { status, message, tag: at.tag, at: this.#options.clock.now() })
    for (const oldest of this.#told.keys()) {
      if (this.#told.size <= transfersKeptMax) return
      this.#told.delete(oldest)
    }
  }
}

function tookTooLong(): PlatformError {
  const minutes = transferMsMax / 60_000
  return new PlatformError(
    'gateway_timeout',
    `the image was not here after ${minutes} minutes, the most that it may take`,
  )
}

function transferKey({ workspace, type, name }: ImageName): string {
  return `${workspace}/${type}/${name}`
}

function nameOfTransfer(key: string): ImageName {
  const [workspace = '', type = '', name = ''] = key.split('/')
  return { workspace, type, name }
}
