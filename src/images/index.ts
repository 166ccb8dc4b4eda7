/** Images: what sandboxes and deployments start from. This door resolves references, brings images here and lets them go. */
import { createHash } from 'node:crypto'
import { PlatformError } from '../errors.ts'
import type { Clock } from '../lib/clock.ts'
import type { Dialer } from '../lib/dialer.ts'
import type { Logger } from '../lib/log.ts'
import type { SecretBox } from '../lib/secret-box.ts'
import type { Layers } from '../spec/layers.ts'
import type { RootFilesystem } from '../spec/runtime.ts'
import type { BatchStep, Store } from '../spec/store.ts'
import { openArchive } from './archive.ts'
import { catalogue, wellKnown } from './catalogue.ts'
import { Credentials, fromDockerConfig } from './credentials.ts'
import { type Frame, imageEnvDefault, openFrame } from './frame.ts'
import type { HostImage } from './host-image.ts'
import { type ImageSource, install } from './install.ts'
import { cannotUnpack, LayerStore } from './layer-store.ts'
import type { ImageSettings } from './manifest.ts'
import { ImageRecords, type ImageTag, noImage, type StoredImage } from './records.ts'
import {
  checkImageName,
  checkResourceType,
  checkTag,
  hostName,
  type ImageReference,
  localName,
  parseReference,
  parseRegistryReference,
  type RegistryReference,
  type ResourceType,
  referenceText,
  tagDefault,
} from './reference.ts'
import { Registry } from './registry.ts'
import { type ImageName, type ImageTransfer, type ImageView, imageView } from './view.ts'

export { type CatalogueEntry, catalogue } from './catalogue.ts'
export { type Credentials, passwordCharsMax, usernameCharsMax } from './credentials.ts'
export { HostImage, type HostImageOptions, type HostImageSource, hostImageSources } from './host-image.ts'
export { freeBytesMin } from './layer-store.ts'
export type { ImageTag, StoredImage } from './records.ts'
export { isLoopback, resourceTypes } from './reference.ts'
export { type ImageView, imageViewSchema } from './view.ts'

export const defaultImage = 'blaxel/base-image:latest'
/** Pulls and imports under way at once. */
const transfersMax = 8
const pullTimeoutMsMax = 2 * 60 * 60 * 1000
/** Less than clients and proxies wait for an answer. */
export const pullAnswerMsMax = 50_000
const transfersKeptMax = 1000
const collectEveryMs = 10 * 60 * 1000

/** An image made ready on this host, with the settings it carries. Held, so that it stays, until disposed. */
export interface ResolvedImage extends Disposable {
  /** As it was asked for. */
  reference: string
  root: RootFilesystem
  env: Record<string, string>
  workingDir: string
  /** '' is root. */
  user: string
  entrypoint: string[]
  command: string[]
  ports: { name?: string; target: number; protocol?: string }[]
}

export interface ImagesOptions {
  host: HostImage
  store: Store
  secrets: SecretBox
  clock: Clock
  log: Logger
  /** `<dataDir>/images` */
  dir: string
  /** Null: this platform starts from the host image only. */
  layers: Layers | null
  /** What stands in for the cloud's own sandbox API in images that bring it; absent: nothing does. */
  standInPath?: string
  /** Registries that may be pulled from: hosts, or `*.` and a domain. */
  registries: readonly string[]
  /** Of the operator, in Docker's format. */
  registryAuthFile: string | null
  /** Of one image, unpacked; of one archive; of one layer. */
  imageBytesMax: number
  /** The root file systems of every instance there is, running or not. */
  inUse: () => Iterable<{ workspace: string; root: RootFilesystem }>
  dialer: Dialer
  /** Without a byte from a registry. */
  stallMsMax?: number
}

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

export interface TransferAnswer {
  view: ImageView
  /** For `spec.runtime.image`. */
  reference: string
}

/** What a pull ended with. */
export interface Pulled {
  image: StoredImage
  tag: ImageTag
}

