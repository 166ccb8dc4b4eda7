import { existsSync, mkdirSync, readFileSync, rmdirSync, writeFileSync } from 'node:fs'
import type { Hierarchy } from './cgroup-hosts.ts'

/** The limits of one instance, as the files of its control groups have them in either version. */

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
export const programsName = 'programs'
export const guestName = 'guest'
/**
 * Version 1 only, where memory is counted apart from processors: programs have a group of their own for it too, below that
 * of the instance, which has this much more. A program that begins where there is no memory left waits for the kernel to
 * end another; process 1 must not.
 */
export const memoryReserveMb = 64
export interface CgroupLimits {
  memoryMb: number
  pidsMax: number
}

export interface Part {
  hierarchy: Hierarchy
  dir: string
  /** Whether programs have a group of their own below. Absent: not known yet, see `hasPrograms`. */
  programs?: boolean
  /** Whether swap is counted in it. Absent: not known yet. */
  countsSwap?: boolean
}

/** Of an instance found again it is looked up, once: who was made before there were such groups has none. */
export function hasPrograms(part: Part): boolean {
  part.programs ??= existsSync(`${part.dir}/${programsName}`)
  return part.programs
}

export function dirsOf({ hierarchy, dir }: Part): string[] {
  if (countsPrograms(hierarchy)) return [`${dir}/${programsName}`, dir]
  if (!hierarchy.controllers.includes('cpu')) return [dir]
  const subgroups = hierarchy.version === 1 ? [programsName, guestName] : [programsName]
  return [...subgroups.map((name) => `${dir}/${name}`), dir]
}

/** Memory of programs apart from that of process 1; who was made before there was such a group has none. */
export function countsPrograms({ version, controllers }: Hierarchy): boolean {
  return version === 1 && controllers.includes('memory') && !controllers.includes('cpu')
}

export function setLimits(part: Part, { memoryMb, pidsMax }: CgroupLimits) {
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

/** As `limitMemory`, of what is limited already: where swap is counted too, that limit is never the smaller one. */
export function relimitMemory(dir: string, bytes: string): boolean {
  write(`${dir}/memory.memsw.limit_in_bytes`, bytes)
  const done = write(`${dir}/memory.limit_in_bytes`, bytes)
  write(`${dir}/memory.memsw.limit_in_bytes`, bytes)
  return done
}

/** In version 1 what sockets hold is not part of the limit, and would be without one. */
function limitSocketMemory(dir: string, memoryMb: number) {
  const bytes = Math.round((memoryMb * 1024 * 1024) / memoryPerSocketMemory)
  write(`${dir}/memory.kmem.tcp.limit_in_bytes`, String(bytes))
}

/** Answers whether programs have a group of their own. */
export function makeSubgroups({ hierarchy, dir }: Part): boolean {
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
export function writeQuota(part: Part, quotaUs: number | null): boolean {
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

export function cpuQuotaUs(memoryMb: number): number {
  return Math.max(cpuQuotaUsMin, Math.round((memoryMb / memoryMbPerCore) * cpuPeriodUs))
}

export function write(path: string, value: string): boolean {
  try {
    writeFileSync(path, value)
    return true
  } catch {
    return false
  }
}

export function read(path: string): string | null {
  try {
    return readFileSync(path, 'utf8')
  } catch {
    return null
  }
}

export function count(path: string): number | null {
  const text = read(path)
  const value = text === null ? Number.NaN : Number(text)
  return Number.isFinite(value) ? value : null
}
