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
      env: { ...this.env, ...options.env },
    })
  }

  /** One command line on a terminal; `until` waits for what it shows, and is told when it ends without. */
  onTerminal(args: string[]): {
    child: Bun.Subprocess
    shown(): string
    until(pattern: RegExp): Promise<void>
    type(text: string): void
  } {
    let shown = ''
    let woken = Promise.withResolvers<void>()
    const child = Bun.spawn(
      [process.execPath, '--no-env-file', join(import.meta.dir, '../main.ts'), ...args],
      {
        cwd: import.meta.dir,
        env: { ...this.env, NO_COLOR: '1', TERM: 'xterm' },
        terminal: {
          cols: 120,
          rows: 40,
          data: (_terminal, bytes) => {
            shown += new TextDecoder().decode(bytes)
            woken.resolve()
            woken = Promise.withResolvers()
          },
        },
      },
    )
    return {
      child,
      shown: () => shown,
      async until(pattern) {
        while (!pattern.test(shown)) {
          const ended = await Promise.race([woken.promise, child.exited])
          if (ended !== undefined) throw new Error(`it ended without ${pattern}:\n${shown}`)
        }
      },
      type: (text) => void child.terminal?.write(text),
    }
  }

  private get env(): Record<string, string> {
    return {
      PATH: process.env.PATH ?? '',
      HOME: '/nonexistent',
      BL_API_URL: `${this.origin}/v0`,
      BL_API_KEY: 'test-key',
      BL_WORKSPACE: 'main',
    }
  }

  [Symbol.dispose](): void {
    void this.server.stop(true)
  }
}
