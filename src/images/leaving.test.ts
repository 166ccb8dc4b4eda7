import { afterEach, beforeEach, expect, test } from 'bun:test'
import { mkdtempSync, readdirSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { systemClock } from '../lib/clock.ts'
import { Dialer } from '../lib/dialer.ts'
import { silentLogger } from '../lib/log.ts'
import { createSecretBox } from '../lib/secret-box.ts'
import type { Store } from '../spec/store.ts'
import { openSqliteStore } from '../stores/sqlite/index.ts'
import { Users, Workspaces } from '../workspaces/index.ts'
import { HostImage, Images } from './index.ts'
import { ImageRecords } from './records.ts'

/** What goes on with images while they, or the platform, go. */

let dir: string
let store: Store
let images: Images
beforeEach(async () => {
  dir = mkdtempSync(join(tmpdir(), 'hutch-leaving-'))
  const shared = { clock: systemClock, log: silentLogger }
  store = await openSqliteStore({ ...shared, path: join(dir, 'hutch.db'), durability: 'process' })
  const users = new Users({ store, clock: systemClock })
  const workspaces = new Workspaces({ store, users, heldKinds: [] })
  await workspaces.create({ name: 'main', ownerSub: 'usr_test' })
  images = new Images({
    ...shared,
    workspaces,
    host: new HostImage({
      ...shared,
      imageDir: join(dir, 'host'),
      dataDir: dir,
      source: 'live',
      usrLocal: false,
      layers: null,
    }),
    store,
    secrets: createSecretBox(new Uint8Array(32)),
    dir: join(dir, 'images'),
    layers: {
      open: () => Promise.reject(new Error('nothing is unpacked here')),
      empty: () => Promise.resolve(),
    },
    dialer: new Dialer({ privateTargets: [], ownPorts: () => [] }),
    registries: [],
    registryAuthFile: null,
    imageBytesMax: 1024 ** 2,
    inUse: () => [],
  })
})
afterEach(async () => {
  await images.close()
  await store[Symbol.asyncDispose]()
  rmSync(dir, { recursive: true, force: true })
})

test('those that nothing uses are removed by two at once, each counted by one', async () => {
  const records = new ImageRecords(store)
  const settings = { env: {}, workingDir: '', user: '', entrypoint: [], command: [], ports: [] }
  for (const name of ['one', 'two']) {
    for (const tag of ['first', 'second']) {
      await records.setTag(
        'main',
        { type: 'sandbox', name, tag, source: null },
        { digest: `sha256:${tag}`, layers: [], sandboxApis: [], bytes: 1, settings },
        systemClock.now(),
      )
    }
  }
  const counts = await Promise.all([images.removeUnused('main'), images.removeUnused('main')])
  expect(counts[0] + counts[1]).toBe(4)
  expect(await images.views('main')).toEqual([])
})

test('the platform closes when an import that it ends has put away what it had received', async () => {
  const begun = Promise.withResolvers<void>()
  // An archive of which no more comes.
  const body = new ReadableStream<Uint8Array>({
    start: (controller) => controller.enqueue(new Uint8Array(100_000)),
    pull: () => begun.resolve(),
  })
  let over = false
  const importing = images.import('main', body, { name: 'one' }).finally(() => {
    over = true
  })
  importing.catch(() => {})
  await begun.promise
  await images.close()
  expect(over).toBe(true)
  await expect(importing).rejects.toThrow()
  const left = readdirSync(join(dir, 'images'), { recursive: true, encoding: 'utf8' })
  expect(left.filter((path) => path.includes('work-'))).toEqual([])
})
