import { z } from 'zod'
import { PlatformError } from '../errors.ts'
import type { Clock } from '../lib/clock.ts'
import { randomText } from '../lib/ids.ts'
import { KeyedLock } from '../lib/keyed-lock.ts'
import { type BatchStep, everyItem, type Resource, type ResourceKey, type Store } from '../spec/store.ts'
import { inWorkspace, type Workspace } from '../workspaces/index.ts'
import type { LayerCollector } from './collector.ts'
import {
  type ImageAt,
  type ImageBody,
  type ImageRecords,
  type ImageTag,
  noImage,
  type ShareSource,
  type StoredImage,
} from './records.ts'
import { checkResourceType, type ResourceType } from './reference.ts'

const offerKind = 'image_share'
/** Offers that wait in one workspace. */
const offersMax = 100
const offerAgeMsMax = 7 * 24 * 60 * 60 * 1000

/** A share that waits for an admin of the workspace it is for; kept there. */
interface OfferBody {
  resourceType: ResourceType
  imageName: string
  sharedBy: string
  source: ShareSource
  sourceAccountId: string
  targetAccountId: string
  expiresAt: number
}
type Offer = Resource<OfferBody>

export const shareTargetSchema = z.lazy(() =>
  z.object({
    workspace: z.string(),
    workspaceDisplayName: z.string().optional(),
    accountId: z.string(),
    status: z.enum(['active', 'pending']),
    pendingShareId: z.string().optional(),
  }),
)
type ShareTarget = z.output<typeof shareTargetSchema>

export const pendingShareSchema = z.lazy(() =>
  z.object({
    id: z.string(),
    resourceType: z.string(),
    imageName: z.string(),
    sharedBy: z.string(),
    sourceWorkspace: z.string(),
    sourceAccountId: z.string(),
    targetWorkspace: z.string(),
    targetAccountId: z.string(),
    createdAt: z.string(),
    expiresAt: z.string(),
  }),
)
export const pendingShareEntrySchema = z.lazy(() =>
  pendingShareSchema.unwrap().extend({
    sourceWorkspaceDisplayName: z.string().optional(),
    targetWorkspaceDisplayName: z.string().optional(),
    /** There is an image of this name already in the workspace it is for. */
    hasConflict: z.boolean(),
  }),
)

/** As clients name it. */
interface NamedImage {
  workspace: string
  type: string
  name: string
}

/**
 * Images of one workspace in the catalogue of another: the record is copied, layers are shared as they are by all. It
 * is done at once between workspaces of one account, which is whoever created them; another account's workspace is
 * offered the image, and has it once an admin there accepts. Tags that come later are given to whoever has it by then.
 */
export class ImageShares {
  readonly #store: Store
  readonly #records: ImageRecords
  readonly #collector: LayerCollector
  readonly #workspaces: { get(name: string): Promise<Workspace> }
  readonly #clock: Clock
  /** Of workspaces that are offered something: offers are counted. */
  readonly #lock = new KeyedLock()

  constructor(options: {
    store: Store
    records: ImageRecords
    collector: LayerCollector
    workspaces: { get(name: string): Promise<Workspace> }
    clock: Clock
  }) {
    this.#store = options.store
    this.#records = options.records
    this.#collector = options.collector
    this.#workspaces = options.workspaces
    this.#clock = options.clock
  }

