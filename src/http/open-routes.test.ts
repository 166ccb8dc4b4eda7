import { afterAll, beforeAll, expect, test } from 'bun:test'
import { type Identity, workloadKey } from '../access/index.ts'
import { TestPlatform } from './testing/test-platform.ts'

let platform: TestPlatform
beforeAll(async () => {
  platform = await TestPlatform.open()
})
afterAll(() => platform[Symbol.asyncDispose]())

const preflight = {
  method: 'OPTIONS',
  headers: { origin: 'https://page.example', 'access-control-request-method': 'POST' },
  key: null,
}

test('an address that is open to all asks for no credential, and one beside it does', async () => {
  const open = await platform.request('/main/samples/open/x', { key: null })
  expect(await open.json()).toMatchObject({ principal: null, workspace: '' })
  expect((await platform.request('/main/samples/closed/x', { key: null })).status).toBe(401)
  const closed = await platform.request('/main/samples/closed/x')
  expect(await closed.json()).toMatchObject({ workspace: 'main', principal: { kind: 'user' } })
})

test('a preflight of an open address is its own to answer, that of another is not', async () => {
  const open = await platform.request('/main/samples/open/x', preflight)
  expect(await open.json()).toMatchObject({ method: 'OPTIONS' })
  const closed = await platform.request('/main/samples/closed/x', preflight)
  expect(closed.status).toBe(204)
  expect(closed.headers.get('access-control-allow-headers')).toContain('Authorization')
})

test('a credential of ours that is sent to an open address goes no further, one of its own does', async () => {
  const consumed = async (authorization: string) => {
    const answer = await platform.request('/main/samples/open/x', { key: null, headers: { authorization } })
    return ((await answer.json()) as { consumed: { headers: string[] } }).consumed.headers
  }
  const account = await platform.request('/v0/service_accounts', { method: 'POST', json: { name: 'ci' } })
  const { client_id, client_secret } = (await account.json()) as { client_id: string; client_secret: string }
  const granted = await platform.request('/oauth/token', {
    method: 'POST',
    key: null,
    json: { grant_type: 'client_credentials', client_id, client_secret },
  })
  const { access_token } = (await granted.json()) as { access_token: string }
  expect(await consumed(`Bearer ${platform.adminKey}`)).toContain('authorization')
  expect(await consumed(`Bearer ${access_token}`)).toContain('authorization')
  expect(await consumed('Bearer of-its-own')).not.toContain('authorization')
  expect(await consumed('Basic b2Y6aXRz')).not.toContain('authorization')
})

test('the word that stands for a connection counts on that connection only', async () => {
  const principal = {
    kind: 'workload' as const,
    id: 'one',
    name: 'hello',
    workspace: 'main',
    resource: { kind: 'agent', name: 'hello' },
    labels: {},
  }
  const identity: Identity = { kind: 'workload', principal }
  const ask = (header: string, connection: { identity?: Identity }) =>
    platform.app.fetch(
      new Request('http://localhost:4400/main/samples/closed/x', {
        headers: { [header]: `Bearer ${workloadKey}` },
      }),
      { address: null, upgrade: null, sendFile: null, ...connection },
    )
  for (const header of ['x-blaxel-authorization', 'authorization']) {
    const known = await ask(header, { identity })
    expect(await known.json()).toMatchObject({
      principal,
      consumed: { headers: expect.arrayContaining([header]) },
    })
    expect((await ask(header, {})).status).toBe(401)
  }
})
