/** Images: what sandboxes and deployments start from. This door resolves references, brings images here and lets them go. */
import { Background } from '../lib/background.ts'
import type { Clock } from '../lib/clock.ts'
import type { Dialer } from '../lib/dialer.ts'
import type { Logger } from '../lib/log.ts'
import type { SecretBox } from '../lib/secret-box.ts'
import type { Layers } from '../spec/layers.ts'
import type { BatchStep, Store } from '../spec/store.ts'
import type { Workspaces } from '../workspaces/index.ts'
import { BuiltImages } from './built.ts'
import { LayerCollector, type RootsInUse } from './collector.ts'
import { Credentials } from './credentials.ts'
import type { HostImage } from './host-image.ts'
import { LayerStore } from './layer-store.ts'
import { NamedImages } from './named.ts'
import { type ImageParts, sourceOf } from './parts.ts'
import { type ImageFacts, ImagePins, type PinOptions, type PinTarget } from './pins.ts'
import { type ImageBase, ImageRecords, noImage } from './records.ts'
import { checkResourceType, parseRegistryReference, tagDefault, tagOfDigest } from './reference.ts'
import type { RegistryImage } from './registry.ts'
import { ImageRemoval } from './removal.ts'
import { type ResolvedImage, ResolvedImages } from './resolved.ts'
import { ImageShares } from './shares.ts'
import { type ImportOptions, type PullOptions, Transfers } from './transfers.ts'
import { type ImageView, imageView } from './view.ts'

export type { BuiltImages, HeldLayer } from './built.ts'
export { catalogue } from './catalogue.ts'
export { type Credentials, passwordCharsMax, usernameCharsMax } from './credentials.ts'
export { HostImage, type HostImageSource } from './host-image.ts'
export { freeBytesMin } from './layer-store.ts'
export type { ImageParts } from './parts.ts'
export { checkImageName, checkResourceType, newBuiltTag } from './reference.ts'
export type { ResolvedImage } from './resolved.ts'
export { pendingShareEntrySchema, pendingShareSchema, shareTargetSchema } from './shares.ts'
export { type ImageView, imageViewSchema, tagSchema } from './view.ts'

/** How long an answer waits for a pull: less than clients and proxies wait for an answer. */
export const pullAnswerMsMax = 50_000
const collectEveryMs = 10 * 60 * 1000

export interface ImagesOptions {
  host: HostImage
  /** Settings of this host that programs in its image go by. */
  hostEnv?: Record<string, string>
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
  /** The root file systems of every instance there is, running or not, and of every snapshot. */
  inUse: RootsInUse
  dialer: Dialer
  workspaces: Pick<Workspaces, 'get'>
  /** Without a byte from a registry. */
  stallMsMax?: number
}

export interface TransferAnswer {
  view: ImageView
  /** For `spec.runtime.image`. */
  reference: string
}

export class Images {
  readonly credentials: Credentials
  readonly shares: ImageShares
  /** Images made here, of layers on top of the host image. */
  readonly built: BuiltImages
  readonly #options: ImagesOptions
  readonly #records: ImageRecords
  readonly #layers: LayerStore
  readonly #collector: LayerCollector
  readonly #transfers: Transfers
  readonly #pins: ImagePins
  readonly #named: NamedImages
  readonly #resolved: ResolvedImages
  readonly #removal: ImageRemoval
  readonly #background: Background

