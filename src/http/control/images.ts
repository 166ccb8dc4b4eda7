import { z } from 'zod'
import type { ImageBuilds } from '../../builds/index.ts'
import { PlatformError } from '../../errors.ts'
import {
  catalogue,
  type Images,
  imageViewSchema,
  passwordCharsMax,
  pendingShareEntrySchema,
  pendingShareSchema,
  shareTargetSchema,
  tagSchema,
  usernameCharsMax,
} from '../../images/index.ts'
import { memoryMbDefault } from '../../sandboxes/index.ts'
import { flag } from '../flag.ts'
import { pageSchema } from '../list.ts'
import { type Route, route, uploadUrlHeader } from '../route.ts'
import { imagePage, imagesQuery, pagedImagesVersion, tagPage, tagsQuery } from './image-pages.ts'

const registryHost = /^[a-z0-9.-]+(?::\d{1,5})?$|^\[[0-9a-f:]+\](?::\d{1,5})?$/i
const dockerConfig = z.string().nullish()

const hubEntry = z.lazy(() =>
  z.object({
    name: z.string(),
    displayName: z.string(),
    description: z.string(),
    longDescription: z.string(),
    image: z.string(),
    memory: z.number(),
    ports: z.array(z.object({ name: z.string(), target: z.number(), protocol: z.string() })),
    categories: z.array(z.object({ name: z.string(), displayName: z.string() })),
    tags: z.string(),
    hidden: z.boolean(),
    coming_soon: z.boolean(),
    enterprise: z.boolean(),
  }),
)
const hub = catalogue.map((entry) => ({
  name: entry.name.slice(entry.name.indexOf('/') + 1),
  displayName: entry.title,
  description: entry.summary,
  longDescription: entry.summary,
  image: `${entry.name}:latest`,
  memory: memoryMbDefault,
  ports: entry.ports,
  categories: entry.categories.map((name) => ({ name, displayName: name })),
  tags: entry.categories.join(','),
  hidden: false,
  coming_soon: false,
  enterprise: false,
}))

const imageList = z.lazy(() => {
  const view = imageViewSchema.unwrap()
  const summary = view.extend({ spec: view.shape.spec.omit({ tags: true }) })
  return z.union([z.array(view), pageSchema(summary)])
})
const tagList = z.lazy(() => pageSchema(tagSchema))
const pullAnswer = z.lazy(() => imageViewSchema.unwrap().extend({ reference: z.string() }))

/** The catalogue of images: what there is, pulling from registries, taking in archives, and letting go. */
export function imageRoutes(images: Images, builds: ImageBuilds): Route[] {
  return [
    ...hubRoutes(),
    ...catalogueRoutes(images, builds),
    ...shareRoutes(images),
    ...transferRoutes(images),
    ...registryRoutes(images),
  ]
}

function hubRoutes(): Route[] {
  return [
    route({
      method: 'GET',
      path: '/v0/sandbox/hub',
      access: 'read',
      errors: 'control',
      tag: 'sandboxhub',
      summary: 'List the images that every workspace can start sandboxes from',
      answer: z.array(hubEntry),
      handle: () => hub,
    }),
  ]
}

