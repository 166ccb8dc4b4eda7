/** Logs of workloads and of builds: written as they come, kept within bounds, queried and followed. */
import { rm } from 'node:fs/promises'
import { join } from 'node:path'
import { PlatformError } from '../errors.ts'
import { Background } from '../lib/background.ts'
import type { Clock } from '../lib/clock.ts'
import { KeyedLock } from '../lib/keyed-lock.ts'
import type { Logger } from '../lib/log.ts'
import { Semaphore } from '../lib/semaphore.ts'
import { isWanted, type LogFilter, wantedText } from './filter.ts'
import { LogFollower } from './follower.ts'
import { decodeLine, encodeLine, type LogLine, type LogStream, logLine } from './line.ts'
import { sweep } from './retention.ts'
import { Segments } from './segments.ts'

export { isWanted, type LogFilter } from './filter.ts'
export { type LogLine, type LogStream, logLine, logStreams, timestampOf } from './line.ts'
export { type SeverityName, severityNumbers } from './severity.ts'

/** Of one workload; the oldest lines go first. */
const workloadBytesMax = 16 * 1024 * 1024
/** Of the whole platform. */
const logBytesMax = 1024 * 1024 * 1024
const logAgeMsMax = 7 * 24 * 60 * 60 * 1000
const sweepEveryMs = 10 * 60 * 1000
const writeEveryMs = 200
/** What a workload may say in the time between two writes; the rest is left out, and a line says so. */
const unwrittenBytesMax = 512 * 1024
const queriesAtOnceMax = 4
const queriesWaitingMax = 200
const followersMax = 200
const followersPerWorkspaceMax = 50
/** Workloads that nothing was heard of lately are forgotten above this; their files stay. */
const workloadsKnownMax = 1000
const warnAgainMs = 60_000
const idPattern = /^[\w.:-]{0,128}$/
const namePattern = /^[a-z0-9](?:[a-z0-9._-]{0,126}[a-z0-9])?$/

export const logKinds = ['agents', 'functions', 'sandboxes', 'applications', 'jobs', 'models'] as const
export type LogKind = (typeof logKinds)[number]

/** Whose lines. */
export interface LogWorkload {
  workspace: string
  kind: LogKind
  name: string
}

export interface LogSource extends LogWorkload {
  revision?: string
  instance?: string
  /** Of a job: its execution, and which task of it. */
  execution?: string
  task?: string
  stream: LogStream
}

export interface LogQuery extends LogFilter {
  /** Default 1000. */
  limit?: number
  /** How many of the newest to leave out. */
  offset?: number
}

export interface LogsOptions {
  /** `<dataDir>/telemetry` */
  dir: string
  clock: Clock
  log: Logger
  workloadBytesMax?: number
  logBytesMax?: number
}

/** What is known of a workload whose lines come in, or are followed. */
interface Known {
  readonly segments: Segments
  readonly followers: Set<LogFollower>
  lastUs: number
  unwritten: string[]
  unwrittenChars: number
  unwrittenFirstUs: number
  leftOut: number
}

