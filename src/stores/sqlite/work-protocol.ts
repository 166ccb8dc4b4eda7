import type { InputRoom } from '../../spec/queue.ts'

/** What the store's thread asks of the writer's about work, and how work lies in its table. */

export interface WorkRow {
  seq: number
  id: string
  queue: string
  workspace: string
  target: string
  key: string
  key_id: number | null
  priority: number
  run_at: number
  state: string
  ready: number
  lease_ms: number
  until: number | null
  group_id: string | null
  position: number | null
  parts: number | null
  parts_left: number | null
  /** JSON. */
  labels: string
  /** JSON. */
  body: string
  version: number
  token: number
  attempts: number
  created_at: number
  started_at: number | null
  ended_at: number | null
  result_bytes: number
}

export interface AddedWork {
  id: string
  queue: string
  workspace: string
  target: string
  targetMax: number
  key: string
  keyMax: number
  priority: number
  runAt: number
  leaseMs: number
  state: 'waiting' | 'held'
  until: number | null
  group: string | null
  position: number | null
  parts: number | null
  labels: string
  body: string
  input: Uint8Array | null
  request: { key: string; digest: string; expiresAt: number } | null
}

/** Absent: unchanged. */
export interface ChangedColumns {
  state?: string
  body?: string
  labels?: string
  runAt?: number
  until?: number | null
  attempts?: number
}

export type WorkStep =
  /** `isGiven`: its input may be taken instead of copied. */
  | { op: 'work-add'; now: number; work: AddedWork; isGiven: boolean }
  | { op: 'work-claim'; now: number; queue: string; limit: number; room: InputRoom }
  | {
      op: 'work-change'
      now: number
      id: string
      expect: { token?: number; version?: number; states?: readonly string[] }
      set: ChangedColumns
      result: Uint8Array | null
      follow: AddedWork[]
    }
  | { op: 'work-release'; now: number; queue: string }
  | { op: 'work-limit'; queue: string; workspace: string; target: string; key: string; max: number }
  | { op: 'work-prune'; now: number; endedBefore: number; keptMax: number; limit: number }
  | { op: 'work-remove'; id: string }
  | { op: 'work-remove-some'; workspace: string; limit: number }

export type WorkStepResult =
  | { op: 'work-add'; row: WorkRow; existing: boolean }
  | { op: 'work-claim'; claimed: { row: WorkRow; input: Uint8Array | null }[] }
  | {
      op: 'work-change'
      /** Null: what was expected did not hold. */
      changed: {
        row: WorkRow
        previousState: string
        groupPartsLeft: number | null
        followed: WorkRow[]
      } | null
    }
  | { op: 'work-release'; count: number }
  | { op: 'work-limit' }
  | { op: 'work-prune'; removed: RemovedWork[]; expiredRequests: number }
  | { op: 'work-remove'; removed: RemovedWork[] }
  | { op: 'work-remove-some'; removed: RemovedWork[] }

export interface RemovedWork {
  queue: string
  state: string
}

export type WorkRefusal = { reason: 'work_exists' | 'other_request'; name: string }
