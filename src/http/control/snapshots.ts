import { z } from 'zod'
import type { ApplicationForks } from '../../deployments/index.ts'
import { PlatformError } from '../../errors.ts'
import {
  type ForkInput,
  forkAnswerSchema,
  forkInputSchema,
  restoreAnswerSchema,
  type Sandboxes,
  type SnapshotBody,
  type Snapshots,
  sandboxSnapshotInputSchema,
  snapshotInputSchema,
  snapshotSchema,
} from '../../sandboxes/index.ts'
import type { Resource } from '../../spec/store.ts'
import { listAnswer, listQuery, listSchema } from '../list.ts'
import { type Route, type RouteContext, route } from '../route.ts'
import { actorOf, requireOwn } from './sandboxes.ts'

const tag = 'snapshots'
const noContent = () => new Response(null, { status: 204 })

/**
 * Files of sandboxes as they were at one moment, and what is made of them. Wherever a snapshot is named in a path, its
 * name will do as well as its id.
 */
export function snapshotRoutes(options: SnapshotRoutesOptions): Route[] {
  return [...ofSandboxes(options), ...ofWorkspaces(options)]
}

interface SnapshotRoutesOptions {
  snapshots: Snapshots
  sandboxes: Pick<Sandboxes, 'get'>
  applications: ApplicationForks
}

function ofSandboxes({ snapshots, sandboxes, applications }: SnapshotRoutesOptions): Route[] {
  const shared = { errors: 'control', tag } as const
  return [
    route({
      ...shared,
      method: 'GET',
      path: '/v0/sandboxes/{sandboxName}/snapshots',
      access: 'read',
      summary: 'List the snapshots of a sandbox, newest first',
      answer: z.array(snapshotSchema),
      handle: async ({ workspace, params }) => {
        const found = await snapshots.ofSandbox(workspace, params.sandboxName)
        return await Promise.all(found.map((snapshot) => snapshots.view(snapshot)))
      },
    }),
    route({
      ...shared,
      method: 'POST',
      path: '/v0/sandboxes/{sandboxName}/snapshots',
      access: 'deployed',
      summary:
        'Take a snapshot of a sandbox that runs, rests or is archived: its files as they are at one moment, what it is, and which commands run; with CRIU on the host also the memory of its programs, which then go on in what is made from it, else those commands are started anew',
      body: sandboxSnapshotInputSchema.default({}),
      answer: snapshotSchema,
      handle: async (context) => {
        const { workspace, params, body } = context
        const wanted = { actor: actorOf(context), ...(body.name ? { name: body.name } : {}) }
        return await snapshots.view(await snapshots.create(workspace, params.sandboxName, wanted))
      },
    }),
    route({
      ...shared,
      method: 'DELETE',
      path: '/v0/sandboxes/{sandboxName}/snapshots/{snapshotId}',
      access: 'deployed',
      summary: 'Delete a snapshot of a sandbox',
      successStatus: 204,
      handle: async ({ workspace, params }) => {
        await snapshots.remove(await snapshots.get(workspace, params.snapshotId, params.sandboxName))
        return noContent()
      },
    }),
    route({
      ...shared,
      method: 'POST',
      path: '/v0/sandboxes/{sandboxName}/snapshots/{snapshotId}/restore',
      access: 'deployed',
      summary:
        'Make a sandbox what it was at one of its snapshots: files, image, memory, storage, environment and ports. What it held since is lost; name, previews and policies stay. Programs go on with the memory that the snapshot has of them, else commands that ran then are started anew',
      answer: restoreAnswerSchema,
      handle: async (context) => {
        const { workspace, params } = context
        const { sandboxName: name, snapshotId } = params
        await requireOwn(context, sandboxes)
        const snapshot = await snapshots.restore(workspace, name, snapshotId, { actor: actorOf(context) })
        return { name, snapshotId: snapshot.body.id }
      },
    }),
    route({
      ...shared,
      method: 'POST',
      path: '/v0/sandboxes/{sandboxName}/fork',
      access: 'workload',
      summary:
        'Make a new sandbox from one as it is, or from a snapshot of it: with its files, image, memory, storage, environment, ports and network rules. Programs go on with their memory where CRIU on the host kept it, else commands that ran are started anew. targetType application makes one, or a revision of it, whose program they are',
      body: forkInputSchema,
      answer: forkAnswerSchema,
      handle: (context) => {
        const { workspace, params, body, origin } = context
        const actor = actorOf(context)
        if (isForApplication(context))
          return applications.fork(workspace, params.sandboxName, body, { actor, origin })
        return snapshots.forkSandbox(workspace, params.sandboxName, body, { actor })
      },
    }),
  ]
}

