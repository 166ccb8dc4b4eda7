import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'bun:test'
import { existsSync, mkdtempSync, readFileSync, rmSync, statSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createPlatform, type Platform, temporaryDataDir } from '../platform.ts'
import { fakeRuntime } from '../runtimes/fake/index.ts'

const root = mkdtempSync(join(tmpdir(), 'hutch-login-'))
let platform: Platform
let url: string

beforeAll(async () => {
  platform = await createPlatform({
    dataDir: temporaryDataDir,
    runtime: fakeRuntime(),
    port: 0,
    logLevel: 'error',
  })
  url = (await platform.listen()).url
})
afterAll(async () => {
  await platform.close()
  rmSync(root, { recursive: true, force: true })
})

let config: string
beforeEach(() => {
  config = mkdtempSync(join(root, 'config-'))
})

interface Result {
  code: number
  stdout: string
  stderr: string
}

function start(args: string[], env: Record<string, string> = {}) {
  const own = Object.fromEntries(Object.entries(process.env).filter(([name]) => !/^(BL_|HUTCH_)/.test(name)))
  return Bun.spawn([process.execPath, join(import.meta.dir, '..', 'main.ts'), ...args], {
    stdin: 'ignore',
    stdout: 'pipe',
    stderr: 'pipe',
    env: { ...own, XDG_CONFIG_HOME: config, XDG_DATA_HOME: join(config, 'data'), NO_COLOR: '1', ...env },
  })
}

async function hutch(args: string[], env: Record<string, string> = {}): Promise<Result> {
  const child = start(args, env)
  const [stdout, stderr, code] = await Promise.all([
    new Response(child.stdout).text(),
    new Response(child.stderr).text(),
    child.exited,
  ])
  return { code, stdout, stderr }
}

const keysOf = async () => {
  const response = await platform.request('/-/api_keys', {
    headers: { authorization: `Bearer ${platform.credentials.apiKey}` },
  })
  return ((await response.json()) as { id: string; name: string }[]).map(({ name }) => name)
}

test('a key that was logged in with is used by every command from then on, and kept for its user alone', async () => {
  const { apiKey } = platform.credentials
  const made = await hutch(['login', 'main', '--url', url, '--api-key', apiKey])
  expect(made).toMatchObject({ code: 0, stdout: `logged in  ${url}, workspace main\n` })
  const path = join(config, 'hutch', 'logins.json')
  expect(statSync(path).mode & 0o777).toBe(0o600)
  expect(statSync(join(config, 'hutch')).mode & 0o777).toBe(0o700)
  expect((await hutch(['token'])).stdout).toBe(`${apiKey}\n`)
  expect((await hutch(['workspaces', '--current'])).stdout).toBe('main\n')
  // As guides of the cloud write it.
  expect((await hutch(['workspace', '--current'])).stdout).toBe('main\n')
  expect((await hutch(['status'])).stdout).toBe(`ready  ${url}\nworkspace  main\nsandboxes  none\n`)
  expect((await hutch(['env'])).stdout).toContain(`export BL_API_URL=${url}/v0\n`)
  expect((await hutch(['logout'])).stdout).toBe(`logged out  ${url}, workspace main\n`)
  expect(readFileSync(path, 'utf8')).not.toContain(apiKey)
  // It was not made by the login, so it is not its to revoke.
  expect((await hutch(['login', '--url', url], { BL_API_KEY: apiKey })).code).toBe(0)
})

