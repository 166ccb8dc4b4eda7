/**
 * The queue seam: work that waits, is claimed under a lease by one worker at a time, and ends once.
 *
 * Guarantees every driver gives:
 * - A mutation that resolved is durable as the store's are: it survives kill -9 and, unless the driver was opened
 *   otherwise, loss of power.
 * - `enqueue` and `change` are atomic, with all that they bring along (`follow`).
 * - Two claims never get the same work while its lease lasts, and each claim's token is larger than the one before:
 *   a change that expects another token than the newest changes nothing.
 * - Whoever claims gets what is due: targets by turns, of a target its keys by turns, within a key by priority, then
 *   by time. A target or key that has as many running as it may is passed over, and costs nobody anything.
 * - Work that ended is never claimed again.
 * - Reads see every mutation that resolved before the read began. No list reads inputs or results.
 * - What waits takes disk, not memory.
 */
export interface Queue {
  /**
   * All or none. Of work whose idempotency key was seen with the same digest, the work that there is.
   * At most `workBatchMax`. @throws conflict for a key with another digest; already_exists for an id that is taken;
   * too_many_requests with `retryAfterSeconds` when more than `waitingMax` of a queue would wait
   */
  enqueue(items: NewWork[], options?: EnqueueOptions): Promise<EnqueuedWork[]>

  /**
   * At most `limit` that are due and have room, each for its `leaseMs` from now on; their number of attempts is one
   * more. A target whose next input has no room is passed over.
   */
  claim(queue: string, limit: number, room?: InputRoom): Promise<ClaimedWork[]>

  /** Null: what it expects does not hold (a stale token, another state, another version, no such work); nothing was changed. */
  change(change: WorkChange): Promise<ChangedWork | null>

  /** Gives back what is claimed in this queue, as if those claims had not been: for whoever knows that its workers are gone. */
  release(queue: string): Promise<number>

  /** Keys of which nothing may run, as `keyMax: 0` says until `limitKey` comes. */
  closedKeys(): WorkKey[]

  get(id: string): Work | null
  /** What was accepted under an idempotency key that is still good. */
  known(workspace: string, key: string): { digest: string; work: Work } | null
  input(id: string): Uint8Array | null
  result(id: string): Uint8Array | null
  list(query: WorkQuery): Work[]
  /** As `list`; however much there is to look through, others have their turn in between. */
  search(query: WorkQuery): Promise<Work[]>
  /** Of the parts of a group. */
  counts(group: string): WorkCounts
  /** Due or delayed, without a look at the disk. */
  waiting(queue: string): number
  depth(filter?: { queue?: string; workspace?: string; target?: string }): WorkDepth
  /** What all that is kept takes on disk, inputs and results of ended work included. */
  bytes(): number
  /** The next moment at which something comes due or is to be looked at again; null: none. */
  nextAt(): number | null
  /** Running or held past the moment they were given until; at most `limit`. */
  overdue(nowMs: number, limit: number): Work[]
  /** Groups' parents that are not ended though all of their parts are; at most `limit`. */
  finishedGroups(limit: number): Work[]

  /**
   * At most `limit` that ended before `endedBefore`, or beyond the newest `keptMax` of their workspace, with all that is
   * kept of them; and at most `limit` idempotency keys that are over. Answers how many.
   */
  prune(options: { endedBefore: number; keptMax: number; limit: number }): Promise<number>
  /** Whatever its state; false: there was none. */
  remove(id: string): Promise<boolean>
  /** Everything of a workspace. */
  removeWorkspace(workspace: string): Promise<void>
}

export const workInputBytesMax = 32 * 1024 * 1024
export const workResultBytesMax = 16 * 1024 * 1024
export const workBodyBytesMax = 256 * 1024
export const workLabelsMax = 16
export const workLabelCharactersMax = 256
export const workListMax = 1000
export const workBatchMax = 1000

/** Not ended. Every other state is a word of the owner's for how it ended. */
export const openWorkStates = ['waiting', 'running', 'held'] as const

