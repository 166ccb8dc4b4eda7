import type { Deployments } from '../../../deployments/index.ts'
import { PlatformError } from '../../../errors.ts'
import type {
  Attempt,
  AttemptOutcome,
  Execution,
  ExecutionError,
  Executions,
} from '../../../executions/index.ts'
import { Background } from '../../../lib/background.ts'
import type { Logger } from '../../../lib/log.ts'
import type { AgentNode, Nodes, ReplacedProcess } from '../../../nodes/index.ts'
import { type NodeAnswer, type NodeCalls, NotReached, type ProcessOfNode } from './calls.ts'
import { nodeCalled } from './lookup.ts'
import { answeredBefore, replayContext } from './replays.ts'
import { innerSource, runSource } from './sources.ts'
import { jsonOf, newId, textOf } from './wire.ts'

const runningMax = 256
const innerRunningMax = 32
/** As a node describes itself that is a function. */
const serverless = 'serverless'
/** An agent that cannot be reached now, or is busy, may be there soon: it is deployed anew, or its machine starts again. */
export const retryLater = { attemptsMax: 8, delayMs: 1000, delayMsMax: 60_000 }
const cancelMsMax = 10_000
/** Of an answer that is no JSON, told as why something failed. */
const toldCharactersMax = 4096
/** What is looked at when a process is gone. */
const heldMax = 10_000
const pageMax = 200

export interface RunsOptions {
  executions: Executions
  nodes: Nodes
  calls: NodeCalls
  deployments: Pick<Deployments, 'isKnown'>
  log: Logger
}

/**
 * Does what was accepted for nodes: asks the node, which answers with the result or reports it later; tells it when its
 * work is called off; and ends what a process had that is gone.
 */
export class Runs {
  readonly #options: RunsOptions
  /** Who works on what, as far as this life of the platform knows. */
  readonly #at = new Map<string, ProcessOfNode>()
  readonly #background: Background

