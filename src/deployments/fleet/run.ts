import type { Instance } from '../../spec/runtime.ts'
import type { ServedKind } from '../kinds.ts'

/** A revision as it is to be run. */
export interface RevisionRun {
  /** Of the revision. */
  id: string
  workspace: string
  kind: ServedKind
  /** Of the deployment. */
  name: string
  labels: Record<string, string>
  image: string
  /** Decrypted, in precedence order already; HOST, PORT and BL_* come on top. */
  env: Record<string, string>
  memoryMb: number
  port: number
  /** Kept up, and awake. */
  minScale: number
  maxScale: number
  /** Of functions: how it speaks. */
  transport?: 'http-stream' | 'websocket' | 'stdio'
}

/** What an instance of a revision runs, complete. */
export interface RevisionProgram {
  argv: string[]
  env: Record<string, string>
  workingDir: string
}

/** An instance in use, for one request or connection: awake, and not to go, until disposed. */
export interface RevisionLease extends Disposable {
  readonly instance: Instance
  readonly port: number
  /** With `stdio` nobody started it: its sessions do, with process ids from `sessionProcessIdMin` on. */
  readonly program: RevisionProgram
  /** Resolves once the instance ended by itself and nobody gets it any more; absent: that is not told. */
  readonly ended?: Promise<unknown>
  /** From now on it stands for a connection that stays open, and counts while something is said on it. */
  asConnection(): { touch(): void }
}

/** Ids of processes below are the fleet's. */
export const sessionProcessIdMin = 1000

export interface AcquireOptions {
  /** This instance and no other. */
  instanceId?: string
  /** An instance that it says no to has no place for this caller. */
  fits?: (instanceId: string) => boolean
}

export interface FleetHealth {
  /** Those that can be used or will be soon. */
  instances: number
  /** Those of them that rest. */
  standby: number
  /** One after the other without one that held. */
  crashes: number
  lastError: string | null
}

/** How people and logs call what runs. */
export function titleOf({ kind, name }: Pick<RevisionRun, 'kind' | 'name'>): string {
  return `the ${kind} "${name}"`
}
