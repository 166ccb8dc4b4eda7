import { eventually } from '../lib/test-eventually.ts'
/** For tests: whoever is told of what was done. */

export interface Received {
  headers: Record<string, string>
  body: string
}

/** A server on loopback that answers as the test says, and keeps what it was sent. */
export class TestReceiver implements AsyncDisposable {
  readonly received: Received[] = []
  /** For the next request, and those after it. */
  answer: (request: Request, count: number) => Response | Promise<Response> = () => Response.json({})
  readonly #server: ReturnType<typeof Bun.serve>

  constructor() {
    this.#server = Bun.serve({
      port: 0,
      hostname: '127.0.0.1',
      idleTimeout: 0,
      fetch: async (request) => {
        const body = await request.text()
        this.received.push({ headers: Object.fromEntries(request.headers), body })
        return await this.answer(request, this.received.length)
      },
    })
  }

  get url(): string {
    return `http://127.0.0.1:${this.#server.port}/hook`
  }

  /** The `count`th that came; waits for it. */
  async nth(count: number): Promise<Received> {
    await eventually(`${count} callbacks`, () => this.received.length >= count)
    return this.received[count - 1] as Received
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#server.stop(true)
  }
}
