import { type Advice, type ErrorCode, PlatformError } from '../errors.ts'
import type { Logger } from '../lib/log.ts'
import type { ErrorShape } from './route.ts'

/** What the gateway envelope tells a program to do next. */
const advice: Partial<Record<ErrorCode, Advice>> = {
  bad_request: { action: 'Correct the request as the message says.', doNot: 'Send the same request again.' },
  authentication_required: {
    action: 'Send an API key or access token as "Authorization: Bearer".',
    doNot: 'Retry without a credential.',
  },
  authentication_failed: {
    action: 'Use a valid API key or a new access token.',
    doNot: 'Retry with this one.',
  },
  forbidden: { action: 'Use a credential that has this right.', doNot: 'Retry with the same credential.' },
  route_not_found: { action: "Use the resource's metadata.url.", doNot: 'Retry the same address.' },
  workload_not_found: {
    action: 'Create the resource, or correct its name.',
    doNot: 'Retry before it exists.',
  },
  workload_unavailable: {
    action: 'Retry with backoff from 500 ms to 30 s, for about a minute, then create it again.',
    doNot: 'Retry without a pause.',
  },
  body_too_large: { action: 'Send a smaller body.', doNot: 'Send the same body again.' },
  bad_gateway: {
    action: 'Check that the program inside listens on this port and answers.',
    doNot: 'Retry a request that may have had an effect.',
  },
}
const retryAdvice: Advice = { action: 'Retry with backoff.', doNot: 'Retry without a pause.' }
const finalAdvice: Advice = { action: 'Read the message.', doNot: 'Send the same request again.' }

/** What kind of failure it is, as programs of AgentField tell them apart. */
const category: Partial<Record<ErrorCode, string>> = {
  workload_not_found: 'target_not_found',
  workload_unavailable: 'node_unavailable',
  too_many_requests: 'queue_full',
  bad_gateway: 'agent_unreachable',
  gateway_timeout: 'agent_timeout',
  unavailable: 'control_plane_shutdown',
  internal: 'internal_error',
}

/** The one place that turns a failure into a response. Anything but a PlatformError is logged and stays private. */
export function errorResponse(
  error: unknown,
  shape: ErrorShape,
  context: { log: Logger; now: number; requestId: string; route?: string; advice?: Advice },
): Response {
  const failure = PlatformError.is(error) ? error : internalError(error, context)
  // What is not there is asked for by mistake, which is nothing for the operator.
  if (failure.status >= 500 && failure.code !== 'not_implemented') logFailure(failure, error, context)
  const headers = new Headers()
  if (failure.retryAfterSeconds !== undefined) {
    headers.set('retry-after', String(Math.ceil(failure.retryAfterSeconds)))
  }
  if (failure.status === 401) headers.set('www-authenticate', 'Bearer realm="hutch"')
  if (failure.status === 409) headers.set('x-should-retry', 'false')
  if (failure.status === 405 && typeof failure.details?.allow === 'string') {
    headers.set('allow', failure.details.allow)
  }
  if (shape === 'oauth') headers.set('cache-control', 'no-store')
  if (shape === 'gateway') {
    headers.set('x-blaxel-source', 'platform')
    headers.set('x-blaxel-error-code', gatewayCode(failure.code))
    // Sending a run-plane request twice can run work twice; the envelope says when that is safe.
    if (failure.status >= 500) headers.set('x-should-retry', 'false')
  }
  const status = shape === 'xpander' && failure.code === 'bad_request' ? 422 : failure.status
  return Response.json(body(failure, shape, context), { status, headers })
}

/** The code as the data plane spells it, `WORKLOAD_UNAVAILABLE`. */
export function gatewayCode(code: ErrorCode): string {
  return code === 'body_too_large' ? 'REQUEST_ENTITY_TOO_LARGE' : code.toUpperCase()
}

function body(
  failure: PlatformError,
  shape: ErrorShape,
  { now, advice: special }: { now: number; advice?: Advice },
): object {
  const { code, status, message, details } = failure
  switch (shape) {
    case 'control':
      return { ...details, error: code, code: status, message }
    case 'creation': {
      const { code: word, ...more } = details ?? {}
      return {
        ...more,
        error: code,
        // Of a name that is taken clients expect the number.
        code: status === 409 ? status : typeof word === 'string' ? word : code.toUpperCase(),
        message,
        status_code: status,
        timestamp: new Date(now).toISOString(),
      }
    }
    case 'sandbox':
      return { error: message, ...(typeof details?.code === 'string' && { code: details.code }) }
    case 'agentfield':
      return {
        ...(category[code] === undefined ? {} : { error_category: category[code] }),
        ...(failure.retryAfterSeconds === undefined ? {} : { retry_after: failure.retryAfterSeconds }),
        error: message,
        message,
        code,
        ...details,
      }
    case 'xpander':
      return { detail: failure.code === 'bad_request' ? [validation(failure)] : message }
    case 'oauth':
      return { error: oauthError(failure), error_description: message }
    case 'gateway': {
      const { action, doNot } =
        special ?? failure.advice ?? advice[code] ?? (failure.retryable ? retryAdvice : finalAdvice)
      return {
        error: {
          code: gatewayCode(code),
          status,
          message,
          origin: 'platform',
          retryable: failure.retryable,
          action,
          do_not: doNot,
          timestamp: new Date(now).toISOString().replace('Z', '+00:00'),
        },
      }
    }
  }
}

/** What was wrong with a request, as clients of xpander read it: which field, and what it should be. */
function validation({ message }: PlatformError): object {
  const [, field, what] = /^([A-Za-z_][\w.[\]-]*): (.*)$/s.exec(message) ?? []
  const loc =
    field === undefined || field === 'body' ? [] : field.split(/[.[\]]+/).filter((step) => step !== '')
  return { type: 'value_error', loc: ['body', ...loc], msg: what ?? message }
}

function oauthError(failure: PlatformError): string {
  if (typeof failure.details?.error === 'string') return failure.details.error
  return failure.status >= 500 ? 'server_error' : 'invalid_request'
}

function internalError(error: unknown, context: { requestId: string }): PlatformError {
  return new PlatformError(
    'internal',
    `Something failed in the platform: its log has request ${context.requestId}`,
    {
      cause: error,
    },
  )
}

function logFailure(
  failure: PlatformError,
  error: unknown,
  context: { log: Logger; requestId: string; route?: string },
): void {
  const cause = failure.cause ?? error
  const fields = {
    requestId: context.requestId,
    route: context.route,
    code: failure.code,
    cause: cause instanceof Error ? (cause.stack ?? cause.message) : String(cause),
  }
  if (failure.code === 'internal') context.log.error('a request failed', fields)
  // What a program inside did or did not do is its owner's affair, not the operator's.
  else if (failure.code === 'bad_gateway') context.log.debug('a program inside did not answer', fields)
  else context.log.warn('a request failed', fields)
}
