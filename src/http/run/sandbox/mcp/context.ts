import type { Codegen } from '../../../../codegen/index.ts'
import { PlatformError } from '../../../../errors.ts'
import type { SandboxLease } from '../../../../sandboxes/index.ts'
import { WholeBody } from '../../../whole-body.ts'
import type { SandboxAnswer, SandboxCall } from '../call.ts'

/** What a tool works with: one sandbox, and the same API of it that its HTTP clients have. */
export interface ToolContext {
  readonly lease: SandboxLease
  readonly rest: SandboxRest
  readonly codegen: Codegen
}

export interface RestOptions {
  query?: Record<string, string | number | boolean | undefined>
  body?: object
  signal?: AbortSignal
}

/** An answer larger than this is refused rather than put into a model's context. */
const answerBytesMax = 8 * 1024 * 1024

/**
 * The sandbox's own routes, called without a connection. A tool that goes through them has their path rules, limits
 * and messages, today and when they change.
 */
export class SandboxRest {
  constructor(
    private readonly call: SandboxCall,
    private readonly handle: (call: SandboxCall) => Promise<SandboxAnswer>,
  ) {}

  /** The answer's JSON. @throws what the route throws; unprocessable when the answer is too large for a tool */
  async json(method: string, path: string, options: RestOptions = {}): Promise<Record<string, unknown>> {
    const query = new URLSearchParams()
    for (const [name, value] of Object.entries(options.query ?? {})) {
      if (value !== undefined) query.set(name, String(value))
    }
    const request = new Request('http://sandbox.invalid/', {
      method,
      headers: { accept: 'application/json' },
      ...(options.body === undefined ? {} : { body: JSON.stringify(options.body) }),
      signal: options.signal ?? this.call.request.signal,
    })
    // What it sends is here already.
    const whole = new WholeBody(request, null)
    const answer = await this.handle({ ...this.call, request, whole, path, query, onEnd() {} })
    const response = answer instanceof Response ? answer : answer.streaming
    const parsed: unknown = JSON.parse(await textOf(response))
    if (typeof parsed !== 'object' || parsed === null) throw new TypeError(`${path} answered with no object`)
    const body = parsed as Record<string, unknown>
    if (!response.ok) {
      throw new PlatformError('unprocessable', String(body.error ?? `${path} answered ${response.status}`))
    }
    return body
  }
}

async function textOf(response: Response): Promise<string> {
  const chunks: Uint8Array[] = []
  let bytes = 0
  for await (const chunk of response.body ?? []) {
    bytes += chunk.length
    // Leaving the loop cancels the body.
    if (bytes > answerBytesMax) {
      throw new PlatformError(
        'unprocessable',
        `the answer is larger than ${answerBytesMax} bytes, the most a tool gives: ask for less of it`,
      )
    }
    chunks.push(chunk)
  }
  return Buffer.concat(chunks, bytes).toString()
}

/** A path as a tool is given it, for the route of a file: every segment escaped, slashes as they are. */
export function pathInUrl(path: string): string {
  return path.split('/').map(encodeURIComponent).join('/')
}
