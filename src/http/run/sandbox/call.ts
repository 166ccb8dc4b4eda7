import type { z } from 'zod'
import { PlatformError } from '../../../errors.ts'
import type { SandboxLease } from '../../../sandboxes/index.ts'
import { parseJson, parseWith } from '../../body.ts'
import { jsonBodyBytesMax, type RouteContext, type SendFile } from '../../route.ts'
import type { WholeBody } from '../../whole-body.ts'

/**
 * That programs inside a sandbox make of its own API at once: each may hold a megabyte of output that its reader does not
 * take.
 */
export const callsFromInsideMax = 128

/** One request to the API of one sandbox, whatever way it came: by the sandbox's address or by a session's. */
export interface SandboxCall {
  readonly request: Request
  readonly whole: WholeBody
  readonly lease: SandboxLease
  /** Undecoded, as seen from the sandbox's address: `/filesystem/%2Ftmp`. */
  readonly path: string
  readonly query: URLSearchParams
  readonly credentialed: boolean
  readonly sendFile: SendFile | null
  /** Takes the connection over as a WebSocket; null where there is none to take over. */
  readonly upgrade: RouteContext<unknown, unknown, unknown>['upgrade']
  /** To be called when the exchange is over, by an answer that `endsItself`. */
  readonly onEnd: () => void
}

/** A body that outlives the handler. */
export interface StreamingAnswer {
  streaming: Response
  /** The body calls `onEnd` itself. */
  endsItself?: boolean
  /** Nobody else holds the chunks of the body. */
  handsOver?: boolean
}

export type SandboxAnswer = Response | StreamingAnswer

/** On every answer of the sandbox API. */
export const apiHeaders: Record<string, string> = {
  'access-control-allow-origin': '*',
  'cache-control': 'no-cache, no-store, must-revalidate',
  'x-content-type-options': 'nosniff',
}

export function json(body: unknown, status = 200): Response {
  return new Response(JSON.stringify(body), {
    status,
    headers: { ...apiHeaders, 'content-type': 'application/json; charset=utf-8' },
  })
}

/** What the sandbox API says to a route or method that it does not have. */
export function pageNotFound(): Response {
  return new Response('404 page not found', {
    status: 404,
    headers: { ...apiHeaders, 'content-type': 'text/plain' },
  })
}

/** The JSON body, whatever its Content-Type says. @throws bad_request, body_too_large */
export async function readJsonBody<Schema extends z.ZodType>(
  call: SandboxCall,
  schema: Schema,
  bytesMax = jsonBodyBytesMax,
): Promise<z.output<Schema>> {
  const text = await call.whole.text(bytesMax)
  try {
    return parseWith(schema, parseJson(text), 'body')
  } catch (error) {
    if (!PlatformError.is(error) || error.code !== 'bad_request') throw error
    throw new PlatformError('bad_request', `invalid request body: ${error.message}`)
  }
}

/** Percent-decoding that leaves a '%' which starts no escape as it is. @throws bad_request */
export function decodePath(raw: string): string {
  let decoded: string
  try {
    decoded = raw.replace(/(?:%[0-9a-fA-F]{2})+/g, decodeURIComponent)
  } catch {
    throw new PlatformError('bad_request', 'path: its escapes are not valid UTF-8')
  }
  if (decoded.includes('\0')) throw new PlatformError('bad_request', 'path: must not contain NUL')
  return decoded
}
