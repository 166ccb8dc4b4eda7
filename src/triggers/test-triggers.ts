import { Deliveries } from '../deliveries/index.ts'
import { TestReceiver } from '../deliveries/test-receiver.ts'
import type { TriggerInput } from '../deployments/index.ts'
import { TestDeployments } from '../deployments/test-host.ts'
import type { Execution } from '../executions/index.ts'
import { TestExecutions } from '../executions/test-executions.ts'
import { Dialer } from '../lib/dialer.ts'
import { silentLogger } from '../lib/log.ts'
import { createSecretBox } from '../lib/secret-box.ts'
import type { Store } from '../spec/store.ts'
import { type AgentAnswer, type AgentRequest, Triggers } from './index.ts'

const secrets = createSecretBox(new Uint8Array(32).fill(5))

interface Called {
  name: string
  request: AgentRequest
  executionId: string
  signal: AbortSignal
}

/** Triggers over real deployments and executions; the test is the agents. */
export class TestTriggers implements AsyncDisposable {
  readonly called: Called[] = []
  readonly receiver = new TestReceiver()
  answer: (call: Called) => AgentAnswer | Promise<AgentAnswer> = () => said('done')
  deliveries!: Deliveries
  triggers!: Triggers

  private constructor(
    readonly host: TestDeployments,
    readonly engine: TestExecutions,
  ) {}

  static async open(): Promise<TestTriggers> {
    const test = new TestTriggers(await TestDeployments.open(), new TestExecutions())
    await test.engine.start()
    await test.#start()
    return test
  }

  async #start(store: Store = this.host.store): Promise<void> {
    const { host, engine } = this
    const { executions } = engine
    const dialer = new Dialer({ privateTargets: [], ownPorts: () => [], loopbackOpen: () => true })
    this.deliveries = new Deliveries({ executions, dialer, secrets, clock: engine.clock, version: '1' })
    this.triggers = new Triggers({
      ...{ store, executions, secrets, deployments: host.deployments, deliveries: this.deliveries },
      jobs: { start: () => Promise.reject(new Error('no job has a trigger here')) },
      clock: host.clock,
      log: silentLogger,
      origin: () => 'http://localhost:4400',
      call: async ({ name }, request, executionId, signal) => {
        const call = { name, request, executionId, signal }
        this.called.push(call)
        return await this.answer(call)
      },
    })
    await executions.open()
    await this.triggers.open()
    await this.triggers.settled()
  }

  /** As after kill -9, `downMs` later. */
  async restart(downMs = 0, store?: Store): Promise<void> {
    await this.triggers.close()
    await this.engine.stop()
    this.host.clock.advance(downMs)
    await this.host.restart()
    await this.engine.start()
    await this.#start(store)
    await this.pass(0)
  }

  /** While something of it is stuck for ever. */
  async crash(downMs = 0): Promise<void> {
    void this.triggers.close()
    await this.engine.stop()
    this.host.clock.advance(downMs)
    this.engine.clock.advance(downMs)
    await this.host.restart()
    await this.engine.start()
    await this.#start()
    await this.pass(0)
  }

  /** With everything that comes of it. */
  async pass(ms: number): Promise<void> {
    this.host.clock.advance(ms)
    for (let round = 0; round < 3; round++) {
      await this.host.clock.turn(0)
      await this.triggers.settled()
    }
  }

  async deploy(triggers: TriggerInput[], name = 'one'): Promise<void> {
    const spec = { runtime: { image: 'sandbox/app:v1' }, triggers }
    await this.host.deployments.create({ ...this.of(name), input: { spec }, upload: false, origin: '' })
    await this.triggers.settled()
  }

  of(name = 'one') {
    return { workspace: 'main', kind: 'agent' as const, name, actor: 'ada' }
  }

  async change(change: (triggers: TriggerInput[]) => TriggerInput[], name = 'one'): Promise<void> {
    await this.host.deployments.triggers.change(this.of(name), (before) =>
      change(before.map((trigger) => ({ ...trigger }))),
    )
    await this.triggers.settled()
  }

  get executions(): Execution[] {
    return this.engine.executions.list('main', { source: 'agent' }, { sort: 'oldest' }).data
  }

  /** The moments that something was started for. */
  get ticks(): (string | undefined)[] {
    return this.executions.map(({ labels }) => labels.tick)
  }

  async accept(
    given: { body?: string; key?: string; name?: string; path?: string; turn?: Record<string, string> } = {},
  ) {
    const { body = 'work', key = null, name = 'one', path = '/', turn = {} } = given
    const [trigger = null] = await this.host.deployments.triggers.list(this.of())
    return await this.triggers.agents.accept({
      workspace: 'main',
      name,
      trigger,
      request: {
        method: 'POST',
        path,
        search: '?token=s3cret',
        headers: [['cookie', 'session=s3cret']],
        origin: 'http://localhost:4400',
        prefix: `/main/agents/${name}`,
        body: Buffer.from(body),
      },
      idempotencyKey: key,
      turn: new Headers(turn),
    })
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.triggers.close()
    await this.engine[Symbol.asyncDispose]()
    await this.host[Symbol.asyncDispose]()
    await this.receiver[Symbol.asyncDispose]()
  }
}

export function said(text: string, rest: Partial<AgentAnswer> = {}): AgentAnswer {
  const body = Buffer.from(text)
  return {
    status: 200,
    type: 'text/plain',
    body,
    retryAfterMs: null,
    failure: null,
    retry: false,
    notAsked: false,
    ...rest,
  }
}
