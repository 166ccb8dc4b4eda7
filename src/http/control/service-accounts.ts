import { z } from 'zod'
import type { Access, ServiceAccount } from '../../access/index.ts'
import { type Route, route } from '../route.ts'
import { apiKeyAnswer, apiKeyBody, apiKeyInput } from './api-keys.ts'

const role = z.enum(['admin', 'member'])
const accountInput = z.object({
  name: z.string().min(1).max(200),
  description: z.string().max(1000).optional(),
  role: role.optional(),
})
const accountAnswer = z.lazy(() =>
  z.object({
    client_id: z.string(),
    name: z.string(),
    description: z.string(),
    role,
    created_at: z.string(),
    updated_at: z.string(),
  }),
)
const createdAnswer = z.lazy(() => accountAnswer.unwrap().extend({ client_secret: z.string() }))

export function serviceAccountRoutes({
  serviceAccounts,
  keys,
}: Pick<Access, 'serviceAccounts' | 'keys'>): Route[] {
  const shared = { errors: 'control', tag: 'service_accounts' } as const
  return [
    route({
      ...shared,
      method: 'GET',
      path: '/v0/service_accounts',
      access: 'write',
      summary: 'List the service accounts of the workspace',
      answer: z.array(accountAnswer),
      handle: async ({ workspace }) => (await serviceAccounts.list(workspace)).map(toBody),
    }),
    route({
      ...shared,
      method: 'POST',
      path: '/v0/service_accounts',
      access: 'admin',
      summary: 'Create a service account; its secret is in this answer only',
      body: accountInput,
      answer: createdAnswer,
      async handle({ workspace, body }) {
        const { account, clientSecret } = await serviceAccounts.create(workspace, body)
        return { ...toBody(account), client_secret: clientSecret }
      },
    }),
    route({
      ...shared,
      method: 'PUT',
      path: '/v0/service_accounts/{clientId}',
      access: 'admin',
      summary: "Update a service account's name, description or role",
      body: accountInput.partial(),
      answer: accountAnswer,
      handle: async ({ workspace, params, body }) =>
        toBody(await serviceAccounts.update(workspace, params.clientId, body)),
    }),
    route({
      ...shared,
      method: 'DELETE',
      path: '/v0/service_accounts/{clientId}',
      access: 'admin',
      summary: 'Delete a service account with all its credentials',
      answer: accountAnswer,
      handle: async ({ workspace, params }) =>
        toBody(await serviceAccounts.delete(workspace, params.clientId)),
    }),
    route({
      ...shared,
      method: 'GET',
      path: '/v0/service_accounts/{clientId}/api_keys',
      access: 'admin',
      summary: "List a service account's API keys",
      answer: z.array(apiKeyAnswer),
      async handle({ workspace, params }) {
        const { clientId } = await serviceAccounts.get(workspace, params.clientId)
        return (await keys.list({ sub: clientId, workspace })).map((apiKey) => apiKeyBody(apiKey))
      },
    }),
    route({
      ...shared,
      method: 'POST',
      path: '/v0/service_accounts/{clientId}/api_keys',
      access: 'admin',
      summary: 'Create an API key for a service account; the key itself is in this answer only',
      body: apiKeyInput,
      answer: apiKeyAnswer,
      async handle({ workspace, params, body, principal }) {
        const { clientId } = await serviceAccounts.get(workspace, params.clientId)
        const { apiKey, key } = await keys.create({
          sub: clientId,
          subType: 'service_account',
          workspace,
          name: body.name,
          expiresIn: body.expires_in,
          createdBy: principal!.id,
        })
        return apiKeyBody(apiKey, key)
      },
    }),
    route({
      ...shared,
      method: 'DELETE',
      path: '/v0/service_accounts/{clientId}/api_keys/{apiKeyId}',
      access: 'admin',
      summary: "Revoke a service account's API key",
      answer: z.object({}),
      async handle({ workspace, params }) {
        await keys.revoke({ sub: params.clientId, workspace }, params.apiKeyId)
        return {}
      },
    }),
  ]
}

function toBody({ clientId, name, description, role, createdAt, updatedAt }: ServiceAccount): object {
  return {
    client_id: clientId,
    name,
    description,
    role,
    created_at: new Date(createdAt).toISOString(),
    updated_at: new Date(updatedAt).toISOString(),
  }
}
