import { existsSync } from 'node:fs'
import { posix } from 'node:path'
import { PlatformError } from '../errors.ts'
import type { Clock } from '../lib/clock.ts'
import type { Logger } from '../lib/log.ts'
import type { Guest } from '../spec/guest.ts'
import { type KnownTerminal, TerminalRecords } from './terminals/records.ts'
import { type TerminalClient, TerminalSession, type TerminalSize } from './terminals/session.ts'

export type { TerminalClient, TerminalSession } from './terminals/session.ts'

export interface SandboxTerminalsOptions {
  guest: Guest
  /** Which session is which process is kept here, so that a restarted hutch finds the shells again. */
  recordsFile: string
  clock: Clock
  log: Logger
  defaults: { env: Record<string, string>; workingDir: string }
  /** Ids of processes are one row for all that this sandbox starts. */
  takeId: () => number
}

export interface TerminalRequest extends TerminalSize {
  /** Who names the same session shares one shell. */
  sessionId: string
  /** Tried before $SHELL of the sandbox and what else there may be. */
  shell?: string
  /** Relative to the sandbox's own; default: that. */
  workingDir?: string
}

const terminalSessionsMax = 64
const terminalClientsMax = 32
/** A shell that nobody looks at is ended after this. */
export const terminalIdleMs = 10 * 60_000
const outputBytesMax = 1024 * 1024
const shells = ['zsh', 'bash', 'sh']

/**
 * Interactive shells of one running sandbox. A session outlives its clients, and hutch: whoever comes back within ten
 * minutes finds it as it was.
 */
export class SandboxTerminals {
  private readonly records: TerminalRecords
  private readonly sessions = new Map<string, TerminalSession>()
  /** Those that nobody can join any more, too, until their shells are gone. */
  private readonly alive = new Set<TerminalSession>()
  /** Sessions that are being started: two clients at once share one. */
  private readonly starting = new Map<string, Promise<TerminalSession>>()
  private closed = false

  constructor(private readonly options: SandboxTerminalsOptions) {
    this.records = new TerminalRecords(options.recordsFile, options.log)
  }

  /** Takes up the shells that the guest still knows. */
  async open(): Promise<void> {
    const known = this.records.load()
    if (known.length === 0) return
    const running = new Map(
      (await this.options.guest.processes.list()).map((process) => [process.id, process]),
    )
    for (const terminal of known) {
      if (running.get(terminal.processId)?.running) this.add(terminal)
      else await this.forget(terminal.processId)
    }
    this.save()
  }

  /** Whether there ever was one. */
  get recorded(): boolean {
    return existsSync(this.options.recordsFile)
  }

  /** How many people look at a terminal. */
  get clients(): number {
    let count = 0
    for (const session of this.alive) count += session.clients
    return count
  }

  /**
   * Joins a session, which is started if there is none of that id: first its last output is sent, then what comes.
   * @throws bad_request, unprocessable (no shell can be started), conflict (too many)
   */
  async join(request: TerminalRequest, client: TerminalClient): Promise<TerminalSession> {
    const session = await this.sessionFor(request)
    if (session.clients >= terminalClientsMax) {
      throw new PlatformError(
        'conflict',
        `sessionId: ${session.clients} clients share the terminal "${request.sessionId}", the most allowed`,
      )
    }
    session.join(client)
    return session
  }

  /** Lets go of the guest; the shells run on. */
  close(): void {
    this.closed = true
    for (const session of this.alive) session.release()
  }

  private async sessionFor(request: TerminalRequest): Promise<TerminalSession> {
    const found = this.sessions.get(request.sessionId)
    if (found) {
      await found.resize(request).catch(() => {})
      return found
    }
    const starting = this.starting.get(request.sessionId) ?? this.start(request)
    this.starting.set(request.sessionId, starting)
    try {
      return await starting
    } finally {
      this.starting.delete(request.sessionId)
    }
  }

  private async start(request: TerminalRequest): Promise<TerminalSession> {
    if (this.sessions.size + this.starting.size >= terminalSessionsMax) {
      throw new PlatformError(
        'conflict',
        `this sandbox has ${terminalSessionsMax} terminals, the most allowed`,
      )
    }
    const { defaults } = this.options
    const candidates = [request.shell, defaults.env.SHELL, ...shells].filter((shell) => shell)
    let failure: unknown
    for (const shell of candidates.slice(0, request.shell ? 1 : undefined)) {
      const processId = this.options.takeId()
      const known: KnownTerminal = { sessionId: request.sessionId, processId }
      // Before it starts: a shell that nobody knows of would never be ended.
      this.save(known)
      try {
        await this.spawn(processId, shell ?? 'sh', request)
        const session = this.add(known)
        this.save()
        return session
      } catch (error) {
        failure = error
        this.save()
        if (!PlatformError.is(error) || error.code !== 'unprocessable') break
      }
    }
    throw failure
  }

  private async spawn(id: number, shell: string, request: TerminalRequest): Promise<void> {
    const { guest, defaults } = this.options
    await guest.processes.spawn({
      id,
      argv: [shell],
      env: {
        LANG: 'C.UTF-8',
        ...defaults.env,
        SHELL: shell,
        TERM: 'xterm-256color',
        COLORTERM: 'truecolor',
      },
      workingDir: posix.resolve(defaults.workingDir, request.workingDir ?? ''),
      stdin: 'pipe',
      pty: { cols: request.cols, rows: request.rows },
      outputBytesMax,
    })
  }

  private add(known: KnownTerminal): TerminalSession {
    const { guest, clock, log } = this.options
    const session = new TerminalSession({
      ...known,
      guest,
      clock,
      log,
      idleMs: terminalIdleMs,
      left: () => {
        if (this.sessions.get(known.sessionId) === session) this.sessions.delete(known.sessionId)
      },
      ended: () => {
        this.alive.delete(session)
        this.save()
        void this.forget(known.processId)
      },
    })
    this.sessions.set(known.sessionId, session)
    this.alive.add(session)
    return session
  }

  private save(beginning?: KnownTerminal): void {
    if (this.closed) return
    const known = [...this.alive].map(({ sessionId, processId }) => ({ sessionId, processId }))
    this.records.save(beginning ? [...known, beginning] : known)
  }

  private async forget(processId: number): Promise<void> {
    try {
      await this.options.guest.processes.forget(processId)
    } catch (error) {
      this.options.log.debug('output of a terminal was not forgotten', { processId, error: String(error) })
    }
  }
}
