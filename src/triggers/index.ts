/** Triggers: what makes a deployment do something without somebody waiting for it. */
import type { Deliveries } from '../deliveries/index.ts'
import type { Deployments } from '../deployments/index.ts'
import type { Executions } from '../executions/index.ts'
import type { Jobs, StartedExecution } from '../jobs/index.ts'
import type { Clock } from '../lib/clock.ts'
import type { Logger } from '../lib/log.ts'
import type { SecretBox } from '../lib/secret-box.ts'
import type { Store } from '../spec/store.ts'
import { AgentCalls, type CallAgent } from './agent-calls.ts'
import { CronTriggers, type Tick } from './cron.ts'

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
  jobs: Pick<Jobs, 'start'>
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
  readonly #jobs: Pick<Jobs, 'start'>
  readonly #origin: () => string

  constructor(options: TriggersOptions) {
    this.#origin = options.origin
    this.#jobs = options.jobs
    this.agents = new AgentCalls(options)
    this.#cron = new CronTriggers(options)
    this.#cron.starts('agent', (tick) => this.#startAgent(tick))
    this.#cron.starts('job', (tick) => this.#startJob(tick))
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

  #startJob({
    workspace,
    name,
    trigger,
    tasks,
    labels,
    idempotencyKey: key,
    idempotencyMs: keptMs,
  }: Tick): Promise<StartedExecution> {
    const { timeout, retry } = trigger.configuration ?? {}
    return this.#jobs.start(
      workspace,
      name,
      { tasks },
      {
        idempotency: { key, digest: key, keptMs },
        labels: { trigger: trigger.id, ...labels },
        limits: {
          ...(timeout === undefined ? {} : { timeoutSeconds: timeout }),
          ...(retry === undefined ? {} : { maxRetries: retry }),
        },
      },
    )
  }
}
