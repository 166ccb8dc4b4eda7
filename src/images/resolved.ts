import { PlatformError } from '../errors.ts'
import type { RootFilesystem } from '../spec/runtime.ts'
import type { CatalogueEntry } from './catalogue.ts'
import type { LayerCollector } from './collector.ts'
import { type Frame, imageEnvDefault, openFrame } from './frame.ts'
import type { HostImage } from './host-image.ts'
import type { LayerStore } from './layer-store.ts'
import type { ImageTag } from './records.ts'

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

/** From what a reference names to what an instance of it starts from. */
export class ResolvedImages {
  readonly #host: HostImage
  readonly #hostEnv: Record<string, string>
  readonly #layers: LayerStore
  readonly #collector: LayerCollector
  readonly #dir: string
  readonly #standInPath: string | undefined
  #frame: Promise<Frame> | null = null

  constructor(options: {
    host: HostImage
    /** Settings of this host that programs in its image go by. */
    hostEnv: Record<string, string>
    layers: LayerStore
    collector: LayerCollector
    /** The frame of images is made in it. */
    dir: string
    /** What stands in for the cloud's own sandbox API in images that bring it; absent: nothing does. */
    standInPath?: string
  }) {
    this.#host = options.host
    this.#hostEnv = options.hostEnv
    this.#layers = options.layers
    this.#collector = options.collector
    this.#dir = options.dir
    this.#standInPath = options.standInPath
  }

  /** Of programs in the host image, and in images made on top of it. */
  hostEnv(): Record<string, string> {
    return {
      PATH: '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/opt/hutch/bin',
      HOME: '/blaxel',
      LANG: 'C.UTF-8',
      ...this.#host.env,
      ...this.#hostEnv,
    }
  }

  async ofHost(
    reference: string,
    entry: CatalogueEntry,
    signal: AbortSignal | undefined,
  ): Promise<ResolvedImage> {
    return {
      reference,
      root: await this.#host.resolve(signal),
      env: this.hostEnv(),
      workingDir: '/blaxel',
      user: '',
      entrypoint: entry.program?.argv ?? [],
      command: [],
      ...(entry.program ? { programPort: entry.program.port } : {}),
      ports: entry.ports,
      [Symbol.dispose]() {},
    }
  }

  /** @throws unavailable when a layer of it is lost */
  async ofTag(reference: string, tag: ImageTag, signal: AbortSignal | undefined): Promise<ResolvedImage> {
    const hold = this.#collector.hold(tag.layers)
    try {
      return { ...(await this.#ofTag(reference, tag, signal)), [Symbol.dispose]: hold }
    } catch (error) {
      hold()
      throw error
    }
  }

  async #ofTag(
    reference: string,
    tag: ImageTag,
    signal: AbortSignal | undefined,
  ): Promise<Omit<ResolvedImage, typeof Symbol.dispose>> {
    const source = this.#standInPath
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
      env: { ...(base ? this.hostEnv() : imageEnvDefault), ...settings.env },
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
    return base === 'host' ? await this.#host.resolve(signal) : await this.#host.resolveWhole(signal)
  }

  #openFrame(): Promise<Frame> {
    this.#frame ??= openFrame(this.#dir).catch((error) => {
      this.#frame = null
      throw error
    })
    return this.#frame
  }
}
