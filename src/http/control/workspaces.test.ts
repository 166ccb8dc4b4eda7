import { afterAll, beforeAll, describe, expect, test } from 'bun:test'
import { apiKeysPerAccountMax } from '../../access/index.ts'
import { TestPlatform } from '../testing/test-platform.ts'

let platform: TestPlatform
beforeAll(async () => {
  platform = await TestPlatform.open()
})
afterAll(() => platform[Symbol.asyncDispose]())

const call = async (method: string, path: string, json?: unknown, key?: string) => {
  const response = await platform.request(path, {
    method,
    json,
    key,
    headers: { 'x-blaxel-workspace': 'main' },
  })
  return { status: response.status, body: (await response.json()) as Record<string, unknown> }
}

describe('workspaces', () => {
  test('one is created, read, renamed, listed and deleted by its admin', async () => {
    const created = await call('POST', '/v0/workspaces', {
      name: 'lab',
      displayName: 'Lab',
      region: 'us-west-2',
    })
    expect(created.status).toBe(200)
    expect(created.body).toMatchObject({
      name: 'lab',
      displayName: 'Lab',
      region: 'us-west-2',
      status: 'ready',
      createdBy: platform.adminSub,
    })
    const updated = await call('PUT', '/v0/workspaces/lab', {
      name: 'lab',
      displayName: 'Laboratory',
      labels: { a: 'b' },
    })
    expect(updated.body).toMatchObject({ displayName: 'Laboratory', labels: { a: 'b' } })
    expect((await call('PUT', '/v0/workspaces/lab', { name: 'other' })).status).toBe(400)
    expect((await call('GET', '/v0/workspaces/lab')).body).toMatchObject({ displayName: 'Laboratory' })
    expect((await call('DELETE', '/v0/workspaces/lab')).body).toMatchObject({ name: 'lab' })
    expect((await call('GET', '/v0/workspaces/lab')).status).toBe(403)
    expect((await call('POST', '/v0/workspaces', { name: 'lab' })).status).toBe(200)
    expect((await call('DELETE', '/v0/workspaces/lab')).status).toBe(200)
  })

  test('the only one that somebody has stays, unless it is forced', async () => {
    await using own = await TestPlatform.open()
    const remove = async (name: string, key = own.adminKey) => {
      const response = await own.request(`/v0/workspaces/${name}`, { method: 'DELETE', key })
      return { status: response.status, body: (await response.json()) as { message?: string } }
    }
    const make = (name: string) => own.request('/v0/workspaces', { method: 'POST', json: { name } })
    const { status, body } = await remove('main')
    expect(status).toBe(409)
    expect(body.message).toContain('"main" is the only one that this credential reaches')

    // Two at once may not take the last two.
    expect((await make('spare')).status).toBe(200)
    const both = await Promise.all([remove('main'), remove('spare')])
    expect(both.map(({ status }) => status).sort()).toEqual([200, 409])

    const [left] = await own.workspaces.namesOf(own.adminSub)
    const { account } = await own.access.serviceAccounts.create(left!, { name: 'ci', role: 'admin' })
    const owner = { sub: account.clientId, subType: 'service_account', workspace: left! } as const
    const { key } = await own.access.keys.create({ ...owner, createdBy: own.adminSub })
    expect((await remove(left!, key)).status).toBe(409)
    expect((await remove(`${left}?force=true`)).status).toBe(200)
    expect(await own.workspaces.namesOf(own.adminSub)).toEqual([])
    // Nobody is shut out by it.
    expect((await make('again')).status).toBe(200)
  })

  test('takes everybody and everything along that came while it was deleted', async () => {
    const sub = (await platform.users.create({ email: 'tardy@example.com' })).sub
    for (let round = 0; round < 5; round++) {
      expect((await call('POST', '/v0/workspaces', { name: 'short' })).status).toBe(200)
      const deleting = call('DELETE', '/v0/workspaces/short')
      const late = await Promise.allSettled([
        platform.users.add('short', sub, 'admin'),
        platform.access.serviceAccounts.create('short', { name: 'late' }),
      ])
      expect((await deleting).status).toBe(200)
      for (const { status, ...rest } of late) {
        if (status === 'rejected') expect(rest).toMatchObject({ reason: { code: 'not_found' } })
      }
      expect(await platform.workspaces.namesOf(sub)).toEqual([])
      expect(await platform.access.serviceAccounts.list('short')).toEqual([])
    }
  })

  test.each([
    ...[
      'v0',
      'v1',
      'v2',
      'v17',
      'api',
      'run',
      'oauth',
      'login',
      'mcp',
      'console',
      'agents',
      'agent-execution',
    ],
    ...['agents-metrics', 'activity', 'events', 'tasks', 'preview', 'healthz', 'readyz', 'metrics', 'assets'],
    ...['.well-known', '-', '', 'Big', 'a_b', '-a', 'a-', 'a/b', '..', 'a\0b', 'x'.repeat(64)],
  ])('%p is refused as a name', async (name) => {
    const { status, body } = await call('POST', '/v0/workspaces', { name })
    expect(status).toBe(400)
    expect(body.message).toStartWith('name: ')
    const availability = await call('POST', '/v0/workspaces/availability?withReason=true', { name })
    expect(availability.body).toMatchObject({ available: false })
  })

  test('availability says taken or free', async () => {
    expect((await call('POST', '/v0/workspaces/availability', { name: 'free-one' })).body as unknown).toBe(
      true,
    )
    const taken = await call('POST', '/v0/workspaces/availability?withReason=true', { name: 'main' })
    expect(taken.body).toMatchObject({ available: false, reason: 'taken' })
  })

  test('of ten that create one name at once, one does', async () => {
    const answers = await Promise.all(
      Array.from({ length: 10 }, () => call('POST', '/v0/workspaces', { name: 'contested' })),
    )
    expect(answers.map(({ status }) => status).sort()).toEqual([200, ...Array(9).fill(409)])
  })

  test('one that still holds a sandbox is not deleted', async () => {
    await call('POST', '/v0/workspaces', { name: 'full' })
    const key = { kind: 'sandbox', workspace: 'full', name: 'box' }
    await platform.store.create({ ...key, body: {} })
    const refused = await call('DELETE', '/v0/workspaces/full')
    expect(refused.status).toBe(409)
    expect(refused.body.message).toContain('(sandboxes: 1)')
    expect((await call('GET', '/v0/workspaces/full?countResources=true')).body).toMatchObject({
      resourceCounts: { sandboxes: 1 },
    })
    await platform.store.remove(key)
    expect((await call('DELETE', '/v0/workspaces/full')).status).toBe(200)
  })

  test('what belongs to a deleted workspace does not open a new one of its name', async () => {
    await call('POST', '/v0/workspaces', { name: 'again' })
    const { key } = await platform.member('admin', 'again')
    const headers = { 'x-blaxel-workspace': 'again' }
    const made = await platform.request('/v0/service_accounts', {
      method: 'POST',
      json: { name: 'x' },
      headers,
    })
    const { client_id } = (await made.json()) as { client_id: string }
    const keyPath = `/v0/service_accounts/${client_id}/api_keys`
    const keyMade = await platform.request(keyPath, { method: 'POST', json: {}, headers })
    const { apiKey } = (await keyMade.json()) as { apiKey: string }
    const workloadToken = await platform.access.mintWorkloadToken({
      instanceId: 'ins-again',
      workspace: 'again',
      resource: { kind: 'sandbox', name: 'box' },
      labels: {},
      ttlMs: 60_000,
    })
    expect((await call('GET', '/v0/workspaces/again', undefined, workloadToken)).status).toBe(200)
    await call('DELETE', '/v0/workspaces/again')
    await call('POST', '/v0/workspaces', { name: 'again' })
    expect((await call('GET', '/v0/workspaces/again', undefined, key)).status).toBe(403)
    expect((await call('GET', '/v0/workspaces/again', undefined, apiKey)).status).toBe(401)
    expect((await call('GET', '/v0/workspaces/again', undefined, workloadToken)).status).toBe(401)
  })

  test('a service account makes no workspaces and no personal keys', async () => {
    const made = await call('POST', '/v0/service_accounts', { name: 'robot', role: 'admin' })
    const { body } = await call('POST', `/v0/service_accounts/${made.body.client_id}/api_keys`, {})
    const key = String(body.apiKey)
    expect((await call('POST', '/v0/workspaces', { name: 'by-robot' }, key)).status).toBe(403)
    expect((await call('POST', '/-/api_keys', {}, key)).status).toBe(403)
    expect((await call('GET', '/v0/workspaces', undefined, key)).body as unknown).toMatchObject([
      { name: 'main' },
    ])
    expect((await call('GET', '/v0/service_accounts', undefined, key)).status).toBe(200)
  })
})

