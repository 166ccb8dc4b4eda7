import { PlatformError } from '../../errors.ts'
import { abortable } from '../../lib/abortable.ts'
import type { Lingering } from '../../lib/lingering.ts'
import { Crashes } from './crashes.ts'
import { MemberLease } from './lease.ts'
import { Member, type MemberHost } from './member.ts'
import {
  type AcquireOptions,
  type FleetHealth,
  type RevisionLease,
  type RevisionRun,
  titleOf,
} from './run.ts'
import { WaitingRequests } from './waiting.ts'

/** Requests that an instance has at once before another one is started beside it. */
export const requestsPerInstance = 80
/** Where no other one may be started an instance takes more, up to this. */
const requestsPerInstanceMax = 1000
/** Requests that wait for a first instance. */
const waitingMax = 1000
/** Another instance is picked when one goes in the moment it was picked. */
const attemptsMax = 3
/** A request waits for a start that is due so soon; when it is later it is told why. */
const backoffWaitMs = 2_000
/** An instance that held so long was no crash at its start. */
const heldMs = 60_000
/** Starts that nobody asked for, after crashes: then the next request makes one. */
const unaskedStartsMax = 5
/** Requests under way at a revision that serves no more; as long as one may take. */
const drainMsMax = 15 * 60_000
const drainPollMs = 50

/** What the platform says for itself when no instance can be made. */
const hostFailures = new Set(['too_many_requests', 'unavailable', 'insufficient_storage'])

/**
 * The instances of one revision: how many there are follows from how many requests are under way, within minScale and
 * maxScale; one that ends by itself is replaced, after a while that doubles with each that does not hold.
 */
export class RevisionMembers {
  run: RevisionRun
  readonly #host: MemberHost
  readonly #idle: Lingering<{ members: RevisionMembers; member: Member }> | null
  readonly #closing: AbortSignal
  readonly #entries = new Map<Member, { members: RevisionMembers; member: Member }>()
  readonly #waiting = new WaitingRequests()
  readonly #crashes: Crashes
  #unasked = 0
  /** A start that waits for its time. */
  #due: AbortController | null = null
  #retiring: { done: Promise<void>; cut: AbortController; hurry: AbortController } | null = null

