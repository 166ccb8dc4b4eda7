/** Requests that are answered at once, as a trigger says: in how long, and tried how often. */
import type { Tries } from '../../deployments/index.ts'
import { PlatformError } from '../../errors.ts'
import { ByteRoom } from '../../lib/byte-room.ts'
import type { Clock } from '../../lib/clock.ts'
import { readBytes } from '../body.ts'
import { smallBodyBytesMax } from '../large-bodies.ts'
import type { RouteContext } from '../route.ts'
import { isSocketRequest } from './proxy.ts'

/** What is larger, or of unknown length, is passed on as it comes, and so sent once. */
const repeatedBytesMax = 8 * 1024 * 1024
/** Of all that are kept until they are answered; what has no room among them is sent once as well. */
const keptBytesMax = 64 * 1024 * 1024
const pauseMs = 500
const pauseMsMax = 30_000

type Asked = Pick<
  RouteContext<unknown, unknown, unknown>,
  'request' | 'path' | 'search' | 'origin' | 'consumed' | 'upgrade'
>

/** Large bodies that may have to be sent again. */
export function keptBodies(): ByteRoom {
  return new ByteRoom({ bytesMax: keptBytesMax, waitingMax: 0, what: 'requests are kept to be tried again' })
}

/**
 * Asks, and once more after a pause where the answer is one from 500 on or a 429, or there is none. An answer that has
 * not begun in time is given up. WebSockets are passed by.
 * @throws gateway_timeout, what `ask` throws
 */
export async function tried(
  context: Asked,
  { retries, timeoutMs }: Tries,
  ask: (context: Asked) => Promise<Response>,
  { clock, kept }: { clock: Clock; kept: ByteRoom },
): Promise<Response> {
  const { request } = context
  if (isSocketRequest(request)) return await ask(context)
  const late = new AbortController()
  const begun = new AbortController()
  if (timeoutMs !== null) {
    const failure = new PlatformError(
      'gateway_timeout',
      `The agent did not answer within ${timeoutMs / 1000} seconds, the timeout of the trigger`,
    )
    clock.sleep(timeoutMs, begun.signal).then(
      () => late.abort(failure),
      () => {},
    )
  }
  const signal = AbortSignal.any([request.signal, late.signal])
  const length = Number(request.headers.get('content-length') ?? 0)
  const isLarge = length > smallBodyBytesMax
  const isKept = isRepeatable(request) && (!isLarge || kept.tryTake(length))
  try {
    const body = isKept ? await readBytes(request, repeatedBytesMax) : null
    const asked = () =>
      body === null
        ? new Request(request, { signal })
        : new Request(request.url, partsOf(request, body, signal))
    for (let left = body === null ? 0 : retries, pause = pauseMs; ; left--, pause *= 2) {
      const outcome = await ask({ ...context, request: asked() }).catch((error: unknown) => error)
      const isLast = left === 0 || signal.aborted || !mayHelp(outcome)
      if (isLast && outcome instanceof Response) return outcome
      if (isLast) throw late.signal.aborted ? late.signal.reason : outcome
      if (outcome instanceof Response) await outcome.body?.cancel()
      await clock.sleep(Math.min(pause, pauseMsMax), signal)
    }
  } catch (error) {
    throw late.signal.aborted ? late.signal.reason : error
  } finally {
    begun.abort()
    if (isKept && isLarge) kept.leave(length)
  }
}

function isRepeatable({ body, headers }: Request): boolean {
  const length = headers.get('content-length')
  return body === null || (length !== null && Number(length) <= repeatedBytesMax)
}

function partsOf({ method, headers }: Request, body: Uint8Array, signal: AbortSignal): RequestInit {
  const bodiless = method === 'GET' || method === 'HEAD'
  return { method, headers, signal, ...(bodiless ? {} : { body: body as BodyInit }) }
}

function mayHelp(outcome: unknown): boolean {
  if (outcome instanceof Response) return outcome.status >= 500 || outcome.status === 429
  return PlatformError.is(outcome) && (outcome.retryable || outcome.code === 'bad_gateway')
}
