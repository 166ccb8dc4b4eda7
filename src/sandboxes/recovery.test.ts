import { afterEach, beforeEach, expect, test } from 'bun:test'
import { existsSync } from 'node:fs'
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { PlatformError } from '../errors.ts'
import { recoveryWaitMsMax } from '../instances/recovery.ts'
import { restartBackoffMsMax, restartsMax } from '../instances/restarts.ts'
import { eventually } from '../lib/test-eventually.ts'
import type { SandboxInput } from './schema.ts'
import { Mortal, type TestPlatform, TestSite } from './test-host.ts'

let site: TestSite
const open: TestPlatform[] = []

beforeEach(async () => {
  site = await TestSite.open()
})
afterEach(async () => {
  for (const platform of open.splice(0)) await platform.close()
  await site[Symbol.asyncDispose]()
})

async function up(): Promise<TestPlatform> {
  const platform = await site.start()
  open.push(platform)
  return platform
}

function box(name = 'box', env: Record<string, string> = {}): SandboxInput {
  const envs = Object.entries(env).map(([key, value]) => ({ name: key, value }))
  return { metadata: { name }, spec: { runtime: { envs } } }
}

const actor = 'ada'

/** Records, machines and leases agree, and nothing else is left. */
async function expectAgreement(platform: TestPlatform): Promise<void> {
  await platform.sandboxes.settled()
  await platform.instances.settled()
  const sandboxes = (await platform.sandboxes.list('main', { showTerminated: true })).data
  for (const sandbox of sandboxes) {
    expect(sandbox.body.status).toBe('DEPLOYED')
    using lease = await platform.sandboxes.acquire('main', sandbox.name)
    expect(lease.instance.id).toBe(sandbox.body.instanceId!)
  }
  const wanted = sandboxes.map(({ body }) => body.instanceId).toSorted()
  expect([...site.host.machines.keys()].toSorted()).toEqual(wanted as string[])
  const records = (await site.store.page<{ state: string }>({ kind: 'instance' })).data
  expect(records.map(({ name }) => name).toSorted()).toEqual(wanted as string[])
  expect(records.every(({ body }) => body.state === 'running')).toBe(true)
}

test('after kill -9 a running sandbox is adopted, not started again, and awake', async () => {
  const before = await site.start()
  await before.sandboxes.create('main', box('box', { KEY: 'value' }), { actor })
  const [id, machine] = [...site.host.machines.entries()][0]!
  machine.frozen = true
  const after = await up()
  using lease = await after.sandboxes.acquire('main', 'box')
  expect(lease.instance.id).toBe(id)
  expect(lease.env.KEY).toBe('value')
  expect(site.host.machines.get(id)).toMatchObject({ starts: 1, frozen: false })
  await expectAgreement(after)
})

test('a machine that does not answer keeps neither the start nor other sandboxes waiting', async () => {
  const before = await site.start()
  for (const name of ['mute', 'well']) await before.sandboxes.create('main', box(name), { actor })
  const mute = (await before.sandboxes.get('main', 'mute')).body.instanceId
  await before.close({ keepInstances: true })
  const given = Promise.withResolvers<void>()
  site.host.faults.recover = async (id) => {
    if (id !== mute) return
    await given.promise
    throw new PlatformError('unavailable', 'The sandbox does not answer')
  }
  const starting = up()
  await eventually('the start waits', () => site.clock.sleepers > 0)
  site.clock.advance(recoveryWaitMsMax)
  const after = await starting
  using well = await after.sandboxes.acquire('main', 'well')
  expect(well.instance.id).not.toBe(mute ?? '')
  const giveUp = AbortSignal.timeout(20)
  expect(await after.sandboxes.acquire('main', 'mute', giveUp).catch((error) => error)).toBe(giveUp.reason)
  given.resolve()
  using found = await after.sandboxes.acquire('main', 'mute')
  expect(found.instance.id).toBe(mute ?? '')
  expect(site.host.machines.get(mute ?? '')).toMatchObject({ starts: 2 })
})

test('SIGTERM stops machines and keeps their files; the next start runs them again', async () => {
  const before = await site.start()
  await before.sandboxes.create('main', box('box', { KEY: 'value' }), { actor })
  await before.close()
  const [id, machine] = [...site.host.machines.entries()][0]!
  expect(machine.running).toBe(false)
  const after = await up()
  using lease = await after.sandboxes.acquire('main', 'box')
  expect(lease.instance.id).toBe(id)
  expect(lease.env.KEY).toBe('value')
  expect(site.host.machines.get(id)).toMatchObject({ running: true, starts: 2 })
  expect(site.host.machines.get(id)!.spec.env.KEY).toBe('value')
  await expectAgreement(after)
})

test('SIGTERM with keepInstances leaves machines running', async () => {
  const before = await site.start()
  await before.sandboxes.create('main', box(), { actor })
  await before.close({ keepInstances: true })
  expect([...site.host.machines.values()][0]).toMatchObject({ running: true, starts: 1 })
  await expectAgreement(await up())
  expect([...site.host.machines.values()][0]).toMatchObject({ running: true, starts: 1 })
})

