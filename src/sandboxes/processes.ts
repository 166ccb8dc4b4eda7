import { constants } from 'node:os'
import { PlatformError } from '../errors.ts'
import type { Clock } from '../lib/clock.ts'
import { isSet } from '../lib/flag.ts'
import type { Logger } from '../lib/log.ts'
import type { Guest, GuestProcess } from '../spec/guest.ts'
import { checkCommand, checkName } from './processes/checks.ts'
import type { OutputSummary } from './processes/output.ts'
import { fullOutputBytesMax } from './processes/output.ts'
import { PortMonitors } from './processes/port-monitors.ts'
import { type ProcessHost, SandboxProcess } from './processes/process.ts'
import { type ProcessRecord, ProcessRecords } from './processes/records.ts'
import { ProcessTable } from './processes/table.ts'
import type { ProcessStart, ProcessView } from './processes/views.ts'
import { ProcessWaits } from './processes/waits.ts'
import { SandboxTerminals } from './terminals.ts'

export { LineCutter } from './processes/lines.ts'
export type { KeptOutput, OutputChunk, OutputStream, OutputSummary } from './processes/output.ts'
export { fullOutputBytesMax, OutputTail, truncationLine, WholeCharacters } from './processes/output.ts'
export { isListener } from './processes/port-monitors.ts'
export type { SandboxProcess } from './processes/process.ts'
export type { ProcessRecord } from './processes/records.ts'
export type { ProcessStart, ProcessStatus, ProcessView } from './processes/views.ts'
export type { TerminalClient, TerminalRequest, TerminalSession } from './terminals.ts'

export interface SandboxProcessesOptions {
  guest: Guest
  /** One small file a process is kept here, so that a restarted hutch knows names and intentions. */
  recordsFile: string
  clock: Clock
  log: Logger
  defaults: { env: Record<string, string>; workingDir: string }
  /** Whether anybody listens: cheaper to know than who does. */
  listening?: (port: number) => Promise<boolean>
  /** When the machine was first started, in milliseconds since the epoch. */
  startedAt?: number
  /** It was made by this platform since its start. */
  madeHere?: boolean
  /** A frozen machine answers nobody: what polls it waits. */
  frozen?: () => boolean
  /** Resolves when the machine is gone: whatever ran is then killed. */
  exited?: Promise<unknown>
  /** Called for each process that asks that the sandbox stays awake; disposed when it ended. */
  keepAwake?: () => Disposable
  /** As `ProcessHost` has it. Never rejects. */
  endedForMemory?: (name: string) => Promise<boolean>
}

/** Ended processes whose name, state and output are kept; the oldest are forgotten. */
export const endedProcessesMax = 128
/**
 * On the host's disk, for each run of a process. The oldest eighth goes first, which leaves a late reader the last
 * 32 MiB of what was written in pieces of 200 bytes and more.
 */
const processOutputBytesMax = 40 * 1024 * 1024
const keepAliveSecondsDefault = 600
const portWaitSecondsDefault = 60
/** How long an answer to stop waits for the process to obey. */
const stopAnswerMsMax = 1000
const killAnswerMsMax = 5000
/** Of the image's own program. */
const programName = 'entrypoint'
/** A sandbox whose program does not listen by then is used all the same. */
const programListensSecondsMax = 20

/**
 * The process policy of one running sandbox: names, environments, waits, restarts, deadlines and logs, over a guest
 * that knows none of them. Made once per running instance; `open` finds again what an earlier hutch started.
 */
export class SandboxProcesses implements AsyncDisposable {
  private readonly records: ProcessRecords
  private readonly table = new ProcessTable()
  private readonly waits: ProcessWaits
  private readonly closing = new AbortController()
  private removeExitListener = () => {}
  /** Being started at this moment. */
  private readonly launching = new Set<Promise<SandboxProcess>>()
  private quiet = false
  /** What is to be started waits for it. */
  private paused: Promise<void> | null = null
  private nextId = 1
  private startedAt = 0
  /** In this life of the machine. */
  private programStarted = false

  private readonly host: ProcessHost
  readonly monitors: PortMonitors
  /** Shells for people, which are no processes of the API. */
  readonly terminals: SandboxTerminals

