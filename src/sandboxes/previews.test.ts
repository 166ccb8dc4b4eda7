import { afterEach, beforeEach, expect, test } from 'bun:test'
import { eventually } from '../lib/test-eventually.ts'
import { refusalOf } from '../lib/test-refusal.ts'
import type { PreviewInput } from './preview-schema.ts'
import { tokensPerPreviewMax } from './preview-tokens.ts'
import { type TestPlatform, TestSite } from './test-host.ts'

let site: TestSite
let platform: TestPlatform
const actor = 'ada'
const origin = 'http://localhost:4400'
const clear = { requestHeaders: true }

beforeEach(async () => {
  site = await TestSite.open()
  platform = await site.start()
  await platform.sandboxes.create('main', { metadata: { name: 'box' } }, { actor })
})
afterEach(async () => {
  await platform.close()
  await site[Symbol.asyncDispose]()
})

function input(name: string, spec: PreviewInput['spec'] = {}): PreviewInput {
  return { metadata: { name }, spec: { port: 3000, ...spec } }
}

async function create(name: string, spec?: PreviewInput['spec'], sandbox = 'box', force = false) {
  const stored = await platform.previews.create('main', sandbox, input(name, spec), { actor, force })
  return platform.previews.view(stored, origin, clear)
}

/** What the gateway looks up. */
function label(url: string): string {
  const { hostname, pathname } = new URL(url)
  return pathname.startsWith('/-/preview/') ? pathname.slice('/-/preview/'.length) : hostname.split('.')[0]!
}

test('a preview has an address by host name that the gateway finds', async () => {
  const view = await create('app', { public: true, responseHeaders: { 'X-Frame-Options': 'DENY' } })
  expect(view.metadata).toMatchObject({
    name: 'app',
    resourceName: 'box',
    workspace: 'main',
    createdBy: actor,
  })
  expect(view.spec.url).toMatch(/^http:\/\/[a-z0-9]{16}\.preview\.localhost:4400$/)
  const target = await platform.previews.resolve(label(view.spec.url))
  expect(target).toMatchObject({
    workspace: 'main',
    sandbox: 'box',
    port: 3000,
    public: true,
    responseHeaders: { 'X-Frame-Options': 'DENY' },
  })
  expect(await platform.previews.resolve('0123456789abcdef')).toBeNull()
  expect(await platform.previews.resolve('')).toBeNull()
})

test('a session (port 443) has an address by path', async () => {
  const view = await create('session-1', { port: 443 })
  expect(view.spec.url).toMatch(/^http:\/\/localhost:4400\/-\/preview\/[a-z0-9]{16}$/)
  expect(await platform.previews.resolve(label(view.spec.url))).toMatchObject({ port: 443, public: false })
})

test('a prefix is part of the address, and only the whole address finds the preview', async () => {
  const { url } = (await create('app', { prefixUrl: 'my-app' })).spec
  expect(url).toContain('//my-app-main-')
  expect(await platform.previews.resolve(label(url))).not.toBeNull()
  const id = label(url).split('-').at(-1)!
  expect(await platform.previews.resolve(id)).toBeNull()
  expect(await platform.previews.resolve(`other-main-${id}`)).toBeNull()
})

test('the address is stable for a name, over deletion, a new sandbox of the same name, and a restart', async () => {
  const first = (await create('app')).spec.url
  expect((await create('other')).spec.url).not.toBe(first)
  await platform.previews.remove('main', 'box', 'app')
  expect((await create('app')).spec.url).toBe(first)
  await platform.sandboxes.remove('main', 'box')
  expect(await platform.previews.resolve(label(first))).toBeNull()
  await platform.sandboxes.create('main', { metadata: { name: 'box' } }, { actor })
  expect(await platform.previews.list('main', 'box')).toEqual([])
  await platform.close()
  platform = await site.start()
  expect((await create('app')).spec.url).toBe(first)
})

