import { randomText } from '../../lib/ids.ts'
import type { SandboxProcess } from './process.ts'

/** The processes that are known of one sandbox, by what they are asked for. */
export class ProcessTable {
  /** In order of start. */
  private readonly byId = new Map<number, SandboxProcess>()
  private readonly byName = new Map<string, SandboxProcess>()
  private readonly byRun = new Map<number, SandboxProcess>()

  /** Oldest first. */
  every(): SandboxProcess[] {
    return [...this.byId.values()]
  }

  has(process: SandboxProcess): boolean {
    return this.byId.get(process.id) === process
  }

  /** The newest of this name. */
  named(name: string): SandboxProcess | undefined {
    return this.byName.get(name)
  }

  /** Whose run the guest knows by this id. */
  ofRun(id: number): SandboxProcess | undefined {
    return this.byRun.get(id)
  }

  /** The newest process of this name, or the one with this pid when `identifier` is all digits. */
  find(identifier: string): SandboxProcess | null {
    if (/^\d+$/.test(identifier)) {
      const pid = Number(identifier)
      let found: SandboxProcess | null = null
      for (const process of this.byId.values()) if (process.pid === pid) found = process
      if (found) return found
    }
    return this.byName.get(identifier) ?? null
  }

  add(process: SandboxProcess): void {
    this.byId.set(process.id, process)
    this.byName.set(process.name, process)
    for (const run of process.record.runs) this.byRun.set(run.id, process)
  }

  /** Takes back `add`: `before`, which had the name, has it again. */
  takeBack(process: SandboxProcess, before: SandboxProcess | undefined): void {
    this.remove(process)
    if (before && this.has(before) && !this.byName.has(process.name)) this.byName.set(process.name, before)
  }

  remove(process: SandboxProcess): void {
    this.byId.delete(process.id)
    if (this.byName.get(process.name) === process) this.byName.delete(process.name)
    for (const run of process.record.runs) this.byRun.delete(run.id)
  }

  addRun(id: number, process: SandboxProcess): void {
    this.byRun.set(id, process)
  }

  removeRun(id: number): void {
    this.byRun.delete(id)
  }

  freeName(): string {
    for (;;) {
      const name = `proc-${randomText(8)}`
      if (!this.byName.has(name)) return name
    }
  }
}
