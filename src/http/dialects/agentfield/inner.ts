import { z } from 'zod'
import type { Principal } from '../../../access/index.ts'
import { PlatformError } from '../../../errors.ts'
import type { Execution, Executions } from '../../../executions/index.ts'
import type { Clock } from '../../../lib/clock.ts'
import type { Nodes } from '../../../nodes/index.ts'
import { type Route, route } from '../../route.ts'
import { findExecution } from './lookup.ts'
import { reportOf, statusSaid } from './reports.ts'
import { innerSource } from './sources.ts'
import { refuseStrangers } from './strangers.ts'
import { innerId, shownId } from './view.ts'
import { jsonOf, newId, tag } from './wire.ts'

const bodyBytesMax = 17 * 1024 * 1024
/** As SDKs bound what they call. */
const innerMsMax = 6 * 60 * 60 * 1000

const id = z.string().min(1).max(256)
const name = z.string().max(256).nullish()

const told = z.lazy(() =>
  z.object({
    execution_id: id,
    run_id: name,
    workflow_id: name,
    reasoner_id: name,
    reasoner_name: name,
    type: name,
    agent_node_id: name,
    node_id: name,
    session_id: name,
    parent_execution_id: name,
    status: z.string().nullish(),
    status_reason: z.string().nullish(),
    input_data: z.unknown().optional(),
    result: z.unknown().optional(),
    error: z.unknown().optional(),
    duration_ms: z.number().min(0).nullish(),
  }),
)
type Told = z.output<typeof told>

export interface InnerRouteOptions {
  executions: Executions
  nodes: Nodes
  clock: Clock
}

/** Calls that an agent makes within itself: it does them and tells of them, so that a run is known as a whole. */
export function innerRoutes({ executions, nodes, clock }: InnerRouteOptions): Route[] {
  const shared = { method: 'POST', access: 'deployed', errors: 'agentfield', tag, keyless: true } as const

  const known = async (workspace: string, principal: Principal | null, said: Told): Promise<Execution> => {
    const found = findExecution(executions, workspace, said.execution_id)
    if (found !== null) return found
    const target = { kind: 'node', name: said.agent_node_id || said.node_id || 'unknown' }
    await refuseStrangers(principal, workspace, target.name, nodes)
    const { parent_execution_id: parent, session_id: session } = said
    try {
      const { execution } = await executions.accept({
        id: innerId(workspace, said.execution_id),
        workspace,
        source: innerSource,
        target,
        input: jsonOf(said.input_data ?? {}),
        inputIsGiven: true,
        labels: {
          run: said.run_id || said.workflow_id || newId('run', clock.now()),
          reasoner: said.reasoner_id || said.reasoner_name || said.type || 'unknown',
          type: 'reasoner',
          ...(parent ? { parent } : {}),
          ...(session ? { session } : {}),
        },
        timeoutMs: innerMsMax,
      })
      return execution
    } catch (error) {
      // Told twice at once.
      const again = findExecution(executions, workspace, said.execution_id)
      if (again === null || !PlatformError.is(error) || error.code !== 'already_exists') throw error
      return again
    }
  }

  return [
    route({
      ...shared,
      path: '/api/v1/workflow/executions',
      summary: 'Tell of a call that an agent begins within itself',
      body: told,
      bodyBytesMax,
      async handle({ workspace, principal, body }) {
        const execution = await known(workspace, principal, body)
        const run = execution.labels.run ?? ''
        return { execution_id: shownId(execution), run_id: run, workflow_id: run, status: 'registered' }
      },
    }),
    route({
      ...shared,
      path: '/api/v1/workflow/executions/events',
      summary: 'Tell what became of a call that an agent made within itself',
      body: told,
      bodyBytesMax,
      async handle({ workspace, principal, body }) {
        const execution = await known(workspace, principal, body)
        const answer = { success: true, execution_id: shownId(execution) }
        // Of what was called from here its agent reports how it ended, with the result; this is the same once more.
        if (execution.source !== innerSource || execution.endedAt !== null) return answer
        await refuseStrangers(principal, workspace, execution.target.name, nodes)
        const status = statusSaid(body.status ?? 'running')
        if (status === 'running' || status === 'waiting') return answer
        await executions.report(
          workspace,
          execution.id,
          reportOf({ ...body, status, error_details: undefined, progress: undefined, usage: undefined }),
        )
        return answer
      },
    }),
  ]
}
