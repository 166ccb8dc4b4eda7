import type { InstanceHandle, InstanceSpec } from '../spec/runtime.ts'
import type { Resource, Store } from '../spec/store.ts'
import { everyItem } from '../spec/store.ts'
import type { Entry } from './entry.ts'

/** Whose machine it is. */
export interface InstanceOwner {
  /** 'sandbox', 'revision', 'build', 'task' */
  kind: string
  workspace: string
  name: string
  /** Of the kind 'revision': which one, and of what kind of deployment `name` is. */
  revision?: { id: string; kind: string }
  /** Of the kind 'task': of which execution of the job `name`. */
  task?: { revisionId: string; executionId: string; index: number; labels: Record<string, string> }
}

/** What to start; `env` rests sealed. */
export type NewInstance = Omit<InstanceSpec, 'id' | 'signal'> & {
  /** The image's own program, started in each life of the machine. */
  program?: string[]
  /** Whoever else everything is run as. */
  programAsRoot?: true
  /** That the program listens on once it can be used. */
  programPort?: number
  /** Its files are worth nothing without what runs: once it ended, also with this host, it is not started again. */
  ephemeral?: boolean
  /** Whom programs and file operations are run as; absent: root. */
  user?: string
}

/**
 * The durable record of an instance, written once it runs: what a crash leaves behind before that is known by having
 * none. `creating` is of databases of before; `destroying` is written before anything is taken away.
 */
export type InstanceRecord =
  | { state: 'creating'; owner: InstanceOwner }
  | {
      state: 'running'
      owner: InstanceOwner
      handle: InstanceHandle
      spec: Omit<NewInstance, 'env'>
      env: string
    }
  | {
      /** What is under way, and `archived`: files packed, nothing runs. */
      state: 'archiving' | 'archived' | 'unarchiving'
      owner: InstanceOwner
      spec: Omit<NewInstance, 'env'>
      env: string
    }
  | { state: 'destroying'; owner: InstanceOwner }

const launchTimeoutMsMax = 60_000
const instanceKind = 'instance'

export function instanceKey(owner: InstanceOwner, id: string) {
  return { kind: instanceKind, workspace: owner.workspace, name: id }
}

/** As a runtime is asked for it; whoever asks waits no longer than `launchTimeoutMsMax`. */
export function runtimeSpec(id: string, spec: NewInstance): InstanceSpec {
  return { ...spec, id, signal: AbortSignal.timeout(launchTimeoutMsMax) }
}

export function runningRecord(
  { owner, spec: { env: _, ...spec }, sealedEnv }: Pick<Entry, 'owner' | 'spec' | 'sealedEnv'>,
  handle: InstanceHandle,
): InstanceRecord {
  return { state: 'running', owner, handle, spec, env: sealedEnv }
}

export function everyInstanceRecord(store: Store): AsyncIterable<Resource<InstanceRecord>> {
  return everyItem((page) =>
    store.page<InstanceRecord>({ kind: instanceKind, sort: 'createdAt:asc', ...page }),
  )
}
