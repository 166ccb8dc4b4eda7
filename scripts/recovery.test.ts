import { Database } from 'bun:sqlite'
import { afterAll, expect, test } from 'bun:test'
import { createHash } from 'node:crypto'
import {
  existsSync,
  mkdtempSync,
  readFileSync,
  realpathSync,
  rmdirSync,
  rmSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { ociArchive, programs, tar, testImage } from '../src/images/test-image.ts'
import { eventually } from '../src/lib/test-eventually.ts'
import { buildIfStale, executablePath } from './build.ts'
import { canIsolate } from './host.ts'
import { entries, leftovers, linkOf } from './leftovers.ts'
import { cleanEnvironment, RunningHutch } from './platform.ts'
import { seededChoices } from './seeded-choices.ts'

// Kills dist/hutch at random moments and looks at what the next one finds, and at what is left on the host.

/** HUTCH_TEST_ROUNDS=200 kills it more often. */
const rounds = Number(process.env.HUTCH_TEST_ROUNDS ?? 8)
const sandboxesMax = 6
const workers = 5
const memoryMb = 256
const testTimeoutMs = 120_000 + rounds * 40_000
/** So short that sandboxes fall asleep and wake all the time. */
const args = ['--standby-after-seconds', '0.1', '--reclaim-after-seconds', '0.1']
const settleTimeoutMs = 60_000

await buildIfStale()
const usable = canIsolate()

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
  state: 'asked' | 'there' | 'packing' | 'removing' | 'gone'
  /** It ends by itself, within moments. */
  mortal: boolean
  /** By path: acknowledged last, and on its way. */
  files: Map<string, { acknowledged: string | undefined; sent: string | undefined }>
  /** By name: output of what ended. */
  ended: Map<string, string>
  /** By name: pid of what runs; null once it may have been started anew. */
  running: Map<string, string | null>
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
      ...(init.body instanceof FormData ? {} : { 'content-type': 'application/json' }),
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
      mortal: below(5) === 0,
      files: new Map(),
      ended: new Map(),
      running: new Map(),
    }
    boxes.push(box)
    const runtime = { memory: memoryMb, ...(box.mortal ? { ttl: '1s' } : {}) }
    const body = JSON.stringify({ metadata: { name: box.name }, spec: { runtime } })
    await acknowledged('/v0/sandboxes', { method: 'POST', body })
    // Nothing is promised of one that may be over by now.
    box.state = box.mortal ? 'gone' : 'there'
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

  async upload(box: Box) {
    const path = `/root/large-${below(2)}`
    const text = `${serial++} `.repeat(300_000)
    const file = box.files.get(path) ?? { acknowledged: undefined, sent: undefined }
    box.files.set(path, file)
    if (file.sent !== undefined) return
    file.sent = text
    const target = `/filesystem-multipart/initiate/${encodeURIComponent(path)}`
    const { uploadId } = (await acknowledged(target, { method: 'POST', body: '{}' }, box)) as {
      uploadId: string
    }
    const parts: object[] = []
    const half = Math.ceil(text.length / 2)
    for (const partNumber of [1, 2]) {
      const form = new FormData()
      form.set('file', new Blob([text.slice((partNumber - 1) * half, partNumber * half)]))
      const at = `/filesystem-multipart/${uploadId}/part?partNumber=${partNumber}`
      parts.push((await acknowledged(at, { method: 'PUT', body: form }, box)) as object)
    }
    const body = JSON.stringify({ parts })
    await acknowledged(`/filesystem-multipart/${uploadId}/complete`, { method: 'POST', body }, box)
    file.acknowledged = text
    file.sent = undefined
  },

  async archive(box: Box) {
    if (boxes.filter(({ state }) => state === 'there').length < 3) return
    box.state = 'packing'
    for (const name of box.running.keys()) box.running.set(name, null)
    await acknowledged(`/v0/sandboxes/${box.name}/archive`, { method: 'POST' })
    await backAgain(box)
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
    box.running.set(name, box.state === 'there' ? pid : null)
  },
}
const weighted = [
  ...(['create', 'create', 'create', 'write', 'write', 'write', 'run', 'run', 'run'] as const),
  ...(['start', 'start', 'upload', 'remove', 'archive', 'rest'] as const),
]

/** Waits until an archived sandbox, or one on its way there or back, can be used again. */
async function backAgain(box: Box): Promise<void> {
  const deadline = performance.now() + settleTimeoutMs
  for (;;) {
    const { status } = (await acknowledged(`/v0/sandboxes/${box.name}`, { method: 'GET' })) as {
      status: string
    }
    if (status === 'DEPLOYED') break
    if (status === 'ARCHIVED') {
      await acknowledged(`/v0/sandboxes/${box.name}/unarchive`, { method: 'POST' })
    } else if (status !== 'ARCHIVING' && status !== 'UNARCHIVING') {
      throw new Error(`${box.name} is ${status}`)
    }
    if (performance.now() > deadline) throw new Error(`${box.name} is still ${status}`)
    await Bun.sleep(5)
  }
  box.state = 'there'
}