function catalogueRoutes(images: Images, builds: ImageBuilds): Route[] {
  const shared = { errors: 'control', tag: 'images' } as const
  return [
    route({
      ...shared,
      method: 'GET',
      path: '/v0/images',
      access: 'read',
      summary: `List the images of the workspace: with their tags, or from Blaxel-Version ${pagedImagesVersion} on in pages, without`,
      query: imagesQuery,
      answer: imageList,
      async handle({ workspace, apiVersion, query }) {
        const views = await builds.views(workspace)
        return apiVersion < pagedImagesVersion ? views : imagePage(views, query)
      },
    }),
    route({
      ...shared,
      method: 'POST',
      path: '/v0/images',
      access: 'write',
      summary:
        'Pull an image of a registry into the workspace under a name of its own; with upload=true get an address to upload the source of one to (X-Blaxel-Upload-Url)',
      query: z.object({ upload: flag, 'skip-build': flag }),
      body: z.object({
        resourceType: z.string(),
        name: z.string(),
        generation: z.string().nullish(),
        image: z.string().nullish(),
        dockerConfig,
      }),
      answer: z.lazy(() =>
        z.object({
          name: z.string(),
          resourceType: z.string(),
          image: z.string(),
          build: z.boolean(),
          message: z.string(),
        }),
      ),
      async handle({ workspace, query, body, origin }) {
        if (query.upload) {
          const { image, resourceType, uploadUrl } = await builds.begin(workspace, body, origin)
          const message = 'Upload the archive: that starts the build'
          const answer = { name: body.name, resourceType, image, build: true, message }
          return Response.json(answer, { headers: { [uploadUrlHeader]: uploadUrl } })
        }
        if (!body.image) {
          throw new PlatformError(
            'bad_request',
            'image: missing: name one of a registry, or ask for an address to upload the source to (?upload=true)',
          )
        }
        const answer = await images.pull(workspace, body.image, {
          type: body.resourceType,
          name: body.name,
          ...(body.dockerConfig ? { dockerConfig: body.dockerConfig } : {}),
        })
        const { name, resourceType = 'sandbox', status } = answer.view.metadata
        return {
          name,
          resourceType,
          image: answer.reference,
          build: status !== 'BUILT',
          message: status === 'BUILT' ? 'The image is here' : 'The image is being pulled',
        }
      },
    }),
    route({
      ...shared,
      method: 'DELETE',
      path: '/v0/images',
      access: 'write',
      summary: 'Delete every image of the workspace that no sandbox stands on',
      answer: z.lazy(() => z.object({ deleted: z.number(), message: z.string() })),
      async handle({ workspace }) {
        const deleted = await images.removeUnused(workspace)
        return { deleted, message: `${deleted} unused image${deleted === 1 ? '' : 's'} deleted` }
      },
    }),
    route({
      ...shared,
      method: 'GET',
      path: '/v0/images/{resourceType}/{imageName}',
      access: 'read',
      summary: 'Get an image with its tags',
      answer: imageViewSchema,
      handle: ({ workspace, params }) => builds.view(workspace, params.resourceType, params.imageName),
    }),
    route({
      ...shared,
      method: 'GET',
      path: '/v0/images/{resourceType}/{imageName}/tags',
      access: 'read',
      summary: 'List the tags of an image in pages',
      query: tagsQuery,
      answer: tagList,
      async handle({ workspace, params, query }) {
        return tagPage(await builds.view(workspace, params.resourceType, params.imageName), query)
      },
    }),
    route({
      ...shared,
      method: 'DELETE',
      path: '/v0/images/{resourceType}/{imageName}',
      access: 'write',
      summary:
        'Delete an image with all its tags, or as NAME:TAG one of them; refused while a sandbox stands on it',
      answer: imageViewSchema,
      async handle({ workspace, params }) {
        const { resourceType, imageName } = params
        const [name = '', tag] = imageName.split(':', 2)
        if (tag !== undefined) return await images.remove(workspace, resourceType, name, tag)
        return await builds.remove(workspace, resourceType, name)
      },
    }),
    route({
      ...shared,
      method: 'DELETE',
      path: '/v0/images/{resourceType}/{imageName}/tags/{tagName}',
      access: 'write',
      summary: 'Delete one tag of an image; refused while a sandbox stands on it',
      answer: imageViewSchema,
      handle: ({ workspace, params }) =>
        images.remove(workspace, params.resourceType, params.imageName, params.tagName),
    }),
  ]
}

function shareRoutes(images: Images): Route[] {
  const shared = { errors: 'control', tag: 'images' } as const
  const path = '/v0/images/{resourceType}/{imageName}/share' as const
  const atOf = (workspace: string, params: { resourceType: string; imageName: string }) => ({
    workspace,
    type: params.resourceType,
    name: params.imageName,
  })
  return [
    route({
      ...shared,
      method: 'GET',
      path,
      access: 'read',
      summary: 'List the workspaces that an image is shared with, or was offered to',
      answer: z.array(shareTargetSchema),
      handle: ({ workspace, params }) => images.shares.list(atOf(workspace, params)),
    }),
    route({
      ...shared,
      method: 'POST',
      path,
      access: 'admin',
      summary:
        'Share an image with another workspace of the account; one of another account is offered it, and answers 202',
      body: z.object({ targetWorkspace: z.string().min(1), targetAccountId: z.string().nullish() }),
      answer: imageViewSchema,
      acceptedAnswer: pendingShareSchema,
      async handle(context) {
        const { workspace, params, body, principal } = context
        const at = atOf(workspace, params)
        const target = {
          workspace: body.targetWorkspace,
          ...(body.targetAccountId ? { accountId: body.targetAccountId } : {}),
        }
        const pending = await images.shares.share(at, target, principal?.id ?? '')
        return pending
          ? Response.json(pending, { status: 202 })
          : await images.view(workspace, at.type, at.name)
      },
    }),
    route({
      ...shared,
      method: 'DELETE',
      path: `${path}/{targetWorkspace}`,
      access: 'admin',
      summary:
        'Take an image away from a workspace it was shared with; sandboxes there that stand on it stay',
      answer: imageViewSchema,
      handle: ({ workspace, params }) => images.unshare(atOf(workspace, params), params.targetWorkspace),
    }),
    route({
      ...shared,
      method: 'GET',
      path: '/v0/pending-image-shares',
      access: 'admin',
      summary: 'List the images that other accounts offer to this workspace, or that it offers to others',
      query: z.object({ direction: z.enum(['incoming', 'outgoing']).optional() }),
      answer: z.array(pendingShareEntrySchema),
      handle: ({ workspace, query }) => images.shares.pending(workspace, query.direction ?? 'incoming'),
    }),
    route({
      ...shared,
      method: 'POST',
      path: '/v0/pending-image-shares/{pendingShareId}/accept',
      access: 'admin',
      summary: 'Take an image that was offered; force replaces tags of the same names',
      query: z.object({ force: flag }),
      answer: imageViewSchema,
      async handle({ workspace, params, query }) {
        const force = query.force === true
        const { type, name } = await images.shares.accept(workspace, params.pendingShareId, { force })
        return await images.view(workspace, type, name)
      },
    }),
    route({
      ...shared,
      method: 'POST',
      path: '/v0/pending-image-shares/{pendingShareId}/decline',
      access: 'admin',
      summary: 'Decline an image that was offered',
      successStatus: 204,
      async handle({ workspace, params }) {
        await images.shares.decline(workspace, params.pendingShareId)
        return new Response(null, { status: 204 })
      },
    }),
  ]
}

