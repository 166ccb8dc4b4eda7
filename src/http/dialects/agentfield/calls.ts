import type { RevisionLease } from '../../../deployments/fleet/index.ts'
import type { Deployments } from '../../../deployments/index.ts'
import { PlatformError } from '../../../errors.ts'
import { unpacked } from '../../../lib/content-encoding.ts'
import type { Dialer } from '../../../lib/dialer.ts'
import type { AgentNode, Nodes } from '../../../nodes/index.ts'
import type { LargeAnswers } from '../../large-answers.ts'
import { fetchPort } from '../../run/proxy.ts'

/** Of an answer; what the record of an execution can hold. */
const answerBytesMax = 16 * 1024 * 1024
/** What is packed all the same is unpacked piece by piece, so that no few bytes unfold to many. */
const plainly = { 'accept-encoding': 'identity' }
/** Nothing was sent, so that it can be tried again, when a connection fails with one of these. */
const notConnected = new Set([
  'ConnectionRefused',
  'ECONNREFUSED',
  'ENETUNREACH',
  'EHOSTUNREACH',
  'EADDRNOTAVAIL',
  'FailedToOpenSocket',
])

export interface NodeRequest {
  path: string
  headers: Record<string, string>
  body: Uint8Array
  signal: AbortSignal
  /** Of the instances of a deployment this one and no other, if it still is there. */
  instanceId?: string
}

export interface NodeAnswer {
  status: number
  headers: Headers
  body: Uint8Array
  /** Who answered. */
  process: ProcessOfNode
}

/** The process that works on something; while it is held, its instance does not go to sleep. */
export interface ProcessOfNode {
  /** Null: at an address. */
  instanceId: string | null
  /** What it calls itself. */
  processId: string
  lease: Disposable | null
}

/** A node could not be asked, and did not hear of it: it may be tried again. */
export class NotReached extends PlatformError {
  constructor(message: string, cause: unknown) {
    super('bad_gateway', message, { cause })
    this.name = 'NotReached'
  }
}

/** Requests to nodes: at the address they gave, by the one dialer; or at an instance of what is deployed, and nowhere else. */
export class NodeCalls {
  readonly #nodes: Nodes
  readonly #deployments: Pick<Deployments, 'acquire' | 'acquireInstance'>
  readonly #dialer: Pick<Dialer, 'open'>
  readonly #answers: LargeAnswers
  /** Members of a node get requests in turn. */
  #turn = 0

  constructor(options: {
    nodes: Nodes
    deployments: Pick<Deployments, 'acquire' | 'acquireInstance'>
    dialer: Pick<Dialer, 'open'>
    answers: LargeAnswers
  }) {
    this.#nodes = options.nodes
    this.#deployments = options.deployments
    this.#dialer = options.dialer
    this.#answers = options.answers
  }

  /**
   * Asks a node by POST; `begun` is called once it is known who is asked. The process in the answer is to be let go.
   * @throws NotReached when nothing was sent; bad_gateway when the answer is not whole, or too large; the signal's reason
   */
  async post(
    node: AgentNode,
    request: NodeRequest,
    begun: (process: ProcessOfNode) => void = () => {},
  ): Promise<NodeAnswer> {
    const { body } = node
    if (body.place.at === 'address') {
      const process = { instanceId: null, processId: body.processId, lease: null }
      begun(process)
      const what = `the node "${node.name}"`
      const response = await this.#dialer
        .open(`${body.baseUrl}${request.path}`, {
          ...{ method: 'POST', what, loopback: body.place.loopback, signal: request.signal },
          raw: true,
          headers: { ...request.headers, ...plainly },
          body: request.body as Uint8Array<ArrayBuffer>,
        })
        .catch((error) => {
          throw notReached(error, `${what} cannot be reached at ${body.baseUrl}`)
        })
      const program = `${node.workspace}/nodes/${node.name}`
      return { ...(await read(this.#kept(response, program, request), what, request.signal)), process }
    }
    const { lease, port, processId } = await this.#acquire(node, request)
    const program = `${node.workspace}/nodes/${node.name}`
    const what = `the node "${node.name}"`
    return await this.#ask({ lease, port, processId, request, program, what }, begun)
  }

  /** Asks an agent that is deployed and is no node. As `post`. */
  async postToAgent(
    workspace: string,
    name: string,
    request: NodeRequest,
    begun: (process: ProcessOfNode) => void = () => {},
  ): Promise<NodeAnswer> {
    const { lease } = await this.#deployments.acquire(workspace, 'agent', name, { cookie: null }, request)
    const { port } = lease
    const program = `${workspace}/agents/${name}`
    return await this.#ask(
      { lease, port, processId: '', request, program, what: `the agent "${name}"` },
      begun,
    )
  }

  /** Keeps an instance awake that works on something; null when it is gone. */
  async hold(node: AgentNode, instanceId: string): Promise<Disposable | null> {
    const { place } = node.body
    if (place.at === 'address') return null
    const found = await this.#deployments.acquireInstance(node.workspace, place.kind, place.name, instanceId)
    return found && onceDisposed(found.lease)
  }

  async #acquire(
    node: AgentNode,
    request: NodeRequest,
  ): Promise<{ lease: RevisionLease; port: number; processId: string }> {
    const { workspace, body } = node
    if (body.place.at === 'address') throw new Error('a node at an address has no instances')
    const { kind, name, members } = body.place
    const { instanceId } = request
    const turn = this.#turn++ % Math.max(1, members.length)
    const inTurn = [...members.slice(turn), ...members.slice(0, turn)]
    for (const member of inTurn) {
      if (instanceId !== undefined && member.instanceId !== instanceId) continue
      const found = await this.#deployments.acquireInstance(workspace, kind, name, member.instanceId, request)
      if (found === null) {
        await this.#nodes.forgetMember(workspace, node.name, member.instanceId)
        continue
      }
      const { lease } = found
      return { lease, port: member.port || lease.port, processId: member.processId }
    }
    if (instanceId !== undefined) {
      throw new NotReached(`the instance of the node "${node.name}" is gone`, undefined)
    }
    // All that registered are gone: another one is started, which registers too.
    const { lease } = await this.#deployments.acquire(workspace, kind, name, { cookie: null }, request)
    return { lease, port: lease.port, processId: '' }
  }

  #kept(response: Response, program: string, { signal }: NodeRequest): Response {
    return this.#answers.kept(unpacked(response), { bytesMax: answerBytesMax, program, signal })
  }

