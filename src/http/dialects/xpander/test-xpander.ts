import type { FakeClock } from '../../../lib/test-clock.ts'
import { eventually } from '../../../lib/test-eventually.ts'
import type { Platform, PlatformOptions } from '../../../platform.ts'
import { type Asked, openDialectPlatform, requestTo, told } from '../test-dialect.ts'

/** A task or an event of one, as it is answered: tests look at what they are about. */
// biome-ignore lint/suspicious/noExplicitAny: answers of many shapes, compared with what is expected
export type Answer = any

/** A platform, asked as clients of xpander ask. Its clock stands still until it is moved. */
export class TestXpander implements AsyncDisposable {
  readonly platform: Platform
  readonly clock: FakeClock

  private constructor(platform: Platform, clock: FakeClock) {
    this.platform = platform
    this.clock = clock
  }

  static async open(options: PlatformOptions = {}): Promise<TestXpander> {
    const { platform, clock } = await openDialectPlatform(options)
    return new TestXpander(platform, clock)
  }

  request(path: string, asked: Asked = {}): Promise<Response> {
    return requestTo(this.platform, path, asked)
  }

  async ask(path: string, asked: Asked = {}): Promise<{ status: number; body: Answer }> {
    return await told(await this.request(path, asked))
  }

  /** The answer's body. Fails for any other status than 200. */
  async get(path: string, asked: Asked = {}): Promise<Answer> {
    const { status, body } = await this.ask(path, asked)
    if (status !== 200) throw new Error(`${path}: ${status} ${JSON.stringify(body)}`)
    return body
  }

  /** A turn that is begun, of an agent that workers do. */
  async begin(agentId: string, text: string, more: object = {}): Promise<Answer> {
    return await this.get(`/v1/agents/${agentId}/invoke/async`, { json: { input: { text }, ...more } })
  }

  /** The task once `holds`. */
  async task(
    id: string,
    holds: (task: Answer) => boolean = ({ finished_at }) => finished_at !== null,
  ): Promise<Answer> {
    return await eventually(`the task ${id} came to it`, async () => {
      const task = await this.get(`/v1/tasks/${id}`)
      return holds(task) ? task : null
    })
  }

  /** A worker of an agent, which is registered. */
  async worker(agentId: string, asked: Asked = {}): Promise<TestWorker> {
    const gone = new AbortController()
    const response = await this.request(`/main/events/${agentId}/?environment=local`, {
      ...asked,
      signal: gone.signal,
    })
    if (response.status !== 200) throw new Error(`${response.status} ${await response.text()}`)
    const events = eventsOf(response)
    const registered = await events.next()
    if (registered.done || registered.value.event !== 'worker-registration') throw new Error('not registered')
    return new TestWorker(this, registered.value.data, events, gone)
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.platform.close()
  }
}

export class TestWorker {
  readonly asset: Answer
  readonly #platform: TestXpander
  readonly #events: AsyncGenerator<{ event: string; data: Answer }>
  readonly #gone: AbortController

  constructor(
    platform: TestXpander,
    asset: Answer,
    events: AsyncGenerator<{ event: string; data: Answer }>,
    gone: AbortController,
  ) {
    this.#platform = platform
    this.asset = asset
    this.#events = events
    this.#gone = gone
  }

  /** The next turn that it is given. */
  async turn(): Promise<Answer> {
    const { done, value } = await this.#events.next()
    if (done || value.event !== 'agent-execution') throw new Error('no turn came')
    return value.data
  }

  /** As the SDK does: all of the task is sent back. */
  async report(task: Answer, change: object): Promise<Answer> {
    return await this.#platform.get(`/agent-execution/${task.id}/update`, {
      method: 'PATCH',
      json: { ...task, ...change },
    })
  }

  async say(event: string, data: unknown = {}): Promise<number> {
    const path = `/main/events/${this.asset.id}?type=worker&agent_id=${this.asset.dedicated_agent_id}`
    return (await this.#platform.ask(path, { json: { id: 'e', event, data } })).status
  }

  /** Its connection breaks. */
  leave(): void {
    this.#gone.abort()
    void this.#events.return(undefined)
  }
}

/** Events of a stream, without what keeps it alive. */
export async function* eventsOf(response: Response): AsyncGenerator<{ event: string; data: Answer }> {
  let rest = ''
  const decoder = new TextDecoder()
  for await (const chunk of response.body ?? []) {
    rest += decoder.decode(chunk as Uint8Array, { stream: true })
    const blocks = rest.split('\n\n')
    rest = blocks.pop() ?? ''
    for (const block of blocks) {
      const lines = block.split('\n')
      const data = lines.find((line) => line.startsWith('data: '))
      if (data === undefined) continue
      const event = lines.find((line) => line.startsWith('event: '))?.slice('event: '.length) ?? ''
      yield { event, data: JSON.parse(data.slice('data: '.length)) }
    }
  }
}
