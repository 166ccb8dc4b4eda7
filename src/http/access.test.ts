import { afterAll, beforeAll, describe, expect, test } from 'bun:test'
import { accessTokenLifetimeMs } from '../access/index.ts'
import { publicPaths, type RefusalCredentials, routeTableRefusals } from './testing/route-table-refusals.ts'
import { TestPlatform } from './testing/test-platform.ts'

const dayMs = 24 * 60 * 60 * 1000
let platform: TestPlatform
let credentials: RefusalCredentials

beforeAll(async () => {
  platform = await TestPlatform.open()
  const { access, workspaces, clock, adminSub } = platform
  const owner = { sub: adminSub, subType: 'user' as const, workspace: '', createdBy: adminSub }
  const expired = await access.keys.create({ ...owner, expiresIn: '24h' })
  const stranger = await platform.users.create({ email: 'stranger@example.com' })
  await workspaces.create({ name: 'elsewhere', ownerSub: stranger.sub })
  const foreign = await access.keys.create({ ...owner, sub: stranger.sub })
  const member = await platform.member('member')
  clock.advance(dayMs)
  credentials = {
    workspace: 'main',
    expiredKey: expired.key,
    foreignKey: foreign.key,
    memberKey: member.key,
    workloadToken: await access.mintWorkloadToken({
      instanceId: 'ins-1',
      workspace: 'main',
      resource: { kind: 'sandbox', name: 'box' },
      labels: {},
      ttlMs: 60_000,
    }),
    deployedToken: await access.mintWorkloadToken({
      instanceId: 'ins-4',
      workspace: 'main',
      resource: { kind: 'agent', name: 'hello' },
      labels: {},
      ttlMs: 60_000,
    }),
  }
})
afterAll(() => platform[Symbol.asyncDispose]())

describe('the route table', () => {
  test('every route but the public few refuses whoever has no right to it', async () => {
    expect(await routeTableRefusals(platform.app, credentials)).toEqual([])
  })

  test('the walk reports a route that lets a member do what is for admins', async () => {
    const routes = platform.app.routes.map((route) => ({ ...route, access: 'admin' as const }))
    const violations = await routeTableRefusals({ ...platform.app, routes }, credentials)
    expect(violations.some((line) => line.includes('with a member'))).toBe(true)
  })

  test('the routes that need no credential are exactly these', () => {
    expect(publicPaths(platform.app.routes)).toEqual([
      'ALL /-/preview/{previewId}/{path*}',
      'GET /-/login',
      'GET /.well-known/jwks.json',
      'GET /.well-known/openid-configuration',
      'GET /healthz',
      'GET /readyz',
      'GET /v0/.well-known/jwks.json',
      'GET /v0/.well-known/openid-configuration',
      'GET /v0/openapi.json',
      'POST /-/login',
      'POST /login/device',
      'POST /oauth/token',
      'POST /v0/login/device',
      'POST /v0/oauth/token',
    ])
  })
})