describe('users', () => {
  test('an invited newcomer gets a key once, and only the invited workspace', async () => {
    const invited = await call('POST', '/v0/users', { email: 'New@Example.com', role: 'member' })
    expect(invited.body).toMatchObject({ email: 'new@example.com', role: 'member', workspace: 'main' })
    const key = String(invited.body.apiKey)
    expect((await call('GET', '/v0/users', undefined, key)).status).toBe(200)
    expect((await call('POST', '/v0/users', { email: 'x@example.com' }, key)).status).toBe(403)
    expect((await call('POST', '/v0/users', { email: 'new@example.com' })).status).toBe(409)
    expect((await call('POST', '/v0/users', { email: 'nonsense' })).status).toBe(400)
    expect((await call('PUT', '/v0/users/new@example.com', { role: 'admin' })).body).toMatchObject({
      role: 'admin',
    })
    expect((await call('PUT', '/v0/users/new@example.com', { role: 'king' })).status).toBe(400)
    expect((await call('DELETE', '/v0/users/new%40example.com')).status).toBe(200)
    expect((await call('GET', '/v0/workspaces/main', undefined, key)).status).toBe(403)
    await platform.workspaces.create({ name: 'later', ownerSub: platform.adminSub })
    const again = await platform.request('/v0/users', {
      method: 'POST',
      json: { email: 'new@example.com' },
      headers: { 'x-blaxel-workspace': 'later' },
    })
    expect(await again.json()).not.toHaveProperty('apiKey')
    expect((await call('GET', '/v0/workspaces/later', undefined, key)).status).toBe(200)
  })

  test('the last admin can be neither removed nor demoted, nor leave', async () => {
    const founder = await platform.users.create({ email: 'founder@example.com' })
    await platform.workspaces.create({ name: 'solo', ownerSub: founder.sub })
    const { key } = await platform.access.keys.create({
      sub: founder.sub,
      subType: 'user',
      workspace: '',
      createdBy: founder.sub,
    })
    const inSolo = (method: string, path: string, json?: unknown) =>
      platform.request(path, { method, json, key, headers: { 'x-blaxel-workspace': 'solo' } })
    expect((await inSolo('DELETE', `/v0/users/${founder.sub}`)).status).toBe(409)
    expect((await inSolo('PUT', `/v0/users/${founder.sub}`, { role: 'member' })).status).toBe(409)
    expect((await inSolo('DELETE', '/v0/workspaces/solo/leave')).status).toBe(409)
    await platform.member('admin', 'solo')
    expect((await inSolo('DELETE', '/v0/workspaces/solo/leave')).status).toBe(200)
    expect((await inSolo('GET', '/v0/workspaces/solo')).status).toBe(403)
  })

  test('of two admins who leave at once one stays', async () => {
    const { users, workspaces } = platform
    const [one, other] = await Promise.all(
      ['one', 'other'].map((name) => users.create({ email: `${name}@example.com` })),
    )
    await workspaces.create({ name: 'pair', ownerSub: one!.sub })
    await users.add('pair', other!.sub, 'admin')
    const left = await Promise.allSettled([
      users.remove('pair', one!.sub),
      users.setRole('pair', other!.sub, 'member'),
    ])
    expect(left.map(({ status }) => status).sort()).toEqual(['fulfilled', 'rejected'])
    expect((await users.members('pair')).filter(({ role }) => role === 'admin')).toHaveLength(1)
  })

  test('nobody joins a workspace that is being deleted', async () => {
    const { users, workspaces } = platform
    const late = await users.create({ email: 'late@example.com' })
    await workspaces.create({ name: 'brief', ownerSub: platform.adminSub })
    const [, joined] = await Promise.allSettled([
      workspaces.delete('brief', null),
      users.add('brief', late.sub, 'admin'),
    ])
    expect(joined).toMatchObject({ status: 'rejected', reason: { code: 'workspace_not_found' } })
    await workspaces.create({ name: 'brief', ownerSub: platform.adminSub })
    expect((await users.members('brief')).map(({ sub }) => sub)).toEqual([platform.adminSub])
  })

  test('an invitation that was cut short before its key is made anew', async () => {
    await platform.users.createIn('main', { email: 'cut@example.com' }, 'member')
    expect((await call('POST', '/v0/users', { email: 'cut@example.com' })).status).toBe(409)
    expect((await call('DELETE', '/v0/users/cut@example.com')).status).toBe(200)
    const { body } = await call('POST', '/v0/users', { email: 'cut@example.com' })
    expect((await call('GET', '/v0/users', undefined, String(body.apiKey))).status).toBe(200)
  })
})

