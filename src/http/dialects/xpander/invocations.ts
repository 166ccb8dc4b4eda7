/** From what a client sends to a turn of a thread, and what it is answered with. */
import { PlatformError } from '../../../errors.ts'
import type { BegunTurn, JsonObject, NewTurn, Thread, Threads } from '../../../threads/index.ts'
import { type Invocation, optionNames } from './schema.ts'

/** What a turn needs of where it came from. */
export interface Caller {
  workspace: string
  request: Request
  /** Whether its address for callbacks may be on this machine. */
  loopback: boolean
}

export interface Callbacks {
  checkHeaders(field: string, headers: Record<string, string>): void
  checkAddress(field: string, address: string, options: { loopback: boolean }): Promise<string>
  seal(workspace: string, secret: string): string
}

/** @throws bad_request */
export async function newTurn(
  agentId: string,
  asked: Invocation,
  caller: Caller,
  options: { callbacks: Callbacks; version?: string | null | undefined; source: string },
): Promise<NewTurn> {
  const { workspace, request, loopback } = caller
  const { text, files, user, ...more } = asked.input
  // Empty it may be, as in the page's own example.
  if (typeof text !== 'string' && !files?.length)
    throw new PlatformError('bad_request', 'input.text: missing: what the agent is asked')
  const given: JsonObject = {}
  for (const name of optionNames) {
    const value = asked[name]
    if (value !== undefined && value !== null) given[name] = value as JsonObject[string]
  }
  const tokens: JsonObject = {
    ...(asked.user_tokens ? { user_tokens: asked.user_tokens } : {}),
    ...(asked.user_oidc_token ? { user_oidc_token: asked.user_oidc_token } : {}),
  }
  const { webhook } = asked
  const key = request.headers.get('idempotency-key')
  const turn: NewTurn = {
    workspace,
    agentId,
    input: {
      text: text ?? '',
      files: files ?? [],
      user: user ?? null,
      ...(Object.keys(more).length > 0 ? { more: more as JsonObject } : {}),
    },
    options: given,
    tokens,
    source: asked.source ?? options.source,
    ...(asked.id ? { id: asked.id } : {}),
    ...(asked.title ? { title: asked.title } : {}),
    ...(options.version ? { version: options.version } : {}),
    ...(key === null ? {} : { idempotencyKey: key }),
  }
  if (!webhook) return turn
  options.callbacks.checkHeaders('webhook.headers', webhook.headers ?? {})
  const url = await options.callbacks.checkAddress('webhook.url', webhook.url, { loopback })
  return {
    ...turn,
    callback: {
      dialect: 'xpander',
      url,
      loopback,
      secrets: webhook.secret ? [options.callbacks.seal(workspace, webhook.secret)] : [],
      headers: webhook.headers ?? {},
    },
  }
}

/** The task's turn, once it ended; a client that leaves is waited for no longer. @throws unavailable */
export async function endOf(threads: Threads, turn: BegunTurn, signal: AbortSignal): Promise<Thread> {
  const ended = await threads.ended(turn, { timeoutMs: waitMsMax, signal })
  if (signal.aborted) throw signal.reason
  if (ended.body.finishedAt !== null) return ended
  throw new PlatformError(
    'unavailable',
    `the task "${turn.id}" goes on: look at it with GET /v1/tasks/${turn.id}`,
  )
}

/** Longer than any turn. */
const waitMsMax = 2 * 60 * 60_000
