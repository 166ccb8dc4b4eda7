export type ProcessStatus = 'running' | 'completed' | 'failed' | 'killed' | 'stopped'

/** A request to start a process. */
export interface ProcessStart {
  /** For the sandbox's shell. */
  command: string
  /** Unique among what runs; default `proc-` and eight characters. */
  name?: string
  /** Relative to the sandbox's own; default: that. */
  workingDir?: string
  /** The program itself with its arguments, instead of a command for the shell. */
  argv?: string[]
  /** On top of the sandbox's. */
  env?: Record<string, string>
  waitForCompletion?: boolean
  /** Bounds the wait; with `keepAlive` the life (default 600, 0: no bound). */
  timeoutSeconds?: number
  waitForPorts?: number[]
  restartOnFailure?: boolean
  /** 0: none. Negative: no bound. */
  maxRestarts?: number
  keepAlive?: boolean
  /** Keep stdin open for `writeStdin`; otherwise it is at its end. */
  stdin?: boolean
}

/** A process as the sandbox API shows it. */
export interface ProcessView {
  pid: string
  name: string
  command: string
  status: ProcessStatus
  startedAt: string
  /** '' while it runs. */
  completedAt: string
  /** 0 while it runs, -1 when a signal ended it. */
  exitCode: number
  workingDir: string
  /** Null in the answer to a start that did not wait. */
  logs: string | null
  stdout: string
  stderr: string
  restartOnFailure: boolean
  maxRestarts: number
  restartCount: number
  keepAlive: boolean
  stdin: boolean
  /** The number of the signal that ended it. */
  signal?: number
  /** The kernel ended it, or a program of it, for want of memory. */
  outOfMemory?: true
}
