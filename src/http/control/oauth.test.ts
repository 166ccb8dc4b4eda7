import { afterAll, beforeAll, describe, expect, test } from 'bun:test'
import { join } from 'node:path'
import { createRemoteJWKSet, decodeJwt, jwtVerify } from 'jose'
import { accessTokenLifetimeMs, refreshTokenLifetimeMs } from '../../access/index.ts'
import { startServer } from '../server.ts'
import { TestPlatform } from '../testing/test-platform.ts'

let platform: TestPlatform
let clientId: string
let clientSecret: string

beforeAll(async () => {
  platform = await TestPlatform.open()
  const response = await platform.request('/v0/service_accounts', { method: 'POST', json: { name: 'ci' } })
  const account = (await response.json()) as { client_id: string; client_secret: string }
  clientId = account.client_id
  clientSecret = account.client_secret
})
afterAll(() => platform[Symbol.asyncDispose]())

interface Grant {
  access_token: string
  refresh_token: string
  expires_in: number
  token_type: string
  error?: string
  error_description?: string
}

async function token(init: RequestInit & { json?: unknown }, path = '/v0/oauth/token') {
  const response = await platform.request(path, { method: 'POST', key: null, ...init })
  return { status: response.status, body: (await response.json()) as Grant }
}
const credentials = () => ({
  grant_type: 'client_credentials',
  client_id: clientId,
  client_secret: clientSecret,
})
const basic = () => ({ authorization: `Basic ${btoa(`${clientId}:${clientSecret}`)}` })

describe('client credentials', () => {
  test.each(['/v0/oauth/token', '/oauth/token'])('%s takes them as Basic, JSON and form', async (path) => {
    const json = { grant_type: 'client_credentials' }
    const answers = [
      await token({ headers: basic(), json }, path),
      await token({ json: credentials() }, path),
      await token({ body: new URLSearchParams(credentials()) }, path),
    ]
    for (const { status, body } of answers) {
      expect(status).toBe(200)
      expect(body).toMatchObject({ expires_in: accessTokenLifetimeMs / 1000, token_type: 'Bearer' })
      const { iat, exp, sub } = decodeJwt(body.access_token)
      expect(exp! - iat!).toBe(7200)
      expect(sub).toBe(clientId)
      const used = await platform.request('/v0/workspaces', { key: body.access_token })
      expect(((await used.json()) as { name: string }[]).map(({ name }) => name)).toEqual(['main'])
    }
  })

  test.each([
    [{}, 'invalid_request', 'grant_type'],
    [{ grant_type: 'password' }, 'unsupported_grant_type', 'grant_type'],
    [{ grant_type: 'client_credentials' }, 'invalid_request', 'client_id'],
    [{ grant_type: 'client_credentials', client_id: 'x' }, 'invalid_request', 'client_secret'],
    [
      { grant_type: 'client_credentials', client_id: 'x', client_secret: 'y' },
      'invalid_client',
      'client_secret',
    ],
    [{ grant_type: 'client_credentials', client_id: 7 }, 'invalid_request', 'client_id'],
    [{ grant_type: 'refresh_token' }, 'invalid_request', 'refresh_token'],
    [{ grant_type: 'refresh_token', refresh_token: 'x' }, 'invalid_grant', 'refresh_token'],
  ])('%p is refused with 400 and the parameter', async (json, error, parameter) => {
    const { status, body } = await token({ json })
    expect(status).toBe(400)
    expect(body.error).toBe(error)
    expect(body.error_description).toContain(parameter)
  })

  test('a wrong secret is refused, whatever stands before it', async () => {
    const headers = { authorization: `Basic ${btoa(`${clientId}:${clientSecret}x`)}` }
    expect((await token({ headers, json: credentials() })).body.error).toBe('invalid_client')
    expect((await token({ headers: { authorization: 'Basic !' }, json: credentials() })).status).toBe(400)
  })
})

