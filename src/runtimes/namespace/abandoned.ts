import { createHash } from 'node:crypto'
import { existsSync, lstatSync, readdirSync, realpathSync, rmSync } from 'node:fs'
import type { Clock } from '../../lib/clock.ts'
import { identify, isAlive } from '../helper-process.ts'
import { Cgroups } from './cgroups.ts'

const scratchPrefix = 'hutch-doctor-'
export const probePrefix = '.probe-'

/** Of the control groups of all instances of a directory. */
export function cgroupNameOf(instancesDir: string): string {
  return `hutch-${createHash('sha256').update(instancesDir).digest('hex').slice(0, 12)}`
}

/** How the name of a directory for probes begins: it says which process it belongs to. */
export function probeScratchPrefix(): string {
  return `${scratchPrefix}${process.pid}.${identify(process.pid)?.startTime ?? 0}-`
}

/** Takes away what processes that were killed while they probed have left in `dir`; their machines died with them. */
export async function removeAbandonedProbes(dir: string, clock: Clock): Promise<void> {
  for (const name of readdirSync(dir)) {
    const [, pid, startTime] = /^hutch-doctor-(\d+)\.(\d+)-/.exec(name) ?? []
    if (pid === undefined || isAlive({ pid: Number(pid), startTime: Number(startTime) })) continue
    const path = `${dir}/${name}`
    // The directory may be one that everybody writes to.
    const entry = lstatSync(path, { throwIfNoEntry: false })
    if (!entry?.isDirectory() || entry.uid !== process.getuid?.()) continue
    await removeProbesIn(`${path}/instances`, clock)
    rmSync(path, { recursive: true, force: true })
  }
}

async function removeProbesIn(instancesDir: string, clock: Clock): Promise<void> {
  const found = existsSync(instancesDir) ? readdirSync(instancesDir) : []
  for (const name of found.filter((entry) => entry.startsWith(probePrefix))) {
    const cgroups = new Cgroups(cgroupNameOf(realpathSync(`${instancesDir}/${name}`)), clock)
    for (const id of cgroups.list()) {
      await cgroups.find(id).kill()
      await cgroups.find(id).remove()
    }
    cgroups.close()
  }
}
