/** The API of an AgentField control plane, for its SDKs and whoever calls it with curl. */
import type { Deliveries } from '../../../deliveries/index.ts'
import type { Deployments } from '../../../deployments/index.ts'
import { PlatformError } from '../../../errors.ts'
import type { Executions } from '../../../executions/index.ts'
import type { Clock } from '../../../lib/clock.ts'
import type { Dialer } from '../../../lib/dialer.ts'
import type { Logger } from '../../../lib/log.ts'
import type { Memory } from '../../../memory/index.ts'
import type { Nodes, Notes } from '../../../nodes/index.ts'
import type { Logs } from '../../../telemetry/index.ts'
import type { LargeAnswers } from '../../large-answers.ts'
import { type Route, route } from '../../route.ts'
import { approvalRoutes, tellApprovals } from './approvals.ts'
import { NodeCalls } from './calls.ts'
import { discoveryRoutes } from './discovery.ts'
import { eventRoutes } from './events.ts'
import { executeRoutes } from './execute.ts'
import { executionRoutes } from './executions.ts'
import { innerRoutes } from './inner.ts'
import { memoryRoutes } from './memory.ts'
import { nodeRoutes } from './nodes.ts'
import { noteRoutes } from './notes.ts'
import { restartRoutes } from './restarts.ts'
import { Runs } from './runs.ts'
import { Webhooks } from './webhooks.ts'
import { tag, timeText } from './wire.ts'

export interface AgentFieldOptions {
  executions: Executions
  deliveries: Deliveries
  deployments: Pick<Deployments, 'acquire' | 'acquireInstance' | 'isKnown'>
  nodes: Nodes
  notes: Notes
  memory: Memory
  dialer: Dialer
  answers: LargeAnswers
  logs: Logs
  /** Of the platform. */
  version: string
  /** Until who waits for an answer gets none. */
  syncMs: number
  /** Until an execution that nobody waits for is given up. */
  asyncMs: number
  /** Executions that one node works on at once; null: as many as come. */
  nodeRunningMax: number | null
  clock: Clock
  log: Logger
}

/** Identities and credentials of the web of trust: SDKs ask for them, and go on without. */
const identityPaths = [
  ['POST', '/api/v1/did/{path*}'],
  ['GET', '/api/v1/did/{path*}'],
  ['POST', '/api/v1/execution/vc'],
] as const

export class AgentField {
  readonly #options: AgentFieldOptions
  readonly #calls: NodeCalls
  readonly #runs: Runs
  readonly #webhooks: Webhooks

  constructor(options: AgentFieldOptions) {
    const { executions, deliveries, deployments, nodes, dialer, answers, clock, log } = options
    this.#options = options
    this.#calls = new NodeCalls({ nodes, deployments, dialer, answers })
    this.#runs = new Runs({ executions, nodes, deployments, log, calls: this.#calls })
    this.#webhooks = new Webhooks({ executions, deliveries })
    tellApprovals({ executions, nodes, dialer, clock, calls: this.#calls })
  }

  /** At start, once what is deployed was found again. */
  open(): void {
    this.#runs.open()
  }

  close(): Promise<void> {
    return this.#runs.close()
  }

  routes(): Route[] {
    const { executions, deployments, nodes, notes, memory, dialer, logs, version, clock, log } = this.#options
    const { syncMs, asyncMs, nodeRunningMax } = this.#options
    const webhooks = this.#webhooks
    const isDeployed = (workspace: string, name: string) => deployments.isKnown(workspace, 'agent', name)
    return [
      ...nodeRoutes({
        ...{ nodes, isDeployed, dialer, clock },
        replaced: (workspace, nodeId, process) => this.#runs.replaced(workspace, nodeId, process),
      }),
      ...executeRoutes({
        ...{ executions, nodes, isDeployed, webhooks, clock, syncMs, asyncMs, nodeRunningMax },
        calls: this.#calls,
      }),
      ...executionRoutes({ executions, nodes, webhooks, clock }),
      ...restartRoutes({ executions, webhooks, clock, asyncMs, nodeRunningMax }),
      ...approvalRoutes({ executions, nodes, dialer, clock, calls: this.#calls }),
      ...eventRoutes({ executions }),
      ...noteRoutes({ executions, nodes, notes, logs }),
      ...innerRoutes({ executions, nodes, clock }),
      ...discoveryRoutes({ nodes, clock }),
      ...memoryRoutes({ memory, log }),
      ...(['/health', '/api/v1/health'] as const).map((path) =>
        route({
          method: 'GET',
          path,
          access: 'public',
          errors: 'agentfield',
          summary: 'Say whether the control plane answers',
          tag,
          handle: () => ({ status: 'healthy', timestamp: timeText(clock.now()), version }),
        }),
      ),
      ...identityPaths.map(([method, path]) =>
        route({
          method,
          path,
          access: 'read',
          errors: 'agentfield',
          keyless: true,
          summary: 'Refuse: this platform issues no decentralised identities',
          tag,
          handle() {
            throw new PlatformError(
              'not_found',
              'this platform issues no decentralised identities: go on without',
            )
          },
        }),
      ),
    ]
  }
}