test('visibility and deletion count from the moment they are answered', async () => {
  const view = await create('app', { public: true })
  const address = label(view.spec.url)
  expect((await platform.previews.resolve(address))?.public).toBe(true)
  await platform.previews.update(
    'main',
    'box',
    'app',
    { ...view, spec: { ...view.spec, public: false } },
    { actor },
  )
  expect((await platform.previews.resolve(address))?.public).toBe(false)
  await platform.previews.remove('main', 'box', 'app')
  expect(await platform.previews.resolve(address)).toBeNull()
  expect(await refusalOf(platform.previews.get('main', 'box', 'app'))).toMatchObject({
    code: 'not_found',
    status: 404,
  })
})

test('what was read while a preview changed is not remembered', async () => {
  const address = label((await create('app', { public: true })).spec.url)
  const { store } = platform
  const held = Promise.withResolvers<void>()
  const find = site.store.find.bind(site.store)
  let reading = false
  site.store.find = async (query) => {
    const found = await find(query)
    if (query.index === 'id') {
      reading = true
      await held.promise
    }
    return found as never
  }
  const slow = platform.previews.resolve(address)
  await eventually('the read is under way', () => reading)
  await platform.previews.remove('main', 'box', 'app')
  held.resolve()
  await slow
  site.store.find = find
  expect(await platform.previews.resolve(address)).toBeNull()
  expect(store).toBeDefined()
})

test('a name that is taken is refused unless forced', async () => {
  await create('app')
  expect(await refusalOf(create('app'))).toMatchObject({ code: 'already_exists', status: 409 })
  const forced = await create('app', { port: 4000 }, 'box', true)
  expect(forced.spec.port).toBe(4000)
  expect(await platform.previews.list('main', 'box')).toHaveLength(1)
})

test('a custom domain has one holder; force takes it, but never from another workspace', async () => {
  await create('a', { customDomain: 'app.example.com' })
  expect(await refusalOf(create('b', { customDomain: 'APP.example.com' }))).toMatchObject({
    code: 'conflict',
  })
  await create('b', { customDomain: 'app.example.com' }, 'box', true)
  expect((await platform.previews.list('main', 'box')).map(({ body }) => body.name)).toEqual(['b'])
  await platform.sandboxes.create('other', { metadata: { name: 'box' } }, { actor })
  const steal = platform.previews.create('other', 'box', input('c', { customDomain: 'app.example.com' }), {
    actor,
    force: true,
  })
  expect(await refusalOf(steal)).toMatchObject({ code: 'conflict' })
  const held = { customDomain: 'app.held.example' }
  expect((await create('held', held)).spec.customDomain).toBe('app.held.example')
  const below = platform.previews.create('other', 'box', input('d', { customDomain: 'b.held.example' }), {
    actor,
  })
  expect((await refusalOf(below)).message).toContain('below a domain of another workspace')
})

test('of previews of several sandboxes that ask for one custom domain at once, one gets it', async () => {
  const boxes = ['box', ...Array.from({ length: 4 }, (_, at) => `box-${at}`)]
  for (const name of boxes.slice(1)) {
    await platform.sandboxes.create('main', { metadata: { name } }, { actor })
  }
  const asked = await Promise.allSettled(
    boxes.map((box) => create('shop', { customDomain: 'shop.example.com' }, box)),
  )
  expect(asked.filter(({ status }) => status === 'fulfilled')).toHaveLength(1)
  for (const answer of asked)
    if (answer.status === 'rejected') expect(answer.reason).toMatchObject({ code: 'conflict' })
})

