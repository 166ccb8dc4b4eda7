import { createHash } from 'node:crypto'
import { z } from 'zod'
import { PlatformError } from '../../../errors.ts'
import type { Execution, Executions } from '../../../executions/index.ts'
import type { Clock } from '../../../lib/clock.ts'
import type { Nodes } from '../../../nodes/index.ts'
import { parseWith } from '../../body.ts'
import { type Route, type RouteContext, route } from '../../route.ts'
import { type NodeCalls, NotReached } from './calls.ts'
import { nodeCalled } from './lookup.ts'
import { replayLabels } from './replays.ts'
import { retryLater } from './runs.ts'
import { runSource } from './sources.ts'
import { durationMsOf, errorCategoryOf, failureView, resultOf, statusOf } from './view.ts'
import type { Webhooks } from './webhooks.ts'
import { jsonOf, newId, tag, timeText } from './wire.ts'

const bodyBytesMax = 32 * 1024 * 1024
const headerCharactersMax = 256
/** What somebody says beside the input is kept up to this size. */
const contextCharactersMax = 8192
/** Nobody reads that answer. */
const clientGone = 499

const executeBody = z.lazy(() =>
  z.object({
    input: z.unknown().optional(),
    context: z.unknown().optional(),
    webhook: z.unknown().optional(),
  }),
)

export interface ExecuteOptions {
  executions: Executions
  nodes: Nodes
  calls: NodeCalls
  /** Whether an agent of this name is deployed. */
  isDeployed: (workspace: string, name: string) => boolean
  webhooks: Webhooks
  clock: Clock
  /** Until who waits for an answer gets none. */
  syncMs: number
  /** Until an execution nobody waits for is given up: of one attempt, and between two words of an agent that reports. */
  asyncMs: number
  /** Executions that one node works on at once; null: as many as come. */
  nodeRunningMax: number | null
}

type Context = Pick<RouteContext<unknown, unknown, unknown>, 'request' | 'workspace' | 'principal' | 'whole'>
type TargetType = 'reasoner' | 'skill'

