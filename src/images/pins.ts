import type { Clock } from '../lib/clock.ts'
import type { LayerCollector } from './collector.ts'
import type { ImageRecords, ImageTag } from './records.ts'
import { checkImageName, checkResourceType, checkTag, type ImageReference } from './reference.ts'
import type { Transfers } from './transfers.ts'

export interface ImageFacts {
  registry: boolean
  /** Null for what is not here yet, and for the host image, which is made when it is needed. */
  digest: string | null
}

export interface PinTarget {
  type: string
  name: string
  tag: string
}

export interface PinOptions {
  /** Docker's config.json, for this pull only. */
  dockerConfig?: string
  /** A registry is asked, also for what is here already: its tag may have moved. */
  fresh?: boolean
}

/** Images under tags of somebody's own, which nothing else moves: what stands on one stays what it is. */
export class ImagePins {
  readonly #records: ImageRecords
  readonly #transfers: Transfers
  readonly #collector: LayerCollector
  readonly #clock: Clock
  readonly #find: (workspace: string, reference: ImageReference) => Promise<ImageTag | null>

  constructor(options: {
    records: ImageRecords
    transfers: Transfers
    collector: LayerCollector
    clock: Clock
    find: (workspace: string, reference: ImageReference) => Promise<ImageTag | null>
  }) {
    this.#records = options.records
    this.#transfers = options.transfers
    this.#collector = options.collector
    this.#clock = options.clock
    this.#find = options.find
  }

  /** The tag, pulled or copied; null for an image of this workspace that is not here. @throws what a pull throws */
  async pin(
    workspace: string,
    reference: ImageReference,
    target: PinTarget,
    options: PinOptions,
  ): Promise<ImageTag | null> {
    const at = {
      type: checkResourceType(target.type, 'type'),
      name: checkImageName(target.name, 'name'),
      tag: checkTag(target.tag, 'tag'),
    }
    const present =
      reference.kind === 'registry' && options.fresh ? null : await this.#find(workspace, reference)
    if (present !== null) return await this.#copy(workspace, present, at)
    if (reference.kind !== 'registry') return null
    const { dockerConfig } = options
    const pulled = await this.#transfers.pull(workspace, reference, {
      ...at,
      ...(dockerConfig === undefined ? {} : { dockerConfig }),
    })
    return pulled.tag
  }

  async #copy(
    workspace: string,
    tag: ImageTag,
    target: { type: ReturnType<typeof checkResourceType>; name: string; tag: string },
  ): Promise<ImageTag> {
    const letGo = this.#collector.hold(tag.layers)
    try {
      const image = await this.#records.setTag(
        workspace,
        { ...target, source: tag.source },
        tag,
        this.#clock.now(),
      )
      this.#collector.named(tag.layers)
      return image.body.tags.find((one) => one.name === target.tag) ?? tag
    } finally {
      letGo()
    }
  }
}
