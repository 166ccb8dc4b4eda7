/** The fleet: instances of revisions, as many as requests need, from none to maxScale. */
import { PlatformError } from '../../errors.ts'
import type { Clock } from '../../lib/clock.ts'
import { Lingering } from '../../lib/lingering.ts'
import type { Logger } from '../../lib/log.ts'
import type { BatchStep } from '../../spec/store.ts'
import { type Member, type MemberHost, revisionOwnerKind } from './member.ts'
import { RevisionMembers } from './members.ts'
import type { AcquireOptions, FleetHealth, RevisionLease, RevisionRun } from './run.ts'

export { platformEnvironment, platformOrigin, programDefaults } from './environment.ts'
export { ProgramOutput } from './output.ts'
export {
  createInstance,
  destroyInstance,
  environmentIn,
  instanceSpec,
  isRoot,
  lastWords,
  type ProgramHost,
  programId,
  spawnProgram,
  terminateProgram,
  wasOutOfMemory,
} from './own-program.ts'
export {
  type AcquireOptions,
  type RevisionLease,
  type RevisionProgram,
  type RevisionRun,
  sessionProcessIdMin,
} from './run.ts'

export interface FleetOptions extends MemberHost {
  readonly clock: Clock
  readonly log: Logger
  /** Without a request, until an instance beyond minScale goes; null: never. It rests (`standby`) long before. */
  readonly idleMs: number | null
}

export class Fleet {
  readonly #options: FleetOptions
  readonly #revisions = new Map<string, RevisionMembers>()
  readonly #closing = new AbortController()
  readonly #idle: Lingering<{ members: RevisionMembers; member: Member }> | null
  #opened = false

  constructor(options: FleetOptions) {
    this.#options = options
    const { idleMs: afterMs, clock, log } = options
    this.#idle =
      afterMs === null
        ? null
        : new Lingering({ afterMs, clock, log, due: ({ members, member }) => members.idledOut(member) })
  }

  /** Knows a revision from now on and, once `open`, brings up minScale instances; one that retires serves again. Idempotent. */
  serve(run: RevisionRun): void {
    this.#refuseWhenClosing()
    const known = this.#revisions.get(run.id)
    if (known !== undefined) known.serve(run)
    else {
      const { signal: closing } = this.#closing
      this.#revisions.set(
        run.id,
        new RevisionMembers(run, { host: this.#options, idle: this.#idle, closing }),
      )
    }
    if (this.#opened) this.#revisions.get(run.id)?.keepUp()
  }

  /**
   * At start, once every revision is served that is to be: takes up what still runs of them and removes what does not, or
   * belongs to none.
   */
  open(): void {
    this.#opened = true
    for (const { id, owner, state } of this.#options.instances.owned(revisionOwnerKind)) {
      if (state === 'ending') continue
      const members = this.#revisions.get(owner.revision?.id ?? '')
      if (members === undefined || state === 'failed') void this.#remove(id)
      else members.adopt(id)
    }
    for (const members of this.#revisions.values()) members.keepUp()
  }

  /**
   * Resolves once one instance at least can be used. Tries once.
   * @throws unprocessable, with what its owner must know and the last lines of the program, when it ended or did not listen
   * in time; workload_not_found for a revision that is not served; what `instances.create` throws
   */
  async ready(revisionId: string, signal?: AbortSignal): Promise<void> {
    await this.#require(revisionId).ready(signal)
  }

  /**
   * An instance of a revision that is served: one that has room, or a new one, waited for.
   * @throws workload_not_found for a revision that is not served (any more), workload_unavailable when it does not start,
   * too_many_requests when all of maxScale are full
   */
  acquire(revisionId: string, signal?: AbortSignal, options: AcquireOptions = {}): Promise<RevisionLease> {
    const members = this.#require(revisionId)
    // A session stays with its instance, also when the revision serves nobody new.
    if (members.retiring && options.instanceId === undefined) throw notServed()
    return members.acquire(signal, options)
  }

  /** As `acquire`, where there is nothing to wait for; else null. */
  acquireNow(revisionId: string, options: AcquireOptions = {}): RevisionLease | null {
    const members = this.#revisions.get(revisionId)
    if (members === undefined || members.retiring || this.#closing.signal.aborted) return null
    return members.acquireNow(options)
  }

  /**
   * Takes no new requests, waits for those under way (15 minutes at most; with `now` not at all), ends its instances.
   * Idempotent.
   */
  async retire(revisionId: string, options: { now?: boolean } = {}): Promise<void> {
    const members = this.#revisions.get(revisionId)
    if (members === undefined) return
    await members.retire(options)
    if (members.retiring && this.#revisions.get(revisionId) === members) this.#revisions.delete(revisionId)
  }

  /** Of one that is not served: nothing. */
  health(revisionId: string): FleetHealth {
    return (
      this.#revisions.get(revisionId)?.health ?? { instances: 0, standby: 0, crashes: 0, lastError: null }
    )
  }

  /** What runs in an instance, as whom it speaks to the platform; null for one of something else. */
  workloadOf(instanceId: string): Pick<RevisionRun, 'kind' | 'workspace' | 'name' | 'labels'> | null {
    const id = this.#options.instances.ownerOf(instanceId)?.revision?.id
    return (id === undefined ? undefined : this.#revisions.get(id)?.run) ?? null
  }

  /** Null for an instance of something else. */
  revisionOf(instanceId: string): string | null {
    return this.#options.instances.ownerOf(instanceId)?.revision?.id ?? null
  }

  /** Lets go of what runs; `instances.close` decides about the machines. */
  close(): void {
    if (this.#closing.signal.aborted) return
    this.#closing.abort(
      new PlatformError('unavailable', 'the platform is stopping', { retryAfterSeconds: 5 }),
    )
    this.#idle?.[Symbol.dispose]()
    for (const members of this.#revisions.values()) members.release()
  }

  #require(revisionId: string): RevisionMembers {
    this.#refuseWhenClosing()
    const members = this.#revisions.get(revisionId)
    if (members === undefined) throw notServed()
    return members
  }

  #refuseWhenClosing(): void {
    if (this.#closing.signal.aborted) throw this.#closing.signal.reason
  }

  async #remove(instanceId: string): Promise<void> {
    const { instances, store, log } = this.#options
    try {
      await instances.destroy(instanceId, (step: BatchStep) => store.batch([step]))
    } catch (error) {
      log.warn('an instance of a revision could not be removed', { instance: instanceId, error })
    }
  }
}

function notServed(): PlatformError {
  return new PlatformError('workload_not_found', 'this revision does not serve (any more)')
}
