import { afterEach, beforeEach, expect, test } from 'bun:test'
import { PlatformError } from '../errors.ts'
import { maskedValue } from '../lib/environment.ts'
import { eventually } from '../lib/test-eventually.ts'
import { refusalOf } from '../lib/test-refusal.ts'
import { applicationView } from './index.ts'
import { actionsOn, origin } from './test-actions.ts'
import { TestDeployments } from './test-host.ts'

let host: TestDeployments
beforeEach(async () => {
  host = await TestDeployments.open()
})
afterEach(() => host[Symbol.asyncDispose]())

const {
  asked,
  runtime,
  create,
  update,
  read,
  viewOf,
  statusNow,
  statusListed,
  acquire,
  served,
  becomes,
  isDeployed,
  revisions,
} = actionsOn(() => host)

test('an image becomes a revision that gets the requests once it is ready', async () => {
  const gate = Promise.withResolvers<void>()
  host.fleet.readiness = () => gate.promise
  const { deployment, revisionId } = await create({
    spec: { ...runtime({ envs: [{ name: 'KEY', value: 's3cret' }], memory: 512 }), public: true },
    metadata: { labels: { team: 7, on: true } },
  })
  expect(revisionId).toMatch(/^rev-[0-9a-z]{12}$/)
  expect(viewOf(deployment)).toMatchObject({
    metadata: { url: `${origin}/main/agents/one`, labels: { team: '7', on: 'true' }, workspace: 'main' },
    spec: { enabled: true, public: true, runtime: { image: 'sandbox/app:v1', memory: 512 } },
    status: 'DEPLOYING',
  })
  expect(await refusalOf(acquire())).toMatchObject({ code: 'workload_unavailable' })
  await eventually('it is being brought up', () => host.fleet.runs.size === 1)
  expect([...host.fleet.runs.values()]).toMatchObject([
    { image: `agent/one:${revisionId}`, env: { KEY: 's3cret' }, memoryMb: 512, port: 8000 },
  ])
  gate.resolve()
  await becomes('DEPLOYED')
  using got = (await acquire()).lease
  expect(got.port).toBe(8000)
  expect(host.deployments.isOpen('main', 'agent', 'one', { path: '', method: 'GET', isAsync: false })).toBe(
    true,
  )
  const { events } = viewOf(await read())
  expect(events?.map(({ status, revision }) => [status, revision])).toEqual([
    ['DEPLOYING', revisionId!],
    ['DEPLOYED', revisionId!],
  ])
})

test('values of variables are masked, kept when the mask comes back, and sealed in the store', async () => {
  await create({ spec: runtime({ envs: [{ name: 'KEY', value: 's3cret', secret: true }] }) })
  await becomes('DEPLOYED')
  const deployment = await read()
  expect(JSON.stringify(deployment.body)).not.toContain('s3cret')
  const view = viewOf(deployment)
  expect(view.spec.runtime.envs).toEqual([{ name: 'KEY', value: maskedValue, secret: true }])
  expect(viewOf(deployment, true).spec.runtime.envs?.[0]?.value).toBe('s3cret')
  const { revisionId } = await update({ spec: view.spec, metadata: { labels: { a: 'b' } } })
  expect(revisionId).toBeNull()
  const back = await read()
  expect(viewOf(back, true)).toMatchObject({
    metadata: { labels: { a: 'b' } },
    spec: { runtime: { envs: [{ name: 'KEY', value: 's3cret' }] } },
  })
})

test('a name that is taken is refused, and so is what is not there', async () => {
  await create()
  expect(await refusalOf(create())).toMatchObject({ code: 'already_exists' })
  expect(await refusalOf(update({ name: 'other', spec: runtime() }))).toMatchObject({ code: 'not_found' })
  expect(await refusalOf(create({ name: 'Bad Name' }))).toMatchObject({ code: 'bad_request' })
  expect(await refusalOf(create({ name: 'two', spec: {} }))).toMatchObject({
    code: 'bad_request',
    message: expect.stringContaining('spec.runtime.image: missing'),
  })
  expect(await refusalOf(host.deployments.get('main', 'agent', 'two'))).toMatchObject({ code: 'not_found' })
})

