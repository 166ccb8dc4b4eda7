import { constants } from 'node:os'
import { posix } from 'node:path'
import { PlatformError } from '../../errors.ts'
import type { Clock } from '../../lib/clock.ts'
import type { Logger } from '../../lib/log.ts'
import type { Guest, GuestProcess, ProcessDescent } from '../../spec/guest.ts'
import { fullOutputBytesMax, type OutputChunk, type OutputSummary, type OutputTail } from './output.ts'
import { ProcessOutput } from './process-output.ts'
import type { ProcessRecord } from './records.ts'
import { newRun, type Run, restartNote, statusOf, wasKilled } from './run.ts'
import type { ProcessStatus, ProcessView } from './views.ts'
import { plainWords } from './words.ts'

const restartDelayMs = 1000
/** Runs of a restarting process whose output is kept. */
const runsMax = 4
const stdinChunkBytesMax = 64 * 1024
const stdinWaitMsMax = 10_000
/** What a timer of this runtime can hold; beyond it would fire at once. */
export const timerMsMax = 2 ** 31 - 1

/** What a process needs of those who keep it. */
export interface ProcessHost {
  readonly guest: Guest
  readonly clock: Clock
  readonly log: Logger
  readonly defaults: { env: Record<string, string>; workingDir: string }
  readonly closing: AbortSignal
  readonly outputBytesMax: number
  /** Keeps the sandbox awake until disposed; null where nothing rests. */
  keepAwake(): Disposable | null
  takeRunId(process: SandboxProcess): number
  dropRunId(id: number): void
  save(process: SandboxProcess): void
  ended(process: SandboxProcess): void
  /** Whether the kernel ended a program for want of memory since this was asked last; null where nobody counts. */
  readonly endedForMemory: ((name: string) => Promise<boolean>) | null
}

/** One named process over its runs: the first and, when it may restart, those that followed. */
export class SandboxProcess {
  readonly record: ProcessRecord
  /** Resolves when it ended for good. */
  readonly done: Promise<void>
  private readonly finished = Promise.withResolvers<void>()
  private readonly runs: Run[] = []
  private readonly timers = new AbortController()
  private readonly written: ProcessOutput
  private starting = true
  private restarting = false
  /** It ended, and is not told to have yet. */
  private concluding = false
  private awake: Disposable | null = null

  constructor(
    private readonly host: ProcessHost,
    record: ProcessRecord,
  ) {
    this.record = record
    this.done = this.finished.promise
    for (const run of record.runs) this.runs.push(newRun(run.id))
    this.written = new ProcessOutput(host.guest.processes, record, this.runs)
  }

  get id(): number {
    return this.record.id
  }

  get name(): string {
    return this.record.name
  }

  get pid(): number | null {
    return this.record.pid
  }

  /** It has not ended, whatever was asked of it. */
  get running(): boolean {
    return this.record.ended === null
  }

  get failed(): boolean {
    return this.record.ended !== null && this.record.ended.status !== 'completed'
  }

  get keepsAwake(): boolean {
    return this.running && this.record.keepAlive
  }

  /** One that was asked to end counts as ended, though it may take its time or not obey. */
  get status(): ProcessStatus {
    const { ended, intent } = this.record
    if (ended) return ended.status
    return intent === 'stop' ? 'stopped' : intent === 'kill' ? 'killed' : 'running'
  }

  /** @throws unprocessable when it cannot be started, insufficient_storage or unavailable when it cannot be recorded */
  async begin(env: Record<string, string>): Promise<void> {
    try {
      this.host.save(this)
    } catch (error) {
      throw recordFailure(error)
    }
    await this.spawn(env)
    this.starting = false
    this.keepAwake()
    this.armDeadline()
  }

