import { constants } from 'node:os'
import { PlatformError } from '../../errors.ts'
import type { Clock } from '../../lib/clock.ts'
import type { Logger } from '../../lib/log.ts'
import type { Guest } from '../../spec/guest.ts'
import { WholeCharacters } from '../processes/output.ts'

export interface TerminalSize {
  cols: number
  rows: number
}

/** Who looks at a terminal. */
export interface TerminalClient {
  /** False: taken, but it is slow; `resume` says when it can take more. */
  output(text: string): boolean
  /** The shell ended, or the client does not keep up. */
  dismiss(code: number, reason: string): void
}

export interface TerminalSessionOptions {
  sessionId: string
  processId: number
  guest: Guest
  clock: Clock
  log: Logger
  idleMs: number
  /** It takes no more clients. */
  left: () => void
  /** Its shell is gone. */
  ended: () => void
}

/** Of the past, for whoever joins. */
const replayBytesMax = 100 * 1024
/** Typed, and not yet taken by the shell. */
const typedBytesMax = 1024 * 1024
/** A client that takes nothing for so long does not hold up the others. */
const clientStallMsMax = 10_000
const resetStyle = '\x1b[0m'
const closeNormal = 1000
const closeRestarting = 1012
const closeTryAgain = 1013
const shellExited = 'Shell exited'
const newline = 10

interface Viewer {
  client: TerminalClient
  /** Resolves when it can take more. */
  ready: PromiseWithResolvers<void> | null
}

/** One shell on a pseudo terminal, and who looks at it. */
export class TerminalSession {
  readonly sessionId: string
  readonly processId: number
  private readonly viewers = new Map<TerminalClient, Viewer>()
  private readonly stopped = new AbortController()
  private replay: Buffer[] = []
  private replayBytes = 0
  private replayCut = false
  private typing: Promise<void> = Promise.resolve()
  private typedBytes = 0
  private idle: AbortController | null = null

  constructor(private readonly options: TerminalSessionOptions) {
    this.sessionId = options.sessionId
    this.processId = options.processId
    void this.pump()
    this.waitForClients()
  }

  get clients(): number {
    return this.viewers.size
  }

  join(client: TerminalClient): void {
    this.idle?.abort()
    this.idle = null
    const viewer: Viewer = { client, ready: null }
    this.viewers.set(client, viewer)
    const past = this.past()
    if (past !== '') this.show(viewer, resetStyle + past)
    if (this.stopped.signal.aborted) client.dismiss(closeNormal, shellExited)
  }

  leave(client: TerminalClient): void {
    this.viewers.get(client)?.ready?.resolve()
    this.viewers.delete(client)
    if (this.viewers.size === 0) this.waitForClients()
  }

  /** The client can take more. */
  resume(client: TerminalClient): void {
    const viewer = this.viewers.get(client)
    viewer?.ready?.resolve()
    if (viewer) viewer.ready = null
  }

  /** In the order of calls. @throws unavailable when the shell does not read what is typed */
  async type(data: string): Promise<void> {
    const bytes = Buffer.from(data)
    if (this.typedBytes + bytes.length > typedBytesMax) {
      throw new PlatformError('unavailable', 'the terminal does not take what is typed: input was dropped')
    }
    this.typedBytes += bytes.length
    const typed = this.typing.then(() => this.options.guest.processes.writeStdin(this.processId, bytes))
    this.typing = typed.catch(() => {}).finally(() => (this.typedBytes -= bytes.length))
    await typed
  }

  async resize({ cols, rows }: TerminalSize): Promise<void> {
    await this.options.guest.processes.resize(this.processId, cols, rows)
  }

  /** Lets go of the shell, which runs on; whoever looks at it is sent away, to come back. */
  release(): void {
    this.stopped.abort()
    this.idle?.abort()
    for (const { client } of [...this.viewers.values()])
      client.dismiss(closeRestarting, 'the platform is restarting')
  }

  private async pump(): Promise<void> {
    const { guest, log } = this.options
    const { signal } = this.stopped
    const characters = new WholeCharacters()
    try {
      for await (const batch of guest.processes.output(this.processId, {
        follow: true,
        reuseMemory: true,
        signal,
      })) {
        const parts: Buffer[] = []
        for (const record of batch) {
          if (record.kind === 'truncated') this.replayCut = true
          else parts.push(characters.push(record.data))
        }
        await this.broadcast(Buffer.concat(parts))
      }
      await this.broadcast(characters.end())
    } catch (error) {
      if (!signal.aborted) log.debug('a terminal ended', { session: this.sessionId, error: String(error) })
    }
    if (signal.aborted) return
    this.stopped.abort()
    this.idle?.abort()
    this.options.left()
    for (const { client } of [...this.viewers.values()]) client.dismiss(closeNormal, shellExited)
    this.options.ended()
  }

  private async broadcast(bytes: Buffer): Promise<void> {
    if (bytes.length === 0) return
    this.remember(bytes)
    const text = bytes.toString()
    for (const viewer of this.viewers.values()) this.show(viewer, text)
    const slow = [...this.viewers.values()].flatMap(({ client, ready }) => (ready ? [{ client, ready }] : []))
    if (slow.length > 0)
      await Promise.all(slow.map(({ client, ready }) => this.caughtUp(client, ready.promise)))
  }

  private show(viewer: Viewer, text: string): void {
    if (!viewer.client.output(text)) viewer.ready ??= Promise.withResolvers<void>()
  }

  private async caughtUp(client: TerminalClient, ready: Promise<void>): Promise<void> {
    const timer = new AbortController()
    const late = this.options.clock.sleep(clientStallMsMax, timer.signal).then(
      () => true,
      () => false,
    )
    const stalled = await Promise.race([ready.then(() => false), late])
    timer.abort()
    if (stalled && this.viewers.has(client))
      client.dismiss(closeTryAgain, 'the terminal is too slow for its output')
  }

  private remember(bytes: Buffer): void {
    this.replay.push(bytes)
    this.replayBytes += bytes.length
    while (this.replay[0] && this.replayBytes - this.replay[0].length >= replayBytesMax) {
      this.replayBytes -= this.replay.shift()!.length
      this.replayCut = true
    }
  }

  private past(): string {
    let bytes = Buffer.concat(this.replay)
    if (bytes.length > replayBytesMax) bytes = bytes.subarray(-replayBytesMax)
    // What was cut off may have been in the middle of a character or of a terminal's command.
    else if (!this.replayCut) return bytes.toString()
    return bytes.subarray(bytes.indexOf(newline) + 1).toString()
  }

  /** Ends the shell unless somebody comes. */
  private waitForClients(): void {
    if (this.stopped.signal.aborted) return
    this.idle?.abort()
    const idle = new AbortController()
    this.idle = idle
    const { clock, guest, idleMs, log } = this.options
    clock.sleep(idleMs, idle.signal).then(
      () => {
        // From now on a new session: a frozen sandbox ends this one when it is next awake.
        this.options.left()
        guest.processes.signal(this.processId, constants.signals.SIGKILL, 'tree').catch((error) => {
          log.debug('an idle terminal was not ended', { session: this.sessionId, error: String(error) })
        })
      },
      () => {},
    )
  }
}