test('after a reboot of the host every sandbox is started again from its files', async () => {
  const before = await site.start()
  for (const name of ['a', 'b', 'c']) await before.sandboxes.create('main', box(name), { actor })
  await before.close({ keepInstances: true })
  site.host.reboot()
  const after = await up()
  await expectAgreement(after)
  expect([...site.host.machines.values()].map(({ starts }) => starts)).toEqual([2, 2, 2])
})

test('a sandbox whose files are gone is FAILED, says why, and can be created over', async () => {
  const before = await site.start()
  await before.sandboxes.create('main', box(), { actor })
  await before.close()
  site.host.machines.clear()
  const after = await up()
  await eventually(
    'it is given up',
    async () => (await after.sandboxes.get('main', 'box')).body.status === 'FAILED',
  )
  const { events } = (await after.sandboxes.get('main', 'box')).body
  expect(events.at(-1)!.message).toContain('files are gone')
  expect(after.sandboxes.acquire('main', 'box')).rejects.toMatchObject({ code: 'workload_unavailable' })
  await after.sandboxes.create('main', box(), { actor })
  await expectAgreement(after)
})

test('machines and process records that nobody knows are removed at start', async () => {
  const first = await site.start()
  await first.sandboxes.create('main', box(), { actor })
  await first.close({ keepInstances: true })
  const [known] = [...site.host.machines.keys()] as [string]
  site.host.machines.set('orphan000000', { ...site.host.machines.get(known)! })
  await writeFile(join(site.dataDir, 'sandboxes', 'orphan000000.processes'), '')
  const after = await up()
  expect([...site.host.machines.keys()]).toEqual([known])
  expect(existsSync(join(site.dataDir, 'sandboxes', 'orphan000000.processes'))).toBe(false)
  await expectAgreement(after)
})

const scenarios: Record<string, (platform: TestPlatform, acknowledged: Set<string>) => Promise<void>> = {
  async create({ sandboxes }, acknowledged) {
    await sandboxes.create('main', box('new'), { actor })
    acknowledged.add('new')
  },
  async 'an update that makes a new machine'({ sandboxes }, acknowledged) {
    acknowledged.add('old')
    await sandboxes.update('main', 'old', box('old', { CHANGED: 'yes' }), { actor })
  },
  async remove({ sandboxes }, acknowledged) {
    await sandboxes.remove('main', 'old')
    acknowledged.delete('old')
  },
  async archive({ sandboxes }, acknowledged) {
    acknowledged.add('old')
    await sandboxes.archive('main', 'old')
  },
  async 'archive and unarchive'({ sandboxes }, acknowledged) {
    acknowledged.add('old')
    await sandboxes.archive('main', 'old')
    await sandboxes.settled()
    await sandboxes.unarchive('main', 'old')
  },
  async 'removal of an archived sandbox'({ sandboxes }, acknowledged) {
    await sandboxes.archive('main', 'old')
    await sandboxes.remove('main', 'old')
    acknowledged.delete('old')
  },
  async 'creation over a terminated name'({ sandboxes }, acknowledged) {
    await sandboxes.update('main', 'old', { ...box('old'), spec: { runtime: { ttl: '1s' } } }, { actor })
    site.clock.advance(2_000)
    await sandboxes.create('main', box('old'), { actor })
    acknowledged.add('old')
  },
}
const crashPointsMax = 40

for (const [what, run] of Object.entries(scenarios)) {
  test(`kill -9 at any point of ${what} leaves records and machines in agreement`, async () => {
    let finished = false
    let points = 0
    for (let point = 0; !finished; point++) {
      expect(point).toBeLessThan(crashPointsMax)
      const fresh = await TestSite.open()
      await site[Symbol.asyncDispose]()
      site = fresh
      const setUp = await site.start()
      await setUp.sandboxes.create('main', box('old'), { actor })
      await setUp.sandboxes.settled()
      await setUp.close({ keepInstances: true })

      const mortal = new Mortal()
      const doomed = await site.start({ mortal })
      await doomed.sandboxes.settled()
      mortal.dieAt(point)
      const acknowledged = new Set<string>()
      const life = async () => {
        await run(doomed, acknowledged)
        await doomed.sandboxes.settled()
        await doomed.close({ keepInstances: true })
        return true
      }
      finished = await Promise.race([life(), mortal.died.then(() => false)])
      if (!finished) points++

      const after = await site.start()
      const statuses = (await after.sandboxes.list('main', { showTerminated: true })).data
      for (const name of acknowledged) expect(statuses.map((one) => one.name)).toContain(name)
      for (const { name } of statuses) {
        const { body } = await after.sandboxes.get('main', name)
        if (body.status === 'TERMINATED') await after.sandboxes.remove('main', name)
      }
      // What was under way is finished, one way or the other; what is archived comes back.
      await after.sandboxes.settled()
      for (const { name, body } of (await after.sandboxes.list('main', {})).data) {
        if (body.status !== 'ARCHIVED') continue
        expect([...site.host.machines.values()].map(({ packed, running }) => [packed, running])).toEqual([
          [true, false],
        ])
        await after.sandboxes.unarchive('main', name)
      }
      await expectAgreement(after)
      await after.close({ keepInstances: true })
    }
    expect(points).toBeGreaterThan(3)
  }, 120_000)
}

