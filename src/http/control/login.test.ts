import { afterEach, beforeEach, describe, expect, test } from 'bun:test'
import { decodeJwt } from 'jose'
import { deviceLoginIntervalMs, deviceLoginLifetimeMs } from '../../access/index.ts'
import { TestPlatform } from '../testing/test-platform.ts'

let platform: TestPlatform
beforeEach(async () => {
  platform = await TestPlatform.open()
})
afterEach(() => platform[Symbol.asyncDispose]())

const deviceGrant = 'urn:ietf:params:oauth:grant-type:device_code'

interface Begun {
  device_code: string
  user_code: string
  verification_uri_complete: string
  expires_in: number
  interval: number
}

async function begin(path = '/v0/login/device'): Promise<Begun> {
  const json = { client_id: 'blaxel', scope: 'offline_access' }
  const response = await platform.request(path, { method: 'POST', key: null, json })
  expect(response.status).toBe(200)
  return (await response.json()) as Begun
}

interface Token {
  error?: string
  error_description?: string
  access_token: string
  refresh_token: string
}

async function token(json: object): Promise<Token> {
  const response = await platform.request('/oauth/token', { method: 'POST', key: null, json })
  return (await response.json()) as Token
}

/** As a client asks: not before it may. */
async function poll(deviceCode: string): Promise<Token> {
  platform.clock.advance(deviceLoginIntervalMs)
  return await token({ grant_type: deviceGrant, client_id: 'blaxel', device_code: deviceCode })
}

const refresh = (refreshToken: string) =>
  token({ grant_type: 'refresh_token', client_id: 'blaxel', refresh_token: refreshToken })

async function submit(userCode: string, key: string): Promise<{ status: number; page: string }> {
  const response = await platform.request('/-/login', {
    method: 'POST',
    key: null,
    body: new URLSearchParams({ user_code: userCode, api_key: key }),
  })
  return { status: response.status, page: await response.text() }
}

describe('a login of a device', () => {
  test.each(['/login/device', '/v0/login/device'])(
    'begun at %s waits, is approved, and acts as its user',
    async (path) => {
      const begun = await begin(path)
      expect(begun.user_code).toMatch(/^[B-Z]{4}-[B-Z]{4}$/)
      expect(begun).toMatchObject({ expires_in: 600, interval: 3 })
      expect((await poll(begun.device_code)).error).toBe('authorization_pending')
      const page = await platform.request(
        new URL(begun.verification_uri_complete).pathname + new URL(begun.verification_uri_complete).search,
        { key: null },
      )
      expect(page.headers.get('content-security-policy')).toContain(
        "form-action 'self'; frame-ancestors 'none'",
      )
      expect(await page.text()).toContain(begun.user_code)
      const { key, sub } = await platform.member('member')
      // As somebody may type it.
      expect((await submit(` ${begun.user_code.toLowerCase().replace('-', '')}`, key)).page).toContain(
        'Approved',
      )
      const granted = await poll(begun.device_code)
      expect(decodeJwt(granted.access_token)).toMatchObject({ sub })
      const workspaces = await platform.request('/v0/workspaces', { key: granted.access_token })
      expect(((await workspaces.json()) as { name: string }[]).map(({ name }) => name)).toEqual(['main'])
      expect((await poll(begun.device_code)).error).toBe('expired_token')
    },
  )

  test('goes on by its refresh token, and ends with the key that approved it', async () => {
    const begun = await begin()
    const { key, sub } = await platform.member('member')
    await submit(begun.user_code, key)
    const second = await refresh((await poll(begun.device_code)).refresh_token)
    expect((await platform.request('/v0/workspaces', { key: second.access_token })).status).toBe(200)
    const [held] = await platform.access.keys.list({ sub, workspace: '' })
    await platform.access.keys.revoke({ sub, workspace: '' }, held!.id)
    const third = await refresh(second.refresh_token)
    expect(third.error).toBe('invalid_grant')
    expect(third.error_description).toContain('approved with a key that is gone')
  })

  test('is not approved with a code that is wrong, used or expired, nor by who is no user', async () => {
    const begun = await begin()
    expect((await submit('BBBB-BBBB', platform.adminKey)).page).toContain('No login waits for this code')
    const wrong = await submit(begun.user_code, `bl_${'1'.repeat(48)}`)
    expect(wrong.status).toBe(401)
    expect(wrong.page).toContain('The API key is not valid')
    const account = await platform.request('/v0/service_accounts', { method: 'POST', json: { name: 'ci' } })
    const { client_id } = (await account.json()) as { client_id: string }
    const made = await platform.request(`/v0/service_accounts/${client_id}/api_keys`, {
      method: 'POST',
      json: {},
    })
    const { apiKey } = (await made.json()) as { apiKey: string }
    expect((await submit(begun.user_code, apiKey)).status).toBe(403)
    expect((await submit(begun.user_code, platform.adminKey)).status).toBe(200)
    expect((await submit(begun.user_code, platform.adminKey)).status).toBe(404)
    const late = await begin()
    platform.clock.advance(deviceLoginLifetimeMs)
    expect((await submit(late.user_code, platform.adminKey)).status).toBe(404)
    expect((await poll(late.device_code)).error).toBe('expired_token')
  })

  test('that asks too often is told to slow down', async () => {
    const { device_code } = await begin()
    expect((await poll(device_code)).error).toBe('authorization_pending')
    const again = await token({ grant_type: deviceGrant, device_code })
    expect(again.error).toBe('slow_down')
    expect((await token({ grant_type: deviceGrant })).error_description).toContain('device_code')
  })
})

test('codes cannot be guessed by trying, and nobody fills the memory with logins', async () => {
  for (let tries = 0; tries < 30; tries++) await submit('BBBB-BBBB', platform.adminKey)
  const begun = await begin()
  expect((await submit(begun.user_code, platform.adminKey)).status).toBe(429)
  platform.clock.advance(60_000)
  expect((await submit(begun.user_code, platform.adminKey)).status).toBe(200)
  let status = 200
  for (let count = 0; count < 1_001 && status === 200; count++) {
    status = (await platform.request('/login/device', { method: 'POST', key: null, json: {} })).status
  }
  expect(status).toBe(429)
  platform.clock.advance(deviceLoginLifetimeMs)
  await begin()
})

test('what stands in the address of the page is shown as text, whatever it is', async () => {
  const response = await platform.request(`/-/login?user_code=${encodeURIComponent('"><b>x')}`, { key: null })
  expect(await response.text()).not.toContain('"><b>x')
  const codes = JSON.stringify(platform.log.lines)
  const begun = await begin()
  await submit(begun.user_code, platform.adminKey)
  expect(codes).not.toContain(begun.user_code)
  expect(JSON.stringify(platform.log.lines)).not.toContain(platform.adminKey)
})
