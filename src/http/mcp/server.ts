import { randomBytes } from 'node:crypto'
import { PlatformError } from '../../errors.ts'
import type { Logger } from '../../lib/log.ts'
import type { WholeBody } from '../whole-body.ts'
import { CallsUnderWay } from './calls.ts'
import {
  errorMessage,
  notificationMessage,
  progressTokenOf,
  RpcError,
  type RpcId,
  type RpcMessage,
  type RpcRequest,
  readMessage,
  resultMessage,
  rpcCodes,
} from './messages.ts'
import { originAllowed } from './origins.ts'
import { CallCancelled, type ListedTool, listedTool, type McpTool, parseArguments } from './tool.ts'
import {
  checkBatch,
  eventHeaders,
  eventText,
  initializes,
  jsonAnswer,
  type McpAnswer,
  orRefusal,
  protocolVersions,
  readPosted,
  refusal,
  sessionOf,
  textAnswer,
} from './wire.ts'

const progressEveryMs = 250
const progressWaitingMax = 16

export interface McpServerOptions<Context> {
  name: string
  title: string
  version: string
  /** What a model should know before it uses any tool. */
  instructions: string
  tools: McpTool<Context>[]
  bodyBytesMax: number
  log: Logger
}

/** Who asks, and for what. */
export interface McpRequest<Context> {
  request: Request
  whole: WholeBody
  /** Aborts when nobody waits for the answer any more. */
  signal: AbortSignal
  context: Context
  /** What the tools work on: sessions and calls of one place mean nothing in another. No line breaks. */
  place: string
  /** The request proved who it is from; without that its Origin has to be one of ours. */
  credentialed: boolean
}

/**
 * An MCP server over streamable HTTP, tools only. It keeps no state between requests, so nothing is lost when the
 * platform restarts; answers are JSON, or a stream of events where the client asked to be told of progress.
 */
export class McpServer<Context> {
  readonly #options: McpServerOptions<Context>
  readonly #tools: ReadonlyMap<string, McpTool<Context>>
  readonly #calls = new CallsUnderWay()
  /** Made when first asked for: most platforms never are. */
  readonly #listed = new Map<string, ListedTool>()

  constructor(options: McpServerOptions<Context>) {
    this.#options = options
    this.#tools = new Map(options.tools.map((tool) => [tool.name, tool]))
  }

  /** Calls being answered now. */
  get callsUnderWay(): number {
    return this.#calls.size
  }

  handle(from: McpRequest<Context>): Promise<McpAnswer> {
    return orRefusal(this.#handle(from))
  }

  async #handle(from: McpRequest<Context>): Promise<McpAnswer> {
    const { request, place } = from
    if (!from.credentialed && !originAllowed(request))
      throw refusal(403, 'Origin: this page may not call here')
    const session = sessionOf(request)
    if (session !== null && this.#calls.isEnded(place, session)) throw refusal(404, 'Session not found')
    if (request.method === 'DELETE') {
      if (session === null) throw refusal(404, 'Session not found: send its Mcp-Session-Id')
      this.#calls.endSession(place, session)
      return new Response(null, { status: 204 })
    }
    if (request.method !== 'POST') {
      // Nothing here happens unasked, so there is no stream to listen to.
      throw refusal(405, 'Method not allowed: send messages by POST', { allow: 'POST, DELETE' })
    }
    const { accepts, body, version } = await readPosted(request, from.whole, this.#options.bodyBytesMax)
    if (!(protocolVersions as readonly string[]).includes(version) && !initializes(body)) {
      throw refusal(
        400,
        `MCP-Protocol-Version: "${version.slice(0, 20)}" is not supported, send one of ${protocolVersions.join(', ')}`,
      )
    }
    if (Array.isArray(body)) return await this.#handleBatch(from, body, session, version)
    const message = readMessage(body)
    if (message.kind === 'request' && message.method === 'tools/call') {
      const token = progressTokenOf(message)
      if (accepts.events && (token !== null || !accepts.json)) {
        return this.#stream(from, message, session, token)
      }
    }
    const answered = await this.#answer(from, message, session, null)
    if (answered === null) return new Response(null, { status: 202 })
    const headers: Record<string, string> =
      message.kind === 'request' && message.method === 'initialize' && 'result' in answered
        ? { 'mcp-session-id': session ?? randomBytes(16).toString('hex') }
        : {}
    return textAnswer(JSON.stringify(answered), accepts, headers)
  }

  async #handleBatch(
    from: McpRequest<Context>,
    body: unknown[],
    session: string | null,
    version: string,
  ): Promise<McpAnswer> {
    checkBatch(body, version)
    const answers = await Promise.all(
      body.map(async (value) => {
        try {
          const message = readMessage(value)
          if (message.kind === 'request' && message.method === 'initialize') {
            throw new RpcError(rpcCodes.invalidRequest, 'initialize must not be part of a batch')
          }
          return await this.#answer(from, message, session, null)
        } catch (error) {
          if (error instanceof RpcError) return errorMessage(null, error)
          throw error
        }
      }),
    )
    const given = answers.filter((answer) => answer !== null)
    return given.length === 0 ? new Response(null, { status: 202 }) : jsonAnswer(given)
  }

  /** Null where nothing is to be answered: notifications, and calls that their client cancelled. */
  async #answer(
    from: McpRequest<Context>,
    message: RpcMessage,
    session: string | null,
    progress: ((text: object) => void) | null,
  ): Promise<object | null> {
    if (message.kind === 'answer') return null
    if (message.kind === 'notification') {
      if (message.method === 'notifications/cancelled') this.#cancel(from, message.params, session)
      return null
    }
    try {
      const result = await this.#result(from, message, session, progress)
      return result === null ? null : resultMessage(message.id, result)
    } catch (error) {
      if (error instanceof RpcError) return errorMessage(message.id, error)
      throw error
    }
  }

