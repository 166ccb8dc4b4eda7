import { Database } from 'bun:sqlite'
import { afterAll, expect, test } from 'bun:test'
import { createHash } from 'node:crypto'
import {
  existsSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  realpathSync,
  rmSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { buildIfStale, executablePath } from './build.ts'
import { cleanEnvironment, RunningHutch } from './platform.ts'
import { seededChoices } from './seeded-choices.ts'

// Kills dist/hutch at random moments and looks at what the next one finds, and at what is left on the host.

const rounds = 8
const sandboxesMax = 6
const workers = 5
const memoryMb = 256
const testTimeoutMs = 120_000

await buildIfStale()
const doctor = Bun.spawnSync([executablePath, 'doctor', '--json'], {
  env: cleanEnvironment(),
  stderr: 'ignore',
})
const { usable, findings } = JSON.parse(doctor.stdout.toString()) as {
  usable: boolean
  findings: { ok: boolean; needed: boolean; detail: string }[]
}
if (!usable) console.warn(`skipped: ${findings.find(({ ok, needed }) => needed && !ok)?.detail}`)

const directory = realpathSync(mkdtempSync(join(tmpdir(), 'hutch-recovery-')))
const dataDir = join(directory, 'data')
let platform: RunningHutch | null = null
afterAll(async () => {
  await platform?.[Symbol.asyncDispose]()
  rmSync(directory, { recursive: true, force: true })
})

const { seed, random, below, oneOf } = seededChoices()

/** What was asked for, and what of it was acknowledged. */
interface Box {
  name: string
  state: 'asked' | 'there' | 'removing' | 'gone'
  /** By path: acknowledged last, and on its way. */
  files: Map<string, { acknowledged: string | undefined; sent: string | undefined }>
  /** By name: output of what ended. */
  ended: Map<string, string>
  /** By name: pid of what runs. */
  running: Map<string, string>
}

const boxes: Box[] = []
let serial = 0
let dying = false

async function call(path: string, init: RequestInit = {}): Promise<{ status: number; body: unknown }> {
  if (platform === null) throw new Error('there is no platform')
  const { apiKey } = JSON.parse(readFileSync(join(dataDir, 'credentials.json'), 'utf8')) as { apiKey: string }
  const response = await fetch(platform.url.replace('localhost', '127.0.0.1') + path, {
    ...init,
    headers: {
      authorization: `Bearer ${apiKey}`,
      'x-blaxel-workspace': 'main',
      'content-type': 'application/json',
    },
  })
  return { status: response.status, body: await response.json() }
}

const inside = (box: Box, path: string, init: RequestInit = {}) =>
  call(`/main/sandboxes/${box.name}${path}`, init)
const filePath = (path: string) => `/filesystem/${encodeURIComponent(path)}`

async function acknowledged(path: string, init: RequestInit, box?: Box): Promise<unknown> {
  const { status, body } = await (box ? inside(box, path, init) : call(path, init))
  if (status !== 200)
    throw new Error(`${init.method} ${path} was refused with ${status}: ${JSON.stringify(body)}`)
  return body
}

const actions = {
  async create() {
    if (boxes.filter((box) => box.state !== 'gone').length >= sandboxesMax) return
    const box: Box = {
      name: `box-${serial++}`,
      state: 'asked',
      files: new Map(),
      ended: new Map(),
      running: new Map(),
    }
    boxes.push(box)
    const body = JSON.stringify({ metadata: { name: box.name }, spec: { runtime: { memory: memoryMb } } })
    await acknowledged('/v0/sandboxes', { method: 'POST', body })
    box.state = 'there'
  },

  async remove(box: Box) {
    if (boxes.filter(({ state }) => state === 'there').length < 3) return
    box.state = 'removing'
    await acknowledged(`/v0/sandboxes/${box.name}`, { method: 'DELETE' })
    box.state = 'gone'
  },

  async write(box: Box) {
    const path = `/root/file-${below(4)}`
    const text = `${serial++} `.repeat(oneOf([1, 20_000]) ?? 1)
    const file = box.files.get(path) ?? { acknowledged: undefined, sent: undefined }
    box.files.set(path, file)
    if (file.sent !== undefined) return
    file.sent = text
    await acknowledged(filePath(path), { method: 'PUT', body: JSON.stringify({ content: text }) }, box)
    file.acknowledged = text
    file.sent = undefined
  },

  async run(box: Box) {
    const name = `run-${serial++}`
    const body = JSON.stringify({
      name,
      command: `echo ${name}; seq 500; echo last`,
      waitForCompletion: true,
    })
    const { logs } = (await acknowledged('/process', { method: 'POST', body }, box)) as { logs: string }
    expect(logs).toStartWith(`${name}\n1\n`)
    expect(logs).toEndWith('500\nlast\n')
    box.ended.set(name, logs)
  },

  async start(box: Box) {
    if (box.running.size >= 3) return
    const name = `count-${serial++}`
    const command = `i=0; while :; do echo ${name} $i; i=$((i+1)); sleep 0.05; done`
    const body = JSON.stringify({ name, command })
    const { pid } = (await acknowledged('/process', { method: 'POST', body }, box)) as { pid: string }
    box.running.set(name, pid)
  },
}
const weighted = ['create', 'create', 'write', 'write', 'run', 'run', 'start', 'remove'] as const

async function work(): Promise<void> {
  while (!dying) {
    const action = oneOf(weighted) ?? 'create'
    const box = oneOf(boxes.filter(({ state }) => state === 'there'))
    try {
      if (action === 'create') await actions.create()
      else if (box) await actions[action](box)
      else await Bun.sleep(1)
    } catch (error) {
      // Another worker removes what this one uses, or the platform is being killed.
      if (!dying && (box === undefined || box.state === 'there')) throw error
    }
  }
}

/** `stopped`: the sandboxes were ended in good order, so that programs are gone and everything else is there. */
async function checkPromises(stopped: boolean): Promise<void> {
  const listed = (await call('/v0/sandboxes?limit=200')).body as {
    metadata: { name: string }
    status: string
  }[]
  const statuses = new Map(listed.map(({ metadata, status }) => [metadata.name, status]))
  for (const box of boxes) {
    const status = statuses.get(box.name)
    statuses.delete(box.name)
    // What was not acknowledged is there as a whole, or not at all.
    if (box.state === 'asked' || box.state === 'removing') box.state = status === undefined ? 'gone' : 'there'
    expect([box.name, status]).toEqual([box.name, box.state === 'there' ? 'DEPLOYED' : undefined])
    if (box.state === 'there') await checkBox(box, stopped)
  }
  expect([...statuses.keys()]).toEqual([])
}

async function checkBox(box: Box, stopped: boolean): Promise<void> {
  for (const [path, file] of box.files) {
    const { body } = await inside(box, filePath(path))
    const { content } = body as { content?: string }
    // The old content or the new, whole.
    if (content !== file.sent) expect(content).toBe(file.acknowledged)
    file.acknowledged = content
    file.sent = undefined
  }
  const root = (await inside(box, filePath('/root'))).body as { files: { name: string }[] }
  expect(root.files.filter(({ name }) => name.startsWith('.hutch-'))).toEqual([])
  const processes = (await inside(box, '/process')).body as { name: string; pid: string; status: string }[]
  const byName = new Map(processes.map((process) => [process.name, process]))
  const logsOf = async (name: string) =>
    ((await inside(box, `/process/${name}/logs`)).body as { logs: string }).logs
  for (const [name, logs] of box.ended) {
    expect([box.name, name, byName.get(name)?.status]).toEqual([box.name, name, 'completed'])
    expect(await logsOf(name)).toBe(logs)
  }
  for (const [name, pid] of box.running) {
    const found = byName.get(name)
    if (stopped) {
      expect([name, found?.status]).not.toEqual([name, 'running'])
      box.running.delete(name)
      continue
    }
    expect([box.name, name, found?.status, found?.pid]).toEqual([box.name, name, 'running', pid])
    const lines = (await logsOf(name)).trimEnd().split('\n')
    expect(lines).toEqual(lines[0] === '' ? [''] : lines.map((_, at) => `${name} ${at}`))
  }
  const command = JSON.stringify({ command: 'echo reached', waitForCompletion: true })
  const { body } = await inside(box, '/process', { method: 'POST', body: command })
  expect((body as { stdout: string }).stdout).toBe('reached\n')
}

/** Everything on this host that belongs to an instance of the data directory which no record explains. */
function leftovers(): string[] {
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
  for (const name of readdirSync(instancesDir)) foreign(name, `directory instances/${name}`)
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
    const id = idOfHelper(pid, group)
    foreign(id, `helper ${pid} of ${id}`)
  }
  return found
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

function entries(dir: string): string[] {
  try {
    return readdirSync(dir)
  } catch {
    return []
  }
}

function linkOf(path: string): string | null {
  try {
    return readlinkSync(path)
  } catch {
    return null
  }
}

/** A start that is cut short: recovery itself must be repeatable. */
async function startAndKill(afterMs: number): Promise<void> {
  const child = Bun.spawn([executablePath, 'up', '--port', '0', '--data-dir', dataDir], {
    stdin: 'ignore',
    stdout: 'ignore',
    stderr: 'ignore',
    env: cleanEnvironment(),
    detached: true,
  })
  await Bun.sleep(afterMs)
  child.kill('SIGKILL')
  await child.exited
}

async function nothingLeft(): Promise<void> {
  // What a removal leaves for later is done moments after the start.
  const deadline = performance.now() + 10_000
  while (leftovers().length > 0 && performance.now() < deadline) await Bun.sleep(20)
  expect(leftovers()).toEqual([])
}

test.skipIf(!usable || process.getuid?.() !== 0)(
  `whatever was acknowledged outlives kill -9 at any moment, and nothing else does (seed ${seed})`,
  async () => {
    console.log(`seed ${seed}`)
    let stopped = false
    for (let round = 0; round <= rounds; round++) {
      while (round > 0 && random() < 0.3) await startAndKill(20 + below(150))
      platform = await RunningHutch.start({ dataDir })
      await checkPromises(stopped)
      await nothingLeft()
      if (round === rounds) break
      dying = false
      const working = Array.from({ length: workers }, work)
      await Bun.sleep(100 + below(600))
      dying = true
      // The last round but one ends in good order.
      stopped = round === rounds - 1
      platform.child.kill(stopped ? 'SIGTERM' : 'SIGKILL')
      await platform.child.exited
      await Promise.all(working)
    }
    for (const { name } of boxes.filter(({ state }) => state === 'there'))
      await acknowledged(`/v0/sandboxes/${name}`, { method: 'DELETE' })
    await nothingLeft()
    expect(await platform?.stop()).toBe(0)
    expect(entries(join(dataDir, 'instances'))).toEqual([])
  },
  testTimeoutMs,
)
