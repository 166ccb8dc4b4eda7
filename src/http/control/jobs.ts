import { z } from 'zod'
import { executionSchema, type Jobs, taskDetailSchema, taskSchema } from '../../jobs/index.ts'
import { badRequest } from '../../lib/checks.ts'
import { listQuery, pagedListsVersion } from '../list.ts'
import { type Route, type RouteContext, route } from '../route.ts'

const limitDefault = 20
const offsetMax = 10_000
const keyCharsMax = 256
/** By which a client may send a request twice and have one execution. */
const keyHeader = 'idempotency-key'
/** Of the body: tasks, and what is around them. */
const requestBytesMax = 32 * 1024 * 1024

const requestSchema = z.lazy(() =>
  z.looseObject({
    tasks: z.array(z.record(z.string(), z.unknown())).nullish(),
    env: z.record(z.string(), z.union([z.string(), z.number(), z.boolean()])).nullish(),
    memory: z.number().int().nullish(),
    /** Chosen by the client. */
    executionId: z.string().nullish(),
    allowQueue: z.boolean().nullish(),
    /** Of this message: sent again with the same request, it is the same execution. */
    id: z.string().max(keyCharsMax).nullish(),
  }),
)

const startedSchema = z.lazy(() =>
  z.object({
    executionId: z.string(),
    id: z.string(),
    jobId: z.string(),
    tasks: z.array(z.record(z.string(), z.unknown())),
    workspaceId: z.string(),
  }),
)

const pageQuery = listQuery.pick({ limit: true, cursor: true, sort: true })
const page = z.lazy(() => z.object({ hasMore: z.boolean(), nextCursor: z.string() }))

/** Executions of jobs: begin, read, list and cancel, and their tasks. The jobs themselves are deployments. */
export function jobRoutes(jobs: Jobs): Route[] {
  const shared = { errors: 'control', tag: 'jobs' } as const
  const collection = '/v0/jobs/{jobId}/executions'
  const item = `${collection}/{executionId}`
  const start = {
    method: 'POST',
    access: 'deployed',
    body: requestSchema,
    bodyBytesMax: requestBytesMax,
    answer: startedSchema,
  } as const
  return [
    route({
      ...shared,
      ...start,
      path: collection,
      summary: 'Run a job: begin an execution of tasks, each a run of its program',
      handle: (context) => begin(jobs, context, context.params.jobId),
    }),
    // As the cloud has it: an address of the API without a version.
    route({
      ...shared,
      ...start,
      path: '/{workspace}/jobs/{jobId}/executions',
      summary: 'Run a job, by its own address',
      handle: (context) => begin(jobs, context, context.params.jobId),
    }),
    route({
      ...shared,
      method: 'GET',
      path: collection,
      access: 'read',
      summary: 'List the executions of a job, newest first',
      query: pageQuery.extend({ offset: z.coerce.number().int().min(0).max(offsetMax).optional() }),
      answer: z.lazy(() =>
        z.union([z.object({ data: z.array(executionSchema), meta: page }), z.array(executionSchema)]),
      ),
      async handle({ workspace, params, query, apiVersion }) {
        const { offset = 0 } = query
        const asked = (limit: number) => ({
          limit,
          cursor: query.cursor,
          sort: query.sort === 'createdAt:asc' ? ('oldest' as const) : ('newest' as const),
        })
        const limit = query.limit ?? limitDefault
        if (apiVersion >= pagedListsVersion)
          return pageOf(await jobs.list(workspace, params.jobId, asked(limit)))
        const { data } = await jobs.list(workspace, params.jobId, asked(Math.min(offset + limit, 1000)))
        return Response.json(data.slice(offset))
      },
    }),
    route({
      ...shared,
      method: 'GET',
      path: item,
      access: 'read',
      summary: 'Get an execution, with its first thousand tasks',
      answer: executionSchema,
      handle: ({ workspace, params }) => jobs.get(workspace, params.jobId, params.executionId),
    }),
    route({
      ...shared,
      method: 'DELETE',
      path: item,
      access: 'deployed',
      summary: 'Cancel an execution: what runs of it is ended, and nothing more of it begins',
      answer: executionSchema,
      handle: ({ workspace, params }) => jobs.cancel(workspace, params.jobId, params.executionId),
    }),
    route({
      ...shared,
      method: 'GET',
      path: `${item}/tasks`,
      access: 'read',
      summary: 'List the tasks of an execution, in their order',
      query: pageQuery,
      // Older versions of the API had no such list, so that it has one form.
      answer: z.lazy(() => z.object({ data: z.array(taskSchema), meta: page })),
      handle({ workspace, params, query }) {
        const { limit = limitDefault, cursor } = query
        return pageOf(jobs.tasks(workspace, params.jobId, params.executionId, { limit, cursor }))
      },
    }),
    route({
      ...shared,
      method: 'GET',
      path: `${item}/tasks/{taskName}`,
      access: 'read',
      summary: 'Get a task, with what it was given and the last lines that it wrote',
      answer: taskDetailSchema,
      handle: ({ workspace, params }) =>
        jobs.task(workspace, params.jobId, params.executionId, params.taskName),
    }),
  ]
}

async function begin(
  jobs: Jobs,
  { workspace, body, request }: RouteContext<unknown, unknown, z.output<typeof requestSchema>>,
  job: string,
): Promise<z.output<typeof startedSchema>> {
  const key = request.headers.get(keyHeader) ?? body.id ?? ''
  if (key.length > keyCharsMax)
    throw badRequest(`Idempotency-Key: ${key.length} characters long, at most ${keyCharsMax}`)
  const { executionId } = await jobs.start(workspace, job, body, {
    idempotency: key === '' ? undefined : { key },
  })
  return {
    executionId,
    id: body.id || executionId,
    jobId: job,
    tasks: body.tasks && body.tasks.length > 0 ? body.tasks : [{}],
    workspaceId: workspace,
  }
}

function pageOf({ data, nextCursor }: { data: object[]; nextCursor: string }): Response {
  return Response.json({ data, meta: { hasMore: nextCursor !== '', nextCursor } })
}