test('a machine that ends by itself is started again from its files, and the sandbox says so', async () => {
  const platform = await up()
  await platform.sandboxes.create('main', box(), { actor })
  const [id] = [...site.host.machines.keys()] as [string]
  {
    using lease = await platform.sandboxes.acquire('main', 'box')
    expect(lease.instance.id).toBe(id)
  }
  site.host.crash(id, 'out_of_memory')
  await eventually('it runs again', () => site.host.machines.get(id)?.starts === 2)
  using lease = await platform.sandboxes.acquire('main', 'box')
  expect(lease.instance.id).toBe(id)
  await platform.sandboxes.settled()
  const { body } = await platform.sandboxes.get('main', 'box')
  expect(body.status).toBe('DEPLOYED')
  expect(body.events.map(({ message }) => message).join()).toMatch(/out of memory.*Started again/)
})

test('acquire waits while a machine is started again, and can be given up', async () => {
  const platform = await up()
  await platform.sandboxes.create('main', box(), { actor })
  await platform.sandboxes.settled()
  const [id] = [...site.host.machines.keys()] as [string]
  const held = Promise.withResolvers<void>()
  site.host.faults.restart = () => held.promise
  site.host.crash(id)
  await platform.sandboxes.settled()
  const giveUp = new AbortController()
  const impatient = platform.sandboxes.acquire('main', 'box', giveUp.signal)
  const patient = platform.sandboxes.acquire('main', 'box')
  giveUp.abort(new PlatformError('gateway_timeout', 'too slow'))
  expect(impatient).rejects.toMatchObject({ code: 'gateway_timeout' })
  held.resolve()
  using lease = await patient
  expect(lease.instance.id).toBe(id)
})

test('a machine that keeps ending is given up after a bounded number of tries', async () => {
  const platform = await up()
  await platform.sandboxes.create('main', box(), { actor })
  const [id] = [...site.host.machines.keys()] as [string]
  site.host.faults.restart = () => {
    throw new PlatformError('unavailable', 'the host has no room')
  }
  site.host.crash(id)
  await eventually('it is FAILED', async () => {
    site.clock.advance(restartBackoffMsMax)
    return (await platform.sandboxes.get('main', 'box')).body.status === 'FAILED'
  })
  expect(await platform.sandboxes.acquire('main', 'box').catch((error) => error.code)).toBe(
    'workload_unavailable',
  )
  const { events } = (await platform.sandboxes.get('main', 'box')).body
  expect(events.at(-1)!.message).toContain('no room')
  expect(restartsMax).toBeLessThan(10)
  await platform.sandboxes.remove('main', 'box')
  expect(site.host.machines.size).toBe(0)
})

test('a removal that fails is tried again, also by the next start', async () => {
  const platform = await site.start()
  await platform.sandboxes.create('main', box(), { actor })
  let fails = 2
  site.host.faults.destroy = () => {
    if (fails-- > 0) throw new Error('busy')
  }
  const removal = platform.sandboxes.remove('main', 'box')
  let done = false
  void removal.then(() => {
    done = true
  })
  await eventually('it is gone', () => {
    site.clock.advance(200)
    return done && site.host.machines.size === 0
  })
  await platform.sandboxes.settled()
  await platform.sandboxes.create('main', box(), { actor })
  fails = 1000
  const second = platform.sandboxes.remove('main', 'box')
  await eventually(
    'it is marked',
    async () => (await platform.sandboxes.get('main', 'box')).body.status === 'DELETING',
  )
  let closed = false
  void platform.close({ keepInstances: true }).then(() => {
    closed = true
  })
  await eventually('it gives up', () => {
    site.clock.advance(60_000)
    return closed
  })
  await second.catch(() => {})
  expect(site.host.machines.size).toBe(1)
  delete site.host.faults.destroy
  const after = await up()
  expect(site.host.machines.size).toBe(0)
  expect(await after.sandboxes.get('main', 'box').catch((error) => error.code)).toBe('not_found')
})

test('deadlines survive a restart', async () => {
  const before = await site.start()
  const input = { ...box(), spec: { runtime: { ttl: '1h' } } }
  await before.sandboxes.create('main', input, { actor })
  await before.close({ keepInstances: true })
  site.clock.advance(2 * 3600_000)
  const after = await up()
  await eventually('it is terminated', async () => {
    return (await after.sandboxes.get('main', 'box')).body.status === 'TERMINATED'
  })
  await after.sandboxes.settled()
  expect(site.host.machines.size).toBe(0)
})

test('while stopping nothing new is begun', async () => {
  const platform = await site.start()
  await platform.close()
  expect(platform.sandboxes.create('main', box(), { actor })).rejects.toMatchObject({ code: 'unavailable' })
  expect(site.host.machines.size).toBe(0)
})