async function work(): Promise<void> {
  while (!dying) {
    const action = oneOf(weighted) ?? 'create'
    const box = oneOf(boxes.filter(({ state }) => state === 'there'))
    try {
      if (action === 'create') await actions.create()
      // Nobody asks for anything for so long that sandboxes fall asleep.
      else if (action === 'rest') await Bun.sleep(below(250))
      else if (box) await actions[action](box)
      else await Bun.sleep(1)
    } catch (error) {
      // Another worker removes what this one uses, or the platform is being killed.
      if (!dying && (box === undefined || box.state === 'there')) throw error
      if (!dying && action === 'archive') throw error
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
    if (box.mortal) box.state = 'gone'
    if (box.state === 'packing') {
      await backAgain(box)
      statuses.set(box.name, 'DEPLOYED')
    }
    const status = statuses.get(box.name)
    statuses.delete(box.name)
    if (box.mortal) continue
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
      // What was being archived just then is started anew all the same.
      if (pid !== null) expect([name, found?.status]).not.toEqual([name, 'running'])
      box.running.delete(name)
      continue
    }
    expect([box.name, name, found?.status, found?.pid]).toEqual([
      box.name,
      name,
      'running',
      pid ?? (found?.pid as string),
    ])
    box.running.set(name, found?.pid ?? null)
    const lines = (await logsOf(name)).trimEnd().split('\n')
    expect(lines).toEqual(lines[0] === '' ? [''] : lines.map((_, at) => `${name} ${at}`))
  }
  const command = JSON.stringify({ command: 'echo reached', waitForCompletion: true })
  const { body } = await inside(box, '/process', { method: 'POST', body: command })
  expect((body as { stdout: string }).stdout).toBe('reached\n')
}

