import { z } from 'zod'
import { PlatformError } from '../../errors.ts'
import type { Logger } from '../../lib/log.ts'
import { type Sandboxes, sandboxInputSchema, sandboxSchema } from '../../sandboxes/index.ts'
import { flag } from '../flag.ts'
import { listAnswer, listQuery, listSchema } from '../list.ts'
import { type Route, type RouteContext, route, uploadUrlHeader } from '../route.ts'

const tag = 'sandboxes'

/** Create, read, change and delete sandboxes. */
export function sandboxRoutes(options: { sandboxes: Sandboxes; log: Logger }): Route[] {
  const { sandboxes, log } = options
  return [
    route({
      method: 'GET',
      path: '/v0/sandboxes',
      access: 'read',
      errors: 'control',
      summary: 'List sandboxes; terminated ones are left out unless asked for',
      tag,
      query: listQuery.extend({
        externalId: z.string().optional(),
        status: z.string().max(200).optional(),
        showTerminated: flag,
      }),
      answer: z.lazy(() => listSchema(sandboxSchema)),
      handle: (context) => {
        const { query, workspace, origin } = context
        const { externalId, status, showTerminated } = query
        return listAnswer(
          context,
          (page) =>
            sandboxes.list(workspace, {
              ...page,
              ...(externalId ? { externalId } : {}),
              ...(status ? { status } : {}),
              showTerminated: showTerminated === true,
            }),
          (sandbox) => sandboxes.view(sandbox, origin, { events: false }),
        )
      },
    }),
    route({
      method: 'POST',
      path: '/v0/sandboxes',
      access: 'workload',
      errors: 'creation',
      summary:
        'Create a sandbox; answers when it can be used, or with upload=true where its source is to be uploaded (X-Blaxel-Upload-Url)',
      tag,
      query: z.object({ createIfNotExist: flag, upload: flag }),
      body: sandboxInputSchema,
      answer: sandboxSchema,
      handle: async (context) => {
        const { workspace, origin, query, body } = context
        if (query.upload) {
          const options = { actor: actorOf(context), origin }
          const { sandbox, uploadUrl } = await sandboxes.createFromSource(workspace, body, options)
          return uploadAnswer(sandboxes.view(sandbox, origin, { created: true }), uploadUrl)
        }
        const options = { actor: actorOf(context) }
        if (query.createIfNotExist) {
          const { sandbox, isNew } = await sandboxes.findOrCreate(workspace, body, options)
          return sandboxes.view(sandbox, origin, { created: isNew })
        }
        return sandboxes.view(await sandboxes.create(workspace, body, options), origin, { created: true })
      },
    }),
    route({
      method: 'GET',
      path: '/v0/sandboxes/by-external-id/{externalId}',
      access: 'read',
      errors: 'control',
      summary: 'The newest living sandbox of an external id',
      tag,
      answer: sandboxSchema,
      handle: async ({ workspace, origin, params }) =>
        sandboxes.view(await sandboxes.getByExternalId(workspace, params.externalId), origin),
    }),
    route({
      method: 'GET',
      path: '/v0/sandboxes/{sandboxName}',
      access: 'read',
      errors: 'control',
      summary: 'Get a sandbox; show_secrets (admins only) unmasks its environment',
      tag,
      query: z.object({ show_secrets: flag }),
      answer: sandboxSchema,
      handle: async (context) => {
        const { workspace, origin, params } = context
        const showSecrets = mayReadSecrets(context, log, { sandbox: params.sandboxName })
        return sandboxes.view(await sandboxes.get(workspace, params.sandboxName), origin, { showSecrets })
      },
    }),
    route({
      method: 'PUT',
      path: '/v0/sandboxes/{sandboxName}',
      access: 'deployed',
      errors: 'control',
      summary:
        'Replace a sandbox; a new image, memory, storage or environment starts it with empty files, with upload=true once its image was built',
      tag,
      query: z.object({ upload: flag }),
      body: sandboxInputSchema,
      answer: sandboxSchema,
      handle: async (context) => {
        const { workspace, origin, params, query, body } = context
        const options = { actor: actorOf(context) }
        const { sandboxName: name } = params
        await requireOwn(context, sandboxes)
        if (query.upload) {
          const wanted = { ...options, origin }
          const { sandbox, uploadUrl } = await sandboxes.updateFromSource(workspace, name, body, wanted)
          return uploadAnswer(sandboxes.view(sandbox, origin), uploadUrl)
        }
        const sandbox = await sandboxes.update(workspace, name, body, options)
        return sandboxes.view(sandbox, origin)
      },
    }),
    route({
      method: 'POST',
      path: '/v0/sandboxes/{sandboxName}/archive',
      access: 'deployed',
      errors: 'control',
      summary: 'Pack the files of a sandbox away and stop it; its status tells when that is done',
      tag,
      answer: sandboxSchema,
      handle: async (context) => {
        const { workspace, origin, params } = context
        await requireOwn(context, sandboxes)
        return sandboxes.view(await sandboxes.archive(workspace, params.sandboxName), origin)
      },
    }),
    route({
      method: 'POST',
      path: '/v0/sandboxes/{sandboxName}/unarchive',
      access: 'deployed',
      errors: 'control',
      summary: 'Bring an archived sandbox back with its files; its processes are started anew',
      tag,
      answer: sandboxSchema,
      handle: async (context) => {
        const { workspace, origin, params } = context
        await requireOwn(context, sandboxes)
        return sandboxes.view(await sandboxes.unarchive(workspace, params.sandboxName), origin)
      },
    }),
    route({
      method: 'DELETE',
      path: '/v0/sandboxes/{sandboxName}',
      access: 'deployed',
      errors: 'control',
      summary: 'Delete a sandbox, its files and its previews',
      tag,
      answer: sandboxSchema,
      handle: async (context) => {
        const { workspace, origin, params } = context
        await requireOwn(context, sandboxes)
        return sandboxes.view(await sandboxes.remove(workspace, params.sandboxName), origin)
      },
    }),
  ]
}

