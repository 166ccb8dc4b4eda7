import { existsSync, mkdirSync, readdirSync, readFileSync, rmdirSync, writeFileSync } from 'node:fs'
import { PlatformError } from '../../errors.ts'
import type { Clock } from '../../lib/clock.ts'
import type { CapabilityNote } from '../../spec/runtime.ts'
import { type CgroupFiles, type CgroupHost, codeOf, type Hierarchy, openCgroupHost } from './cgroup-hosts.ts'
import { type ReclaimWay, reclaimWayOf } from './reclaim.ts'

/** Memory that comes with one core. */
const memoryMbPerCore = 2048
/** Version 1 only: beside each four bytes of memory, one may lie in buffers of TCP and UDP sockets. */
const memoryPerSocketMemory = 4
const cpuPeriodUs = 100_000
const cpuQuotaUsMin = 1_000
/** Of each period, at least, for process 1 and its files workers: however busy the programs are, their owner is answered. */
const cpuGuestUsMin = 25_000
/**
 * Below an instance's own group where that limits processors: what process 1 starts, and in version 1 process 1. Side by
 * side, for what programs do inside the kernel may exceed their limit, and would use up that of a group around both.
 */
const programsName = 'programs'
const guestName = 'guest'
/**
 * Version 1 only, where memory is counted apart from processors: programs have a group of their own for it too, below that
 * of the instance, which has this much more. A program that begins where there is no memory left waits for the kernel to
 * end another; process 1 must not.
 */
const memoryReserveMb = 64
/** Kernel work that follows a kill or a freeze is done within a few of these as a rule. */
const settleStepMsMin = 1
const settleStepMsMax = 50
const settleTimeoutMs = 10_000
/** Times that a group without a kill switch is gone through for processes that were just forked. */
const killRoundsMax = 100

export interface CgroupLimits {
  memoryMb: number
  pidsMax: number
}

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

interface Part {
  hierarchy: Hierarchy
  dir: string
  /** Whether programs have a group of their own below. Absent: not known yet, see `hasPrograms`. */
  programs?: boolean
  /** Whether swap is counted in it. Absent: not known yet. */
  countsSwap?: boolean
}

/** Of an instance found again it is looked up, once: who was made before there were such groups has none. */
function hasPrograms(part: Part): boolean {
  part.programs ??= existsSync(`${part.dir}/${programsName}`)
  return part.programs
}

function dirsOf({ hierarchy, dir }: Part): string[] {
  if (countsPrograms(hierarchy)) return [`${dir}/${programsName}`, dir]
  if (!hierarchy.controllers.includes('cpu')) return [dir]
  const subgroups = hierarchy.version === 1 ? [programsName, guestName] : [programsName]
  return [...subgroups.map((name) => `${dir}/${name}`), dir]
}

/** Memory of programs apart from that of process 1; who was made before there was such a group has none. */
function countsPrograms({ version, controllers }: Hierarchy): boolean {
  return version === 1 && controllers.includes('memory') && !controllers.includes('cpu')
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

  #writeCpuQuota(quotaUs: number | null): void {
    for (const part of this.parts) {
      if (part.hierarchy.controllers.includes('cpu')) writeQuota(part, quotaUs)
    }
  }

  #isEmpty(v2Dir: string): boolean {
    return !/^populated 1$/m.test(read(`${v2Dir}/cgroup.events`) ?? '')
  }

  /** The kernel tells of these states only by files, and they take under a millisecond: short looks are cheapest. */
  async #settle(done: () => boolean, signal?: AbortSignal): Promise<boolean> {
    const deadline = this.clock.monotonic() + settleTimeoutMs
    for (let stepMs = settleStepMsMin; ; stepMs = Math.min(stepMs * 2, settleStepMsMax)) {
      if (done()) return true
      if (signal?.aborted || this.clock.monotonic() > deadline) return false
      await this.clock.sleep(stepMs, signal).catch(() => {})
    }
  }
}

