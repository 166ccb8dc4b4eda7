import { Database } from 'bun:sqlite'
import { afterAll, expect, setDefaultTimeout, test } from 'bun:test'
import { mkdtempSync, readdirSync, readFileSync, realpathSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { eventually } from '../src/lib/test-eventually.ts'
import { buildIfStale } from './build.ts'
import { canIsolate } from './host.ts'
import { RunningHutch } from './platform.ts'
import { seededChoices } from './seeded-choices.ts'

// Kills dist/hutch while snapshots are taken, removed, restored and forked: files are of one moment or the other, never
// of both, what was answered is there, nothing stands still, and nothing else is left.

/** HUTCH_TEST_ROUNDS=200 kills it more often. */
const rounds = Number(process.env.HUTCH_TEST_ROUNDS ?? 10)
/** Longer than most of what is cut short takes. */
const killAfterMsMax = 250
const copyMegabytes = 8

setDefaultTimeout(60_000 + rounds * 20_000)
await buildIfStale()
const usable = canIsolate()

const directory = realpathSync(mkdtempSync(join(tmpdir(), 'hutch-snapshots-recovery-')))
const dataDir = join(directory, 'data')
let platform: RunningHutch | null = null
afterAll(async () => {
  await platform?.[Symbol.asyncDispose]()
  rmSync(directory, { recursive: true, force: true })
})

const { seed, below, oneOf } = seededChoices()

interface Answer<Body = unknown> {
  status: number
  body: Body
}

async function call<Body = unknown>(path: string, init: RequestInit = {}): Promise<Answer<Body>> {
  const { apiKey } = JSON.parse(readFileSync(join(dataDir, 'credentials.json'), 'utf8')) as { apiKey: string }
  const response = await fetch((platform?.url ?? '').replace('localhost', '127.0.0.1') + path, {
    ...init,
    headers: {
      authorization: `Bearer ${apiKey}`,
      'x-blaxel-workspace': 'main',
      'content-type': 'application/json',
    },
  })
  const text = await response.text()
  return { status: response.status, body: (text === '' ? null : JSON.parse(text)) as Body }
}

const post = <Body = unknown>(path: string, body: object = {}) =>
  call<Body>(path, { method: 'POST', body: JSON.stringify(body) })

async function done<Body>(work: Promise<Answer<Body>>): Promise<Body> {
  const { status, body } = await work
  if (status >= 300) throw new Error(`refused with ${status}: ${JSON.stringify(body)} (seed ${seed})`)
  return body
}

/** What was answered; null when it was cut off. */
async function answered<Body>(work: Promise<Answer<Body>>): Promise<Body | null> {
  const answer = await work.catch(() => null)
  if (answer === null) return null
  // One that is stopping refuses what begins: nothing came of that.
  if (answer.status >= 500 || answer.status === 404) return null
  return await done(Promise.resolve(answer))
}

interface SnapshotAnswer {
  id: string
  status: string
}

/** Of the sandbox, and of the snapshots that were answered. */
let version = ''
const taken = new Map<string, string>()
let serial = 0

const run = async (box: string, command: string) =>
  await done(
    post<{ stdout: string; exitCode: number }>(`/main/sandboxes/${box}/process`, {
      command,
      waitForCompletion: true,
    }),
  )

/** Both files, and much in between, of one version; `ticker` runs. */
async function writeVersion(): Promise<void> {
  const next = `version-${serial++}`
  const bulk = `head -c ${copyMegabytes * 1024 * 1024} /dev/urandom > /root/bulk; sha256sum /root/bulk > /root/sum`
  const { exitCode } = await run('box', `echo ${next} > /root/first; ${bulk}; echo ${next} > /root/last`)
  expect(exitCode).toBe(0)
  version = next
}

/** Which version a sandbox has: whole, with what ran, and not standing still. */
async function versionOf(box: string): Promise<string> {
  const { status } = await done(call<{ status: string }>(`/v0/sandboxes/${box}`))
  expect([seed, box, status]).toEqual([seed, box, 'DEPLOYED'])
  const { stdout } = await run(box, 'cat /root/first /root/last; sha256sum -c /root/sum; hostname')
  const [first = '', last, sum, hostname] = stdout.trim().split('\n')
  expect([seed, box, last, sum, hostname]).toEqual([seed, box, first, '/root/bulk: OK', box])
  await eventually(`${box} ticks`, async () => {
    const read = async () => (await run(box, 'cat /tmp/tick 2>/dev/null')).stdout
    const before = await read()
    return (await read()) !== before
  })
  return first
}

const path = (id: string) => `/v0/sandboxes/box/snapshots/${id}`

/** What is cut short, and what is so when it was answered. Each answers what may be true of the sandbox after it. */
const actions: Record<string, () => Promise<() => Promise<void>>> = {
  async take() {
    const snapshot = await answered(post<SnapshotAnswer>('/v0/sandboxes/box/snapshots'))
    const of = version
    return async () => {
      if (snapshot?.status === 'ready') taken.set(snapshot.id, of)
      expect(await versionOf('box')).toBe(version)
    }
  },
  async restore() {
    const [id, of] = oneOf([...taken]) ?? []
    if (id === undefined || of === undefined) return await nothing()
    const restored = await answered(post(`${path(id)}/restore`))
    return async () => {
      const found = await versionOf('box')
      expect([seed, restored === null ? [of, version] : [of]]).toEqual([
        seed,
        expect.arrayContaining([found]),
      ])
      version = found
    }
  },
  async forkSnapshot() {
    const [id, of] = oneOf([...taken]) ?? []
    if (id === undefined || of === undefined) return await nothing()
    const copy = `copy-${serial++}`
    const forked = await answered(post(`/v0/snapshots/${id}/fork`, { targetName: copy }))
    return () => checkCopy(copy, of, forked !== null)
  },
  async forkLive() {
    const copy = `copy-${serial++}`
    const forked = await answered(post('/v0/sandboxes/box/fork', { targetName: copy }))
    return () => checkCopy(copy, version, forked !== null)
  },
  async takeArchived() {
    await answered(post('/v0/sandboxes/box/archive'))
    const snapshot = await answered(post<SnapshotAnswer>('/v0/sandboxes/box/snapshots').then(notConflict))
    const of = version
    return async () => {
      if (snapshot?.status === 'ready') taken.set(snapshot.id, of)
      await backAgain()
      expect(await versionOf('box')).toBe(version)
    }
  },
  async remove() {
    const [id] = oneOf([...taken]) ?? []
    if (id === undefined) return await nothing()
    taken.delete(id)
    const removed = await answered(call(path(id), { method: 'DELETE' }))
    return async () => {
      const { status } = await call(`/v0/snapshots/${id}`)
      if (removed !== null) expect([seed, status]).toEqual([seed, 404])
    }
  },
}

const nothing = async () => async () => {}

/** It is still being archived, as it well may. */
function notConflict<Body>(answer: Answer<Body>): Answer<Body> {
  return answer.status === 409 ? { ...answer, status: 503 } : answer
}

async function checkCopy(copy: string, of: string, answeredWell: boolean): Promise<void> {
  const { status } = await call(`/v0/sandboxes/${copy}`)
  if (!answeredWell && status === 404) return
  expect([seed, copy, await versionOf(copy)]).toEqual([seed, copy, of])
  await done(call(`/v0/sandboxes/${copy}`, { method: 'DELETE' }))
}

async function backAgain(): Promise<void> {
  await eventually('box is back', async () => {
    const { status } = await done(call<{ status: string }>('/v0/sandboxes/box'))
    if (status === 'ARCHIVED') await done(post('/v0/sandboxes/box/unarchive'))
    return status === 'DEPLOYED'
  })
}

/** Snapshots that were answered are ready, none is pending, and there are no files of any other. */
async function checkSnapshots(): Promise<void> {
  const listed = await done(call<SnapshotAnswer[]>('/v0/snapshots'))
  expect([seed, listed.filter(({ status }) => status === 'pending')]).toEqual([seed, []])
  const ready = listed.filter(({ status }) => status === 'ready').map(({ id }) => id)
  for (const id of taken.keys()) expect([seed, ready]).toEqual([seed, expect.arrayContaining([id])])
  await eventually('no files but those of what is known', () => {
    const files = namesIn('instances.snapshots')
    return (
      files.join() ===
      ready
        .map((id) => id.slice('snap_'.length))
        .toSorted()
        .join()
    )
  })
  for (const { id } of listed.filter((one) => !taken.has(one.id)))
    await done(call(`/v0/snapshots/${id}`, { method: 'DELETE' }))
  await eventually('no machines but those of what is known', () => {
    using database = new Database(join(dataDir, 'hutch.db'), { readonly: true })
    const known = database.query("SELECT name FROM resources WHERE kind = 'instance' ORDER BY name").all()
    return (known as { name: string }[]).map(({ name }) => name).join() === namesIn('instances').join()
  })
}

function namesIn(name: string): string[] {
  try {
    return readdirSync(join(dataDir, name))
      .filter((one) => !one.startsWith('.'))
      .toSorted()
  } catch {
    return []
  }
}

test.skipIf(!usable || process.getuid?.() !== 0)(
  `kill -9 of what is done with snapshots leaves all of it or nothing (seed ${seed})`,
  async () => {
    console.log(`seed ${seed}`)
    let check = async () => {}
    for (let round = 0; round <= rounds; round++) {
      platform = await RunningHutch.start({ dataDir, args: ['--standby-after-seconds', '0.3'] })
      if (round === 0) {
        await done(post('/v0/sandboxes', { metadata: { name: 'box' }, spec: { runtime: { memory: 512 } } }))
        const command = 'i=0; while :; do i=$((i+1)); echo $i > /tmp/tick; sleep 0.01; done'
        await done(post('/main/sandboxes/box/process', { name: 'ticker', command }))
        await writeVersion()
      }
      await check()
      await checkSnapshots()
      if (round === rounds) break
      // So that there is something to go back to, and something else to come from.
      if (taken.size === 0)
        taken.set((await done(post<SnapshotAnswer>('/v0/sandboxes/box/snapshots'))).id, version)
      if (below(2) === 0) await writeVersion()
      const action = oneOf(Object.values(actions)) ?? nothing
      const acting = action()
      await Bun.sleep(below(killAfterMsMax))
      platform.child.kill('SIGKILL')
      await platform.child.exited
      check = await acting
    }
    await done(call('/v0/sandboxes/box', { method: 'DELETE' }))
    for (const { id } of await done(call<SnapshotAnswer[]>('/v0/snapshots')))
      await done(call(`/v0/snapshots/${id}`, { method: 'DELETE' }))
    await eventually(
      'nothing is left',
      () => [...namesIn('instances'), ...namesIn('instances.snapshots')].length === 0,
    )
    expect(await platform?.stop()).toBe(0)
  },
)