/** A start that is cut short: recovery itself must be repeatable. */
async function startAndKill(afterMs: number): Promise<void> {
  const child = Bun.spawn([executablePath, 'up', '--port', '0', '--data-dir', dataDir, ...args], {
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
  const deadline = performance.now() + 60_000
  let left = leftovers(dataDir, platform?.child.pid)
  while (left.length > 0 && performance.now() < deadline) {
    await Bun.sleep(20)
    // Once a look: the next may see what ends by itself just then.
    left = leftovers(dataDir, platform?.child.pid)
  }
  expect(left).toEqual([])
}

test.skipIf(!usable || process.getuid?.() !== 0)(
  `whatever was acknowledged outlives kill -9 at any moment, and nothing else does (seed ${seed})`,
  async () => {
    console.log(`seed ${seed}`)
    let stopped = false
    for (let round = 0; round <= rounds; round++) {
      while (round > 0 && random() < 0.3) await startAndKill(20 + below(150))
      platform = await RunningHutch.start({ dataDir, args })
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
    const left = (await call('/v0/sandboxes?limit=200')).body as { metadata: { name: string } }[]
    for (const { metadata } of left)
      await acknowledged(`/v0/sandboxes/${metadata.name}`, { method: 'DELETE' })
    await nothingLeft()
    expect(await platform?.stop()).toBe(0)
    expect(entries(join(dataDir, 'instances')).filter((name) => !name.startsWith('.template-'))).toEqual([])
  },
  testTimeoutMs,
)

/** Control groups in a directory, the innermost first. */
function groupsBelow(dir: string): string[] {
  return entries(dir)
    .map((name) => `${dir}/${name}`)
    .filter((path) => existsSync(`${path}/cgroup.procs`))
    .flatMap((path) => [...groupsBelow(path), path])
}

/** What a boot takes away: every process of every instance, their control groups, what /run noted, the boot's own id. */
async function reboot(): Promise<void> {
  const instancesDir = join(dataDir, 'instances')
  const group = `hutch-${createHash('sha256').update(instancesDir).digest('hex').slice(0, 12)}`
  const helpers = () =>
    entries('/proc').filter(
      (pid) => /^\d+$/.test(pid) && (linkOf(`/proc/${pid}/exe`) ?? '').startsWith(`${dataDir}/bin/`),
    )
  const groups = readFileSync('/proc/self/mountinfo', 'utf8')
    .split('\n')
    .filter((line) => / - cgroup2? /.test(line))
    .flatMap((line) => groupsBelow(`${line.split(' ')[4]}/${group}`))
  // Their keepers reap them, and end with them.
  for (const path of groups) {
    for (const pid of readFileSync(`${path}/cgroup.procs`, 'utf8').split('\n').filter(Boolean)) {
      try {
        process.kill(Number(pid), 'SIGKILL')
      } catch {
        // It ended with its instance.
      }
    }
  }
  const deadline = performance.now() + settleTimeoutMs
  while (helpers().length > 0 && performance.now() < deadline) await Bun.sleep(5)
  for (const path of groups) {
    while (existsSync(path)) {
      try {
        rmdirSync(path)
      } catch {
        if (performance.now() > deadline) throw new Error(`${path} does not empty`)
        await Bun.sleep(5)
      }
    }
  }
  expect(helpers()).toEqual([])
  const ranges = '/run/hutch/uid-ranges'
  for (const name of entries(ranges)) {
    if (linkOf(`${ranges}/${name}`)?.startsWith(`${instancesDir}/`)) rmSync(`${ranges}/${name}`)
  }
  const boot = readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim()
  const earlier = (text: string) => text.replaceAll(boot, '00000000-0000-4000-8000-000000000000')
  for (const id of entries(instancesDir)) {
    const path = join(instancesDir, id, 'instance.json')
    if (existsSync(path)) writeFileSync(path, earlier(readFileSync(path, 'utf8')))
  }
  const database = new Database(join(dataDir, 'hutch.db'))
  const rows = database.query("SELECT rowid, body FROM resources WHERE kind = 'instance'").all() as {
    rowid: number
    body: string
  }[]
  expect(rows.some(({ body }) => body.includes(boot))).toBe(true)
  for (const { rowid, body } of rows) {
    database.query('UPDATE resources SET body = ? WHERE rowid = ?').run(earlier(body), rowid)
  }
  database.close()
}

test.skipIf(!usable || process.getuid?.() !== 0)(
  'after a reboot of the host sandboxes come back with their files and their entrypoint, awake or not before',
  async () => {
    platform = await RunningHutch.start({ dataDir, args })
    const image = testImage([tar(programs('sh', 'sleep', 'cat'))], {
      config: { Env: ['PATH=/bin'], Entrypoint: ['/bin/sh', '-c', 'echo up >> /started; exec sleep 600'] },
    })
    await acknowledged('/-/images/import?name=programmed&tag=v1', {
      method: 'PUT',
      body: new Uint8Array(ociArchive(image)),
    })
    const names = ['used', 'frozen', 'packed', 'own-image']
    const known: Box[] = []
    for (const name of names) {
      const box: Box = {
        name,
        state: 'there',
        mortal: false,
        files: new Map(),
        ended: new Map(),
        running: new Map(),
      }
      known.push(box)
      const runtime = {
        memory: memoryMb,
        ...(name === 'own-image' ? { image: 'sandbox/programmed:v1' } : {}),
      }
      const body = JSON.stringify({ metadata: { name }, spec: { runtime } })
      await acknowledged('/v0/sandboxes', { method: 'POST', body })
      const content = JSON.stringify({ content: `of ${name}` })
      await acknowledged(filePath('/srv/kept'), { method: 'PUT', body: content }, box)
      const start = JSON.stringify({ name: 'lasting', command: 'echo begun; sleep 600' })
      await acknowledged('/process', { method: 'POST', body: start }, box)
    }
    const statusOf = async (name: string) =>
      (await acknowledged(`/v0/sandboxes/${name}`, { method: 'GET' })) as { status: string; state?: string }
    const own = known.find(({ name }) => name === 'own-image')!
    const started = async () => {
      const { status, body } = await inside(own, filePath('/started'))
      return status === 200 ? (body as { content: string }).content : ''
    }
    await eventually('the entrypoint runs', async () => (await started()) === 'up\n')
    await acknowledged('/v0/sandboxes/packed/archive', { method: 'POST' })
    const deadline = performance.now() + settleTimeoutMs
    while (
      (await statusOf('packed')).status !== 'ARCHIVED' ||
      (await statusOf('frozen')).state !== 'STANDBY'
    ) {
      expect(performance.now()).toBeLessThan(deadline)
      await Bun.sleep(10)
    }
    await inside(known[0]!, filePath('/srv/kept'))
    platform.child.kill('SIGKILL')
    await platform.child.exited
    await reboot()

    platform = await RunningHutch.start({ dataDir, args })
    expect((await statusOf('packed')).status).toBe('ARCHIVED')
    await acknowledged('/v0/sandboxes/packed/unarchive', { method: 'POST' })
    for (const box of known) {
      await backAgain(box)
      const { body } = await inside(box, filePath('/srv/kept'))
      expect((body as { content: string }).content).toBe(`of ${box.name}`)
      const lasting = (await inside(box, '/process/lasting')).body as { status: string; stdout: string }
      // Only what an archive holds is started again; the others' programs went with the host.
      expect([box.name, lasting.status]).toEqual([box.name, box.name === 'packed' ? 'running' : 'killed'])
      expect(lasting.stdout).toBe('begun\n')
      const command = JSON.stringify({ command: 'echo reached', waitForCompletion: true })
      const ran = (await inside(box, '/process', { method: 'POST', body: command })).body
      expect((ran as { stdout: string }).stdout).toBe('reached\n')
    }
    await eventually('the entrypoint runs again', async () => (await started()) === 'up\nup\n')
    const entrypoint = (await inside(own, '/process/entrypoint')).body as { status: string }
    expect(entrypoint.status).toBe('running')
    for (const box of known) await acknowledged(`/v0/sandboxes/${box.name}`, { method: 'DELETE' })
    await nothingLeft()
    expect(await platform.stop()).toBe(0)
  },
  testTimeoutMs,
)