  constructor(options: RunsOptions) {
    this.#options = options
    const { executions, log } = options
    this.#background = new Background((error) => log.warn('agentfield: a node could not be told', { error }))
    executions.runner(runSource, (attempt, signal) => this.#run(attempt, signal), {
      runningMax,
      newId: (nowMs) => newId('exec', nowMs),
      ended: (execution) => this.#ended(execution),
    })
    executions.runner(innerSource, async () => ({ status: 'waiting' }), {
      runningMax: innerRunningMax,
      toldOnly: true,
    })
  }

  /** At start, once instances are there: what they work on goes on, and keeps them awake. Nothing waits for that. */
  open(): void {
    this.#background.run(this.#resume())
  }

  async #resume(): Promise<void> {
    const { nodes, calls } = this.#options
    for await (const node of nodes.deployedHere()) {
      for (const execution of this.#unended(node.workspace, node.name)) {
        if (this.#background.closing.aborted) return
        const { instance_id: instanceId, process_id: processId } = execution.note
        if (execution.status !== 'waiting' || typeof instanceId !== 'string') continue
        const lease = await calls.hold(node, instanceId)
        if (lease === null) await this.#orphan(execution)
        else this.#holdFor(execution, { instanceId, processId: String(processId ?? ''), lease })
      }
    }
  }

  /** It may have ended in between. */
  #holdFor({ workspace, id }: Execution, process: ProcessOfNode): void {
    const now = this.#options.executions.get(workspace, id)
    if (now === null || now.endedAt !== null || this.#background.closing.aborted) letGo(process)
    else this.#at.set(id, process)
  }

  async close(): Promise<void> {
    this.#background.close()
    await this.#background.settled()
    for (const { lease } of this.#at.values()) lease?.[Symbol.dispose]()
    this.#at.clear()
  }

  /** What a process was working on that is gone ends, since nobody will report it. */
  async replaced(workspace: string, nodeId: string, gone: ReplacedProcess): Promise<void> {
    for (const execution of this.#unended(workspace, nodeId)) {
      const at = this.#at.get(execution.id)
      const instanceId = at?.instanceId ?? execution.note.instance_id ?? null
      const processId = at?.processId ?? execution.note.process_id ?? ''
      if (instanceId === gone.instanceId && processId === gone.processId) await this.#orphan(execution)
    }
  }

  *#unended(workspace: string, nodeId: string): Iterable<Execution> {
    const filter = {
      source: runSource,
      status: ['running', 'waiting'] as const,
      target: { kind: 'node', name: nodeId },
    }
    let cursor = ''
    for (let count = 0; count < heldMax; count += pageMax) {
      const page = this.#options.executions.list(workspace, filter, {
        limit: pageMax,
        ...(cursor === '' ? {} : { cursor }),
      })
      yield* page.data
      cursor = page.nextCursor
      if (cursor === '') return
    }
  }

  async #orphan({ workspace, id }: Execution): Promise<void> {
    await this.#options.executions
      .report(workspace, id, {
        status: 'failed',
        statusReason: 'agent_restart_orphaned',
        error: {
          code: 'agent_restart_orphaned',
          message:
            'agent_restart_orphaned: the process that worked on it is gone, and another one has its place',
        },
        note: { told: true },
      })
      .catch((error) => {
        if (!PlatformError.is(error) || error.code !== 'conflict') throw error
      })
  }

  async #run({ execution, input, number }: Attempt, signal: AbortSignal): Promise<AttemptOutcome> {
    const { workspace, id, target } = execution
    const { executions, calls, deployments } = this.#options
    const known = answeredBefore(executions, execution, input)
    if (known !== null)
      return {
        ...{ status: 'succeeded', result: known.result, type: 'application/json' },
        note: { replayed_from: known.from },
      }
    const begun = (process: ProcessOfNode) => void this.#at.set(id, process)
    const request = { headers: contextHeaders(execution), body: input, signal }
    let answer: NodeAnswer
    const node = await this.#nodeCalled(workspace, target.name)
    try {
      if (node !== null) {
        answer = await calls.post(node, { ...request, ...asAsked(node, execution, input) }, begun)
        if (node.body.deploymentType === serverless) answer = unwrapped(answer)
      } else if (deployments.isKnown(workspace, 'agent', target.name)) {
        answer = await calls.postToAgent(workspace, target.name, { ...request, path: '/' }, begun)
      } else {
        return failed('target_not_found', `there is no node "${target.name}" any more`)
      }
    } catch (error) {
      this.#at.delete(id)
      signal.throwIfAborted()
      return failureOf(error)
    }
    // What is deployed and is no node knows of no later.
    const reportsLater = answer.status === 202 && node !== null
    if (reportsLater && !signal.aborted) {
      const { instanceId, processId } = answer.process
      return {
        status: 'waiting',
        note: { process_id: processId, ...(instanceId === null ? {} : { instance_id: instanceId }) },
      }
    }
    letGo(answer.process)
    this.#at.delete(id)
    signal.throwIfAborted()
    return outcomeOf(answer, target.name, number)
  }

  #nodeCalled(workspace: string, name: string): Promise<AgentNode | null> {
    const { nodes, deployments } = this.#options
    const isDeployed = (where: string, agent: string) => deployments.isKnown(where, 'agent', agent)
    return nodeCalled({ nodes, isDeployed }, workspace, name)
  }

  #ended(execution: Execution): void {
    const { id, status, note, startedAt } = execution
    const at = this.#at.get(id)
    this.#at.delete(id)
    const isCalledOff = (status === 'cancelled' || status === 'timed_out') && note.told !== true
    if (isCalledOff && startedAt !== null && !this.#background.closing.aborted)
      this.#background.run(this.#callOff(execution, at).finally(() => at && letGo(at)))
    else if (at) letGo(at)
  }

  /** Its agent stops what it does for that. */
  async #callOff(execution: Execution, at: ProcessOfNode | undefined): Promise<void> {
    const { calls } = this.#options
    const { workspace, id, target, statusReason, error, note } = execution
    const node = await this.#nodeCalled(workspace, target.name)
    if (node === null) return
    const instanceId = at?.instanceId ?? note.instance_id
    const reason = statusReason ?? error?.message ?? 'cancelled'
    const answer = await calls.post(node, {
      path: `/_internal/executions/${encodeURIComponent(id)}/cancel`,
      headers: {
        'content-type': 'application/json',
        'x-agentfield-source': 'control-plane',
        'x-execution-id': id,
      },
      body: jsonOf({ reason, status: execution.status }),
      signal: AbortSignal.any([AbortSignal.timeout(cancelMsMax), this.#background.closing]),
      ...(typeof instanceId === 'string' ? { instanceId } : {}),
    })
    letGo(answer.process)
  }
}

function letGo({ lease }: ProcessOfNode): void {
  lease?.[Symbol.dispose]()
}

/** Says whose work it is; what the agent calls meanwhile brings it back. */
function contextHeaders({ id, labels }: Execution): Record<string, string> {
  const { run = '', parent, session, actor } = labels
  return {
    'content-type': 'application/json',
    'x-execution-id': id,
    'x-run-id': run,
    'x-workflow-id': run,
    ...(parent ? { 'x-parent-execution-id': parent } : {}),
    ...(session ? { 'x-session-id': session } : {}),
    ...(actor ? { 'x-actor-id': actor } : {}),
    ...replayContext(labels),
  }
}