test('a token opens its preview until it ends or is deleted by its value', async () => {
  const view = await create('app')
  const target = (await platform.previews.resolve(label(view.spec.url)))!
  const admits = (token: string | null) => platform.previews.admits(target, token)
  expect(await admits(null)).toBe(false)
  const expiresAt = new Date(site.clock.now() + 60_000).toISOString()
  const token = await platform.previews.createToken('main', 'box', 'app', {
    metadata: { name: 'token-1' },
    spec: { expiresAt },
  })
  expect(token.metadata).toMatchObject({ name: 'token-1', previewName: 'app', resourceName: 'box' })
  expect(token.spec).toMatchObject({ expiresAt, expired: false })
  expect(token.spec.token).toMatch(/^[A-Za-z0-9_-]{43}$/)
  expect(JSON.stringify(await site.store.page({ kind: 'preview' }))).not.toContain(token.spec.token)
  expect(await admits(token.spec.token)).toBe(true)
  expect(await admits(`${token.spec.token}x`)).toBe(false)

  const other = await create('other')
  const otherTarget = (await platform.previews.resolve(label(other.spec.url)))!
  expect(await platform.previews.admits(otherTarget, token.spec.token)).toBe(false)

  expect(await refusalOf(platform.previews.removeToken('main', 'box', 'app', 'token-1'))).toMatchObject({
    code: 'not_found',
  })
  site.clock.advance(60_000)
  expect(await admits(token.spec.token)).toBe(false)
  expect((await platform.previews.listTokens('main', 'box', 'app'))[0]?.spec).toMatchObject({
    token: token.spec.token,
    expired: true,
  })
  const next = await platform.previews.createToken('main', 'box', 'app', {})
  expect(await admits(next.spec.token)).toBe(true)
  await platform.previews.removeToken('main', 'box', 'app', next.spec.token)
  expect(await admits(next.spec.token)).toBe(false)
})

test('tokens are bounded; those that ended make room', async () => {
  await create('app')
  const expiresAt = new Date(site.clock.now() + 1000).toISOString()
  const make = () => platform.previews.createToken('main', 'box', 'app', { spec: { expiresAt } })
  for (let count = 0; count < tokensPerPreviewMax; count++) await make()
  expect(await refusalOf(make())).toMatchObject({ code: 'conflict' })
  site.clock.advance(1000)
  await make()
  expect(await platform.previews.listTokens('main', 'box', 'app')).toHaveLength(1)
})

test('request headers are encrypted at rest and shown to no workload', async () => {
  await create('app', { requestHeaders: { Authorization: 'Bearer hidden-thing' } })
  expect(JSON.stringify(await site.store.page({ kind: 'preview' }))).not.toContain('hidden-thing')
  const stored = await platform.previews.get('main', 'box', 'app')
  expect(
    platform.previews.view(stored, origin, { requestHeaders: false }).spec.requestHeaders,
  ).toBeUndefined()
  const address = label(platform.previews.view(stored, origin, clear).spec.url)
  expect((await platform.previews.resolve(address))?.requestHeaders).toEqual({
    Authorization: 'Bearer hidden-thing',
  })
})

test('a preview that expires stops answering at once and is then removed', async () => {
  const view = await create('app', { ttl: '10s' })
  const address = label(view.spec.url)
  expect(await platform.previews.resolve(address)).not.toBeNull()
  await eventually('the timer waits', () => site.clock.sleepers > 0)
  site.clock.advance(10_000)
  expect(await platform.previews.resolve(address)).toBeNull()
  expect(await refusalOf(platform.previews.get('main', 'box', 'app'))).toMatchObject({ code: 'not_found' })
  await eventually(
    'it is removed',
    async () => (await site.store.page({ kind: 'preview' })).data.length === 0,
  )
})

test('whoever is there when a preview, or the token that they came by, ends by the clock is told', async () => {
  const brief = await create('brief', { ttl: '60s', public: true })
  const lasting = await create('lasting', { public: false })
  const expiresAt = new Date(site.clock.now() + 30_000).toISOString()
  const token = await platform.previews.createToken('main', 'box', 'lasting', { spec: { expiresAt } })
  const visitOf = async (url: string, by: string | null) => {
    const target = await platform.previews.resolve(label(url))
    const visit = platform.previews.visit(target!, by)
    let ends = 0
    visit.onOver(() => ends++)
    return { visit, ends: () => ends }
  }
  const guest = await visitOf(brief.spec.url, null)
  const member = await visitOf(lasting.spec.url, token.spec.token)
  const gone = await visitOf(lasting.spec.url, token.spec.token)
  gone.visit.end()
  const passed = async (ms: number) => {
    for (let left = ms; left > 0; left -= 1000) {
      await eventually('the visits are looked at', () => site.clock.sleepers > 0)
      await site.clock.turn(1000)
    }
  }
  await passed(29_000)
  expect([guest.ends(), member.ends()]).toEqual([0, 0])
  await passed(2_000)
  expect([guest.ends(), member.ends(), gone.ends()]).toEqual([0, 1, 0])
  expect(member.visit.failure?.code).toBe('authentication_failed')
  await passed(31_000)
  expect([guest.ends(), member.ends()]).toEqual([1, 1])
  // Told also where somebody asks too late.
  let late = 0
  guest.visit.onOver(() => late++)
  expect(late).toBe(1)
})

