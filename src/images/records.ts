import { PlatformError } from '../errors.ts'
import { KeyedLock } from '../lib/keyed-lock.ts'
import { everyItem, findLimitMax, type Resource, type Store } from '../spec/store.ts'
import { inWorkspace } from '../workspaces/index.ts'
import type { InstalledImage } from './install.ts'
import type { ImageSettings } from './manifest.ts'
import type { ResourceType } from './reference.ts'

const imageKind = 'image'
const tagsMax = 200

export type ImageBase = 'host' | 'host-whole'

export interface ImageTag {
  name: string
  digest: string
  /** The registry's reference in full that it was pulled from; null: imported. */
  source: string | null
  /** Diff ids, topmost first. */
  layers: string[]
  /**
   * What they stand on: the host image as it is at each start, below its /usr or, `host-whole`, /usr included; absent:
   * nothing, they are all of it.
   */
  base?: ImageBase
  sandboxApis: string[]
  settings: ImageSettings
  bytes: number
  createdAt: number
  updatedAt: number
  /** Another workspace's, which shared it; absent: of the workspace itself. */
  sharedFrom?: ShareSource
}

/** The workspace that shared a tag. Its id tells it from a later one of the same name. */
export interface ShareSource {
  workspace: string
  workspaceId: string
}

export interface ImageBody {
  resourceType: ResourceType
  name: string
  tags: ImageTag[]
}

export type StoredImage = Resource<ImageBody>

export interface ImageAt {
  workspace: string
  type: ResourceType
  name: string
}

/** The catalogue of a workspace: images by kind of workload, name and tag. */
export class ImageRecords {
  readonly #store: Store
  /** Of images: changes to the tags of one come one after the other. */
  readonly #lock = new KeyedLock()
  #follower: (at: ImageAt) => Promise<void> = async () => {}

  constructor(store: Store) {
    this.#store = store
  }

  /** Who is to know which images have other tags now, before whoever changed them is answered. */
  follow(follower: (at: ImageAt) => Promise<void>): void {
    this.#follower = follower
  }

