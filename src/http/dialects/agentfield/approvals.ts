/** People asked in the middle of an execution: it waits, and its agent is told what was decided. */
import { z } from 'zod'
import { PlatformError } from '../../../errors.ts'
import type { Attempt, AttemptOutcome, Execution, Executions } from '../../../executions/index.ts'
import type { Clock } from '../../../lib/clock.ts'
import type { Dialer } from '../../../lib/dialer.ts'
import type { Nodes } from '../../../nodes/index.ts'
import { type Route, route } from '../../route.ts'
import type { NodeCalls } from './calls.ts'
import { requireExecution } from './lookup.ts'
import { innerSource, runSource } from './sources.ts'
import { refuseStrangers } from './strangers.ts'
import { shownId, statusOf } from './view.ts'
import { jsonOf, tag, timeText } from './wire.ts'

/** What agents are told, each an execution of its own, so that it outlives a crash and is tried again. */
const noticeSource = 'agentfield-approval'
const noticesMax = 16
const noticeMsMax = 15_000
const retry = { attemptsMax: 8, delayMs: 1000, delayMsMax: 60_000 }
const hoursDefault = 72
const hoursMax = 30 * 24
const hourMs = 60 * 60 * 1000
/** It is kept in the note of its execution, and in that of the notice. */
const responseCharactersMax = 16 * 1024

const name = z.string().min(1).max(256)
const requestSchema = z.lazy(() =>
  z.object({
    approval_request_id: name,
    approval_request_url: z.string().max(2048).nullish(),
    callback_url: z.string().max(2048).nullish(),
    expires_in_hours: z.number().positive().max(hoursMax).nullish(),
  }),
)
const text = z.string().max(responseCharactersMax).nullish()
const decisionSchema = z.lazy(() =>
  z.looseObject({ decision: text, reason: text, feedback: text, response: z.unknown().optional() }),
)
/** As an approval service says it, plainly or in its own envelope. */
const resolutionSchema = z.lazy(() =>
  decisionSchema.unwrap().extend({
    requestId: name.nullish(),
    approval_request_id: name.nullish(),
    type: z.string().max(64).nullish(),
    data: z.looseObject({ requestId: name.nullish(), response: z.unknown().optional() }).nullish(),
  }),
)

const decisions: Record<string, Decision> = {
  ...{ approved: 'approved', approve: 'approved', continue: 'approved', confirm: 'approved' },
  ...{ rejected: 'rejected', reject: 'rejected', deny: 'rejected', abort: 'rejected', cancel: 'rejected' },
  ...{ request_changes: 'request_changes', expired: 'expired' },
}
type Decision = 'approved' | 'rejected' | 'request_changes' | 'expired'

/** In the note of the execution that waits. */
interface Approval {
  id: string
  url: string
  callbackUrl: string
  loopback: boolean
  requestedAt: number
  expiresAt: number
  decision?: Decision
  response?: string
  respondedAt?: number
}

interface Resolution {
  decision: Decision
  feedback: string
  response: string | null
}

export interface ApprovalOptions {
  executions: Executions
  nodes: Nodes
  calls: NodeCalls
  dialer: Pick<Dialer, 'check' | 'open'>
  clock: Clock
}

/** Registers who tells agents what was decided. */
export function tellApprovals({ executions, nodes, calls, dialer }: ApprovalOptions): void {
  executions.runner(noticeSource, run, { runningMax: noticesMax, hidden: true })

  async function run({ execution, input }: Attempt, stopped: AbortSignal): Promise<AttemptOutcome> {
    const { url, loopback, instanceId } = execution.note as {
      url: string
      loopback: boolean
      instanceId: string | null
    }
    const signal = AbortSignal.any([stopped, AbortSignal.timeout(noticeMsMax)])
    const headers = { 'content-type': 'application/json' }
    try {
      const node = await nodes.find(execution.workspace, execution.target.name)
      let status: number
      if (node !== null && node.body.place.at === 'deployment') {
        const { pathname, search } = new URL(url)
        const there = instanceId === null ? {} : { instanceId }
        const answer = await calls.post(node, {
          ...{ path: pathname + search, headers, body: input, signal },
          ...there,
        })
        answer.process.lease?.[Symbol.dispose]()
        status = answer.status
      } else {
        const what = 'the callback of the approval'
        const body = input as Uint8Array<ArrayBuffer>
        const answer = await dialer.open(url, {
          method: 'POST',
          headers,
          body,
          loopback,
          signal,
          what,
          raw: true,
        })
        await answer.body?.cancel()
        status = answer.status
      }
      if (status >= 200 && status < 300)
        return { status: 'succeeded', result: new Uint8Array(), type: 'text/plain' }
      return failed(`the agent answered ${status}`)
    } catch (error) {
      stopped.throwIfAborted()
      return failed(PlatformError.is(error) ? error.message : 'the agent did not answer in time')
    }
  }
}

