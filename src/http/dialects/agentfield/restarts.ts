/** A run done again: from its beginning or from one of its executions, without asking anew what succeeded before. */
import { z } from 'zod'
import { PlatformError } from '../../../errors.ts'
import type { Execution, Executions } from '../../../executions/index.ts'
import type { Clock } from '../../../lib/clock.ts'
import { parseWith } from '../../body.ts'
import { type Route, route } from '../../route.ts'
import { requireExecution } from './lookup.ts'
import { ofRun } from './replays.ts'
import { retryLater } from './runs.ts'
import { runSource } from './sources.ts'
import { shownId, statusOf, targetNameOf } from './view.ts'
import type { Webhooks } from './webhooks.ts'
import { jsonOf, newId, tag, timeText } from './wire.ts'

const bodyBytesMax = 32 * 1024 * 1024

const modes = ['succeeded-before', 'all-succeeded', 'none'] as const
type Mode = (typeof modes)[number]

const restartBody = z.lazy(() =>
  z.object({
    scope: z.enum(['workflow', 'execution', '']).nullish(),
    reuse: z.enum([...modes, '']).nullish(),
    fork: z.boolean().nullish(),
    reason: z.string().max(1024).nullish(),
    input: z.unknown().optional(),
    context: z.unknown().optional(),
    webhook: z.unknown().optional(),
  }),
)

export interface RestartOptions {
  executions: Executions
  webhooks: Webhooks
  clock: Clock
  asyncMs: number
  nodeRunningMax: number | null
}

export function restartRoutes(options: RestartOptions): Route[] {
  const { executions, webhooks, clock, asyncMs, nodeRunningMax } = options
  return [
    route({
      method: 'POST',
      path: '/api/v1/executions/{executionId}/restart',
      access: 'workload',
      errors: 'agentfield',
      tag,
      keyless: true,
      summary: 'Begin a run again, with what succeeded in it before',
      readsBody: { 'application/json': restartBody },
      successStatus: 202,
      async handle({ workspace, principal, params, whole }) {
        const asked = parseWith(restartBody, (await whole.json(bodyBytesMax)) ?? {}, 'body')
        const source = requireExecution(executions, workspace, params.executionId)
        const scope = asked.scope || 'workflow'
        const reuse: Mode = asked.reuse || 'succeeded-before'
        const sourceRun = source.labels.run ?? ''
        const restarted = scope === 'workflow' ? rootOf(executions, source) : source
        if (restarted.source !== runSource)
          throw new PlatformError(
            'conflict',
            'it was done within its agent, which only told of it: restart the workflow',
            { details: { error: 'invalid_state' } },
          )
        const input =
          asked.input === undefined ? executions.input(workspace, restarted.id) : jsonOf(asked.input)
        const mode = scope === 'execution' && reuse === 'succeeded-before' ? 'all-succeeded' : reuse
        const before = mode === 'succeeded-before' ? { replayBefore: source.id } : {}
        const replay = mode === 'none' ? {} : { replayRun: sourceRun, replayMode: mode, ...before }
        const { reasoner = '', type = 'reasoner', session, actor } = restarted.labels
        const loopback = principal?.kind !== 'workload'
        const webhook = await webhooks.register(asked.webhook, { workspace, loopback })
        const isTold = webhook !== null && 'callback' in webhook
        const context = asked.context ?? restarted.note.context
        const { execution } = await executions.accept({
          id: newId('exec', clock.now()),
          workspace,
          source: runSource,
          target: restarted.target,
          input: input ?? jsonOf({}),
          labels: {
            ...{ run: newId('run', clock.now()), reasoner, type, ...replay, restartOf: restarted.id },
            ...(session === undefined ? {} : { session }),
            ...(actor === undefined ? {} : { actor }),
          },
          note: {
            ...(context === undefined ? {} : { context }),
            ...(asked.reason ? { reason: asked.reason } : {}),
            ...(isTold ? { webhook: true } : {}),
          },
          timeoutMs: asyncMs,
          retry: retryLater,
          ...(nodeRunningMax === null ? {} : { targetRunningMax: nodeRunningMax }),
          ...(isTold ? { callback: webhook.callback } : {}),
        })
        const { run = '' } = execution.labels
        const isFork = asked.fork === true || asked.input !== undefined || asked.context !== undefined
        const view = {
          execution_id: execution.id,
          run_id: run,
          workflow_id: run,
          status: statusOf(execution),
          target: targetNameOf(execution),
          type,
          created_at: timeText(execution.acceptedAt),
          enqueued_at: timeText(execution.acceptedAt),
          source_execution_id: shownId(source),
          source_run_id: sourceRun,
          restarted_execution_id: shownId(restarted),
          ...(before.replayBefore === undefined ? {} : { replay_before_execution_id: shownId(source) }),
          replay_mode: mode,
          scope,
          kind: isFork ? 'fork' : 'restart',
          webhook_registered: isTold,
          ...(webhook !== null && 'error' in webhook ? { webhook_error: webhook.error } : {}),
        }
        return Response.json(view, {
          status: 202,
          headers: { 'x-execution-id': execution.id, 'x-run-id': run },
        })
      },
    }),
  ]
}

function rootOf(executions: Executions, source: Execution): Execution {
  const all = [...ofRun(executions, source.workspace, source.labels.run ?? '')]
  return all.find(({ labels }) => labels.parent === undefined) ?? all[0] ?? source
}
