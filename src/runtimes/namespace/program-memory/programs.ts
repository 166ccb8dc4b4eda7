import { readdirSync, readFileSync, readlinkSync, statSync } from 'node:fs'
import { readFile } from 'node:fs/promises'
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
/** Of all programs: beyond that it would take too long. */
const threadsMax = 4096
const descriptorsMax = 32_768
const mappingsMax = 131_072
/** What process 1 waits for requests and output by: epoll_wait and epoll_pwait, on either architecture. */
const restCalls = process.arch === 'x64' ? ['232', '281'] : ['22']
/** What process 1 calls itself, and so its workers are called. */
const guestName = 'hutch-guest'

/**
 * Whatever is below process 1 but its own workers, which are forks of it. What ended and was not asked after yet by a
 * program is there too, for it has its pid still.
 */
export function programsOf(guest: ProcessIdentity): Program[] {
  const own = executable(guest.pid)
  const programs: Program[] = []
  for (const pid of descendants(guest.pid)) {
    if (pid === guest.pid) continue
    const status = statusOf(pid)
    const ended = /^[ZX]/.test(status.get('State') ?? 'X')
    const parent = Number(status.get('PPid'))
    const identity = ended && parent !== guest.pid ? { pid, startTime: 0 } : identify(pid)
    if (identity === null || isWorker(pid, own, status)) continue
    const inside = status.get('NSpid')?.split('\t').at(-1)
    if (inside === undefined) continue
    programs.push({
      ...identity,
      parent,
      pidInside: Number(inside),
      stopped: status.get('State')?.startsWith('T') ?? false,
    })
  }
  return programs
}

/**
 * A fork of process 1. Its memory was made by the host's root, so that its descriptors in /proc are that one's, which nothing
 * that was executed inside can have: the same executable is there for programs too, and a name is what one likes.
 */
function isWorker(pid: number, own: string | null, status: Map<string, string>): boolean {
  if (status.get('Name') !== guestName || executable(pid) !== own) return false
  try {
    return statSync(`/proc/${pid}/fd`).uid === 0
  } catch {
    return false
  }
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

/** It has nothing in hand. Of a process that is frozen. */
export function isAtRest({ pid }: ProcessIdentity): boolean {
  const [call] = (text(`${pid}/syscall`) ?? '').split(' ', 1)
  return call !== undefined && restCalls.includes(call)
}

/** Why CRIU cannot even look at them; null: it can. */
export function unfitnessOf(programs: readonly Program[]): string | null {
  let threads = 0
  for (const { pid, pidInside } of programs) {
    const tasks = list(`${pid}/task`)
    threads += tasks.length
    if (threads > threadsMax) return `its programs have more than ${threadsMax} threads`
    if (tasks.some((task) => (statusOf(`${pid}/task/${task}`).get('TracerPid') ?? '0') !== '0'))
      return `process ${pidInside} is traced by another`
  }
  return null
}

/**
 * What keeps programs from being put back elsewhere as they are; null when nothing is known of. `streams`: pipes to
 * process 1, which are made anew there.
 */
export async function obstacleOf(
  guest: ProcessIdentity,
  trees: readonly Program[][],
  streams: ReadonlySet<string>,
): Promise<string | null> {
  const filters = statusOf(guest.pid).get('Seccomp_filters')
  const world = namespacesOf(guest.pid)
  const personality = text(`${guest.pid}/personality`)
  const ofProcess1 = new Set(
    descriptorsOf(guest.pid, list(`${guest.pid}/fd`)).filter((name) => name.startsWith('pipe:')),
  )
  const owners = new Map<string, number>()
  let descriptors = 0
  let mappings = 0
  for (const [tree, programs] of trees.entries()) {
    for (const { pid, pidInside } of programs) {
      // One that ended, and that nobody has asked after yet, has nothing any more.
      if (/^[ZX]/.test(statusOf(pid).get('State') ?? 'Z')) continue
      if (text(`${pid}/personality`) !== personality)
        return `process ${pidInside} has a personality of its own`
      if (namespacesOf(pid) !== world) return `process ${pidInside} has a namespace of its own`
      for (const thread of list(`${pid}/task`)) {
        if (statusOf(`${pid}/task/${thread}`).get('Seccomp_filters') !== filters)
          return `process ${pidInside} has a system call filter of its own`
      }
      const fds = list(`${pid}/fd`)
      descriptors += fds.length
      if (descriptors > descriptorsMax) return `its programs have more than ${descriptorsMax} files open`
      const maps = (await readFile(`/proc/${pid}/maps`, 'utf8').catch(() => '')).split('\n')
      mappings += maps.length
      if (mappings > mappingsMax) return `its programs have more than ${mappingsMax} pieces of memory`
      for (const shared of [...descriptorsOf(pid, fds), ...sharedMappings(maps)]) {
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

export function namespacesOf(pid: number): string {
  const names = ['user', 'mnt', 'pid', 'net', 'ipc', 'uts', 'cgroup', 'time']
  return names.map((name) => link(`${pid}/ns/${name}`)).join()
}

/** `pipe:[inode]` and the like, of what may be shared; regular files are not told apart. */
function descriptorsOf(pid: number, fds: readonly string[]): string[] {
  const names: string[] = []
  for (const fd of fds) {
    const name = link(`${pid}/fd/${fd}`)
    if (name !== null && /^(pipe|socket):\[\d+\]$/.test(name)) names.push(name)
    else if (name?.startsWith('/memfd:')) names.push(`memory:${inode(`${pid}/fd/${fd}`)}`)
  }
  return names
}

function sharedMappings(maps: readonly string[]): string[] {
  const names: string[] = []
  for (const line of maps) {
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
