/** Who does a turn: a worker of the agent, or the program that is deployed under its name. */
import type { Deployments } from '../../../deployments/index.ts'
import { PlatformError } from '../../../errors.ts'
import type { AttemptOutcome } from '../../../executions/index.ts'
import { unpacked } from '../../../lib/content-encoding.ts'
import { isStream, messageIn, spokenText } from '../../../lib/spoken-text.ts'
import type {
  Agents,
  JsonObject,
  Message,
  Performer,
  Thread,
  Threads,
  Workers,
} from '../../../threads/index.ts'
import { isSchema, resultCharsMax } from '../../../threads/index.ts'
import type { LargeAnswers } from '../../large-answers.ts'
import { type Acquired, type DeploymentPlane, serveDeployment } from '../../run/deployments.ts'

/** Says which conversation a message is of, for agents that keep any. */
const threadHeader = 'x-blaxel-thread-id'
const refusalCharsMax = 4096
/** What came of nothing that the program did: it can be asked again. */
const notReached = new Set(['workload_unavailable', 'unavailable', 'too_many_requests'])

type Failure = Extract<AttemptOutcome, { status: 'failed' }>

export interface ProgramOptions {
  agents: Agents
  workers: Workers
  threads: Threads
  plane: DeploymentPlane
  answers: LargeAnswers
  deployments: Pick<Deployments, 'acquireVersion'>
  /** Of the platform. */
  origin: () => string
}

export function performer(options: ProgramOptions): Performer {
  const { agents, workers, threads } = options
  return async ({ thread, messages, tokens }, tell, signal) => {
    const { workspace, body } = thread
    // Whoever made it does it, and says how it goes.
    if (body.options.run_locally === true) return { by: 'reporter' }
    const agent = await agents.find(workspace, body.agentId)
    if (agent === null) {
      return {
        by: 'failure',
        outcome: failed('agent_not_found', `there is no agent "${body.agentId}" any more`),
      }
    }
    if (agent.deployment === null || workers.serves(thread)) {
      workers.offer(thread)
      return { by: 'reporter' }
    }
    try {
      let begun: Promise<void> = Promise.resolve()
      const response = await serveDeployment(
        {
          request: requestOf(thread, messages, tokens, signal),
          path: '/',
          search: '?stream=true',
          publicOrigin: options.origin(),
          publicPrefix: `/${workspace}/agents/${body.agentId}`,
          consumed: { headers: [], query: [] },
          upgrade: null,
          workspace,
          kind: 'agent',
          name: body.agentId,
          timed: false,
          holdsPieces: true,
          acquire: async (caller) => {
            const acquired = await acquire(thread, options, caller)
            begun = threads.executing(thread, acquired.revisionId)
            begun.catch(() => {})
            return acquired
          },
        },
        options.plane,
      )
      await begun
      const program = `${workspace}/agents/${body.agentId}`
      const answer = options.answers.kept(unpacked(response), {
        bytesMax: resultCharsMax * 2,
        program,
        signal,
      })
      return await answerOf(answer, body.options, (piece) => tell('chunk', piece))
    } catch (error) {
      signal.throwIfAborted()
      return { by: 'failure', outcome: failureOf(error) }
    }
  }
}

async function acquire(
  { workspace, body }: Thread,
  { plane, deployments }: ProgramOptions,
  caller: { readonly signal: AbortSignal },
): Promise<Acquired> {
  const { agentId, version } = body
  return version === null
    ? await plane.deployments.acquire(workspace, 'agent', agentId, { cookie: null }, caller)
    : await deployments.acquireVersion(workspace, 'agent', agentId, version, caller.signal)
}

/** As `hutch chat` asks, with the conversation and whatever else the client said. */
function requestOf(thread: Thread, messages: Message[], tokens: JsonObject, signal: AbortSignal): Request {
  const { name: id, body } = thread
  const { input, options } = body
  const asked = Object.fromEntries(
    Object.entries({ ...options, ...tokens }).filter(([, value]) => value !== null && value !== false),
  )
  const bytes = Buffer.from(
    JSON.stringify({
      ...asked,
      inputs: input.text,
      thread_id: id,
      messages,
      ...(input.files.length > 0 ? { files: input.files } : {}),
      ...(input.user === null ? {} : { user: input.user }),
    }),
  )
  return new Request('http://agent.internal/', {
    method: 'POST',
    headers: {
      'content-type': 'application/json',
      'content-length': String(bytes.length),
      [threadHeader]: id,
    },
    body: bytes,
    signal,
  })
}

async function answerOf(
  response: Response,
  options: JsonObject,
  tell: (piece: string) => void,
): ReturnType<Performer> {
  const type = response.headers.get('content-type') ?? ''
  if (!response.ok) {
    let text = ''
    for await (const piece of decoded(response)) {
      text += piece
      // What else it says, and be it without an end, is told nobody.
      if (text.length >= refusalCharsMax) break
    }
    const said = text.trim().slice(0, refusalCharsMax)
    return {
      by: 'failure',
      outcome: failed(
        'agent_error',
        `the agent answered ${response.status}${said === '' ? '' : `: ${said}`}`,
      ),
    }
  }
  const isText = isStream(response) || type.startsWith('text/plain')
  let text = ''
  for await (const piece of isText ? spokenText(response) : decoded(response)) {
    text += piece
    if (text.length > resultCharsMax) {
      const message = `the agent's answer is longer than ${resultCharsMax} characters`
      return { by: 'failure', outcome: failed('answer_too_large', message) }
    }
    if (isText && piece !== '') tell(piece)
  }
  // With a schema, all of the answer is what was asked for.
  const result = isText || isSchema(options.output_schema) ? text : (messageIn(text) ?? text)
  if (!isText && result !== '') tell(result)
  return { by: 'program', result }
}

async function* decoded(response: Response): AsyncIterable<string> {
  const decoder = new TextDecoder()
  for await (const chunk of response.body ?? []) yield decoder.decode(chunk as Uint8Array, { stream: true })
}

function failureOf(error: unknown): Failure {
  if (!PlatformError.is(error)) {
    return failed('agent_error', 'the connection to the agent broke before its answer was complete')
  }
  const { code, message, retryAfterSeconds } = error
  return {
    ...failed(code, message),
    retry: notReached.has(code),
    ...(retryAfterSeconds === undefined ? {} : { retryAfterMs: retryAfterSeconds * 1000 }),
  }
}

function failed(code: string, message: string): Failure {
  return { status: 'failed', error: { code, message }, retry: false }
}
