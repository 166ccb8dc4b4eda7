import type { Clock } from '../lib/clock.ts'
import type { Logger } from '../lib/log.ts'
import type { Instance } from '../spec/runtime.ts'
import type { Standby } from './standby.ts'

export interface ActivityOptions {
  instanceId: string
  standby: Standby
  clock: Clock
  log: Logger
  lastUsedAt: number
  /** It rests from now on: its last use is final until `onWake`. */
  onRest: (lastUsedAt: number) => void
  onWake: () => void
}

/**
 * The use of one instance: who holds it, when it was held last, and whether its machine rests meanwhile. A machine is
 * frozen only while nobody holds it. Whoever comes while it falls asleep cuts that short; whoever comes later wakes it.
 */
export class Activity {
  readonly #options: ActivityOptions
  #holders = 0
  /** Those of the holders that use it. */
  #users = 0
  #lastUsedAt: number
  #machine: Instance | null = null
  #state: 'awake' | 'falling' | 'asleep' = 'awake'
  /** Of the freeze or the reclaim under way. */
  #cut = new AbortController()
  #falling: Promise<void> = Promise.resolve()
  #waking: Promise<void> | null = null
  /** Among those that were woken, until its first holder is done. */
  #wakePlace: Disposable | null = null

  constructor(options: ActivityOptions) {
    this.#options = options
    this.#lastUsedAt = options.lastUsedAt
  }

  get holders(): number {
    return this.#holders
  }

  get lastUsedAt(): number {
    return this.#users > 0 ? this.#options.clock.now() : this.#lastUsedAt
  }

  /** It has a machine that runs, as far as its rest goes. */
  get awake(): boolean {
    return this.#state === 'awake' && this.#machine !== null
  }

  /** Its processes stand still. */
  get asleep(): boolean {
    return this.#state === 'asleep'
  }

  /** From now on it runs on this machine, which may be frozen since an earlier life of the platform; null: on none. */
  runsOn(machine: Instance | null): void {
    this.#cut.abort()
    this.#options.standby.forget(this)
    this.#machine = machine
    this.#state = machine?.frozen ? 'asleep' : 'awake'
    if (this.#state === 'asleep') this.#options.standby.frozen(this)
    else this.#idleIfSo()
  }

  /** Keeps it from resting until disposed, and counts as use unless `quiet`. Does not wake by itself. */
  hold(options: { quiet?: boolean } = {}): Disposable {
    const { standby, clock } = this.#options
    const use = options.quiet ? 0 : 1
    this.#holders++
    this.#users += use
    if (use > 0) this.#lastUsedAt = clock.now()
    standby.forget(this)
    return new Hold(this, use)
  }

  /** For `Hold`: one holder less. */
  letGo(use: number): void {
    this.#leaveWakePlace()
    this.#holders--
    this.#users -= use
    if (use > 0) this.#lastUsedAt = this.#options.clock.now()
    this.#idleIfSo()
  }

  /** As `hold`, for a connection that stays open and may have nothing to say for long. */
  holdConnection(): ConnectionHold {
    const { standby, log, instanceId } = this.#options
    const connection = new ConnectionHold(standby, () => {
      const hold = this.hold()
      // What was said waits in the connection meanwhile; one that cannot be woken ends it.
      this.wake()?.catch((error) =>
        log.warn('an instance could not be woken', { instance: instanceId, error }),
      )
      return hold
    })
    connection.touch()
    return connection
  }

  /** Null when it is awake, else resolves when it is; to be called by who holds it. @throws what Instance.thaw throws */
  wake(): Promise<void> | null {
    if (this.#state === 'awake') return null
    this.#waking ??= this.#wake().finally(() => {
      this.#waking = null
    })
    return this.#waking
  }

  /** Puts the machine to rest, unless it is used (again). Never rejects. */
  async freeze(): Promise<void> {
    const machine = this.#machine
    if (!machine?.freeze || this.#holders > 0 || this.#state !== 'awake') return
    this.#state = 'falling'
    this.#cut = new AbortController()
    this.#falling = this.#fall(machine, this.#cut.signal)
    await this.#falling
  }

  /** Gives the memory of a resting machine back to the host. Never rejects. */
  async reclaim(): Promise<void> {
    const machine = this.#machine
    if (!machine?.reclaim || this.#state !== 'asleep' || this.#holders > 0) return
    const { log, instanceId } = this.#options
    this.#cut = new AbortController()
    const { signal } = this.#cut
    try {
      const bytes = await machine.reclaim(signal)
      log.debug('memory of an instance was given back', { instance: instanceId, bytes })
    } catch (error) {
      if (!signal.aborted) {
        log.warn('memory of an instance could not be given back', { instance: instanceId, error })
      }
    }
  }

  async #fall(machine: Instance, signal: AbortSignal): Promise<void> {
    const { log, instanceId, standby, onRest } = this.#options
    try {
      await machine.freeze?.(signal)
      if (this.#machine !== machine) return
      this.#state = 'asleep'
      onRest(this.#lastUsedAt)
      if (this.#holders === 0) standby.frozen(this)
    } catch (error) {
      if (this.#machine !== machine) return
      this.#state = 'awake'
      if (!signal.aborted) log.warn('an instance could not be frozen', { instance: instanceId, error })
      this.#idleIfSo()
    }
  }

  async #wake(): Promise<void> {
    this.#cut.abort()
    await this.#falling
    if (this.#machine === null || this.#state !== 'asleep') return
    const place = await this.#options.standby.wakePlace()
    const machine = this.#machine
    if (machine === null || this.#state !== 'asleep') return place[Symbol.dispose]()
    this.#wakePlace = place
    try {
      await machine.thaw?.()
    } catch (error) {
      this.#leaveWakePlace()
      throw error
    }
    if (this.#machine !== machine) return this.#leaveWakePlace()
    this.#state = 'awake'
    this.#options.onWake()
    this.#idleIfSo()
  }

  #leaveWakePlace(): void {
    this.#wakePlace?.[Symbol.dispose]()
    this.#wakePlace = null
  }

  #idleIfSo(): void {
    if (this.#holders > 0 || this.#machine === null) return
    const { standby } = this.#options
    if (this.#state === 'awake') standby.idle(this)
    else if (this.#state === 'asleep') standby.frozen(this)
  }
}

class Hold implements Disposable {
  #activity: Activity | null
  readonly #use: number

  constructor(activity: Activity, use: number) {
    this.#activity = activity
    this.#use = use
  }

  [Symbol.dispose](): void {
    const activity = this.#activity
    this.#activity = null
    activity?.letGo(this.#use)
  }
}

/** A hold that lapses while nothing is said, and is taken again, waking the instance, with the next word. */
export class ConnectionHold implements Disposable {
  readonly #standby: Standby
  readonly #take: () => Disposable
  #hold: Disposable | null = null
  #over = false

  constructor(standby: Standby, take: () => Disposable) {
    this.#standby = standby
    this.#take = take
  }

  /** Something was said, by either side. */
  touch(): void {
    if (this.#over) return
    this.#hold ??= this.#take()
    this.#standby.spoke(this)
  }

  /** Nothing was said for long. */
  lapse(): void {
    this.#hold?.[Symbol.dispose]()
    this.#hold = null
  }

  [Symbol.dispose](): void {
    this.#over = true
    this.#standby.ended(this)
    this.lapse()
  }
}