  /**
   * Answers null when it is done, or what waits for the other workspace.
   * @throws not_found, bad_request, conflict when there is an image of this name in the other workspace
   */
  async share(
    at: NamedImage,
    target: { workspace: string; accountId?: string },
    sharedBy: string,
  ): Promise<z.output<typeof pendingShareSchema> | null> {
    const type = checkResourceType(at.type, 'resourceType')
    const own = await this.#workspaces.get(at.workspace)
    const image = await this.#own(own, type, at.name)
    if (target.workspace === at.workspace) {
      throw new PlatformError('bad_request', 'targetWorkspace: the image is of this workspace already')
    }
    const other = await this.#workspaces.get(target.workspace).catch(() => null)
    if (other && accountOf(other) === accountOf(own)) {
      await this.#give(other.name, image, { source: sourceOf(own), force: false })
      return null
    }
    if (target.accountId === undefined) {
      throw new PlatformError(
        'bad_request',
        'targetAccountId: the workspace is not of this account; to share with another account, name it too (accountId of the workspace there)',
      )
    }
    if (!other || accountOf(other) !== target.accountId) {
      throw new PlatformError(
        'not_found',
        `there is no workspace ${JSON.stringify(target.workspace.slice(0, 80))} of that account`,
      )
    }
    return this.#view(await this.#offer(own, other, image, sharedBy))
  }