  constructor(private readonly options: SandboxProcessesOptions) {
    this.records = new ProcessRecords(options.recordsFile, options.clock, options.log, options.startedAt)
    this.host = this.makeHost()
    const { listening } = options
    this.waits = new ProcessWaits({ clock: options.clock, closing: this.closing.signal, listening })
    const { guest, clock, log, defaults, recordsFile } = options
    this.monitors = new PortMonitors({ clock, log, frozen: () => options.frozen?.() ?? false })
    this.terminals = new SandboxTerminals({
      guest,
      clock,
      log,
      defaults,
      recordsFile: `${recordsFile}.terminals`,
      takeId: () => this.nextId++,
    })
  }

  /** Reads the records and takes up every process that the guest still knows. */
  async open(): Promise<void> {
    const { openedAt, records, isNew } = this.records.load()
    this.startedAt = openedAt
    // In a new sandbox nothing can run yet, and to ask would be a part of what its creation takes.
    const isEmpty = this.options.madeHere === true && isNew && !this.terminals.recorded
    const list = () => (isEmpty ? [] : this.options.guest.processes.list())
    const known = await list()
    const byRunId = new Map(known.map((process) => [process.id, process]))
    for (const { id } of known) this.nextId = Math.max(this.nextId, id + 1)
    for (const record of records) {
      for (const run of record.runs) this.nextId = Math.max(this.nextId, run.id + 1)
      const current = byRunId.get(record.runs[record.runs.length - 1]!.id)
      if (!current && record.pid === null && record.ended === null) {
        // hutch died before the program was known to run, and it does not: nobody was ever told of it.
        this.removeRecord(record.id)
        void this.forgetRun(record.id)
        continue
      }
      if (record.argv && current) this.programStarted = true
      const process = new SandboxProcess(this.host, record)
      this.table.add(process)
      process.recover(current ?? null)
    }
    this.removeExitListener = this.options.guest.processes.onExit((exit) => this.onExit(exit))
    // Between the list above and the listener a process may have ended.
    for (const exit of await list()) if (!exit.running) this.onExit(exit)
    this.options.exited?.then(
      () => this.onMachineGone(),
      () => this.onMachineGone(),
    )
    await this.terminals.open()
    await this.forgetOldest()
  }

  /** `keepAlive`: how many running processes ask that the sandbox stays awake. */
  get counts(): { running: number; ended: number; keepAlive: number } {
    const counts = { running: 0, ended: 0, keepAlive: 0 }
    for (const process of this.table.every()) {
      if (process.running) counts.running++
      else counts.ended++
      if (process.keepsAwake) counts.keepAlive++
    }
    return counts
  }

  /** When the sandbox's first records were made, which is when it started; a restart of hutch does not change it. */
  get openedAt(): number {
    return this.startedAt
  }

  get env(): Record<string, string> {
    return this.options.defaults.env
  }

  /**
   * The image's own program: started once in each life of the machine, whether or not it has ended since. With a port,
   * waits until it listens there.
   * @throws unprocessable when it cannot be started, or does not listen in time
   */
  async startProgram(
    argv: string[],
    { port, env }: { port?: number | undefined; env?: Record<string, string> } = {},
  ): Promise<void> {
    if (this.programStarted) return
    this.programStarted = true
    const taken = this.table.named(programName)?.running
    const process = await this.launch({
      command: argv.map(shellWord).join(' '),
      argv,
      ...(taken ? {} : { name: programName }),
      ...(env ? { env } : {}),
    })
    if (port !== undefined) await this.waits.forPorts(process, [port], programListensSecondsMax)
  }

  /**
   * Starts a process and waits for nothing but its start.
   * @throws bad_request (name in use), unprocessable (cannot be started, and why)
   */
  async launch(start: ProcessStart): Promise<SandboxProcess> {
    while (this.paused !== null) await this.paused
    this.closing.signal.throwIfAborted()
    if (this.quiet) throw new PlatformError('workload_unavailable', 'the sandbox is being archived')
    const launching = this.launchNow(start)
    this.launching.add(launching)
    const done = () => this.launching.delete(launching)
    launching.then(done, done)
    return await launching
  }

