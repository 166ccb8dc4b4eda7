import type { Instance } from '../spec/runtime.ts'
import type { BatchStep } from '../spec/store.ts'
import type { Activity } from './activity.ts'
import type { InstanceOwner, NewInstance } from './record.ts'

/** `archived`: its files are packed and nothing of it runs, until it is unarchived. */
export type InstanceState =
  | 'starting'
  | 'running'
  | 'failed'
  | 'ending'
  | 'archiving'
  | 'archived'
  | 'unarchiving'

/** What is known of one instance while the platform runs. */
export interface Entry {
  readonly id: string
  readonly owner: InstanceOwner
  readonly spec: NewInstance
  readonly sealedEnv: string
  version: number
  instance: Instance | null
  /** Settles when the instance runs (again), or is given up. */
  ready: Promise<Instance>
  state: InstanceState
  /** Aborted when it is to end: cuts a pending restart short. */
  ending: AbortController
  /** Under way, or null when it has to be tried (again). */
  gone: Promise<void> | null
  readonly activity: Activity
  /** When it ended unexpectedly, by the monotonic clock. */
  exits: number[]
}

/** Writes `step` durably, in one batch with whatever the caller changes along with it. */
export type Commit = (step: BatchStep, instanceId: string) => Promise<unknown>