export function isOpenState(state: string): boolean {
  return (openWorkStates as readonly string[]).includes(state)
}

/** Inputs from this size on have room of their own, so that what waits for that holds up nothing that is small. */
export const largeInputBytes = 256 * 1024

/** What inputs a claim may hand out. */
export interface InputRoom {
  /** Of small ones: no further one once those of this claim have so many together. */
  smallBytes: number
  /** Of large ones, with what was handed out before, in all and of one target; where there is none a single one may be larger. */
  largeBytesMax: number
  largeBytesOfTargetMax: number
  /** What was handed out before and is not over. */
  held: readonly { workspace: string; target: string; largeBytes: number }[]
}

export interface NewWork {
  /** Unique for ever. */
  id: string
  queue: string
  workspace: string
  /** Whom it is for: targets get turns, and `targetMax` of it run at once. */
  target: string
  targetMax: number
  /** Of a target: keys get turns, and `keyMax` of it run at once. */
  key: string
  keyMax: number
  /** Higher first. */
  priority: number
  /** Not claimed before, in milliseconds since the epoch. */
  runAt: number
  /** How long a claim lasts. */
  leaseMs: number
  /** Held: never claimed, over when it is changed; until `until`. */
  state: 'waiting' | 'held'
  until: number | null
  group: string | null
  index: number | null
  /** Of a group's parent: how many parts it has. */
  parts: number | null
  labels: Record<string, string>
  /** JSON. */
  body: unknown
  input: Uint8Array | null
  /** Nobody uses the bytes of `input` any more: they may be taken instead of copied. */
  inputIsGiven?: boolean
  idempotency: { key: string; digest: string; expiresAt: number } | null
}

export interface WorkKey {
  queue: string
  workspace: string
  target: string
  key: string
}

export interface EnqueueOptions {
  waitingMax?: number
  /** How many of a key may run from now on, in the same transaction. */
  limitKey?: WorkKey & { max: number }
}

export interface Work {
  id: string
  /** Larger for each that was accepted later. */
  order: number
  queue: string
  workspace: string
  target: string
  key: string
  priority: number
  runAt: number
  state: string
  until: number | null
  group: string | null
  index: number | null
  parts: number | null
  partsLeft: number | null
  labels: Record<string, string>
  body: unknown
  /** One more at each change and claim. */
  version: number
  /** Of the newest claim; 0: never claimed. */
  token: number
  attempts: number
  createdAt: number
  /** Of the first claim. */
  startedAt: number | null
  endedAt: number | null
  resultBytes: number
}

export interface EnqueuedWork {
  work: Work
  /** It was there already, under the same idempotency key. */
  existing: boolean
}

export interface ClaimedWork extends Work {
  input: Uint8Array | null
}

export interface WorkChange {
  id: string
  /** All that is given must hold. */
  expect: { token?: number; version?: number; states?: readonly string[] }
  /** Absent: unchanged. */
  state?: string
  body?: unknown
  labels?: Record<string, string>
  runAt?: number
  until?: number | null
  attempts?: number
  result?: Uint8Array
  /** Enqueued in the same transaction. */
  follow?: NewWork[]
}

export interface ChangedWork {
  work: Work
  /** When this ended a part of a group: how many of its parts are not ended yet. */
  groupPartsLeft: number | null
  followed: Work[]
}

export interface WorkQuery {
  workspace: string
  queue?: string
  target?: string
  states?: readonly string[]
  group?: string
  labels?: Record<string, string>
  /** createdAt, inclusive. */
  since?: number
  until?: number
  /** 1..workListMax. */
  limit: number
  /** Default `newest`; `index`: parts of a group in their order. */
  sort?: 'newest' | 'oldest' | 'index'
  /** Begins behind the one with this `order` (or `index`). */
  after?: number
}

export interface WorkCounts {
  states: Record<string, number>
  /** Claimed more than once. */
  retried: number
}

export interface WorkDepth {
  /** Due or delayed. */
  waiting: number
  running: number
  held: number
  /** When the oldest that waits was accepted; null: none waits. */
  oldestWaitingAt: number | null
}
