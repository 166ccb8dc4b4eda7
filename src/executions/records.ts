import { PlatformError } from '../errors.ts'
import { sortableId } from '../lib/ids.ts'
import { isOpenState, type NewWork, type Queue, type Work, workInputBytesMax } from '../spec/queue.ts'
import type {
  Execution,
  ExecutionError,
  ExecutionStatus,
  ExecutionTarget,
  NewExecution,
  NewParts,
  RetryPolicy,
} from './execution.ts'

export const executionNoteBytesMax = 64 * 1024
const executionTimeoutMsMax = 30 * 24 * 60 * 60 * 1000
const executionAttemptsMaxMax = 100
const priorityMax = 1000
const messageCharactersMax = 4096
/** How long a lease lasts beyond its attempt: what ends the attempt has this long. */
const leaseGraceMs = 60_000
const idempotencyMs = 24 * 60 * 60 * 1000
const unlimited = 1_000_000_000
const fullRetryAfterSeconds = 30

/** What the queue keeps of an execution besides its own columns. */
export interface ExecutionBody {
  target: ExecutionTarget
  timeoutMs: number
  attemptsMax: number
  delayMs: number
  delayMsMax: number
  note: Record<string, unknown>
  /** The note as it was given, for replays. Absent: it was empty. */
  given?: Record<string, unknown>
  statusReason?: string
  error?: ExecutionError
  resultType?: string
  isDead?: true
  callback?: { dialect: string; [given: string]: unknown }
  targetMax?: number
  concurrency?: { key: string; max: number }
  /** Of a group: how its parts are run. */
  each?: NewParts
  stop?: { status: 'cancelled' | 'timed_out'; reason: string }
}

export function bodyOf(work: Work): ExecutionBody {
  return work.body as ExecutionBody
}

export function isEnded(work: Work): boolean {
  return !isOpenState(work.state)
}

export function toExecution(work: Work): Execution {
  const body = bodyOf(work)
  return {
    id: work.id,
    workspace: work.workspace,
    source: work.queue,
    target: body.target,
    group: work.group,
    index: work.index,
    parts: work.parts,
    labels: work.labels,
    status: statusOf(work),
    statusReason: body.statusReason ?? null,
    attempts: work.attempts,
    attemptsMax: body.attemptsMax,
    priority: work.priority,
    acceptedAt: work.createdAt,
    runAt: work.runAt,
    startedAt: work.startedAt,
    endedAt: work.endedAt,
    timeoutMs: body.timeoutMs,
    error: body.error ?? null,
    resultBytes: work.resultBytes,
    resultType: body.resultType ?? null,
    note: body.note,
    isDead: body.isDead === true,
    stopping: isEnded(work) ? null : (body.stop?.status ?? null),
  }
}

function statusOf({ state, parts, startedAt }: Work): ExecutionStatus {
  switch (state) {
    case 'waiting':
      return 'queued'
    case 'held':
      // A group is held throughout: it runs while its parts do.
      return parts === null ? 'waiting' : startedAt === null ? 'queued' : 'running'
    default:
      return state as ExecutionStatus
  }
}

/** The states in which work of these statuses can be; those of groups need a second look. */
export function statesOf(statuses: readonly ExecutionStatus[]): string[] {
  return statuses.map((status) => (status === 'queued' ? 'waiting' : status === 'waiting' ? 'held' : status))
}

export function targetText({ kind, name }: ExecutionTarget): string {
  return `${kind}/${name}`
}