export class Images {
  readonly credentials: Credentials
  readonly #options: ImagesOptions
  readonly #records: ImageRecords
  readonly #layers: LayerStore
  readonly #pulls = new Map<string, Promise<Pulled>>()
  /** Diff ids that something under way needs. */
  readonly #held = new Map<string, number>()
  readonly #closed = new AbortController()
  readonly #background = new Set<Promise<unknown>>()
  /** Since the collector last read the catalogue. */
  readonly #namedSince = new Set<string>()
  #frame: Promise<Frame> | null = null
  #transfers = 0
  /** Under way, and how the last one ended that did not go well. */
  readonly #transferred = new Map<string, ImageTransfer>()
  #collecting: Promise<number> = Promise.resolve(0)

  constructor(options: ImagesOptions) {
    this.#options = options
    this.#records = new ImageRecords(options.store)
    this.#layers = new LayerStore({
      dir: options.dir,
      layers: options.layers,
      layerBytesMax: options.imageBytesMax,
      log: options.log,
    })
    this.credentials = new Credentials({
      store: options.store,
      secrets: options.secrets,
      authFile: options.registryAuthFile,
    })
  }

  /** At start, once the instances are known: removes leftovers, and from then on what nothing needs any more. */
  start(): void {
    this.#inBackground(this.#layers.open().then(() => this.#collectNowAndThen()))
  }

  async close(): Promise<void> {
    this.#closed.abort(new PlatformError('unavailable', 'the platform is stopping', { retryAfterSeconds: 5 }))
    await Promise.allSettled([...this.#background, ...this.#pulls.values()])
  }

  /** For a data directory that is removed: what is in its layers can be taken away by their driver only. */
  async removeAll(): Promise<void> {
    await this.#layers.removeAll()
  }

  /**
   * @throws bad_request for a reference that is malformed or names nothing known here, not_found for an image of a registry
   * that was not pulled yet
   */
  async resolve(workspace: string, reference: string, signal?: AbortSignal): Promise<ResolvedImage> {
    const parsed = parseReference(reference, field)
    if (isHostImage(parsed)) return await this.#resolveHost(reference, parsed, signal)
    const tag = await this.#find(workspace, parsed)
    if (tag === null) throw this.#missing(reference, parsed)
    const hold = this.#hold(tag.layers)
    try {
      return { ...(await this.#resolveTag(reference, tag)), [Symbol.dispose]: hold }
    } catch (error) {
      hold()
      throw error
    }
  }

  /**
   * What has to be awaited before `resolve` can answer: null when nothing has, else a pull that is under way by then.
   * @throws bad_request, also for a registry that is not allowed
   */
  async prepare(
    workspace: string,
    reference: string,
    options: { dockerConfig?: string } = {},
  ): Promise<{ pulling: Promise<unknown> } | null> {
    const parsed = parseReference(reference, field)
    if (isHostImage(parsed)) {
      checkHostImage(reference, parsed)
      return null
    }
    if ((await this.#find(workspace, parsed)) !== null) return null
    if (parsed.kind !== 'registry') throw this.#missing(reference, parsed)
    const pulling = this.#pull(workspace, parsed, { ...options, type: 'sandbox' })
    pulling.catch(() => {})
    return { pulling }
  }

  /** Pulls an image, also when it is here already: its tag may have moved. One pull for all who ask at once. */
  async pull(workspace: string, reference: string, options: PullOptions = {}): Promise<Pulled> {
    return await this.#pull(workspace, parseRegistryReference(reference, 'image'), options)
  }

  /** Takes in an archive: an OCI layout or what `docker save` writes. */
  async import(workspace: string, body: ReadableStream<Uint8Array>, options: ImportOptions): Promise<Pulled> {
    const target = {
      type: checkResourceType(options.type ?? 'sandbox', 'type'),
      name: checkImageName(options.name, 'name'),
      tag: checkTag(options.tag ?? tagDefault, 'tag'),
      source: null,
    }
    const signal = options.signal
      ? AbortSignal.any([options.signal, this.#closed.signal])
      : this.#closed.signal
    return await this.#transfer(workspace, target, signal, (dir) =>
      openArchive(body, {
        dir,
        limits: { bytesMax: this.#options.imageBytesMax, checkSpace: () => this.#layers.checkSpace() },
        ...(options.reference === undefined ? {} : { reference: options.reference }),
        signal,
      }),
    )
  }

  /** As `pull`, for an answer that cannot wait for ever: after `pullAnswerMsMax` it tells that the pull goes on. */
  async pullFor(workspace: string, reference: string, options: PullOptions): Promise<TransferAnswer> {
    const parsed = parseRegistryReference(reference, 'image')
    const type = checkResourceType(options.type ?? 'sandbox', 'type')
    const name = options.name ?? (await this.#freeName(workspace, type, parsed))
    const pulling = this.#pull(workspace, parsed, { ...options, type, name })
    // It may fail after the answer: then the image's view says so.
    pulling.catch(() => {})
    const stop = new AbortController()
    const late = this.#options.clock.sleep(pullAnswerMsMax, stop.signal)
    try {
      await Promise.race([pulling, late.catch(() => pulling)])
    } finally {
      stop.abort()
    }
    const tag = options.tag ?? parsed.tag ?? tagOfDigest(parsed.digest)
    return { view: await this.view(workspace, type, name), reference: `${type}/${name}:${tag}` }
  }

  /** As `import`. */
  async importFor(
    workspace: string,
    body: ReadableStream<Uint8Array>,
    options: ImportOptions,
  ): Promise<TransferAnswer> {
    const { image, tag } = await this.import(workspace, body, options)
    const { resourceType, name } = image.body
    return {
      view: await this.view(workspace, resourceType, name),
      reference: `${resourceType}/${name}:${tag.name}`,
    }
  }

  /** By name, those that are being pulled for the first time included. */
  async views(workspace: string): Promise<ImageView[]> {
    const views = new Map<string, ImageView>()
    for (const image of await this.#records.list(workspace)) {
      const { resourceType: type, name } = image.body
      const at = { workspace, type, name }
      views.set(transferKey(at), imageView(at, image, this.#transferred.get(transferKey(at)) ?? null))
    }
    for (const [key, transfer] of this.#transferred) {
      const at = nameOfTransfer(key)
      if (at.workspace === workspace && transfer.status === 'BUILDING' && !views.has(key))
        views.set(key, imageView(at, null, transfer))
    }
    return [...views.values()].sort((left, right) => (left.metadata.name < right.metadata.name ? -1 : 1))
  }

  /** @throws not_found */
  async view(workspace: string, type: string, name: string): Promise<ImageView> {
    const at = { workspace, type: checkResourceType(type, 'resourceType'), name }
    const image = await this.#records.get(workspace, at.type, name)
    const transfer = this.#transferred.get(transferKey(at)) ?? null
    if (!image && !transfer) throw noImage(at.type, name)
    return imageView(at, image, transfer)
  }

  /** Steps that remove everything of a workspace, for the batch that removes it. */
  async removal(workspace: string): Promise<BatchStep[]> {
    const images = await this.#records.list(workspace)
    const steps: BatchStep[] = images.map(({ kind, name }) => ({
      op: 'remove',
      key: { kind, workspace, name },
    }))
    return [...steps, ...(await this.credentials.removal(workspace))]
  }

  /** Removes an image, or one tag of it. @throws not_found, bad_request while an instance stands on it */
  async remove(workspace: string, type: string, name: string, tag?: string): Promise<ImageView> {
    const used = this.#usedDigests(workspace)
    const at = { workspace, type: checkResourceType(type, 'resourceType'), name }
    const removed = await this.#records.remove(workspace, at.type, name, {
      ...(tag === undefined ? {} : { tag }),
      check: (tags) => {
        const held = tags.find((one) => used.has(one.digest))
        if (!held) return
        throw new PlatformError(
          'bad_request',
          `the image ${type}/${name}:${held.name} is used by a sandbox: delete that first`,
        )
      },
    })
    this.#collectSoon()
    return imageView(at, removed, null)
  }

  /** Removes every image of the workspace that no instance stands on; answers how many. */
  async removeUnused(workspace: string): Promise<number> {
    const used = this.#usedDigests(workspace)
    let removed = 0
    for (const image of await this.#records.list(workspace)) {
      for (const tag of image.body.tags) {
        if (used.has(tag.digest)) continue
        await this.#records.remove(workspace, image.body.resourceType, image.body.name, {
          tag: tag.name,
          check: () => {},
        })
        removed++
      }
    }
    this.#collectSoon()
    return removed
  }

  /** Removes layers that no image, instance or transfer needs; answers how many. */
  async collect(): Promise<number> {
    const collecting = this.#collecting.catch(() => 0).then(() => this.#collect())
    this.#collecting = collecting
    return await collecting
  }

  /** Whether a registry may be pulled from. */
  isAllowed(host: string): boolean {
    return this.#options.registries.some((allowed) =>
      allowed.startsWith('*.') ? hostName(host).endsWith(allowed.slice(1)) : allowed === host,
    )
  }

  async #resolveHost(
    reference: string,
    parsed: ImageReference & { kind: 'catalogue' },
    signal: AbortSignal | undefined,
  ): Promise<ResolvedImage> {
    const entry = checkHostImage(reference, parsed)
    return {
      reference,
      root: await this.#options.host.resolve(signal),
      env: {
        PATH: '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/opt/hutch/bin',
        HOME: '/blaxel',
        LANG: 'C.UTF-8',
      },
      workingDir: '/blaxel',
      user: '',
      entrypoint: [],
      command: [],
      ports: entry.ports,
      [Symbol.dispose]() {},
    }
  }

  async #resolveTag(reference: string, tag: ImageTag): Promise<Omit<ResolvedImage, typeof Symbol.dispose>> {
    const { standInPath: source } = this.#options
    const frame = await this.#openFrame()
    const { settings } = tag
    for (const diffId of tag.layers) {
      if ((await this.#layers.facts(diffId)) === null) {
        throw new PlatformError(
          'unavailable',
          `a layer of the image ${JSON.stringify(reference)} is missing on this host: pull or import it again`,
        )
      }
    }
    return {
      reference,
      root: {
        digest: tag.digest,
        layers: [frame.above, ...tag.layers.map((diffId) => this.#layers.treeOf(diffId)), frame.below],
        mounts: source ? tag.sandboxApis.map((target) => ({ source, target, kind: 'bind' as const })) : [],
      },
      env: { ...imageEnvDefault, ...settings.env },
      workingDir: settings.workingDir || '/',
      user: settings.user,
      entrypoint: settings.entrypoint,
      command: settings.command,
      ports: settings.ports.map((target) => ({ target })),
    }
  }

  #openFrame(): Promise<Frame> {
    this.#frame ??= openFrame(this.#options.dir).catch((error) => {
      this.#frame = null
      throw error
    })
    return this.#frame
  }

  async #find(workspace: string, reference: ImageReference): Promise<ImageTag | null> {
    if (reference.kind === 'registry') {
      return (await this.#records.findSource(workspace, referenceText(reference)))?.tag ?? null
    }
    const { type, name } = catalogueName(reference.name)
    if (type === null) return null
    const image = await this.#records.get(workspace, type, name)
    return image?.body.tags.find((tag) => tag.name === reference.tag) ?? null
  }

  #missing(reference: string, parsed: ImageReference): PlatformError {
    const shown = JSON.stringify(reference)
    if (parsed.kind === 'registry') {
      return new PlatformError(
        'not_found',
        `${field} ${shown} was not pulled yet: hutch images pull ${reference}`,
      )
    }
    const known = catalogue.map((entry) => entry.name).join(', ')
    const hint =
      parsed.name.startsWith('blaxel/') || this.#options.layers === null
        ? ''
        : `. Images of one's own come by hutch images import, those of registries by their full name, e.g. docker.io/${parsed.name.includes('/') ? '' : 'library/'}${parsed.name}:${parsed.tag}`
    return new PlatformError('bad_request', `${field} ${shown} is unknown here. Known: ${known}${hint}`)
  }

  #checkAllowed(host: string): void {
    if (this.#options.layers === null) throw cannotUnpack()
    if (this.isAllowed(host)) return
    throw new PlatformError(
      'bad_request',
      `the registry ${host} is not allowed on this platform; allowed are ${this.#options.registries.join(', ') || 'none'} (registries)`,
    )
  }

  async #pull(workspace: string, reference: RegistryReference, options: PullOptions): Promise<Pulled> {
    this.#checkAllowed(reference.host)
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

  async #pullNow(
    workspace: string,
    reference: RegistryReference,
    target: { type: ResourceType; name: string | null; tag: string; source: string },
    given: { username: string; password: string } | null,
  ): Promise<Pulled> {
    const { clock, log, dialer, imageBytesMax, stallMsMax } = this.#options
    const credentials = await this.credentials.find(workspace, reference.host, given)
    const name = target.name ?? (await this.#freeName(workspace, target.type, reference))
    const signal = AbortSignal.any([this.#closed.signal, AbortSignal.timeout(pullTimeoutMsMax)])
    const registry = new Registry(reference, {
      credentials,
      clock,
      log,
      checkSpace: () => this.#layers.checkSpace(),
      blobBytesMax: imageBytesMax,
      dialer,
      ...(stallMsMax === undefined ? {} : { stallMsMax }),
    })
    return await this.#transfer(workspace, { ...target, name }, signal, (dir) => registry.open(dir, signal))
  }

  /** The image's own name, or with a piece of its origin's digest where another origin's image has that. */
  async #freeName(workspace: string, type: ResourceType, reference: RegistryReference): Promise<string> {
    const name = localName(reference)
    const origin = `${reference.host}/${reference.repository}`
    const present = await this.#records.get(workspace, type, name)
    const isOther = (source: string | null) =>
      source === null || !(source.startsWith(`${origin}:`) || source.startsWith(`${origin}@`))
    if (!present?.body.tags.some((tag) => isOther(tag.source))) return name
    return `${name.slice(0, 100)}-${createHash('sha256').update(origin).digest('hex').slice(0, 8)}`
  }

  async #transfer(
    workspace: string,
    target: { type: ResourceType; name: string; tag: string; source: string | null },
    signal: AbortSignal,
    open: (dir: string) => Promise<ImageSource>,
  ): Promise<Pulled> {
    if (this.#options.layers === null) throw cannotUnpack()
    signal.throwIfAborted()
    if (this.#transfers >= transfersMax) {
      throw new PlatformError('too_many_requests', `${transfersMax} images are being fetched already`, {
        retryAfterSeconds: 5,
      })
    }
    this.#transfers++
    const at = { workspace, type: target.type, name: target.name }
    this.#note(at, 'BUILDING', target.source === null ? 'Importing an archive' : `Pulling ${target.source}`)
    const started = this.#options.clock.monotonic()
    let letGo = () => {}
    try {
      await using scratch = await this.#layers.workspace()
      const source = await open(scratch.path)
      letGo = this.#hold(source.config.diffIds)
      const installed = await install(source, this.#layers, {
        bytesMax: this.#options.imageBytesMax,
        signal,
      })
      const image = await this.#records.setTag(
        workspace,
        target,
        { ...installed, settings: source.config.settings satisfies ImageSettings },
        this.#options.clock.now(),
      )
      for (const diffId of installed.layers) this.#namedSince.add(diffId)
      this.#options.log.info('an image is here', {
        workspace,
        image: `${target.type}/${target.name}:${target.tag}`,
        bytes: installed.bytes,
        ms: Math.round(this.#options.clock.monotonic() - started),
      })
      const tag = image.body.tags.find((one) => one.name === target.tag)!
      this.#transferred.delete(transferKey(at))
      return { image, tag }
    } catch (error) {
      this.#note(at, 'FAILED', PlatformError.is(error) ? error.message : 'it could not be fetched')
      throw error
    } finally {
      this.#transfers--
      letGo()
      this.#collectSoon()
    }
  }

  #note(at: ImageName, status: ImageTransfer['status'], message: string): void {
    const key = transferKey(at)
    this.#transferred.delete(key)
    this.#transferred.set(key, { status, message, at: this.#options.clock.now() })
    for (const oldest of this.#transferred.keys()) {
      if (this.#transferred.size <= transfersKeptMax) return
      this.#transferred.delete(oldest)
    }
  }

  #hold(diffIds: readonly string[]): () => void {
    for (const diffId of diffIds) this.#held.set(diffId, (this.#held.get(diffId) ?? 0) + 1)
    let held = true
    return () => {
      if (!held) return
      held = false
      for (const diffId of diffIds) {
        const left = this.#held.get(diffId)! - 1
        if (left === 0) this.#held.delete(diffId)
        else this.#held.set(diffId, left)
      }
    }
  }

  /** Digests of images that instances of a workspace stand on. */
  #usedDigests(workspace: string): Set<string> {
    const used = new Set<string>()
    for (const instance of this.#options.inUse())
      if (instance.workspace === workspace) used.add(instance.root.digest)
    return used
  }

  async #collect(): Promise<number> {
    let removed = 0
    for (const diffId of await this.#unneeded()) {
      // Whoever needs it from now on holds it first.
      if (await this.#layers.remove(diffId, () => this.#isInUse(diffId))) removed++
    }
    if (removed > 0) this.#options.log.info('image layers were removed', { layers: removed })
    return removed
  }

  async #unneeded(): Promise<string[]> {
    const present = await this.#layers.list()
    if (present.length === 0) return []
    this.#namedSince.clear()
    const named = await this.#named()
    return present.filter((diffId) => !named.has(diffId))
  }

  async #named(): Promise<Set<string>> {
    const named = new Set<string>()
    for await (const { body } of this.#records.every())
      for (const { layers } of body.tags) for (const diffId of layers) named.add(diffId)
    return named
  }

  #isInUse(diffId: string): boolean {
    if (this.#held.has(diffId) || this.#namedSince.has(diffId)) return true
    const tree = this.#layers.treeOf(diffId)
    for (const { root } of this.#options.inUse()) if (root.layers.includes(tree)) return true
    return false
  }

  async #collectNowAndThen(): Promise<void> {
    while (!this.#closed.signal.aborted) {
      await this.collect().catch((error) =>
        this.#options.log.warn('image layers were not collected', { error }),
      )
      await this.#options.clock.sleep(collectEveryMs, this.#closed.signal)
    }
  }

  #collectSoon(): void {
    if (this.#closed.signal.aborted) return
    this.#inBackground(this.collect())
  }

  #inBackground(work: Promise<unknown>): void {
    const logged = work.catch((error) => {
      if (!this.#closed.signal.aborted)
        this.#options.log.warn('work on images failed', { error: String(error) })
    })
    this.#background.add(logged)
    void logged.finally(() => this.#background.delete(logged))
  }
}