  constructor(options: ImagesOptions) {
    this.#options = options
    const background = new Background((error) => {
      if (!background.closing.aborted) options.log.warn('work on images failed', { error: String(error) })
    })
    this.#background = background
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
    const { clock, log, dialer, registries, imageBytesMax, stallMsMax } = options
    const shared = { layers: this.#layers, records: this.#records, log }
    this.#collector = new LayerCollector({ ...shared, inUse: options.inUse })
    this.shares = new ImageShares({ ...options, records: this.#records, collector: this.#collector })
    this.#records.follow((at) =>
      this.shares.renew(at).catch((error) => log.warn('a shared image was not renewed', { ...at, error })),
    )
    this.#resolved = new ResolvedImages({
      ...shared,
      host: options.host,
      hostEnv: options.hostEnv ?? {},
      collector: this.#collector,
      dir: options.dir,
      ...(options.standInPath === undefined ? {} : { standInPath: options.standInPath }),
    })
    this.#removal = new ImageRemoval({
      records: this.#records,
      shares: this.shares,
      inUse: options.inUse,
      changed: () => this.#collectSoon(),
    })
    this.built = new BuiltImages({
      ...shared,
      host: options.host,
      hostEnv: () => this.#resolved.hostEnv(),
      collector: this.#collector,
      imageBytesMax,
      clock,
      changed: () => this.#collectSoon(),
    })
    this.#transfers = new Transfers({
      ...shared,
      able: options.layers !== null,
      credentials: this.credentials,
      collector: this.#collector,
      registries,
      imageBytesMax,
      dialer,
      clock,
      ...(stallMsMax === undefined ? {} : { stallMsMax }),
      ended: () => this.#collectSoon(),
    })
    this.#named = new NamedImages({ records: this.#records, able: options.layers !== null })
    this.#pins = new ImagePins({
      records: this.#records,
      transfers: this.#transfers,
      collector: this.#collector,
      clock,
      find: (workspace, reference) => this.#named.find(workspace, reference),
    })
  }

  /** What a reference is, by now. @throws bad_request for an image that is unknown, or of a registry that is not allowed */
  async look(workspace: string, reference: string): Promise<ImageFacts> {
    const parsed = this.#named.parse(reference)
    if (this.#named.wellKnown(reference, parsed) !== null) return { registry: false, digest: null }
    const tag = await this.#named.find(workspace, parsed)
    if (parsed.kind !== 'registry') {
      if (tag === null) throw await this.#named.missing(workspace, reference, parsed)
      return { registry: false, digest: tag.digest }
    }
    this.#transfers.checkAllowed(parsed.host)
    return { registry: true, digest: tag?.digest ?? null }
  }

  /**
   * Gives an image a tag that nothing else moves, after pulling it where it is a registry's. The platform's own images
   * have none: they are answered as they are. @throws bad_request, and what pulling throws
   */
  async pin(
    workspace: string,
    reference: string,
    target: PinTarget,
    options: PinOptions,
  ): Promise<{ reference: string; digest: string; ports: number[] }> {
    const parsed = this.#named.parse(reference)
    if (this.#named.wellKnown(reference, parsed) !== null) {
      using image = await this.resolve(workspace, reference)
      return { reference, digest: image.root.digest, ports: [] }
    }
    const tag = await this.#pins.pin(workspace, parsed, target, options)
    if (tag === null) throw await this.#named.missing(workspace, reference, parsed)
    const { type, name } = target
    return { reference: `${type}/${name}:${tag.name}`, digest: tag.digest, ports: tag.settings.ports }
  }

  /** At start, once the instances are known: removes leftovers, and from then on what nothing needs any more. */
  start(): void {
    this.#background.run(this.shares.renewAll())
    this.#background.run(this.#layers.open().then(() => this.#collectNowAndThen()))
  }

  async close(): Promise<void> {
    this.#background.close()
    await this.#transfers.close(this.#background.closing.reason)
    await this.#background.settled()
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
    const parsed = this.#named.parse(reference)
    const entry = this.#named.wellKnown(reference, parsed)
    if (entry !== null) return await this.#resolved.ofHost(reference, entry, signal)
    const tag = await this.#named.find(workspace, parsed)
    if (tag === null) throw await this.#named.missing(workspace, reference, parsed)
    return await this.#resolved.ofTag(reference, tag, signal)
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
    const parsed = this.#named.parse(reference)
    if (this.#named.wellKnown(reference, parsed) !== null) return null
    if ((await this.#named.find(workspace, parsed)) !== null) return null
    if (parsed.kind !== 'registry') throw await this.#named.missing(workspace, reference, parsed)
    this.#transfers.checkAllowed(parsed.host)
    const pulling = this.#transfers.pull(workspace, parsed, { ...options, type: 'sandbox' })
    pulling.catch(() => {})
    return { pulling }
  }

  /**
   * Pulls an image, also when it is here already: its tag may have moved. After `pullAnswerMsMax` it tells that the pull
   * goes on. @throws bad_request, not_found, forbidden, unprocessable, bad_gateway, insufficient_storage
   */
  async pull(workspace: string, reference: string, options: PullOptions): Promise<TransferAnswer> {
    const parsed = parseRegistryReference(reference, 'image')
    const type = checkResourceType(options.type ?? 'sandbox', 'type')
    const name = options.name ?? (await this.#transfers.freeName(workspace, type, parsed))
    const pulling = this.#transfers.pull(workspace, parsed, { ...options, type, name })
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

  /** Takes in an archive: an OCI layout or what `docker save` writes. @throws as `pull` */
  async import(
    workspace: string,
    body: ReadableStream<Uint8Array>,
    options: ImportOptions,
  ): Promise<TransferAnswer> {
    const { image, tag } = await this.#transfers.import(workspace, body, options)
    const { resourceType, name } = image.body
    return {
      view: await this.view(workspace, resourceType, name),
      reference: `${resourceType}/${name}:${tag.name}`,
    }
  }

  /**
   * An image of a registry for who builds on it, by the platform's rules and with the credentials that it has; nothing of
   * it is kept here. Its layers are downloaded into `dir` as they are opened. @throws as `pull`
   */
  async open(
    workspace: string,
    reference: string,
    options: { dockerConfig?: string; dir: string; signal: AbortSignal },
  ): Promise<RegistryImage> {
    return await this.#transfers.open(workspace, parseRegistryReference(reference, 'image'), options)
  }

  /** Takes in an image that a tool built. Answers its reference. @throws as `import` */
  async install(
    workspace: string,
    target: { type: string; name: string; tag: string; base?: ImageBase; signal: AbortSignal },
    parts: ImageParts,
  ): Promise<string> {
    const { image, tag } = await this.#transfers.install(workspace, target, async (dir) =>
      sourceOf(parts, {
        dir,
        bytesMax: this.#options.imageBytesMax,
        checkSpace: () => this.#layers.checkSpace(),
      }),
    )
    return `${image.body.resourceType}/${image.body.name}:${tag.name}`
  }

  /** By name, those that are being pulled for the first time included. */
  async views(workspace: string): Promise<ImageView[]> {
    const views = (await this.#records.list(workspace)).map((image) => {
      const at = { workspace, type: image.body.resourceType, name: image.body.name }
      return imageView(at, image, this.#transfers.of(at))
    })
    for (const at of this.#transfers.underWay(workspace)) {
      const known = views.some(
        ({ metadata }) => metadata.name === at.name && metadata.resourceType === at.type,
      )
      if (!known) views.push(imageView(at, null, this.#transfers.of(at)))
    }
    return views.sort((left, right) => (left.metadata.name < right.metadata.name ? -1 : 1))
  }

  /** @throws not_found */
  async view(workspace: string, type: string, name: string): Promise<ImageView> {
    const at = { workspace, type: checkResourceType(type, 'resourceType'), name }
    const image = await this.#records.get(workspace, at.type, name)
    const transfer = this.#transfers.of(at)
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
    return [
      ...steps,
      ...(await this.credentials.removal(workspace)),
      ...(await this.shares.removal(workspace)),
    ]
  }

  /** Removes an image, or one tag of it. @throws not_found, bad_request while an instance stands on it or others have it */
  async remove(workspace: string, type: string, name: string, tag?: string): Promise<ImageView> {
    const removed = await this.#removal.remove(workspace, type, name, tag)
    return imageView({ workspace, type: checkResourceType(type, 'resourceType'), name }, removed, null)
  }

  /**
   * Removes a tag that `pin` made, or a build, whatever stands on what it names: layers stay while they are needed.
   * Idempotent.
   */
  async unpin(workspace: string, target: PinTarget): Promise<void> {
    await this.#removal.removeTag(workspace, target)
  }

  /** Takes a shared image away from another workspace. @throws not_found */
  async unshare(at: { workspace: string; type: string; name: string }, target: string): Promise<ImageView> {
    const taken = await this.shares.unshare(at, target)
    this.#collectSoon()
    const type = checkResourceType(at.type, 'resourceType')
    const image = await this.#records.get(at.workspace, type, at.name)
    return imageView({ ...at, type }, image ?? taken, null)
  }

  /**
   * One that was built under a tag of `newBuiltTag` is the latest of its name from now on. Of those that were built before and that
   * no instance stands on the newest stay. @throws not_found, usage_limit_exceeded
   */
  async promote(workspace: string, image: { type: string; name: string; tag: string }): Promise<void> {
    const { name, tag } = image
    const type = checkResourceType(image.type, 'type')
    await this.pin(workspace, `${type}/${name}:${tag}`, { type, name, tag: tagDefault }, {})
    await this.#removal.removeOldBuilds(workspace, image)
  }

  /** Removes every image of the workspace that no instance stands on; answers how many. */
  removeUnused(workspace: string): Promise<number> {
    return this.#removal.removeUnused(workspace)
  }

  async #collectNowAndThen(): Promise<void> {
    while (!this.#background.closing.aborted) {
      await this.#collector
        .collect()
        .catch((error) => this.#options.log.warn('image layers were not collected', { error }))
      await this.#options.clock.sleep(collectEveryMs, this.#background.closing)
    }
  }

  #collectSoon(): void {
    if (this.#background.closing.aborted) return
    this.#background.run(this.#collector.collect())
  }
}