  constructor(
    run: RevisionRun,
    options: {
      host: MemberHost
      idle: Lingering<{ members: RevisionMembers; member: Member }> | null
      closing: AbortSignal
    },
  ) {
    this.run = run
    this.#host = options.host
    this.#idle = options.idle
    this.#closing = options.closing
    this.#crashes = new Crashes({
      clock: options.host.clock,
      title: () => titleOf(this.run),
      told: (message) => options.host.crashed?.(this.run, message),
    })
  }

  get retiring(): boolean {
    return this.#retiring !== null
  }

  get health(): FleetHealth {
    const members = this.#living()
    const now = this.#host.clock.monotonic()
    const holds = members.some(({ state, readyAt }) => state === 'ready' && now - readyAt >= heldMs)
    return {
      instances: members.length,
      standby: members.filter((member) => member.resting).length,
      crashes: holds ? 0 : this.#crashes.count,
      lastError: this.#crashes.lastMessage,
    }
  }

  /** Serves (again). */
  serve(run: RevisionRun): void {
    this.run = run
    this.#retiring?.cut.abort()
    this.#retiring = null
  }

  /** As many as are to be there whatever happens; those stay awake. */
  keepUp(): void {
    if (this.retiring || this.#closing.aborted) return
    const minScale = Math.min(this.run.minScale, this.#scaleMax)
    const { waitMs } = this.#crashes
    for (let missing = minScale - this.#living().length; missing > 0; missing--) {
      if (waitMs > 0) this.#startLater(waitMs)
      else this.#startSoon()
    }
    for (const [at, member] of this.#living().entries()) this.#keepAwake(member, at < minScale)
  }

  /** @throws workload_unavailable when none can be had, too_many_requests, the signal's reason */
  async acquire(signal: AbortSignal | undefined, options: AcquireOptions): Promise<RevisionLease> {
    this.#unasked = 0
    if (options.instanceId !== undefined) await this.#settled(options.instanceId)
    for (let attempt = 1; ; attempt++) {
      const member = this.#pick(options) ?? (await this.#wait(signal, options))
      try {
        return await this.#lease(member, signal)
      } catch (error) {
        const gone = PlatformError.is(error) && error.code.startsWith('workload_')
        if (!gone || options.instanceId !== undefined || attempt >= attemptsMax) throw error
      }
    }
  }

  /** As `acquire`, where there is nothing to wait for; else null. */
  acquireNow(options: AcquireOptions): RevisionLease | null {
    this.#unasked = 0
    const member = this.#pick(options)
    const lease = member?.awakeNow() ?? null
    if (member === null || lease === null) return null
    this.#take(member)
    return new MemberLease(member, lease, this)
  }

  /** For `MemberLease`: one request less. */
  letGo(member: Member): void {
    if (--member.load === 0) this.#linger(member)
  }

  /** Resolves when one instance at least can be used; tries once. @throws as `Member.start` */
  async ready(signal: AbortSignal | undefined): Promise<void> {
    if (this.#ready().length > 0) return
    const starting = this.#living()[0]
    const work = starting === undefined ? this.#start() : this.#settling.get(starting)
    await abortable(work ?? Promise.resolve(), signal)
  }

  /** Takes up what an earlier life of the platform started, if it still runs. It counts at once. */
  adopt(instanceId: string): void {
    const member = new Member(this.run, this.#host)
    const adopted = member.adopt(instanceId)
    this.#bring(member, adopted, (error) => {
      this.#host.log.info('an instance of a revision does not run any more', {
        revision: this.run.id,
        reason: PlatformError.is(error) ? error.message : String(error),
      })
      if (this.#waiting.size > 0 && this.#living().length === 0) this.#startSoon()
      this.keepUp()
    }).catch(() => {})
  }

  /** Resolves when nothing of it is left, or it was taken back by `serve`. `now`: waits for no request. Idempotent. */
  retire({ now = false }: { now?: boolean } = {}): Promise<void> {
    if (this.#retiring === null) {
      const [cut, hurry] = [new AbortController(), new AbortController()]
      this.#retiring = { cut, hurry, done: this.#retire(cut.signal, hurry.signal) }
    }
    if (now) this.#retiring.hurry.abort()
    return this.#retiring.done
  }

  /** Nobody used it for long. */
  idledOut(member: Member): void {
    const surplus = this.#living().length > Math.min(this.run.minScale, this.#scaleMax)
    if (surplus && member.load === 0 && member.state === 'ready') this.#end(member)
  }

  /** Lets go of what runs. */
  release(): void {
    this.#due?.abort()
    this.#retiring?.cut.abort()
    const stopping = new PlatformError('unavailable', 'the platform is stopping', { retryAfterSeconds: 5 })
    this.#waiting.rejectAll(stopping)
    for (const member of this.#living()) member.release()
  }

  get #scaleMax(): number {
    return Math.max(1, this.run.maxScale)
  }

  readonly #members = new Set<Member>()
  readonly #settling = new Map<Member, Promise<void>>()

  #living(): Member[] {
    return [...this.#members].filter(({ state }) => state !== 'leaving')
  }

  #ready(): Member[] {
    return [...this.#members].filter(({ state }) => state === 'ready')
  }

  /**
   * One to use now, null when there is none. Requests are spread over as many as are needed for them, so that the
   * others rest. Starts another one beside those that have enough to do.
   */
  #pick({ instanceId, fits }: AcquireOptions): Member | null {
    if (instanceId !== undefined) return this.#exactly(instanceId)
    let load = 1
    for (const member of this.#members) load += member.load
    const needed = Math.ceil(load / requestsPerInstance)
    let best: Member | null = null
    let seen = 0
    for (const member of this.#members) {
      if (member.state !== 'ready' || member.load >= requestsPerInstanceMax) continue
      if (fits && !fits(member.instanceId ?? '')) continue
      if (best === null || member.load < best.load) best = member
      if (++seen >= needed && best.load < requestsPerInstance) break
    }
    if (best === null || best.load >= requestsPerInstance) this.#scaleUp(load)
    return best
  }

  /** One that begins, or is taken up from an earlier life of the platform, is there soon, or is not. */
  async #settled(instanceId: string): Promise<void> {
    for (const [member, settling] of this.#settling) {
      if (member.instanceId === instanceId) await settling.catch(() => {})
    }
  }

  #exactly(instanceId: string): Member {
    for (const member of this.#members) {
      if (member.instanceId === instanceId && member.state === 'ready') return member
    }
    throw new PlatformError(
      'workload_not_found',
      `there is no such instance of ${titleOf(this.run)} any more`,
    )
  }

  #scaleUp(load: number): void {
    const living = this.#living()
    const starting = living.filter(({ state }) => state === 'starting').length
    if (living.length >= this.#scaleMax || starting * requestsPerInstance >= load) return
    if (this.#due === null && this.#crashes.waitMs <= 0) this.#startSoon()
  }

  /** @throws workload_unavailable, too_many_requests */
  async #wait(signal: AbortSignal | undefined, { fits }: AcquireOptions): Promise<Member> {
    signal?.throwIfAborted()
    const accepts = (member: Member) => fits === undefined || fits(member.instanceId ?? '')
    const living = this.#living()
    const starting = living.some(({ state }) => state === 'starting')
    if (!starting && living.length >= this.#scaleMax) throw this.#full()
    if (this.#waiting.size >= waitingMax) throw this.#full()
    if (!starting) this.#startOrExplain()
    return await this.#waiting.wait(signal, accepts)
  }

  #full(): PlatformError {
    const { maxScale } = this.run
    return new PlatformError(
      'too_many_requests',
      `${titleOf(this.run)} has as many requests under way as its ${maxScale} instances (maxScale) take`,
      { retryAfterSeconds: 1 },
    )
  }

  /** @throws workload_unavailable while it backs off */
  #startOrExplain(): void {
    const { waitMs } = this.#crashes
    if (waitMs > backoffWaitMs) throw this.#crashes.unavailable(waitMs)
    if (waitMs > 0) this.#startLater(waitMs)
    else this.#startSoon()
  }

  #startSoon(): void {
    this.#start().catch(() => {})
  }

  #start(): Promise<void> {
    this.#due?.abort()
    this.#due = null
    const member = new Member(this.run, this.#host)
    return this.#bring(member, member.start())
  }

  #startLater(waitMs: number): void {
    if (this.#due !== null || this.#closing.aborted) return
    const due = new AbortController()
    this.#due = due
    this.#host.clock.sleep(waitMs, AbortSignal.any([due.signal, this.#closing])).then(
      () => {
        if (this.#due !== due) return
        this.#due = null
        if (!this.#retiring || this.#waiting.size > 0) this.#startSoon()
      },
      () => {},
    )
  }

  /** It counts from now on; `starting` settles when it can be used. */
  #bring(
    member: Member,
    starting: Promise<void>,
    failed = (error: unknown) => this.#notBegun(error),
  ): Promise<void> {
    this.#members.add(member)
    const settling = starting.then(
      () => this.#begun(member),
      (error) => {
        this.#members.delete(member)
        if (!this.#closing.aborted) failed(error)
        throw error
      },
    )
    this.#settling.set(member, settling)
    settling.catch(() => {}).finally(() => this.#settling.delete(member))
    return settling
  }

  #begun(member: Member): void {
    void member.ended.then((error) => this.#crashed(member, error))
    if (member.load < requestsPerInstanceMax) this.#waiting.giveTo(member)
    if (this.#waiting.size > 0) this.#scaleUp(this.#waiting.size)
    this.#linger(member)
    this.keepUp()
  }

  #notBegun(error: unknown): void {
    this.#crashes.note(error)
    this.#tell(error)
    if (this.#living().length === 0) {
      const ofHost = PlatformError.is(error) && hostFailures.has(error.code)
      const message = this.#crashes.lastMessage ?? `${titleOf(this.run)} does not run`
      this.#waiting.rejectAll(
        ofHost ? error : new PlatformError('workload_unavailable', message, { cause: error }),
      )
    }
    this.#replace()
  }

  #crashed(member: Member, error: PlatformError): void {
    this.#forget(member)
    void member.leave()
    if (this.#host.clock.monotonic() - member.readyAt >= heldMs) this.#crashes.forget()
    this.#crashes.note(error)
    this.#tell(error)
    this.#replace()
  }

  /** In the logs of the deployment, where its owner looks. */
  #tell(error: unknown): void {
    const { workspace, name, id, kind } = this.run
    const source = { workspace, kind: `${kind}s` as const, name, revision: id, stream: 'platform' as const }
    const message = PlatformError.is(error) ? error.message : 'The instance could not be started'
    this.#host.logs.append(source, message.split('\n', 1)[0] ?? message)
    this.#host.log.info('an instance of a revision ended or did not start', {
      workspace,
      deployment: name,
      revision: id,
      crashes: this.#crashes.count,
    })
    if (!PlatformError.is(error)) this.#host.log.error('an instance of a revision did not start', { error })
  }

  /** After one that was lost, so that the next request finds one; not for ever, where nobody asks. */
  #replace(): void {
    if (this.retiring || this.#closing.aborted) return
    const wanted = this.#living().length < Math.min(this.run.minScale, this.#scaleMax)
    if (!wanted && (this.#living().length > 0 || this.#unasked >= unaskedStartsMax)) return
    this.#unasked++
    this.#startLater(Math.max(0, this.#crashes.waitMs))
  }

  async #lease(member: Member, signal: AbortSignal | undefined): Promise<RevisionLease> {
    this.#take(member)
    try {
      return new MemberLease(member, await member.wake(signal), this)
    } catch (error) {
      this.letGo(member)
      throw error
    }
  }

  #take(member: Member): void {
    member.load++
    if (member.load === 1) this.#idle?.delete(this.#entryOf(member))
  }

  #entryOf(member: Member): { members: RevisionMembers; member: Member } {
    let entry = this.#entries.get(member)
    if (entry === undefined) {
      entry = { members: this, member }
      this.#entries.set(member, entry)
    }
    return entry
  }

  #linger(member: Member): void {
    if (member.state === 'ready' && member.load === 0) this.#idle?.add(this.#entryOf(member))
  }

  #keepAwake(member: Member, awake: boolean): void {
    if (!awake) {
      member.awake?.[Symbol.dispose]()
      member.awake = null
    } else if (member.awake === null && member.state === 'ready' && member.instanceId !== null) {
      member.awake = this.#host.instances.hold(member.instanceId, { quiet: true })
    }
  }

  #end(member: Member): Promise<void> {
    this.#forget(member)
    return member.leave()
  }

  #forget(member: Member): void {
    this.#members.delete(member)
    this.#idle?.delete(this.#entryOf(member))
    this.#entries.delete(member)
  }

  async #retire(cut: AbortSignal, hurry: AbortSignal): Promise<void> {
    const { clock } = this.#host
    const startedAt = clock.monotonic()
    const busy = () => this.#waiting.size > 0 || [...this.#members].some(({ load }) => load > 0)
    // In the turn after: what was picked for it a moment ago is counted by then.
    await Promise.resolve()
    const ended = AbortSignal.any([cut, hurry, this.#closing])
    while (busy() && !hurry.aborted && clock.monotonic() - startedAt < drainMsMax) {
      await clock.sleep(drainPollMs, ended).catch(() => {})
      if (cut.aborted || this.#closing.aborted) return
    }
    if (cut.aborted) return
    this.#due?.abort()
    this.#due = null
    this.#waiting.rejectAll(
      new PlatformError('workload_unavailable', `${titleOf(this.run)} has another revision by now`),
    )
    await Promise.all([...this.#members].map((member) => this.#end(member)))
  }
}
