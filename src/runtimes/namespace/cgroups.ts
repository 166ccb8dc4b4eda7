import { existsSync, mkdirSync, readdirSync, rmdirSync } from 'node:fs'
import { PlatformError } from '../../errors.ts'
import type { Clock } from '../../lib/clock.ts'
import type { CapabilityNote } from '../../spec/runtime.ts'
import { type CgroupFiles, type CgroupHost, codeOf, openCgroupHost } from './cgroup-hosts.ts'
import {
  type CgroupLimits,
  count,
  countsPrograms,
  cpuQuotaUs,
  dirsOf,
  guestName,
  hasPrograms,
  makeSubgroups,
  memoryReserveMb,
  type Part,
  programsName,
  read,
  relimitMemory,
  setLimits,
  write,
  writeQuota,
} from './cgroup-limits.ts'
import { type ReclaimWay, reclaimWayOf } from './reclaim.ts'

/** On top of the limit of an instance, while others work on its programs. */
const spareMb = 64
const spareMsMax = 200
/** Kernel work that follows a kill or a freeze is done within a few of these as a rule. */
const settleStepMsMin = 1
const settleStepMsMax = 50
const settleTimeoutMs = 10_000
/** Times that a group without a kill switch is gone through for processes that were just forked. */
const killRoundsMax = 100

/** Control groups of all instances of one data directory, whatever versions this host has. */
export class Cgroups {
  readonly #host: CgroupHost

  constructor(
    name: string,
    private readonly clock: Clock,
    files?: CgroupFiles,
  ) {
    this.#host = openCgroupHost(name, files)
  }

  get notes(): CapabilityNote[] {
    return this.#host.notes
  }

  get freezes(): boolean {
    return this.#host.hierarchies.some(({ freezes }) => freezes)
  }

  /** How frozen instances give memory back; null where they cannot. */
  get reclaimWay(): ReclaimWay | null {
    return reclaimWayOf(this.#host.hierarchies)
  }

  /** How each limit is enforced, for capabilities. */
  limit(controller: 'memory' | 'cpu' | 'pids'): string {
    const hierarchy = this.#host.hierarchies.find(({ controllers }) => controllers.includes(controller))
    return hierarchy ? `cgroup v${hierarchy.version}` : 'none'
  }

  /** Makes the groups of an instance with their limits. When it throws, none is left. */
  create(id: string, limits: CgroupLimits): InstanceCgroup {
    const group = this.find(id)
    try {
      for (const part of group.parts) {
        mkdirSync(part.dir, { recursive: true, mode: 0o755 })
        part.programs = makeSubgroups(part)
        setLimits(part, limits)
      }
    } catch (error) {
      for (const dir of group.dirs) {
        try {
          rmdirSync(dir)
        } catch {}
      }
      throw new PlatformError('unavailable', `Control groups cannot be set up: ${codeOf(error)}`, {
        cause: error,
      })
    }
    return group
  }

  /** The groups of an instance, whether they exist or not. */
  find(id: string): InstanceCgroup {
    const parts = this.#host.hierarchies.map((hierarchy) => ({ hierarchy, dir: `${hierarchy.dir}/${id}` }))
    return new InstanceCgroup(parts, this.clock)
  }

  list(): string[] {
    const ids = new Set<string>()
    for (const { dir } of this.#host.hierarchies) {
      for (const entry of readdirSync(dir, { withFileTypes: true }))
        if (entry.isDirectory()) ids.add(entry.name)
    }
    return [...ids]
  }

  /** Removes the platform's own groups when no instance is left in them. */
  close(): void {
    for (const { dir } of this.#host.hierarchies) {
      try {
        rmdirSync(dir)
      } catch {}
    }
  }
}

export class InstanceCgroup {
  constructor(
    readonly parts: Part[],
    private readonly clock: Clock,
  ) {}

  /** The groups of version 1 that process 1 belongs to. */
  get v1Dirs(): string[] {
    return this.parts
      .filter(({ hierarchy }) => hierarchy.version === 1)
      .map(({ hierarchy, dir }) => (hierarchy.controllers.includes('cpu') ? `${dir}/${guestName}` : dir))
  }

  get v2Dir(): string | null {
    return this.parts.find(({ hierarchy }) => hierarchy.version === 2)?.dir ?? null
  }

  /** All directories, those of subgroups before their parents. */
  get dirs(): string[] {
    return this.parts.flatMap(dirsOf)
  }

  /** Takes the pid of what shall only use the programs' share of the processors; null where that is not limited. */
  get programsFile(): string | null {
    const part = this.parts.find(({ hierarchy }) => hierarchy.controllers.includes('cpu'))
    if (!part || !hasPrograms(part)) return null
    // In version 1 a write to cgroup.procs waits for all of the host's processors.
    const file = part.hierarchy.version === 2 ? 'cgroup.procs' : 'tasks'
    return `${part.dir}/${programsName}/${file}`
  }

  /** Beside `programsFile` where a thread may join by itself without waiting; else null. */
  get programsStatFile(): string | null {
    const file = this.programsFile
    return file?.endsWith('/tasks') ? `${file.slice(0, -'tasks'.length)}cpu.stat` : null
  }