  /** Takes up a process that an earlier hutch started; `current` is what the guest knows of its last run. */
  recover(current: GuestProcess | null): void {
    this.starting = false
    for (const run of this.runs.slice(0, -1)) run.settle()
    if (this.record.ended) {
      this.settleAll()
      this.finished.resolve()
      return
    }
    if (current && this.record.pid === null) {
      // It will be seen in lists from now on, so it must not be lost any more.
      this.record.pid = current.pid
      this.save()
    }
    const last = this.record.runs[this.record.runs.length - 1]!
    if (last.note !== null) {
      // hutch died while it waited to restart this one: it is decided, and counted, anew.
      last.note = null
      this.record.restartCount--
    }
    this.keepAwake()
    if (!current) this.onLost()
    else if (current.running) this.armDeadline()
    else this.onExit(current)
  }

  onExit(exit: GuestProcess): void {
    const run = this.current
    if (this.record.ended || exit.id !== run.id || exit.running || this.restarting || this.concluding) return
    const { record } = this
    const bySignal = exit.signal !== null
    const exitCode = bySignal ? -1 : (exit.exitCode ?? -1)
    const mayRestart = record.maxRestarts < 0 || record.restartCount < record.maxRestarts
    const forMemory = record.intent === null && wasKilled(exit) ? this.host.endedForMemory : null
    if (exitCode !== 0 && record.intent === null && record.restartOnFailure && mayRestart) {
      void forMemory?.(record.name)
      void this.restart(exitCode)
      return
    }
    const status = statusOf(exitCode, bySignal, record.intent)
    const at = exit.endedAt ?? this.host.clock.now()
    const how = exit.signal === null ? {} : { signal: exit.signal }
    if (forMemory === null) {
      this.finish(status, exitCode, at, how)
      return
    }
    this.concluding = true
    void forMemory(record.name).then((outOfMemory) => {
      if (!record.ended)
        this.finish(status, exitCode, at, { ...how, ...(outOfMemory ? { outOfMemory } : {}) })
    })
  }

  /** The machine is gone, and the process with it. */
  onLost(): void {
    if (this.record.ended) return
    this.finish('killed', -1, this.host.clock.now())
  }

  /** Remembers the intent before the signal goes out, so that it also holds when hutch dies in between. */
  async signal(intent: 'stop' | 'kill' | 'timeout', signal: number, scope: 'group' | 'tree'): Promise<void> {
    if (this.record.ended) return
    this.record.intent = intent
    this.save()
    if (this.restarting) {
      this.finish(intent === 'stop' ? 'stopped' : 'killed', -1, this.host.clock.now())
      return
    }
    try {
      await this.host.guest.processes.signal(this.current.id, signal, scope)
    } catch (error) {
      // It ended by itself meanwhile; its exit is on the way.
      if (!(PlatformError.is(error) && error.code === 'not_found')) throw error
    }
  }

  /** @throws conflict (stdin not open), unavailable (the process does not read) */
  async writeStdin(data: Uint8Array): Promise<void> {
    this.requireStdin()
    for (let start = 0; start < data.length; start += stdinChunkBytesMax) {
      const chunk = data.subarray(start, start + stdinChunkBytesMax)
      await this.whileRead((signal) => this.host.guest.processes.writeStdin(this.current.id, chunk, signal))
    }
  }

  /** Idempotent. @throws conflict when it was never open, unavailable (the process does not read what was written) */
  async closeStdin(): Promise<void> {
    if (!this.record.stdin) this.requireStdin()
    if (!this.running) return
    await this.whileRead((signal) => this.host.guest.processes.closeStdin(this.current.id, signal))
  }

  private async whileRead(work: (signal: AbortSignal) => Promise<void>): Promise<void> {
    const late = new AbortController()
    const done = new AbortController()
    const waited = this.host.clock.sleep(stdinWaitMsMax, done.signal)
    const giveUp = () => {
      const seconds = stdinWaitMsMax / 1000
      late.abort(
        new PlatformError('unavailable', `the process did not read its stdin for ${seconds} seconds`, {
          details: { code: 'STDIN_NOT_READ' },
        }),
      )
    }
    waited.then(giveUp, () => {})
    try {
      await work(late.signal)
    } finally {
      done.abort()
    }
  }

