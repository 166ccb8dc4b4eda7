import { afterAll, beforeAll, expect, test } from 'bun:test'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Dialer } from '../lib/dialer.ts'
import { silentLogger } from '../lib/log.ts'
import { createSecretBox } from '../lib/secret-box.ts'
import { FakeClock } from '../lib/test-clock.ts'
import type { Store } from '../spec/store.ts'
import { openSqliteStore } from '../stores/sqlite/index.ts'
import { Users, Workspaces } from '../workspaces/index.ts'
import { HostImage, Images, newBuiltTag } from './index.ts'
import { ImageRecords } from './records.ts'

const dir = mkdtempSync(join(tmpdir(), 'hutch-promotion-'))
const clock = new FakeClock()
const log = silentLogger
let store: Store
let images: Images
let records: ImageRecords
/** Of an instance that runs. */
let usedDigest = ''

beforeAll(async () => {
  store = await openSqliteStore({ path: join(dir, 'hutch.db'), clock, log, durability: 'process' })
  const workspaces = new Workspaces({ store, users: new Users({ store, clock }), heldKinds: [] })
  await workspaces.create({ name: 'main', ownerSub: 'usr_test' })
  records = new ImageRecords(store)
  const host = {
    imageDir: join(dir, 'host'),
    dataDir: dir,
    source: 'live',
    usrLocal: false,
    layers: null,
  } as const
  images = new Images({
    ...{ store, clock, log, workspaces, dir: join(dir, 'images'), layers: null },
    host: new HostImage({ ...host, clock, log }),
    secrets: createSecretBox(new Uint8Array(32)),
    dialer: new Dialer({ privateTargets: [], ownPorts: () => [] }),
    registries: [],
    registryAuthFile: null,
    imageBytesMax: 1024,
    inUse: () => [{ workspace: 'main', name: 'box', root: { digest: usedDigest, layers: [], mounts: [] } }],
  })
})
afterAll(async () => {
  await images.close()
  await store[Symbol.asyncDispose]()
  rmSync(dir, { recursive: true, force: true })
})

const settings = { env: {}, workingDir: '', user: '', entrypoint: [], command: [], ports: [] }
const build = async (tag: string) => {
  clock.advance(1000)
  const installed = { digest: `sha256:${tag}`, layers: [], sandboxApis: [], bytes: 1, settings }
  await records.setTag('main', { type: 'sandbox', name: 'box', tag, source: null }, installed, clock.now())
}
const tags = async () => (await records.get('main', 'sandbox', 'box'))?.body.tags ?? []

test('what was built last is the latest, and of what was built before the newest and what is in use stay', async () => {
  await build('by-hand')
  const built: string[] = []
  for (let at = 0; at < 25; at++) {
    const tag = newBuiltTag()
    built.push(tag)
    await build(tag)
    if (at === 1) usedDigest = `sha256:${tag}`
    await images.promote('main', { type: 'sandbox', name: 'box', tag })
  }
  const names = (await tags()).map(({ name }) => name)
  expect(names.filter((name) => name.startsWith('build-'))).toEqual([built[1]!, ...built.slice(5)])
  expect(names).toContain('by-hand')
  const latest = (await tags()).find(({ name }) => name === 'latest')
  expect(latest?.digest).toBe(`sha256:${built[24]}`)
})
