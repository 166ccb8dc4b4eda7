import type { TestControlPlane } from './test-control-plane.ts'

export interface NodeCall {
  path: string
  headers: Record<string, string>
  body: unknown
}

type Handler = (call: NodeCall, request: Request) => Response | Promise<Response>

/** A node that does as a test says, and keeps what it was asked. */
export class TestNode implements AsyncDisposable {
  readonly calls: NodeCall[] = []
  readonly #server: ReturnType<typeof Bun.serve>
  readonly #handlers: Record<string, Handler>
  readonly #plane: TestControlPlane
  readonly id: string

  constructor(
    plane: TestControlPlane,
    handlers: Record<string, Handler>,
    options: { id?: string; port?: number } = {},
  ) {
    this.id = options.id ?? 'hello-world'
    this.#plane = plane
    this.#handlers = handlers
    this.#server = Bun.serve({
      hostname: '127.0.0.1',
      port: options.port ?? 0,
      idleTimeout: 0,
      fetch: async (request) => {
        const { pathname } = new URL(request.url)
        const text = await request.text()
        const call = {
          path: pathname,
          headers: Object.fromEntries(request.headers),
          body: text === '' ? null : JSON.parse(text),
        }
        this.calls.push(call)
        const name = pathname.split('/').at(-1) ?? ''
        const handler = pathname.startsWith('/_internal/')
          ? () => Response.json({ cancelled: true })
          : this.#handlers[name]
        return handler === undefined ? new Response('no such', { status: 404 }) : await handler(call, request)
      },
    })
  }

  get url(): string {
    return `http://127.0.0.1:${this.#server.port}`
  }

  /** As a process of this name. */
  async register(instanceId = 'p1', changes: object = {}): Promise<void> {
    const { status, body } = await this.#plane.ask('/nodes/register', {
      json: {
        id: this.id,
        base_url: this.url,
        instance_id: instanceId,
        lifecycle_status: 'ready',
        reasoners: Object.keys(this.#handlers).map((id) => ({ id })),
        skills: [{ id: 'add' }],
        ...changes,
      },
    })
    if (status !== 201) throw new Error(`${status} ${JSON.stringify(body)}`)
  }

  /** Of calls that were called off: by the ids of their executions. */
  get calledOff(): string[] {
    return this.calls.flatMap(
      ({ path }) => /^\/_internal\/executions\/([^/]+)\/cancel$/.exec(path)?.[1] ?? [],
    )
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#server.stop(true)
  }
}

/** That what was asked for is done later. */
export function later(): Response {
  return Response.json({ status: 'processing' }, { status: 202 })
}

/** Of the execution that a node is asked to work on. */
export function idIn(call: NodeCall | undefined): string {
  return call?.headers['x-execution-id'] ?? ''
}