test('a preview that expired while the platform was down is removed at start', async () => {
  await create('app', { expires: new Date(site.clock.now() + 1000).toISOString() })
  await platform.close({ keepInstances: true })
  site.clock.advance(5000)
  platform = await site.start()
  await eventually(
    'it is removed',
    async () => (await site.store.page({ kind: 'preview' })).data.length === 0,
  )
})

test('a sandbox whose time is over has no previews, while it is still shown, and their domains are free', async () => {
  const runtime = { ttl: '10s' }
  await platform.sandboxes.create('main', { metadata: { name: 'mortal' }, spec: { runtime } }, { actor })
  const customDomain = 'app.example.org'
  const view = await create('app', { customDomain }, 'mortal')
  await create('session-1', { port: 443 }, 'mortal')
  expect(await refusalOf(create('app', { customDomain }))).toMatchObject({ code: 'conflict' })
  await eventually('the timer waits', () => site.clock.sleepers > 0)
  site.clock.advance(10_000)
  expect(await platform.previews.list('main', 'mortal')).toEqual([])
  expect((await platform.sandboxes.get('main', 'mortal')).body.status).toBe('TERMINATED')
  expect(await platform.previews.resolve(label(view.spec.url))).toBeNull()
  expect(await platform.previews.resolveHost(customDomain)).toBeNull()
  await create('app', { customDomain })
  expect(await platform.previews.resolveHost(customDomain)).toMatchObject({ sandbox: 'box' })
})

test('a sandbox that is not there has no previews', async () => {
  expect(await refusalOf(create('app', {}, 'nobody'))).toMatchObject({ code: 'not_found' })
  expect(await refusalOf(platform.previews.list('main', 'nobody'))).toMatchObject({ code: 'not_found' })
  expect(await refusalOf(platform.previews.list('other', 'box'))).toMatchObject({ code: 'not_found' })
})

const invalid: [string, PreviewInput, RegExp][] = [
  ['no port', { metadata: { name: 'a' }, spec: {} }, /spec\.port/],
  ['port 80', input('a', { port: 80 }), /80 is reserved/],
  ['a port beyond 65535', input('a', { port: 65536 }), /65536/],
  ['no name', { metadata: {}, spec: { port: 1 } }, /metadata\.name/],
  ['a name with a slash', input('a/b'), /metadata\.name "a\/b"/],
  ['a prefix with dots', input('a', { prefixUrl: 'x.y' }), /spec\.prefixUrl/],
  ['a header with a line break', input('a', { responseHeaders: { A: 'b\r\nSet-Cookie: c' } }), /"A"/],
  ['a header that frames', input('a', { responseHeaders: { 'Content-Length': '1' } }), /Content-Length/],
  ['a header name with a space', input('a', { requestHeaders: { 'a b': '' } }), /"a b"/],
  ['an expiry in the past', input('a', { expires: '2020-01-01T00:00:00Z' }), /in the past/],
  ['a domain that is none', input('a', { customDomain: 'localhost' }), /customDomain/],
  [
    "a name below the platform's domain",
    input('a', { customDomain: 'X.Hutch.example' }),
    /x\.hutch\.example" is a/,
  ],
]
for (const [what, body, message] of invalid) {
  test(`refuses ${what}, naming it`, async () => {
    const error = await refusalOf(platform.previews.create('main', 'box', body, { actor }))
    expect(error.code).toBe('bad_request')
    expect(error.message).toMatch(message)
  })
}