test('an upload is told of as being built for nine seconds, while traffic moves at once', async () => {
  const { deployment, revisionId, uploadUrl } = await create({ upload: true, spec: {} })
  expect(uploadUrl).toBe(`${origin}/-/uploads/1`)
  expect(viewOf(deployment).status).toBe('UPLOADING')
  expect(host.builds.begun).toEqual([{ workspace: 'main', kind: 'agent', name: 'one', tag: revisionId! }])
  await host.builds.uploaded(host.clock.now())
  expect(await statusNow()).toBe('BUILDING')
  await host.builds.built({ env: { CITY: 'Rome' } })
  await isDeployed(revisionId)
  expect(await statusNow()).toBe('BUILDING')
  // Nobody waits by a list.
  expect(await statusListed()).toBe('DEPLOYED')
  using _lease = (await acquire()).lease
  expect(host.fleet.runs.get(revisionId!)?.env).toEqual({ CITY: 'Rome' })
  host.clock.advance(8_900)
  expect(await statusNow()).toBe('BUILDING')
  host.clock.advance(200)
  expect(await statusNow()).toBe('DEPLOYED')
  const events = (await read()).body.events.filter(({ revision }) => revision === revisionId)
  expect(events.map(({ status }) => status)).toEqual(['UPLOADING', 'BUILDING', 'DEPLOYING', 'DEPLOYED'])
})

test("variables of a client lie over those of the code's blaxel.toml, which a change of variables keeps", async () => {
  const spec = { runtime: { envs: [{ name: 'A', value: 'client' }] } }
  const { revisionId } = await create({ upload: true, spec })
  await host.builds.uploaded(host.clock.now())
  await host.builds.built({ env: { A: 'toml', B: 'toml' }, transport: 'stdio' })
  await isDeployed(revisionId)
  expect(host.fleet.runs.get(revisionId!)).toMatchObject({
    env: { A: 'client', B: 'toml' },
    transport: 'stdio',
  })
  expect(viewOf(await read()).spec.runtime.image).toBe(`agent/one:${revisionId}`)
  const next = await update({ spec: { runtime: { envs: [{ name: 'A', value: 'anew' }] } } })
  await isDeployed(next.revisionId)
  expect(host.fleet.runs.get(next.revisionId!)).toMatchObject({
    env: { A: 'anew', B: 'toml' },
    transport: 'stdio',
    image: `agent/one:${next.revisionId}`,
  })
})

test('a build that fails, or a program that does not start, leaves the revision before serving and says why', async () => {
  const [first] = await revisions(1)
  await update({ upload: true, spec: {} })
  await host.builds.uploaded(host.clock.now())
  await host.builds.failed('npm run build ended with code 2\nno such file')
  host.clock.advance(9_000)
  expect(await statusNow()).toBe('FAILED')
  expect((await read()).body.events.at(-1)?.message).toBe(
    `npm run build ended with code 2\nno such file\nThe revision ${first} goes on serving.`,
  )
  expect((await acquire()).revisionId).toBe(first!)

  host.fleet.readiness = () => {
    throw new PlatformError('unprocessable', 'nothing listens on port 8000')
  }
  const broken = await update({ spec: runtime({ memory: 4096 }) })
  await eventually('it failed', async () =>
    (await read()).body.events.some(
      ({ revision, status }) => revision === broken.revisionId && status === 'FAILED',
    ),
  )
  expect((await read()).body.events.at(-1)?.message).toContain('nothing listens on port 8000')
  expect((await acquire()).revisionId).toBe(first!)
  expect(host.fleet.retired).toEqual([{ id: broken.revisionId!, now: true }])

  host.fleet.readiness = () => {}
  const mended = await update({ spec: runtime({ memory: 4096 }) })
  await isDeployed(mended.revisionId)
  expect((await acquire()).revisionId).toBe(mended.revisionId!)
  await eventually('the first one ended', () => host.fleet.retired.some(({ id }) => id === first))
})

test('a build that came as far as its image and no further leaves none behind', async () => {
  const { revisionId } = await create({ upload: true, spec: {} })
  await host.builds.uploaded(0)
  host.images.digests.set(`agent/one:${revisionId}`, 'sha256:built')
  await host.builds.failed('a newer build took the place of this one')
  await becomes('FAILED')
  await eventually('its image is gone', () => !host.images.digests.has(`agent/one:${revisionId}`))
  await eventually('nothing is left to remove', async () => (await read()).body.leftoverImages.length === 0)

  const next = await update({ upload: true, spec: {} })
  await host.builds.uploaded(0)
  host.images.digests.set(`agent/one:${next.revisionId}`, 'sha256:built')
  await host.deployments.remove('main', 'agent', 'one')
  await eventually('its image is gone', () => !host.images.digests.has(`agent/one:${next.revisionId}`))
})

