import { afterEach, beforeEach, expect, test } from 'bun:test'
import { PlatformError } from '../errors.ts'
import { launchConcurrencyMax } from '../instances/creation.ts'
import { maskedValue } from '../lib/environment.ts'
import { refusalOf } from '../lib/test-refusal.ts'
import { Users, Workspaces } from '../workspaces/index.ts'
import type { SandboxInput, SandboxView } from './schema.ts'
import { actionsOn, actor, input, origin } from './test-actions.ts'
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

test('a created sandbox answers at once, with the fields clients read', async () => {
  const view = await create('box', {
    metadata: { labels: { team: 'core', count: 3 } },
    runtime: { ports: [{ target: 3000 }] },
  })
  expect(view).toMatchObject({
    metadata: {
      name: 'box',
      workspace: 'main',
      url: 'http://localhost:4400/main/sandboxes/box',
      labels: { team: 'core', count: '3' },
      createdBy: actor,
      updatedBy: actor,
    },
    spec: {
      runtime: {
        image: 'blaxel/base-image:latest',
        memory: 4096,
        ports: [{ target: 3000, protocol: 'HTTP' }],
      },
    },
    status: 'DEPLOYED',
    state: 'RUNNING',
  })
  expect(view.spec.region).toBeUndefined()
  expect(view.events?.map(({ status }) => status)).toEqual(['DEPLOYING', 'DEPLOYED'])
  using lease = await platform.sandboxes.acquire('main', 'box')
  expect(lease.instance.id).toBe(await onlyMachine())
  const { spec } = site.host.machines.get(lease.instance.id)!
  expect(spec).toMatchObject({ hostname: 'box', memoryMb: 4096, storageMb: 2048, workingDir: '/blaxel' })
})

test('the ports of its own API may be named among its ports, as templates of the cloud do', async () => {
  const view = await create('box', {
    runtime: {
      ports: [
        { name: 'sandbox-api', target: 8080 },
        { target: 443, protocol: 'TCP' },
      ],
    },
  })
  expect(view.spec.runtime?.ports).toEqual([
    { name: 'sandbox-api', target: 8080, protocol: 'HTTP' },
    { target: 443, protocol: 'TCP' },
  ])
})

test('variables are told as a user’s only of a sandbox that no workload made', async () => {
  const asked = (name: string) => input(name, { runtime: { envs: [{ name: 'A', value: '1' }] } })
  await platform.sandboxes.create('main', asked('mine'), { actor })
  await platform.sandboxes.create('main', asked('theirs'), { actor: 'agent:coder' })
  const told = async (name: string) => {
    using lease = await platform.sandboxes.acquire('main', name)
    expect(lease.env.A).toBe('1')
    return [...lease.userVariables]
  }
  expect(await told('mine')).toEqual(['A'])
  expect(await told('theirs')).toEqual([])
})

test('without a name, image or memory the platform chooses them', async () => {
  const stored = await platform.sandboxes.create('main', {}, { actor })
  expect(stored.name).toMatch(/^[a-z0-9-]{3,49}$/)
  const view = platform.sandboxes.view(stored, origin)
  expect(view.spec.runtime).toMatchObject({ image: 'blaxel/base-image:latest', memory: 4096 })
  expect((await create('untagged', { runtime: { image: 'blaxel/base-image' } })).spec.runtime.image).toBe(
    'blaxel/base-image',
  )
})

test('where the operator named a region, answers and the environment have it unless the client named another', async () => {
  platform = await site.start({ region: 'eu-lon-1' })
  expect((await create('box')).spec.region).toBe('eu-lon-1')
  expect((await get('box')).spec.region).toBe('eu-lon-1')
  expect((await create('other', { spec: { region: 'us-pdx-1' } })).spec.region).toBe('us-pdx-1')
  using lease = await platform.sandboxes.acquire('main', 'box')
  expect(lease.env).toMatchObject({ BL_REGION: 'eu-lon-1' })
})

test('the environment inside is the image below the sandbox below the platform', async () => {
  await create('box', {
    runtime: {
      envs: [
        { name: 'OVERRIDDEN', value: 'sandbox' },
        { name: 'BL_NAME', value: 'spoofed' },
        { name: 'MINE', value: '1' },
      ],
    },
    spec: { region: 'eu-lon-1' },
  })
  using lease = await platform.sandboxes.acquire('main', 'box')
  expect(lease.env).toEqual({
    HOME: '/root',
    PATH: '/bin',
    FROM_IMAGE: 'image',
    OVERRIDDEN: 'sandbox',
    MINE: '1',
    BL_NAME: 'box',
    BL_TYPE: 'sandbox',
    BL_WORKSPACE: 'main',
    BL_REGION: 'eu-lon-1',
  })
})