  async #ask(
    asked: {
      lease: RevisionLease
      port: number
      processId: string
      request: NodeRequest
      program: string
      what: string
    },
    begun: (process: ProcessOfNode) => void,
  ): Promise<NodeAnswer> {
    const { lease, port, processId, request, program, what } = asked
    const held = onceDisposed(lease)
    const process = { instanceId: lease.instance.id, processId, lease: held }
    try {
      begun(process)
      const address = await lease.instance.address(port)
      const response = await fetchPort(address, request.path, {
        method: 'POST',
        headers: { ...request.headers, ...plainly },
        body: request.body as Uint8Array<ArrayBuffer>,
        redirect: 'manual',
        decompress: false,
        signal: request.signal,
        // A connection that was quiet may be closed at any moment, and this cannot be sent twice.
        keepalive: false,
        timeout: false,
      }).catch(async (error) => {
        request.signal.throwIfAborted()
        if (!(await lease.instance.listening(port)))
          throw new NotReached(`${what} does not listen on port ${port}`, error)
        throw new PlatformError('bad_gateway', `${what} hung up before it answered`, { cause: error })
      })
      return { ...(await read(this.#kept(response, program, request), what, request.signal)), process }
    } catch (error) {
      held[Symbol.dispose]()
      throw error
    }
  }
}

/** Who works on it and who is told of its end let it go, whoever is first. */
function onceDisposed(lease: Disposable): Disposable {
  let isHeld = true
  return {
    [Symbol.dispose]: () => {
      if (isHeld) lease[Symbol.dispose]()
      isHeld = false
    },
  }
}

function notReached(error: unknown, message: string): unknown {
  if (!PlatformError.is(error)) return error
  if (error.code !== 'bad_gateway') return error
  const code = (error.cause as { code?: unknown } | undefined)?.code
  const isUnsent = error.cause === undefined || (typeof code === 'string' && notConnected.has(code))
  const isUnknown = code === 'ENOTFOUND' || code === 'EAI_AGAIN' || code === 'DNS_ENOTFOUND'
  return isUnsent || isUnknown ? new NotReached(message, error) : error
}

async function read(
  response: Response,
  what: string,
  signal: AbortSignal,
): Promise<Pick<NodeAnswer, 'status' | 'headers' | 'body'>> {
  const chunks: Uint8Array[] = []
  let bytes = 0
  try {
    for await (const chunk of response.body ?? []) {
      bytes += chunk.length
      if (bytes > answerBytesMax) {
        throw new PlatformError('bad_gateway', `${what} answered with more than ${answerBytesMax} bytes`)
      }
      chunks.push(chunk)
    }
  } catch (cause) {
    signal.throwIfAborted()
    if (PlatformError.is(cause)) throw cause
    throw new PlatformError('bad_gateway', `${what} hung up in the middle of its answer`, { cause })
  }
  const { status, headers } = response
  return { status, headers, body: Buffer.concat(chunks, bytes) }
}
