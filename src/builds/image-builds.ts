import type { BuildRequest } from '../builder/index.ts'
import { PlatformError } from '../errors.ts'
import {
  checkImageName,
  checkResourceType,
  type Images,
  type ImageView,
  newBuiltTag,
} from '../images/index.ts'
import { buildEventTypes } from '../lib/build-event-types.ts'
import type { Builds, BuildView } from './index.ts'

const imageBuildKind = 'image'

export interface ImageBuildsOptions {
  builds: Pick<Builds, 'begin' | 'cancel' | 'newest' | 'newestOf' | 'on'>
  images: Pick<Images, 'view' | 'views' | 'promote' | 'remove'>
}

/** Images that are built for themselves, and what is told of them meanwhile. */
export class ImageBuilds {
  readonly #builds: ImageBuildsOptions['builds']
  readonly #images: ImageBuildsOptions['images']

  constructor({ builds, images }: ImageBuildsOptions) {
    this.#builds = builds
    this.#images = images
    builds.on(imageBuildKind, {
      building: async () => {},
      built: ({ owner: { workspace, name, tag, imageType = 'sandbox' } }) =>
        this.#images.promote(workspace, { type: imageType, name, tag }),
      failed: async () => {},
    })
  }

  /** An address for the archive of an image, under a tag of its own. @throws bad_request, too_many_requests */
  async begin(
    workspace: string,
    target: { resourceType: string; name: string },
    origin: string,
  ): Promise<{ image: string; resourceType: string; uploadUrl: string }> {
    const imageType = checkResourceType(target.resourceType, 'resourceType')
    const name = checkImageName(target.name, 'name')
    const tag = newBuiltTag()
    const owner = { workspace, kind: imageBuildKind, imageType, name, tag }
    const { uploadUrl } = await this.#builds.begin(owner, origin)
    return { image: `${imageType}/${name}:${tag}`, resourceType: imageType, uploadUrl }
  }

  /** An image with what is being built for it, or was last. @throws not_found */
  async view(workspace: string, type: string, name: string): Promise<ImageView> {
    const imageType = checkResourceType(type, 'resourceType')
    const build = await this.#builds.newest({ workspace, kind: imageBuildKind, imageType, name })
    const found = await this.#images.view(workspace, imageType, name).catch((error) => {
      if (PlatformError.is(error) && error.code === 'not_found' && tells(build)) return null
      throw error
    })
    return withBuild(found ?? imageToBe(workspace, imageType, name), build)
  }

  async views(workspace: string): Promise<ImageView[]> {
    const views = new Map(
      (await this.#images.views(workspace)).map((view) => [
        `${view.metadata.resourceType}/${view.metadata.name}`,
        view,
      ]),
    )
    for (const build of await this.#builds.newestOf(workspace, imageBuildKind)) {
      const { imageType = 'sandbox', name } = build.owner
      const key = `${imageType}/${name}`
      const found = views.get(key)
      if (found || tells(build))
        views.set(key, withBuild(found ?? imageToBe(workspace, imageType, name), build))
    }
    return [...views.values()].sort((left, right) => (left.metadata.name < right.metadata.name ? -1 : 1))
  }

  /** Removes an image with what is being built for it, or was: also one that never came to be. @throws as `Images.remove` */
  async remove(workspace: string, type: string, name: string): Promise<ImageView> {
    const told = await this.view(workspace, type, name)
    const imageType = checkResourceType(type, 'resourceType')
    const removed = await this.#images.remove(workspace, imageType, name).catch((error) => {
      if (PlatformError.is(error) && error.code === 'not_found') return told
      throw error
    })
    await this.#builds.cancel({ workspace, kind: imageBuildKind, imageType, name })
    return removed
  }
}

/** An address that nobody used tells nothing once it is over. */
function tells(build: BuildView | null): build is BuildView {
  return build !== null && (build.status === 'uploading' || build.uploadedAt !== null)
}

function withBuild(view: ImageView, build: BuildView | null): ImageView {
  if (!tells(build)) return view
  const { status, endedAt, error } = build
  // A pull, or another build, may have brought the image since.
  const since = view.spec.tags.some(
    ({ updatedAt }) => Date.parse(updatedAt) > (endedAt ?? Number.POSITIVE_INFINITY),
  )
  if (status === 'built' || (status === 'failed' && since)) return view
  const event = {
    time: new Date(endedAt ?? build.uploadedAt ?? build.begunAt).toISOString(),
    type:
      status === 'failed'
        ? buildEventTypes.failed
        : status === 'building'
          ? buildEventTypes.started
          : 'upload',
    status: status === 'failed' ? 'FAILED' : status === 'building' ? 'BUILDING' : 'UPLOADING',
    message:
      error ?? (status === 'building' ? 'Building the image' : 'Waiting for the source to be uploaded'),
  }
  return {
    ...view,
    metadata: { ...view.metadata, status: status === 'failed' ? 'FAILED' : 'BUILDING', events: [event] },
  }
}

function imageToBe(workspace: string, type: BuildRequest['kind'], name: string): ImageView {
  const displayName = `${workspace}/${type}/${name}`
  return {
    metadata: { name, displayName, resourceType: type, workspace, status: 'BUILDING' },
    spec: { size: 0, tagCount: 0, tags: [] },
  }
}