test('racing creates of one name make exactly one sandbox, the others are told', async () => {
  const results = await Promise.allSettled(Array.from({ length: 10 }, () => create('box')))
  expect(results.filter(({ status }) => status === 'fulfilled')).toHaveLength(1)
  for (const result of results) {
    if (result.status === 'rejected')
      expect(result.reason).toMatchObject({ code: 'already_exists', status: 409 })
  }
  await onlyMachine()
  expect(await names()).toEqual(['box'])
})

test('racing createIfNotExist converge on one sandbox, also against a deletion under way', async () => {
  await create('box')
  const removal = platform.sandboxes.remove('main', 'box')
  const all = await Promise.all(
    Array.from({ length: 10 }, () => platform.sandboxes.findOrCreate('main', input('box'), { actor })),
  )
  await removal
  expect(all.filter(({ isNew }) => isNew)).toHaveLength(1)
  expect(new Set(all.map(({ sandbox }) => sandbox.id)).size).toBe(1)
  using lease = await platform.sandboxes.acquire('main', 'box')
  expect(lease.instance.id).toBe(await onlyMachine())
})

test('an unknown image fails clearly and leaves nothing', async () => {
  const error = await refusalOf(create('box', { runtime: { image: 'nobody/nothing:latest' } }))
  expect(error).toMatchObject({ code: 'bad_request', message: expect.stringContaining('nobody/nothing') })
  expect(await refusalOf(get('box'))).toMatchObject({ code: 'not_found' })
  expect(site.host.machines.size).toBe(0)
  expect((await platform.store.page({ kind: 'instance' })).data).toEqual([])
})

test('a machine that cannot be made leaves no record and the name free', async () => {
  site.host.faults.create = () => {
    throw new PlatformError('insufficient_storage', 'the disk is full')
  }
  expect(await refusalOf(create('box'))).toMatchObject({ code: 'insufficient_storage' })
  expect(await refusalOf(get('box'))).toMatchObject({ code: 'not_found' })
  expect((await platform.store.page({ kind: 'instance' })).data).toEqual([])
  delete site.host.faults.create
  await create('box')
})

test('a store that refuses the record takes the machine back', async () => {
  const { store } = platform
  const batch = store.batch.bind(store)
  store.batch = () => Promise.reject(new PlatformError('insufficient_storage', 'the disk is full'))
  expect(await refusalOf(create('box'))).toMatchObject({ code: 'insufficient_storage' })
  store.batch = batch
  expect(site.host.machines.size).toBe(0)
  expect(await refusalOf(platform.sandboxes.acquire('main', 'box'))).toMatchObject({
    code: 'workload_not_found',
  })
})

test('a workspace that is deleted meanwhile leaves no sandbox and no machine behind', async () => {
  const users = new Users({ store: site.store, clock: site.clock })
  const workspaces = new Workspaces({ store: site.store, users, heldKinds: ['sandbox'] })
  // Between the machine and its record: the workspace looks empty.
  site.host.faults.created = async () => void (await workspaces.delete('other', null))
  const refused = await refusalOf(platform.sandboxes.create('other', input('late'), { actor }))
  expect(refused).toMatchObject({ code: 'not_found', message: 'workspace "other" does not exist' })
  expect(site.host.machines.size).toBe(0)
  delete site.host.faults.created

  // The record was first: then it is the deletion that is refused.
  await workspaces.create({ name: 'other', ownerSub: 'usr_test' })
  const deleting = platform.sandboxes
    .create('other', input('early'), { actor })
    .then(() => refusalOf(workspaces.delete('other', null)))
  expect(await deleting).toMatchObject({ code: 'conflict' })
  expect((await platform.sandboxes.list('other', {})).data.map(({ name }) => name)).toEqual(['early'])
})

test('no more machines are made at once than the limit says', async () => {
  // All that may be made at once wait for each other, and for any that would be one too many.
  const full = Promise.withResolvers<void>()
  let begun = 0
  site.host.faults.create = () => {
    if (++begun === launchConcurrencyMax) setTimeout(full.resolve, 50)
    return full.promise
  }
  await Promise.all(Array.from({ length: launchConcurrencyMax * 3 }, (_, index) => create(`box-${index}`)))
  expect(site.host.concurrentCreatesMax).toBe(launchConcurrencyMax)
})

