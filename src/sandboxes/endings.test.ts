import { afterEach, beforeEach, expect, test } from 'bun:test'
import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { createLogger } from '../lib/log.ts'
import { eventually } from '../lib/test-eventually.ts'
import { refusalOf } from '../lib/test-refusal.ts'
import { actionsOn } from './test-actions.ts'
import { type TestPlatform, TestSite } from './test-host.ts'

let site: TestSite
let platform: TestPlatform

beforeEach(async () => {
  site = await TestSite.open()
  platform = await site.start()
})
afterEach(async () => {
  await platform.close()
  await site[Symbol.asyncDispose]()
})

const { create, get, put, names, onlyMachine } = actionsOn({ site: () => site, platform: () => platform })

test('deletion takes files, records and the name, and whoever still asks is told', async () => {
  await create('box')
  const id = await onlyMachine()
  const files = join(site.dataDir, 'sandboxes', `${id}.processes`)
  using lease = await platform.sandboxes.acquire('main', 'box')
  // This host runs none, and what was asked for is recorded all the same.
  await lease.processes.start({ command: 'true' }).catch(() => {})
  expect(existsSync(files)).toBe(true)
  const removed = await platform.sandboxes.remove('main', 'box')
  expect(removed.body.status).toBe('DELETING')
  expect(site.host.machines.size).toBe(0)
  expect(existsSync(files)).toBe(false)
  expect(await refusalOf(get('box'))).toMatchObject({ code: 'not_found', status: 404 })
  expect(await refusalOf(platform.sandboxes.remove('main', 'box'))).toMatchObject({ code: 'not_found' })
  expect(await refusalOf(platform.sandboxes.acquire('main', 'box'))).toMatchObject({
    code: 'workload_not_found',
  })
  expect((await platform.store.page({ kind: 'instance' })).data).toEqual([])
})

test('an archive that a deletion cuts short is no failure that anybody is warned of', async () => {
  const lines: string[] = []
  const log = createLogger({ clock: site.clock, level: 'warn', write: (line) => void lines.push(line) })
  await platform.close()
  platform = await site.start({ log })
  await create('box')
  const packing = Promise.withResolvers<void>()
  site.host.faults.pack = (_, signal) => {
    packing.resolve()
    return new Promise((_, reject) => signal?.addEventListener('abort', () => reject(signal.reason)))
  }
  await platform.sandboxes.archive('main', 'box')
  await packing.promise
  await platform.sandboxes.remove('main', 'box')
  await platform.close()
  platform = await site.start({ log })
  expect(lines).toEqual([])
  // One that fails by itself is told, so that there is something to be silent about.
  await create('box')
  site.host.faults.pack = () => {
    throw new Error('no room')
  }
  await platform.sandboxes.archive('main', 'box')
  await eventually('it is handed back', async () => (await get('box')).status === 'DEPLOYED')
  expect(lines.map((line) => JSON.parse(line).message)).toEqual(['an instance could not be archived'])
})

test('a slow deletion is answered in time and shows as DELETING until it is done', async () => {
  await create('box')
  const held = Promise.withResolvers<void>()
  site.host.faults.destroy = () => held.promise
  const removal = platform.sandboxes.remove('main', 'box')
  await eventually('the record says so', async () => (await get('box')).status === 'DELETING')
  expect(await refusalOf(platform.sandboxes.acquire('main', 'box'))).toMatchObject({
    code: 'workload_not_found',
  })
  await eventually('the request waits', () => site.clock.sleepers > 0)
  site.clock.advance(60_000)
  expect((await removal).body.status).toBe('DELETING')
  held.resolve()
  await platform.sandboxes.settled()
  expect(await names()).toEqual([])
})

test('a ttl terminates: visible as TERMINATED, hidden from lists, the name free, then forgotten', async () => {
  await create('box', { runtime: { ttl: '10s' }, metadata: { externalId: 'e' } })
  expect((await get('box')).expiresIn).toBe(10)
  site.clock.advance(9_999)
  expect((await get('box')).status).toBe('DEPLOYED')
  site.clock.advance(1)
  const over = await get('box')
  expect(over.status).toBe('TERMINATED')
  expect(over.state).toBeUndefined()
  expect(await names()).toEqual([])
  expect(await names({ showTerminated: true })).toEqual(['box'])
  expect(await refusalOf(platform.sandboxes.getByExternalId('main', 'e'))).toMatchObject({
    code: 'not_found',
  })
  expect(await refusalOf(platform.sandboxes.acquire('main', 'box'))).toMatchObject({
    code: 'workload_not_found',
  })
  await platform.sandboxes.settled()
  expect(site.host.machines.size).toBe(0)

  const again = await create('box')
  expect(again.status).toBe('DEPLOYED')
  await platform.sandboxes.remove('main', 'box')

  await create('gone', { runtime: { ttl: '1s' } })
  await eventually('the timer waits', () => site.clock.sleepers > 0)
  site.clock.advance(1000)
  await eventually(
    'it is terminated without anyone asking',
    async () => (await names({ showTerminated: true, status: 'TERMINATED' })).length === 1,
  )
  await eventually('the timer waits', () => site.clock.sleepers > 0)
  for (let seconds = 0; seconds <= 300; seconds += 30) {
    site.clock.advance(30_000)
    await eventually(
      'the timer waits or is done',
      async () => site.clock.sleepers > 0 || (await names({ showTerminated: true })).length === 0,
    )
  }
  await eventually('its record is removed', async () => (await names({ showTerminated: true })).length === 0)
})

test('an idle policy counts from the last use, and a lease keeps it alive', async () => {
  await create('box', {
    spec: { lifecycle: { expirationPolicies: [{ type: 'ttl-idle', value: '5s', action: 'delete' }] } },
  })
  await platform.sandboxes.settled()
  const lease = await platform.sandboxes.acquire('main', 'box')
  site.clock.advance(60_000)
  expect((await get('box')).status).toBe('DEPLOYED')
  lease[Symbol.dispose]()
  site.clock.advance(4_000)
  expect((await get('box')).status).toBe('DEPLOYED')
  site.clock.advance(1_000)
  expect((await get('box')).status).toBe('TERMINATED')
})

test('a ttl that was cleared in time does not fire', async () => {
  await create('box', { runtime: { ttl: '20s' } })
  await put('box', (body) => ({
    ...body,
    spec: { ...body.spec, runtime: { ...body.spec.runtime, ttl: null } },
  }))
  site.clock.advance(60_000)
  expect((await get('box')).status).toBe('DEPLOYED')
})

test('a disabled sandbox accepts no connection and keeps its machine', async () => {
  await create('box')
  await put('box', (body) => ({ ...body, spec: { ...body.spec, enabled: false } }))
  expect(await refusalOf(platform.sandboxes.acquire('main', 'box'))).toMatchObject({
    code: 'workload_unavailable',
  })
  await put('box', (body) => ({ ...body, spec: { ...body.spec, enabled: true } }))
  using lease = await platform.sandboxes.acquire('main', 'box')
  expect(lease.instance.id).toBe(await onlyMachine())
})
