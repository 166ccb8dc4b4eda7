import { constants } from 'node:os'
import { PlatformError } from '../../errors.ts'
import type { Clock } from '../../lib/clock.ts'
import { Pace } from '../../lib/pace.ts'
import { LineCutter } from '../../sandboxes/processes.ts'
import type { Guest } from '../../spec/guest.ts'
import type { RevisionProgram } from '../fleet/index.ts'
import { MessageCutter } from './messages.ts'

/** Why a server is not there any more. */
export interface StdioEnd {
  /** For its clients: says what happened, and nothing that the program wrote. */
  reason: string
  /** It was asked to end. */
  asked: boolean
}

export interface StdioServerOptions {
  guest: Guest
  /** Of the process, unique in its machine. */
  id: number
  program: RevisionProgram
  clock: Clock
  /** Each message, in order. It is given the next one once it is done with this one: whoever is slow slows the program down. */
  onMessage(text: string): Promise<void> | void
  /** Each line of what the program writes for people. */
  onLine(line: string, stream: 'stdout' | 'stderr'): void
}

/** One message, in either direction. */
export const messageBytesMax = 8 * 1024 * 1024
/** Messages that the program has not read yet. */
const unreadBytesMax = 2 * messageBytesMax
const unreadMessagesMax = 256
/** A program that reads nothing for so long is broken. */
const unreadMsMax = 60_000
/** Output on the host's disk that nobody took yet, and then some. */
const outputBytesMax = 16 * 1024 * 1024
/** What it writes in a flood is taken no faster, so that it waits: one program does not take the time of all others. */
const outputBytesPerSecond = 10 * messageBytesMax
/** One message of any size is no flood. */
const outputBurstBytes = 2 * messageBytesMax
/** What a message, or a line, is weighed as, and what one weighs more that is long: what is done with it takes its time. */
const thingsPerMessage = 100
const bytesPerThing = 64 * 1024
/** To end by itself once its stdin is closed, and once more after SIGTERM. */
const graceMs = 2_000

/**
 * A process that speaks the protocol by lines of JSON. It ends when its machine does, when it is told to, and when it
 * breaks the protocol's frame.
 */
export class StdioServer {
  /** Resolves once the process is gone, and everything it wrote was handed on. */
  readonly ended: Promise<StdioEnd>
  readonly #options: StdioServerOptions
  readonly #reading = new AbortController()
  readonly #gone = new AbortController()
  #writing: Promise<void> = Promise.resolve()
  #unreadBytes = 0
  #unreadMessages = 0
  #asked = false
  #broken: string | null = null
  #ending: Promise<void> | null = null

  private constructor(options: StdioServerOptions) {
    this.#options = options
    this.ended = this.#read()
  }

  /** @throws unprocessable when it cannot be started (public message says why) */
  static async start(options: StdioServerOptions): Promise<StdioServer> {
    const { argv, env, workingDir } = options.program
    await options.guest.processes.spawn({
      id: options.id,
      ...{ argv, env, workingDir, outputBytesMax },
      stdin: 'pipe',
    })
    return new StdioServer(options)
  }

  /**
   * Resolves when the program has it, behind what was written before. The text is one JSON value, on however many lines.
   * @throws gone when the program is, or takes nothing, too_many_requests when too much waits for it
   */
  async write(text: string): Promise<void> {
    // Between the tokens of a JSON text only: a string in it has no line break of its own.
    const bytes = new TextEncoder().encode(`${text.replace(/[\r\n]+/g, ' ')}\n`)
    if (this.#unreadMessages >= unreadMessagesMax || this.#unreadBytes + bytes.length > unreadBytesMax) {
      throw new PlatformError('too_many_requests', 'the server does not keep up with what it is sent', {
        retryAfterSeconds: 1,
      })
    }
    this.#unreadMessages++
    this.#unreadBytes += bytes.length
    const written = this.#writing.then(() => this.#send(bytes))
    this.#writing = written.catch(() => {})
    try {
      await written
    } finally {
      this.#unreadMessages--
      this.#unreadBytes -= bytes.length
    }
  }

  /** Closes its stdin, as the protocol has it, then tells it, then makes it end; at once with `now`. Idempotent. */
  end({ now = false } = {}): void {
    this.#asked = true
    if (now) this.#ending = this.#kill()
    else this.#ending ??= this.#end()
  }

