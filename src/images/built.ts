import { createHash } from 'node:crypto'
import { PlatformError } from '../errors.ts'
import type { Clock } from '../lib/clock.ts'
import type { RootFilesystem } from '../spec/runtime.ts'
import type { LayerCollector } from './collector.ts'
import type { HostImage } from './host-image.ts'
import type { LayerStore } from './layer-store.ts'
import { type ImageSettings, imageLayersMax } from './manifest.ts'
import type { ImageRecords } from './records.ts'
import { checkImageName, checkResourceType, checkTag } from './reference.ts'

/** A layer that is here, and stays until disposed. */
export interface HeldLayer extends Disposable {
  readonly diffId: string
  readonly bytes: number
  /** Directory of this host. What is in it is a stranger's: to start instances from, not to look into. */
  readonly tree: string
}

export interface BuiltImage {
  /** Kind of workload: agent, function, ... */
  type: string
  name: string
  tag: string
  /** Lowest first, on top of the host image. */
  layers: readonly HeldLayer[]
  settings: ImageSettings
}

export interface BuiltImagesOptions {
  host: HostImage
  hostEnv: () => Record<string, string>
  layers: LayerStore
  records: ImageRecords
  collector: LayerCollector
  imageBytesMax: number
  clock: Clock
  /** Called when a layer may have come to be of no use. */
  changed: () => void
}

/** Images made here: layers of one's own on top of the host image, as it is whenever an instance is started. */
export class BuiltImages {
  readonly #options: BuiltImagesOptions

  constructor(options: BuiltImagesOptions) {
    this.#options = options
  }

  /** Another value once programs of the host image changed: what was built with them may not work any more. */
  async hostRevision(): Promise<string> {
    return await this.#options.host.revision()
  }

  /** The host image with layers on top of it, lowest first, to build something in. The caller holds them. */
  async onHost(
    layers: readonly HeldLayer[],
    signal?: AbortSignal,
  ): Promise<{ root: RootFilesystem; env: Record<string, string> }> {
    const host = await this.#options.host.resolve(signal)
    const trees = layers.map(({ tree }) => tree).reverse()
    return { root: { ...host, layers: [...trees, ...host.layers] }, env: this.#options.hostEnv() }
  }

  /** The host image as layers alone, and what its programs get: for images that are stacked on it. @throws unprocessable */
  async wholeHost(signal?: AbortSignal): Promise<{ root: RootFilesystem; env: Record<string, string> }> {
    const root = await this.#options.host.resolveWhole(signal)
    return { root, env: this.#options.hostEnv() }
  }

  /**
   * Keeps what an uncompressed tar archive holds as a layer, under its digest. Held until disposed: before that an image
   * or a keeper has to name it. @throws unprocessable, insufficient_storage, not_implemented
   */
  async addLayer(content: AsyncIterable<Uint8Array>, signal?: AbortSignal): Promise<HeldLayer> {
    let letGo = () => {}
    const hold = (diffId: string) => {
      letGo = this.#options.collector.hold([diffId])
    }
    try {
      const { diffId, facts } = await this.#options.layers.addNew(content, hold, signal)
      return this.#held(diffId, facts.bytes, letGo)
    } catch (error) {
      letGo()
      this.#options.changed()
      throw error
    }
  }

  /** Null when it is not here (any more). */
  async holdLayer(diffId: string): Promise<HeldLayer | null> {
    const letGo = this.#options.collector.hold([diffId])
    const facts = await this.#options.layers.facts(diffId).catch(() => null)
    if (facts !== null) return this.#held(diffId, facts.bytes, letGo)
    letGo()
    return null
  }

  /** Layers that are needed though no image names them, told at every collection. */
  keepLayers(keeper: () => AsyncIterable<string>): void {
    this.#options.collector.keep(keeper)
  }

  /** A keeper tells of this layer from now on. Said while it is held. */
  kept(layer: HeldLayer): void {
    this.#options.collector.named([layer.diffId])
  }

  /**
   * Makes an image, or moves its tag there. Answers its reference.
   * @throws unprocessable when it is too large, usage_limit_exceeded
   */
  async add(workspace: string, built: BuiltImage): Promise<string> {
    const { imageBytesMax, records, collector, clock } = this.#options
    const type = checkResourceType(built.type, 'type')
    const name = checkImageName(built.name, 'name')
    const tag = checkTag(built.tag, 'tag')
    const bytes = built.layers.reduce((sum, layer) => sum + layer.bytes, 0)
    if (bytes > imageBytesMax) {
      throw new PlatformError(
        'unprocessable',
        `the image has ${bytes} bytes, more than ${imageBytesMax}, the most that one may have here (imageMbMax)`,
      )
    }
    if (built.layers.length > imageLayersMax)
      throw new PlatformError('unprocessable', `the image has more than ${imageLayersMax} layers`)
    const layers = built.layers.map(({ diffId }) => diffId).reverse()
    const { settings } = built
    const hash = createHash('sha256').update(JSON.stringify({ base: 'host', layers, settings }))
    await records.setTag(
      workspace,
      { type, name, tag, source: null },
      { digest: `sha256:${hash.digest('hex')}`, base: 'host', layers, bytes, sandboxApis: [], settings },
      clock.now(),
    )
    collector.named(layers)
    this.#options.changed()
    return `${type}/${name}:${tag}`
  }

  #held(diffId: string, bytes: number, letGo: () => void): HeldLayer {
    return { diffId, bytes, tree: this.#options.layers.treeOf(diffId), [Symbol.dispose]: letGo }
  }
}
