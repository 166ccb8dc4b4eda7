import { readdirSync, readFileSync } from 'node:fs'

const processesMax = 65_536
const pageBytes = 4096
/** USER_HZ: what /proc counts processor time in, on every Linux that there is a Bun for. */
const ticksPerSecond = 100

/** A process and all below it, itself first. */
export function descendants(root: number): number[] {
  const found = [root]
  for (let at = 0; at < found.length && found.length < processesMax; at++) {
    try {
      for (const task of readdirSync(`/proc/${found[at]}/task`)) {
        const children = readFileSync(`/proc/${found[at]}/task/${task}/children`, 'utf8')
        for (const pid of children.split(' ')) if (pid !== '') found.push(Number(pid))
      }
    } catch {
      // Ended while we looked.
    }
  }
  return found
}

/** What a process and all below it use now, counted without control groups. Shared memory counts for each. */
export function treeStats(root: number): { memoryBytes: number; cpuMs: number; processes: number } {
  const pids = descendants(root)
  let memoryBytes = 0
  let ticks = 0
  for (const pid of pids) {
    try {
      const stat = readFileSync(`/proc/${pid}/stat`, 'utf8')
      const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ')
      ticks += Number(fields[11]) + Number(fields[12])
      memoryBytes += Number(fields[21]) * pageBytes
    } catch {}
  }
  return { memoryBytes, cpuMs: (ticks * 1000) / ticksPerSecond, processes: pids.length }
}
