import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { executablePath } from './build.ts'
import { type Captured, capture } from './capture.ts'

const readyTimeoutMs = 60_000
const stopTimeoutMs = 30_000
const stderrCharactersKept = 16 * 1024

/** One `dist/hutch up`, on any free port, with its own data directory: for the demo, the smoke test and benches. */
export class RunningHutch implements AsyncDisposable {
  private constructor(
    readonly dataDir: string,
    readonly url: string,
    /** Spawn to the `ready` line. */
    readonly startMs: number,
    readonly child: Bun.Subprocess<'ignore', 'pipe', 'pipe'>,
    private readonly stderr: { text: string },
  ) {}

  /** `port`: any free one by default. */
  static async start(options: {
    dataDir: string
    port?: number
    args?: string[]
    env?: Record<string, string | undefined>
  }): Promise<RunningHutch> {
    const startedAt = performance.now()
    const port = String(options.port ?? 0)
    const child = Bun.spawn(
      [executablePath, 'up', '--port', port, '--data-dir', options.dataDir, ...(options.args ?? [])],
      {
        stdin: 'ignore',
        stdout: 'pipe',
        stderr: 'pipe',
        env: { ...cleanEnvironment(), ...options.env },
        detached: true,
      },
    )
    const stderr = { text: '' }
    void drain(child.stderr, (text) => {
      stderr.text = (stderr.text + text).slice(-stderrCharactersKept)
    })
    const timer = setTimeout(() => child.kill('SIGKILL'), readyTimeoutMs)
    const url = await readyUrl(child.stdout).finally(() => clearTimeout(timer))
    const startMs = performance.now() - startedAt
    if (url === null) {
      const code = await child.exited
      throw new Error(`hutch up did not get ready (exit code ${code}):\n${stderr.text}`)
    }
    return new RunningHutch(options.dataDir, url, startMs, child, stderr)
  }

  /** What it logged lately. */
  get log(): string {
    return this.stderr.text
  }

  /** One command line against it. */
  async run(
    args: string[],
    options: { stdin?: string; cwd?: string; env?: Record<string, string> } = {},
  ): Promise<Captured> {
    return await hutch(args, { ...options, env: { HUTCH_DATA_DIR: this.dataDir, ...options.env } })
  }

  /** The variables that point a client here. */
  async env(): Promise<Record<string, string>> {
    const { code, stdout, stderr } = await this.run(['env', '--json'])
    if (code !== 0) throw new Error(`hutch env failed: ${stderr}`)
    return JSON.parse(stdout) as Record<string, string>
  }

  async stop(): Promise<number> {
    this.child.kill('SIGTERM')
    const timer = setTimeout(() => this.child.kill('SIGKILL'), stopTimeoutMs)
    const code = await this.child.exited
    clearTimeout(timer)
    return code
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.child.exitCode === null && this.child.signalCode === null) await this.stop()
  }
}

/** Runs dist/hutch to its end, with none of the caller's own settings. */
export async function hutch(
  args: string[],
  options: { stdin?: string; cwd?: string; env?: Record<string, string> } = {},
): Promise<Captured> {
  return await capture([executablePath, ...args], {
    ...(options.cwd === undefined ? {} : { cwd: options.cwd }),
    env: { ...cleanEnvironment(), ...options.env },
    ...(options.stdin === undefined ? {} : { stdin: options.stdin }),
  })
}

/** The surroundings without anything that configures the platform or a client of it. */
export function cleanEnvironment(): Record<string, string | undefined> {
  return Object.fromEntries(Object.entries(process.env).filter(([name]) => !/^(BL_|HUTCH_)/.test(name)))
}

/** A data directory that is removed with everything in it, mounts of sandboxes included. */
export async function temporaryDataDir(): Promise<{ path: string } & AsyncDisposable> {
  const path = await mkdtemp(join(tmpdir(), 'hutch-'))
  return { path, [Symbol.asyncDispose]: () => rm(path, { recursive: true, force: true }) }
}

async function readyUrl(stdout: ReadableStream<Uint8Array>): Promise<string | null> {
  let text = ''
  let url: string | null = null
  const { promise, resolve } = Promise.withResolvers<string | null>()
  void drain(stdout, (more) => {
    if (url !== null) return
    text += more
    url = /^ready (http:\/\/\S+)\n/m.exec(text)?.[1] ?? null
    if (url !== null) resolve(url)
  }).then(() => resolve(url))
  return await promise
}

async function drain(stream: ReadableStream<Uint8Array>, take: (text: string) => void): Promise<void> {
  const decoder = new TextDecoder()
  for await (const chunk of stream) take(decoder.decode(chunk, { stream: true }))
}
