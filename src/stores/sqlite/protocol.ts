/**
 * What the store's thread and the writer's thread say to each other. Strings, numbers and bytes only, so that a message
 * is cheap to copy; times and ids are made by the store's side, which has the clock.
 */
import type { WorkRefusal, WorkStep, WorkStepResult } from './work-protocol.ts'

/** Bytes from here on are handed over between the threads where nobody else uses them: copying is less work for fewer. */
const handedOverBytesMin = 64 * 1024

/** What to hand over with a message that has these bytes in it; nothing when they are part of something larger. */
export function handedOver(bytes: Uint8Array | null): ArrayBuffer[] {
  if (bytes === null || bytes.byteLength < handedOverBytesMin) return []
  const { buffer } = bytes
  return buffer instanceof ArrayBuffer && buffer.byteLength === bytes.byteLength ? [buffer] : []
}

export type WriteStep = ResourceStep | WorkStep

export type ResourceStep =
  | {
      op: 'create'
      id: string
      kind: string
      workspace: string
      name: string
      createdAt: number
      updatedAt: number
      indexes: string
      body: string
    }
  | {
      op: 'update'
      kind: string
      workspace: string
      name: string
      expectedVersion: number
      updatedAt: number
      /** Null: unchanged. */
      indexes: string | null
      body: string
    }
  /** Null: whatever the version. */
  | { op: 'remove'; kind: string; workspace: string; name: string; expectedVersion: number | null }
  | { op: 'require'; kind: string; workspace: string; name: string }
  /** `name` is ''. */
  | { op: 'requireNone'; kind: string; workspace: string; name: string }

/** All of its steps or none. */
export type Mutation = WriteStep[]

export type StepResult = ResourceStepResult | WorkStepResult

export type ResourceStepResult =
  | { op: 'create' }
  | { op: 'update'; id: string; version: number; createdAt: number; indexes: string }
  /** Null: there was nothing to remove. */
  | { op: 'remove'; id: string | null }
  | { op: 'require' | 'requireNone' }

export type Outcome =
  | { ok: true; results: StepResult[] }
  | { ok: false; step: number; reason: 'already_exists' | 'not_found' | 'held' }
  | { ok: false; step: number; reason: 'version_mismatch'; storedVersion: number }
  | ({ ok: false; step: number } & WorkRefusal)
  /** `detail` is private: for the log. */
  | { ok: false; step: number; reason: 'disk_full' | 'failed'; detail: string }

export type ToWriter =
  /** `isAgain`: a thread before this one stopped. */
  | { type: 'open'; path: string; durability: 'power' | 'process'; isAgain: boolean }
  | { type: 'commit'; mutations: Mutation[] }
  | { type: 'close' }

/** `logPages`: how long the log is; null when it could not be opened. */
export type FromWriter =
  | { type: 'committed'; outcomes: Outcome[]; logPages: number | null }
  | { type: 'closed' }

export type ToFolder = { type: 'fold'; path: string } | { type: 'close' }

/** Of the log's pages `left` are not in the database yet. */
export type FromFolder =
  | { type: 'folded'; left: number }
  | { type: 'failed'; detail: string }
  | { type: 'closed' }
