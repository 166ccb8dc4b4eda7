import { afterEach, beforeEach, expect, test } from 'bun:test'
import { existsSync, readdirSync } from 'node:fs'
import { join } from 'node:path'
import type { BuildRequest, BuildResult } from '../builder/index.ts'
import { PlatformError } from '../errors.ts'
import { emptyProjectSettings } from '../lib/project-settings.ts'
import { eventually } from '../lib/test-eventually.ts'
import type { SandboxInput } from './schema.ts'
import { Mortal, type TestPlatform, TestSite } from './test-host.ts'

let site: TestSite
let platform: TestPlatform
let jobs: { request: BuildRequest; end(error?: Error): void }[]
const actor = 'ada'
const origin = 'http://localhost:4400'

function build(request: BuildRequest): Promise<BuildResult> {
  const { promise, resolve, reject } = Promise.withResolvers<BuildResult>()
  const image = `sandbox/${request.name}:${request.tag}`
  request.signal.addEventListener('abort', () => reject(request.signal.reason))
  jobs.push({
    request,
    end: (error) =>
      error ? reject(error) : resolve({ image, language: 'docker', settings: emptyProjectSettings() }),
  })
  return promise
}

beforeEach(async () => {
  jobs = []
  site = await TestSite.open()
  platform = await site.start({ build })
})
afterEach(async () => {
  await platform.close()
  await site[Symbol.asyncDispose]()
})

const input = (rest: SandboxInput = {}): SandboxInput => ({
  metadata: { name: 'box', ...rest.metadata },
  spec: { runtime: { memory: 512, envs: [{ name: 'KEY', value: 'hunter2' }], ...rest.spec?.runtime } },
})
const create = (on = platform) => on.sandboxes.createFromSource('main', input(), { actor, origin })
const update = (on = platform) =>
  on.sandboxes.updateFromSource('main', 'box', { spec: { runtime: { memory: 1024 } } }, { actor, origin })
const view = async (on = platform) => on.sandboxes.view(await on.sandboxes.get('main', 'box'), origin)
const status = async () => (await view()).status
const becomes = (wanted: string) => eventually(`status ${wanted}`, async () => (await status()) === wanted)
const upload = async (uploadUrl: string, on = platform) => {
  const bytes = Buffer.from('PK\u0003\u0004 source')
  const token = uploadUrl.split('/').at(-1)!
  await on.builds.receive(token, new Blob([bytes]).stream(), 'application/zip', bytes.length)
}
const refusal = (work: Promise<unknown>) =>
  work.then(
    () => null,
    (error: unknown) => error,
  )
const job = async (at = 0) => {
  await eventually(`job ${at}`, () => jobs.length > at)
  return jobs[at]!
}
const runs = async () => {
  using lease = await platform.sandboxes.acquire('main', 'box')
  return lease.env
}

test('one is created, uploaded, built and deployed, and says so step by step', async () => {
  const { sandbox, uploadUrl } = await create()
  expect(uploadUrl).toMatch(/^http:\/\/localhost:4400\/-\/uploads\/[\w-]{43}$/)
  const { image } = sandbox.body.spec
  expect(image).toMatch(/^sandbox\/box:build-[a-z0-9]{12}$/)
  expect(await status()).toBe('UPLOADING')
  expect(await refusal(platform.sandboxes.acquire('main', 'box'))).toMatchObject({
    code: 'workload_unavailable',
  })
  expect(await refusal(create())).toMatchObject({ code: 'already_exists' })
  await upload(uploadUrl)
  await becomes('BUILDING')
  const { request, end } = await job()
  expect(request).toMatchObject({ kind: 'sandbox', name: 'box', tag: image.split(':')[1] })
  site.clock.advance(1000)
  end()
  // It can be used as soon as it runs, and those who poll are told that it is built for a while.
  await eventually('a machine', () => site.host.machines.size === 1)
  await eventually(
    'its record',
    async () => (await platform.sandboxes.get('main', 'box')).body.status === 'DEPLOYED',
  )
  expect(await runs()).toMatchObject({ KEY: 'hunter2' })
  expect(await status()).toBe('BUILDING')
  const listed = platform.sandboxes.view(await platform.sandboxes.get('main', 'box'), '', { events: false })
  expect(listed.status).toBe('DEPLOYED')
  site.clock.advance(8000)
  expect(await view()).toMatchObject({ status: 'DEPLOYED', spec: { runtime: { image, memory: 512 } } })
  expect((await view()).events?.map(({ status }) => status)).toEqual([
    'UPLOADING',
    'BUILDING',
    'DEPLOYING',
    'DEPLOYED',
  ])
})

test('one whose build fails says why, and can be created anew', async () => {
  const { uploadUrl } = await create()
  await upload(uploadUrl)
  ;(await job()).end(new PlatformError('unprocessable', 'Dockerfile:3: no such file'))
  await becomes('BUILDING')
  await eventually(
    'its end',
    async () => (await platform.sandboxes.get('main', 'box')).body.status === 'FAILED',
  )
  site.clock.advance(9000)
  expect(await status()).toBe('FAILED')
  expect((await view()).events?.at(-1)?.message).toContain('Dockerfile:3: no such file')
  const again = await create()
  await upload(again.uploadUrl)
  ;(await job(1)).end()
  await eventually(
    'its machine',
    async () => (await platform.sandboxes.get('main', 'box')).body.status === 'DEPLOYED',
  )
})

