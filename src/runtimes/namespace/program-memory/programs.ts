import { readdirSync, readFileSync, readlinkSync, statSync } from 'node:fs'
import type { ProcessIdentity } from '../../../guest/index.ts'
import { identify, isAlive } from '../../helper-process.ts'
import { descendants } from '../../process-tree.ts'

/** A program inside, seen from the host. */
export interface Program extends ProcessIdentity {
  parent: number
  /** Its pid inside. */
  pidInside: number
  /** Had been stopped by a signal. */
  stopped: boolean
}

const watchedDirsMax = 16
const descriptorsMax = 1_048_576
/** What process 1 calls itself, and so its workers are called. */
const guestName = 'hutch-guest'

/** Whatever runs below process 1 but its own workers, which are forks of it. */
export function programsOf(guest: ProcessIdentity): Program[] {
  const own = executable(guest.pid)
  const programs: Program[] = []
  for (const pid of descendants(guest.pid)) {
    if (pid === guest.pid) continue
    const identity = identify(pid)
    if (identity === null) continue
    const status = statusOf(pid)
    if (executable(pid) === own && status.get('Name') === guestName) continue
    const inside = status.get('NSpid')?.split('\t').at(-1)
    if (inside === undefined) continue
    programs.push({
      ...identity,
      parent: Number(status.get('PPid')),
      pidInside: Number(inside),
      stopped: status.get('State')?.startsWith('T') ?? false,
    })
  }
  return programs
}

/** Every thread of them is stopped by a signal, or has ended. */
export function allStopped(programs: readonly Program[]): boolean {
  return programs.every((program) => {
    if (!isAlive(program)) return true
    try {
      return readdirSync(`/proc/${program.pid}/task`).every((thread) =>
        /^[TtZX]/.test(statusOf(`${program.pid}/task/${thread}`).get('State') ?? 'Z'),
      )
    } catch {
      return true
    }
  })
}

/** Of their threads, groups and sessions too, by the numbers that they have inside. */
export function highestPid(programs: readonly Program[]): number {
  let highest = 0
  for (const { pid } of programs) {
    for (const thread of list(`${pid}/task`)) {
      const status = statusOf(`${pid}/task/${thread}`)
      for (const name of ['NSpid', 'NSpgid', 'NSsid'])
        highest = Math.max(highest, Number(status.get(name)?.split('\t').at(-1) ?? 0))
    }
  }
  return highest
}

/** What they started goes on before them: to a shell, its job never stopped. */
export function letGoOn(programs: readonly ProcessIdentity[]): void {
  signalAll(programs.toReversed(), 'SIGCONT')
}

/** In a call that nothing interrupts. */
export function isWaiting(pid: number): boolean {
  return statusOf(pid).get('State')?.startsWith('D') ?? false
}

/** Also of those that are gone meanwhile, whose number may be another's. */
export function signalAll(programs: readonly ProcessIdentity[], signal: NodeJS.Signals): void {
  for (const program of programs) {
    if (!isAlive(program)) continue
    try {
      process.kill(program.pid, signal)
    } catch {
      // It ended in this moment.
    }
  }
}

/**
 * What keeps programs from being put back elsewhere as they are; null when nothing is known of. `streams`: pipes to
 * process 1, which are made anew there.
 */
export function obstacleOf(
  guest: ProcessIdentity,
  trees: readonly Program[][],
  streams: ReadonlySet<string>,
): string | null {
  const filters = statusOf(guest.pid).get('Seccomp_filters')
  const world = namespacesOf(guest.pid)
  const ofProcess1 = new Set(descriptorsOf(guest.pid).filter((name) => name.startsWith('pipe:')))
  const owners = new Map<string, number>()
  for (const [tree, programs] of trees.entries()) {
    for (const { pid, pidInside } of programs) {
      // One that ended, and that nobody has asked after yet, has nothing any more.
      if (/^[ZX]/.test(statusOf(pid).get('State') ?? 'Z')) continue
      if (namespacesOf(pid) !== world) return `process ${pidInside} has a namespace of its own`
      for (const thread of list(`${pid}/task`)) {
        if (statusOf(`${pid}/task/${thread}`).get('Seccomp_filters') !== filters)
          return `process ${pidInside} has a system call filter of its own`
      }
      for (const shared of [...descriptorsOf(pid), ...sharedMappings(pid)]) {
        if (streams.has(shared)) continue
        if (ofProcess1.has(shared)) return `process ${pidInside} writes for a process that was forgotten`
        const owner = owners.get(shared) ?? tree
        if (owner !== tree)
          return `process ${pidInside} shares a ${shared.replace(/:.*/, '')} with one that was started apart from it`
        owners.set(shared, owner)
      }
    }
  }
  return null
}

/** Where those stand that watch files: what they watch is looked for there, by its number alone is nothing found. */
export function watchedDirs(trees: readonly Program[][]): string[] {
  const dirs = new Set<string>()
  for (const { pid } of trees.flat()) {
    const watches = list(`${pid}/fd`).some((fd) => link(`${pid}/fd/${fd}`) === 'anon_inode:inotify')
    const dir = watches ? link(`${pid}/cwd`) : null
    if (dir?.startsWith('/') && dir !== '/' && !dir.includes(' (deleted)')) dirs.add(dir)
  }
  return [...dirs].slice(0, watchedDirsMax)
}

function namespacesOf(pid: number): string {
  const names = ['user', 'mnt', 'pid', 'net', 'ipc', 'uts', 'cgroup', 'time']
  return names.map((name) => link(`${pid}/ns/${name}`)).join()
}

/** `pipe:[inode]` and the like, of what may be shared; regular files are not told apart. */
function descriptorsOf(pid: number): string[] {
  const names: string[] = []
  for (const fd of list(`${pid}/fd`).slice(0, descriptorsMax)) {
    const name = link(`${pid}/fd/${fd}`)
    if (name !== null && /^(pipe|socket):\[\d+\]$/.test(name)) names.push(name)
    else if (name?.startsWith('/memfd:')) names.push(`memory:${inode(`${pid}/fd/${fd}`)}`)
  }
  return names
}

function sharedMappings(pid: number): string[] {
  const names: string[] = []
  for (const line of (text(`${pid}/maps`) ?? '').split('\n')) {
    // Memory that no file of the disk stands for.
    const found = /^\S+ ...s \S+ \S+ (\d+) +(?:\/dev\/zero|\/memfd:|\/SYSV|\/dev\/shm\/)/.exec(line)
    if (found) names.push(`memory:${found[1]}`)
  }
  return names
}

export function statusOf(pid: number | string): Map<string, string> {
  const entries = (text(`${pid}/status`) ?? '').split('\n').map((line) => {
    const at = line.indexOf(':')
    return [line.slice(0, at), line.slice(at + 1).trim()] as const
  })
  return new Map(entries)
}

/** What a descriptor of process 1 leads to. */
export function link(path: string): string | null {
  try {
    return readlinkSync(`/proc/${path}`)
  } catch {
    return null
  }
}

function executable(pid: number): string | null {
  try {
    const { dev, ino } = statSync(`/proc/${pid}/exe`)
    return `${dev}:${ino}`
  } catch {
    return null
  }
}

function inode(path: string): number {
  try {
    return statSync(`/proc/${path}`).ino
  } catch {
    return 0
  }
}

function list(path: string): string[] {
  try {
    return readdirSync(`/proc/${path}`)
  } catch {
    return []
  }
}

function text(path: string): string | null {
  try {
    return readFileSync(`/proc/${path}`, 'utf8')
  } catch {
    return null
  }
}
