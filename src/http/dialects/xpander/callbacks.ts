/** What whoever gave a webhook is told when the turn ended: the event of the stream, with what the task came to. */
import type { Deliveries } from '../../../deliveries/index.ts'
import type { ComposeCallback } from '../../../executions/index.ts'
import { endedTurn } from '../../../threads/index.ts'
import { timeText } from './view.ts'

export function composeCallback(deliveries: Pick<Deliveries, 'compose'>): ComposeCallback {
  return (execution, result, callback) => {
    const { workspace, labels, target, acceptedAt, startedAt, endedAt } = execution
    const given = callback as {
      url: string
      loopback: boolean
      secrets: string[]
      headers: Record<string, string>
    }
    const taskId = labels.thread ?? ''
    const answer = result === null || result.byteLength === 0 ? null : Buffer.from(result).toString()
    const turn = endedTurn(execution, answer)
    const body = {
      type: 'task_finished',
      task_id: taskId,
      organization_id: workspace,
      time: timeText(endedAt),
      data: {
        id: taskId,
        agent_id: target.name,
        organization_id: workspace,
        status: turn.status,
        internal_status: turn.internalStatus,
        is_manually_stopped: turn.isManuallyStopped,
        result: turn.result,
        created_at: timeText(acceptedAt),
        started_at: timeText(startedAt),
        finished_at: timeText(endedAt),
      },
    }
    return deliveries.compose({
      workspace,
      executionId: execution.id,
      dialect: 'xpander',
      url: given.url,
      body: Buffer.from(JSON.stringify(body)),
      headers: given.headers,
      secrets: given.secrets,
      loopback: given.loopback,
    })
  }
}