test('an address that nothing was uploaded to is replaced by the next, and forgotten', async () => {
  const first = await create({ upload: true, spec: {} })
  const second = await update({ upload: true, spec: {} })
  expect((await read()).body.revisions.map(({ id }) => id)).toEqual([second.revisionId!])
  await host.builds.handlers
    .get('agent')!
    .failed({ owner: { ...host.builds.begun[0]!, tag: first.revisionId! }, uploadedAt: null }, 'replaced')
  expect(await statusNow()).toBe('UPLOADING')
})

test.each([
  ['http://localhost:4400', ['localhost'], 'http://site-main.app.localhost:4400'],
  ['http://127.0.0.1:4400', ['example.com', 'localhost'], 'http://site-main.app.localhost:4400'],
  [
    'https://hutch.example.com',
    ['localhost', 'hutch.example.com'],
    'https://site-main.app.hutch.example.com',
  ],
  ['http://192.0.2.1:4400', ['localhost'], 'http://192.0.2.1:4400/main/applications/site'],
  ['http://hutch.internal', ['example.com'], 'http://hutch.internal/main/applications/site'],
])(
  'an application asked for at %s, where the domains are %j, has the address %s',
  async (at, domains, url) => {
    const { deployment } = await create({
      kind: 'application',
      name: 'site',
      spec: { image: 'sandbox/app:v1' },
    })
    const options = { ...host.deployments.viewOptions(deployment, at), domains }
    expect(applicationView(deployment, options).metadata.url).toBe(url)
    const long = { ...deployment, name: 'n'.repeat(63) }
    expect(applicationView(long, options).metadata.url).toBe(`${at}/main/applications/${long.name}`)
  },
)

test('who sends back what he read changes nothing', async () => {
  const [first] = await revisions(1)
  const { revisionId: canary } = await update({
    spec: { ...runtime({ memory: 3000 }), revision: { traffic: 20 } },
  })
  await isDeployed(canary)
  const before = await read()
  const { revisionId } = await update({ spec: viewOf(before).spec })
  expect(revisionId).toBeNull()
  const after = await read()
  expect(after.body).toEqual({ ...before.body, sealedEnv: after.body.sealedEnv })
  expect(after.body.traffic).toEqual({ active: first!, canary: canary!, canaryPercent: 20 })
})

test('who sends back what he read with another variable has that served', async () => {
  await revisions(1)
  const { spec } = viewOf(await read())
  const changed = { ...spec, runtime: { ...spec.runtime, envs: [{ name: 'A', value: '1' }] } }
  const { revisionId } = await update({ spec: changed })
  await isDeployed(revisionId)
  expect((await acquire()).revisionId).toBe(revisionId!)
})

test('a revision that does not hold is told of, and changes nothing else', async () => {
  const [first] = await revisions(1)
  host.deployments.noteCrash(
    { workspace: 'main', kind: 'agent', name: 'one', id: first! },
    'it ended 3 times in a row',
  )
  const told = await eventually('it is told', async () =>
    (await read()).body.events.find(({ type }) => type === 'instance'),
  )
  expect(told).toMatchObject({ status: 'DEPLOYED', revision: first!, message: 'it ended 3 times in a row' })
  expect(await statusNow()).toBe('DEPLOYED')
  expect((await acquire()).revisionId).toBe(first!)
})

test('what is deactivated is not reached, and what is activated again is', async () => {
  const [first] = await revisions(1)
  await update({ spec: { enabled: false } })
  await becomes('DEACTIVATED')
  expect(host.fleet.retired.map(({ id }) => id)).toEqual([first!])
  expect(await refusalOf(acquire())).toMatchObject({
    code: 'workload_unavailable',
    message: expect.stringContaining('deactivated'),
    retryable: false,
    advice: { action: expect.stringContaining('spec.enabled: true') },
  })
  await update({ spec: { enabled: true } })
  await becomes('DEPLOYED')
  expect((await acquire()).revisionId).toBe(first!)
})