describe('API keys', () => {
  test('a key shows itself once, then only its end', async () => {
    const { key } = await platform.member('member')
    const made = await call('POST', '/-/api_keys', { name: 'laptop', expires_in: '1w' }, key)
    expect(made.body).toMatchObject({ name: 'laptop', sub_type: 'user', expires_in: '1w' })
    const apiKey = String(made.body.apiKey)
    expect(apiKey).toMatch(/^bl_[0-9a-z]{48}$/)
    const { body } = await call('GET', '/-/api_keys', undefined, apiKey)
    expect(JSON.stringify(body)).not.toContain(apiKey)
    expect(body as unknown).toContainEqual(
      expect.objectContaining({ id: made.body.id, apiKey: `bl_****${apiKey.slice(-4)}` }),
    )
    const { key: strangers } = await platform.member('member')
    expect((await call('DELETE', `/-/api_keys/${made.body.id}`, undefined, strangers)).status).toBe(404)
    expect((await call('DELETE', `/-/api_keys/${made.body.id}`, undefined, key)).status).toBe(200)
    expect((await call('GET', '/-/api_keys', undefined, apiKey)).status).toBe(401)
  })

  test.each(['1s', '90m', '24h', '3650d'])('expires_in %p is taken', async (expires_in) => {
    expect((await call('POST', '/-/api_keys', { expires_in })).body).toMatchObject({ expires_in })
  })

  test.each(['0d', '1y', '-1d', '1.5h', 'soon', '3651d', '99999999w'])(
    'expires_in %p is refused',
    async (expires_in) => {
      const { status, body } = await call('POST', '/-/api_keys', { expires_in })
      expect(status).toBe(400)
      expect(body.message).toContain('expires_in')
    },
  )

  test('the number of keys of one account is bounded', async () => {
    const { key } = await platform.member('member')
    for (let at = 1; at < apiKeysPerAccountMax - 1; at++) {
      expect((await call('POST', '/-/api_keys', {}, key)).status).toBe(200)
    }
    const last = await Promise.all([1, 2, 3].map(() => call('POST', '/-/api_keys', {}, key)))
    expect(last.map(({ status }) => status).sort()).toEqual([200, 409, 409])
  })
})
