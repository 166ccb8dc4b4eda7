import { afterAll, expect, setDefaultTimeout, test } from 'bun:test'
import { mkdtempSync, readdirSync, readFileSync, realpathSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { ociArchive, programs, type TestImage, tar, testImage } from '../src/images/test-image.ts'
import { TestRegistry } from '../src/images/test-registry.ts'
import { eventually } from '../src/lib/test-eventually.ts'
import { buildIfStale } from './build.ts'
import { canIsolate } from './host.ts'
import { RunningHutch } from './platform.ts'
import { seededChoices } from './seeded-choices.ts'

// Kills dist/hutch while images are imported, pulled and removed: nothing half is ever seen, nothing answered is lost.

const rounds = 8
/** Longer than any of what is cut short takes. */
const killAfterMsMax = 400

setDefaultTimeout(180_000)
await buildIfStale()
const usable = canIsolate()

const directory = realpathSync(mkdtempSync(join(tmpdir(), 'hutch-images-recovery-')))
const dataDir = join(directory, 'data')
const registry = new TestRegistry()
let platform: RunningHutch | null = null
afterAll(async () => {
  await platform?.[Symbol.asyncDispose]()
  registry[Symbol.dispose]()
  rmSync(directory, { recursive: true, force: true })
})

const { seed, below } = seededChoices()
const base = tar(programs('sh', 'cat'))

async function start(): Promise<RunningHutch> {
  return await RunningHutch.start({ dataDir, args: ['--registry', registry.host, '--log-level', 'error'] })
}

async function call(path: string, init: RequestInit = {}): Promise<{ status: number; body: unknown }> {
  const { apiKey } = JSON.parse(readFileSync(join(dataDir, 'credentials.json'), 'utf8')) as { apiKey: string }
  const response = await fetch(platform!.url.replace('localhost', '127.0.0.1') + path, {
    ...init,
    headers: {
      authorization: `Bearer ${apiKey}`,
      'x-blaxel-workspace': 'main',
      'content-type': 'application/json',
    },
  })
  return { status: response.status, body: await response.json() }
}

const post = (path: string, body: object) => call(path, { method: 'POST', body: JSON.stringify(body) })

interface Known {
  name: string
  image: TestImage
  /** What was answered last; while something is under way it may or may not have happened. */
  state: 'asked' | 'there' | 'removing' | 'gone'
}

const images: Known[] = []

/** An image that has a shell in common with the others, and small files of its own. */
function newImage(): Known {
  const name = `image-${images.length}`
  const files = Array.from({ length: 400 }, (_, index) => ({
    path: `own/${index}`,
    content: `${name} ${index}`,
  }))
  const image = testImage([base, tar(files)])
  registry.push(name, 'v1', image)
  const known: Known = { name, image, state: 'asked' }
  images.push(known)
  return known
}

/** Settles with whether it was answered well. */
async function answered(work: Promise<{ status: number }>): Promise<boolean> {
  const { status } = await work.catch(() => ({ status: 0 }))
  return status === 200
}

async function bring(known: Known, how: 'import' | 'pull'): Promise<void> {
  const done =
    how === 'import'
      ? call(`/-/images/import?name=${known.name}&tag=v1`, {
          method: 'PUT',
          body: new Uint8Array(ociArchive(known.image)),
        })
      : post('/-/images/pull', { image: `${registry.host}/${known.name}:v1`, name: known.name })
  if (await answered(done)) known.state = 'there'
}

async function remove(known: Known): Promise<void> {
  known.state = 'removing'
  if (await answered(call(`/v0/images/sandbox/${known.name}`, { method: 'DELETE' }))) known.state = 'gone'
}

async function checkAgreement(): Promise<void> {
  const listed = (await call('/v0/images')).body as { metadata: { name: string } }[]
  const names = new Set(listed.map(({ metadata }) => metadata.name))
  for (const known of images) {
    if (known.state === 'there') expect({ seed, has: names.has(known.name) }).toEqual({ seed, has: true })
    if (known.state === 'gone') expect({ seed, has: names.has(known.name) }).toEqual({ seed, has: false })
    known.state = names.has(known.name) ? 'there' : 'gone'
  }
  const wanted = new Set(
    images
      .filter(({ state }) => state === 'there')
      .flatMap(({ image }) => image.layers.map(({ diffId }) => diffId.slice(7))),
  )
  const layers = join(dataDir, 'images', 'layers')
  await eventually(`only layers of images that are there are there (seed ${seed})`, () => {
    const present = readdirSync(layers)
    return present.length === wanted.size && present.every((name) => wanted.has(name))
  })
  await eventually(
    `nothing half is left (seed ${seed})`,
    () => readdirSync(join(dataDir, 'images', 'partial')).length === 0,
  )
  const some = images.findLast(({ state }) => state === 'there')
  if (!some) return
  const created = await post('/v0/sandboxes', {
    metadata: { name: 'probe' },
    spec: { runtime: { image: `sandbox/${some.name}:v1`, memory: 256 } },
  })
  expect(created.status).toBe(200)
  const read = await post('/main/sandboxes/probe/process', {
    command: 'cat /own/0 /own/399',
    waitForCompletion: true,
  })
  expect(read.body).toMatchObject({ stdout: `${some.name} 0${some.name} 399` })
  expect((await call('/v0/sandboxes/probe', { method: 'DELETE' })).status).toBe(200)
}

test.skipIf(!usable)('images survive kill -9 whole or not at all', async () => {
  platform = await start()
  await bring(newImage(), 'import')
  for (let round = 0; round < rounds; round++) {
    const there = images.filter(({ state }) => state === 'there')
    const work = [bring(newImage(), 'import'), bring(newImage(), 'pull')]
    if (there.length > 1) work.push(remove(there[below(there.length)]!))
    await Bun.sleep(below(killAfterMsMax))
    platform.child.kill('SIGKILL')
    await platform.child.exited
    await Promise.all(work)
    platform = await start()
    await checkAgreement()
  }
  // What the last one did, done to its end.
  for (const known of images) if (known.state === 'there') await remove(known)
  await checkAgreement()
  expect(readdirSync(join(dataDir, 'images', 'layers'))).toEqual([])
})