test('deleting ends the instances, the builds, the logs and the images that were made for it', async () => {
  const [first] = await revisions(1)
  const gate = Promise.withResolvers<void>()
  host.fleet.readiness = (_, signal) =>
    Promise.race([gate.promise, new Promise<void>((_, no) => signal?.addEventListener('abort', no))])
  const second = await update({ spec: runtime({ memory: 3000 }) })
  await eventually('the second is on its way', () => host.fleet.runs.has(second.revisionId!))
  const removed = await host.deployments.remove('main', 'agent', 'one')
  expect(viewOf(removed).status).toBe('DELETING')
  expect(await refusalOf(read())).toMatchObject({ code: 'not_found' })
  expect(host.fleet.runs.size).toBe(0)
  expect(host.fleet.retired.every(({ now }) => now)).toBe(true)
  expect(host.builds.cancelled).toEqual(['agent/one'])
  expect(host.images.removed.sort()).toEqual([first, second.revisionId].map((id) => `agent/one:${id}`).sort())
  expect(host.forgotten.at(-1)).toBe('main/agents/one')
  expect(await refusalOf(acquire())).toMatchObject({ code: 'workload_not_found' })
  gate.resolve()
})

test('what was accepted goes on after a crash: a revision on its way, a move of traffic, a deletion', async () => {
  const [first] = await revisions(1)
  const never = new Promise<void>(() => {})
  host.fleet.readiness = () => never
  const second = await update({ spec: runtime({ memory: 3000 }) })
  await eventually('the second is on its way', () => host.fleet.runs.has(second.revisionId!))
  await host.restart()
  // The first serves before anything else is done.
  expect(host.fleet.runs.has(first!)).toBe(true)
  await isDeployed(second.revisionId)
  expect((await acquire()).revisionId).toBe(second.revisionId!)

  host.fleet.readiness = () => never
  await update({ spec: { revision: { active: first } } })
  await host.restart()
  await eventually('the first serves again', async () => (await served()).active === first!)

  const upload = await update({ upload: true, spec: {} })
  await host.restart()
  expect(await statusNow()).toBe('UPLOADING')
  await host.builds.handlers.get('agent')!.built(
    {
      owner: { workspace: 'main', kind: 'agent', name: 'one', tag: upload.revisionId! },
      uploadedAt: host.clock.now(),
    },
    { image: `agent/one:${upload.revisionId}`, settings: { env: {}, runtime: {} } as never },
  )
  await isDeployed(upload.revisionId)
})

test('an image of a registry is pulled with credentials that are kept sealed only until it is here', async () => {
  let seen: string | undefined
  const gate = Promise.withResolvers<void>()
  host.images.pinning = async (_, dockerConfig) => {
    seen = dockerConfig
    await gate.promise
  }
  const image = 'registry.example/team/app:v1'
  const { revisionId } = await create({ spec: { runtime: { image, dockerConfig: '{"auths":{}}' } } })
  await eventually('it is being pulled', () => seen !== undefined)
  expect(seen).toBe('{"auths":{}}')
  expect(JSON.stringify((await read()).body)).not.toContain('auths')
  gate.resolve()
  await isDeployed(revisionId)
  expect((await read()).body.revisions[0]?.sealedDockerConfig).toBeUndefined()
  expect(viewOf(await read()).spec.runtime.image).toBe(image)
})

test('an application says its image and port at the top, is public, and has revisions of its own form', async () => {
  const spec = {
    enabled: true,
    port: 3000,
    revisions: [{ image: 'sandbox/app:v1', memory: 1024, envs: [{ name: 'A', value: '1' }] }],
  }
  const { revisionId } = await host.deployments.create(asked({ kind: 'application', name: 'site', spec }))
  expect(revisionId).toMatch(/^rev_[0-9a-z]{12}$/)
  await eventually('it is deployed', async () => {
    const { body } = await read('application', 'site')
    return body.traffic.active === revisionId
  })
  expect(
    host.deployments.isOpen('main', 'application', 'site', { path: '', method: 'GET', isAsync: false }),
  ).toBe(true)
  expect(host.fleet.runs.get(revisionId!)).toMatchObject({ port: 3000, memoryMb: 1024, env: { A: '1' } })
  const deployment = await read('application', 'site')
  const view = applicationView(deployment, host.deployments.viewOptions(deployment, origin))
  expect(view).toMatchObject({
    metadata: { url: `${origin}/main/applications/site` },
    spec: {
      image: 'sandbox/app:v1',
      memory: 1024,
      port: 3000,
      revision: { active: revisionId! },
      revisions: [{ id: revisionId!, image: 'sandbox/app:v1', envs: [{ name: 'A', value: maskedValue }] }],
    },
    status: 'DEPLOYED',
  })
  const again = await host.deployments.update(asked({ kind: 'application', name: 'site', spec: view.spec }))
  expect(again.revisionId).toBeNull()
  expect(
    await refusalOf(
      host.deployments.create(
        asked({ kind: 'application', name: 'far', spec: { image: 'registry.example/app:v1' } }),
      ),
    ),
  ).toMatchObject({ code: 'bad_request', message: expect.stringContaining('hutch images pull') })
})

