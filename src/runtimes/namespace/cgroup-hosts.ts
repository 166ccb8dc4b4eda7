import { existsSync, mkdirSync, readFileSync, rmdirSync, writeFileSync } from 'node:fs'
import type { CapabilityNote } from '../../spec/runtime.ts'

export type Controller = 'memory' | 'cpu' | 'pids'
const controllers: readonly Controller[] = ['memory', 'cpu', 'pids']

/** One hierarchy that instances get a group in: `dir` is the platform's own group, parent of the instances'. */
export interface Hierarchy {
  version: 1 | 2
  dir: string
  controllers: Controller[]
  /** Processes of an instance can be frozen through it. */
  freezes: boolean
}

export interface CgroupHost {
  layout: 'v2' | 'hybrid' | 'v1' | 'none'
  hierarchies: Hierarchy[]
  notes: CapabilityNote[]
}

export interface CgroupFiles {
  mountinfo: string
  own: string
}

interface Mount {
  version: 1 | 2
  path: string
  root: string
  options: string[]
}

/** Processes are counted by the kernel for the user then, which is a limit, too. */
function withoutLimit(missing: string[]): string {
  const none = missing.filter((controller) => controller !== 'pids')
  const pids = missing.length > none.length ? ['processes only limited by rlimit'] : []
  return [...(none.length > 0 ? [`no limit for ${none.join(', ')}`] : []), ...pids].join('; ')
}

/** Finds out by doing what this process may do with control groups; makes the group `name` where it may. */
export function openCgroupHost(name: string, files: CgroupFiles = readCgroupFiles()): CgroupHost {
  const mounts = parseMounts(files.mountinfo)
  const own = parseOwn(files.own)
  const notes: CapabilityNote[] = []
  const hierarchies: Hierarchy[] = []
  const failures: string[] = []
  const v1Controllers = new Set<string>(
    mounts.flatMap(({ version, options }) => (version === 1 ? options : [])),
  )

  const v2 = mounts.find(({ version }) => version === 2)
  if (v2) {
    const wanted = controllers.filter((controller) => !v1Controllers.has(controller))
    const found = openV2(v2, own.get('') ?? '/', name, wanted, failures)
    if (found) hierarchies.push(found)
  }
  const freezes = hierarchies.some((hierarchy) => hierarchy.freezes)
  for (const mount of mounts) {
    if (mount.version !== 1) continue
    const useful = controllers.filter((controller) => mount.options.includes(controller))
    const freezer = !freezes && mount.options.includes('freezer')
    if (useful.length === 0 && !freezer) continue
    const found = openV1(mount, own, name, useful, freezer, failures)
    if (found) hierarchies.push(found)
  }

  const limited = hierarchies.flatMap((hierarchy) => hierarchy.controllers)
  const missing = controllers.filter((controller) => !limited.includes(controller))
  const layout = hierarchies.length === 0 ? 'none' : v2 ? (v1Controllers.size > 0 ? 'hybrid' : 'v2') : 'v1'
  notes.push(
    missing.length === 0
      ? { subject: 'cgroup', ok: true, detail: `${layout}: memory, cpu and process limits` }
      : {
          subject: 'cgroup',
          ok: false,
          detail: `${withoutLimit(missing)}${failures.length > 0 ? ` (${failures.join('; ')})` : ''}`,
          remedy:
            process.getuid?.() === 0
              ? 'Run under a systemd unit with Delegate=yes, or where /sys/fs/cgroup is writable.'
              : 'Run as root, or with: systemd-run --user --scope -p Delegate=yes hutch up',
        },
  )
  return { layout, hierarchies, notes }
}

function readCgroupFiles(): CgroupFiles {
  return {
    mountinfo: readFileSync('/proc/self/mountinfo', 'utf8'),
    own: readFileSync('/proc/self/cgroup', 'utf8'),
  }
}

function parseMounts(mountinfo: string): Mount[] {
  const mounts: Mount[] = []
  for (const line of mountinfo.split('\n')) {
    const [left, right] = line.split(' - ')
    const [, , , root, path] = left?.split(' ') ?? []
    const [type, , options] = right?.split(' ') ?? []
    if (!root || !path || (type !== 'cgroup' && type !== 'cgroup2')) continue
    mounts.push({
      version: type === 'cgroup2' ? 2 : 1,
      path: path.replaceAll('\\040', ' '),
      root,
      options: options?.split(',') ?? [],
    })
  }
  return mounts
}