function failed(message: string): AttemptOutcome {
  return { status: 'failed', error: { code: 'not_told', message }, retry: true }
}

export function approvalRoutes(options: ApprovalOptions): Route[] {
  const { executions, nodes, dialer, clock } = options
  const shared = { errors: 'agentfield', tag, keyless: true } as const
  const resolve = (execution: Execution, approval: Approval, resolution: Resolution) =>
    resolved(options, execution, approval, resolution)
  const belows = [
    '/api/v1/agents/{nodeId}/executions/{executionId}',
    '/api/v1/executions/{executionId}',
  ] as const
  return [
    ...belows.flatMap((below) => [
      route({
        ...shared,
        method: 'POST',
        path: `${below}/request-approval`,
        access: 'deployed',
        summary: 'Have an execution wait until somebody decided; its agent is told at callback_url',
        body: requestSchema,
        async handle({ workspace, principal, params, body }) {
          const execution = requireExecution(executions, workspace, params.executionId)
          await refuseStrangers(principal, workspace, execution.target.name, nodes)
          const { approval_request_id: id, approval_request_url: url, callback_url: callbackUrl } = body
          const earlier = approvalOf(execution)
          if (execution.endedAt !== null || execution.status === 'queued')
            throw refused(
              'invalid_state',
              `execution is in '${statusOf(execution)}' state; must be 'running'`,
            )
          if (earlier !== null && earlier.decision === undefined && clock.now() < earlier.expiresAt)
            throw refused(
              'approval_already_requested',
              'An approval request already exists for this execution',
              {
                approval_request_id: earlier.id,
              },
            )
          const loopback = principal?.kind !== 'workload'
          const isInside =
            (await nodes.find(workspace, execution.target.name))?.body.place.at === 'deployment'
          if (callbackUrl && !isInside) await dialer.check(callbackUrl, { what: 'callback_url', loopback })
          else if (callbackUrl && URL.parse(callbackUrl) === null)
            throw new PlatformError('bad_request', 'callback_url: must be an address')
          const quietMs = (body.expires_in_hours ?? hoursDefault) * hourMs
          const now = clock.now()
          const approval: Approval = {
            ...{ id, url: url ?? '', callbackUrl: callbackUrl ?? '', loopback },
            ...{ requestedAt: now, expiresAt: now + quietMs },
          }
          await executions.report(workspace, execution.id, {
            status: 'waiting',
            statusReason: 'waiting_for_approval',
            note: { awaiting: true, approval },
            labels: { ...execution.labels, approval: id },
            quietMs: quietMs + execution.timeoutMs,
          })
          return {
            approval_request_id: id,
            approval_request_url: url ?? '',
            status: 'pending',
            expires_at: timeText(approval.expiresAt),
          }
        },
      }),
      route({
        ...shared,
        method: 'GET',
        path: `${below}/approval-status`,
        access: 'read',
        summary: 'Say what was decided of an execution that waits for somebody',
        handle({ workspace, params }) {
          const approval = approvalOf(requireExecution(executions, workspace, params.executionId))
          if (approval === null) throw noApproval()
          const { url, requestedAt, respondedAt, response } = approval
          return {
            status: stateOf(approval, clock.now()),
            ...(response === undefined ? {} : { response: parsed(response) }),
            request_url: url,
            requested_at: timeText(requestedAt),
            ...(respondedAt === undefined ? {} : { responded_at: timeText(respondedAt) }),
          }
        },
      }),
    ]),
    route({
      ...shared,
      method: 'POST',
      path: '/api/v1/executions/{executionId}/approval-response',
      access: 'write',
      summary: 'Decide what an execution waits for: approved, rejected or request_changes',
      body: decisionSchema,
      handle({ workspace, params, body }) {
        const execution = requireExecution(executions, workspace, params.executionId)
        const approval = approvalOf(execution)
        if (approval === null) throw noApproval()
        return resolve(execution, approval, resolutionOf(body))
      },
    }),
    route({
      ...shared,
      method: 'POST',
      path: '/api/v1/webhooks/approval-response',
      access: 'write',
      summary: 'Take what was decided from an approval service, by the id of its request',
      body: resolutionSchema,
      handle({ workspace, body }) {
        const { data, type } = body
        const id = data?.requestId ?? body.requestId ?? body.approval_request_id
        if (!id) throw new PlatformError('bad_request', 'requestId: missing: which request was decided')
        const filter = { source: [runSource, innerSource], labels: { approval: id } }
        const [execution] = executions.list(workspace, filter, { limit: 1 }).data
        const approval = execution ? approvalOf(execution) : null
        if (!execution || approval === null)
          throw new PlatformError(
            'not_found',
            `no execution waits for the approval request "${id.slice(0, 80)}"`,
          )
        const inner = typeof data?.response === 'object' && data.response !== null ? data.response : {}
        const enveloped = decisionSchema.safeParse(inner).data ?? {}
        const given = data ? { ...enveloped, response: data.response } : body
        const said = type === 'expired' ? 'expired' : given.decision || (given as { action?: unknown }).action
        const decision = said || (type === 'completed' ? 'approved' : '')
        return resolve(execution, approval, resolutionOf({ ...given, decision: String(decision) }))
      },
    }),
  ]
}