test.each([
  [{ runtime: { image: 'sandbox/none:v1' } }, 'unknown here'],
  [runtime({ memory: 1 }), 'spec.runtime.memory: 1 is out of range'],
  [runtime({ minScale: 5, maxScale: 2 }), 'spec.runtime.minScale: 5 is more than maxScale'],
  [runtime({ transport: 'smoke' }), 'spec.runtime.transport: "smoke" is not one of'],
  [{ ...runtime(), volumes: [{ name: 'v' }] }, 'spec.volumes: there are no volumes'],
  [{ ...runtime(), policies: ['p'.repeat(64)] }, 'spec.policies'],
  [{ ...runtime(), revision: { traffic: 101 } }, 'spec.revision.traffic: 101 is out of range'],
  [{ ...runtime(), triggers: [{ type: 'smoke' }] }, 'spec.triggers[0].type: "smoke" is not one of'],
])('what cannot be is refused with its name: %j', async (spec, message) => {
  expect((await refusalOf(create({ spec }))).message).toContain(message)
})

test('policies are kept for whoever names some, with a word that nothing applies them', async () => {
  const { deployment } = await create({ spec: { ...runtime(), policies: ['na'] } })
  expect(viewOf(deployment).spec.policies).toEqual(['na'])
  const said = ({ body }: typeof deployment) => body.events.filter(({ type }) => type === 'policies')
  expect(said(deployment)).toMatchObject([{ message: expect.stringContaining('na: kept, and not applied') }])
  const { deployment: same } = await update({ spec: { ...runtime(), policies: ['na'] } })
  const { deployment: silent } = await update({ metadata: { displayName: 'One' } })
  expect([said(same).length, said(silent).length, viewOf(silent).spec.policies]).toEqual([1, 1, ['na']])
  const { deployment: none } = await update({ spec: { ...runtime(), policies: [] } })
  expect([said(none).length, viewOf(none).spec.policies]).toEqual([1, undefined])
})

test('triggers get ids of their own, lose secrets that were not made here, and one that is public opens what is below its path', async () => {
  const triggers = [
    { type: 'http', configuration: { authenticationType: 'public', path: '/x', callbackSecret: 's' } },
    { type: 'http' },
    { id: 'mine', type: 'http-async', enabled: false },
  ]
  const { deployment } = await create({ spec: { ...runtime(), triggers } })
  expect(viewOf(deployment).spec.triggers).toEqual([
    { id: 'http', type: 'http', configuration: { authenticationType: 'public', path: '/x' } },
    { id: 'http-2', type: 'http' },
    { id: 'mine', type: 'http-async', enabled: false },
  ])
  const isOpen = (path: string) =>
    host.deployments.isOpen('main', 'agent', 'one', { path, method: 'GET', isAsync: false })
  expect([isOpen(''), isOpen('x/y')]).toEqual([false, true])
})

test('a list is filtered by status, in any case, and searched by name and label', async () => {
  await create({ metadata: { labels: { team: 'Blue' } } })
  await becomes('DEPLOYED')
  await create({ name: 'two', upload: true, spec: {} })
  const names = async (status: string) =>
    (await host.deployments.list('main', 'agent', { status })).data.map(({ name }) => name)
  expect(await names('deployed')).toEqual(['one'])
  expect(await names('UPLOADING,DEPLOYED')).toEqual(['two', 'one'])
  expect(await refusalOf(names('SMOKE'))).toMatchObject({ code: 'bad_request' })
  const found = async (search: string) =>
    (await host.deployments.list('main', 'agent', { search })).data.map(({ name }) => name)
  expect([await found('blue'), await found('TW')]).toEqual([['one'], ['two']])
})