  #cancel(from: McpRequest<Context>, params: Record<string, unknown>, session: string | null): void {
    const { requestId, reason } = params
    if (typeof requestId !== 'string' && typeof requestId !== 'number') return
    this.#calls.cancel(from.place, session, requestId, typeof reason === 'string' ? reason : 'cancelled')
  }

  async #result(
    from: McpRequest<Context>,
    message: RpcRequest,
    session: string | null,
    progress: ((text: object) => void) | null,
  ): Promise<object | null> {
    switch (message.method) {
      case 'initialize':
        return this.#initialize(message)
      case 'ping':
        return {}
      case 'tools/list':
        if (message.params.cursor !== undefined && message.params.cursor !== null) {
          throw new RpcError(rpcCodes.invalidParams, 'cursor: there is only one page of tools')
        }
        return { tools: this.#list(from.context) }
      case 'tools/call':
        return await this.#call(from, message, session, progress)
      default:
        throw new RpcError(rpcCodes.methodNotFound, `Method not found: ${message.method}`)
    }
  }

  #initialize({ params }: RpcRequest): object {
    const { protocolVersion } = params
    if (typeof protocolVersion !== 'string') {
      throw new RpcError(rpcCodes.invalidParams, 'protocolVersion: missing: must be a string')
    }
    const { name, title, version, instructions } = this.#options
    const known = (protocolVersions as readonly string[]).includes(protocolVersion)
    return {
      protocolVersion: known ? protocolVersion : protocolVersions[0],
      capabilities: { tools: { listChanged: false } },
      serverInfo: { name, title, version },
      instructions,
    }
  }

  #list(context: Context): ListedTool[] {
    const tools = this.#options.tools.filter((tool) => tool.available?.(context) ?? true)
    return tools.map((tool) => {
      const listed = this.#listed.get(tool.name) ?? listedTool(tool)
      this.#listed.set(tool.name, listed)
      return listed
    })
  }

  async #call(
    from: McpRequest<Context>,
    message: RpcRequest,
    session: string | null,
    progress: ((text: object) => void) | null,
  ): Promise<object | null> {
    const { name, arguments: given } = message.params
    const tool = typeof name === 'string' ? this.#tools.get(name) : undefined
    if (!tool) {
      throw new RpcError(rpcCodes.invalidParams, `Unknown tool: ${String(name).slice(0, 100)}`)
    }
    const call = this.#calls.begin(from.place, session, message.id)
    if (call === null) return failure('Too many calls are being answered here: try again in a second')
    try {
      const input = parseArguments(tool.input, given)
      const signal = AbortSignal.any([from.signal, call.signal])
      const token = progressTokenOf(message)
      const report =
        progress === null || token === null
          ? null
          : atMostEvery(progressEveryMs, (made: object) =>
              progress(notificationMessage('notifications/progress', { progressToken: token, ...made })),
            )
      const result = await tool.run(input, from.context, { signal, progress: report })
      if (call.signal.aborted) return null
      return { content: [{ type: 'text', text: JSON.stringify(result) }], structuredContent: result }
    } catch (error) {
      // Nobody is there who could read it.
      if (call.signal.aborted || from.signal.aborted || error instanceof CallCancelled) return null
      return this.#failure(error, tool.name)
    } finally {
      call.end()
    }
  }

  /** A failure the model can do something about is told to it; of any other it learns only that it happened. */
  #failure(error: unknown, tool: string): object {
    if (PlatformError.is(error) && error.code !== 'internal') return failure(error.message)
    this.#options.log.error('a tool failed', {
      tool,
      cause: error instanceof Error ? (error.stack ?? error.message) : String(error),
    })
    return failure('Something failed in the platform: its log says what')
  }

  #stream(
    from: McpRequest<Context>,
    message: RpcRequest,
    session: string | null,
    token: RpcId | null,
  ): McpAnswer {
    const waiting: string[] = []
    let wake: () => void = () => {}
    const report = (made: object) => {
      if (waiting.length < progressWaitingMax) waiting.push(eventText(JSON.stringify(made)))
      wake()
    }
    const answering = this.#answer(from, message, session, token === null ? null : report)
    async function* messages(): AsyncGenerator<string> {
      let answered: object | null | undefined
      const done = answering.then((answer) => {
        answered = answer
        wake()
      })
      done.catch(() => wake())
      for (;;) {
        if (waiting.length > 0) yield waiting.splice(0).join('')
        if (answered !== undefined) break
        const woken = new Promise<void>((resolve) => {
          wake = resolve
        })
        if (waiting.length === 0 && answered === undefined) await Promise.race([woken, done])
      }
      if (waiting.length > 0) yield waiting.splice(0).join('')
      if (answered !== null && answered !== undefined) yield eventText(JSON.stringify(answered))
    }
    return { messages: messages(), headers: eventHeaders }
  }
}

function failure(text: string): object {
  return { isError: true, content: [{ type: 'text', text }] }
}

function atMostEvery<Value>(everyMs: number, run: (value: Value) => void): (value: Value) => void {
  let last = Number.NEGATIVE_INFINITY
  return (value) => {
    const now = performance.now()
    if (now - last < everyMs) return
    last = now
    run(value)
  }
}
