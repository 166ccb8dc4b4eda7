import { Database } from 'bun:sqlite'
import { createHash } from 'node:crypto'
import { existsSync, readdirSync, readFileSync, readlinkSync } from 'node:fs'
import { join } from 'node:path'

/** Everything on this host that belongs to an instance of the data directory which no record explains. `ownPid`: the platform that runs. */
export function leftovers(dataDir: string, ownPid: number | undefined): string[] {
  const found: string[] = []
  const database = new Database(join(dataDir, 'hutch.db'), { readonly: true })
  const instances = database.query("SELECT name, body FROM resources WHERE kind = 'instance'").all() as {
    name: string
    body: string
  }[]
  database.close()
  const known = new Set(instances.map(({ name }) => name))
  const foreign = (id: string, what: string) => {
    if (!known.has(id)) found.push(what)
  }
  for (const { name, body } of instances) {
    if ((JSON.parse(body) as { state: string }).state !== 'running') found.push(`record ${name} ${body}`)
  }
  const instancesDir = join(dataDir, 'instances')
  for (const name of readdirSync(instancesDir)) {
    // Disk templates are the runtime's, not an instance's.
    if (!name.startsWith('.template-')) foreign(name, `directory instances/${name}`)
  }
  for (const name of entries(join(dataDir, 'sandboxes')))
    foreign(name.split('.')[0] ?? '', `records sandboxes/${name}`)
  const group = `hutch-${createHash('sha256').update(instancesDir).digest('hex').slice(0, 12)}`
  for (const line of readFileSync('/proc/self/mountinfo', 'utf8').split('\n')) {
    if (line.includes(dataDir)) found.push(`mount ${line}`)
    const path = / - cgroup2? /.test(line) ? line.split(' ')[4] : undefined
    for (const entry of path === undefined ? [] : entries(`${path}/${group}`)) {
      if (existsSync(`${path}/${group}/${entry}/cgroup.procs`)) foreign(entry, `cgroup ${path} ${entry}`)
    }
  }
  for (const name of entries('/sys/block')) {
    const file = existsSync(`/sys/block/${name}/loop/backing_file`)
      ? readFileSync(`/sys/block/${name}/loop/backing_file`, 'utf8').trim()
      : ''
    if (file.startsWith(instancesDir)) foreign(file.split('/').at(-2) ?? '', `loop device ${file}`)
  }
  for (const pid of entries('/proc').filter((name) => /^\d+$/.test(name))) {
    if (!(linkOf(`/proc/${pid}/exe`) ?? '').startsWith(`${dataDir}/bin/`)) continue
    // The launcher of the platform that runs; no other may be left.
    if (parentOf(pid) === ownPid) continue
    const id = idOfHelper(pid, group)
    foreign(id, `helper ${pid} of ${id}`)
  }
  return found
}

function parentOf(pid: string): number | null {
  try {
    return Number(/^PPid:\s+(\d+)$/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1])
  } catch {
    return null
  }
}

/** A keeper by its working directory, a guest and its workers by their group. */
function idOfHelper(pid: string, group: string): string {
  const cwd = /\/instances\/([a-z0-9]+)\/run/.exec(linkOf(`/proc/${pid}/cwd`) ?? '')?.[1]
  if (cwd !== undefined) return cwd
  try {
    return new RegExp(`/${group}/([a-z0-9]+)`).exec(readFileSync(`/proc/${pid}/cgroup`, 'utf8'))?.[1] ?? ''
  } catch {
    return ''
  }
}

export function entries(dir: string): string[] {
  try {
    return readdirSync(dir)
  } catch {
    return []
  }
}

export function linkOf(path: string): string | null {
  try {
    return readlinkSync(path)
  } catch {
    return null
  }
}
