import { PlatformError } from '../errors.ts'
import type { RootsInUse } from './collector.ts'
import type { ImageRecords, StoredImage } from './records.ts'
import { checkResourceType, isBuiltTag } from './reference.ts'
import type { ImageShares } from './shares.ts'

/** Of one image. */
const builtTagsKeptMax = 20

/** How images go, one tag or all: what an instance stands on and what others were given stays. */
export class ImageRemoval {
  readonly #records: ImageRecords
  readonly #shares: ImageShares
  readonly #inUse: RootsInUse
  /** Called when a layer may have come to be of no use. */
  readonly #changed: () => void

  constructor(options: {
    records: ImageRecords
    shares: ImageShares
    inUse: RootsInUse
    changed: () => void
  }) {
    this.#records = options.records
    this.#shares = options.shares
    this.#inUse = options.inUse
    this.#changed = options.changed
  }

  /** An image, or one tag of it; answers what it was. @throws not_found, bad_request while it is used or shared */
  async remove(workspace: string, resourceType: string, name: string, tag?: string): Promise<StoredImage> {
    const used = this.#usersByDigest(workspace)
    const type = checkResourceType(resourceType, 'resourceType')
    const [holder] = await this.#shares.holders({ workspace, type, name })
    if (holder !== undefined) {
      throw new PlatformError(
        'bad_request',
        `the image ${resourceType}/${name} is shared with the workspace "${holder}": take it away there first`,
      )
    }
    const removed = await this.#records.remove(workspace, type, name, {
      ...(tag === undefined ? {} : { tag }),
      check: (tags) => {
        const held = tags.find((one) => used.has(one.digest))
        if (!held) return
        throw new PlatformError(
          'bad_request',
          `the image ${resourceType}/${name}:${held.name} is used by ${used.get(held.digest)}: delete that first`,
        )
      },
    })
    this.#changed()
    return removed
  }

  /** One tag, whatever stands on what it names: layers stay while they are needed. Idempotent. */
  async removeTag(workspace: string, target: { type: string; name: string; tag: string }): Promise<void> {
    const type = checkResourceType(target.type, 'type')
    await this.#records.removeTags(workspace, type, target.name, ({ name }) => name === target.tag)
    this.#changed()
  }

  /** Of what was built under this name, all but the newest and what is used. */
  async removeOldBuilds(workspace: string, { type, name }: { type: string; name: string }): Promise<void> {
    const resourceType = checkResourceType(type, 'type')
    const used = this.#usersByDigest(workspace)
    const tags = (await this.#records.get(workspace, resourceType, name))?.body.tags ?? []
    const old = new Set(
      tags
        .filter((one) => isBuiltTag(one.name) && !one.sharedFrom)
        .sort((left, right) => right.updatedAt - left.updatedAt)
        .slice(builtTagsKeptMax)
        .map((one) => one.name),
    )
    if (old.size === 0) return
    await this.#records.removeTags(
      workspace,
      resourceType,
      name,
      (one) => old.has(one.name) && !used.has(one.digest),
    )
    this.#changed()
  }

  /** Every image of the workspace that no instance stands on; answers how many. */
  async removeUnused(workspace: string): Promise<number> {
    const used = this.#usersByDigest(workspace)
    let removed = 0
    for (const image of await this.#records.list(workspace)) {
      const { resourceType, name } = image.body
      if ((await this.#shares.holders({ workspace, type: resourceType, name })).length > 0) continue
      removed += await this.#records.removeTags(workspace, resourceType, name, (tag) => !used.has(tag.digest))
    }
    this.#changed()
    return removed
  }

  /** For each image that sandboxes or snapshots of a workspace stand on, one of them. */
  #usersByDigest(workspace: string): Map<string, string> {
    const used = new Map<string, string>()
    for (const instance of this.#inUse())
      if (instance.workspace === workspace && !instance.leaving) used.set(instance.root.digest, instance.name)
    return used
  }
}