/** @throws bad_request, body_too_large */
export function newWork(asked: NewExecution, nowMs: number): NewWork {
  const { workspace, source, target, input, labels = {}, note = {}, priority = 0, runAt = nowMs } = asked
  const { retry, timeoutMs, idempotency, concurrency, callback, targetRunningMax } = asked
  checkTimeout(timeoutMs)
  checkRetry(retry)
  checkNote(note)
  if (!Number.isInteger(priority) || Math.abs(priority) > priorityMax) {
    throw new PlatformError('bad_request', `priority must be a whole number of at most ${priorityMax}`)
  }
  checkInput(input)
  const body: ExecutionBody = {
    target,
    timeoutMs,
    attemptsMax: retry?.attemptsMax ?? 1,
    delayMs: retry?.delayMs ?? 0,
    delayMsMax: retry?.delayMsMax ?? 0,
    note,
    ...(Object.keys(note).length === 0 ? {} : { given: note }),
    ...(callback === undefined ? {} : { callback }),
    ...(targetRunningMax === undefined ? {} : { targetMax: targetRunningMax }),
    ...(concurrency === undefined ? {} : { concurrency }),
  }
  return {
    id: asked.id ?? sortableId(nowMs),
    queue: source,
    workspace,
    target: targetText(target),
    targetMax: targetRunningMax ?? unlimited,
    key: concurrency?.key ?? '',
    keyMax: concurrency?.max ?? unlimited,
    priority,
    runAt,
    leaseMs: timeoutMs + leaseGraceMs,
    state: 'waiting',
    until: null,
    group: null,
    index: null,
    parts: null,
    labels,
    body,
    input,
    inputIsGiven: asked.inputIsGiven ?? false,
    idempotency: idempotency ? requestOf(idempotency, nowMs) : null,
  }
}

export function checkInput(input: Uint8Array): void {
  if (input.byteLength <= workInputBytesMax) return
  throw new PlatformError(
    'body_too_large',
    `the body is ${input.byteLength} bytes, at most ${workInputBytesMax} can be queued`,
  )
}

/** @throws too_many_requests when what is kept takes all that it may on disk */
export function refuseFull(queue: Queue, bytesMax: number): void {
  const bytes = queue.bytes()
  if (bytes < bytesMax) return
  const mb = (count: number) => Math.ceil(count / 1024 / 1024)
  throw new PlatformError(
    'too_many_requests',
    `executions take ${mb(bytes)} MiB on disk, at most ${mb(bytesMax)} may (executionsMbMax): try again later`,
    { retryAfterSeconds: fullRetryAfterSeconds },
  )
}

/** @throws bad_request */
function checkTimeout(timeoutMs: number): void {
  if (Number.isFinite(timeoutMs) && timeoutMs > 0 && timeoutMs <= executionTimeoutMsMax) return
  throw new PlatformError(
    'bad_request',
    `timeout must be more than 0 and at most ${executionTimeoutMsMax / 1000} seconds, got ${timeoutMs / 1000}`,
  )
}

function checkRetry(retry: RetryPolicy | undefined): void {
  if (!retry) return
  const { attemptsMax } = retry
  if (Number.isInteger(attemptsMax) && attemptsMax >= 1 && attemptsMax <= executionAttemptsMaxMax) return
  throw new PlatformError(
    'bad_request',
    `attempts must be a whole number from 1 to ${executionAttemptsMaxMax}, got ${attemptsMax}`,
  )
}

/** @throws body_too_large */
export function checkNote(note: Record<string, unknown>): void {
  const bytes = Buffer.byteLength(JSON.stringify(note))
  if (bytes <= executionNoteBytesMax) return
  throw new PlatformError(
    'body_too_large',
    `what is noted of the execution is ${bytes} bytes, at most ${executionNoteBytesMax} are kept`,
  )
}

/** What its owner said, within bounds: one that says too much shall not keep its execution from ending. */
export function boundedError({ code, message, details }: ExecutionError): ExecutionError {
  const fits = details !== undefined && JSON.stringify(details).length * 3 <= executionNoteBytesMax
  return {
    code: code.slice(0, 128),
    message: boundedMessage(message),
    ...(fits ? { details } : {}),
  }
}

export function boundedMessage(message: string): string {
  if (message.length <= messageCharactersMax) return message.toWellFormed()
  return `${message.slice(0, messageCharactersMax)}...`.toWellFormed()
}

/** Key by key; null takes one away. */
function requestOf(
  { key, digest, keptMs = idempotencyMs }: NonNullable<NewExecution['idempotency']>,
  nowMs: number,
): NonNullable<NewWork['idempotency']> {
  return { key, digest, expiresAt: nowMs + keptMs }
}

export function mergedNote(
  note: Record<string, unknown>,
  more: Record<string, unknown> | undefined,
): Record<string, unknown> {
  if (!more) return note
  const merged = { ...note, ...more }
  for (const [key, value] of Object.entries(merged)) if (value === null) delete merged[key]
  return merged
}
