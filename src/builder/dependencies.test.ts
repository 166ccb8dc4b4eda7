import { afterEach, beforeEach, expect, test } from 'bun:test'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { PlatformError } from '../errors.ts'
import type { BuiltImages, HeldLayer } from '../images/index.ts'
import { silentLogger } from '../lib/log.ts'
import { FakeClock } from '../lib/test-clock.ts'
import type { Store } from '../spec/store.ts'
import { openSqliteStore } from '../stores/sqlite/index.ts'
import { Users, Workspaces } from '../workspaces/index.ts'
import { DependencyLayers } from './dependencies.ts'

/** Layers that are there, by digest, and who holds them; what nobody names is gone with the next collection. */
class TestLayers {
  readonly here = new Map<string, number>()
  readonly held = new Map<string, number>()
  keeper: () => AsyncIterable<string> = async function* () {}

  add(diffId: string, bytes = 100): HeldLayer {
    this.here.set(diffId, bytes)
    return this.hold(diffId)
  }

  hold(diffId: string): HeldLayer {
    this.held.set(diffId, (this.held.get(diffId) ?? 0) + 1)
    const letGo = () => this.held.set(diffId, this.held.get(diffId)! - 1)
    return { diffId, bytes: this.here.get(diffId)!, tree: `/layers/${diffId}`, [Symbol.dispose]: letGo }
  }

  async collect(): Promise<void> {
    const kept = new Set(await Array.fromAsync(this.keeper()))
    for (const diffId of this.here.keys())
      if (!kept.has(diffId) && !this.held.get(diffId)) this.here.delete(diffId)
  }

  get images(): BuiltImages {
    const fake: Pick<BuiltImages, 'keepLayers' | 'holdLayer' | 'kept'> = {
      keepLayers: (keeper) => {
        this.keeper = keeper
      },
      holdLayer: async (diffId) => (this.here.has(diffId) ? this.hold(diffId) : null),
      kept: () => {},
    }
    return fake as BuiltImages
  }
}

let dir: string
let clock: FakeClock
let store: Store
let layers: TestLayers

beforeEach(async () => {
  dir = mkdtempSync(join(tmpdir(), 'hutch-dependencies-'))
  clock = new FakeClock()
  await openStore()
  const workspaces = new Workspaces({ store, users: new Users({ store, clock }), heldKinds: [] })
  for (const name of ['main', 'other']) await workspaces.create({ name, ownerSub: 'usr_test' })
  layers = new TestLayers()
})
afterEach(async () => {
  await store[Symbol.asyncDispose]()
  rmSync(dir, { recursive: true, force: true })
})

async function openStore(): Promise<void> {
  store = await openSqliteStore({ path: join(dir, 'hutch.db'), clock, log: silentLogger })
}

function cache(bytesMax?: number): DependencyLayers {
  const more = bytesMax === undefined ? {} : { bytesMax }
  return new DependencyLayers({ store, images: layers.images, clock, log: silentLogger, ...more })
}

/** Asks for a layer; answers its digest and whether it was here. */
async function get(
  from: DependencyLayers,
  key: string,
  workspace = 'main',
  bytes = 100,
): Promise<[string, boolean]> {
  const make = async () => layers.add(`sha256:${workspace}-${key}-${layers.here.size}`, bytes)
  const { layer, wasHere } = await from.get(workspace, [key], make, new AbortController().signal)
  layer[Symbol.dispose]()
  return [layer.diffId, wasHere]
}

test('a layer is made once for one key, and kept over collections and restarts of the platform', async () => {
  const [first] = await get(cache(), 'a')
  await layers.collect()
  await store[Symbol.asyncDispose]()
  await openStore()
  const again = cache()
  await layers.collect()
  expect(await get(again, 'a')).toEqual([first, true])
  expect(await get(again, 'b')).toEqual([expect.stringContaining('-b-'), false])
})

test('who asks for what is being made waits for it', async () => {
  const made = Promise.withResolvers<void>()
  let makes = 0
  const one = cache()
  const make = async () => {
    makes++
    await made.promise
    return layers.add('sha256:one')
  }
  const { signal } = new AbortController()
  const asked = [one.get('main', ['a'], make, signal), one.get('main', ['a'], make, signal)]
  const called = new AbortController()
  const third = one.get('main', ['a'], make, called.signal).catch((error: unknown) => error)
  called.abort(new Error('called off'))
  expect(await third).toEqual(new Error('called off'))
  made.resolve()
  const [left, right] = await Promise.all(asked)
  expect([left!.wasHere, right!.wasHere, makes]).toEqual([false, true, 1])
})

test('nothing is kept of one that could not be made', async () => {
  const one = cache()
  const make = async () => {
    throw new PlatformError('unprocessable', 'npm ci failed')
  }
  const refused = one.get('main', ['a'], make, new AbortController().signal)
  expect(await refused.catch((error) => (error as Error).message)).toBe('npm ci failed')
  expect(await Array.fromAsync(layers.keeper())).toEqual([])
  expect((await get(one, 'a'))[1]).toBe(false)
})

test('a layer whose files are gone is made again', async () => {
  const one = cache()
  const [first] = await get(one, 'a')
  layers.here.delete(first)
  const [second, wasHere] = await get(one, 'a')
  expect(wasHere).toBe(false)
  expect(await Array.fromAsync(layers.keeper())).toEqual([second])
})

test('workspaces have layers of their own, which go with them', async () => {
  const one = cache()
  await get(one, 'a')
  expect((await get(one, 'a', 'other'))[1]).toBe(false)
  await store.batch(await one.removal('other'))
  expect(await Array.fromAsync(layers.keeper())).toEqual(['sha256:main-a-0'])
})

test('those that were not used for longest make room, and so do those that nobody used for a month', async () => {
  const one = cache(250)
  const hour = 60 * 60 * 1000
  for (const key of ['a', 'b']) {
    await get(one, key)
    clock.advance(2 * hour)
  }
  // Used last, though it is the oldest.
  await get(one, 'a')
  await get(one, 'c')
  expect((await Array.fromAsync(layers.keeper())).map((id) => id.split('-')[1]).sort()).toEqual(['a', 'c'])
  clock.advance(31 * 24 * hour)
  await get(one, 'd', 'main', 1000)
  expect((await Array.fromAsync(layers.keeper())).map((id) => id.split('-')[1])).toEqual(['d'])
})
