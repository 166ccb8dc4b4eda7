/** What the Python package `xpander-sdk` calls, which is another API than the documented one. */
import { z } from 'zod'
import { type Principal, workspacesOf } from '../../../access/index.ts'
import { PlatformError } from '../../../errors.ts'
import type { Json, JsonObject, Thread, TurnReport } from '../../../threads/index.ts'
import { type Route, route } from '../../route.ts'
import { checkVersion, versionNumber } from './agents.ts'
import type { XpanderOptions } from './index.ts'
import { newTurn } from './invocations.ts'
import { callerOf, invocationBytesMax, shared } from './route-parts.ts'
import {
  externalTaskSchema,
  invocationSchema,
  metricsSchema,
  pageQuery,
  pushedEventsSchema,
  taskFilters,
  updateSchema,
  versionAsked,
} from './schema.ts'
import { taskStream } from './streams.ts'
import { filterOf } from './tasks.ts'
import { activityView, agentItem, agentView, taskItem, taskView } from './view.ts'

const versionHeader = 'x-agent-version'
/** Of a list without pages. */
const itemsMax = 200
const updateBytesMax = 8 * 1024 * 1024

const listQuery = z.object({
  page: pageQuery.shape.page,
  per_page: z.coerce.number().int().min(1).max(itemsMax).default(itemsMax),
  ...taskFilters.shape,
})

/** Of what the SDK sends back of a task, what its program can have changed. */
const reportedNames = [
  ...['last_executed_node_id', 'tokens', 'used_tools', 'duration', 'sub_executions', 'deep_planning'],
  ...['hitl_request', 'pending_eca_request', 'used_mutating_tools', 'payload_extension'],
]

