import { PlatformError } from '../../errors.ts'
import { parseCron } from '../../lib/cron.ts'
import { parseDateMs } from '../../lib/date.ts'
import { parseDuration } from '../../lib/duration.ts'
import { maskedValue } from '../../lib/environment.ts'
import type { Resource } from '../../spec/store.ts'
import {
  type ExecutionView,
  executionsKeptDefault,
  type ScheduleInput,
  type ScheduleView,
  timeoutSecondsDefault,
} from './schema.ts'

export const scheduleKind = 'schedule'
export const executionKind = 'schedule_execution'
/** Executions of a sandbox that is gone, to be removed. */
export const purgeKind = 'schedule_purge'

/** A moment may lie this long in the past, for clocks that differ and answers on their way. */
const pastMsMax = 60_000

/** How a schedule rests in the store. */
export interface ScheduleBody {
  id: string
  sandbox: string
  /** Of the sandbox: another one of the same name has none of its schedules. */
  sandboxUid: string
  type: 'cron' | 'at'
  value: string
  command: string
  name?: string
  workingDir?: string
  /** Names only; the values are sealed. */
  variables: string[]
  sealedEnv: string
  keepAlive: boolean
  timeoutSeconds: number
  maxExecutions: number
  /** Milliseconds since the epoch. */
  nextAt: number
}
export type StoredSchedule = Resource<ScheduleBody>

/** One run: written before the command is submitted, and again with what came of it. */
export interface ExecutionBody {
  id: string
  scheduleId: string
  sandbox: string
  sandboxUid: string
  status: 'pending' | ExecutionView['status']
  statusCode: number
  error?: string
  executedAt: number
  processName: string
  timeoutSeconds: number
  /** What to submit, while it is pending: its schedule may be gone. Values sealed. */
  command?: Pick<ScheduleBody, 'command' | 'workingDir' | 'sealedEnv' | 'keepAlive'>
}
export type StoredExecution = Resource<ExecutionBody>

export type ScheduleDraft = Omit<
  ScheduleBody,
  'id' | 'sandbox' | 'sandboxUid' | 'sealedEnv' | 'variables'
> & {
  env: Record<string, string>
}

/**
 * What a client asks for, checked and complete. Values that come back masked are those of before.
 * @throws bad_request, which names the field
 */
export function draftOfSchedule(
  input: ScheduleInput,
  nowMs: number,
  previous: { value: string; nextAt: number; env: Record<string, string> } | null,
): ScheduleDraft {
  const { command, name, workingDir, env, keepAlive, timeout } = input.input
  const given = Object.entries(env ?? {}).map(([variable, value]) => {
    const masked = value === maskedValue && previous !== null && Object.hasOwn(previous.env, variable)
    return [variable, masked ? previous.env[variable] : value]
  })
  return {
    ...timingOf(input, nowMs, previous),
    command,
    ...(name ? { name } : {}),
    ...(workingDir ? { workingDir } : {}),
    env: Object.fromEntries(given),
    keepAlive: keepAlive ?? true,
    timeoutSeconds: timeout ?? timeoutSecondsDefault,
    maxExecutions: input.maxExecutions ?? executionsKeptDefault,
  }
}

function timingOf(
  { type, value }: ScheduleInput,
  nowMs: number,
  previous: { value: string; nextAt: number } | null,
): Pick<ScheduleBody, 'type' | 'value' | 'nextAt'> {
  if (type === 'cron') {
    const nextAt = parseCron('value', value).next(nowMs)
    if (nextAt === null) throw new PlatformError('bad_request', `value: "${value}" never comes again`)
    return { type, value, nextAt }
  }
  if (type === 'sleep') {
    const nextAt = nowMs + parseDuration('value', value)
    return { type: 'at', value: new Date(nextAt).toISOString(), nextAt }
  }
  const nextAt = parseDateMs(value)
  if (nextAt === null) {
    throw new PlatformError(
      'bad_request',
      `value must be a date and time such as 2030-07-01T09:00:00Z, got ${JSON.stringify(value.slice(0, 40))}`,
    )
  }
  // An entry that is sent back unchanged may be due in this moment.
  if (nextAt < nowMs - pastMsMax && previous?.value !== value) {
    throw new PlatformError('bad_request', `value: ${value} lies in the past; send a moment to come`)
  }
  return { type, value, nextAt }
}

/** The moment after this one; null for a schedule that comes once. */
export function following(body: ScheduleBody, nowMs: number): number | null {
  return body.type === 'cron' ? parseCron('value', body.value).next(nowMs) : null
}

/** `env`: with the values; without it they are masked. */
export function scheduleView(
  { body, createdAt }: StoredSchedule,
  env?: Record<string, string>,
): ScheduleView {
  const variables = body.variables.map((name) => [name, env?.[name] ?? maskedValue])
  return {
    id: body.id,
    sandbox: body.sandbox,
    type: body.type,
    value: body.value,
    input: {
      command: body.command,
      ...(body.name === undefined ? {} : { name: body.name }),
      ...(body.workingDir === undefined ? {} : { workingDir: body.workingDir }),
      ...(variables.length === 0 ? {} : { env: Object.fromEntries(variables) }),
      keepAlive: body.keepAlive,
      timeout: body.timeoutSeconds,
    },
    maxExecutions: body.maxExecutions,
    createdAt: new Date(createdAt).toISOString(),
  }
}

export function executionView({ body, createdAt }: StoredExecution): ExecutionView {
  return {
    id: body.id,
    scheduleId: body.scheduleId,
    sandbox: body.sandbox,
    status: body.status === 'succeeded' ? 'succeeded' : 'failed',
    statusCode: body.statusCode,
    ...(body.error === undefined ? {} : { error: body.error }),
    executedAt: new Date(body.executedAt).toISOString(),
    processName: body.processName,
    timeout: body.timeoutSeconds,
    createdAt: new Date(createdAt).toISOString(),
  }
}

export function scheduleIndexes(body: ScheduleBody): Record<string, string> {
  return { sandbox: body.sandboxUid, sandboxName: body.sandbox, type: body.type }
}

export function executionIndexes(body: ExecutionBody): Record<string, string> {
  return {
    sandbox: body.sandboxUid,
    sandboxName: body.sandbox,
    scheduleId: body.scheduleId,
    schedule: scheduleIndex(body),
    status: body.status,
  }
}

/** Which executions belong to one schedule. */
export function scheduleIndex({
  sandboxUid,
  scheduleId,
}: {
  sandboxUid: string
  scheduleId: string
}): string {
  return `${sandboxUid}/${scheduleId}`
}
