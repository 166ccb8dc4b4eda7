/** Images: what sandboxes and deployments start from. This door resolves references, brings images here and lets them go. */
import { PlatformError } from '../errors.ts'
import { Background } from '../lib/background.ts'
import type { Clock } from '../lib/clock.ts'
import type { Dialer } from '../lib/dialer.ts'
import type { Logger } from '../lib/log.ts'
import type { SecretBox } from '../lib/secret-box.ts'
import type { Layers } from '../spec/layers.ts'
import type { RootFilesystem } from '../spec/runtime.ts'
import type { BatchStep, Store } from '../spec/store.ts'
import type { Workspaces } from '../workspaces/index.ts'
import { BuiltImages } from './built.ts'
import { catalogue, wellKnown } from './catalogue.ts'
import { LayerCollector, type RootsInUse } from './collector.ts'
import { Credentials } from './credentials.ts'
import { type Frame, imageEnvDefault, openFrame } from './frame.ts'
import type { HostImage } from './host-image.ts'
import { LayerStore } from './layer-store.ts'
import { type ImageParts, sourceOf } from './parts.ts'
import { type ImageFacts, ImagePins, type PinOptions, type PinTarget } from './pins.ts'
import { type ImageBase, ImageRecords, type ImageTag, noImage } from './records.ts'
import {
  checkResourceType,
  type ImageReference,
  isBuiltTag,
  parseReference,
  parseRegistryReference,
  type ResourceType,
  referenceText,
  tagDefault,
  tagOfDigest,
} from './reference.ts'
import type { RegistryImage } from './registry.ts'
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
export { pendingShareEntrySchema, pendingShareSchema, shareTargetSchema } from './shares.ts'
export { type ImageView, imageViewSchema, tagSchema } from './view.ts'

