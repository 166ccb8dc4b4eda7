import { PlatformError } from '../../errors.ts'
import {
  type NewWork,
  type Work,
  workBodyBytesMax,
  workInputBytesMax,
  workLabelCharactersMax,
  workLabelsMax,
} from '../../spec/queue.ts'
import { checkText, checkTime } from './resources.ts'
import type { AddedWork, WorkRow } from './work-protocol.ts'

const sqliteIntegerMax = Number.MAX_SAFE_INTEGER
const leaseMsMax = 366 * 24 * 60 * 60 * 1000

export function decodeWork(row: WorkRow): Work {
  return {
    id: row.id,
    order: row.seq,
    queue: row.queue,
    workspace: row.workspace,
    target: row.target,
    key: row.key,
    priority: row.priority,
    runAt: row.run_at,
    state: row.state,
    until: row.until,
    group: row.group_id,
    index: row.position,
    parts: row.parts,
    partsLeft: row.parts_left,
    labels: JSON.parse(row.labels) as Record<string, string>,
    body: JSON.parse(row.body) as unknown,
    version: row.version,
    token: row.token,
    attempts: row.attempts,
    createdAt: row.created_at,
    startedAt: row.started_at,
    endedAt: row.ended_at,
    resultBytes: row.result_bytes,
  }
}

/** @throws bad_request, body_too_large */
export function encodeWork(work: NewWork): AddedWork {
  for (const field of ['id', 'queue', 'workspace', 'target', 'key'] as const) checkText(field, work[field])
  if (work.group !== null) checkText('group', work.group)
  if (work.idempotency) checkText('idempotency key', work.idempotency.key)
  checkTime('runAt', work.runAt)
  if (!Number.isInteger(work.priority)) {
    throw new PlatformError('bad_request', `priority must be a whole number, got ${work.priority}`)
  }
  const inputBytes = work.input?.byteLength ?? 0
  if (inputBytes > workInputBytesMax) {
    throw new PlatformError(
      'body_too_large',
      `the input is ${inputBytes} bytes, at most ${workInputBytesMax} can be stored`,
    )
  }
  return {
    id: work.id,
    queue: work.queue,
    workspace: work.workspace,
    target: work.target,
    targetMax: Math.min(work.targetMax, sqliteIntegerMax),
    key: work.key,
    keyMax: Math.min(work.keyMax, sqliteIntegerMax),
    priority: work.priority,
    runAt: Math.trunc(work.runAt),
    leaseMs: Math.min(Math.trunc(work.leaseMs), leaseMsMax),
    state: work.state,
    until: work.until,
    group: work.group,
    position: work.index,
    parts: work.parts,
    labels: encodeLabels(work.labels),
    body: encodeWorkBody(work.body),
    input: work.input,
    request: work.idempotency,
  }
}

/** @throws bad_request */
export function encodeLabels(labels: Record<string, string>): string {
  const entries = Object.entries(labels)
  if (entries.length > workLabelsMax) {
    throw new PlatformError('bad_request', `${entries.length} labels, at most ${workLabelsMax} are allowed`)
  }
  for (const [name, value] of entries) {
    checkText('label', name)
    checkText(`label ${name}`, value)
    if (Math.max(name.length, value.length) > workLabelCharactersMax) {
      throw new PlatformError(
        'bad_request',
        `label ${name.slice(0, 40)} is longer than ${workLabelCharactersMax} characters`,
      )
    }
  }
  return JSON.stringify(labels)
}

/** @throws body_too_large */
export function encodeWorkBody(body: unknown): string {
  const text = JSON.stringify(body)
  if (text.length * 3 > workBodyBytesMax && Buffer.byteLength(text) > workBodyBytesMax) {
    throw new PlatformError(
      'body_too_large',
      `the record is ${Buffer.byteLength(text)} bytes of JSON, at most ${workBodyBytesMax} can be stored`,
    )
  }
  return text
}