  /** Takes the pid of what shall only use the programs' memory, or 0 from a thread itself; null where it is not apart. */
  get programsMemoryFile(): string | null {
    const part = this.#programsMemory
    return part && `${part.dir}/${programsName}/tasks`
  }

  /** How often there was none left. */
  get programsMemoryStatFile(): string | null {
    const part = this.#programsMemory
    if (part === null) return null
    const dir = `${part.dir}/${programsName}`
    part.countsSwap ??= existsSync(`${dir}/memory.memsw.failcnt`)
    // Where swap is counted too its limit is the same, and is looked at first.
    return `${dir}/${part.countsSwap ? 'memory.memsw.failcnt' : 'memory.failcnt'}`
  }

  get #programsMemory(): Part | null {
    const part = this.parts.find(({ hierarchy }) => countsPrograms(hierarchy))
    return part && hasPrograms(part) ? part : null
  }

  get freezes(): boolean {
    return this.freezerDir !== null
  }

  /** What is frozen looks the same, had it been stopped before or not. */
  get hidesStops(): boolean {
    return this.parts.some(({ hierarchy }) => hierarchy.freezes && hierarchy.version === 1)
  }

  /** Where it is frozen, with all that is below. */
  get freezerDir(): string | null {
    return this.parts.find(({ hierarchy }) => hierarchy.freezes)?.dir ?? null
  }

  /** Resolves when nothing in it runs. @throws the signal's reason when aborted, thawed again */
  async freeze(signal?: AbortSignal): Promise<void> {
    await this.#setFrozen(true, signal)
  }

  async thaw(): Promise<void> {
    await this.#setFrozen(false)
  }

  /** Whether it was told to freeze, by whomever. */
  get frozen(): boolean {
    const part = this.parts.find(({ hierarchy }) => hierarchy.freezes)
    if (!part) return false
    if (part.hierarchy.version === 2) return read(`${part.dir}/cgroup.freeze`)?.trim() === '1'
    return read(`${part.dir}/freezer.self_freezing`)?.trim() === '1'
  }

  /** Ends every process in the group, frozen or not, and waits until none is left. Idempotent. */
  async kill(): Promise<void> {
    // Thousands of processes that may only use a part of a processor take minutes to end.
    this.liftCpuLimit()
    const v2 = this.v2Dir
    if (v2 !== null && write(`${v2}/cgroup.kill`, '1')) {
      await this.#settle(() => this.#isEmpty(v2))
    }
    for (const dir of this.parts.filter(({ hierarchy }) => hierarchy.version === 1).flatMap(dirsOf)) {
      for (let round = 0; round < killRoundsMax; round++) {
        const pids = read(`${dir}/cgroup.procs`)?.split('\n').filter(Boolean) ?? []
        if (pids.length === 0) break
        for (const pid of pids) {
          try {
            process.kill(Number(pid), 'SIGKILL')
          } catch {}
        }
        write(`${dir}/freezer.state`, 'THAWED')
        await this.clock.sleep(settleStepMsMin)
      }
    }
  }

