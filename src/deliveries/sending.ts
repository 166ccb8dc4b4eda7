import { PlatformError } from '../errors.ts'
import type { Clock } from '../lib/clock.ts'
import type { Dialer } from '../lib/dialer.ts'
import type { DeliveryAttempt } from './record.ts'

const excerptBytesMax = 1024
const retryAfterMsMax = 24 * 60 * 60 * 1000

export interface Sending {
  url: string
  headers: Record<string, string>
  body: Uint8Array
  loopback: boolean
  answerMsMax: number
}

export interface Sent {
  attempt: DeliveryAttempt
  delivered: boolean
  /** It wants no more of it. */
  refused: boolean
  /** How long the receiver asks to be left alone; 0: it does not. */
  retryAfterMs: number
}

class TooLate extends Error {}

/** One request to a receiver, within its time. @throws what `signal` was aborted with */
export async function send(
  sending: Sending,
  { dialer, clock, signal }: { dialer: Pick<Dialer, 'open'>; clock: Clock; signal: AbortSignal },
): Promise<Sent> {
  const { url, headers, body, loopback, answerMsMax } = sending
  const at = new Date(clock.now()).toISOString()
  const began = clock.monotonic()
  const over = new AbortController()
  const late = new AbortController()
  const timer = clock.sleep(answerMsMax, over.signal).then(
    () => late.abort(new TooLate()),
    () => {},
  )
  const told = (rest: Partial<Sent> & Pick<DeliveryAttempt, 'status' | 'bodyExcerpt' | 'error'>): Sent => {
    const { status, bodyExcerpt, error, delivered = false, refused = false, retryAfterMs = 0 } = rest
    const latencyMs = Math.round(clock.monotonic() - began)
    return { attempt: { at, status, latencyMs, bodyExcerpt, error }, delivered, refused, retryAfterMs }
  }
  try {
    const response = await dialer.open(url, {
      method: 'POST',
      // What is kept of the answer is small, and no few bytes shall unfold to many.
      headers: { ...headers, 'accept-encoding': 'identity' },
      raw: true,
      body: body as Uint8Array<ArrayBuffer>,
      loopback,
      signal: AbortSignal.any([signal, late.signal]),
      what: 'the receiver of the callback',
    })
    const { status } = response
    const bodyExcerpt = await excerpt(response)
    signal.throwIfAborted()
    const delivered = status >= 200 && status < 300
    return told({
      status,
      bodyExcerpt,
      delivered,
      refused: status === 410,
      retryAfterMs: delivered ? 0 : retryAfterOf(response.headers, clock.now()),
      error: delivered ? null : reasonOf(status),
    })
  } catch (error) {
    signal.throwIfAborted()
    const why = late.signal.aborted
      ? `no answer within ${answerMsMax / 1000} s`
      : PlatformError.is(error)
        ? error.message
        : 'the connection broke before an answer'
    return told({ status: null, bodyExcerpt: '', error: why })
  } finally {
    over.abort()
    await timer
  }
}

/** The beginning of the body; what comes too late, or not whole, is not needed: the status said it all. */
async function excerpt(response: Response): Promise<string> {
  const chunks: Uint8Array[] = []
  let bytes = 0
  const reader = response.body?.getReader()
  try {
    while (reader !== undefined && bytes < excerptBytesMax) {
      const { done, value } = await reader.read()
      if (done) break
      chunks.push(value.slice(0, excerptBytesMax - bytes))
      bytes += value.length
    }
  } catch {}
  reader?.cancel().catch(() => {})
  // Cut anywhere, and of whatever kind: as text that can be stored and shown.
  return new TextDecoder().decode(Buffer.concat(chunks)).replaceAll('\0', '\ufffd')
}

function reasonOf(status: number): string {
  if (status >= 300 && status < 400) return `redirects are not followed (${status})`
  return status === 410 ? 'the receiver wants no more of it (410)' : `the receiver answered ${status}`
}

function retryAfterOf(headers: Headers, nowMs: number): number {
  const text = headers.get('retry-after')?.trim() ?? ''
  const ms = /^\d{1,9}$/.test(text) ? Number(text) * 1000 : Date.parse(text) - nowMs
  return ms > 0 ? Math.min(ms, retryAfterMsMax) : 0
}