/** Nodes have a path for each thing they do; functions that are started for each call have one, and are told what to do. */
function asAsked(
  { body }: AgentNode,
  { id, target, labels }: Execution,
  input: Uint8Array,
): { path: string; body: Uint8Array } {
  const { type = 'reasoner', reasoner = '', run, parent, session, actor } = labels
  const isSkill = type === 'skill'
  if (body.deploymentType !== serverless) {
    return { path: `/${isSkill ? 'skills' : 'reasoners'}/${encodeURIComponent(reasoner)}`, body: input }
  }
  const event = {
    path: `/execute/${reasoner}`,
    target: reasoner,
    [isSkill ? 'skill' : 'reasoner']: reasoner,
    type,
    input: parsedOf(input),
    execution_context: {
      execution_id: id,
      run_id: run,
      workflow_id: run,
      agent_node_id: target.name,
      ...(parent ? { parent_execution_id: parent } : {}),
      ...(session ? { session_id: session } : {}),
      ...(actor ? { actor_id: actor } : {}),
    },
  }
  return { path: '/execute', body: jsonOf(event) }
}

/** What a function answers that nobody unpacked on the way. */
function unwrapped(answer: NodeAnswer): NodeAnswer {
  const parsed = parsedOf(answer.body)
  if (typeof parsed !== 'object' || parsed === null) return answer
  const { statusCode, body } = parsed as { statusCode?: unknown; body?: unknown }
  if (!Number.isInteger(statusCode) || body === undefined) return answer
  return { ...answer, status: statusCode as number, body: jsonOf(body) }
}

function failed(code: string, message: string, details?: unknown): AttemptOutcome & { status: 'failed' } {
  const error: ExecutionError = {
    code,
    message,
    ...(details === undefined ? {} : { details }),
  }
  return { status: 'failed', error, retry: false }
}

function failureOf(error: unknown): AttemptOutcome {
  if (!PlatformError.is(error)) throw error
  const code = error.code === 'bad_gateway' ? 'agent_unreachable' : 'node_unavailable'
  const mayHelp = error instanceof NotReached || (error.code !== 'bad_gateway' && error.retryable)
  const { retryAfterSeconds } = error
  return {
    ...failed(code, error.message),
    retry: mayHelp,
    ...(retryAfterSeconds === undefined ? {} : { retryAfterMs: retryAfterSeconds * 1000 }),
  }
}

function outcomeOf({ status, headers, body }: NodeAnswer, node: string, attempt: number): AttemptOutcome {
  const parsed = parsedOf(body)
  if (status >= 200 && status < 300) {
    // Whatever is no JSON is a text.
    const result = parsed === undefined ? jsonOf(textOf(body)) : body
    return {
      status: 'succeeded',
      result: body.length === 0 ? jsonOf(null) : result,
      type: 'application/json',
    }
  }
  const details = parsed === undefined ? textOf(body).slice(0, toldCharactersMax) : parsed
  const said = messageIn(details)
  const message = `the node "${node}" answered ${status}${said === '' ? '' : `: ${said}`}`
  const code = status >= 300 && status < 400 ? 'bad_response' : 'agent_error'
  const isBusy = status === 429 || status === 503
  return {
    ...failed(isBusy ? 'concurrency_limit' : code, message, details),
    retry: isBusy,
    ...(isBusy ? { retryAfterMs: busyMsOf(headers, attempt) } : {}),
    note: { http_status: status },
  }
}

function parsedOf(body: Uint8Array): unknown {
  try {
    return JSON.parse(textOf(body))
  } catch {
    return undefined
  }
}

function messageIn(details: unknown): string {
  if (typeof details === 'string') return details.trim().slice(0, 500)
  if (typeof details !== 'object' || details === null) return ''
  const { error, message, detail } = details as Record<string, unknown>
  const said = [message, error, detail].find((one) => typeof one === 'string')
  return typeof said === 'string' ? said.slice(0, 500) : ''
}

/** As the agent says, but no sooner than the attempts that there are last for the minutes that are promised. */
function busyMsOf(headers: Headers, attempt: number): number {
  const seconds = Number(headers.get('retry-after') ?? Number.NaN)
  const said = Number.isFinite(seconds) && seconds >= 0 ? Math.min(seconds, 3600) * 1000 : 0
  return Math.max(said, Math.min(retryLater.delayMs * 2 ** (attempt - 1), retryLater.delayMsMax))
}