/** Calls of what nodes do: at once, or accepted for later. */
export function executeRoutes(options: ExecuteOptions): Route[] {
  const { executions, calls, clock, syncMs, asyncMs } = options
  const shared = { method: 'POST', access: 'workload', errors: 'agentfield', tag, keyless: true } as const
  const readsBody = { 'application/json': executeBody }

  const accept = async (context: Context, target: string, timeoutMs: number, isSync: boolean) => {
    const { request, workspace, principal, whole } = context
    const { node, reasoner, type } = await resolve(options, workspace, target)
    if (isSync) await refuseOffline(options, workspace, node)
    const body = parseWith(executeBody, (await whole.json(bodyBytesMax)) ?? {}, 'body')
    const { headers } = request
    const loopback = principal?.kind !== 'workload'
    const webhook = await options.webhooks.register(body.webhook, { workspace, loopback })
    const run = headerOf(headers, 'x-run-id') ?? newId('run', clock.now())
    const labels = {
      run,
      reasoner,
      type,
      ...optional('parent', headerOf(headers, 'x-parent-execution-id')),
      ...optional('session', headerOf(headers, 'x-session-id')),
      ...optional('actor', headerOf(headers, 'x-actor-id')),
      ...replayLabels(headers),
    }
    const key = headerOf(headers, 'idempotency-key')
    const { input = {}, context: extra } = body
    const accepting = executions.accept({
      id: newId('exec', clock.now()),
      workspace,
      source: runSource,
      target: { kind: 'node', name: node },
      input: jsonOf(input),
      inputIsGiven: true,
      labels,
      note: {
        ...(extra === undefined || JSON.stringify(extra).length > contextCharactersMax
          ? {}
          : { context: extra }),
        ...(webhook !== null && 'callback' in webhook ? { webhook: true } : {}),
      },
      timeoutMs,
      ...(isSync ? {} : { retry: retryLater }),
      ...(options.nodeRunningMax === null ? {} : { targetRunningMax: options.nodeRunningMax }),
      ...(webhook !== null && 'callback' in webhook ? { callback: webhook.callback } : {}),
      ...(key === null ? {} : { idempotency: { key: `agentfield:${key}`, digest: digestOf(target, body) } }),
    })
    const accepted = await accepting.catch((error) => {
      if (key === null || !PlatformError.is(error) || error.code !== 'conflict') throw error
      throw new PlatformError('conflict', `Idempotency-Key: "${key}" came with another request before`)
    })
    return { ...accepted, webhook }
  }

  return [
    route({
      ...shared,
      path: '/api/v1/execute/{target}',
      summary: 'Call a reasoner or skill, and wait for its result',
      readsBody,
      async handle(context) {
        const { workspace, request, params } = context
        const { execution, webhook } = await accept(context, params.target, syncMs, true)
        context.whole.used()
        const ended = await waitFor(executions, execution, syncMs, request.signal)
        if (ended === null) return new Response(null, { status: clientGone })
        const registered = webhook === null ? {} : { webhook_registered: 'callback' in webhook }
        const { status, body } = answerOf(ended, executions.result(workspace, ended.id), syncMs)
        return Response.json(
          { ...body, ...registered },
          {
            status,
            headers: { ...idHeaders(ended), ...(status === 429 ? { 'retry-after': '1' } : {}) },
          },
        )
      },
    }),
    route({
      ...shared,
      path: '/api/v1/execute/async/{target}',
      summary: 'Have a reasoner or skill called; accepted once it can not be lost any more',
      readsBody,
      successStatus: 202,
      async handle(context) {
        const { params } = context
        const { execution, webhook } = await accept(context, params.target, asyncMs, false)
        const { id, labels, acceptedAt } = execution
        const view = {
          execution_id: id,
          run_id: labels.run,
          workflow_id: labels.run,
          status: statusOf(execution),
          target: params.target,
          type: labels.type,
          created_at: timeText(acceptedAt),
          enqueued_at: timeText(acceptedAt),
          webhook_registered: webhook !== null && 'callback' in webhook,
          ...(webhook !== null && 'error' in webhook ? { webhook_error: webhook.error } : {}),
        }
        return Response.json(view, { status: 202, headers: idHeaders(execution) })
      },
    }),
    ...(['reasoners', 'skills'] as const).map((plural) =>
      route({
        ...shared,
        path: plural === 'reasoners' ? '/api/v1/reasoners/{target}' : '/api/v1/skills/{target}',
        summary: `Call one of the ${plural} and pass its answer on; nothing of it is kept`,
        readsBody,
        async handle({ request, workspace, params, whole }) {
          const startedAt = clock.now()
          const { node, reasoner } = await resolve(options, workspace, params.target, 'not_found')
          const body = parseWith(executeBody, (await whole.json(bodyBytesMax)) ?? {}, 'body')
          const found = await nodeCalled(options, workspace, node)
          const over = new AbortController()
          const signal = AbortSignal.any([request.signal, over.signal])
          const late = new PlatformError(
            'gateway_timeout',
            `the node "${node}" did not answer within ${syncMs / 1000} seconds`,
          )
          const done = new AbortController()
          clock.sleep(syncMs, done.signal).then(
            () => over.abort(late),
            () => {},
          )
          // Without the ids of a run: by these an agent would take it for one that it reports of later.
          const asked = {
            path: found === null ? '/' : `/${plural}/${encodeURIComponent(reasoner)}`,
            headers: { 'content-type': 'application/json', ...callerHeaders(request.headers) },
            body: jsonOf(body.input ?? {}),
            signal,
          }
          try {
            const answer =
              found === null
                ? await calls.postToAgent(workspace, node, asked)
                : await calls.post(found, asked)
            answer.process.lease?.[Symbol.dispose]()
            const endedAt = clock.now()
            const result = resultOf(answer.body)
            if (answer.status >= 400) {
              throw new PlatformError('bad_gateway', `the node "${node}" answered ${answer.status}`, {
                details: { error_category: 'agent_error', error_details: result },
              })
            }
            const view = {
              result: result ?? null,
              node_id: node,
              duration_ms: endedAt - startedAt,
              timestamp: timeText(endedAt),
            }
            return Response.json(view, { headers: { 'x-agent-node-id': node } })
          } catch (error) {
            if (error instanceof NotReached)
              throw new PlatformError('unavailable', error.message, {
                cause: error,
                details: { error_category: 'agent_unreachable' },
              })
            throw error
          } finally {
            done.abort()
          }
        },
      }),
    ),
  ]
}

/** @throws bad_request, or as `unknown` says, for what there is not */
async function resolve(
  known: Pick<ExecuteOptions, 'nodes' | 'isDeployed'>,
  workspace: string,
  target: string,
  unknown: 'bad_request' | 'not_found' = 'bad_request',
): Promise<{ node: string; reasoner: string; type: TargetType }> {
  const [node = '', reasoner = '', ...more] = target.split('.')
  if (node === '' || reasoner === '' || more.length > 0 || target.length > headerCharactersMax) {
    throw new PlatformError(
      'bad_request',
      `invalid target "${target.slice(0, 80)}": must be "node.reasoner", such as hello-world.greet`,
    )
  }
  const details = { error_category: 'target_not_found' }
  const found = await nodeCalled(known, workspace, node)
  if (found === null) {
    if (known.isDeployed(workspace, node)) return { node, reasoner, type: 'reasoner' }
    throw new PlatformError(
      unknown,
      `node '${node}' not found: nobody registered it, and no agent is called so`,
      {
        details,
      },
    )
  }
  const { reasoners, skills } = found.body
  if (reasoners.some(({ id }) => id === reasoner)) return { node, reasoner, type: 'reasoner' }
  if (skills.some(({ id }) => id === reasoner)) return { node, reasoner, type: 'skill' }
  throw new PlatformError(unknown, `reasoner or skill '${reasoner}' not found on node '${node}'`, { details })
}