  /** Lets go of it, as its machine ends or the platform does. */
  release(): void {
    this.#asked = true
    this.#reading.abort()
  }

  async #send(bytes: Uint8Array): Promise<void> {
    if (this.#gone.signal.aborted || this.#broken !== null) throw gone()
    const { clock, guest, id } = this.#options
    const done = new AbortController()
    const late = clock.sleep(unreadMsMax, AbortSignal.any([done.signal, this.#gone.signal])).then(
      () => 'late' as const,
      () => 'gone' as const,
    )
    const writing = guest.processes.writeStdin(id, bytes)
    writing.catch(() => {})
    try {
      const first = await Promise.race([writing, late])
      if (first === 'late') this.#break(`the server read nothing for ${unreadMsMax / 1000} seconds`)
      if (first !== undefined) throw gone()
    } catch (error) {
      if (PlatformError.is(error) && (error.code === 'conflict' || error.code === 'not_found')) throw gone()
      throw error
    } finally {
      done.abort()
    }
  }

  async #read(): Promise<StdioEnd> {
    const { guest, id, clock, onLine } = this.#options
    const messages = new MessageCutter(messageBytesMax)
    const lines = new LineCutter()
    const { signal } = this.#reading
    const pace = new Pace({ perSecond: outputBytesPerSecond, burst: outputBurstBytes, clock })
    try {
      for await (const batch of guest.processes.output(id, { follow: true, reuseMemory: true, signal })) {
        for (const { kind, data } of batch) {
          if (kind === 'stderr') await this.#log(lines.push('stderr', data), pace)
          if (kind !== 'stdout' || this.#broken !== null) continue
          const whole = messages.push(data)
          if (whole === null) this.#break(`the server wrote a message of more than ${messageBytesMax} bytes`)
          for (const text of whole ?? []) {
            await pace.pass(text.length, signal, weightOf(text))
            await this.#take(text)
          }
        }
      }
      await this.#log(lines.end('stderr'), pace)
      const exit = await guest.processes.wait(id, signal)
      this.#gone.abort()
      void guest.processes.forget(id).catch(() => {})
      const how = exit.signal === null ? `with exit code ${exit.exitCode}` : `by signal ${exit.signal}`
      if (this.#broken !== null) onLine(this.#broken, 'stderr')
      return { reason: this.#broken ?? `the server ended ${how}`, asked: this.#asked }
    } catch {
      // The machine is gone, or the platform is going.
      this.#gone.abort()
      return { reason: 'the machine that the server ran in was stopped', asked: this.#asked }
    }
  }

  /** What is no message was meant for people: servers are told to write that elsewhere, and many forget. */
  async #take(text: string): Promise<void> {
    if (!text.startsWith('{') && !text.startsWith('[')) return this.#options.onLine(text, 'stdout')
    await this.#options.onMessage(text)
  }

  /** Pieces of whole lines. */
  async #log(pieces: Buffer[], pace: Pace): Promise<void> {
    for (const piece of pieces) {
      for (const line of piece.toString().replace(/\n$/, '').split('\n')) {
        await pace.pass(line.length, this.#reading.signal, weightOf(line))
        this.#options.onLine(line.replace(/\r$/, ''), 'stderr')
      }
    }
  }

  #break(reason: string): void {
    this.#broken ??= reason
    this.#ending ??= this.#kill()
  }

  async #end(): Promise<void> {
    const { guest, id, clock } = this.#options
    const gone = this.#gone.signal
    try {
      await guest.processes.closeStdin(id, gone).catch(() => {})
      await clock.sleep(graceMs, gone)
      await guest.processes.signal(id, constants.signals.SIGTERM, 'group')
      await clock.sleep(graceMs, gone)
      await this.#kill()
    } catch {
      // It is gone.
    }
  }

  async #kill(): Promise<void> {
    const { guest, id } = this.#options
    await guest.processes.signal(id, constants.signals.SIGKILL, 'tree').catch(() => {})
  }
}

function weightOf(text: string): number {
  return thingsPerMessage + Math.floor(text.length / bytesPerThing)
}

function gone(): PlatformError {
  return new PlatformError('gone', 'the server of this session has ended')
}
