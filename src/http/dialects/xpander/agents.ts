import { z } from 'zod'
import { numberOf, revisionOf, versionOf } from '../../../deployments/index.ts'
import { PlatformError } from '../../../errors.ts'
import { type Agent, begunTurn, type NewTurn } from '../../../threads/index.ts'
import { type Route, route } from '../../route.ts'
import type { XpanderOptions } from './index.ts'
import { endOf, newTurn } from './invocations.ts'
import { callerOf, invocationBytesMax, pageOf, shared } from './route-parts.ts'
import { type Invocation, invocationSchema, pageQuery, taskFilters, versionQuery } from './schema.ts'
import { taskStream } from './streams.ts'
import { listTasks } from './tasks.ts'
import { agentItem, agentView, taskView } from './view.ts'

const answer = z.looseObject({ id: z.string() })

/** Agents, and turns that are begun with them. */
export function agentRoutes(options: XpanderOptions): Route[] {
  const { agents, threads, callbacks } = options
  /** @throws not_found, bad_request */
  const turnOf = async (
    context: Parameters<typeof callerOf>[0] & { params: { agentId: string } },
    body: Invocation,
    version: string | undefined,
  ): Promise<NewTurn> => {
    const agent = await agents.require(context.workspace, context.params.agentId)
    checkVersion(agent, version)
    return await newTurn(agent.id, body, callerOf(context), { callbacks, version, source: 'api' })
  }
  /** No more than is needed to wait for it: what was asked may be large. */
  const begin = async (...asked: Parameters<typeof turnOf>) =>
    begunTurn((await threads.begin(await turnOf(...asked))).thread)
  const invocation = {
    ...shared,
    method: 'POST',
    access: 'read',
    query: versionQuery,
    body: invocationSchema,
    bodyBytesMax: invocationBytesMax,
    answer,
  } as const
  return [
    route({
      ...shared,
      method: 'GET',
      path: '/v1/agents',
      access: 'read',
      summary: 'List agents, the newest first',
      query: pageQuery,
      async handle({ workspace, query }) {
        const found = await agents.list(workspace)
        const from = (query.page - 1) * query.per_page
        const items = found.slice(from, from + query.per_page).map((agent) => agentItem(agent, workspace))
        return pageOf(items, found.length, query)
      },
    }),
    route({
      ...shared,
      method: 'GET',
      path: '/v1/agents/{agentId}',
      access: 'read',
      summary: 'Get an agent',
      async handle({ workspace, params, origin }) {
        const agent = await agents.require(workspace, params.agentId)
        return agentView(agent, workspace, { origin, version: versionNumber(agent) })
      },
    }),
    route({
      ...shared,
      method: 'DELETE',
      path: '/v1/agents/{agentId}',
      access: 'write',
      summary: 'Forget an agent that only has workers',
      async handle({ workspace, params }) {
        const agent = await agents.require(workspace, params.agentId)
        if (agent.deployment !== null) {
          throw new PlatformError('conflict', `the agent "${agent.id}" is deployed: delete its deployment`)
        }
        await agents.forget(workspace, agent.id)
        return new Response(null, { status: 204 })
      },
    }),
    route({
      ...shared,
      method: 'GET',
      path: '/v1/agents/{agentId}/tasks',
      access: 'read',
      summary: 'List the tasks of an agent',
      query: pageQuery.extend(taskFilters.omit({ agent_id: true }).shape),
      async handle({ workspace, params, query }) {
        const agent = await agents.require(workspace, params.agentId)
        return await listTasks(threads, workspace, { ...query, agent_id: agent.id })
      },
    }),
    route({
      ...invocation,
      path: '/v1/agents/{agentId}/invoke',
      summary: 'Invoke an agent, and wait for what it answers',
      async handle(context) {
        const begun = await begin(context, context.body, context.query.version)
        context.whole.used()
        return taskView(await endOf(threads, begun, context.request.signal))
      },
    }),
    route({
      ...invocation,
      path: '/v1/agents/{agentId}/invoke/async',
      summary: 'Invoke an agent, and ask for its answer later',
      async handle(context) {
        const { thread } = await threads.begin(await turnOf(context, context.body, context.query.version))
        return taskView(thread)
      },
    }),
    route({
      ...invocation,
      path: '/v1/agents/{agentId}/invoke/stream',
      summary: 'Invoke an agent, and follow it as events',
      async handle(context) {
        const gone = new AbortController()
        const watch = AbortSignal.any([gone.signal, context.request.signal])
        try {
          const turn = await turnOf(context, context.body, context.query.version)
          return taskStream(threads, await threads.begin({ ...turn, watch }), gone)
        } catch (error) {
          gone.abort()
          throw error
        }
      },
    }),
  ]
}

/** @throws bad_request for a version that there is not */
export function checkVersion({ deployment }: Agent, version: string | undefined): void {
  if (version !== undefined && deployment !== null) versionOf(deployment.body, version)
}

/** Of the revision that serves; 1 for what has none. */
export function versionNumber({ deployment }: Agent): number {
  if (deployment === null) return 1
  const { body } = deployment
  const serving = revisionOf(body, body.traffic.active) ?? body.revisions.at(-1)
  return serving === undefined ? 1 : numberOf(body, serving)
}
