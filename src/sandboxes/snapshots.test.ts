import { afterEach, beforeEach, expect, test } from 'bun:test'
import { PlatformError } from '../errors.ts'
import { eventually } from '../lib/test-eventually.ts'
import { Mortal, type TestPlatform, TestSite } from './test-host.ts'

let site: TestSite

beforeEach(async () => {
  site = await TestSite.open()
})
afterEach(() => site[Symbol.asyncDispose]())

const actor = 'ada'
const crashPointsMax = 40

/** A sandbox whose files were `then` when its snapshot was taken, and are `now`. */
async function setUp(): Promise<void> {
  const platform = await site.start()
  await platform.sandboxes.create('main', { metadata: { name: 'old' } }, { actor })
  await platform.sandboxes.settled()
  machineOf('old').content = 'then'
  await platform.snapshots.create('main', 'old', { name: 'kept', actor })
  machineOf('old').content = 'now'
  await platform.close({ keepInstances: true })
}

function machineOf(name: string) {
  const found = [...site.host.machines.values()].find(({ spec }) => spec.hostname === name)
  if (!found) throw new Error(`there is no machine ${name}`)
  return found
}

/** Records, machines and files of snapshots agree, nothing stands still, and nothing else is left. */
async function expectAgreement({ sandboxes, instances, snapshots }: TestPlatform): Promise<void> {
  await sandboxes.settled()
  await instances.settled()
  await eventually('nothing stands still', () =>
    [...site.host.machines.values()].every(({ frozen }) => !frozen),
  )
  const found = (await sandboxes.list('main', {})).data
  for (const sandbox of found) {
    expect(sandbox.body.status).toBe('DEPLOYED')
    using lease = await sandboxes.acquire('main', sandbox.name)
    expect(lease.instance.id).toBe(sandbox.body.instanceId ?? '')
  }
  const wanted = found.map(({ body }) => body.instanceId).toSorted()
  expect([...site.host.machines.keys()].toSorted()).toEqual(wanted as string[])
  const records = (await snapshots.list('main', {})).data
  const ready = records.filter(({ body }) => body.status === 'ready')
  expect(records.filter(({ body }) => body.status === 'pending')).toEqual([])
  await eventually('only files of snapshots that are ready', () => site.host.snapshots.size === ready.length)
  for (const { body } of ready)
    expect(site.host.snapshots.get(body.id.slice(5))).toMatchObject({ complete: true })
}

const scenarios: Record<
  string,
  {
    run: (platform: TestPlatform) => Promise<void>
    /** What is so once `run` was acknowledged. */
    done: (platform: TestPlatform) => Promise<void>
  }
> = {
  'a snapshot': {
    run: async ({ snapshots }) => void (await snapshots.create('main', 'old', { name: 'new', actor })),
    done: async ({ snapshots }) =>
      expect((await snapshots.get('main', 'new', 'old')).body).toMatchObject({ status: 'ready' }),
  },
  'a restore': {
    run: async ({ snapshots }) => void (await snapshots.restore('main', 'old', 'kept', { actor })),
    done: async () => expect(machineOf('old').content).toBe('then'),
  },
  'a fork from a snapshot': {
    run: async ({ snapshots }) => {
      const kept = await snapshots.get('main', 'kept')
      await snapshots.fork(kept, { targetName: 'copy' }, { actor })
    },
    done: async () => expect(machineOf('copy').content).toBe('then'),
  },
  'a fork of what runs': {
    run: async ({ snapshots }) =>
      void (await snapshots.forkSandbox('main', 'old', { targetName: 'copy' }, { actor })),
    done: async () => expect(machineOf('copy').content).toBe('now'),
  },
  'a snapshot of an archived sandbox': {
    run: async ({ sandboxes, snapshots }) => {
      await sandboxes.archive('main', 'old')
      await sandboxes.settled()
      await snapshots.create('main', 'old', { name: 'new', actor })
      await sandboxes.unarchive('main', 'old')
    },
    done: async ({ snapshots }) =>
      expect((await snapshots.get('main', 'new', 'old')).body.status).toBe('ready'),
  },
  'removal of a snapshot': {
    run: async ({ snapshots }) => await snapshots.remove(await snapshots.get('main', 'kept')),
    done: async ({ snapshots }) => expect((await snapshots.list('main', {})).data).toEqual([]),
  },
}

