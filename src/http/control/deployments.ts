import { z } from 'zod'
import {
  applicationInputSchema,
  applicationRevisionSchema,
  applicationRevisionView,
  applicationSchema,
  applicationView,
  type DeploymentChange,
  type DeploymentKind,
  type Deployments,
  jobInputSchema,
  jobSchema,
  jobView,
  kindFacts,
  revisionSchema,
  revisionView,
  type StoredDeployment,
  workloadInputSchema,
  workloadSchema,
  workloadView,
} from '../../deployments/index.ts'
import { PlatformError } from '../../errors.ts'
import type { Logger } from '../../lib/log.ts'
import { flag } from '../flag.ts'
import { listAnswer, listQuery, listSchema } from '../list.ts'
import { type Route, type RouteContext, route } from '../route.ts'
import { actorOf, mayReadSecrets } from './sandboxes.ts'

/** Where the archive of the code is to be put; whoever asked with `?upload=true` reads it. */
const uploadUrlHeader = 'x-blaxel-upload-url'
/** The revision that a change made. */
const revisionHeader = 'x-hutch-revision'
const statusCharsMax = 400

interface DeploymentRouteOptions {
  deployments: Deployments
  log: Logger
}

/** Agents, functions, applications and jobs: create, read, change and delete, and what their revisions are. */
export function deploymentRoutes(options: DeploymentRouteOptions): Route[] {
  const workload = { input: workloadInputSchema, schema: workloadSchema, revision: revisionSchema }
  const application = {
    input: applicationInputSchema,
    schema: applicationSchema,
    revision: applicationRevisionSchema,
  }
  const job = { input: jobInputSchema, schema: jobSchema, revision: revisionSchema }
  return [
    ...routesOf('agent', '{agentName}', workload, options),
    ...routesOf('function', '{functionName}', workload, options),
    ...routesOf('application', '{applicationName}', application, options),
    ...routesOf('job', '{jobId}', job, options),
  ]
}

function routesOf(
  kind: DeploymentKind,
  parameter: string,
  schemas: { input: z.ZodType; schema: z.ZodType; revision: z.ZodType },
  { deployments, log }: DeploymentRouteOptions,
): Route[] {
  const { plural } = kindFacts[kind]
  const article = /^[aeiou]/.test(kind) ? `an ${kind}` : `a ${kind}`
  const shared = { errors: 'control', tag: plural } as const
  const collection = `/v0/${plural}`
  const item = `${collection}/${parameter}`
  const uploadQuery = z.object({ upload: flag })
  const nameOf = (params: unknown) => (params as Record<string, string>)[parameter.slice(1, -1)] ?? ''
  const viewOf = (
    deployment: StoredDeployment,
    origin: string,
    options: { showSecrets?: boolean; events?: boolean; revealed?: readonly string[] } = {},
  ) => {
    const shown = deployments.viewOptions(deployment, origin, options)
    if (kind === 'application') return applicationView(deployment, shown)
    return kind === 'job' ? jobView(deployment, shown) : workloadView(deployment, shown)
  }
  const answer = ({ deployment, revisionId, uploadUrl, revealed }: DeploymentChange, origin: string) =>
    Response.json(viewOf(deployment, origin, { revealed }), {
      headers: {
        ...(uploadUrl === null ? {} : { [uploadUrlHeader]: uploadUrl }),
        ...(revisionId === null ? {} : { [revisionHeader]: revisionId }),
      },
    })
  const asked = (context: Changing, name: string) => ({
    workspace: context.workspace,
    kind,
    name,
    input: context.body as z.output<typeof workloadInputSchema>,
    actor: actorOf(context),
    upload: context.query.upload === true,
    origin: context.origin,
  })
  return [
    route({
      ...shared,
      method: 'GET',
      path: collection,
      access: 'read',
      summary: `List ${plural}`,
      query: listQuery.extend({ status: z.string().max(statusCharsMax).optional() }),
      answer: z.lazy(() => listSchema(schemas.schema)),
      handle: (context) => {
        const { workspace, origin, query } = context
        const { status } = query
        return listAnswer(
          context,
          (page) => deployments.list(workspace, kind, { ...page, ...(status ? { status } : {}) }),
          (deployment) => viewOf(deployment, origin, { events: false }),
        )
      },
    }),
    route({
      ...shared,
      method: 'POST',
      path: collection,
      access: 'write',
      summary: `Create ${article} from an image, or with upload=true from code that is put to the address in ${uploadUrlHeader}`,
      query: uploadQuery,
      body: schemas.input,
      answer: schemas.schema,
      async handle(context) {
        const { metadata } = context.body as z.output<typeof workloadInputSchema>
        const name = metadata?.name
        if (!name) throw new PlatformError('bad_request', `metadata.name: missing: how the ${kind} is called`)
        return answer(await deployments.create(asked(context as Changing, name)), context.origin)
      },
    }),
    route({
      ...shared,
      method: 'GET',
      path: item,
      access: 'read',
      summary: `Get ${article}; show_secrets (admins only) unmasks its environment`,
      query: z.object({ show_secrets: flag }),
      answer: schemas.schema,
      async handle(context) {
        const name = nameOf(context.params)
        const showSecrets = mayReadSecrets(context, log, { [kind]: name })
        return viewOf(await deployments.get(context.workspace, kind, name), context.origin, { showSecrets })
      },
    }),
    route({
      ...shared,
      method: 'PUT',
      path: item,
      access: 'write',
      summary: `Change ${article}: what a revision holds makes a new one, which gets the requests once it is ready; revision moves them, enabled=false deactivates`,
      query: uploadQuery,
      body: schemas.input,
      answer: schemas.schema,
      handle: async (context) =>
        answer(await deployments.update(asked(context as Changing, nameOf(context.params))), context.origin),
    }),
    route({
      ...shared,
      method: 'DELETE',
      path: item,
      access: 'write',
      summary: `Delete ${article} with its revisions and the images that were built for them`,
      answer: schemas.schema,
      handle: async ({ workspace, origin, params }) =>
        viewOf(await deployments.remove(workspace, kind, nameOf(params)), origin),
    }),
    route({
      ...shared,
      method: 'GET',
      path: `${item}/revisions`,
      access: 'read',
      summary: `List the revisions of ${article}, newest first`,
      answer: z.array(schemas.revision),
      async handle({ workspace, params }) {
        const { deployment, revisions } = await deployments.revisions(workspace, kind, nameOf(params))
        return revisions.map((revision) =>
          kind === 'application'
            ? applicationRevisionView(revision)
            : revisionView(deployment.body, revision),
        )
      },
    }),
  ]
}

type Changing = RouteContext<unknown, { upload?: boolean }, unknown>
