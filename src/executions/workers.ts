import type { Clock } from '../lib/clock.ts'
import type { Logger } from '../lib/log.ts'
import { Turns } from '../lib/turns.ts'
import { type ClaimedWork, largeInputBytes, type Queue } from '../spec/queue.ts'

const claimedAtOnceMax = 64
/**
 * Inputs of what runs, which are in memory: beyond that nothing more is claimed, however many places are free. Large ones wait
 * for each other alone, and those of one target leave room for the next, however long its program takes.
 */
const smallBytesMax = 48 * 1024 * 1024
const largeBytesMax = 48 * 1024 * 1024
const largeBytesOfTargetMax = 16 * 1024 * 1024
const againAfterFailureMs = 1000
/** In one round of the event loop, so that a burst being worked off leaves room for requests. */
const begunAtOnceMax = 8

export interface WorkersOptions {
  source: string
  runningMax: number
  queue: Queue
  clock: Clock
  log: Logger
  /** Resolves when the attempt is over; what it hands to `settle` is written together with the claim of the next one. */
  attempt(work: ClaimedWork): Promise<() => Promise<void>>
}

/** The workers of one source: as many attempts at once as it may have, claimed when there is something to claim. */
export class Workers {
  readonly #options: WorkersOptions
  readonly #turns = new Turns(begunAtOnceMax)
  readonly #under = new Set<Promise<void>>()
  readonly #closing = new AbortController()
  #running = 0
  /** Places that claims on their way may fill. */
  #claiming = 0
  #wakes = 0
  /** The last wake that a claim was begun after. */
  #answered = 0
  #smallBytes = 0
  readonly #large = new Map<string, { workspace: string; target: string; largeBytes: number }>()
  /** A claim failed: none is made for a while. */
  #resting = false

  constructor(options: WorkersOptions) {
    this.#options = options
  }

  get running(): number {
    return this.#running
  }

  /** There may be something to claim: `count` of it, or whatever there is. */
  wake(count = Number.POSITIVE_INFINITY): void {
    this.#wakes++
    this.#claimSome(count)
  }

  /** Claims nothing more; resolves when what runs is over, or after `graceMs`. */
  async close(graceMs: number): Promise<void> {
    this.#closing.abort()
    const grace = new AbortController()
    const over = this.#options.clock.sleep(graceMs, grace.signal).catch(() => {})
    const settled = (async () => {
      while (this.#under.size > 0) await Promise.allSettled(this.#under)
    })()
    await Promise.race([settled, over])
    grace.abort()
  }

  #claimSome(count: number): void {
    const { queue, source, runningMax } = this.#options
    const free = runningMax - this.#running - this.#claiming
    const limit = Math.min(count, free, claimedAtOnceMax)
    if (limit <= 0 || this.#smallBytes >= smallBytesMax) return
    if (this.#resting || this.#closing.signal.aborted || queue.waiting(source) <= 0) return
    this.#answered = this.#wakes
    this.#track(this.#claim(limit))
  }

  async #claim(limit: number): Promise<void> {
    const { queue, source } = this.#options
    const { signal } = this.#closing
    this.#claiming += limit
    let claimed: ClaimedWork[] | null = null
    let failure: unknown
    try {
      claimed = await queue.claim(source, limit, {
        smallBytes: smallBytesMax - this.#smallBytes,
        ...{ largeBytesMax, largeBytesOfTargetMax },
        held: [...this.#large.values()],
      })
    } catch (error) {
      failure = error
    } finally {
      this.#claiming -= limit
    }
    // As if they had been begun: the next platform begins them again.
    if (signal.aborted) return
    if (claimed === null) return await this.#rest(failure)
    for (const work of claimed) this.#track(this.#run(work))
    // There may be more, or something came for which there was no free place while this claim was on its way.
    if (claimed.length === limit || this.#answered !== this.#wakes) this.#claimSome(Number.POSITIVE_INFINITY)
  }

  /** After a claim that failed; of several that were on their way together the first says so. */
  async #rest(error: unknown): Promise<void> {
    const { source, clock, log } = this.#options
    const { signal } = this.#closing
    if (this.#resting) return
    this.#resting = true
    log.error('executions: nothing could be claimed, it is tried again', { source, error })
    await clock.sleep(againAfterFailureMs, signal).catch(() => {})
    this.#resting = false
    this.wake()
  }

  async #run(work: ClaimedWork): Promise<void> {
    const { attempt, log, source } = this.#options
    const bytes = work.input?.byteLength ?? 0
    this.#running++
    this.#hold(work, bytes)
    let settle: (() => Promise<void>) | null = null
    let settled: Promise<void> | null = null
    try {
      const turn = this.#turns.take()
      if (turn) await turn
      if (turn && !this.#isStillClaimed(work)) return
      settle = await attempt(work)
      settled = settle()
    } catch (error) {
      log.error('executions: an attempt broke', { source, id: work.id, error })
    } finally {
      this.#running--
      this.#hold(work, -bytes)
      this.wake(1)
    }
    try {
      await settled
    } catch (error) {
      if (settle) await this.#settleAgain(work.id, settle, error)
    }
  }

  #hold({ workspace, target }: ClaimedWork, bytes: number): void {
    if (Math.abs(bytes) < largeInputBytes) {
      this.#smallBytes += bytes
      return
    }
    const name = `${workspace}/${target}`
    const held = this.#large.get(name) ?? { workspace, target, largeBytes: 0 }
    held.largeBytes += bytes
    if (held.largeBytes > 0) this.#large.set(name, held)
    else this.#large.delete(name)
  }

  /** Nobody ended it, and the platform goes on, while it waited to be begun. */
  #isStillClaimed({ id, token }: ClaimedWork): boolean {
    if (this.#closing.signal.aborted) return false
    const now = this.#options.queue.get(id)
    return now?.state === 'running' && now.token === token
  }

  /** A disk without room, or too much to write: how it ended is kept until there is room again. Meanwhile it keeps its place. */
  async #settleAgain(id: string, settle: () => Promise<void>, first: unknown): Promise<void> {
    const { clock, log, source } = this.#options
    const { signal } = this.#closing
    this.#running++
    log.error('executions: how an attempt ended could not be written, it is tried again', {
      ...{ source, id, error: first },
    })
    while (!signal.aborted) {
      await clock.sleep(againAfterFailureMs, signal).catch(() => {})
      try {
        await settle()
        break
      } catch (error) {
        log.debug('executions: it still could not be written', { source, id, error })
      }
    }
    this.#running--
    this.wake(1)
  }

  #track(work: Promise<void>): void {
    this.#under.add(work)
    void work.finally(() => this.#under.delete(work))
  }
}
