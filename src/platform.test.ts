import { Database } from 'bun:sqlite'
import { afterEach, describe, expect, test } from 'bun:test'
import { existsSync, mkdtempSync, readdirSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { readCredentials } from './data-directory.ts'
import { publicPaths, routeTableRefusals } from './http/testing/route-table-refusals.ts'
import { systemClock } from './lib/clock.ts'
import { createLogger } from './lib/log.ts'
import { FakeClock } from './lib/test-clock.ts'
import { eventually } from './lib/test-eventually.ts'
import { createPlatform, type Platform, type PlatformOptions, temporaryDataDir } from './platform.ts'
import { fakeRuntime } from './runtimes/fake/index.ts'

const open: Platform[] = []
const directories: string[] = []

async function platform(options: PlatformOptions = {}): Promise<Platform> {
  const made = await createPlatform({
    dataDir: temporaryDataDir,
    runtime: fakeRuntime(),
    port: 0,
    logLevel: 'error',
    ...options,
  })
  open.push(made)
  return made
}

function directory(): string {
  const path = mkdtempSync(join(tmpdir(), 'hutch-platform-'))
  directories.push(path)
  return path
}

afterEach(async () => {
  for (const one of open.splice(0)) await one.close()
  for (const path of directories.splice(0)) rmSync(path, { recursive: true, force: true })
})

function authorised(of: Platform, init: RequestInit = {}): RequestInit {
  const headers = new Headers(init.headers)
  headers.set('authorization', `Bearer ${of.credentials.apiKey}`)
  headers.set('x-blaxel-workspace', of.credentials.workspace)
  if (init.body) headers.set('content-type', 'application/json')
  return { ...init, headers }
}

function create(of: Platform, name: string): Promise<Response> {
  const body = JSON.stringify({ metadata: { name }, spec: {} })
  return of.request('/v0/sandboxes', authorised(of, { method: 'POST', body }))
}

describe('as a library', () => {
  test('a request needs no port', async () => {
    const one = await platform()
    expect((await one.request('/healthz')).status).toBe(200)
    expect((await create(one, 'box')).status).toBe(200)
    const sandbox = (await (await one.request('/v0/sandboxes/box', authorised(one))).json()) as {
      status: string
    }
    expect(sandbox.status).toBe('DEPLOYED')
  })

  test('two platforms in one process share nothing', async () => {
    const [one, other] = await Promise.all([platform(), platform()])
    await create(one, 'box')
    expect((await other.request('/v0/sandboxes/box', authorised(other))).status).toBe(404)
    expect((await other.request('/v0/sandboxes/box', authorised(one))).status).toBe(401)
    await one.close()
    expect((await create(other, 'box')).status).toBe(200)
  })

  test('a temporary data directory is gone with its platform', async () => {
    const one = await platform()
    const { dataDir } = one.config
    expect(existsSync(join(dataDir, 'hutch.db'))).toBe(true)
    await one.close()
    expect(existsSync(dataDir)).toBe(false)
  })

  test('a stranger’s settings file in the temporary directory of the host is not read', async () => {
    const { TMPDIR } = process.env
    process.env.TMPDIR = directory()
    writeFileSync(join(process.env.TMPDIR, 'hutch.toml'), 'whoever = reads this [fails')
    try {
      expect((await platform()).config.dataDir).toStartWith(process.env.TMPDIR)
    } finally {
      if (TMPDIR === undefined) delete process.env.TMPDIR
      else process.env.TMPDIR = TMPDIR
    }
  })
})

describe('limits that the operator sets', () => {
  test('one sandbox more than allowed is refused with 402, until one is gone', async () => {
    const one = await platform({ sandboxesMax: 1 })
    expect((await create(one, 'first')).status).toBe(200)
    const refused = await create(one, 'second')
    expect(refused.status).toBe(402)
    expect(((await refused.json()) as { message: string }).message).toContain('sandboxesMax')
    await one.request('/v0/sandboxes/first', authorised(one, { method: 'DELETE' }))
    await eventually(async () => (await create(one, 'second')).status === 200)
  })

  test('more memory than allowed is refused by name', async () => {
    const one = await platform({ sandboxMemoryMbMax: 1024 })
    const body = JSON.stringify({ metadata: { name: 'big' }, spec: { runtime: { memory: 2048 } } })
    const refused = await one.request('/v0/sandboxes', authorised(one, { method: 'POST', body }))
    expect(refused.status).toBe(400)
    expect(((await refused.json()) as { message: string }).message).toContain('at most 1024')
    for (const memory of [1, 9_999_999]) {
      const body = JSON.stringify({ spec: { runtime: { memory } } })
      const { message } = await (
        await one.request('/v0/sandboxes', authorised(one, { method: 'POST', body }))
      ).json()
      expect(message).toContain('whole numbers from 128 to 1024')
    }
  })
})

describe('the data directory', () => {
  test('holds secrets that only its owner can read', async () => {
    const dataDir = directory()
    await platform({ dataDir })
    for (const name of ['secret.key', 'credentials.json']) {
      expect(statSync(join(dataDir, name)).mode & 0o077).toBe(0)
    }
  })

  test('gets another key when its own was revoked', async () => {
    const dataDir = directory()
    const first = await platform({ dataDir })
    const keys = await first.request('/-/api_keys', authorised(first))
    const id = /ak_[a-z0-9]+/.exec(await keys.text())?.[0]
    expect((await first.request(`/-/api_keys/${id}`, authorised(first, { method: 'DELETE' }))).ok).toBe(true)
    expect((await first.request('/v0/sandboxes', authorised(first))).status).toBe(401)
    await first.close()

    const second = await platform({ dataDir })
    expect(second.credentials.apiKey).not.toBe(first.credentials.apiKey)
    expect((await second.request('/v0/sandboxes', authorised(second))).status).toBe(200)
    await second.close()

    expect((await platform({ dataDir })).credentials).toEqual(second.credentials)
  })

  test('names a workspace that is there, whatever became of the first', async () => {
    const dataDir = directory()
    const first = await platform({ dataDir })
    const change = (method: string, path: string, json?: object) =>
      first.request(path, authorised(first, { method, ...(json ? { body: JSON.stringify(json) } : {}) }))
    expect((await change('DELETE', '/v0/workspaces/main')).status).toBe(409)
    expect((await change('POST', '/v0/workspaces', { name: 'lab' })).status).toBe(200)
    expect((await change('DELETE', '/v0/workspaces/main')).status).toBe(200)
    await eventually(async () => readCredentials(dataDir)?.workspace === 'lab')
    expect((await first.request('/v0/sandboxes', authorised(first))).status).toBe(200)
    expect((await change('DELETE', '/v0/workspaces/lab?force=true')).status).toBe(200)

    // The name of the first may be somebody else's by then.
    const { sub } = await first.users.create({ email: 'other@example.com' })
    await first.workspaces.create({ name: 'main', ownerSub: sub })
    await first.close()
    const second = await platform({ dataDir })
    expect(second.credentials).toEqual({ workspace: 'main-2', apiKey: first.credentials.apiKey })
    expect((await second.request('/v0/sandboxes', authorised(second))).status).toBe(200)
  })

  test('admits one platform at a time', async () => {
    const dataDir = directory()
    const first = await platform({ dataDir })
    const { url } = await first.listen()
    await expect(platform({ dataDir })).rejects.toMatchObject({
      code: 'conflict',
      message: expect.stringContaining(url),
    })
    await first.close()
    await platform({ dataDir })
  })

  test('of a newer version is refused by both versions, and left as it was', async () => {
    const dataDir = directory()
    await (await platform({ dataDir })).close()
    const path = join(dataDir, 'hutch.db')
    const database = new Database(path)
    const { version } = database
      .query<{ version: number }, []>('SELECT max(version) AS version FROM schema_versions')
      .get()!
    database.exec(
      "INSERT INTO schema_versions (version, name, applied_at) VALUES (999, 'from the future', 0)",
    )
    database.close()
    const before = readdirSync(dataDir).sort()
    const refused = platform({ dataDir })
    await expect(refused).rejects.toThrow('999')
    await expect(platform({ dataDir })).rejects.toThrow(String(version))
    expect(
      readdirSync(dataDir)
        .filter((name) => !/-(wal|shm)$/.test(name))
        .sort(),
    ).toEqual(before.filter((name) => !/-(wal|shm)$/.test(name)))
  })

  test('keeps its workspace, key and sandboxes from one platform to the next', async () => {
    const dataDir = directory()
    const runtime = fakeRuntime()
    const first = await platform({ dataDir, runtime })
    await create(first, 'kept')
    const { credentials } = first
    await first.close({ keepInstances: true })
    const second = await platform({ dataDir, runtime })
    expect(second.credentials).toEqual(credentials)
    expect((await second.request('/v0/sandboxes/kept', authorised(second))).status).toBe(200)
  })
})

describe('a wall clock that jumps', () => {
  test.each([
    ['a year ahead', 365 * 24 * 60 * 60 * 1000],
    ['a year back', -365 * 24 * 60 * 60 * 1000],
  ])('%s: sandboxes without an end stay, and new ones are made', async (_, jumpMs) => {
    const clock = new FakeClock()
    const one = await platform({ clock })
    await create(one, 'before')
    clock.jump(jumpMs)
    await clock.turn(60_000)
    expect((await one.request('/v0/sandboxes/before', authorised(one))).status).toBe(200)
    expect((await create(one, 'after')).status).toBe(200)
    const list = (await (await one.request('/v0/sandboxes', authorised(one))).json()) as {
      metadata: { name: string }
    }[]
    expect(list.map((sandbox) => sandbox.metadata.name).sort()).toEqual(['after', 'before'])
  })
})

describe('who may do what, over the whole route table', () => {
  test('every route but the public few refuses whoever has no right to it', async () => {
    const clock = new FakeClock()
    const one = await platform({ clock })
    const { access, users, workspaces } = one
    const admin = (await users.getByEmail('admin@hutch.localhost'))!
    const keyOf = async (sub: string) =>
      (await access.keys.create({ sub, subType: 'user', workspace: '', createdBy: admin.sub })).key
    const stranger = await users.create({ email: 'stranger@example.com' })
    await workspaces.create({ name: 'elsewhere', ownerSub: stranger.sub })
    const member = await users.create({ email: 'member@example.com' })
    await users.add('main', member.sub, 'member')
    const expired = await access.keys.create({
      sub: admin.sub,
      subType: 'user',
      workspace: '',
      createdBy: admin.sub,
      expiresIn: '1h',
    })
    clock.advance(60 * 60 * 1000)
    const tokenOf = (instanceId: string, kind: string) =>
      access.mintWorkloadToken({
        ...{ instanceId, workspace: 'main', labels: {}, ttlMs: 60_000 },
        resource: { kind, name: 'box' },
      })
    const violations = await routeTableRefusals(
      { routes: one.routes, fetch: (request) => one.request(request) },
      {
        workspace: 'main',
        expiredKey: expired.key,
        foreignKey: await keyOf(stranger.sub),
        memberKey: await keyOf(member.sub),
        workloadToken: await tokenOf('instance-1', 'sandbox'),
        deployedToken: await tokenOf('instance-2', 'agent'),
      },
    )
    expect(violations).toEqual([])
  })

  test('the routes that need no credential are exactly these', async () => {
    const one = await platform()
    expect(publicPaths(one.routes)).toEqual([
      'ALL /-/preview/{label}/{path*}',
      'GET /',
      'GET /-/executions/{token}',
      'GET /-/login',
      'GET /.well-known/jwks.json',
      'GET /.well-known/openid-configuration',
      'GET /api/v1/health',
      'GET /health',
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
      'PUT /-/uploads/{token}',
    ])
  })
})

test('a browser at the address is told what this is, a program that there is nothing', async () => {
  const one = await platform()
  const page = await one.request('/', { headers: { accept: 'text/html,*/*' } })
  expect(page.headers.get('content-type')).toStartWith('text/html')
  expect(await page.text()).toContain('Hutch runs here')
  const plain = await one.request('/')
  expect(plain.status).toBe(404)
  expect(await plain.json()).toMatchObject({ error: { code: 'ROUTE_NOT_FOUND' } })
})

describe('logs', () => {
  test('hold no key, wherever a client put it', async () => {
    const lines: string[] = []
    const log = createLogger({
      clock: systemClock,
      level: 'debug',
      format: 'json',
      write: (line) => lines.push(line),
    })
    const one = await platform({ log })
    const { apiKey } = one.credentials
    await one.listen()
    for (const path of [
      `/v0/sandboxes?token=${apiKey}`,
      `/v0/sandboxes?apiKey=${apiKey}`,
      `/main/sandboxes/none/terminal/ws?token=${apiKey}`,
      `/-/preview/some-label/?bl_preview_token=${apiKey}`,
      `/v0/sandboxes/none/previews/none/tokens/${apiKey}`,
      `/-/preview/${apiKey}/`,
    ]) {
      await one.request(path, authorised(one))
      await one.request(path, { method: 'DELETE', headers: { 'x-api-key': apiKey } })
    }
    expect(lines.length).toBeGreaterThan(10)
    expect(lines.join('')).not.toContain(apiKey)
  })
})
