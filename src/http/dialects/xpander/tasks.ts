import type { z } from 'zod'
import { PlatformError } from '../../../errors.ts'
import type { Threads } from '../../../threads/index.ts'
import { type Route, route } from '../../route.ts'
import type { XpanderOptions } from './index.ts'
import { pageOf, shared } from './route-parts.ts'
import { pageQuery, taskFilters } from './schema.ts'
import { fullMessageViews, messageViews, taskItem, taskView } from './view.ts'

/** Parts of a task that are shown with it, and go with it. */
const partsMax = 50
/** Of all that is told of them at once: as much as one thread may have, and a little more. */
const fullCharsMax = 40 * 1024 * 1024

/** Tasks, which are threads: what they came to and what was said in them. */
export function taskRoutes({ threads }: XpanderOptions): Route[] {
  return [
    route({
      ...shared,
      method: 'GET',
      path: '/v1/tasks',
      access: 'read',
      summary: 'List tasks, the newest first',
      query: pageQuery.extend(taskFilters.shape),
      handle: ({ workspace, query }) => listTasks(threads, workspace, query),
    }),
    route({
      ...shared,
      method: 'GET',
      path: '/v1/tasks/{taskId}',
      access: 'read',
      summary: 'Get a task as its newest turn stands',
      handle: async ({ workspace, params }) => taskView(await threads.get(workspace, params.taskId)),
    }),
    route({
      ...shared,
      method: 'POST',
      path: '/v1/tasks/{taskId}/stop',
      access: 'deployed',
      summary: 'Stop a task; one that ended stays as it is',
      handle: async ({ workspace, params }) => taskView(await threads.stop(workspace, params.taskId)),
    }),
    route({
      ...shared,
      method: 'DELETE',
      path: '/v1/tasks/{taskId}',
      access: 'deployed',
      summary: 'Delete a task with all that was said in it, and with its sub-tasks',
      async handle({ workspace, params }) {
        await removeWithParts(threads, workspace, params.taskId)
        return new Response(null, { status: 204 })
      },
    }),
    route({
      ...shared,
      method: 'GET',
      path: '/v1/tasks/{taskId}/thread',
      access: 'read',
      summary: 'Get what was said in a task',
      async handle({ workspace, params }) {
        const thread = await threads.get(workspace, params.taskId)
        return Response.json(messageViews(await threads.entries(workspace, params.taskId), thread))
      },
    }),
    route({
      ...shared,
      method: 'GET',
      path: '/v1/tasks/{taskId}/thread/full',
      access: 'read',
      summary: 'Get what was said in a task and in its sub-tasks, with calls of tools',
      async handle({ workspace, params }) {
        const thread = await threads.get(workspace, params.taskId)
        const { items } = await threads.list(
          workspace,
          { parent: thread.name },
          { offset: 0, limit: partsMax },
        )
        const chars = items.reduce((sum, { body }) => sum + body.chars, thread.body.chars)
        if (chars > fullCharsMax) {
          throw new PlatformError(
            'body_too_large',
            `the task and its ${items.length} sub-tasks have ${chars} characters together, at most ${fullCharsMax} are told at once: ask for the thread of each`,
          )
        }
        const full = { root: fullMessageViews(await threads.entries(workspace, thread.name), thread) }
        for (const part of items) {
          Object.assign(full, {
            [part.name]: fullMessageViews(await threads.entries(workspace, part.name), part),
          })
        }
        return full
      },
    }),
  ]
}

export async function listTasks(
  threads: Threads,
  workspace: string,
  query: Partial<z.output<typeof taskFilters>> & z.output<typeof pageQuery>,
) {
  const { page, per_page } = query
  const { items, total } = await threads.list(workspace, filterOf(query), {
    offset: (page - 1) * per_page,
    limit: per_page,
  })
  return pageOf(items.map(taskItem), total, { page, per_page })
}

export function filterOf(query: Partial<z.output<typeof taskFilters>>) {
  const { user_id, agent_id, parent_task_id, triggering_agent_id, status, internal_status } = query
  return {
    ...(user_id === undefined ? {} : { user: user_id }),
    ...(agent_id === undefined ? {} : { agent: agent_id }),
    ...(parent_task_id === undefined ? {} : { parent: parent_task_id }),
    ...(triggering_agent_id === undefined ? {} : { triggering: triggering_agent_id }),
    ...(status ? { status: [status] } : {}),
    ...(internal_status === undefined ? {} : { internal: internal_status }),
    ...(query.from_date === undefined ? {} : { since: query.from_date }),
    ...(query.to_date === undefined ? {} : { until: query.to_date }),
  }
}

/** @throws not_found */
async function removeWithParts(threads: Threads, workspace: string, id: string): Promise<void> {
  await threads.remove(workspace, id)
  for (;;) {
    const { items } = await threads.list(workspace, { parent: id }, { offset: 0, limit: partsMax })
    if (items.length === 0) return
    for (const part of items) await removeWithParts(threads, workspace, part.name)
  }
}
