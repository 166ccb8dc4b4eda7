import { join } from 'node:path'

export interface SeenRequest {
  method: string
  /** With its query. */
  path: string
  headers: Headers
  body: string
}

type Answer = (request: SeenRequest) => Response | null | Promise<Response | null>

/** A platform on loopback that answers what a test says, for commands run against it as people run them. */
export class TestPlatform implements Disposable {
  readonly seen: SeenRequest[] = []
  /** Null: 404. */
  answer: Answer = () => null
  private readonly server: Bun.Server<undefined>

  constructor() {
    this.server = Bun.serve({
      port: 0,
      hostname: '127.0.0.1',
      idleTimeout: 0,
      fetch: async (request) => {
        const { pathname, search } = new URL(request.url)
        const bytes = await request.bytes()
        const seen = {
          method: request.method,
          path: pathname + search,
          headers: request.headers,
          // A character a byte: archives come, too.
          body: Buffer.from(bytes).toString('latin1'),
        }
        this.seen.push(seen)
        const answered = await this.answer(seen)
        return (
          answered ??
          Response.json({ error: `${seen.method} ${pathname} not found`, code: 404 }, { status: 404 })
        )
      },
    })
  }

  get origin(): string {
    return `http://127.0.0.1:${this.server.port}`
  }

  /** Methods and paths, in the order they came. */
  get log(): string[] {
    return this.seen.map(({ method, path }) => `${method} ${path}`)
  }

  /** One command line, run from the sources in a directory of its own choosing. */
  async run(
    args: string[],
    options: { cwd?: string; stdin?: string; env?: Record<string, string> } = {},
  ): Promise<{ code: number; stdout: string; stderr: string }> {
    const child = this.spawn(args, options)
    const [code, stdout, stderr] = await Promise.all([
      child.exited,
      new Response(child.stdout).text(),
      new Response(child.stderr).text(),
    ])
    return { code, stdout, stderr }
  }

  spawn(
    args: string[],
    options: { cwd?: string; stdin?: string; env?: Record<string, string> } = {},
  ): Bun.Subprocess<Blob | 'ignore', 'pipe', 'pipe'> {
    return Bun.spawn([process.execPath, '--no-env-file', join(import.meta.dir, '../main.ts'), ...args], {
      cwd: options.cwd ?? import.meta.dir,
      stdin: options.stdin === undefined ? 'ignore' : new Blob([options.stdin]),
      stdout: 'pipe',
      stderr: 'pipe',
      env: {
        PATH: process.env.PATH ?? '',
        HOME: '/nonexistent',
        BL_API_URL: `${this.origin}/v0`,
        BL_API_KEY: 'test-key',
        BL_WORKSPACE: 'main',
        ...options.env,
      },
    })
  }

  [Symbol.dispose](): void {
    void this.server.stop(true)
  }
}