/** Who is noted as creator or last editor; of a workload, what it is of. */
export function actorOf({ principal }: Pick<RouteContext<unknown, unknown, unknown>, 'principal'>): string {
  if (principal?.kind === 'workload') return `${principal.resource.kind}:${principal.resource.name}`
  return principal?.name || principal?.id || ''
}

/** A workload changes only sandboxes that it made, it or another one of the same deployment. @throws forbidden, not_found */
export async function requireOwn(
  context: Pick<
    RouteContext<{ sandboxName: string }, unknown, unknown>,
    'principal' | 'workspace' | 'params'
  >,
  sandboxes: Pick<Sandboxes, 'get'>,
): Promise<void> {
  const { principal, workspace, params } = context
  if (principal?.kind !== 'workload') return
  const { body } = await sandboxes.get(workspace, params.sandboxName)
  const actor = actorOf(context)
  if (body.createdBy === actor) return
  throw new PlatformError(
    'forbidden',
    `the sandbox "${params.sandboxName}" was not created by ${actor}: workloads change and delete only their own`,
  )
}

/** Whether secrets are asked for, by an admin; who read them is logged. @throws forbidden when by someone else */
export function mayReadSecrets(
  context: Pick<
    RouteContext<unknown, { show_secrets?: boolean | undefined }, unknown>,
    'principal' | 'workspace' | 'query' | 'requestId'
  >,
  log: Logger,
  what: Record<string, string>,
): boolean {
  const { principal, workspace, query, requestId } = context
  if (!query.show_secrets) return false
  if (!principal || principal.kind === 'workload' || principal.role !== 'admin') {
    throw new PlatformError('forbidden', 'show_secrets is for admins of the workspace')
  }
  log.info('audit: secrets were read', { actor: principal.id, workspace, ...what, requestId })
  return true
}

function uploadAnswer(view: object, uploadUrl: string): Response {
  return Response.json(view, { headers: { [uploadUrlHeader]: uploadUrl } })
}