describe('credentials', () => {
  test('a workload reads and uses what is open to workloads, within its workspace', async () => {
    const key = credentials.workloadToken
    expect((await platform.request('/v0/workspaces/main', { key })).status).toBe(200)
    const file = await platform.request('/main/sandboxes/box/filesystem/x', { key })
    expect(await file.json()).toMatchObject({
      principal: { kind: 'workload', id: 'ins-1', resource: { kind: 'sandbox', name: 'box' } },
    })
    expect((await platform.request('/v0/workspaces/elsewhere', { key })).status).toBe(403)
  })

  test("a workload's token ends with its lifetime and with its instance", async () => {
    const mint = (instanceId: string) =>
      platform.access.mintWorkloadToken({
        instanceId,
        workspace: 'main',
        resource: { kind: 'sandbox', name: 'box' },
        labels: {},
        ttlMs: 60_000,
      })
    const [brief, revoked] = [await mint('ins-2'), await mint('ins-3')]
    const status = async (key: string) => (await platform.request('/v0/workspaces/main', { key })).status
    expect([await status(brief), await status(revoked)]).toEqual([200, 200])
    await platform.access.revokeWorkloadTokens('ins-3')
    expect(await status(revoked)).toBe(401)
    platform.clock.advance(61_000)
    expect(await status(brief)).toBe(401)
  })

  test('x-blaxel-authorization goes before Authorization, and a wrong one is not made up for', async () => {
    const headers = { 'x-blaxel-authorization': `Bearer ${platform.adminKey}` }
    const both = await platform.request('/v0/workspaces/main', { key: `bl_${'1'.repeat(48)}`, headers })
    expect(both.status).toBe(200)
    const wrong = { 'x-blaxel-authorization': `Bearer bl_${'1'.repeat(48)}` }
    expect((await platform.request('/v0/workspaces/main', { headers: wrong })).status).toBe(401)
    const basic = { authorization: 'Basic abc' }
    expect((await platform.request('/v0/workspaces/main', { key: null, headers: basic })).status).toBe(401)
  })

  test('what authenticated is consumed, what was meant for the program behind is not', async () => {
    const url = '/main/sandboxes/box/filesystem/x'
    const consumed = async (headers: Record<string, string>, search = '') => {
      const response = await platform.request(url + search, { key: null, headers })
      return ((await response.json()) as { consumed: unknown }).consumed
    }
    const always = ['x-blaxel-authorization', 'x-blaxel-preview-token']
    const own = `Bearer ${platform.adminKey}`
    expect(await consumed({ authorization: own })).toEqual({
      headers: [...always, 'authorization'],
      query: ['bl_preview_token'],
    })
    expect(await consumed({ 'x-blaxel-authorization': own, authorization: 'Bearer of-the-program' })).toEqual(
      {
        headers: always,
        query: ['bl_preview_token'],
      },
    )
    expect(await consumed({ 'x-blaxel-authorization': own, authorization: own })).toEqual({
      headers: [...always, 'authorization'],
      query: ['bl_preview_token'],
    })
    expect(await consumed({ 'x-api-key': platform.adminKey }, `?token=${platform.adminKey}`)).toEqual({
      headers: [...always, 'x-api-key'],
      query: ['bl_preview_token', 'token'],
    })
  })

  test('a token in the query counts only where the route takes it, and is never logged', async () => {
    const search = `?token=${platform.adminKey}`
    const terminal = await platform.request(`/main/sandboxes/box/terminal/ws${search}`, { key: null })
    expect(terminal.status).toBe(200)
    expect(await terminal.json()).toMatchObject({ consumed: { query: ['bl_preview_token', 'token'] } })
    expect((await platform.request(`/v0/workspaces/main${search}`, { key: null })).status).toBe(401)
    expect((await platform.request(`/nothing/here${search}`, { key: null })).status).toBe(404)
    expect(platform.log.lines.length).toBeGreaterThan(0)
    expect(JSON.stringify(platform.log.lines)).not.toContain(platform.adminKey)
  })

  test('a revoked key, a lost role and a removed user count from the next request on', async () => {
    const { key, sub } = await platform.member('admin')
    const rename = () =>
      platform.request('/v0/workspaces/main', { key, method: 'PUT', json: { displayName: 'M' } })
    expect((await rename()).status).toBe(200)
    await platform.request(`/v0/users/${sub}`, { method: 'PUT', json: { role: 'member' } })
    expect((await rename()).status).toBe(403)
    await platform.request(`/v0/users/${sub}`, { method: 'DELETE' })
    expect((await platform.request('/v0/workspaces/main', { key })).status).toBe(403)
    const made = await platform.request('/-/api_keys', { key, method: 'POST', json: { name: 'second' } })
    const second = (await made.json()) as { id: string; apiKey: string }
    const list = () => platform.request('/v0/workspaces', { key: second.apiKey })
    expect((await list()).status).toBe(200)
    await platform.request(`/-/api_keys/${second.id}`, { key, method: 'DELETE' })
    expect((await list()).status).toBe(401)
  })

  test('a key revoked by another writer of the store stops working too', async () => {
    const { key } = await platform.member('member')
    const status = async () => (await platform.request('/v0/workspaces/main', { key })).status
    expect(await status()).toBe(200)
    const own = (await (await platform.request('/-/api_keys', { key })).json()) as { id: string }[]
    await platform.store.remove({ kind: 'api_key', workspace: '', name: own[0]!.id })
    const deadlineMs = performance.now() + 60_000
    while ((await status()) === 200 && performance.now() < deadlineMs) await Bun.sleep(1)
    expect(await status()).toBe(401)
  })

  test('what was verified is remembered no longer than it counts', async () => {
    const status = async (key: string) => (await platform.request('/v0/workspaces/main', { key })).status
    const twice = async (key: string) => [await status(key), await status(key)]
    const json = async (path: string, options: Parameters<typeof platform.request>[1]) =>
      (await (await platform.request(path, options)).json()) as Record<string, string>
    const account = await json('/v0/service_accounts', { method: 'POST', json: { name: 'robot' } })
    const { client_id = '', client_secret } = account
    const keysPath = `/v0/service_accounts/${client_id}/api_keys`
    const { apiKey: lasting = '' } = await json(keysPath, { method: 'POST', json: {} })
    const { apiKey: brief = '' } = await json(keysPath, { method: 'POST', json: { expires_in: '24h' } })
    const grant = { grant_type: 'client_credentials', client_id, client_secret }
    const tokenOf = async () =>
      (await json('/oauth/token', { key: null, method: 'POST', json: grant })).access_token ?? ''
    const early = await tokenOf()
    for (const key of [lasting, brief, early]) expect(await twice(key)).toEqual([200, 200])
    platform.clock.advance(accessTokenLifetimeMs)
    expect([await status(early), await status(brief)]).toEqual([401, 200])
    platform.clock.advance(dayMs - accessTokenLifetimeMs)
    expect(await status(brief)).toBe(401)
    const late = await tokenOf()
    for (const key of [lasting, late]) expect(await twice(key)).toEqual([200, 200])
    await platform.request(`/v0/service_accounts/${client_id}`, { method: 'DELETE' })
    expect([await status(lasting), await status(late)]).toEqual([401, 401])
  })

  test('the uses of a key are noted without a write for each', async () => {
    const { key, sub } = await platform.member('member')
    for (let at = 0; at < 50; at++) await platform.request('/v0/workspaces/main', { key })
    await platform.access.keys.settled()
    const [record] = await platform.store.find({ kind: 'api_key', index: 'sub', value: sub })
    expect(record?.body).toMatchObject({ lastUsedAt: platform.clock.now() })
    expect(record?.version).toBe(2)
  })

  test('neither key nor secret is stored in the clear', async () => {
    const made = await platform.request('/v0/service_accounts', { method: 'POST', json: { name: 'ci' } })
    const account = (await made.json()) as { client_id: string; client_secret: string }
    const path = `/v0/service_accounts/${account.client_id}/api_keys`
    const key = (await (await platform.request(path, { method: 'POST', json: {} })).json()) as {
      apiKey: string
    }
    const kinds = ['api_key', 'service_account', 'refresh_token']
    const pages = await Promise.all(kinds.map((kind) => platform.store.page({ kind, limit: 200 })))
    const stored = JSON.stringify(pages)
    expect(stored).toContain(account.client_id)
    for (const secret of [account.client_secret, key.apiKey, platform.adminKey])
      expect(stored).not.toContain(secret)
    const listed = await (await platform.request(path)).text()
    expect(listed).toContain(`bl_****${key.apiKey.slice(-4)}`)
    expect(listed).not.toContain(key.apiKey)
  })
})
