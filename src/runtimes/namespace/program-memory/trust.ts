import { readdirSync, readFileSync, statSync } from 'node:fs'
import type { ProcessIdentity } from '../../../guest/index.ts'
import { link, namespacesOf, type Program, statusOf } from './programs.ts'

const capabilitySets = ['CapInh', 'CapPrm', 'CapEff', 'CapBnd', 'CapAmb']
const idsPerInstance = 65_536

/**
 * What is wrong with programs that were put back, before they go on; null: nothing. They were made from images of hostile
 * memory by a program of others, so that what holds for every program of an instance is looked at, and not believed:
 * no more power than process 1 gives, its filter, its namespaces, root and groups, and no file from outside.
 */
export function distrustOf(
  { process1, uidBase }: { process1: ProcessIdentity; uidBase: number },
  programs: readonly Program[],
): string | null {
  const world = statusOf(process1.pid)
  const most = BigInt(`0x${world.get('CapBnd') || '0'}`)
  const filters = world.get('Seccomp_filters')
  const namespaces = namespacesOf(process1.pid)
  const root = rootOf(process1.pid)
  const mounts = mountsOf(process1.pid)
  for (const { pid, pidInside } of programs) {
    const status = statusOf(pid)
    if (/^[ZX]/.test(status.get('State') ?? 'Z')) continue
    const wrong = (what: string) => `process ${pidInside} came back with ${what}`
    for (const set of capabilitySets)
      if ((BigInt(`0x${status.get(set) || 'ffffffffffffffff'}`) & ~most) !== 0n) return wrong('more power')
    const ids = `${status.get('Uid')}\t${status.get('Gid')}`.split('\t').map(Number)
    if (!ids.every((id) => id >= uidBase && id < uidBase + idsPerInstance)) return wrong('ids of others')
    if (status.get('NoNewPrivs') !== '1') return wrong('a way to more power')
    if (status.get('Seccomp') !== '2' || status.get('Seccomp_filters') !== filters)
      return wrong('another filter')
    if (namespacesOf(pid) !== namespaces) return wrong('other namespaces')
    if (rootOf(pid) !== root) return wrong('another root')
    for (const fd of readdirSync(`/proc/${pid}/fd`)) {
      const name = link(`${pid}/fd/${fd}`)
      if (!name?.startsWith('/') || name.startsWith('/memfd:')) continue
      const mount = /^mnt_id:\s*(\d+)$/m.exec(readFileSync(`/proc/${pid}/fdinfo/${fd}`, 'utf8'))?.[1]
      if (mount === undefined || !mounts.has(mount)) return wrong('a file from outside')
    }
  }
  return null
}

function rootOf(pid: number): string {
  const { dev, ino } = statSync(`/proc/${pid}/root`)
  return `${dev}:${ino}`
}

function mountsOf(pid: number): Set<string> {
  const lines = readFileSync(`/proc/${pid}/mountinfo`, 'utf8').split('\n')
  return new Set(lines.map((line) => line.split(' ', 1)[0] ?? ''))
}