  async list(workspace: string): Promise<StoredImage[]> {
    return await Array.fromAsync(this.#pages(workspace))
  }

  /** Of all workspaces. */
  every(): AsyncIterable<StoredImage> {
    return this.#pages()
  }

  #pages(workspace?: string): AsyncIterable<StoredImage> {
    const where = { kind: imageKind, ...(workspace === undefined ? {} : { workspace }) }
    return everyItem((page) => this.#store.page<ImageBody>({ ...where, sort: 'createdAt:asc', ...page }))
  }

  get(workspace: string, type: ResourceType, name: string): Promise<StoredImage | null> {
    return this.#store.get<ImageBody>(keyOf(workspace, type, name))
  }

  /** The tag that was pulled from `source`, a reference in full. */
  async findSource(workspace: string, source: string): Promise<{ image: StoredImage; tag: ImageTag } | null> {
    for await (const image of this.#pages(workspace)) {
      const tag = image.body.tags.find((one) => one.source === source)
      if (tag) return { image, tag }
    }
    return null
  }

  /** Adds a tag, or moves it to another image. @throws usage_limit_exceeded */
  async setTag(
    workspace: string,
    target: { type: ResourceType; name: string; tag: string; source: string | null },
    installed: InstalledImage & { settings: ImageSettings; base?: ImageBase },
    now: number,
  ): Promise<StoredImage> {
    const key = keyOf(workspace, target.type, target.name)
    const image = await this.#lock.run(`${workspace}/${key.name}`, async () => {
      const present = await this.#store.get<ImageBody>(key)
      const before = present?.body.tags.find((one) => one.name === target.tag)
      const tag: ImageTag = {
        name: target.tag,
        digest: installed.digest,
        source: target.source,
        layers: installed.layers,
        ...(installed.base === undefined ? {} : { base: installed.base }),
        sandboxApis: installed.sandboxApis,
        settings: installed.settings,
        bytes: installed.bytes,
        createdAt: before?.createdAt ?? now,
        updatedAt: now,
      }
      const others = present?.body.tags.filter((one) => one.name !== target.tag) ?? []
      if (others.length >= tagsMax) {
        throw new PlatformError(
          'usage_limit_exceeded',
          `an image has at most ${tagsMax} tags: delete one first`,
        )
      }
      const body: ImageBody = { resourceType: target.type, name: target.name, tags: [...others, tag] }
      if (present) return await this.#store.update<ImageBody>(key, present.version, { body })
      const [created] = await this.#store.batch([
        { op: 'create', input: { ...key, body } },
        inWorkspace(workspace),
      ])
      return created as StoredImage
    })
    await this.#follower({ workspace, type: target.type, name: target.name })
    return image
  }

  /** Images of other workspaces that have tags of this one, shared by its workspace. */
  async sharedTo(source: ShareSource, type: ResourceType, name: string): Promise<StoredImage[]> {
    const found = await this.#store.find<ImageBody>({
      kind: imageKind,
      index: sharedIndex(source),
      value: `${type}/${name}`,
      limit: findLimitMax,
    })
    return found.filter(({ body }) => body.tags.some((tag) => isShared(tag, source)))
  }

  /**
   * Gives a workspace the tags of another's image, under the same name, in the place of those it was given before.
   * @throws conflict when it has others under this name, unless `force`: then those of the same names are replaced
   */
  async copyTags(
    workspace: string,
    { resourceType, name, tags }: ImageBody,
    options: { source: ShareSource; force: boolean },
  ): Promise<StoredImage> {
    const { source, force } = options
    const key = keyOf(workspace, resourceType, name)
    return await this.#lock.run(`${workspace}/${key.name}`, async () => {
      const present = await this.#store.get<ImageBody>(key)
      const own = present?.body.tags.filter((tag) => !isShared(tag, source)) ?? []
      if (own.length > 0 && !force) {
        throw new PlatformError(
          'conflict',
          `the workspace "${workspace}" has an image ${resourceType}/${name} already`,
        )
      }
      const given = new Set(tags.map((tag) => tag.name))
      const all = [
        ...own.filter((tag) => !given.has(tag.name)),
        ...tags.map((tag) => ({ ...tag, sharedFrom: source })),
      ]
      if (all.length > tagsMax)
        throw new PlatformError('usage_limit_exceeded', `an image has at most ${tagsMax} tags`)
      const body: ImageBody = { resourceType, name, tags: all }
      const indexes = { ...present?.indexes, [sharedIndex(source)]: `${resourceType}/${name}` }
      if (present) return await this.#store.update<ImageBody>(key, present.version, { body, indexes })
      const [created] = await this.#store.batch([
        { op: 'create', input: { ...key, body, indexes } },
        inWorkspace(workspace),
      ])
      return created as StoredImage
    })
  }

  /** Gives a workspace that was given tags of an image those that it has now; its own of these names stay. */
  async renewTags(
    workspace: string,
    { resourceType, name, tags }: ImageBody,
    source: ShareSource,
  ): Promise<void> {
    const key = keyOf(workspace, resourceType, name)
    await this.#lock.run(`${workspace}/${key.name}`, async () => {
      const present = await this.#store.get<ImageBody>(key)
      const own = present?.body.tags.filter((tag) => !isShared(tag, source)) ?? []
      // It was taken away meanwhile.
      if (!present || own.length === present.body.tags.length) return
      const given = tags
        .filter(({ name }) => !own.some((tag) => tag.name === name))
        .map((tag) => ({ ...tag, sharedFrom: source }))
        .slice(0, tagsMax - own.length)
      const body = { ...present.body, tags: [...own, ...given] }
      if (Bun.deepEquals(body, present.body)) return
      await this.#store.update<ImageBody>(key, present.version, { body })
    })
  }

  /** Takes those tags away again, whoever stands on them. @throws not_found */
  async takeTags(
    workspace: string,
    type: ResourceType,
    name: string,
    source: ShareSource,
  ): Promise<StoredImage> {
    const key = keyOf(workspace, type, name)
    return await this.#lock.run(`${workspace}/${key.name}`, async () => {
      const present = await this.#store.get<ImageBody>(key)
      const left = present?.body.tags.filter((tag) => !isShared(tag, source))
      if (!present || left?.length === present.body.tags.length) {
        throw new PlatformError(
          'not_found',
          `the image ${type}/${name} is not shared with the workspace "${workspace.slice(0, 80)}"`,
        )
      }
      if (!left || left.length === 0) await this.#store.remove(key, present.version)
      else {
        const { [sharedIndex(source)]: _, ...indexes } = present.indexes
        const body = { ...present.body, tags: left }
        await this.#store.update<ImageBody>(key, present.version, { body, indexes })
      }
      return present
    })
  }

  /** Removes tags, and the image with its last one. `check` sees what goes. @throws not_found, what `check` throws */
  async remove(
    workspace: string,
    type: ResourceType,
    name: string,
    options: { tag?: string; check: (tags: ImageTag[]) => void },
  ): Promise<StoredImage> {
    const key = keyOf(workspace, type, name)
    const before = await this.#lock.run(`${workspace}/${key.name}`, async () => {
      const present = await this.#store.get<ImageBody>(key)
      if (!present) throw noImage(type, name)
      const { tag } = options
      const going = present.body.tags.filter((one) => tag === undefined || one.name === tag)
      if (going.length === 0) {
        throw new PlatformError(
          'not_found',
          `the image ${type}/${name} has no tag ${JSON.stringify(tag?.slice(0, 128))}`,
        )
      }
      options.check(going)
      await this.#drop(present, going)
      return present
    })
    await this.#follower({ workspace, type, name })
    return before
  }

  /** Removes the tags that are to go, of an image that may have gone itself; answers how many. */
  async removeTags(
    workspace: string,
    type: ResourceType,
    name: string,
    goes: (tag: ImageTag) => boolean,
  ): Promise<number> {
    const key = keyOf(workspace, type, name)
    const count = await this.#lock.run(`${workspace}/${key.name}`, async () => {
      const present = await this.#store.get<ImageBody>(key)
      const going = present?.body.tags.filter(goes) ?? []
      if (present && going.length > 0) await this.#drop(present, going)
      return going.length
    })
    if (count > 0) await this.#follower({ workspace, type, name })
    return count
  }

  /** For who holds the lock. */
  async #drop({ body, workspace, version }: StoredImage, going: readonly ImageTag[]): Promise<void> {
    const key = keyOf(workspace, body.resourceType, body.name)
    const tags = body.tags.filter((one) => !going.includes(one))
    if (tags.length === 0) await this.#store.remove(key, version)
    else await this.#store.update<ImageBody>(key, version, { body: { ...body, tags } })
  }
}

/** What a workspace shared, as the images it went to are indexed. */
function sharedIndex({ workspaceId }: ShareSource): string {
  return `shared:${workspaceId}`
}

function isShared(tag: ImageTag, { workspaceId }: ShareSource): boolean {
  return tag.sharedFrom?.workspaceId === workspaceId
}

export function noImage(type: string, name: string): PlatformError {
  return new PlatformError('not_found', `there is no image ${type}/${name.slice(0, 128)} in this workspace`)
}

function keyOf(workspace: string, type: ResourceType, name: string) {
  return { kind: imageKind, workspace, name: `${type}/${name}` }
}