const invalid: [string, SandboxInput, RegExp][] = [
  ['a name with capitals', input('Box'), /metadata\.name "Box"/],
  ['a name with a slash', input('../etc'), /metadata\.name/],
  ['a name that is too long', input('b'.repeat(50)), /metadata\.name/],
  ['a name with NUL', input('a\0b'), /metadata\.name/],
  ['too little memory', input('box', { runtime: { memory: 1 } }), /spec\.runtime\.memory: 1 .*128/],
  ['too much memory', input('box', { runtime: { memory: 1e9 } }), /spec\.runtime\.memory/],
  ['the port of the platform', input('box', { runtime: { ports: [{ target: 80 }] } }), /80 is reserved/],
  [
    'a port that is none',
    input('box', { runtime: { ports: [{ target: 70000 }] } }),
    /ports\[0\]\.target: 70000/,
  ],
  ['a port twice', input('box', { runtime: { ports: [{ target: 1 }, { target: 1 }] } }), /listed twice/],
  ['a variable with "="', input('box', { runtime: { envs: [{ name: 'A=B', value: '' }] } }), /A=B/],
  ['a value with NUL', input('box', { runtime: { envs: [{ name: 'A', value: '\0' }] } }), /NUL/],
  [
    'a value beyond what Linux takes',
    input('box', { runtime: { envs: [{ name: 'A', value: 'x'.repeat(200_000) }] } }),
    /131071/,
  ],
  ['an external id with dots', input('box', { metadata: { externalId: 'a.b' } }), /externalId "a\.b"/],
  ['an external id too long', input('box', { metadata: { externalId: 'a'.repeat(65) } }), /externalId/],
  ['a ttl without unit', input('box', { runtime: { ttl: '30' } }), /spec\.runtime\.ttl/],
  ['an expiry in the past', input('box', { runtime: { expires: '2020-01-01T00:00:00Z' } }), /in the past/],
  [
    'a policy value that is none',
    input('box', { spec: { lifecycle: { expirationPolicies: [{ type: 'ttl-idle', value: 'soon' }] } } }),
    /expirationPolicies\[0\]/,
  ],
  ['volumes', input('box', { spec: { volumes: [{ name: 'v', mountPath: '/v' }] } }), /spec\.volumes/],
  ['a region with spaces', input('box', { spec: { region: 'a b' } }), /spec\.region/],
  [
    'too many labels',
    input('box', {
      metadata: { labels: Object.fromEntries(Array.from({ length: 65 }, (_, i) => [`l${i}`, ''])) },
    }),
    /65 labels/,
  ],
]
for (const [what, body, message] of invalid) {
  test(`refuses ${what}, naming it`, async () => {
    const error = await refusalOf(platform.sandboxes.create('main', body, { actor }))
    expect(error.code).toBe('bad_request')
    expect(error.message).toMatch(message)
    expect(site.host.machines.size).toBe(0)
  })
}

test('values of the environment are encrypted at rest, masked, and survive being sent back masked', async () => {
  await create('box', { runtime: { envs: [{ name: 'KEY', value: 'topsecretvalue', secret: true }] } })
  const before = await onlyMachine()
  const view = await get('box')
  expect(view.spec.runtime.envs).toEqual([{ name: 'KEY', value: maskedValue, secret: true }])
  for (const kind of ['sandbox', 'instance']) {
    expect(JSON.stringify(await platform.store.page({ kind }))).not.toContain('topsecretvalue')
  }
  await put('box', (body) => ({ ...body, metadata: { ...body.metadata, labels: { a: 'b' } } }))
  expect(await onlyMachine()).toBe(before)
  const stored = await platform.sandboxes.get('main', 'box')
  expect(platform.sandboxes.view(stored, origin, { showSecrets: true }).spec.runtime.envs?.[0]?.value).toBe(
    'topsecretvalue',
  )
})

test('a change of labels leaves status, events and the machine alone; what is read-only is ignored', async () => {
  await create('box', { metadata: { labels: { a: '1' }, externalId: 'ext-1' } })
  const before = await get('box')
  const after = await put('box', (body) => ({
    ...body,
    status: 'FAILED',
    events: [],
    metadata: { name: 'box', labels: { b: '2' }, createdBy: 'eve', url: 'http://elsewhere' },
  }))
  expect(after.metadata).toMatchObject({
    labels: { b: '2' },
    externalId: 'ext-1',
    createdBy: actor,
    updatedBy: 'bob',
    url: before.metadata.url,
  })
  expect(after.status).toBe('DEPLOYED')
  expect(after.events).toEqual(before.events!)
  expect(site.host.machines.get(await onlyMachine())!.starts).toBe(1)
})

test('a change of the environment starts over with empty files; the old machine goes', async () => {
  await create('box', { runtime: { envs: [{ name: 'A', value: '1' }] } })
  const before = await onlyMachine()
  const after = await put('box', (body) => ({
    ...body,
    spec: {
      ...body.spec,
      runtime: {
        ...body.spec.runtime,
        envs: [
          { name: 'A', value: maskedValue },
          { name: 'B', value: '2' },
        ],
      },
    },
  }))
  expect(after.status).toBe('DEPLOYED')
  expect(await onlyMachine()).not.toBe(before)
  using lease = await platform.sandboxes.acquire('main', 'box')
  expect(lease.env).toMatchObject({ A: '1', B: '2' })
  expect(site.host.destroyed).toContain(before)
})