function transferRoutes(images: Images): Route[] {
  const shared = { errors: 'control', tag: 'images', access: 'write' } as const
  return [
    route({
      ...shared,
      method: 'POST',
      path: '/-/images/pull',
      summary: 'Pull an image of a registry, also one that is here; answers BUILDING when that takes long',
      body: z.object({
        image: z.string(),
        type: z.string().nullish(),
        name: z.string().nullish(),
        tag: z.string().nullish(),
        dockerConfig,
      }),
      answer: pullAnswer,
      async handle({ workspace, body }) {
        const { image, type, name, tag } = body
        const { view, reference } = await images.pull(workspace, image, {
          ...(type ? { type } : {}),
          ...(name ? { name } : {}),
          ...(tag ? { tag } : {}),
          ...(body.dockerConfig ? { dockerConfig: body.dockerConfig } : {}),
        })
        return { ...view, reference }
      },
    }),
    route({
      ...shared,
      method: 'PUT',
      path: '/-/images/import',
      summary: 'Take in an archive of an image, an OCI layout or what docker save writes; it is the body',
      query: z.object({
        name: z.string(),
        tag: z.string().optional(),
        type: z.string().optional(),
        reference: z.string().optional(),
      }),
      answer: pullAnswer,
      async handle({ workspace, query, request }) {
        if (request.body === null) {
          throw new PlatformError('bad_request', 'the request has no body: send the archive in it')
        }
        const { type, tag, name, reference } = query
        const answer = await images.import(workspace, request.body as ReadableStream<Uint8Array>, {
          name,
          ...(type ? { type } : {}),
          ...(tag ? { tag } : {}),
          ...(reference ? { reference } : {}),
          signal: request.signal,
        })
        return { ...answer.view, reference: answer.reference }
      },
    }),
  ]
}

/** Passwords go in and never come out. */
function registryRoutes(images: Images): Route[] {
  const shared = { errors: 'control', tag: 'registries', access: 'admin' } as const
  const entry = z.object({ host: z.string(), username: z.string(), updatedAt: z.string() })
  return [
    route({
      ...shared,
      method: 'GET',
      path: '/-/registries',
      summary: 'List the registries that the workspace keeps credentials for',
      answer: z.array(entry),
      handle: async ({ workspace }) =>
        (await images.credentials.list(workspace)).map(({ host, username, updatedAt }) => ({
          host,
          username,
          updatedAt: new Date(updatedAt).toISOString(),
        })),
    }),
    route({
      ...shared,
      method: 'PUT',
      path: '/-/registries/{host}',
      summary: 'Keep credentials for a registry, sealed',
      body: z.object({
        username: z.string().min(1).max(usernameCharsMax),
        password: z.string().min(1).max(passwordCharsMax),
      }),
      async handle({ workspace, params, body }) {
        if (!registryHost.test(params.host)) {
          throw new PlatformError(
            'bad_request',
            "host: write the registry's host, such as ghcr.io or localhost:5000",
          )
        }
        if (body.username.includes(':')) {
          throw new PlatformError('bad_request', 'username: a user of a registry has no ":" in its name')
        }
        await images.credentials.set(workspace, params.host, body)
        return { host: params.host, username: body.username }
      },
    }),
    route({
      ...shared,
      method: 'DELETE',
      path: '/-/registries/{host}',
      summary: 'Forget the credentials for a registry',
      async handle({ workspace, params }) {
        await images.credentials.remove(workspace, params.host)
        return { host: params.host }
      },
    }),
  ]
}