  /** What it started, in all of its runs, and what that has open. */
  async descent(): Promise<ProcessDescent> {
    const runs = await Promise.all(this.runs.map(({ id }) => this.host.guest.processes.descent(id)))
    return {
      living: runs.reduce((sum, { living }) => sum + living, 0),
      sockets: runs.flatMap(({ sockets }) => sockets),
    }
  }

  /** The last `bytesMax` bytes of each stream. */
  output(bytesMax: number): Promise<OutputSummary> {
    return this.written.last(bytesMax)
  }

  /** What is kept of its output and what it goes on to write, until it ends; as `ProcessOutput.follow`. */
  follow(signal: AbortSignal, tail?: OutputTail): AsyncIterable<OutputChunk[]> {
    return this.written.follow(signal, tail)
  }

  /** `fresh`: without output, as just started. `inline` and `full`: with the last 64 KiB or 4 MiB of it. */
  async view(output: 'fresh' | 'inline' | 'full'): Promise<ProcessView> {
    const summary =
      output === 'fresh'
        ? null
        : output === 'full'
          ? await this.written.last(fullOutputBytesMax)
          : await this.written.inline()
    const { record } = this
    return {
      pid: String(record.pid ?? 0),
      name: record.name,
      command: record.command,
      status: this.status,
      startedAt: new Date(record.startedAt).toUTCString(),
      completedAt: record.ended ? new Date(record.ended.at).toUTCString() : '',
      exitCode: record.ended?.exitCode ?? 0,
      workingDir: record.workingDir,
      logs: summary?.logs ?? null,
      stdout: summary?.stdout ?? '',
      stderr: summary?.stderr ?? '',
      restartOnFailure: record.restartOnFailure,
      maxRestarts: record.maxRestarts,
      restartCount: record.restartCount,
      keepAlive: record.keepAlive,
      stdin: record.stdin,
      ...(record.ended?.signal === undefined ? {} : { signal: record.ended.signal }),
      ...(record.ended?.outOfMemory ? { outOfMemory: true } : {}),
    }
  }

  /** Ends timers. */
  release(): void {
    this.timers.abort()
    this.letRest()
    this.written.release()
  }

  private get current(): Run {
    return this.runs[this.runs.length - 1]!
  }

  private async spawn(requestEnv: Record<string, string>): Promise<void> {
    const { record, host } = this
    const workingDir = posix.resolve(host.defaults.workingDir, record.workingDir)
    const env = { ...host.defaults.env, ...requestEnv }
    const start = (argv: string[]) =>
      host.guest.processes.spawn({
        id: this.current.id,
        argv,
        env,
        workingDir,
        stdin: record.stdin ? 'pipe' : 'null',
        outputBytesMax: host.outputBytesMax,
      })
    try {
      const { pid, startedAt } = record.argv
        ? await start(record.argv)
        : await start([...shellOf(host.defaults.env), record.command]).catch((error) => {
            // Small images have no shell, and most commands need none.
            const words = isNoProgram(error) ? plainWords(record.command) : null
            if (words === null) throw error
            return start(words)
          })
      if (record.pid === null) {
        record.pid = pid
        record.startedAt = startedAt
        host.closing.throwIfAborted()
        // Before anybody is told: the machine may die together with hutch, and then only this file knows of it.
        this.save()
      }
    } catch (error) {
      throw await this.startFailure(error, workingDir)
    }
  }

  private async startFailure(error: unknown, workingDir: string): Promise<unknown> {
    if (!PlatformError.is(error) || error.code !== 'unprocessable') return error
    const { command, workingDir: asked } = this.record
    const entry = await this.host.guest.files.stat(workingDir).catch(() => null)
    const reason =
      entry?.type === 'directory'
        ? error.message
        : `could not execute command '${command}' because folder '${asked || workingDir}' does not exist`
    return new PlatformError('unprocessable', `failed to start process: ${reason}`, { cause: error })
  }