test('an update whose machine cannot be made changes nothing', async () => {
  await create('box')
  const before = await onlyMachine()
  site.host.faults.create = () => {
    throw new PlatformError('unavailable', 'no memory left')
  }
  const body = input('box', { runtime: { memory: 8192 } })
  expect(await refusalOf(platform.sandboxes.update('main', 'box', body, { actor }))).toMatchObject({
    code: 'unavailable',
  })
  expect((await get('box')).spec.runtime.memory).toBe(4096)
  using lease = await platform.sandboxes.acquire('main', 'box')
  expect(lease.instance.id).toBe(before)
})

test('by external id answers the newest that lives, and can be bound anew', async () => {
  await create('old', { metadata: { externalId: 'session-1' } })
  site.clock.advance(10)
  await create('new', { metadata: { externalId: 'session-1' } })
  const find = async (id: string) => (await platform.sandboxes.getByExternalId('main', id)).name
  expect(await find('session-1')).toBe('new')
  expect((await names({ externalId: 'session-1' })).toSorted()).toEqual(['new', 'old'])
  await platform.sandboxes.remove('main', 'new')
  expect(await find('session-1')).toBe('old')
  await put('old', (body) => ({ ...body, metadata: { ...body.metadata, externalId: 'session-2' } }))
  expect(await refusalOf(find('session-1'))).toMatchObject({ code: 'not_found', status: 404 })
  expect(await find('session-2')).toBe('old')
})

test('pages list every sandbox once, in order', async () => {
  for (const name of ['a', 'b', 'c', 'd']) {
    await create(name)
    site.clock.advance(1)
  }
  const seen: string[] = []
  let cursor = ''
  do {
    const page = await platform.sandboxes.list('main', { limit: 1, ...(cursor ? { cursor } : {}) })
    seen.push(...page.data.map(({ name }) => name))
    cursor = page.nextCursor
  } while (cursor)
  expect(seen).toEqual(['d', 'c', 'b', 'a'])
  expect(await refusalOf(platform.sandboxes.list('main', { status: 'SLEEPY' }))).toMatchObject({
    code: 'bad_request',
  })
  expect((await platform.sandboxes.list('other', {})).data).toEqual([])
})

function rulesTold({ events }: SandboxView): number {
  return (
    events?.filter(({ type, message }) => type === 'network' && message.includes('not applied')).length ?? 0
  )
}

test('network and lifecycle are replaced as a whole; null and absence clear them', async () => {
  const network = {
    allowedDomains: ['a.com'],
    proxy: {
      routing: [{ destinations: ['*'], headers: { 'X-Key': '{{SECRET:k}}' }, secrets: { k: 'hidden' } }],
    },
  }
  const stored = await platform.sandboxes.create(
    'main',
    input('box', { spec: { network, lifecycle: { terminatedRetention: '1h' } }, runtime: { ttl: '1h' } }),
    { actor },
  )
  expect(platform.sandboxes.view(stored, origin, { created: true }).spec.network).toEqual(network)
  const read = await get('box')
  expect(JSON.stringify(read)).not.toContain('hidden')
  // Who reads what became of it is told that nobody applies them.
  expect(rulesTold(read)).toBe(1)
  expect(JSON.stringify(await platform.store.page({ kind: 'sandbox' }))).not.toContain('hidden')

  await put('box', (body) => ({ ...body, metadata: { ...body.metadata, labels: { x: 'y' } } }))
  const kept = await platform.sandboxes.get('main', 'box')
  expect(platform.sandboxes.view(kept, origin, { created: true }).spec.network).toEqual(network)

  const replaced = await put('box', (body) => ({
    ...body,
    spec: {
      ...body.spec,
      network: { forbiddenDomains: ['b.com'] },
      lifecycle: null,
      runtime: { ...body.spec.runtime, ttl: null },
    },
  }))
  expect(replaced.spec.network).toEqual({ forbiddenDomains: ['b.com'] })
  expect(rulesTold(replaced)).toBe(2)
  expect(replaced.spec.lifecycle).toBeUndefined()
  expect(replaced.spec.runtime.ttl).toBeUndefined()
  expect(replaced.expiresIn).toBeUndefined()
  const cleared = await put('box', (body) => ({ ...body, spec: { ...body.spec, network: undefined } }))
  expect(cleared.spec.network).toBeUndefined()
  expect(site.host.machines.get(await onlyMachine())!.starts).toBe(1)
})
