/** What an execution is, and the words in which everybody else speaks of it. */

export const executionStatuses = [
  'queued',
  'running',
  /** Its agent took it up and reports later. */
  'waiting',
  'succeeded',
  'failed',
  'cancelled',
  'timed_out',
] as const
export type ExecutionStatus = (typeof executionStatuses)[number]

export interface ExecutionTarget {
  kind: string
  name: string
}

export interface ExecutionError {
  /** The runner's word: 'agent_error', 'timeout' ... */
  code: string
  /** Public. */
  message: string
  details?: unknown
}

export interface Execution {
  id: string
  workspace: string
  /** Who accepted it, whose words it is told in, whose runner does it. */
  source: string
  target: ExecutionTarget
  /** The execution that this one is a part of. */
  group: string | null
  /** Of a part in its group. */
  index: number | null
  /** Of one that has parts: how many. */
  parts: number | null
  labels: Record<string, string>
  status: ExecutionStatus
  statusReason: string | null
  /** Begun so far; those that the platform's stop cut off do not count. */
  attempts: number
  attemptsMax: number
  priority: number
  acceptedAt: number
  runAt: number
  /** Of the first attempt. */
  startedAt: number | null
  endedAt: number | null
  /** Of one attempt, and of waiting for its report. */
  timeoutMs: number
  error: ExecutionError | null
  resultBytes: number
  /** Content type. */
  resultType: string | null
  /** The source's own JSON, at most `executionNoteBytesMax`. */
  note: Record<string, unknown>
  /** Given up after its attempts; can be replayed. */
  isDead: boolean
  /** Of a group that is being stopped, while parts of it still end. */
  stopping: 'cancelled' | 'timed_out' | null
}

export interface RetryPolicy {
  attemptsMax: number
  /** Before the second attempt; doubled before each further one, +-20 %. */
  delayMs: number
  delayMsMax: number
}

export interface NewExecution {
  workspace: string
  source: string
  target: ExecutionTarget
  input: Uint8Array
  /** The caller uses the bytes of `input` no more, whatever comes of this. */
  inputIsGiven?: boolean
  /** Unique for ever; default: a new one that sorts by time. */
  id?: string
  labels?: Record<string, string>
  note?: Record<string, unknown>
  /** Higher first, of the same target and key; default 0. */
  priority?: number
  /** Default: now. */
  runAt?: number
  timeoutMs: number
  /** Default: one attempt. */
  retry?: RetryPolicy
  /** How many of this target may run at once; default: as many as its source may. */
  targetRunningMax?: number
  /** How many of this target with the same key may run at once; keys get turns. */
  concurrency?: { key: string; max: number }
  /** `keptMs`: how long the key is known; absent: a day. */
  idempotency?: { key: string; digest: string; keptMs?: number }
  /** Follow-up work that is made in the transaction that ends it, composed by whom `callbacks` registered. JSON; secrets sealed by its owner. */
  callback?: { dialect: string; [given: string]: unknown }
}

/** Of a group: its parts are run with this source, and share the rest with their parent unless given. */
export interface NewParts {
  source: string
  timeoutMs: number
  retry?: RetryPolicy
  labels?: Record<string, string>
  /** How many of the group run at once. */
  parallelMax: number
}

export interface Attempt {
  execution: Execution
  input: Uint8Array
  /** From 1. */
  number: number
  /** Larger at each attempt of whatever execution. */
  token: number
  /** Tells those who watch; not stored. */
  note(progress: Record<string, unknown>): void
}

export type AttemptOutcome =
  | { status: 'succeeded'; result: Uint8Array; type: string; note?: Record<string, unknown> }
  | {
      status: 'failed'
      error: ExecutionError
      /** Whether another attempt may help. */
      retry: boolean
      /** Instead of the policy's delay. */
      retryAfterMs?: number
      result?: Uint8Array
      type?: string
      note?: Record<string, unknown>
    }
  /** Its agent said that it reports later: `report` ends it; `timeoutMs` goes on counting. */
  | { status: 'waiting'; note?: Record<string, unknown> }

/** The reason of the signal that a runner gets. */
export class ExecutionStopped extends Error {
  readonly why: 'cancelled' | 'timed_out' | 'closing'

  constructor(why: ExecutionStopped['why'], message: string) {
    super(message)
    this.name = 'ExecutionStopped'
    this.why = why
  }
}

export interface ExecutionReport {
  status?: 'running' | 'waiting' | 'succeeded' | 'failed' | 'cancelled' | 'timed_out'
  statusReason?: string
  result?: Uint8Array
  type?: string
  error?: ExecutionError
  /** Merged into the note, key by key; null removes one. */
  note?: Record<string, unknown>
  /** In place of those that it has. */
  labels?: Record<string, string>
  /** Beside 'waiting': how long its agent may say nothing from now on, where that is not its timeout. */
  quietMs?: number
}

export interface ExecutionFilter {
  source?: string | readonly string[]
  target?: ExecutionTarget
  status?: ExecutionStatus | readonly ExecutionStatus[]
  group?: string
  labels?: Record<string, string>
  /** acceptedAt, inclusive. */
  since?: number
  until?: number
}

export interface ExecutionPage {
  data: Execution[]
  nextCursor: string
}

/** Of the parts of a group. `retried`: those that needed more than one attempt so far. */
export type PartCounts = Record<ExecutionStatus | 'retried', number>

export interface RunnerOptions {
  /** Attempts of this source at once, over all workspaces. */
  runningMax: number
  /** Not in lists, counts and events unless its source is asked for. */
  hidden?: boolean
  /** Programs do it by themselves, and tell of it: it is not to be done again here. */
  toldOnly?: boolean
  /** What one that is done again is called. */
  newId?(nowMs: number): string
  /** After the commit of every end of one of this source, however it came about. */
  ended?(execution: Execution): void
}

export type Runner = (attempt: Attempt, signal: AbortSignal) => Promise<AttemptOutcome>

/** The follow-up work of one that ended, made in the same transaction; null: none. */
export type ComposeCallback = (
  execution: Execution,
  result: Uint8Array | null,
  callback: Record<string, unknown>,
) => NewExecution | null

export interface ExecutionEvent {
  /** Larger at each event, also over restarts: what `since` takes. */
  number: number
  at: number
  type: 'created' | 'started' | 'progress' | 'updated' | 'ended'
  execution: Execution
  /** Of 'progress': what its runner or agent said. */
  progress?: Record<string, unknown>
}

export interface ExecutionDepth {
  waiting: number
  running: number
  /** Taken up by agents that report later. */
  reported: number
  oldestWaitingMs: number
}