/** What is decided twice stays as it was decided first. */
async function resolved(
  { executions, clock }: ApprovalOptions,
  execution: Execution,
  approval: Approval,
  { decision, feedback, response }: Resolution,
): Promise<object> {
  const { workspace, id } = execution
  const isDecided = approval.decision !== undefined
  if (!isDecided && execution.endedAt !== null)
    throw refused('invalid_state', `execution is in terminal state '${statusOf(execution)}'`)
  const goesOn = decision === 'approved' || decision === 'request_changes'
  const words = { approved: 'approval_granted', rejected: 'approval_rejected', expired: 'approval_expired' }
  const word = decision === 'request_changes' ? 'approval_changes_requested' : words[decision]
  const reason = feedback === '' || decision === 'approved' ? word : `${word}: ${feedback}`
  const answered = {
    ...approval,
    ...{ decision, respondedAt: clock.now() },
    ...(response === null ? {} : { response }),
  }
  const after = isDecided
    ? execution
    : await executions.report(workspace, id, {
        status: goesOn ? 'running' : 'cancelled',
        statusReason: reason,
        // Its agent hears it at its callback: it is not called off beside that.
        note: { awaiting: null, approval: answered, ...(goesOn ? {} : { told: true }) },
      })
  const now = approvalOf(after) ?? answered
  if (approval.callbackUrl !== '') await tell(executions, after, now, feedback)
  const told = { execution_id: shownId(after), decision: now.decision, new_status: statusOf(after) }
  return isDecided
    ? { ...told, status: 'already_processed', current_status: statusOf(after), approval_status: now.decision }
    : { ...told, status: 'processed' }
}

/** Once, however often it is decided. */
async function tell(
  executions: Executions,
  execution: Execution,
  { id, callbackUrl, loopback, decision, response, requestedAt }: Approval,
  feedback: string,
): Promise<void> {
  const { workspace, target, note } = execution
  await executions
    .accept({
      id: `${execution.id}.approval.${requestedAt}`,
      workspace,
      source: noticeSource,
      target,
      input: jsonOf({
        ...{ execution_id: shownId(execution), approval_request_id: id, decision, feedback },
        ...{ new_status: statusOf(execution), ...(response === undefined ? {} : { response }) },
      }),
      labels: { execution: execution.id },
      note: { url: callbackUrl, loopback, instanceId: note.instance_id ?? null },
      timeoutMs: noticeMsMax * 2,
      retry,
    })
    .catch((error) => {
      if (!PlatformError.is(error) || error.code !== 'already_exists') throw error
    })
}

function approvalOf({ note }: Execution): Approval | null {
  return (note.approval as Approval | undefined) ?? null
}

function stateOf({ decision, expiresAt }: Approval, nowMs: number): string {
  if (decision !== undefined) return decision
  return nowMs < expiresAt ? 'pending' : 'expired'
}

/** @throws bad_request */
function resolutionOf(said: z.output<typeof decisionSchema>): Resolution {
  const word = said.decision?.trim().toLowerCase() ?? ''
  const decision = Object.hasOwn(decisions, word) ? decisions[word] : undefined
  if (decision === undefined)
    throw new PlatformError(
      'bad_request',
      `decision: "${word.slice(0, 40)}" is not one of approved, rejected, request_changes, expired`,
    )
  const feedback = said.feedback || said.reason || ''
  const given = said.response ?? (feedback === '' ? null : { feedback })
  const response = given === null ? null : typeof given === 'string' ? given : JSON.stringify(given)
  if (response !== null && response.length > responseCharactersMax)
    throw new PlatformError('bad_request', `response: more than ${responseCharactersMax} characters`)
  return { decision, feedback, response }
}

function parsed(response: string): unknown {
  try {
    return JSON.parse(response)
  } catch {
    return { raw: response }
  }
}

function refused(error: string, message: string, details: object = {}): PlatformError {
  return new PlatformError('conflict', message, { details: { error, ...details } })
}

function noApproval(): PlatformError {
  return new PlatformError('not_found', 'No approval request exists for this execution', {
    details: { error: 'no_approval_request' },
  })
}
