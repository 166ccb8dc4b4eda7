import { createHash } from 'node:crypto'
import type { Deliveries } from '../deliveries/index.ts'
import type { Deployments, StoredTrigger } from '../deployments/index.ts'
import { PlatformError } from '../errors.ts'
import type { Attempt, AttemptOutcome, Execution, Executions, NewExecution } from '../executions/index.ts'
import { badRequest, quoted } from '../lib/checks.ts'
import type { Clock } from '../lib/clock.ts'
import type { SecretBox } from '../lib/secret-box.ts'
import { workInputBytesMax } from '../spec/queue.ts'
import { type AgentRequest, requestNote, requestOf } from './request.ts'
import { turnOf } from './turn.ts'

const agentSource = 'agent'
/** The words in which a callback of this source is told. */
const dialect = 'blaxel'

export const agentRequestBytesMax = 32 * 1024 * 1024
/** Of an agent's answer that is kept, and told. */
export const agentAnswerBytesMax = 8 * 1024 * 1024
/** Told of an answer that is too large as JSON, where a character may take six bytes. */
const beginningCharactersMax = 4 * 1024 * 1024
const timeoutMsDefault = 15 * 60_000
/** In all, and of one agent, so that one that takes its time leaves room for the others. */
const runningMax = 1024
const agentRunningMax = 256
/** Who is busy is asked again, after a pause that grows. */
const pauseMs = 500
const pauseMsMax = 5_000
/** What is not served is waited for as clients are told to; being busy may last. */
const unservedMsMax = 60_000
const retryDelayMs = 1000
const retryDelayMsMax = 60_000
const idempotencyKeyCharactersMax = 255
const retryAfterMsMax = 60 * 60_000

/** What an agent answered, or what the platform says in its place. */
export interface AgentAnswer {
  status: number
  type: string
  body: Uint8Array
  /** As the answer asks for, in milliseconds. */
  retryAfterMs: number | null
  /** No answer came, or none that can be kept: this is the platform's word. */
  failure: { code: string; message: string } | null
  /** Whether another try may help. */
  retry: boolean
  /** The agent had no room, or was not up: it knows nothing of the request. */
  notAsked: boolean
}

/** Makes a request to an agent, by the way that every request to one takes. @throws what `signal` was aborted with */
export type CallAgent = (
  target: { workspace: string; name: string },
  request: AgentRequest,
  executionId: string,
  signal: AbortSignal,
) => Promise<AgentAnswer>

export interface AgentCall {
  workspace: string
  name: string
  /** Null: none, and so no callback. */
  trigger: StoredTrigger | null
  request: AgentRequest
  idempotencyKey: string | null
  /** How long it is known, where that is not a day. */
  idempotencyMs?: number
  /** Headers that may say when it has its turn. */
  turn?: Headers
  labels?: Record<string, string>
}

interface CallbackGiven {
  dialect: string
  url: string
  name: string
  uid: string
  trigger: string
  secrets: string[]
}

/** Requests to agents that are answered later: accepted durably, made once, told to the trigger's address. */
export class AgentCalls {
  readonly #executions: Pick<Executions, 'accept'>
  readonly #deployments: Pick<Deployments, 'standing' | 'triggers'>
  readonly #deliveries: Deliveries
  readonly #secrets: Pick<SecretBox, 'seal' | 'open'>
  readonly #call: CallAgent
  readonly #clock: Clock

