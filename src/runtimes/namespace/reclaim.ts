import { existsSync, readFileSync } from 'node:fs'
import { writeFile } from 'node:fs/promises'
import type { CapabilityNote } from '../../spec/runtime.ts'
import { codeOf, type Hierarchy } from './cgroup-hosts.ts'

/** Asked of the kernel at once, so that who wakes the instance does not wait for more. */
const chunkBytes = 32 * 1024 * 1024
/** What a group of processes cannot do without; not worth asking for. */
const worthwhileBytes = 1024 * 1024

interface Group {
  hierarchy: Hierarchy
  dir: string
}

/** How memory of a group is given back on this host. */
export type ReclaimWay = 'memory.reclaim' | 'memory.force_empty'

/** Null where the kernel offers no way, or there is no group that counts memory. */
export function reclaimWayOf(hierarchies: readonly Hierarchy[]): ReclaimWay | null {
  const memory = hierarchies.find(({ controllers }) => controllers.includes('memory'))
  if (!memory) return null
  const way = memory.version === 2 ? 'memory.reclaim' : 'memory.force_empty'
  return existsSync(`${memory.dir}/${way}`) ? way : null
}

export function reclaimNote(way: ReclaimWay | null): CapabilityNote {
  const subject = 'standby memory'
  if (way === null) {
    return {
      subject,
      ok: false,
      detail: 'frozen sandboxes keep their memory: no control group counts it, or Linux is older than 5.19',
      remedy: 'Give this user the memory controller, as for the memory limit.',
    }
  }
  if (hasSwap())
    return { subject, ok: true, detail: `frozen sandboxes give their memory back (${way}, swap)` }
  const kept = 'what programs hold stays until the host has swap, best compressed in memory (zram)'
  return { subject, ok: true, detail: `frozen sandboxes give back cached files (${way}); ${kept}` }
}

/**
 * Gives memory of the group back to the host: cached files, and where there is swap what programs hold. Answers bytes.
 * Off the request loop, since the kernel does it within the write. @throws the signal's reason
 */
export async function reclaimMemory(groups: readonly Group[], signal?: AbortSignal): Promise<number> {
  const memory = groups.find(({ hierarchy }) => hierarchy.controllers.includes('memory'))
  if (!memory) return 0
  const { dir, hierarchy } = memory
  const usage = `${dir}/${hierarchy.version === 2 ? 'memory.current' : 'memory.usage_in_bytes'}`
  const before = bytesIn(usage)
  if (before < worthwhileBytes) return 0
  if (hierarchy.version === 1) await forceEmpty(dir)
  else await reclaimInChunks(dir, usage, signal)
  signal?.throwIfAborted()
  return Math.max(0, before - bytesIn(usage))
}

async function forceEmpty(dir: string): Promise<void> {
  try {
    await writeFile(`${dir}/memory.force_empty`, '0')
  } catch (error) {
    // It gave back what it could.
    if (codeOf(error) !== 'EBUSY' && codeOf(error) !== 'EINTR') throw error
  }
}

async function reclaimInChunks(dir: string, usage: string, signal?: AbortSignal): Promise<void> {
  // While it runs it must not use swap to hold more than its limit.
  const swap = `${dir}/memory.swap.max`
  const bounded = existsSync(swap)
  if (bounded) await writeFile(swap, 'max')
  try {
    for (let left = bytesIn(usage); left > worthwhileBytes; left = bytesIn(usage)) {
      signal?.throwIfAborted()
      try {
        await writeFile(`${dir}/memory.reclaim`, String(Math.min(left, chunkBytes)))
      } catch (error) {
        // Less than that was to be had.
        if (codeOf(error) === 'EAGAIN') return
        throw error
      }
    }
  } finally {
    if (bounded) await writeFile(swap, '0').catch(() => {})
  }
}

function bytesIn(path: string): number {
  const bytes = Number(readFileSync(path, 'utf8'))
  return Number.isFinite(bytes) ? bytes : 0
}

function hasSwap(): boolean {
  try {
    return readFileSync('/proc/swaps', 'utf8').trim().split('\n').length > 1
  } catch {
    return false
  }
}
