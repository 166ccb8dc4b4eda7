import { z } from 'zod'
import type { ApiKey, ApiKeys, Principal } from '../../access/index.ts'
import { PlatformError } from '../../errors.ts'
import { type Route, route } from '../route.ts'

export const apiKeyInput = z
  .object({
    name: z.string().max(200).optional(),
    expires_in: z.string().max(40).optional(),
  })
  .prefault({})

export const apiKeyAnswer = z.lazy(() =>
  z.object({
    id: z.string(),
    name: z.string(),
    sub: z.string(),
    sub_type: z.enum(['user', 'service_account']),
    apiKey: z.string(),
    expires_in: z.string().optional(),
    expiresAt: z.string().optional(),
    lastUsedAt: z.string().optional(),
    createdAt: z.string(),
    updatedAt: z.string(),
    createdBy: z.string(),
  }),
)

/** Personal API keys. The cloud has no public path for them, so they live below `/-/`. */
export function apiKeyRoutes(keys: ApiKeys): Route[] {
  const shared = { errors: 'control', tag: 'api_keys', access: 'account' } as const
  return [
    route({
      ...shared,
      method: 'GET',
      path: '/-/api_keys',
      summary: "List the user's API keys",
      answer: z.array(apiKeyAnswer),
      handle: async ({ principal }) =>
        (await keys.list(ownerOf(principal))).map((apiKey) => apiKeyBody(apiKey)),
    }),
    route({
      ...shared,
      method: 'POST',
      path: '/-/api_keys',
      summary: 'Create an API key; the key itself is in this answer only',
      body: apiKeyInput,
      answer: apiKeyAnswer,
      async handle({ principal, body }) {
        const owner = ownerOf(principal)
        const { apiKey, key } = await keys.create({
          ...owner,
          subType: 'user',
          name: body.name,
          expiresIn: body.expires_in,
          createdBy: owner.sub,
        })
        return apiKeyBody(apiKey, key)
      },
    }),
    route({
      ...shared,
      method: 'DELETE',
      path: '/-/api_keys/{apiKeyId}',
      summary: 'Revoke an API key',
      async handle({ principal, params }) {
        await keys.revoke(ownerOf(principal), params.apiKeyId)
        return {}
      },
    }),
  ]
}

export function apiKeyBody(apiKey: ApiKey, key?: string): object {
  const { id, name, sub, subType, masked, expiresIn, expiresAt, lastUsedAt, createdBy } = apiKey
  return {
    id,
    name,
    sub,
    sub_type: subType,
    apiKey: key ?? masked,
    ...(expiresIn !== null && { expires_in: expiresIn }),
    ...(expiresAt !== null && { expiresAt: new Date(expiresAt).toISOString() }),
    ...(lastUsedAt !== null && { lastUsedAt: new Date(lastUsedAt).toISOString() }),
    createdAt: new Date(apiKey.createdAt).toISOString(),
    updatedAt: new Date(apiKey.updatedAt).toISOString(),
    createdBy,
  }
}

/** A service account must not outlive its revocation by making itself new keys: its admins make them. */
function ownerOf(principal: Principal | null): { sub: string; workspace: string } {
  if (principal?.kind !== 'user') {
    throw new PlatformError(
      'forbidden',
      'Only users have personal API keys: an admin manages those of service accounts',
    )
  }
  return { sub: principal.id, workspace: '' }
}