const field = 'spec.runtime.image'

function isHostImage(parsed: ImageReference): parsed is ImageReference & { kind: 'catalogue' } {
  return parsed.kind === 'catalogue' && wellKnown(parsed.name) !== null
}

function checkHostImage(reference: string, { name, tag }: ImageReference & { kind: 'catalogue' }) {
  if (tag === tagDefault) return wellKnown(name)!
  throw new PlatformError(
    'bad_request',
    `${field} ${JSON.stringify(reference)}: ${name} has no tag ${JSON.stringify(tag)}, only "latest"`,
  )
}

/** `sandbox/mine` and, for short, `mine`. */
function catalogueName(name: string): { type: ResourceType | null; name: string } {
  const slash = name.indexOf('/')
  if (slash < 0) return { type: 'sandbox', name }
  try {
    return { type: checkResourceType(name.slice(0, slash), field), name: name.slice(slash + 1) }
  } catch {
    return { type: null, name }
  }
}

function transferKey({ workspace, type, name }: ImageName): string {
  return `${workspace}/${type}/${name}`
}

function nameOfTransfer(key: string): ImageName {
  const [workspace = '', type = '', name = ''] = key.split('/')
  return { workspace, type, name }
}

function tagOfDigest(digest: string | null): string {
  return digest === null ? tagDefault : digest.slice('sha256:'.length, 'sha256:'.length + 12)
}
