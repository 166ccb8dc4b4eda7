import { z } from 'zod'
import { PlatformError } from '../../../errors.ts'
import {
  type Execution,
  type ExecutionStatus,
  type Executions,
  executionStatuses,
} from '../../../executions/index.ts'
import type { Clock } from '../../../lib/clock.ts'
import { othersTurn } from '../../../lib/turns.ts'
import type { Nodes } from '../../../nodes/index.ts'
import { parseWith } from '../../body.ts'
import { jsonBodyBytesMax, type Route, route } from '../../route.ts'
import { findExecution, requireExecution } from './lookup.ts'
import { reportOf, reportSchema, statusSaid } from './reports.ts'
import { innerSource, runSource } from './sources.ts'
import { refuseStrangers } from './strangers.ts'
import { executionView, shownId, statusOf } from './view.ts'
import type { Webhooks } from './webhooks.ts'
import { streamOf, tag, timeText, wordsOf } from './wire.ts'

const reportBytesMax = 17 * 1024 * 1024
const idsAtOnceMax = 1000
/** Of all that are asked for at once. */
const resultBytesMax = 64 * 1024 * 1024
const listLimitDefault = 50
const listLimitMax = 200
const cancelledAtOnceMax = 1000

export interface ExecutionRouteOptions {
  executions: Executions
  nodes: Nodes
  webhooks: Webhooks
  clock: Clock
}

const reason = z.object({ reason: z.string().max(1024).nullish() })