  /** Removes the groups; what is left inside must be ending. @throws unavailable when it does not end */
  async remove(): Promise<void> {
    for (const dir of this.dirs) {
      const gone = await this.#settle(() => {
        try {
          rmdirSync(dir)
          return true
        } catch (error) {
          if (codeOf(error) === 'ENOENT') return true
          if (codeOf(error) === 'EBUSY') return false
          throw error
        }
      })
      if (!gone) throw new PlatformError('unavailable', 'Processes of the instance do not end')
    }
  }

  /** Times the kernel ended a process of this group for want of memory. */
  oomKills(): number {
    let kills = 0
    for (const part of this.parts) {
      const { hierarchy } = part
      if (!hierarchy.controllers.includes('memory')) continue
      const file = hierarchy.version === 2 ? 'memory.events' : 'memory.oom_control'
      // Version 1 counts in the very group of who was ended, version 2 in all above it too.
      for (const dir of countsPrograms(hierarchy) ? dirsOf(part) : [part.dir]) {
        kills += Number(/^oom_kill (\d+)$/m.exec(read(`${dir}/${file}`) ?? '')?.[1] ?? 0)
      }
    }
    return kills
  }

  /** Null where there is no group to count in. */
  stats(): { memoryBytes: number | null; cpuMs: number | null; processes: number | null } {
    const stats = { memoryBytes: null, cpuMs: null, processes: null } as {
      memoryBytes: number | null
      cpuMs: number | null
      processes: number | null
    }
    for (const { hierarchy, dir } of this.parts) {
      const v2 = hierarchy.version === 2
      if (hierarchy.controllers.includes('memory')) {
        stats.memoryBytes = count(`${dir}/${v2 ? 'memory.current' : 'memory.usage_in_bytes'}`)
      }
      if (hierarchy.controllers.includes('pids')) stats.processes = count(`${dir}/pids.current`)
      if (v2) {
        const usage = /^usage_usec (\d+)$/m.exec(read(`${dir}/cpu.stat`) ?? '')?.[1]
        if (usage !== undefined) stats.cpuMs = Number(usage) / 1000
      } else if (hierarchy.controllers.includes('cpu')) {
        const usageNs = count(`${dir}/cpuacct.usage`)
        if (usageNs !== null) stats.cpuMs ??= usageNs / 1e6
      }
    }
    return stats
  }

  async #setFrozen(frozen: boolean, signal?: AbortSignal): Promise<void> {
    signal?.throwIfAborted()
    const part = this.parts.find(({ hierarchy }) => hierarchy.freezes)
    if (!part) throw new PlatformError('unavailable', 'Instances cannot be frozen on this host')
    const { dir, hierarchy } = part
    const done =
      hierarchy.version === 2
        ? () => new RegExp(`^frozen ${frozen ? 1 : 0}$`, 'm').test(read(`${dir}/cgroup.events`) ?? '')
        : () => read(`${dir}/freezer.state`)?.trim() === (frozen ? 'FROZEN' : 'THAWED')
    const written =
      hierarchy.version === 2
        ? write(`${dir}/cgroup.freeze`, frozen ? '1' : '0')
        : write(`${dir}/freezer.state`, frozen ? 'FROZEN' : 'THAWED')
    if (!written) throw new PlatformError('unavailable', 'The instance is gone')
    // A thawed task runs at once; only freezing has to be waited for.
    if (!frozen || (await this.#settle(done, signal))) return
    // A program that waits for a disk may take its time.
    await this.thaw()
    signal?.throwIfAborted()
    throw new PlatformError('unavailable', `The instance did not freeze within ${settleTimeoutMs} ms`)
  }

  /** Until the limit is set again, its share of busy processors still bounds it. */
  liftCpuLimit(): void {
    this.#writeCpuQuota(null)
  }

  setCpuLimit(memoryMb: number): void {
    this.#writeCpuQuota(cpuQuotaUs(memoryMb))
  }

  /**
   * With all of the processors, and more memory: for what others do to programs, which do nothing themselves meanwhile and
   * must not be ended for want of it. `memoryMb` is the limit otherwise; absent: not known, and left as it is.
   */
  async withSpare<Result>(memoryMb: number | undefined, work: () => Promise<Result>): Promise<Result> {
    if (memoryMb === undefined) return await work()
    try {
      this.#limitMemory(memoryMb + spareMb)
      this.liftCpuLimit()
      return await work()
    } finally {
      await this.endSpare(memoryMb)
    }
  }

  /** Also for who began it and was killed. */
  async endSpare(memoryMb: number): Promise<void> {
    this.setCpuLimit(memoryMb)
    // What was used meanwhile is given back in a moment. Version 1 refuses until then, version 2 would end a program for it.
    await this.#settle(
      () => this.#usedBytes2() <= memoryMb * 1024 * 1024 && this.#limitMemory(memoryMb),
      undefined,
      spareMsMax,
    )
    this.#limitMemory(memoryMb)
  }

  /** Answers whether it could be done. */
  #limitMemory(memoryMb: number): boolean {
    return this.parts
      .filter(({ hierarchy }) => hierarchy.controllers.includes('memory'))
      .every((part) => {
        const { hierarchy, dir } = part
        const bytes = (mb: number) => String(mb * 1024 * 1024)
        if (hierarchy.version === 2) return write(`${dir}/memory.max`, bytes(memoryMb))
        if (!countsPrograms(hierarchy) || !hasPrograms(part)) return relimitMemory(dir, bytes(memoryMb))
        const programs = relimitMemory(`${dir}/${programsName}`, bytes(memoryMb))
        return relimitMemory(dir, bytes(memoryMb + memoryReserveMb)) && programs
      })
  }

  /** As version 2 counts it; 0 elsewhere. */
  #usedBytes2(): number {
    const v2 = this.parts.find(
      ({ hierarchy }) => hierarchy.version === 2 && hierarchy.controllers.includes('memory'),
    )
    return v2 === undefined ? 0 : (count(`${v2.dir}/memory.current`) ?? 0)
  }

  #writeCpuQuota(quotaUs: number | null): void {
    for (const part of this.parts) {
      if (part.hierarchy.controllers.includes('cpu')) writeQuota(part, quotaUs)
    }
  }

  #isEmpty(v2Dir: string): boolean {
    return !/^populated 1$/m.test(read(`${v2Dir}/cgroup.events`) ?? '')
  }

  /** The kernel tells of these states only by files, and they take under a millisecond: short looks are cheapest. */
  async #settle(done: () => boolean, signal?: AbortSignal, msMax = settleTimeoutMs): Promise<boolean> {
    const deadline = this.clock.monotonic() + msMax
    for (let stepMs = settleStepMsMin; ; stepMs = Math.min(stepMs * 2, settleStepMsMax)) {
      if (done()) return true
      if (signal?.aborted || this.clock.monotonic() > deadline) return false
      await this.clock.sleep(stepMs, signal).catch(() => {})
    }
  }
}