  private async launchNow(start: ProcessStart): Promise<SandboxProcess> {
    const name = start.name || this.table.freeName()
    checkName(name)
    checkCommand(start.command)
    const holder = this.table.named(name)
    if (holder?.status === 'running')
      throw new PlatformError('bad_request', `process with name '${name}' already exists and is running`)
    if (start.keepAlive && isSet(this.options.defaults.env.BL_DISABLE_KEEPALIVE)) {
      throw new PlatformError(
        'bad_request',
        'keepAlive: this sandbox has it disabled (BL_DISABLE_KEEPALIVE is set)',
      )
    }
    const seconds = start.timeoutSeconds ?? keepAliveSecondsDefault
    const now = this.options.clock.now()
    const id = this.nextId++
    const process = new SandboxProcess(this.host, {
      version: 1,
      id,
      name,
      command: start.command,
      ...(start.argv ? { argv: start.argv } : {}),
      workingDir: start.workingDir ?? '',
      env: start.restartOnFailure ? (start.env ?? {}) : null,
      stdin: start.stdin ?? false,
      keepAlive: start.keepAlive ?? false,
      restartOnFailure: start.restartOnFailure ?? false,
      maxRestarts: start.maxRestarts ?? 0,
      restartCount: 0,
      deadlineAt: start.keepAlive && seconds > 0 ? now + seconds * 1000 : null,
      pid: null,
      startedAt: now,
      runs: [{ id, note: null }],
      intent: null,
      ended: null,
    })
    this.table.add(process)
    try {
      await process.begin(start.env ?? {})
    } catch (error) {
      this.table.takeBack(process, holder)
      this.removeRecord(id)
      throw error
    }
    return process
  }

  /**
   * Starts a process and waits for what the request says: ports, completion, both or nothing. An aborted `signal` ends
   * the wait, not the process.
   * @throws as `launch`, and unprocessable when the time to wait is over (the process goes on)
   */
  async start(start: ProcessStart, signal?: AbortSignal): Promise<ProcessView> {
    const { clock } = this.options
    const startedMs = clock.monotonic()
    const seconds = start.keepAlive ? 0 : (start.timeoutSeconds ?? 0)
    const waitMs = start.waitForCompletion && seconds > 0 ? seconds * 1000 : null
    const tooLate = () => new PlatformError('unprocessable', `process timed out after ${seconds} seconds`)
    const process = await this.waits.inTime(this.launch(start), waitMs)
    if (!process) throw tooLate()
    if (start.waitForPorts?.length)
      await this.waits.forPorts(process, start.waitForPorts, seconds || portWaitSecondsDefault, signal)
    if (!start.waitForCompletion) return process.view('fresh')
    const leftMs = waitMs === null ? null : Math.max(0, startedMs + waitMs - clock.monotonic())
    if (!(await this.waits.forEnd(process, leftMs, signal))) throw tooLate()
    return process.view('full')
  }

  /** The newest process of this name, or the one with this pid when `identifier` is all digits. */
  find(identifier: string): SandboxProcess | null {
    return this.table.find(identifier)
  }

  /** @throws not_found */
  require(identifier: string): SandboxProcess {
    const process = this.find(identifier)
    if (!process) throw new PlatformError('not_found', 'process not found')
    return process
  }

  /** @throws not_found */
  get(identifier: string): Promise<ProcessView> {
    return this.require(identifier).view('inline')
  }

  /** From now on nothing is started; answers what runs, oldest first. */
  async quiesce(): Promise<SandboxProcess[]> {
    this.quiet = true
    return await this.launched()
  }

  /** As they are now. */
  known(): ProcessRecord[] {
    return this.table.every().map(({ record }) => structuredClone(record))
  }

  /** Nothing is started until it is disposed: who asks for it waits. `running`: oldest first. For one at a time. */
  async pause(): Promise<Disposable & { running: SandboxProcess[] }> {
    const { promise, resolve } = Promise.withResolvers<void>()
    this.paused = promise
    const running = await this.launched()
    return {
      running,
      [Symbol.dispose]: () => {
        this.paused = null
        resolve()
      },
    }
  }

  private async launched(): Promise<SandboxProcess[]> {
    while (this.launching.size > 0) await Promise.allSettled(this.launching)
    return this.table.every().filter((process) => process.running && process.pid !== null)
  }