export function sdkRoutes(options: XpanderOptions): Route[] {
  const { agents, threads, callbacks, access } = options
  /** Whoever does a task gets what only the program is to read. */
  const view = (thread: Thread, isItsProgram: boolean) =>
    taskView(thread, isItsProgram ? threads.tokensOf(thread) : {})
  const list = async (workspace: string, query: z.output<typeof listQuery>) => {
    const { page, per_page } = query
    const offset = (page - 1) * per_page
    const { items } = await threads.list(workspace, filterOf(query), { offset, limit: per_page })
    return Response.json(items.map(taskItem))
  }
  return [
    route({
      ...shared,
      method: 'GET',
      path: '/agents/list',
      access: 'read',
      summary: 'List agents',
      handle: async ({ workspace }) =>
        Response.json((await agents.list(workspace)).map((agent) => agentItem(agent, workspace))),
    }),
    route({
      ...shared,
      method: 'GET',
      path: '/agents/{agentId}',
      access: 'read',
      summary: 'Get an agent',
      async handle({ workspace, params, request, origin }) {
        const agent = await agents.require(workspace, params.agentId)
        const asked = versionAsked(request.headers.get(versionHeader))
        checkVersion(agent, asked)
        const version = Number(asked) || versionNumber(agent)
        return agentView(agent, workspace, { origin, version })
      },
    }),
    route({
      ...shared,
      method: 'GET',
      path: '/agents/{agentId}/streaming_spec',
      access: 'read',
      summary: 'Say where the program of an agent streams by itself: nowhere',
      async handle({ workspace, params }) {
        await agents.require(workspace, params.agentId)
        return { url: null, api_key: null }
      },
    }),
    route({
      ...shared,
      method: 'POST',
      path: '/metadata/api_key_allowance',
      access: 'deployed',
      summary: 'Say which agents a key may call, for programs that are called themselves',
      body: z.object({ api_key: z.string().min(1).max(4096) }),
      async handle({ workspace, body }) {
        const identity = await Promise.resolve(access.authenticate(body.api_key)).catch(() => null)
        const reaches = identity !== null && workspacesOf(identity).includes(workspace)
        const ids = reaches ? (await agents.list(workspace)).map(({ id }) => id) : []
        return { api_key: body.api_key, agent_ids: ids }
      },
    }),
    route({
      ...shared,
      method: 'POST',
      path: '/agent-execution/{id}',
      access: 'read',
      summary: 'Create a task of an agent, or continue one',
      body: invocationSchema,
      bodyBytesMax: invocationBytesMax,
      async handle(context) {
        const { workspace, params, request, body } = context
        const agent = await agents.require(workspace, params.id)
        const version = request.headers.get(versionHeader) ?? undefined
        checkVersion(agent, version)
        const turn = await newTurn(agent.id, body, callerOf(context), { callbacks, version, source: 'sdk' })
        const { thread } = await threads.begin(turn)
        return view(thread, body.run_locally === true)
      },
    }),
    route({
      ...shared,
      method: 'DELETE',
      path: '/agent-execution/{id}',
      access: 'deployed',
      summary: 'Stop a task',
      handle: async ({ workspace, params }) => taskView(await threads.stop(workspace, params.id)),
    }),
    route({
      ...shared,
      method: 'GET',
      path: '/agent-execution/{id}/status',
      access: 'read',
      summary: 'Get a task',
      handle: async ({ workspace, params }) => taskView(await threads.get(workspace, params.id)),
    }),
    route({
      ...shared,
      method: 'PATCH',
      path: '/agent-execution/{id}/update',
      access: 'deployed',
      summary: 'Say how far a task is, or how it ended',
      body: updateSchema,
      bodyBytesMax: updateBytesMax,
      async handle({ workspace, params, body, principal }) {
        const { body: before } = await threads.get(workspace, params.id)
        requireOwn(principal, before.agentId)
        return view(await threads.report(workspace, params.id, reportOf(body)), true)
      },
    }),
    route({
      ...shared,
      method: 'POST',
      path: '/agent-execution/{id}/report_task',
      access: 'deployed',
      summary: 'Keep a task that was done elsewhere',
      body: externalTaskSchema,
      async handle({ workspace, params, body, principal }) {
        const agent = await agents.require(workspace, params.id)
        requireOwn(principal, agent.id)
        const { thread } = await threads.begin({
          workspace,
          agentId: agent.id,
          ...(body.id ? { id: body.id } : {}),
          input: { text: body.input ?? '', files: [], user: null },
          options: { run_locally: true },
          source: 'sdk',
        })
        const { tokens, duration, used_tools } = body
        const done = await threads.report(workspace, thread.name, {
          status: body.is_success === false ? 'failed' : 'completed',
          result: body.result ?? '',
          reported: { tokens: tokens ?? null, duration: duration ?? 0, used_tools: used_tools ?? [] },
        })
        return taskView(done)
      },
    }),
    route({
      ...shared,
      method: 'POST',
      path: '/agent-execution/{id}/events/push',
      access: 'deployed',
      summary: 'Tell what the program of a task does',
      body: pushedEventsSchema,
      async handle({ workspace, params, body, principal }) {
        requireOwn(principal, (await threads.get(workspace, params.id)).body.agentId)
        for (const { type, data } of body) {
          await threads.happened(workspace, params.id, type, (data ?? null) as Json)
        }
        return {}
      },
    }),
    ...(['/agent-execution/{id}/events', '/{organization}/agent-execution/{id}/events'] as const).map(
      (path) =>
        route({
          ...shared,
          method: 'GET',
          path,
          workspaceHint: (given: object) => ('organization' in given ? String(given.organization) : null),
          access: 'read',
          summary: 'Follow a task as events',
          async handle({ workspace, params, request }) {
            const { id } = params as { id: string }
            const gone = new AbortController()
            const events = threads.watch(workspace, id, AbortSignal.any([gone.signal, request.signal]))
            try {
              return taskStream(threads, { thread: await threads.get(workspace, id), events }, gone)
            } catch (error) {
              gone.abort()
              throw error
            }
          },
        }),
    ),
    route({
      ...shared,
      method: 'GET',
      path: '/agent-execution/executions/history/{agentId}',
      access: 'read',
      summary: 'List the tasks of an agent',
      query: listQuery,
      handle: ({ workspace, params, query }) => list(workspace, { ...query, agent_id: params.agentId }),
    }),
    route({
      ...shared,
      method: 'GET',
      path: '/agent-execution/executions/history/user/{userId}',
      access: 'read',
      summary: 'List the tasks of a user',
      query: listQuery,
      handle: ({ workspace, params, query }) => list(workspace, { ...query, user_id: params.userId }),
    }),
    route({
      ...shared,
      method: 'GET',
      path: '/activity/{agentId}/{taskId}',
      access: 'read',
      summary: 'Get what was said and done in a task',
      async handle({ workspace, params }) {
        const thread = await threads.get(workspace, params.taskId)
        if (thread.body.agentId !== params.agentId) {
          throw new PlatformError(
            'not_found',
            `the task is none of the agent "${params.agentId.slice(0, 80)}"`,
          )
        }
        return activityView(thread, await threads.entries(workspace, params.taskId))
      },
    }),
    route({
      ...shared,
      method: 'POST',
      path: '/agents-metrics/{agentId}/execution',
      access: 'deployed',
      summary: 'Say what a task has cost',
      body: metricsSchema,
      async handle({ workspace, body, principal }) {
        requireOwn(principal, (await threads.get(workspace, body.execution_id)).body.agentId)
        const tokens = (body.llm_tokens?.worker ?? null) as Json
        await threads.measured(workspace, body.execution_id, {
          ...(tokens === null ? {} : { tokens }),
          ...(body.ai_model ? { ai_model: body.ai_model } : {}),
        })
        return {}
      },
    }),
  ]
}

/** What is deployed speaks for itself alone. @throws forbidden */
function requireOwn(principal: Principal | null, agentId: string): void {
  if (principal?.kind !== 'workload' || principal.resource.name === agentId) return
  throw new PlatformError(
    'forbidden',
    `what is deployed as "${principal.resource.name}" does not do this work`,
  )
}

function reportOf(body: z.output<typeof updateSchema>): TurnReport {
  const { status, result, internal_status, title, execution_attempts: lease } = body
  const given = { ...body, payload_extension: body.payload_extension ?? body.tool_call_payload_extension }
  const reported: JsonObject = {}
  for (const name of reportedNames) {
    const value = (given as Record<string, unknown>)[name]
    if (value !== undefined && value !== null) reported[name] = value as Json
  }
  return {
    ...(status ? { status } : {}),
    ...(result === undefined ? {} : { result }),
    ...(internal_status === undefined ? {} : { internalStatus: internal_status }),
    ...(title === undefined ? {} : { title }),
    ...(lease == null ? {} : { lease }),
    reported,
  }
}
