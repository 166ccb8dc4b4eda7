import type { Clock } from '../lib/clock.ts'
import type { Logger } from '../lib/log.ts'
import type { SandboxLease, SandboxLeases } from './leases.ts'
import type { ProcessStart, SandboxProcess } from './processes.ts'
import type { StoredSandbox } from './record.ts'

const environmentBytesMax = 1024 * 1024

/** Programs that are started anew where files came back without memory. */
export class ProcessRestarts {
  readonly #leases: SandboxLeases
  readonly #clock: Clock
  readonly #log: Logger

  constructor(options: { leases: SandboxLeases; clock: Clock; log: Logger }) {
    this.#leases = options.leases
    this.#clock = options.clock
    this.#log = options.log
  }

  /** How to start again what runs. */
  async of(lease: SandboxLease, running: readonly SandboxProcess[]): Promise<ProcessStart[]> {
    const starts: ProcessStart[] = []
    for (const process of running) {
      const { intent, argv } = process.record
      // One that was asked to end is not to come back; the image's own program does with the machine.
      if (intent === null && !argv) starts.push(await this.#startOf(lease, process))
    }
    return starts
  }

  /**
   * One that cannot be started, or runs already, does not keep the others from it. One that ended by itself before the
   * machine did is over, and its client may have been told so: it is not done again.
   */
  async start(sandbox: StoredSandbox, starts: readonly ProcessStart[]): Promise<void> {
    if (starts.length === 0) return
    using lease = await this.#leases.acquire(sandbox.workspace, sandbox.name)
    for (const start of starts) {
      const before = lease.processes.find(start.name ?? '')?.record
      // It went on.
      if (before && !before.ended) continue
      if (before?.ended && (before.ended.status !== 'killed' || before.intent !== null)) continue
      try {
        await lease.processes.launch(start)
      } catch (error) {
        const { workspace, name } = sandbox
        this.#log.warn('a process of a sandbox that came back was not started again', {
          workspace,
          sandbox: name,
          process: start.name,
          error,
        })
      }
    }
  }

  async #startOf(lease: SandboxLease, { record }: SandboxProcess): Promise<ProcessStart> {
    const { command, name, workingDir, keepAlive, restartOnFailure, maxRestarts, stdin, deadlineAt } = record
    const leftSeconds = deadlineAt === null ? 0 : Math.max(1, (deadlineAt - this.#clock.now()) / 1000)
    return {
      command,
      name,
      ...(workingDir === '' ? {} : { workingDir }),
      env: record.env ?? (await ownEnvironment(lease, record.pid)),
      keepAlive,
      restartOnFailure,
      maxRestarts,
      stdin,
      ...(keepAlive ? { timeoutSeconds: leftSeconds } : {}),
    }
  }
}

/**
 * What the program was given beyond what all of its sandbox are given, which may be another where it is started again.
 * Only the sandbox's own programs could have told otherwise, of themselves.
 */
async function ownEnvironment(lease: SandboxLease, pid: number | null): Promise<Record<string, string>> {
  try {
    const { body } = await lease.instance.guest.files.read(`/proc/${pid}/environ`, {
      length: environmentBytesMax,
    })
    const entries = (await new Response(body).text()).split('\0').filter((entry) => entry.includes('='))
    const given = entries.map((entry) => entry.split(/=(.*)/s, 2) as [string, string])
    return Object.fromEntries(given.filter(([name, value]) => lease.env[name] !== value))
  } catch {
    return {}
  }
}
