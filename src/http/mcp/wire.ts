import { PlatformError } from '../../errors.ts'
import { parseJson } from '../body.ts'
import type { WholeBody } from '../whole-body.ts'
import { errorMessage, RpcError, rpcCodes } from './messages.ts'

/** What the protocol says of HTTP: headers, statuses and events, for whoever answers. */

/** Newest first: the first is offered to a client that asks for one we do not know. */
export const protocolVersions = ['2025-11-25', '2025-06-18', '2025-03-26', '2024-11-05'] as const
/** What a client speaks that does not say so. */
const protocolVersionDefault = '2025-03-26'
/** The versions in which one body may hold several messages. */
const batchVersions = new Set<string>(['2025-03-26', '2024-11-05'])
const batchMessagesMax = 32
const sessionPattern = /^[\x21-\x7e]{1,128}$/

/** An answer at once, or one whose body goes on: a stream of messages, cancelled by its reader. */
export type McpAnswer = Response | { messages: AsyncIterable<string>; headers: Record<string, string> }

/** What was sent by POST, before any message in it is looked at. */
export interface Posted {
  accepts: { json: boolean; events: boolean }
  text: string
  body: unknown
  version: string
}

/** What is refused becomes an answer in the protocol's own form; what failed in the platform is thrown on. */
export async function orRefusal(answering: Promise<McpAnswer>): Promise<McpAnswer> {
  try {
    return await answering
  } catch (error) {
    if (error instanceof HttpRefusal) return error.response
    if (error instanceof RpcError) return jsonAnswer(errorMessage(null, error), 400)
    if (PlatformError.is(error) && error.code !== 'internal') {
      const { message, status, retryAfterSeconds } = error
      const headers: Record<string, string> = {}
      if (retryAfterSeconds !== undefined) headers['retry-after'] = String(retryAfterSeconds)
      return jsonAnswer(errorMessage(null, new RpcError(refusalCode, message)), status, headers)
    }
    throw error
  }
}

/** @throws HttpRefusal, RpcError parseError, body_too_large */
export async function readPosted(request: Request, whole: WholeBody, bytesMax: number): Promise<Posted> {
  const accepts = acceptedBy(request)
  if (!/^application\/json\s*(;|$)/i.test(request.headers.get('content-type') ?? '')) {
    throw refusal(415, 'Content-Type: must be application/json')
  }
  const text = await whole.text(bytesMax)
  const version = request.headers.get('mcp-protocol-version') ?? protocolVersionDefault
  return { accepts, text, body: parseBody(text), version }
}

export function initializes(body: unknown): boolean {
  return !Array.isArray(body) && (body as { method?: unknown } | null)?.method === 'initialize'
}

/** @throws HttpRefusal when that many messages in one body are not allowed */
export function checkBatch(body: unknown[], version: string): void {
  if (!batchVersions.has(version)) {
    throw refusal(400, `Several messages in one body are not part of protocol version ${version}`)
  }
  if (body.length === 0 || body.length > batchMessagesMax) {
    throw refusal(400, `A batch holds 1 to ${batchMessagesMax} messages, this one ${body.length}`)
  }
}

/** Which kinds of answers the client takes; without a word of it, every kind. */
export function acceptedBy(request: Request): { json: boolean; events: boolean } {
  const accept = request.headers.get('accept')?.toLowerCase() ?? '*/*'
  const any = accept.includes('*/*')
  const json = any || accept.includes('application/json') || accept.includes('application/*')
  const events = accept.includes('text/event-stream') || (any && accept !== '*/*')
  if (!json && !events) {
    throw refusal(406, 'Accept: must name application/json and text/event-stream')
  }
  return { json, events }
}

export function sessionOf(request: Request): string | null {
  const session = request.headers.get('mcp-session-id')
  if (session !== null && !sessionPattern.test(session)) {
    throw refusal(400, 'Mcp-Session-Id: must be 1 to 128 visible ASCII characters')
  }
  return session
}

function parseBody(text: string): unknown {
  try {
    return parseJson(text)
  } catch (error) {
    if (!PlatformError.is(error)) throw error
    throw new RpcError(rpcCodes.parseError, error.message)
  }
}

/** For what HTTP refuses before any message is looked at. */
const refusalCode = -32000

class HttpRefusal extends Error {
  constructor(readonly response: Response) {
    super('refused')
  }
}

export function refusal(status: number, message: string, headers: Record<string, string> = {}): HttpRefusal {
  return new HttpRefusal(jsonAnswer(errorMessage(null, new RpcError(refusalCode, message)), status, headers))
}

export function jsonAnswer(body: object, status = 200, headers: Record<string, string> = {}): Response {
  return new Response(JSON.stringify(body), {
    status,
    headers: { ...headers, 'content-type': 'application/json' },
  })
}

/** One answer, as JSON text on one line, in the form that the client takes. */
export function textAnswer(
  text: string,
  accepts: Posted['accepts'],
  headers: Record<string, string> = {},
): Response {
  return accepts.json
    ? new Response(text, { headers: { ...headers, 'content-type': 'application/json' } })
    : new Response(eventText(text), { headers: { ...headers, ...eventHeaders } })
}

export const eventHeaders = { 'content-type': 'text/event-stream', 'x-accel-buffering': 'no' }

/** `data`: one line. */
export function eventText(data: string): string {
  return `event: message\ndata: ${data}\n\n`
}
