import { z } from 'zod'
import { PlatformError } from '../../errors.ts'
import type { Workspace, Workspaces } from '../../workspaces/index.ts'
import { flag } from '../flag.ts'
import { type Route, route } from '../route.ts'

const workspaceBody = z.lazy(() =>
  z.object({
    name: z.string(),
    displayName: z.string().max(200).optional(),
    region: z.string().max(100).optional(),
    labels: z.record(z.string().max(100), z.string().max(1000)).nullish(),
  }),
)
const workspaceChange = z.lazy(() => workspaceBody.unwrap().partial())
const workspaceAnswer = z.lazy(() =>
  z.object({
    id: z.string(),
    name: z.string(),
    displayName: z.string(),
    labels: z.record(z.string(), z.string()),
    region: z.string().optional(),
    status: z.literal('ready'),
    createdAt: z.string(),
    updatedAt: z.string(),
    createdBy: z.string(),
    updatedBy: z.string(),
    /** Whose workspaces share images without being asked: who created them. */
    accountId: z.string(),
    resourceCounts: z.record(z.string(), z.number()).optional(),
  }),
)

export function workspaceRoutes(workspaces: Workspaces): Route[] {
  const shared = { errors: 'control', tag: 'workspaces' } as const
  return [
    route({
      ...shared,
      method: 'GET',
      path: '/v0/workspaces',
      access: 'account',
      summary: 'List the workspaces that the credential can act in',
      answer: z.array(workspaceAnswer),
      async handle({ principal }) {
        const names =
          principal!.kind === 'user' ? await workspaces.namesOf(principal!.id) : [principal!.workspace]
        return (await workspaces.list(names)).map((workspace) => toBody(workspace))
      },
    }),
    route({
      ...shared,
      method: 'POST',
      path: '/v0/workspaces',
      access: 'account',
      summary: 'Create a workspace, with the caller as its admin',
      body: workspaceBody,
      answer: workspaceAnswer,
      async handle({ body, principal }) {
        if (principal!.kind !== 'user') {
          throw new PlatformError(
            'forbidden',
            'Only users may create workspaces: a service account belongs to one',
          )
        }
        const { name, displayName, region, labels } = body
        const ownerSub = principal!.id
        return toBody(
          await workspaces.create({ name, displayName, region, labels: labels ?? undefined, ownerSub }),
        )
      },
    }),
    route({
      ...shared,
      method: 'POST',
      path: '/v0/workspaces/availability',
      access: 'account',
      summary: 'Say whether a workspace name is free',
      query: z.object({ withReason: flag }),
      body: z.object({ name: z.string() }),
      answer: z
        .union([z.boolean(), z.object({ available: z.boolean(), reason: z.string(), message: z.string() })])
        .meta({ description: 'Whether it is free; with withReason=true also why not' }),
      async handle({ body, query }) {
        const availability = await workspaces.availability(body.name)
        return query.withReason === true ? availability : Response.json(availability.available)
      },
    }),
    route({
      ...shared,
      method: 'GET',
      path: '/v0/workspaces/{workspaceName}',
      access: 'read',
      summary: 'Get a workspace',
      query: z.object({ countResources: flag }),
      answer: workspaceAnswer,
      async handle({ workspace, query }) {
        const found = toBody(await workspaces.get(workspace))
        if (query.countResources !== true) return found
        return { ...found, resourceCounts: await workspaces.counts(workspace) }
      },
    }),
    route({
      ...shared,
      method: 'PUT',
      path: '/v0/workspaces/{workspaceName}',
      access: 'admin',
      summary: "Update a workspace's display name and labels; its name never changes",
      body: workspaceChange,
      answer: workspaceAnswer,
      async handle({ workspace, body, principal }) {
        if (body.name !== undefined && body.name !== workspace) {
          throw new PlatformError('bad_request', `name: a workspace's name cannot change from "${workspace}"`)
        }
        const { displayName } = body
        const labels = body.labels === null ? {} : body.labels
        return toBody(await workspaces.update(workspace, { displayName, labels, updatedBy: principal!.id }))
      },
    }),
    route({
      ...shared,
      method: 'DELETE',
      path: '/v0/workspaces/{workspaceName}',
      access: 'admin',
      summary:
        'Delete a workspace that holds no resources any more; the only one of who asks with force=true',
      query: z.object({ force: flag }),
      answer: workspaceAnswer,
      handle: async ({ workspace, principal, query }) =>
        toBody(await workspaces.delete(workspace, query.force === true ? null : principal!.id)),
    }),
    route({
      ...shared,
      method: 'DELETE',
      path: '/v0/workspaces/{workspaceName}/leave',
      access: 'write',
      summary: 'Leave a workspace',
      answer: workspaceAnswer,
      async handle({ workspace, principal }) {
        if (principal!.kind !== 'user') {
          throw new PlatformError(
            'forbidden',
            'Only users may leave a workspace: delete the service account instead',
          )
        }
        const left = await workspaces.get(workspace)
        await workspaces.users.remove(workspace, principal!.id)
        return toBody(left)
      },
    }),
  ]
}

function toBody(workspace: Workspace): object {
  const { region, createdAt, updatedAt, ...rest } = workspace
  return {
    ...rest,
    ...(region !== '' && { region }),
    status: 'ready',
    accountId: workspace.createdBy,
    createdAt: new Date(createdAt).toISOString(),
    updatedAt: new Date(updatedAt).toISOString(),
  }
}
