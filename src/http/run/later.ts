/** Requests to agents that are answered later: taken up here, made by the same way as every other. */
import type { StoredTrigger } from '../../deployments/index.ts'
import { PlatformError } from '../../errors.ts'
import type { Clock } from '../../lib/clock.ts'
import { unpacked } from '../../lib/content-encoding.ts'
import type { Logger } from '../../lib/log.ts'
import {
  type AgentAnswer,
  type AgentRequest,
  agentAnswerBytesMax,
  agentRequestBytesMax,
  type CallAgent,
  type Triggers,
  turnHeaders,
} from '../../triggers/index.ts'
import { errorResponse } from '../errors.ts'
import type { LargeAnswers } from '../large-answers.ts'
import type { RouteContext } from '../route.ts'
import { splitUrl } from '../url.ts'
import { type DeploymentPlane, serveDeployment } from './deployments.ts'
import { withoutParameters } from './proxy.ts'

export type LaterCalls = Pick<Triggers['agents'], 'accept'>

/** Which execution a request became. */
const executionHeader = 'x-hutch-execution'
const idempotencyHeader = 'idempotency-key'
/** Of the connection that it came by, or told anew. */
const leftBehind = new Set([
  'content-length',
  'connection',
  'keep-alive',
  'transfer-encoding',
  'expect',
  'te',
  // What is kept and told is the answer itself, in no encoding that its client happened to know: so none is asked for.
  'accept-encoding',
])
const asyncParameter = 'async'
/** What a deployment says in place of its program. */
const beforehand = new Set(['too_many_requests', 'workload_unavailable', 'unavailable'])

/** Answers once the request is kept; it is made after that. @throws what accepting it throws */
export async function acceptLater(
  context: Pick<RouteContext<unknown, unknown, unknown>, 'request' | 'origin' | 'consumed' | 'whole'>,
  target: { workspace: string; name: string; trigger: StoredTrigger | null; path: string | null },
  calls: LaterCalls,
): Promise<Response> {
  const { request, origin, consumed, whole } = context
  const { workspace, name, trigger } = target
  const prefix = `/${workspace}/agents/${name}`
  const { path, search } = splitUrl(request.url)
  const below = path.split('/').slice(4).join('/')
  const left = new Set([...leftBehind, ...Object.values(turnHeaders), ...consumed.headers])
  const body = await whole.bytes(agentRequestBytesMax)
  const { execution } = await calls.accept({
    workspace,
    name,
    trigger,
    request: {
      method: request.method,
      path: target.path ?? `/${below}`,
      search: withoutParameters(search, [asyncParameter, ...consumed.query]),
      headers: [...request.headers].filter(([header]) => !left.has(header)),
      origin,
      prefix,
      body,
    },
    idempotencyKey: request.headers.get(idempotencyHeader),
    turn: request.headers,
  })
  return Response.json({ success: true }, { status: 202, headers: { [executionHeader]: execution.id } })
}

/** Makes kept requests, as if their clients asked now and waited for as long as it takes. */
export function agentCaller(options: {
  plane: () => DeploymentPlane
  answers: LargeAnswers
  clock: Clock
  log: Logger
}): CallAgent {
  return async ({ workspace, name }, kept, executionId, signal) => {
    try {
      const answer = await serveDeployment(
        {
          request: requestOf(kept, signal),
          path: kept.path,
          search: kept.search,
          publicOrigin: kept.origin,
          publicPrefix: kept.prefix,
          consumed: { headers: [], query: [] },
          upgrade: null,
          workspace,
          kind: 'agent',
          name,
          timed: false,
          holdsPieces: true,
          requestHeaders: { [executionHeader]: executionId },
        },
        options.plane(),
      )
      // An agent may pack its answer unasked.
      const room = { bytesMax: agentAnswerBytesMax, program: `${workspace}/agents/${name}`, signal }
      const { body } = options.answers.kept(unpacked(answer), room)
      return await wholeAnswer(answer, body, options.clock)
    } catch (error) {
      signal.throwIfAborted()
      return await failedAnswer(error, executionId, options)
    }
  }
}

function requestOf(kept: AgentRequest, signal: AbortSignal): Request {
  const { method, path, search, headers, origin, prefix, body } = kept
  const sent = new Headers(headers)
  // So that it passes in one piece.
  sent.set('content-length', String(body.length))
  return new Request(`${origin}${prefix}${path}${search}`, {
    method,
    headers: sent,
    body: body as BodyInit,
    signal,
  })
}

/** @throws bad_gateway when it is not whole */
async function wholeAnswer(
  { status, headers }: Response,
  body: ReadableStream<Uint8Array> | null,
  clock: Clock,
): Promise<AgentAnswer> {
  const chunks: Uint8Array[] = []
  let bytes = 0
  try {
    for await (const chunk of body ?? []) {
      bytes += chunk.length
      if (bytes > agentAnswerBytesMax) return tooLarge()
      chunks.push(chunk)
    }
  } catch (cause) {
    if (PlatformError.is(cause)) throw cause
    const encoding = headers.get('content-encoding')
    const otherwise =
      encoding === null ? '' : `, or its body is not the ${encoding.slice(0, 40)} that it says`
    throw new PlatformError('bad_gateway', `the agent hung up in the middle of its answer${otherwise}`, {
      cause,
    })
  }
  return {
    status,
    type: headers.get('content-type') ?? 'application/octet-stream',
    body: Buffer.concat(chunks, bytes),
    retryAfterMs: retryAfterOf(headers, clock.now()),
    failure: null,
    retry: status >= 500 || status === 429,
    notAsked: false,
  }
}

function tooLarge(): AgentAnswer {
  const message = `the agent's answer is larger than ${agentAnswerBytesMax / 2 ** 20} MiB, the most that is told later`
  return {
    status: 502,
    type: 'application/json',
    body: Buffer.from(JSON.stringify({ error: { code: 'ANSWER_TOO_LARGE', status: 502, message } })),
    retryAfterMs: null,
    failure: { code: 'answer_too_large', message },
    // The next one would be, too.
    retry: false,
    notAsked: false,
  }
}

/** As a client that waited would be told. */
async function failedAnswer(
  error: unknown,
  requestId: string,
  { clock, log }: { clock: Clock; log: Logger },
): Promise<AgentAnswer> {
  const response = errorResponse(error, 'gateway', { log, now: clock.now(), requestId })
  const body = await response.bytes()
  const known = PlatformError.is(error) ? error : null
  return {
    status: response.status,
    type: 'application/json',
    body,
    retryAfterMs: retryAfterOf(response.headers, clock.now()),
    failure: {
      code: known?.code ?? 'internal',
      message: known?.message ?? 'Something failed in the platform',
    },
    retry: known?.retryable ?? true,
    notAsked: known?.retryable === true && beforehand.has(known.code),
  }
}

function retryAfterOf(headers: Headers, nowMs: number): number | null {
  const text = headers.get('retry-after')?.trim() ?? ''
  const ms = /^\d{1,9}$/.test(text) ? Number(text) * 1000 : Date.parse(text) - nowMs
  return ms >= 0 ? ms : null
}