export class Logs {
  readonly #options: LogsOptions
  readonly #dir: string
  readonly #known = new Map<string, Known>()
  /** Files of one workload are changed one after the other. */
  readonly #lock = new KeyedLock()
  readonly #queries = new Semaphore({
    concurrencyMax: queriesAtOnceMax,
    waitingMax: queriesWaitingMax,
    what: 'queries of logs',
  })
  readonly #background: Background
  #writing = false
  #watched = false
  #bytes = 0
  #followers = 0
  #sweeping: Promise<void> | null = null
  #warnedAt = Number.NEGATIVE_INFINITY

  constructor(options: LogsOptions) {
    this.#options = options
    this.#dir = join(options.dir, 'logs')
    this.#background = new Background((error) => {
      if (!this.#background.closing.aborted) this.#warn('logs could not be kept', error)
    })
  }

  /** Nothing needs to wait for it: from now on what is too old, or too much, goes. */
  start(): void {
    this.#background.run(this.#sweepWhileThereIs())
  }

  /** Writes what came, and ends who follows. */
  async close(): Promise<void> {
    this.#background.close()
    for (const known of this.#known.values()) for (const follower of known.followers) follower.end()
    await this.#background.settled()
    await this.#writeAll()
  }

  /**
   * Takes a line, without its end. Never throws and never waits: what comes faster than it can be written is left out.
   * `at`: milliseconds since the epoch, default now.
   */
  append(source: LogSource, line: string, at = this.#options.clock.now()): void {
    if (!isNameable(source)) return
    const known = this.#knownOf(keyOf(source))
    if (known.unwrittenChars >= unwrittenBytesMax) {
      known.leftOut++
      return
    }
    this.#noteLeftOut(known, at)
    this.#add(known, source, line, at)
    this.#writeSoon()
  }

  /**
   * Lines of a workload, newest first, and how many there are of them in all. A workload without any has none, whether it
   * exists or not. @throws too_many_requests
   */
  async query(
    workload: LogWorkload,
    { limit = 1000, offset = 0, ...filter }: LogQuery = {},
    signal?: AbortSignal,
  ): Promise<{ lines: LogLine[]; total: number }> {
    const lines: LogLine[] = []
    let total = 0
    if (!isNameable(workload)) return { lines, total }
    await this.#queries.run(async () => {
      for await (const line of this.#newestFirst(workload, filter)) {
        signal?.throwIfAborted()
        if (total >= offset && lines.length < limit) lines.push(line)
        total++
      }
    }, signal)
    return { lines, total }
  }

  /**
   * Lines as they come, after the last `last` (default: all) of those there are, oldest first. Ends with the signal, when
   * the workload's logs are removed, and with the platform. Who reads too slowly is told how much was left out.
   * @throws too_many_requests
   */
  async *follow(
    workload: LogWorkload,
    { last = Number.POSITIVE_INFINITY, ...filter }: LogFilter & { last?: number },
    signal: AbortSignal,
  ): AsyncGenerator<LogLine> {
    if (!isNameable(workload)) throw badName(workload)
    const known = this.#knownOf(keyOf(workload))
    using follower = this.#enter(workload, known, filter)
    // What comes from now on is later, and comes to the follower.
    const endsAt = Math.max(known.lastUs, this.#options.clock.now() * 1000)
    known.lastUs = endsAt
    // Who asked may be gone without asking for the next line.
    const end = () => follower[Symbol.dispose]()
    signal.addEventListener('abort', end, { once: true })
    try {
      const earlier = await this.#history(
        workload,
        { ...filter, toUs: Math.min(endsAt, filter.toUs ?? endsAt) },
        last,
      )
      while (!signal.aborted) {
        const line = earlier.pop()
        if (line === undefined) break
        yield line
      }
      if (!signal.aborted) yield* follower.lines()
    } finally {
      signal.removeEventListener('abort', end)
    }
  }

  /** Removes what is kept of a workload, and ends who follows it. Idempotent. */
  async remove(workspace: string, kind: LogKind, name: string): Promise<void> {
    const workload = { workspace, kind, name }
    if (!isNameable(workload)) return
    const key = keyOf(workload)
    await this.#lock.run(key, async () => {
      const known = this.#known.get(key)
      if (known) {
        this.#known.delete(key)
        for (const follower of known.followers) follower.end()
      }
      await rm(this.#dirOf(key), { recursive: true, force: true })
    })
  }

  /** Of all that belonged to a workspace. */
  async removeWorkspace(workspace: string): Promise<void> {
    if (!namePattern.test(workspace)) return
    for (const key of [...this.#known.keys()]) {
      const [owner, kind, name] = key.split('/') as [string, LogKind, string]
      if (owner === workspace) await this.remove(owner, kind, name)
    }
    await rm(join(this.#dir, workspace), { recursive: true, force: true })
  }

  async #history(workload: LogWorkload, filter: LogFilter, last: number): Promise<LogLine[]> {
    const lines: LogLine[] = []
    if (last <= 0) return lines
    await this.#queries.run(async () => {
      for await (const line of this.#newestFirst(workload, filter)) {
        lines.push(line)
        if (lines.length >= last) break
      }
    })
    return lines
  }

  async *#newestFirst(workload: LogWorkload, filter: LogFilter): AsyncGenerator<LogLine> {
    const key = keyOf(workload)
    await this.#write(key)
    const segments = new Segments(this.#dirOf(key), this.#workloadBytesMax)
    const { fromUs = 0, toUs = Number.MAX_SAFE_INTEGER } = filter
    for await (const text of segments.newestFirst(fromUs, toUs)) {
      for (let end = text.length; end > 0; ) {
        const start = text.lastIndexOf('\n', end - 1) + 1
        const line = text.slice(start, end)
        end = start - 1
        if (!wantedText(line, filter)) continue
        const decoded = decodeLine(line)
        if (decoded !== null && isWanted(decoded, filter)) yield decoded
      }
    }
  }

  #enter(workload: LogWorkload, known: Known, filter: LogFilter): LogFollower & Disposable {
    let inWorkspace = 0
    for (const [key, { followers }] of this.#known) {
      if (key.startsWith(`${workload.workspace}/`)) inWorkspace += followers.size
    }
    this.#background.refuseWhenClosing()
    if (this.#followers >= followersMax || inWorkspace >= followersPerWorkspaceMax) {
      throw new PlatformError('too_many_requests', 'too many follow logs already: end one first', {
        retryAfterSeconds: 5,
      })
    }
    const follower = new LogFollower(filter, () => {
      known.followers.delete(follower)
      this.#followers--
    })
    known.followers.add(follower)
    this.#followers++
    return follower
  }

  #add(known: Known, source: LogSource, line: string, at: number): void {
    const atUs = Math.max(known.lastUs + 1, Math.round(at * 1000))
    known.lastUs = atUs
    const entry = logLine({
      atUs,
      stream: source.stream,
      message: line,
      revision: idOf(source.revision),
      instance: idOf(source.instance),
      execution: idOf(source.execution),
      task: idOf(source.task),
    })
    for (const follower of known.followers) follower.offer(entry)
    const encoded = encodeLine(entry)
    if (known.unwritten.length === 0) known.unwrittenFirstUs = atUs
    known.unwritten.push(encoded)
    known.unwrittenChars += encoded.length
  }

  #noteLeftOut(known: Known, at: number): void {
    const { leftOut } = known
    if (leftOut === 0) return
    known.leftOut = 0
    const lines = leftOut === 1 ? 'A line was' : `${leftOut} lines were`
    const source = { workspace: '', kind: 'agents', name: '', stream: 'platform' } as const
    this.#add(known, source, `WARNING: ${lines} left out: they came faster than they could be kept`, at)
  }

  #knownOf(key: string): Known {
    const found = this.#known.get(key)
    if (found) return found
    if (this.#known.size >= workloadsKnownMax) this.#forgetIdle()
    const known: Known = {
      segments: new Segments(this.#dirOf(key), this.#workloadBytesMax),
      followers: new Set(),
      lastUs: 0,
      unwritten: [],
      unwrittenChars: 0,
      unwrittenFirstUs: 0,
      leftOut: 0,
    }
    this.#known.set(key, known)
    return known
  }

  #forgetIdle(): void {
    for (const [key, { followers, unwritten, leftOut }] of this.#known) {
      if (followers.size === 0 && unwritten.length === 0 && leftOut === 0 && !this.#lock.isHeld(key))
        this.#known.delete(key)
    }
  }

  #writeSoon(): void {
    if (this.#writing || this.#background.closing.aborted) return
    this.#writing = true
    this.#background.run(
      this.#writeWhileThereIs().finally(() => {
        this.#writing = false
      }),
    )
  }

  async #writeWhileThereIs(): Promise<void> {
    const { closing } = this.#background
    do {
      await this.#options.clock.sleep(writeEveryMs, closing).catch(() => {})
      await this.#writeAll()
    } while (!closing.aborted && this.#known.values().some(({ unwritten }) => unwritten.length > 0))
    if (!closing.aborted) this.#background.run(this.#sweepWhileThereIs())
  }

  async #writeAll(): Promise<void> {
    for (const [key, { unwritten, leftOut }] of this.#known) {
      if (unwritten.length > 0 || leftOut > 0) await this.#write(key)
    }
  }

  /** All that came before. */
  async #write(key: string): Promise<void> {
    if (!this.#known.has(key)) return
    await this.#lock.run(key, async () => {
      const known = this.#known.get(key)
      if (!known) return
      this.#noteLeftOut(known, this.#options.clock.now())
      if (known.unwritten.length === 0) return
      const { unwritten, unwrittenFirstUs } = known
      known.unwritten = []
      known.unwrittenChars = 0
      try {
        this.#bytes += await known.segments.append(unwritten.join(''), unwrittenFirstUs)
      } catch (error) {
        known.leftOut += unwritten.length
        this.#warn('lines of a log could not be written', error)
      }
    })
    if (this.#bytes > (this.#options.logBytesMax ?? logBytesMax)) this.#background.run(this.#sweep())
  }

  /** A platform without logs sleeps without timers. */
  async #sweepWhileThereIs(): Promise<void> {
    if (this.#watched) return
    this.#watched = true
    const { clock } = this.#options
    const { closing } = this.#background
    do {
      await this.#sweep()
      if (this.#bytes > 0) await clock.sleep(sweepEveryMs, closing).catch(() => {})
    } while (this.#bytes > 0 && !closing.aborted)
    this.#watched = false
  }

  #sweep(): Promise<void> {
    this.#sweeping ??= this.#sweepNow().finally(() => {
      this.#sweeping = null
    })
    return this.#sweeping
  }

  async #sweepNow(): Promise<void> {
    this.#bytes = await sweep(this.#dir, {
      olderThanUs: (this.#options.clock.now() - logAgeMsMax) * 1000,
      bytesMax: this.#options.logBytesMax ?? logBytesMax,
    })
    for (const { segments } of this.#known.values()) segments.forget()
  }

  get #workloadBytesMax(): number {
    return this.#options.workloadBytesMax ?? workloadBytesMax
  }

  #dirOf(key: string): string {
    return join(this.#dir, key)
  }

  #warn(message: string, error: unknown): void {
    const { clock, log } = this.#options
    if (clock.monotonic() - this.#warnedAt < warnAgainMs) return
    this.#warnedAt = clock.monotonic()
    log.warn(message, { error })
  }
}

/** One directory for each: names are such that they cannot lead elsewhere. */
function keyOf({ workspace, kind, name }: LogWorkload): string {
  return `${workspace}/${kind}/${name}`
}

function isNameable({ workspace, kind, name }: LogWorkload): boolean {
  return namePattern.test(workspace) && namePattern.test(name) && logKinds.includes(kind)
}

function badName({ name }: LogWorkload): PlatformError {
  return new PlatformError('bad_request', `${JSON.stringify(name.slice(0, 80))} is no name of a workload`)
}

function idOf(id: string | undefined): string {
  return id !== undefined && idPattern.test(id) ? id : ''
}