  private async restart(exitCode: number): Promise<void> {
    const { record, host } = this
    this.restarting = true
    record.restartCount++
    record.runs[record.runs.length - 1]!.note = restartNote(exitCode, record.restartCount, record.maxRestarts)
    this.save()
    try {
      await host.clock.sleep(restartDelayMs, AbortSignal.any([this.timers.signal, host.closing]))
    } catch {
      return
    }
    if (record.ended) return
    const ended = this.current
    const id = host.takeRunId(this)
    record.runs.push({ id, note: null })
    this.runs.push(newRun(id))
    ended.settle()
    while (record.runs.length > runsMax) {
      const oldest = record.runs.shift()!
      this.runs.shift()
      host.dropRunId(oldest.id)
    }
    this.restarting = false
    this.save()
    try {
      await this.spawn(record.env ?? {})
    } catch (error) {
      host.log.warn('a process could not be restarted', { name: record.name, error: String(error) })
      if (!record.ended) this.finish('failed', exitCode, host.clock.now())
    }
  }

  private finish(
    status: Exclude<ProcessStatus, 'running'>,
    exitCode: number,
    at: number,
    how: { signal?: number; outOfMemory?: true } = {},
  ): void {
    this.record.ended = { at, exitCode, status, ...how }
    this.record.env = null
    this.restarting = false
    this.timers.abort()
    this.letRest()
    // A process that ended while it was being started is recorded once, with its pid.
    if (!this.starting) this.save()
    this.settleAll()
    this.finished.resolve()
    this.host.ended(this)
  }

  private settleAll(): void {
    for (const run of this.runs) run.settle()
  }

  private keepAwake(): void {
    if (this.keepsAwake) this.awake ??= this.host.keepAwake()
  }

  private letRest(): void {
    this.awake?.[Symbol.dispose]()
    this.awake = null
  }

  private armDeadline(): void {
    const { deadlineAt } = this.record
    if (deadlineAt === null || !this.running) return
    const waitMs = Math.min(Math.max(0, deadlineAt - this.host.clock.now()), timerMsMax)
    this.host.clock.sleep(waitMs, AbortSignal.any([this.timers.signal, this.host.closing])).then(
      () => {
        if (this.host.clock.now() < deadlineAt) return this.armDeadline()
        return this.signal('timeout', constants.signals.SIGKILL, 'tree').catch((error) => {
          this.host.log.warn('a process that is over its time was not killed', {
            name: this.name,
            error: String(error),
          })
        })
      },
      () => {},
    )
  }

  private requireStdin(): void {
    if (!this.record.stdin) {
      throw new PlatformError(
        'conflict',
        `stdin of process '${this.name}' is not open: start it with "stdin": true`,
      )
    }
    if (!this.running) throw new PlatformError('conflict', `process '${this.name}' is not running`)
  }

  private save(): void {
    try {
      this.host.save(this)
    } catch (error) {
      // The guest knows it as well: both would have to be lost.
      this.host.log.warn('a process record was not written', { name: this.name, error: String(error) })
    }
  }
}

function recordFailure(cause: unknown): PlatformError {
  const code = String((cause as NodeJS.ErrnoException).code)
  return code === 'ENOSPC' || code === 'EDQUOT'
    ? new PlatformError('insufficient_storage', 'the host has no disk left to record a process', { cause })
    : new PlatformError('unavailable', `a process cannot be recorded on the host: ${code}`, { cause })
}

/** `$SHELL $SHELL_ARGS`, as the sandbox's environment has them. */
function shellOf(env: Record<string, string>): string[] {
  const args = (env.SHELL_ARGS ?? '').split(/\s+/).filter((arg) => arg !== '')
  return [env.SHELL || 'sh', ...(args.length > 0 ? args : ['-c'])]
}

function isNoProgram(error: unknown): boolean {
  return PlatformError.is(error) && error.code === 'unprocessable' && error.details?.errno === 'ENOENT'
}
