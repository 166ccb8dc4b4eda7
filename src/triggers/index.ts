/** Triggers: what makes a deployment do something without somebody waiting for it. */
import type { Deliveries } from '../deliveries/index.ts'
import type { Deployments } from '../deployments/index.ts'
import type { Executions } from '../executions/index.ts'
import type { Clock } from '../lib/clock.ts'
import type { Logger } from '../lib/log.ts'
import type { SecretBox } from '../lib/secret-box.ts'
import type { Store } from '../spec/store.ts'
import { AgentCalls, type CallAgent } from './agent-calls.ts'
import { CronTriggers, type StartTick, type Tick } from './cron.ts'

export {
  type AgentAnswer,
  type AgentCall,
  agentAnswerBytesMax,
  agentRequestBytesMax,
  type CallAgent,
} from './agent-calls.ts'
export type { AgentRequest } from './request.ts'
export { turnHeaders } from './turn.ts'

export interface TriggersOptions {
  store: Store
  deployments: Pick<Deployments, 'find' | 'standing' | 'every' | 'watch' | 'triggers'>
  executions: Pick<Executions, 'accept' | 'runner' | 'callbacks'>
  deliveries: Deliveries
  secrets: Pick<SecretBox, 'seal' | 'open'>
  call: CallAgent
  /** What stands before an agent's path where no client asked by an address. */
  origin: () => string
  clock: Clock
  log: Logger
}

export class Triggers {
  /** Requests to agents that are answered later. */
  readonly agents: AgentCalls
  readonly #cron: CronTriggers
  readonly #origin: () => string

  constructor(options: TriggersOptions) {
    this.#origin = options.origin
    this.agents = new AgentCalls(options)
    this.#cron = new CronTriggers(options)
    this.#cron.starts('agent', (tick) => this.#startAgent(tick))
  }

  /** What is started when the time of a trigger of this kind of deployment comes. */
  starts(kind: string, start: StartTick): void {
    this.#cron.starts(kind, start)
  }

  /** At start, once deployments are open. */
  open(): Promise<void> {
    return this.#cron.open()
  }

  close(): Promise<void> {
    return this.#cron.close()
  }

  /** Resolves when no trigger is being looked at. */
  settled(): Promise<void> {
    return this.#cron.settled()
  }

  async #startAgent({
    workspace,
    name,
    trigger,
    labels,
    idempotencyKey,
    idempotencyMs,
  }: Tick): Promise<void> {
    const { path = '', input = {} } = trigger.configuration ?? {}
    const own = path.replace(/^\/*(agents\/[^/]+(?=\/|$))?\/*/, '')
    await this.agents.accept({
      workspace,
      name,
      trigger,
      request: {
        method: 'POST',
        path: `/${own}`,
        search: '',
        headers: [['content-type', 'application/json']],
        origin: this.#origin(),
        prefix: `/${workspace}/agents/${name}`,
        body: Buffer.from(JSON.stringify(input)),
      },
      idempotencyKey,
      idempotencyMs,
      labels,
    })
  }
}