  constructor(options: {
    executions: Pick<Executions, 'accept' | 'runner' | 'callbacks'>
    deployments: Pick<Deployments, 'standing' | 'triggers'>
    deliveries: Deliveries
    secrets: Pick<SecretBox, 'seal' | 'open'>
    call: CallAgent
    clock: Clock
  }) {
    const { executions, deployments, deliveries } = options
    this.#executions = executions
    this.#deployments = deployments
    this.#deliveries = deliveries
    this.#secrets = options.secrets
    this.#call = options.call
    this.#clock = options.clock
    executions.runner(agentSource, (attempt, signal) => this.#run(attempt, signal), { runningMax })
    executions.callbacks(dialect, (execution, result, given) =>
      this.#compose(execution, result, given as unknown as CallbackGiven),
    )
    deliveries.signer(dialect, async (workspace, { name = '', uid = '', trigger = '' }) =>
      deployments.triggers.secrets({ workspace, kind: 'agent', name, uid }, trigger),
    )
  }

  /**
   * Durable once it resolves.
   * @throws workload_not_found, bad_request, body_too_large, conflict for an idempotency key that came with another
   * request, too_many_requests
   */
  async accept(asked: AgentCall): Promise<{ execution: Execution; existing: boolean }> {
    const { workspace, name, trigger, request, idempotencyKey, idempotencyMs, turn, labels = {} } = asked
    if (idempotencyKey !== null) checkIdempotencyKey(idempotencyKey)
    if (request.body.length > agentRequestBytesMax)
      throw new PlatformError(
        'body_too_large',
        `The body is larger than ${agentRequestBytesMax} bytes, the most of a request that is answered later`,
      )
    const found = this.#deployments.standing(workspace, 'agent', name)
    if (found === null || found.state === 'deleting')
      throw new PlatformError(
        'workload_not_found',
        `there is no agent "${name.slice(0, 64)}" in the workspace "${workspace}"`,
      )
    const { uid, state, gates } = found
    if (state !== 'active')
      throw new PlatformError(
        'workload_unavailable',
        `the agent "${name}" is deactivated: activate it first (spec.enabled)`,
        { advice: { action: 'Activate it.', doNot: 'Retry before that.' } },
      )
    const { retry = 0, timeout, callbackUrl } = trigger?.configuration ?? {}
    const callback =
      trigger === null || callbackUrl === undefined
        ? null
        : await this.#callback(workspace, { name, uid, trigger: trigger.id, url: callbackUrl })
    const execution: NewExecution = {
      workspace,
      source: agentSource,
      target: { kind: 'agent', name },
      targetRunningMax: agentRunningMax,
      input: request.body,
      inputIsGiven: true,
      note: requestNote(request, purpose(workspace), this.#secrets),
      labels: { ...(trigger === null ? {} : { trigger: trigger.id }), ...labels },
      timeoutMs: timeout === undefined ? timeoutMsDefault : timeout * 1000,
      retry: { attemptsMax: 1 + retry, delayMs: retryDelayMs, delayMsMax: retryDelayMsMax },
      ...(idempotencyKey === null
        ? {}
        : {
            idempotency: {
              key: `agent/${name}/${idempotencyKey}`,
              digest: digestOf(request),
              ...(idempotencyMs === undefined ? {} : { keptMs: idempotencyMs }),
            },
          }),
      ...(turn === undefined ? {} : turnOf(turn, this.#clock.now())),
      ...(gates.atOnce === null ? {} : { targetRunningMax: gates.atOnce }),
      ...(callback === null ? {} : { callback: { ...callback } }),
    }
    try {
      return await this.#executions.accept(execution)
    } catch (error) {
      if (idempotencyKey === null || !PlatformError.is(error) || error.code !== 'conflict') throw error
      // In the client's words: the engine's key has the agent in it.
      throw new PlatformError(
        'conflict',
        `Idempotency-Key: ${quoted(idempotencyKey)} came with another request before: send a new one for this`,
        { cause: error },
      )
    }
  }

  async #callback(workspace: string, of: Omit<CallbackGiven, 'dialect' | 'secrets'>): Promise<CallbackGiven> {
    const { name, uid, trigger } = of
    const secrets = await this.#deployments.triggers.secrets({ workspace, kind: 'agent', name, uid }, trigger)
    const sealed = (secrets ?? []).map((secret) => this.#deliveries.seal(workspace, secret))
    return { dialect, ...of, secrets: sealed }
  }

  async #run({ execution, input }: Attempt, signal: AbortSignal): Promise<AttemptOutcome> {
    const { workspace, target, id } = execution
    const kept = { note: execution.note, body: input }
    const request = requestOf(kept, purpose(workspace), this.#secrets)
    const answer = await this.#ask({ workspace, name: target.name }, request, id, signal)
    const { status, type, body: result, failure, retryAfterMs } = answer
    const note = { status_code: status }
    if (failure === null && status < 400) return { status: 'succeeded', result, type, note }
    return {
      status: 'failed',
      error: {
        code: failure?.code ?? 'agent_error',
        message: failure?.message ?? `the agent answered ${status}`,
      },
      retry: answer.retry,
      ...(retryAfterMs === null ? {} : { retryAfterMs: Math.min(retryAfterMs, retryAfterMsMax) }),
      result,
      type,
      note,
    }
  }

  /** Bursts wait here for their turn, and for an agent that is being brought up; that is no try. */
  async #ask(...asked: Parameters<CallAgent>): Promise<AgentAnswer> {
    const signal = asked[3]
    const began = this.#clock.monotonic()
    for (let pause = pauseMs; ; pause = Math.min(pause * 2, pauseMsMax)) {
      const answer = await this.#call(...asked)
      const isBusy = answer.failure?.code === 'too_many_requests'
      if (!answer.notAsked || (!isBusy && this.#clock.monotonic() - began >= unservedMsMax)) return answer
      await this.#clock.sleep(pause, signal)
    }
  }

  #compose(execution: Execution, result: Uint8Array | null, given: CallbackGiven): NewExecution {
    const { workspace, id: executionId } = execution
    const { url, name, uid, trigger, secrets } = given
    const { status, bytes } = told(execution, result)
    const text = new TextDecoder().decode(bytes)
    const callbackOf = (response: { response_body: string; response_truncated?: true }) => {
      const { response_body, ...rest } = response
      const timestamp = Math.floor(this.#clock.now() / 1000)
      return Buffer.from(
        JSON.stringify({
          status_code: status,
          response_body,
          response_length: bytes.length,
          timestamp,
          ...rest,
        }),
      )
    }
    const whole = callbackOf({ response_body: text })
    const isTooLarge = whole.length > workInputBytesMax
    const beginning = () => text.slice(0, beginningCharactersMax).toWellFormed()
    return this.#deliveries.compose({
      workspace,
      executionId,
      dialect,
      url,
      body: isTooLarge ? callbackOf({ response_body: beginning(), response_truncated: true }) : whole,
      secrets,
      signer: { name, uid, trigger },
      // Only users write triggers.
      loopback: true,
    })
  }
}

/** What a synchronous request would have been answered. */
function told(
  { status, note, error }: Execution,
  result: Uint8Array | null,
): { status: number; bytes: Uint8Array } {
  const answered = typeof note.status_code === 'number' ? note.status_code : 502
  if (status === 'succeeded' || (status === 'failed' && result !== null))
    return { status: answered, bytes: result ?? new Uint8Array() }
  const code = status === 'timed_out' ? 504 : status === 'cancelled' ? 499 : answered
  const message = error?.message ?? `the request was ${status.replace('_', ' ')}`
  return { status: code, bytes: Buffer.from(JSON.stringify({ error: { status: code, message } })) }
}

/** @throws bad_request */
function checkIdempotencyKey(key: string): void {
  if (key.length === 0 || key.length > idempotencyKeyCharactersMax)
    throw badRequest(`Idempotency-Key: 1 to ${idempotencyKeyCharactersMax} characters`)
}

/** What makes two requests the same; not their headers, which clients make anew. */
function digestOf({ method, path, body }: AgentRequest): string {
  return createHash('sha256')
    .update(JSON.stringify([method, path]))
    .update(body)
    .digest('base64url')
}

function purpose(workspace: string): string {
  return `agent-request:${workspace}`
}
