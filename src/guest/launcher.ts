import type { FileSink } from 'bun'
import { readError } from './codec.ts'
import { FrameReader, FrameType, FrameWriter, receivedLimits } from './frame.ts'
import { PayloadReader } from './payload.ts'

/** A launch answers sooner by itself, with what it waited for. */
const launchTimeoutMs = 25_000
/** Without a launch, until the launcher ends: who makes one sandbox keeps no process for the next. */
const idleMsMax = 500

export interface ProcessIdentity {
  pid: number
  /** Clock ticks since boot, which with the pid names one process for ever. */
  startTime: number
}

export interface LaunchedInstance {
  guest: ProcessIdentity
  keeper: ProcessIdentity
  /** Connections to the outside arrive at the keeper; false where the kernel cannot redirect them. */
  relaysEgress: boolean
}

/** The helper said no: what went wrong at which step, for logs and for probes. */
export class HelperError extends Error {
  override readonly name = 'HelperError'

  constructor(
    readonly stage: string,
    readonly errno: number,
    readonly said: string,
  ) {
    super(`${stage}: ${said}`)
  }
}

/** How a helper is started that is to live on when we end: its answers are read, and nothing of ours is left with it. */
export const outlivingHelper = {
  stdout: 'pipe',
  stderr: 'ignore',
  env: {},
  cwd: '/',
  // A session of its own from the first moment: what a terminal sends to our group is not for the instances.
  detached: true,
} as const

interface Running {
  child: { kill(): void; unref(): void; exited: Promise<number> }
  stdin: FileSink
}

/**
 * The helper's launcher, a process that makes instances: each is a fork of it, and outlives it. Started for a launch,
 * it stays for those that follow.
 */
export class Launcher implements AsyncDisposable {
  readonly #helperPath: string
  readonly #pending = new Map<number, (result: LaunchedInstance | HelperError) => void>()
  readonly #stays: boolean
  #running: Running | null = null
  #lastId = 0
  #idle: Timer | null = null

  /** `stays`: also without a launch, for instances that are to end with it. */
  constructor(helperPath: string, { stays = false } = {}) {
    this.#helperPath = helperPath
    this.#stays = stays
  }

  /**
   * Makes an instance from the entries of its specification.
   * @throws HelperError what the launcher answered; nothing of the instance is left then
   */
  async launch(entries: readonly (readonly [key: string, value: string])[]): Promise<LaunchedInstance> {
    this.#lastId = (this.#lastId % 0xffff_fff0) + 1
    const id = this.#lastId
    const text = entries.map(([key, value]) => `${key}=${value}\0`).join('')
    const frame = new FrameWriter(FrameType.launch, id, text.length)
      .raw(new TextEncoder().encode(text))
      .finish()
    const { promise, resolve } = Promise.withResolvers<LaunchedInstance | HelperError>()
    this.#pending.set(id, resolve)
    if (this.#idle !== null) clearTimeout(this.#idle)
    const timer = setTimeout(() => this.#giveUp(id), launchTimeoutMs)
    try {
      this.#send(frame)
      const result = await promise
      if (result instanceof HelperError) throw result
      return result
    } finally {
      clearTimeout(timer)
      this.#pending.delete(id)
      if (this.#pending.size === 0) this.#endWhenIdle()
    }
  }

  /** Launches under way come to their end, unheard. */
  async [Symbol.asyncDispose](): Promise<void> {
    const running = this.#running
    if (this.#idle !== null) clearTimeout(this.#idle)
    this.#lost(running)
    await running?.child.exited
  }

  #endWhenIdle(): void {
    if (this.#stays) return
    if (this.#idle !== null) clearTimeout(this.#idle)
    this.#idle = setTimeout(() => this.#lost(this.#running), idleMsMax)
    this.#idle.unref()
  }

  #send(frame: Uint8Array): void {
    this.#running ??= this.#start()
    const { stdin } = this.#running
    stdin.write(frame)
    // Where the pipe is full this waits, and fails with the launcher's end, which is told to every launch anyway.
    void Promise.resolve(stdin.flush()).catch(() => {})
  }

  #giveUp(id: number): void {
    this.#pending.get(id)?.(new HelperError('start', 0, `no answer within ${launchTimeoutMs} ms`))
    if (this.#running) this.#send(new FrameWriter(FrameType.cancelLaunch, id).finish())
  }

  #start(): Running {
    const child = Bun.spawn([this.#helperPath, 'launch'], { ...outlivingHelper, stdin: 'pipe' })
    child.unref()
    const running: Running = { child, stdin: child.stdin }
    void this.#read(running, child.stdout)
    return running
  }

  async #read(running: Running, stdout: ReadableStream<Uint8Array>): Promise<void> {
    const reader = new FrameReader(receivedLimits.launcher)
    try {
      for await (const chunk of stdout) {
        for (const { type, id, payload } of reader.push(chunk)) {
          this.#pending.get(id)?.(type === FrameType.launched ? readLaunched(payload) : readFailure(payload))
        }
      }
    } catch {
      // Not our protocol: as good as gone.
    }
    this.#lost(running)
  }

  #lost(running: Running | null): void {
    if (running === null || this.#running !== running) return
    this.#running = null
    // It ends with its input.
    void Promise.resolve(running.stdin.end()).catch(() => {})
    const error = new HelperError('start', 0, 'the launcher ended')
    for (const settle of this.#pending.values()) settle(error)
  }
}

function readLaunched(payload: Uint8Array): LaunchedInstance {
  const reader = new PayloadReader(payload)
  const identity = () => ({ pid: reader.u32(), startTime: reader.u64() })
  const launched = { guest: identity(), keeper: identity(), relaysEgress: reader.u8() === 1 }
  reader.end()
  return launched
}

function readFailure(payload: Uint8Array): HelperError {
  const { errno, message } = readError(payload)
  const [, stage = 'start', said = message] = /^([a-z]+): (.*)$/s.exec(message) ?? []
  return new HelperError(stage, errno, said)
}
