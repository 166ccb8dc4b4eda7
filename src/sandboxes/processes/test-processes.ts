import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { silentLogger } from '../../lib/log.ts'
import { FakeClock } from '../../lib/test-clock.ts'
import { SandboxProcesses } from '../processes.ts'
import { ScriptedGuest } from './test-guest.ts'

/** Processes of one sandbox, whose guest and clock do what a test says, and whose records outlive them. */
export class TestProcesses implements Disposable {
  readonly clock = new FakeClock(Date.UTC(2026, 0, 5, 12))
  guest = new ScriptedGuest(this.clock)
  /** Ports that something listens on inside. */
  readonly listening = new Set<number>()
  readonly #dir = mkdtempSync(join(tmpdir(), 'hutch-processes-'))

  get recordsFile(): string {
    return join(this.#dir, 'processes')
  }

  /** As each life of the platform has them. */
  async open(
    exited?: Promise<unknown>,
    env: Record<string, string> = {},
    endedForMemory?: (name: string) => Promise<boolean>,
  ): Promise<SandboxProcesses> {
    const processes = new SandboxProcesses({
      guest: this.guest,
      recordsFile: this.recordsFile,
      clock: this.clock,
      log: silentLogger,
      defaults: { env: { PATH: '/bin', A: '1', ...env }, workingDir: '/blaxel' },
      listening: async (port) => this.listening.has(port),
      ...(exited ? { exited } : {}),
      ...(endedForMemory ? { endedForMemory } : {}),
    })
    await processes.open()
    return processes
  }

  /** The machine died, and with it whatever ran. */
  newMachine(): ScriptedGuest {
    this.guest = new ScriptedGuest(this.clock)
    return this.guest
  }

  [Symbol.dispose](): void {
    rmSync(this.#dir, { recursive: true, force: true })
  }
}
