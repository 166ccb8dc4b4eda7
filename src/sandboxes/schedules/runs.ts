import { PlatformError } from '../../errors.ts'
import type { Logger } from '../../lib/log.ts'
import type { Store } from '../../spec/store.ts'
import type { Sandboxes, SandboxLease } from '../index.ts'
import { type ExecutionBody, executionIndexes, type StoredExecution } from './record.ts'

/** Submits the commands of schedules, and records what came of that. */
export class ScheduleRuns {
  readonly #store: Store
  readonly #sandboxes: Sandboxes
  readonly #log: Logger
  readonly #closing: AbortSignal
  readonly #openEnv: (sandboxUid: string, sealed: string) => Record<string, string>

  constructor(options: {
    store: Store
    sandboxes: Sandboxes
    log: Logger
    closing: AbortSignal
    openEnv: (sandboxUid: string, sealed: string) => Record<string, string>
  }) {
    this.#store = options.store
    this.#sandboxes = options.sandboxes
    this.#log = options.log
    this.#closing = options.closing
    this.#openEnv = options.openEnv
  }

  /** Submits the command, as a request would, and records what came of that. */
  async submit(execution: StoredExecution): Promise<void> {
    await this.#finish(execution, await this.#outcome(execution, (lease) => this.#launch(execution, lease)))
  }

  /** After a crash: the command may have been submitted, or not. */
  async resume(execution: StoredExecution): Promise<void> {
    const { processName, executedAt } = execution.body
    const outcome = await this.#outcome(execution, async (lease) => {
      const found = lease.processes.find(processName)
      const submitted = found !== null && found.record.startedAt >= executedAt
      if (!submitted) await this.#launch(execution, lease)
    })
    await this.#finish(execution, outcome)
  }

  async #outcome(
    { workspace, body }: StoredExecution,
    work: (lease: SandboxLease) => Promise<void>,
  ): Promise<Pick<ExecutionBody, 'status' | 'statusCode' | 'error'>> {
    let reached = false
    try {
      const sandbox = await this.#sandboxes.get(workspace, body.sandbox)
      if (sandbox.body.uid !== body.sandboxUid) throw new PlatformError('not_found', 'it was deleted')
      using lease = await this.#sandboxes.acquire(workspace, body.sandbox, this.#closing)
      reached = true
      await work(lease)
      return { status: 'succeeded', statusCode: 200 }
    } catch (error) {
      // Left pending: the next start goes on.
      if (this.#closing.aborted) throw error
      const told = PlatformError.is(error) ? error : new PlatformError('internal', 'internal error')
      if (told !== error) this.#log.error('a scheduled command could not be submitted', { error })
      const why = reached ? told.message : `sandbox ${body.sandbox} is not reachable: ${told.message}`
      return { status: 'failed', statusCode: reached ? told.status : 0, error: why }
    }
  }

  async #launch({ body }: StoredExecution, lease: SandboxLease): Promise<void> {
    const { command, workingDir, sealedEnv, keepAlive } = body.command!
    await lease.processes.launch({
      command,
      name: body.processName,
      env: this.#openEnv(body.sandboxUid, sealedEnv),
      keepAlive,
      timeoutSeconds: body.timeoutSeconds,
      ...(workingDir === undefined ? {} : { workingDir }),
    })
  }

  async #finish(
    execution: StoredExecution,
    outcome: Pick<ExecutionBody, 'status' | 'statusCode' | 'error'>,
  ): Promise<void> {
    const { command: _, ...kept } = execution.body
    const body: ExecutionBody = { ...kept, ...outcome }
    try {
      await this.#store.update<ExecutionBody>(keyOf(execution), execution.version, {
        body,
        indexes: executionIndexes(body),
      })
    } catch (error) {
      // Its sandbox went meanwhile, and its history with it.
      if (!PlatformError.is(error) || error.code !== 'not_found') throw error
    }
  }
}

function keyOf({ kind, workspace, name }: StoredExecution) {
  return { kind, workspace, name }
}