test('a login is approved on a page, with a key of its own that goes when it ends', async () => {
  const before = await keysOf()
  const child = start(['login', '--url', url])
  let said = ''
  const decoder = new TextDecoder()
  for await (const chunk of child.stderr) {
    said += decoder.decode(chunk, { stream: true })
    if (/code {3}\S+/.test(said)) break
  }
  const address = /open {3}(\S+)/.exec(said)![1]!
  const userCode = new URL(address).searchParams.get('user_code')!
  const page = await fetch(address.split('?')[0]!, {
    method: 'POST',
    body: new URLSearchParams({ user_code: userCode, api_key: platform.credentials.apiKey }),
  })
  expect(await page.text()).toContain('Approved')
  expect(await child.exited).toBe(0)
  expect((await keysOf()).length).toBe(before.length + 1)
  expect((await keysOf()).some((name) => name.startsWith('hutch login, '))).toBe(true)
  expect((await hutch(['workspaces', 'list', '--json'])).stdout).toContain('"main"')
  expect((await hutch(['logout'])).code).toBe(0)
  expect(await keysOf()).toEqual(before)
}, 60_000)

describe('a service account', () => {
  test('logs in by its client credentials, and its token is renewed before a command that needs it', async () => {
    const made = await platform.request('/v0/service_accounts', {
      method: 'POST',
      headers: { authorization: `Bearer ${platform.credentials.apiKey}`, 'content-type': 'application/json' },
      body: JSON.stringify({ name: 'ci', role: 'member' }),
    })
    const { client_id, client_secret } = (await made.json()) as { client_id: string; client_secret: string }
    const BL_CLIENT_CREDENTIALS = btoa(`${client_id}:${client_secret}`)
    expect((await hutch(['login', 'main', '--url', url], { BL_CLIENT_CREDENTIALS })).code).toBe(0)
    const path = join(config, 'hutch', 'logins.json')
    const aged = readFileSync(path, 'utf8').replace(/"expiresAt": \d+/, '"expiresAt": 1')
    const token = (text: string) => /"accessToken": "([^"]+)"/.exec(text)![1]!
    await Bun.write(path, aged)
    expect((await hutch(['token'])).stdout).toMatch(/^ey\S+\n$/)
    expect(token(readFileSync(path, 'utf8'))).not.toBe(token(aged))
  })
})

test('another workspace is chosen for all commands, and one that is not there is not', async () => {
  const { apiKey } = platform.credentials
  await hutch(['login', 'main', '--url', url, '--api-key', apiKey])
  expect((await hutch(['workspaces', 'create', 'second'])).code).toBe(0)
  expect((await hutch(['workspaces', 'second'])).stdout).toBe('second\n')
  expect((await hutch(['workspaces', '--current'])).stdout).toBe('second\n')
  expect((await hutch(['workspaces', '--current', '-w', 'main'])).stdout).toBe('main\n')
  const missing = await hutch(['workspaces', 'third'])
  expect(missing.code).toBe(1)
  expect(missing.stderr).toContain('hutch workspaces list')
})

describe('what is missing is said', () => {
  test('an address without a key', async () => {
    const { code, stderr } = await hutch(['sandbox', 'ls'], { BL_API_URL: `${url}/v0` })
    expect(code).toBe(1)
    expect(stderr).toContain('BL_API_KEY is not set and nobody is logged in there')
    expect(stderr).toContain(`hutch login --url ${url}/v0`)
  })

  test('and it is not missing once somebody logged in there', async () => {
    await hutch(['login', 'main', '--url', url, '--api-key', platform.credentials.apiKey])
    expect((await hutch(['sandbox', 'ls'], { BL_API_URL: `${url}/v0` })).code).toBe(0)
  })

  test('a key that is none, a workspace that it does not reach, an address that is none', async () => {
    const refused = async (...args: string[]) => (await hutch(['login', ...args])).stderr
    expect(await refused('--url', url, '--api-key', 'bl_none')).toContain('The API key is not valid')
    expect(await refused('nowhere', '--url', url, '--api-key', platform.credentials.apiKey)).toContain(
      'workspace "nowhere" is not one that this key reaches: main',
    )
    expect(await refused('--url', 'somewhere')).toContain('is no address such as')
    expect(existsSync(join(config, 'hutch', 'logins.json'))).toBe(false)
  })
})