/** Who said goodbye is not waited for. */
async function refuseOffline(
  known: Pick<ExecuteOptions, 'nodes' | 'isDeployed'>,
  workspace: string,
  name: string,
): Promise<void> {
  const node = await nodeCalled(known, workspace, name)
  if (node === null || node.body.lifecycle !== 'offline') return
  throw new PlatformError(
    'unavailable',
    `node '${name}' is offline: it shut down and did not register again`,
    {
      retryAfterSeconds: 1,
      details: { error_category: 'node_unavailable' },
    },
  )
}

/** Null: whoever asked is gone. Its work goes on, and can be asked for. */
async function waitFor(
  executions: Executions,
  { workspace, id, timeoutMs: givenMs }: Execution,
  timeoutMs: number,
  signal: AbortSignal,
): Promise<Execution | null> {
  const ended = await executions.ended(workspace, id, { timeoutMs, signal })
  if (ended !== null || signal.aborted) return ended
  // Accepted for later, with the same Idempotency-Key: it has more time than who waits for it now.
  if (givenMs > timeoutMs) return executions.get(workspace, id)
  const message = `it took longer than ${timeoutMs / 1000} seconds`
  await executions
    .report(workspace, id, { status: 'timed_out', error: { code: 'timeout', message } })
    .catch((error) => {
      // It ended in this moment.
      if (!PlatformError.is(error) || error.code !== 'conflict') throw error
    })
  return executions.get(workspace, id)
}

/** Of one that was waited for. */
function answerOf(
  execution: Execution,
  result: Uint8Array | null,
  syncMs: number,
): { status: number; body: Record<string, unknown> } {
  const { id, labels, endedAt, status } = execution
  const value = resultOf(result)
  const body = {
    execution_id: id,
    run_id: labels.run,
    status: statusOf(execution),
    ...(value === undefined ? {} : { result: value }),
    duration_ms: durationMsOf(execution) ?? 0,
    ...(endedAt === null ? {} : { finished_at: timeText(endedAt) }),
  }
  if (status === 'succeeded') return { status: 200, body: { ...body, result: value ?? null } }
  const category = errorCategoryOf(execution)
  const failure = { ...body, ...failureView(execution), error_category: category }
  if (endedAt === null) {
    const message = `it goes on: look at it with GET /api/v1/executions/${id}`
    return { status: 504, body: { ...failure, error: 'Agent timeout', message, error_message: message } }
  }
  if (status === 'timed_out') {
    const details = `Execution exceeded ${syncMs / 1000} second limit`
    return { status: 504, body: { ...failure, error: 'Agent timeout', message: details, details } }
  }
  const message = (failure as { error?: string }).error ?? ''
  const retry = category === 'concurrency_limit' ? { retry_after: 1 } : {}
  return { status: httpStatusOf(execution, category), body: { ...failure, message, ...retry } }
}

const httpStatuses: Record<string, number> = {
  target_not_found: 400,
  node_unavailable: 503,
  agent_unreachable: 504,
  concurrency_limit: 429,
  internal_error: 500,
}

/** What an agent refused is refused the same way. */
function httpStatusOf({ status, note }: Execution, category: string): number {
  const said = note.http_status
  if (category === 'agent_error' && typeof said === 'number' && said >= 400 && said < 500) return said
  if (status === 'cancelled') return 409
  return httpStatuses[category] ?? 502
}

function idHeaders({ id, labels }: Execution): Record<string, string> {
  return { 'x-execution-id': id, 'x-run-id': labels.run ?? '' }
}

function callerHeaders(headers: Headers): Record<string, string> {
  return {
    ...optional('x-session-id', headerOf(headers, 'x-session-id')),
    ...optional('x-actor-id', headerOf(headers, 'x-actor-id')),
  }
}

function optional<Name extends string>(name: Name, value: string | null): { [Key in Name]?: string } {
  return value === null ? {} : ({ [name]: value } as { [Key in Name]: string })
}

/** @throws bad_request for one that is too long */
function headerOf(headers: Headers, name: string): string | null {
  const value = headers.get(name)?.trim()
  if (!value) return null
  if (value.length <= headerCharactersMax) return value
  throw new PlatformError('bad_request', `${name}: must be at most ${headerCharactersMax} characters`)
}

function digestOf(target: string, body: unknown): string {
  return createHash('sha256')
    .update(JSON.stringify([target, body]))
    .digest('base64url')
}