/** What became of what was called, and what agents say of it. */
export function executionRoutes(options: ExecutionRouteOptions): Route[] {
  const { executions, nodes, webhooks, clock } = options
  const shared = { errors: 'agentfield', tag, keyless: true } as const

  const view = (execution: Execution) => {
    const events = webhooks.events(execution)
    return {
      ...executionView(execution, executions.result(execution.workspace, execution.id)),
      webhook_registered: execution.note.webhook === true,
      ...(events.length === 0 ? {} : { webhook_events: events }),
    }
  }
  const require = (workspace: string, id: string) => requireExecution(executions, workspace, id)

  return [
    route({
      ...shared,
      method: 'GET',
      path: '/api/v1/executions',
      access: 'read',
      summary: 'List executions, the newest first',
      query: z.object({
        run_id: z.string().optional(),
        workflow_id: z.string().optional(),
        session_id: z.string().optional(),
        actor_id: z.string().optional(),
        agent_node_id: z.string().optional(),
        status: z.string().optional(),
        limit: z.coerce.number().int().min(1).max(listLimitMax).optional(),
        cursor: z.string().optional(),
      }),
      async handle({ workspace, query }) {
        const run = query.run_id ?? query.workflow_id
        const page = await executions.search(
          workspace,
          {
            source: [runSource, innerSource],
            labels: {
              ...(run === undefined ? {} : { run }),
              ...(query.session_id === undefined ? {} : { session: query.session_id }),
              ...(query.actor_id === undefined ? {} : { actor: query.actor_id }),
            },
            ...(query.agent_node_id === undefined
              ? {}
              : { target: { kind: 'node', name: query.agent_node_id } }),
            ...(query.status === undefined ? {} : { status: statusesOf(query.status) }),
          },
          {
            limit: query.limit ?? listLimitDefault,
            ...(query.cursor === undefined ? {} : { cursor: query.cursor }),
          },
        )
        // What came of each is told by each: results may be large.
        const listed = page.data.map((one) => executionView(one, null))
        return { executions: listed, count: listed.length, next_cursor: page.nextCursor }
      },
    }),
    route({
      ...shared,
      method: 'GET',
      path: '/api/v1/executions/{executionId}',
      access: 'read',
      summary: 'Say what became of an execution',
      handle: ({ workspace, params }) => view(require(workspace, params.executionId)),
    }),
    route({
      ...shared,
      method: 'POST',
      path: '/api/v1/executions/batch-status',
      access: 'read',
      summary: 'Say what became of many executions, by id',
      body: z.object({ execution_ids: z.array(z.string()).min(1).max(idsAtOnceMax) }),
      handle({ workspace, body }) {
        const ids = [...new Set(body.execution_ids)]
        const asked = ids.map((id) => [id, findExecution(executions, workspace, id)] as const)
        const bytes = asked.reduce((sum, [, found]) => sum + (found?.resultBytes ?? 0), 0)
        if (bytes > resultBytesMax) {
          throw new PlatformError(
            'body_too_large',
            `execution_ids: their results are ${bytes} bytes together, at most ${resultBytesMax} at once: ask for fewer`,
          )
        }
        const views = (async function* () {
          let before = '{'
          for (const [id, found] of asked) {
            const told = found === null ? { execution_id: id, status: 'not_found' } : view(found)
            yield Buffer.from(`${before}${JSON.stringify(id)}:${JSON.stringify(told)}`)
            before = ','
            await othersTurn()
          }
          yield Buffer.from('}')
        })()
        // Results may be large: one after the other.
        return new Response(streamOf(views), { headers: { 'content-type': 'application/json' } })
      },
    }),
    route({
      ...shared,
      method: 'POST',
      path: '/api/v1/executions/{executionId}/status',
      access: 'deployed',
      summary: 'Say how far an execution is, or how it ended: for the node that works on it',
      body: reportSchema,
      bodyBytesMax: reportBytesMax,
      async handle({ workspace, principal, params, body }) {
        const execution = require(workspace, params.executionId)
        await refuseStrangers(principal, workspace, execution.target.name, nodes)
        return view(await executions.report(workspace, execution.id, reportOf(body)))
      },
    }),
    route({
      ...shared,
      method: 'POST',
      path: '/api/v1/agents/{nodeId}/executions/{executionId}/awaiter-status',
      access: 'deployed',
      summary: 'Say that an execution waits for what it called, or goes on',
      body: z.object({ status: z.enum(['waiting', 'running']), reason: z.string().max(1024).nullish() }),
      async handle({ workspace, principal, params, body }) {
        const execution = require(workspace, params.executionId)
        await refuseStrangers(principal, workspace, execution.target.name, nodes)
        const { status, reason: why } = body
        const reported = await executions.report(workspace, execution.id, {
          status,
          note: { awaiting: status === 'waiting' ? true : null },
          ...(why ? { statusReason: why } : {}),
        })
        return { execution_id: shownId(reported), status: statusOf(reported) }
      },
    }),
    route({
      ...shared,
      method: 'POST',
      path: '/api/v1/executions/{executionId}/cancel',
      access: 'deployed',
      summary: 'Call an execution off; its node is told',
      async handle({ workspace, params, whole }) {
        const { reason: why } = parseWith(reason, (await whole.json(jsonBodyBytesMax)) ?? {}, 'body')
        const execution = require(workspace, params.executionId)
        if (execution.endedAt !== null) throw notInThisState(execution)
        try {
          const { previous, execution: cancelled } = await executions.cancel(
            workspace,
            execution.id,
            why || undefined,
          )
          return {
            execution_id: shownId(cancelled),
            previous_status: statusOf({ ...execution, status: previous }),
            status: statusOf(cancelled),
            ...(why ? { reason: why } : {}),
            cancelled_at: timeText(cancelled.endedAt ?? clock.now()),
          }
        } catch (error) {
          if (!PlatformError.is(error) || error.code !== 'conflict') throw error
          throw notInThisState(require(workspace, params.executionId))
        }
      },
    }),
    route({
      ...shared,
      method: 'POST',
      path: '/api/v1/workflows/{runId}/cancel-tree',
      access: 'deployed',
      summary: 'Call off everything of a run that goes on',
      async handle({ workspace, params, whole }) {
        const { reason: why } = parseWith(reason, (await whole.json(jsonBodyBytesMax)) ?? {}, 'body')
        const cancelled: string[] = []
        const filter = {
          source: [runSource, innerSource],
          labels: { run: params.runId },
          status: ['queued', 'running', 'waiting'] as const,
        }
        for (let page = first(); page.length > 0 && cancelled.length < cancelledAtOnceMax; page = first()) {
          for (const { id } of page) {
            const one = await executions.cancel(workspace, id, why || undefined).catch(unlessConflict)
            if (one) cancelled.push(shownId(one.execution))
          }
        }
        function first() {
          return executions.list(workspace, filter, { limit: listLimitMax }).data
        }
        return { workflow_id: params.runId, cancelled, cancelled_count: cancelled.length }
      },
    }),
  ]
}

function notInThisState(execution: Execution): PlatformError {
  return new PlatformError('conflict', `execution is in terminal state '${statusOf(execution)}'`, {
    details: { error: 'invalid_state' },
  })
}

/** It ended in this moment. */
function unlessConflict(error: unknown): null {
  if (PlatformError.is(error) && error.code === 'conflict') return null
  throw error
}

function statusesOf(text: string): ExecutionStatus[] {
  return wordsOf(text).flatMap((word): ExecutionStatus[] => {
    if (word === 'queued' || word === 'pending') return ['queued']
    const said = statusSaid(word)
    return said === 'running' ? ['running', 'waiting'] : executionStatuses.filter((one) => one === said)
  })
}