  /** Oldest first. */
  async list(): Promise<ProcessView[]> {
    const views: ProcessView[] = []
    for (const process of this.table.every())
      if (process.pid !== null) views.push(await process.view('inline'))
    return views
  }

  /** Whose output there is, the newest process first and its runs in their order; `ended` where nothing more comes. */
  runs(): { id: number; ended: { at: number } | null }[] {
    return this.table
      .every()
      .reverse()
      .flatMap(({ record }) => record.runs.map(({ id }) => ({ id, ended: record.ended })))
  }

  /** @throws not_found */
  logs(identifier: string): Promise<OutputSummary> {
    return this.require(identifier).output(fullOutputBytesMax)
  }

  /**
   * SIGTERM to the process and its group. Answers when it ended, or after a second if it does not obey.
   * @throws not_found, also when it does not run, or was asked before
   */
  stop(identifier: string): Promise<void> {
    return this.end(identifier, 'stop', stopAnswerMsMax)
  }

  /** SIGKILL to the process and everything below it. @throws not_found, also when it does not run */
  kill(identifier: string): Promise<void> {
    return this.end(identifier, 'kill', killAnswerMsMax)
  }

  /** Lets go of the guest and of the records, which a successor may take up; processes run on. */
  async close(): Promise<void> {
    this.removeExitListener()
    this.closing.abort(new PlatformError('unavailable', 'the sandbox is being closed'))
    for (const process of this.table.every()) process.release()
    this.terminals.close()
    this.monitors.close()
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close()
  }

  private makeHost(): ProcessHost {
    return {
      guest: this.options.guest,
      clock: this.options.clock,
      log: this.options.log,
      defaults: this.options.defaults,
      closing: this.closing.signal,
      outputBytesMax: processOutputBytesMax,
      keepAwake: () => this.options.keepAwake?.() ?? null,
      endedForMemory: this.options.endedForMemory ?? null,
      takeRunId: (process) => {
        const id = this.nextId++
        this.table.addRun(id, process)
        return id
      },
      dropRunId: (id) => {
        this.table.removeRun(id)
        void this.forgetRun(id)
      },
      save: (process) => {
        // The records may be another's by now.
        if (this.closing.signal.aborted) return
        // Not one that was forgotten meanwhile, or its record would come back.
        if (!this.table.has(process)) return
        this.records.save(process.record)
      },
      // Once whoever waits for the end has been told.
      ended: () => setImmediate(() => void this.forgetOldest()),
    }
  }

  private async end(identifier: string, intent: 'stop' | 'kill', waitMs: number): Promise<void> {
    const process = this.require(identifier)
    const askedBefore = intent === 'stop' && process.status !== 'running'
    if (!process.running || askedBefore)
      throw new PlatformError('not_found', `process '${identifier}' is not running`)
    const { SIGTERM, SIGKILL } = constants.signals
    if (intent === 'stop') await process.signal('stop', SIGTERM, 'group')
    else await process.signal('kill', SIGKILL, 'tree')
    await this.waits.forEnd(process, waitMs)
  }

  private onExit(exit: GuestProcess): void {
    this.table.ofRun(exit.id)?.onExit(exit)
  }

  private onMachineGone(): void {
    if (this.closing.signal.aborted) return
    for (const process of this.table.every()) process.onLost()
  }

  private async forgetOldest(): Promise<void> {
    if (this.closing.signal.aborted) return
    // The image's program stays: that it was started is known by it.
    const ended = this.table.every().filter((process) => !process.running && !process.record.argv)
    for (const process of ended.slice(0, Math.max(0, ended.length - endedProcessesMax))) {
      this.table.remove(process)
      process.release()
      for (const run of process.record.runs) await this.forgetRun(run.id)
      this.removeRecord(process.id)
    }
  }

  /** A record that cannot be removed now is one more of an ended process at the next start. */
  private removeRecord(id: number): void {
    if (this.closing.signal.aborted) return
    try {
      this.records.remove(id)
    } catch (error) {
      this.options.log.warn('a process record was not removed', { process: id, error: String(error) })
    }
  }

  private async forgetRun(id: number): Promise<void> {
    try {
      await this.options.guest.processes.forget(id)
    } catch (error) {
      this.options.log.debug('output of an ended process was not forgotten', { id, error: String(error) })
    }
  }
}

function shellWord(word: string): string {
  return /^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`
}