/** What is deployed is for people to decide. @throws forbidden */
function isForApplication({ body, principal }: RouteContext<unknown, unknown, ForkInput>): boolean {
  if ((body.targetType || body.type) !== 'application') return false
  if (principal?.kind !== 'workload') return true
  throw new PlatformError('forbidden', 'Workloads may not deploy applications')
}

function ofWorkspaces({ snapshots, applications }: SnapshotRoutesOptions): Route[] {
  const shared = { errors: 'control', tag } as const
  return [
    route({
      ...shared,
      method: 'GET',
      path: '/v0/snapshots',
      access: 'read',
      summary: 'List the snapshots of the workspace, also those whose sandbox is gone',
      query: listQuery,
      answer: z.lazy(() => listSchema(snapshotSchema)),
      handle: async (context) => {
        const views = new Map<string, object>()
        return await listAnswer<SnapshotBody>(
          context,
          async (query) => {
            const page = await snapshots.list(context.workspace, query)
            for (const snapshot of page.data) views.set(snapshot.id, await snapshots.view(snapshot))
            return page
          },
          ({ id }: Resource<SnapshotBody>) => views.get(id) ?? {},
        )
      },
    }),
    route({
      ...shared,
      method: 'POST',
      path: '/v0/snapshots',
      access: 'deployed',
      summary:
        'Take a snapshot of a sandbox: files, definition, running commands, and memory where the host can keep it',
      body: snapshotInputSchema,
      answer: snapshotSchema,
      handle: async (context) => {
        const { workspace, body } = context
        const wanted = { actor: actorOf(context), ...(body.name ? { name: body.name } : {}) }
        return await snapshots.view(await snapshots.create(workspace, body.source.name, wanted))
      },
    }),
    route({
      ...shared,
      method: 'GET',
      path: '/v0/snapshots/{snapshotName}',
      access: 'read',
      summary: 'Get a snapshot',
      answer: snapshotSchema,
      handle: async ({ workspace, params }) =>
        await snapshots.view(await snapshots.get(workspace, params.snapshotName)),
    }),
    route({
      ...shared,
      method: 'DELETE',
      path: '/v0/snapshots/{snapshotName}',
      access: 'deployed',
      summary: 'Delete a snapshot',
      successStatus: 204,
      handle: async ({ workspace, params }) => {
        await snapshots.remove(await snapshots.get(workspace, params.snapshotName))
        return noContent()
      },
    }),
    route({
      ...shared,
      method: 'POST',
      path: '/v0/snapshots/{snapshotName}/fork',
      access: 'workload',
      summary:
        'Make a new sandbox from a snapshot, also of a sandbox that is gone, or with targetType application one of those. Commands that ran then are started anew',
      body: forkInputSchema,
      answer: forkAnswerSchema,
      handle: async (context) => {
        const { workspace, params, body, origin } = context
        const actor = actorOf(context)
        const snapshot = await snapshots.get(workspace, params.snapshotName)
        return isForApplication(context)
          ? await applications.fork(workspace, snapshot, body, { actor, origin })
          : await snapshots.fork(snapshot, body, { actor })
      },
    }),
  ]
}
