import { z } from 'zod'
import type { Principal } from '../../access/index.ts'
import {
  type Previews,
  previewInputSchema,
  previewSchema,
  previewTokenInputSchema,
  previewTokenSchema,
} from '../../sandboxes/index.ts'
import { flag } from '../flag.ts'
import { type Route, route } from '../route.ts'
import { actorOf } from './sandboxes.ts'

const tag = 'previews'

/** Previews of sandboxes and their tokens. Lists are bare arrays in every version. */
export function previewRoutes(options: { previews: Previews }): Route[] {
  const { previews } = options
  return [
    route({
      method: 'GET',
      path: '/v0/sandboxes/{sandboxName}/previews',
      access: 'read',
      errors: 'control',
      summary: 'List the previews of a sandbox',
      tag,
      answer: z.array(previewSchema),
      handle: async ({ workspace, origin, params, principal }) => {
        const found = await previews.list(workspace, params.sandboxName)
        return found.map((preview) => previews.view(preview, origin, readable(principal)))
      },
    }),
    route({
      method: 'POST',
      path: '/v0/sandboxes/{sandboxName}/previews',
      access: 'deployed',
      errors: 'control',
      summary: 'Create a preview; force replaces one of the same name or custom domain',
      tag,
      query: z.object({ force: flag }),
      body: previewInputSchema,
      answer: previewSchema,
      handle: async (context) => {
        const { workspace, origin, params, query, body } = context
        const preview = await previews.create(workspace, params.sandboxName, body, {
          actor: actorOf(context),
          force: query.force === true,
        })
        return previews.view(preview, origin, { requestHeaders: true })
      },
    }),
    route({
      method: 'GET',
      path: '/v0/sandboxes/{sandboxName}/previews/{previewName}',
      access: 'read',
      errors: 'control',
      summary: 'Get a preview',
      tag,
      answer: previewSchema,
      handle: async ({ workspace, origin, params, principal }) =>
        previews.view(
          await previews.get(workspace, params.sandboxName, params.previewName),
          origin,
          readable(principal),
        ),
    }),
    route({
      method: 'PUT',
      path: '/v0/sandboxes/{sandboxName}/previews/{previewName}',
      access: 'deployed',
      errors: 'control',
      summary: 'Replace the spec of a preview; its address and its tokens stay',
      tag,
      body: previewInputSchema,
      answer: previewSchema,
      handle: async (context) => {
        const { workspace, origin, params, body } = context
        const preview = await previews.update(workspace, params.sandboxName, params.previewName, body, {
          actor: actorOf(context),
        })
        return previews.view(preview, origin, readable(context.principal))
      },
    }),
    route({
      method: 'DELETE',
      path: '/v0/sandboxes/{sandboxName}/previews/{previewName}',
      access: 'deployed',
      errors: 'control',
      summary: 'Delete a preview; it answers nobody from then on',
      tag,
      answer: previewSchema,
      handle: async ({ workspace, origin, params, principal }) =>
        previews.view(await previews.remove(workspace, params.sandboxName, params.previewName), origin, {
          ...readable(principal),
          status: 'TERMINATED',
        }),
    }),
    route({
      method: 'GET',
      path: '/v0/sandboxes/{sandboxName}/previews/{previewName}/tokens',
      access: 'deployed',
      errors: 'control',
      summary: 'List the tokens of a preview, with their values',
      tag,
      answer: z.array(previewTokenSchema),
      handle: ({ workspace, params }) =>
        previews.listTokens(workspace, params.sandboxName, params.previewName),
    }),
    route({
      method: 'POST',
      path: '/v0/sandboxes/{sandboxName}/previews/{previewName}/tokens',
      access: 'deployed',
      errors: 'control',
      summary: 'Create a token that opens a preview',
      tag,
      body: previewTokenInputSchema,
      answer: previewTokenSchema,
      handle: ({ workspace, params, body }) =>
        previews.createToken(workspace, params.sandboxName, params.previewName, body),
    }),
    route({
      method: 'DELETE',
      path: '/v0/sandboxes/{sandboxName}/previews/{previewName}/tokens/{token}',
      access: 'deployed',
      errors: 'control',
      summary: 'Delete a token, named by its value',
      tag,
      answer: z.object({ message: z.string() }),
      handle: async ({ workspace, params }) => {
        await previews.removeToken(workspace, params.sandboxName, params.previewName, params.token)
        return { message: 'Token deleted' }
      },
    }),
  ]
}

/** Request headers often authenticate to the program inside: workloads read no secrets. */
function readable(principal: Principal | null): { requestHeaders: boolean } {
  return { requestHeaders: principal !== null && principal.kind !== 'workload' }
}