test('one that runs goes on while its next image is built, and when that fails', async () => {
  const first = await platform.sandboxes.create('main', input(), { actor })
  const failing = await update()
  expect(await status()).toBe('UPLOADING')
  await upload(failing.uploadUrl)
  await becomes('BUILDING')
  expect(await runs()).toMatchObject({ KEY: 'hunter2' })
  ;(await job()).end(new PlatformError('unprocessable', 'no'))
  site.clock.advance(9000)
  await becomes('FAILED')
  expect((await view()).events?.at(-1)?.message).toBe('no\nWhat ran before goes on')
  expect((await platform.sandboxes.get('main', 'box')).body.instanceId).toBe(first.body.instanceId)
  await runs()
  // Others would take it for lost.
  site.clock.advance(60_000)
  expect(await status()).toBe('DEPLOYED')

  const good = await update()
  await upload(good.uploadUrl)
  ;(await job(1)).end()
  site.clock.advance(9000)
  await becomes('DEPLOYED')
  const { body } = await platform.sandboxes.get('main', 'box')
  expect(body.instanceId).not.toBe(first.body.instanceId)
  expect(await view()).toMatchObject({ spec: { runtime: { memory: 1024, image: body.spec.image } } })
  expect(body.spec.image).toStartWith('sandbox/box:')
  expect(await runs()).toMatchObject({ KEY: 'hunter2' })
})

test('an address that nobody uploads to fails a new one, and leaves one that runs as it is', async () => {
  await create()
  await site.clock.turn(3_600_000)
  await becomes('FAILED')
  await platform.sandboxes.remove('main', 'box')
  await platform.sandboxes.create('main', input(), { actor })
  const { uploadUrl } = await update()
  await site.clock.turn(3_600_000)
  await becomes('DEPLOYED')
  expect(await refusal(upload(uploadUrl))).toMatchObject({ code: 'gone' })
})

test('a sandbox that is deleted or changed takes what is built for it along', async () => {
  const { uploadUrl } = await create()
  await upload(uploadUrl)
  const { request } = await job()
  await platform.sandboxes.remove('main', 'box')
  expect(request.signal.aborted).toBe(true)
  await platform.sandboxes.create('main', input(), { actor })
  await upload((await update()).uploadUrl)
  const second = await job(1)
  await platform.sandboxes.update('main', 'box', { spec: { runtime: { memory: 2048 } } }, { actor })
  expect(second.request.signal.aborted).toBe(true)
  site.clock.advance(9000)
  expect(await view()).toMatchObject({
    status: 'DEPLOYED',
    spec: { runtime: { memory: 2048, image: 'blaxel/base-image:latest' } },
  })
  expect(readdirSync(join(site.dataDir, 'builds')).filter((name) => name.endsWith('.archive'))).toEqual([])
})

test('an upload again, before or while it is built, takes the place of the one before', async () => {
  await create()
  const second = await update()
  await upload(second.uploadUrl)
  await job()
  const third = await update()
  await upload(third.uploadUrl)
  ;(await job(1)).end()
  await eventually(
    'its machine',
    async () => (await platform.sandboxes.get('main', 'box')).body.status === 'DEPLOYED',
  )
  site.clock.advance(9000)
  expect((await view()).spec.runtime.image).toBe(`sandbox/box:${jobs[1]!.request.tag}`)
  expect(jobs[0]!.request.signal.aborted).toBe(true)
})

test('whenever the platform is killed, what was uploaded comes to be, on one machine', async () => {
  await platform.close()
  let deaths = 0
  for (let point = 0; ; point++) {
    jobs = []
    const mortal = new Mortal()
    const doomed = await site.start({ mortal, build })
    mortal.dieAt(point)
    let acknowledged = false
    const life = async () => {
      const { uploadUrl } = await create(doomed)
      await upload(uploadUrl, doomed)
      acknowledged = true
      ;(await job()).end()
      await eventually(
        'the end',
        async () =>
          (await doomed.sandboxes.get('main', 'box')).body.status === 'DEPLOYED' &&
          (await doomed.builds.newest({ workspace: 'main', kind: 'sandbox', name: 'box' }))?.status ===
            'built',
      )
      return 'lived'
    }
    const outcome = await Promise.race([life(), mortal.died])
    jobs = []
    const buildAtOnce = (request: BuildRequest) => {
      const building = build(request)
      jobs.at(-1)!.end()
      return building
    }
    platform = await site.start({ build: buildAtOnce })
    const stored = await site.store.get<{ status: string }>({
      kind: 'sandbox',
      workspace: 'main',
      name: 'box',
    })
    if (acknowledged || stored?.body.status === 'BUILDING') {
      await eventually(
        'the sandbox',
        async () => (await platform.sandboxes.get('main', 'box')).body.status === 'DEPLOYED',
      )
      await eventually(
        'the end of its build',
        async () =>
          (await platform.builds.newest({ workspace: 'main', kind: 'sandbox', name: 'box' }))?.status ===
          'built',
      )
      expect(site.host.machines.size).toBe(1)
    } else {
      expect(['UPLOADING', 'FAILED', undefined]).toContain(stored?.body.status)
    }
    if (stored) await platform.sandboxes.remove('main', 'box')
    await platform.close()
    expect(site.host.machines.size).toBe(0)
    const builds = join(site.dataDir, 'builds')
    expect(existsSync(builds) ? readdirSync(builds).filter((name) => name.endsWith('.archive')) : []).toEqual(
      [],
    )
    if (outcome === 'lived') break
    deaths++
  }
  expect(deaths).toBeGreaterThan(10)
  platform = await site.start({ build })
})