for (const [what, { run, done }] of Object.entries(scenarios)) {
  test(`kill -9 at any point of ${what} leaves all of it or nothing`, async () => {
    let finished = false
    let points = 0
    for (let point = 0; !finished; point++) {
      expect(point).toBeLessThan(crashPointsMax)
      const fresh = await TestSite.open()
      await site[Symbol.asyncDispose]()
      site = fresh
      await setUp()

      const mortal = new Mortal()
      const doomed = await site.start({ mortal })
      await doomed.sandboxes.settled()
      mortal.dieAt(point)
      let acknowledged = false
      const life = async () => {
        await run(doomed)
        acknowledged = true
        await doomed.sandboxes.settled()
        await doomed.close({ keepInstances: true })
        return true
      }
      finished = await Promise.race([life(), mortal.died.then(() => false)])
      if (!finished) points++

      const after = await site.start()
      await after.sandboxes.settled()
      for (const { name, body } of (await after.sandboxes.list('main', {})).data)
        if (body.status === 'ARCHIVED') await after.sandboxes.unarchive('main', name)
      await expectAgreement(after)
      // Old files or the snapshot's, never something else.
      expect(['then', 'now']).toContain(machineOf('old').content)
      if (acknowledged) await done(after)
      await after.close({ keepInstances: true })
    }
    expect(points).toBeGreaterThan(1)
  }, 30_000)
}

test('a capture that fails leaves no record and no file, and the sandbox goes on', async () => {
  await setUp()
  const platform = await site.start()
  site.host.faults.capture = () => {
    throw new PlatformError('insufficient_storage', 'the disk is full')
  }
  const failing = platform.snapshots.create('main', 'old', { actor })
  expect(await failing.catch(({ code }) => code)).toBe('insufficient_storage')
  site.host.faults.capture = () => {}
  site.host.faults.complete = () => {
    throw new PlatformError('unavailable', 'it is not sound')
  }
  const failingLate = platform.snapshots.create('main', 'old', { actor })
  expect(await failingLate.catch(({ code }) => code)).toBe('unavailable')
  expect((await platform.snapshots.list('main', {})).data.map(({ body }) => body.name)).toEqual(['kept'])
  await expectAgreement(platform)
  await platform.close()
})

test('one that takes long is answered as pending, cannot be used before, and may fail', async () => {
  await setUp()
  const platform = await site.start()
  const { snapshots } = platform
  let given = Promise.withResolvers<void>()
  site.host.faults.complete = () => given.promise
  const slow = async (name: string) => {
    const sleepers = site.clock.sleepers
    const creating = snapshots.create('main', 'old', { name, actor })
    await eventually(
      'it is being completed',
      () => site.host.snapshots.size === 2 && site.clock.sleepers > sleepers,
    )
    await eventually('it is recorded', async () => (await snapshots.list('main', {})).data.length === 2)
    site.clock.advance(60_000)
    return await creating
  }
  const pending = await slow('slow')
  expect((await snapshots.view(pending)).status).toBe('pending')
  // Whoever wants to use it waits.
  const forking = snapshots.fork(pending, { targetName: 'copy' }, { actor })
  given.resolve()
  await forking
  expect(machineOf('copy').content).toBe('now')
  await snapshots.remove(await snapshots.get('main', 'slow'))
  await eventually('its files are gone', () => site.host.snapshots.size === 1)

  given = Promise.withResolvers<void>()
  await slow('failing')
  given.reject(new PlatformError('unavailable', 'it is not sound'))
  await eventually('failed', async () => (await snapshots.get('main', 'failing')).body.status === 'failed')
  const failed = await snapshots.get('main', 'failing')
  const refused = snapshots.restore('main', 'old', 'failing', { actor })
  expect(await refused.catch((error) => [error.code, error.message])).toEqual([
    'conflict',
    expect.stringContaining('it could not be taken: it is not sound'),
  ])
  expect(site.host.snapshots.size).toBe(1)
  await snapshots.remove(failed)
  await platform.close()
})

test('files of a snapshot that is deleted stay until what is made of it has them', async () => {
  await setUp()
  const platform = await site.start()
  const { snapshots } = platform
  const copying = Promise.withResolvers<void>()
  const began = Promise.withResolvers<void>()
  site.host.faults.create = () => {
    began.resolve()
    return copying.promise
  }
  const kept = await snapshots.get('main', 'kept')
  const forking = snapshots.fork(kept, { targetName: 'copy' }, { actor })
  await began.promise
  await snapshots.remove(kept)
  expect((await snapshots.list('main', {})).data).toEqual([])
  const late = snapshots.fork(kept, { targetName: 'late' }, { actor })
  expect(await late.catch(({ code }) => code)).toBe('not_found')
  expect(site.host.snapshots.size).toBe(1)
  copying.resolve()
  await forking
  expect(machineOf('copy').content).toBe('then')
  await eventually('its files are gone', () => site.host.snapshots.size === 0)
  await platform.close()
})