  /** Whom an image is shared with, and whom it was offered. @throws not_found */
  async list(at: NamedImage): Promise<ShareTarget[]> {
    const type = checkResourceType(at.type, 'resourceType')
    const own = await this.#workspaces.get(at.workspace)
    if (!(await this.#records.get(at.workspace, type, at.name))) throw noImage(type, at.name)
    const targets: ShareTarget[] = []
    for (const { workspace } of await this.#records.sharedTo(sourceOf(own), type, at.name)) {
      const other = await this.#workspaces.get(workspace).catch(() => null)
      if (other) targets.push({ ...targetView(other), status: 'active' })
    }
    for (const offer of await this.#offersFrom(own)) {
      const { resourceType, imageName } = offer.body
      const other = await this.#workspaces.get(offer.workspace).catch(() => null)
      if (!other || resourceType !== type || imageName !== at.name) continue
      targets.push({ ...targetView(other), status: 'pending', pendingShareId: offer.name })
    }
    return targets
  }

  /** Workspaces that have an image of this one. */
  async holders(at: ImageAt): Promise<string[]> {
    const own = await this.#workspaces.get(at.workspace)
    const found = await this.#records.sharedTo(sourceOf(own), at.type, at.name)
    return found.map(({ workspace }) => workspace)
  }

  /** Whoever has an image of this workspace has the tags that it has now. */
  async renew(at: ImageAt): Promise<void> {
    const own = await this.#workspaces.get(at.workspace).catch(() => null)
    if (!own) return
    const holders = await this.holders(at)
    const seen = holders.length > 0 ? await this.#ownTags(at) : null
    if (!seen || seen.tags.length === 0) return
    const layers = layersOf(seen.tags)
    const letGo = this.#collector.hold(layers)
    try {
      // Of tags that are still there now that their layers are held.
      const image = await this.#ownTags(at)
      const tags = image?.tags.filter((tag) => tag.layers.every((layer) => layers.includes(layer))) ?? []
      if (!image || tags.length === 0) return
      for (const workspace of holders)
        await this.#records.renewTags(workspace, { ...image, tags }, sourceOf(own))
      this.#collector.named(layers)
    } finally {
      letGo()
    }
  }

  /** At start: of what a crash cut off between a tag and those who are to have it, too. */
  async renewAll(): Promise<void> {
    const sources = new Map<string, ImageAt>()
    for await (const { body } of this.#records.every()) {
      for (const { sharedFrom } of body.tags) {
        if (sharedFrom === undefined) continue
        const at = { workspace: sharedFrom.workspace, type: body.resourceType, name: body.name }
        sources.set(`${at.workspace}/${at.type}/${at.name}`, at)
      }
    }
    for (const at of sources.values()) await this.renew(at)
  }

  /** Takes an image away from a workspace it was shared with, or offered to; answers it as it was there. @throws not_found */
  async unshare(at: NamedImage, targetWorkspace: string): Promise<StoredImage | null> {
    const type = checkResourceType(at.type, 'resourceType')
    const own = await this.#workspaces.get(at.workspace)
    const offers = (await this.#offersFrom(own)).filter(
      ({ workspace, body }) =>
        workspace === targetWorkspace && body.resourceType === type && body.imageName === at.name,
    )
    for (const offer of offers) await this.#store.remove(keyOf(offer))
    try {
      return await this.#records.takeTags(targetWorkspace, type, at.name, sourceOf(own))
    } catch (error) {
      if (offers.length > 0) return null
      throw error
    }
  }

  /** What waits, here or elsewhere. */
  async pending(
    workspace: string,
    direction: 'incoming' | 'outgoing',
  ): Promise<z.output<typeof pendingShareEntrySchema>[]> {
    const own = await this.#workspaces.get(workspace)
    const offers = direction === 'incoming' ? await this.#offersTo(workspace) : await this.#offersFrom(own)
    return await Promise.all(offers.map((offer) => this.#entry(offer)))
  }

  /** Answers which image it is. @throws not_found, gone, conflict unless `force` */
  async accept(workspace: string, id: string, { force }: { force: boolean }): Promise<NamedImage> {
    const offer = await this.#require(workspace, id)
    const { resourceType, imageName, source, expiresAt } = offer.body
    if (expiresAt <= this.#clock.now()) {
      await this.#store.remove(keyOf(offer))
      throw new PlatformError('gone', 'this share was not accepted in time: it has to be shared again')
    }
    const from = await this.#workspaces.get(source.workspace).catch(() => null)
    if (from?.id !== source.workspaceId) throw noOffer(id)
    const image = await this.#own(from, resourceType, imageName)
    await this.#give(workspace, image, { source, force })
    await this.#store.remove(keyOf(offer))
    return { workspace, type: resourceType, name: imageName }
  }

  /** @throws not_found */
  async decline(workspace: string, id: string): Promise<void> {
    await this.#store.remove(keyOf(await this.#require(workspace, id)))
  }

  /** Steps that remove what waits in a workspace, for the batch that removes it. */
  async removal(workspace: string): Promise<BatchStep[]> {
    const offers = await Array.fromAsync(this.#every({ workspace }))
    return offers.map((offer) => ({ op: 'remove', key: keyOf(offer) }))
  }

  /** With those tags that the workspace may share, which are its own. @throws not_found, bad_request */
  async #own({ name: workspace }: Workspace, type: ResourceType, name: string): Promise<ImageBody> {
    const image = await this.#ownTags({ workspace, type, name })
    if (!image) throw noImage(type, name)
    if (image.tags.length > 0) return image
    throw new PlatformError(
      'bad_request',
      `the image ${type}/${name} is another workspace's: only that one shares it`,
    )
  }

  async #ownTags({ workspace, type, name }: ImageAt): Promise<ImageBody | null> {
    const image = await this.#records.get(workspace, type, name)
    return image && { ...image.body, tags: image.body.tags.filter((tag) => tag.sharedFrom === undefined) }
  }

  /** Layers are held meanwhile, for the image may be removed where it came from. */
  async #give(
    workspace: string,
    image: ImageBody,
    options: { source: ShareSource; force: boolean },
  ): Promise<void> {
    const layers = layersOf(image.tags)
    const letGo = this.#collector.hold(layers)
    try {
      // Still there now that they are held, and so are its layers.
      const current = await this.#records.get(options.source.workspace, image.resourceType, image.name)
      const there = layersOf(current?.body.tags ?? [])
      if (!layers.every((layer) => there.includes(layer))) throw noImage(image.resourceType, image.name)
      await this.#records.copyTags(workspace, image, options)
      this.#collector.named(layers)
    } finally {
      letGo()
    }
  }

  async #offer(own: Workspace, other: Workspace, image: ImageBody, sharedBy: string): Promise<Offer> {
    return await this.#lock.run(other.name, async () => {
      const present = await this.#offersTo(other.name)
      const same = present.find(
        ({ body }) =>
          body.source.workspaceId === own.id &&
          body.resourceType === image.resourceType &&
          body.imageName === image.name,
      )
      if (same) return same
      if (present.length >= offersMax) {
        throw new PlatformError(
          'usage_limit_exceeded',
          `the workspace "${other.name}" has ${offersMax} shares to accept or decline, the most there can be`,
        )
      }
      const body: OfferBody = {
        resourceType: image.resourceType,
        imageName: image.name,
        sharedBy,
        source: sourceOf(own),
        sourceAccountId: accountOf(own),
        targetAccountId: accountOf(other),
        expiresAt: this.#clock.now() + offerAgeMsMax,
      }
      const key = { kind: offerKind, workspace: other.name, name: `share_${randomText(16)}` }
      const [offer] = await this.#store.batch([
        { op: 'create', input: { ...key, body, indexes: { source: own.id }, createdAt: this.#clock.now() } },
        inWorkspace(other.name),
      ])
      return offer as Offer
    })
  }

  async #require(workspace: string, id: string): Promise<Offer> {
    const offer = id.includes('\0')
      ? null
      : await this.#store.get<OfferBody>({ kind: offerKind, workspace, name: id })
    if (!offer) throw noOffer(id)
    return offer
  }

  #offersTo(workspace: string): Promise<Offer[]> {
    return this.#current(this.#every({ workspace }))
  }

  #offersFrom({ id }: Workspace): Promise<Offer[]> {
    return this.#current(this.#every({ where: { source: id } }))
  }

  /** Those whose time is over are cleared away by whoever looks. */
  async #current(offers: AsyncIterable<Offer>): Promise<Offer[]> {
    const current: Offer[] = []
    for (const offer of await Array.fromAsync(offers)) {
      if (offer.body.expiresAt > this.#clock.now()) current.push(offer)
      else await this.#store.remove(keyOf(offer))
    }
    return current
  }

  #every(query: { workspace?: string; where?: Record<string, string> }): AsyncIterable<Offer> {
    return everyItem((page) => this.#store.page<OfferBody>({ kind: offerKind, ...query, ...page }))
  }

  #view({ name, workspace, createdAt, body }: Offer): z.output<typeof pendingShareSchema> {
    const { resourceType, imageName, sharedBy, source, sourceAccountId, targetAccountId, expiresAt } = body
    return {
      id: name,
      resourceType,
      imageName,
      sharedBy,
      sourceWorkspace: source.workspace,
      sourceAccountId,
      targetWorkspace: workspace,
      targetAccountId,
      createdAt: new Date(createdAt).toISOString(),
      expiresAt: new Date(expiresAt).toISOString(),
    }
  }

  async #entry(offer: Offer): Promise<z.output<typeof pendingShareEntrySchema>> {
    const { resourceType, imageName, source } = offer.body
    const [from, to, present] = await Promise.all([
      this.#workspaces.get(source.workspace).catch(() => null),
      this.#workspaces.get(offer.workspace).catch(() => null),
      this.#records.get(offer.workspace, resourceType, imageName),
    ])
    return {
      ...this.#view(offer),
      ...(from ? { sourceWorkspaceDisplayName: from.displayName } : {}),
      ...(to ? { targetWorkspaceDisplayName: to.displayName } : {}),
      hasConflict:
        present?.body.tags.some((tag) => tag.sharedFrom?.workspaceId !== source.workspaceId) ?? false,
    }
  }
}

function accountOf(workspace: Workspace): string {
  return workspace.createdBy
}

function sourceOf({ id, name }: Workspace): ShareSource {
  return { workspace: name, workspaceId: id }
}

function targetView(workspace: Workspace) {
  const { name, displayName } = workspace
  return { workspace: name, workspaceDisplayName: displayName, accountId: accountOf(workspace) }
}

function layersOf(tags: readonly ImageTag[]): string[] {
  return [...new Set(tags.flatMap(({ layers }) => layers))]
}

function keyOf({ kind, workspace, name }: Offer): ResourceKey {
  return { kind, workspace, name }
}

function noOffer(id: string): PlatformError {
  return new PlatformError(
    'not_found',
    `there is no pending share ${JSON.stringify(id.slice(0, 80))} for this workspace`,
  )
}