/** Own group by controller, by '' in the v2 hierarchy. */
function parseOwn(own: string): Map<string, string> {
  const groups = new Map<string, string>()
  for (const line of own.split('\n')) {
    const [, names, ...path] = line.split(':')
    if (names === undefined) continue
    for (const name of names.split(',')) groups.set(name, path.join(':'))
  }
  return groups
}

/** Own group and its ancestors, as directories of the mount, nearest first. */
function ancestors(mount: Mount, group: string): string[] {
  const inside = mount.root !== '/' && group.startsWith(mount.root) ? group.slice(mount.root.length) : group
  const names = inside.split('/').filter((name) => name !== '' && name !== '..')
  const paths: string[] = []
  for (let count = names.length; count >= 0; count--)
    paths.push([mount.path, ...names.slice(0, count)].join('/'))
  return paths.filter((path) => existsSync(path))
}

function openV2(
  mount: Mount,
  group: string,
  name: string,
  wanted: Controller[],
  failures: string[],
): Hierarchy | null {
  const candidates = ancestors(mount, group)
  for (const [index, parent] of candidates.entries()) {
    try {
      const has = words(`${parent}/cgroup.controllers`)
      // A group without the controllers is of no use while an ancestor may have them.
      if (!wanted.every((controller) => has.includes(controller)) && index < candidates.length - 1) continue
      const usable = wanted.filter((controller) => has.includes(controller))
      enable(parent, usable, index === 0)
      const dir = `${parent}/${name}`
      mkdirSync(dir, { recursive: true, mode: 0o755 })
      enable(dir, usable, false)
      const probe = `${dir}/probe`
      mkdirSync(probe, { recursive: true, mode: 0o755 })
      const freezes = existsSync(`${probe}/cgroup.freeze`)
      rmdirSync(probe)
      return { version: 2, dir, controllers: usable, freezes }
    } catch (error) {
      failures.push(`${parent}: ${codeOf(error)}`)
    }
  }
  return null
}

function openV1(
  mount: Mount,
  own: Map<string, string>,
  name: string,
  useful: Controller[],
  freezer: boolean,
  failures: string[],
): Hierarchy | null {
  const group = own.get(useful[0] ?? 'freezer') ?? '/'
  for (const parent of ancestors(mount, group)) {
    try {
      const dir = `${parent}/${name}`
      mkdirSync(`${dir}/probe`, { recursive: true, mode: 0o755 })
      rmdirSync(`${dir}/probe`)
      return { version: 1, dir, controllers: useful, freezes: freezer }
    } catch (error) {
      failures.push(`${parent}: ${codeOf(error)}`)
    }
  }
  return null
}

/** Lets groups below `dir` use the controllers. */
function enable(dir: string, wanted: Controller[], own: boolean) {
  const enabled = words(`${dir}/cgroup.subtree_control`)
  const missing = wanted.filter((controller) => !enabled.includes(controller))
  if (missing.length === 0) return
  const value = missing.map((controller) => `+${controller}`).join(' ')
  try {
    writeFileSync(`${dir}/cgroup.subtree_control`, value)
  } catch (error) {
    // A group with processes of its own cannot pass controllers on. When we are alone in it, we move to a leaf.
    if (codeOf(error) !== 'EBUSY' || !own) throw error
    const inside = words(`${dir}/cgroup.procs`)
    if (inside.some((pid) => Number(pid) !== process.pid)) throw error
    mkdirSync(`${dir}/hutch-daemon`, { recursive: true, mode: 0o755 })
    writeFileSync(`${dir}/hutch-daemon/cgroup.procs`, String(process.pid))
    writeFileSync(`${dir}/cgroup.subtree_control`, value)
  }
}

function words(path: string): string[] {
  return readFileSync(path, 'utf8').split(/\s+/).filter(Boolean)
}

export function codeOf(error: unknown): string {
  return (error as NodeJS.ErrnoException)?.code ?? 'error'
}