function setLimits(part: Part, { memoryMb, pidsMax }: CgroupLimits) {
  const { hierarchy, dir } = part
  const { version, controllers } = hierarchy
  const memoryBytes = String(memoryMb * 1024 * 1024)
  if (countsPrograms(hierarchy)) {
    limitMemory(dir, memoryMb + memoryReserveMb)
    part.countsSwap = limitMemory(`${dir}/${programsName}`, memoryMb)
    limitSocketMemory(`${dir}/${programsName}`, memoryMb)
  }
  for (const controller of controllers) {
    if (controller === 'memory' && version === 2) {
      writeFileSync(`${dir}/memory.max`, memoryBytes)
      write(`${dir}/memory.swap.max`, '0')
    } else if (controller === 'memory') {
      if (countsPrograms(hierarchy)) continue
      limitMemory(dir, memoryMb)
      limitSocketMemory(dir, memoryMb)
    } else if (controller === 'cpu') {
      if (!writeQuota(part, cpuQuotaUs(memoryMb))) throw new Error('the processor limit cannot be set')
    } else {
      writeFileSync(`${dir}/pids.max`, String(pidsMax))
    }
  }
}

/** In version 1; answers whether swap is counted too. */
function limitMemory(dir: string, memoryMb: number): boolean {
  const memoryBytes = String(memoryMb * 1024 * 1024)
  writeFileSync(`${dir}/memory.limit_in_bytes`, memoryBytes)
  if (write(`${dir}/memory.memsw.limit_in_bytes`, memoryBytes)) return true
  // Without swap accounting the group must not swap at all.
  write(`${dir}/memory.swappiness`, '0')
  return false
}

/** In version 1 what sockets hold is not part of the limit, and would be without one. */
function limitSocketMemory(dir: string, memoryMb: number) {
  const bytes = Math.round((memoryMb * 1024 * 1024) / memoryPerSocketMemory)
  write(`${dir}/memory.kmem.tcp.limit_in_bytes`, String(bytes))
}

/** Answers whether programs have a group of their own. */
function makeSubgroups({ hierarchy, dir }: Part): boolean {
  const limitsCpu = hierarchy.controllers.includes('cpu')
  if (!limitsCpu && !countsPrograms(hierarchy)) return false
  mkdirSync(`${dir}/${programsName}`, { recursive: true, mode: 0o755 })
  if (hierarchy.version === 1) {
    if (limitsCpu) mkdirSync(`${dir}/${guestName}`, { recursive: true, mode: 0o755 })
    return true
  }
  // Threaded, so that process 1 may stay in the group above it.
  const usable =
    write(`${dir}/${programsName}/cgroup.type`, 'threaded') && write(`${dir}/cgroup.subtree_control`, '+cpu')
  // Then programs and process 1 share what the instance has.
  if (!usable) rmdirSync(`${dir}/${programsName}`)
  return usable
}

/** Null: no limit. The period is the kernel's own. */
function writeQuota(part: Part, quotaUs: number | null): boolean {
  const { dir, hierarchy } = part
  const { version } = hierarchy
  const set = (group: string, us: number | null) =>
    version === 2
      ? write(`${group}/cpu.max`, `${us ?? 'max'} ${cpuPeriodUs}`)
      : write(`${group}/cpu.cfs_quota_us`, String(us ?? -1))
  if (!hasPrograms(part)) return set(dir, quotaUs)
  const programs = set(`${dir}/${programsName}`, quotaUs)
  const guestUs = quotaUs === null ? null : Math.max(quotaUs, cpuGuestUsMin)
  return version === 2 ? programs : set(`${dir}/${guestName}`, guestUs) && programs
}

function cpuQuotaUs(memoryMb: number): number {
  return Math.max(cpuQuotaUsMin, Math.round((memoryMb / memoryMbPerCore) * cpuPeriodUs))
}

function write(path: string, value: string): boolean {
  try {
    writeFileSync(path, value)
    return true
  } catch {
    return false
  }
}

function read(path: string): string | null {
  try {
    return readFileSync(path, 'utf8')
  } catch {
    return null
  }
}

function count(path: string): number | null {
  const text = read(path)
  const value = text === null ? Number.NaN : Number(text)
  return Number.isFinite(value) ? value : null
}