describe('tokens', () => {
  test('an access token ends after two hours, on the clock', async () => {
    const { body } = await token({ json: credentials() })
    const status = async () => (await platform.request('/v0/workspaces', { key: body.access_token })).status
    platform.clock.advance(accessTokenLifetimeMs - 1000)
    expect(await status()).toBe(200)
    platform.clock.advance(1001)
    expect(await status()).toBe(401)
  })

  test('a changed token is refused', async () => {
    const { body } = await token({ json: credentials() })
    const [header, payload, signature] = body.access_token.split('.')
    const claims = JSON.parse(atob(payload!)) as object
    const forged = btoa(JSON.stringify({ ...claims, sub: platform.adminSub, sub_type: 'user' })).replace(
      /=/g,
      '',
    )
    const none = btoa('{"alg":"none"}').replace(/=/g, '')
    for (const key of [`${header}.${forged}.${signature}`, `${none}.${forged}.`, 'a.b.c', 'x'.repeat(5000)]) {
      expect((await platform.request('/v0/workspaces', { key })).status).toBe(401)
    }
  })

  test('a refresh token works once, and its second use revokes what came of it', async () => {
    const first = (await token({ json: credentials() })).body.refresh_token
    const refresh = (refresh_token: string) => token({ json: { grant_type: 'refresh_token', refresh_token } })
    const second = await refresh(first)
    expect(second.status).toBe(200)
    expect((await platform.request('/v0/workspaces', { key: second.body.access_token })).status).toBe(200)
    expect((await refresh(first)).body.error).toBe('invalid_grant')
    expect((await refresh(second.body.refresh_token)).body.error).toBe('invalid_grant')
  })

  test('of two exchanges at once one wins', async () => {
    const { refresh_token } = (await token({ json: credentials() })).body
    const json = { grant_type: 'refresh_token', refresh_token }
    const statuses = await Promise.all([token({ json }), token({ json }), token({ json })])
    expect(statuses.filter(({ status }) => status === 200).length).toBeLessThanOrEqual(1)
    expect(statuses.every(({ status }) => status === 200 || status === 400)).toBe(true)
  })

  test('a refresh token ends too, and the number kept is bounded', async () => {
    const { refresh_token } = (await token({ json: credentials() })).body
    platform.clock.advance(refreshTokenLifetimeMs)
    const { body } = await token({ json: { grant_type: 'refresh_token', refresh_token } })
    expect(body.error).toBe('invalid_grant')
    for (let at = 0; at < 60; at++) await token({ json: credentials() })
    const kept = await platform.store.find({
      kind: 'refresh_token',
      index: 'sub',
      value: clientId,
      limit: 1000,
    })
    expect(kept.length).toBe(50)
  })

  test('all credentials of a deleted service account stop working', async () => {
    const made = await platform.request('/v0/service_accounts', { method: 'POST', json: { name: 'brief' } })
    const account = (await made.json()) as { client_id: string; client_secret: string }
    const path = `/v0/service_accounts/${account.client_id}`
    const keyMade = await platform.request(`${path}/api_keys`, {
      method: 'POST',
      json: { expires_in: '30d' },
    })
    const { apiKey } = (await keyMade.json()) as { apiKey: string }
    const { client_id, client_secret } = account
    const grant = await token({ json: { grant_type: 'client_credentials', client_id, client_secret } })
    const status = async (key: string) => (await platform.request('/v0/workspaces', { key })).status
    expect([await status(apiKey), await status(grant.body.access_token)]).toEqual([200, 200])
    expect((await platform.request(path, { method: 'DELETE' })).status).toBe(200)
    expect([await status(apiKey), await status(grant.body.access_token)]).toEqual([401, 401])
    const { refresh_token } = grant.body
    expect((await token({ json: { grant_type: 'refresh_token', refresh_token } })).status).toBe(400)
    for (const kind of ['api_key', 'refresh_token']) {
      expect(await platform.store.find({ kind, index: 'sub', value: client_id })).toEqual([])
    }
  })
})

test('a token verifies with the keys that discovery leads to', async () => {
  await using server = startServer({ app: platform.app, port: 0, log: platform.log })
  for (const prefix of ['', '/v0']) {
    const discovery = await fetch(`${server.url}${prefix}/.well-known/openid-configuration`)
    const { issuer, jwks_uri, token_endpoint } = (await discovery.json()) as Record<string, string>
    const response = await fetch(token_endpoint!, {
      method: 'POST',
      body: new URLSearchParams(credentials()),
    })
    const { access_token } = (await response.json()) as Grant
    const keys = createRemoteJWKSet(new URL(jwks_uri!))
    const currentDate = new Date(platform.clock.now())
    expect((await jwtVerify(access_token, keys, { issuer, currentDate })).payload.sub).toBe(clientId)
  }
})

test('@blaxel/core signs in with client credentials', async () => {
  platform.clock.jump(Date.now() - platform.clock.now())
  await using server = startServer({ app: platform.app, port: 0, log: platform.log })
  const program = `
    import { listWorkspaces, settings } from '@blaxel/core'
    await settings.authenticate()
    const { data } = await listWorkspaces({ throwOnError: true })
    console.log(JSON.stringify(data.map(({ name }) => name)))
  `
  const child = Bun.spawn(['node', '--input-type=module', '-e', program], {
    cwd: join(import.meta.dir, '../../..'),
    env: {
      PATH: process.env.PATH ?? '',
      HOME: '/nonexistent',
      DO_NOT_TRACK: '1',
      BL_API_URL: `${server.url}/v0`,
      BL_RUN_URL: server.url,
      BL_WORKSPACE: 'main',
      BL_CLIENT_CREDENTIALS: btoa(`${clientId}:${clientSecret}`),
      BL_DISABLE_H2: '1',
    },
    stdout: 'pipe',
    stderr: 'pipe',
  })
  const [output, errors] = await Promise.all([
    new Response(child.stdout).text(),
    new Response(child.stderr).text(),
    child.exited,
  ])
  expect({ output: output.trim(), errors: child.exitCode === 0 ? '' : errors }).toEqual({
    output: '["main"]',
    errors: '',
  })
}, 120_000)
