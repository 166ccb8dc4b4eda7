import { z } from 'zod'
import { type Domains, domainInputSchema, domainSchema } from '../../domains/index.ts'
import { type Route, route } from '../route.ts'
import { actorOf } from './sandboxes.ts'

const shared = { errors: 'control', tag: 'customdomains' } as const

/** Domains of a workspace's own, for its applications. The list is a bare array in every version. */
export function domainRoutes(options: {
  domains: Domains
  /** @throws not_found */
  requireApplication(workspace: string, name: string): Promise<unknown>
}): Route[] {
  const { domains, requireApplication } = options
  return [
    route({
      ...shared,
      method: 'GET',
      path: '/v0/customdomains',
      access: 'read',
      summary: 'List custom domains, newest first',
      answer: z.array(domainSchema),
      handle: async ({ workspace, origin }) =>
        (await domains.list(workspace)).map((domain) => domains.view(domain, origin)),
    }),
    route({
      ...shared,
      method: 'POST',
      path: '/v0/customdomains',
      access: 'write',
      summary:
        'Register a domain; it can be used once its TXT record (spec.txtRecords) is there and was verified',
      body: domainInputSchema,
      answer: domainSchema,
      handle: async (context) => {
        const { workspace, origin, body } = context
        return domains.view(await domains.create(workspace, body, { actor: actorOf(context) }), origin)
      },
    }),
    route({
      ...shared,
      method: 'POST',
      path: '/v0/applications/{applicationName}/customdomains',
      access: 'write',
      summary: 'Register a domain that leads to this application once it was verified',
      body: domainInputSchema,
      answer: domainSchema,
      handle: async (context) => {
        const { workspace, origin, params, body } = context
        const application = params.applicationName
        await requireApplication(workspace, application)
        const options = { actor: actorOf(context), application }
        return domains.view(await domains.create(workspace, body, options), origin)
      },
    }),
    route({
      ...shared,
      method: 'GET',
      path: '/v0/customdomains/{domainName}',
      access: 'read',
      summary: 'Get a custom domain, with its status and the records that it is to have',
      answer: domainSchema,
      handle: async ({ workspace, origin, params }) =>
        domains.view(await domains.get(workspace, params.domainName), origin),
    }),
    route({
      ...shared,
      method: 'PUT',
      path: '/v0/customdomains/{domainName}',
      access: 'write',
      summary: 'Change what a custom domain is called and labelled with',
      body: domainInputSchema,
      answer: domainSchema,
      handle: async (context) => {
        const { workspace, origin, params, body } = context
        const options = { actor: actorOf(context) }
        return domains.view(await domains.update(workspace, params.domainName, body, options), origin)
      },
    }),
    route({
      ...shared,
      method: 'DELETE',
      path: '/v0/customdomains/{domainName}',
      access: 'write',
      summary: 'Delete a custom domain; refused while an application has an address there',
      answer: domainSchema,
      handle: async ({ workspace, origin, params }) =>
        domains.view(await domains.remove(workspace, params.domainName), origin),
    }),
    route({
      ...shared,
      method: 'POST',
      path: '/v0/customdomains/{domainName}/verify',
      access: 'write',
      summary: 'Look for the TXT record; spec.status and spec.verificationError say what came of it',
      answer: domainSchema,
      handle: async ({ workspace, origin, params }) =>
        domains.view(await domains.verify(workspace, params.domainName), origin),
    }),
  ]
}