/** Less than clients and proxies wait for an answer. */
export const pullAnswerMsMax = 50_000
/** Of one image. */
const builtTagsKeptMax = 20
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
  /** It brings the cloud's own sandbox API, which what it starts may run. */
  sandboxApi?: true
  /** Its program is started as root, whoever `user` is. */
  programAsRoot?: true
  /** That its own program listens on: a sandbox is not used before. */
  programPort?: number
  ports: { name?: string; target: number; protocol?: string }[]
  /** An instance of it begins with the files of this snapshot, as the runtime calls it. */
  snapshotId?: string
}

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
  readonly #background: Background
  #frame: Promise<Frame> | null = null

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
    this.built = new BuiltImages({
      ...shared,
      host: options.host,
      hostEnv: () => this.#hostEnv(),
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
    this.#pins = new ImagePins({
      records: this.#records,
      transfers: this.#transfers,
      collector: this.#collector,
      clock,
      find: (workspace, reference) => this.#find(workspace, reference),
    })
  }

  /** What a reference is, by now. @throws bad_request for an image that is unknown, or of a registry that is not allowed */
  async look(workspace: string, reference: string): Promise<ImageFacts> {
    const parsed = parseReference(reference, field)
    if (isHostImage(parsed)) {
      checkHostImage(reference, parsed)
      return { registry: false, digest: null }
    }
    const tag = await this.#find(workspace, parsed)
    if (parsed.kind !== 'registry') {
      if (tag === null) throw await this.#missing(workspace, reference, parsed)
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
    const parsed = parseReference(reference, field)
    if (isHostImage(parsed)) {
      using image = await this.resolve(workspace, reference)
      return { reference, digest: image.root.digest, ports: [] }
    }
    const tag = await this.#pins.pin(workspace, parsed, target, options)
    if (tag === null) throw await this.#missing(workspace, reference, parsed)
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
    const parsed = parseReference(reference, field)
    if (isHostImage(parsed)) return await this.#resolveHost(reference, parsed, signal)
    const tag = await this.#find(workspace, parsed)
    if (tag === null) throw await this.#missing(workspace, reference, parsed)
    const hold = this.#collector.hold(tag.layers)
    try {
      return { ...(await this.#resolveTag(reference, tag, signal)), [Symbol.dispose]: hold }
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
    if (parsed.kind !== 'registry') throw await this.#missing(workspace, reference, parsed)
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
    const used = this.#usersByDigest(workspace)
    const at = { workspace, type: checkResourceType(type, 'resourceType'), name }
    const [holder] = await this.shares.holders(at)
    if (holder !== undefined) {
      throw new PlatformError(
        'bad_request',
        `the image ${type}/${name} is shared with the workspace "${holder}": take it away there first`,
      )
    }
    const removed = await this.#records.remove(workspace, at.type, name, {
      ...(tag === undefined ? {} : { tag }),
      check: (tags) => {
        const held = tags.find((one) => used.has(one.digest))
        if (!held) return
        throw new PlatformError(
          'bad_request',
          `the image ${type}/${name}:${held.name} is used by ${used.get(held.digest)}: delete that first`,
        )
      },
    })
    this.#collectSoon()
    return imageView(at, removed, null)
  }

  /**
   * Removes a tag that `pin` made, or a build, whatever stands on what it names: layers stay while they are needed.
   * Idempotent.
   */
  async unpin(workspace: string, target: PinTarget): Promise<void> {
    const type = checkResourceType(target.type, 'type')
    await this.#records.removeTags(workspace, type, target.name, ({ name }) => name === target.tag)
    this.#collectSoon()
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
    const used = this.#usersByDigest(workspace)
    const tags = (await this.#records.get(workspace, type, name))?.body.tags ?? []
    const old = new Set(
      tags
        .filter((one) => isBuiltTag(one.name) && !one.sharedFrom)
        .sort((left, right) => right.updatedAt - left.updatedAt)
        .slice(builtTagsKeptMax)
        .map((one) => one.name),
    )
    if (old.size === 0) return
    await this.#records.removeTags(workspace, type, name, (one) => old.has(one.name) && !used.has(one.digest))
    this.#collectSoon()
  }

  /** Removes every image of the workspace that no instance stands on; answers how many. */
  async removeUnused(workspace: string): Promise<number> {
    const used = this.#usersByDigest(workspace)
    let removed = 0
    for (const image of await this.#records.list(workspace)) {
      const { resourceType, name } = image.body
      if ((await this.shares.holders({ workspace, type: resourceType, name })).length > 0) continue
      removed += await this.#records.removeTags(workspace, resourceType, name, (tag) => !used.has(tag.digest))
    }
    this.#collectSoon()
    return removed
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
      env: this.#hostEnv(),
      workingDir: '/blaxel',
      user: '',
      entrypoint: entry.program?.argv ?? [],
      command: [],
      ...(entry.program ? { programPort: entry.program.port } : {}),
      ports: entry.ports,
      [Symbol.dispose]() {},
    }
  }

  #hostEnv(): Record<string, string> {
    return {
      PATH: '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/opt/hutch/bin',
      HOME: '/blaxel',
      LANG: 'C.UTF-8',
      ...this.#options.host.env,
      ...this.#options.hostEnv,
    }
  }

  async #resolveTag(
    reference: string,
    tag: ImageTag,
    signal: AbortSignal | undefined,
  ): Promise<Omit<ResolvedImage, typeof Symbol.dispose>> {
    const { standInPath: source } = this.#options
    const { settings } = tag
    const facts = await Promise.all(tag.layers.map((diffId) => this.#layers.facts(diffId)))
    if (facts.includes(null)) {
      throw new PlatformError(
        'unavailable',
        `a layer of the image ${JSON.stringify(reference)} is missing on this host: pull or import it again`,
      )
    }
    // Each once, where it stands topmost: what it says of its paths holds over all below, itself included.
    const trees = [...new Set(tag.layers)].map((diffId) => this.#layers.treeOf(diffId))
    const base = await this.#baseOf(tag, signal)
    const frame = base === null ? await this.#openFrame() : null
    return {
      reference,
      root: {
        digest: tag.digest,
        layers: frame ? [frame.above, ...trees, frame.below] : [...trees, ...base!.layers],
        mounts: [
          ...(base?.mounts ?? []),
          ...(source ? tag.sandboxApis.map((target) => ({ source, target, kind: 'bind' as const })) : []),
        ],
      },
      env: { ...(base ? this.#hostEnv() : imageEnvDefault), ...settings.env },
      ...(tag.sandboxApis.length > 0 ? { sandboxApi: true as const } : {}),
      workingDir: settings.workingDir || '/',
      user: settings.user,
      entrypoint: settings.entrypoint,
      command: settings.command,
      ports: settings.ports.map((target) => ({ target })),
    }
  }

  async #baseOf({ base }: ImageTag, signal: AbortSignal | undefined): Promise<RootFilesystem | null> {
    if (base === undefined) return null
    const { host } = this.#options
    return base === 'host' ? await host.resolve(signal) : await host.resolveWhole(signal)
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

  async #missing(workspace: string, reference: string, parsed: ImageReference): Promise<PlatformError> {
    const shown = JSON.stringify(reference)
    const invalid = (supported: string[]) => ({
      details: {
        code: 'INVALID_IMAGE',
        details: { requested_image: reference, supported_images: supported },
      },
    })
    if (parsed.kind === 'registry') {
      return new PlatformError(
        'not_found',
        `${field} ${shown} was not pulled yet: hutch images pull ${reference}`,
        invalid([]),
      )
    }
    const { type, name } = catalogueName(parsed.name)
    const others = type === null ? [] : ((await this.#records.get(workspace, type, name))?.body.tags ?? [])
    if (others.length > 0) {
      const tags = others.map((tag) => tag.name).join(', ')
      return new PlatformError(
        'bad_request',
        `${field} ${shown} is unknown here. Its tags here: ${tags}`,
        invalid(others.map((tag) => `${type}/${name}:${tag.name}`)),
      )
    }
    const known = catalogue.map((entry) => entry.name).join(', ')
    const hint =
      parsed.name.startsWith('blaxel/') || this.#options.layers === null
        ? ''
        : `. Images of one's own come by hutch images import, those of registries by their full name, e.g. docker.io/${parsed.name.includes('/') ? '' : 'library/'}${parsed.name}:${parsed.tag}`
    return new PlatformError(
      'bad_request',
      `${field} ${shown} is unknown here. Known: ${known}${hint}`,
      invalid(catalogue.map((entry) => `${entry.name}:latest`)),
    )
  }

  /** For each image that sandboxes or snapshots of a workspace stand on, one of them. */
  #usersByDigest(workspace: string): Map<string, string> {
    const used = new Map<string, string>()
    for (const instance of this.#options.inUse())
      if (instance.workspace === workspace && !instance.leaving) used.set(instance.root.digest, instance.name)
    return used
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
