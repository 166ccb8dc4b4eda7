import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from 'bun:test'
import { existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { SandboxInstance as Sandbox } from '@blaxel/core'
import { FakeClock } from './lib/test-clock.ts'
import { eventually } from './lib/test-eventually.ts'
import { temporaryDataDir } from './platform.ts'
import { fakeRuntime } from './runtimes/fake/index.ts'
import { openTestClient, type TestClient, whyNot } from './test-client.ts'

/** What becomes of a sandbox in time, through the client of the cloud. */

setDefaultTimeout(120_000)
const minuteMs = 60_000
const hourMs = 60 * minuteMs
const dayMs = 24 * hourMs

describe('policies, by a clock that is turned', () => {
  let clock: FakeClock
  let client: TestClient
  let SandboxInstance: TestClient['SandboxInstance']

  beforeAll(async () => {
    clock = new FakeClock()
    client = await openTestClient({ dataDir: temporaryDataDir, runtime: fakeRuntime({ clock }), clock })
    ;({ SandboxInstance } = client)
  })
  afterAll(() => client?.[Symbol.asyncDispose]())

  const statusOf = async (name: string) => (await SandboxInstance.get(name)).status
  const forgotten = (name: string) =>
    eventually(`${name} forgotten`, () =>
      SandboxInstance.get(name).then(
        () => false,
        (error: { code: number }) => error.code === 404,
      ),
    )
  const names = async () => {
    const found: string[] = []
    for await (const { metadata } of await SandboxInstance.list()) found.push(metadata.name)
    return found
  }
  /** Uses a sandbox without running anything in it. */
  const use = async (sandbox: Sandbox) => void (await sandbox.process.list())

  const policy = (type: 'ttl-idle' | 'ttl-max-age' | 'date', value: string) => ({
    type,
    value,
    action: 'delete' as const,
  })
  const ends: Record<string, { spec: () => object; afterMs: number }> = {
    'a ttl': { spec: () => ({ ttl: '2h' }), afterMs: 2 * hourMs },
    'a date in spec.runtime.expires': {
      spec: () => ({ expires: new Date(clock.now() + 5 * hourMs) }),
      afterMs: 5 * hourMs,
    },
    'a ttl-max-age policy': {
      spec: () => ({ lifecycle: { expirationPolicies: [policy('ttl-max-age', '2d')] } }),
      afterMs: 2 * dayMs,
    },
    'a date policy': {
      spec: () => ({
        lifecycle: {
          expirationPolicies: [policy('date', new Date(clock.now() + 7 * hourMs).toISOString())],
        },
      }),
      afterMs: 7 * hourMs,
    },
    'a ttl-idle policy': {
      spec: () => ({ lifecycle: { expirationPolicies: [policy('ttl-idle', '30m')] } }),
      afterMs: 30 * minuteMs,
    },
    'the first of several': {
      spec: () => ({
        ttl: '5d',
        lifecycle: { expirationPolicies: [policy('ttl-max-age', '1w'), policy('ttl-idle', '1d')] },
      }),
      afterMs: dayMs,
    },
  }

  for (const [what, { spec, afterMs }] of Object.entries(ends)) {
    test(`${what} terminates a sandbox in its time: seen as TERMINATED, then gone`, async () => {
      const name = what.replace(/[^a-z]+/g, '-')
      const sandbox = await SandboxInstance.create({ name, ...spec() })
      expect(sandbox.expiresIn).toBe(afterMs / 1000)
      await clock.turn(afterMs - 1000)
      expect(await statusOf(name)).toBe('DEPLOYED')
      await clock.turn(1000)
      const over = await SandboxInstance.get(name)
      expect(over.status).toBe('TERMINATED')
      expect(over.expiresIn).toBeUndefined()
      expect(over.events?.at(-1)).toMatchObject({ type: 'expiration', status: 'TERMINATED' })
      expect(await names()).not.toContain(name)
      await expect(sandbox.process.list()).rejects.toMatchObject({ status: 404 })
      await clock.turn(5 * minuteMs)
      await forgotten(name)
    })
  }

  test('use postpones idleness, and looking from outside does not', async () => {
    const lifecycle = {
      expirationPolicies: [policy('ttl-idle', '1h')],
    }
    const sandbox = await SandboxInstance.create({ name: 'idle', lifecycle })
    for (let round = 0; round < 3; round++) {
      await clock.turn(50 * minuteMs)
      await use(sandbox)
      expect(Date.parse((await SandboxInstance.get('idle')).lastUsedAt ?? '')).toBe(clock.now())
    }
    for (let round = 0; round < 5; round++) {
      await clock.turn(11 * minuteMs)
      expect(await statusOf('idle')).toBe('DEPLOYED')
    }
    await clock.turn(5 * minuteMs)
    expect(await statusOf('idle')).toBe('TERMINATED')
  })

  test('a ttl and a lifecycle are changed and cleared without a new machine', async () => {
    await SandboxInstance.create({ name: 'changed', ttl: '1h' })
    const longer = await SandboxInstance.updateTtl('changed', '3h')
    expect([longer.spec.runtime?.ttl, longer.expiresIn]).toEqual(['3h', 3 * 3600])
    await clock.turn(2 * hourMs)
    expect(await statusOf('changed')).toBe('DEPLOYED')
    const cleared = await SandboxInstance.updateTtl('changed', null as unknown as string)
    expect([cleared.spec.runtime?.ttl, cleared.expiresIn]).toEqual([undefined, undefined])
    const policies = await SandboxInstance.updateLifecycle('changed', {
      expirationPolicies: [policy('ttl-max-age', '1d')],
    })
    expect(policies.expiresIn).toBe(22 * 3600)
    const none = await SandboxInstance.updateLifecycle('changed', null as never)
    expect([none.spec.lifecycle, none.expiresIn, none.events?.length]).toEqual([undefined, undefined, 2])
    await clock.turn(30 * dayMs)
    expect(await statusOf('changed')).toBe('DEPLOYED')
    await SandboxInstance.updateTtl('changed', '')
    expect((await SandboxInstance.updateMetadata('changed', { labels: { a: 'b' } })).metadata.labels).toEqual(
      {
        a: 'b',
      },
    )
  })

  test('a name whose sandbox is TERMINATED is free, and what is made of it is new', async () => {
    await SandboxInstance.create({ name: 'again', ttl: '1m' })
    await clock.turn(minuteMs)
    expect(await statusOf('again')).toBe('TERMINATED')
    const again = await SandboxInstance.createIfNotExists({ name: 'again' })
    expect([again.status, again.expiresIn]).toEqual(['DEPLOYED', undefined])
  })

  test('TERMINATED is kept for as long as terminatedRetention says', async () => {
    await SandboxInstance.create({ name: 'kept', ttl: '1m', lifecycle: { terminatedRetention: '1h' } })
    await clock.turn(minuteMs + 59 * minuteMs)
    expect(await statusOf('kept')).toBe('TERMINATED')
    await clock.turn(2 * minuteMs)
    await forgotten('kept')
  })

  test('an archived sandbox does not idle away, and is over in its time all the same', async () => {
    const sandbox = await SandboxInstance.create({
      name: 'packed',
      ttl: '10d',
      lifecycle: { expirationPolicies: [policy('ttl-idle', '1h')] },
    })
    await sandbox.archive({ interval: 5 })
    await clock.turn(9 * dayMs)
    expect((await SandboxInstance.get('packed')).expiresIn).toBe(86_400)
    expect(await statusOf('packed')).toBe('ARCHIVED')
    await clock.turn(dayMs)
    expect(await statusOf('packed')).toBe('TERMINATED')
  })
})

const directory = mkdtempSync(join(tmpdir(), 'hutch-lifecycle-'))
afterAll(() => rmSync(directory, { recursive: true, force: true }))
const why = await whyNot(({ archive }) => (archive ? '' : 'this host cannot archive: GNU tar was not found'))

describe.skipIf(why !== '')('real machines', () => {
  const dataDir = join(directory, 'data')
  let client: TestClient
  let sandbox: Sandbox

  beforeAll(async () => {
    mkdirSync(dataDir)
    client = await openTestClient({ dataDir })
    const envs = [{ name: 'OF_SANDBOX', value: 'sandbox' }]
    sandbox = await client.SandboxInstance.create({ name: 'box', memory: 512, envs })
  })
  afterAll(() => client?.[Symbol.asyncDispose]())

  const statuses = async () => (await client.SandboxInstance.get('box')).events?.map(({ status }) => status)
  const files = () => readdirSync(join(dataDir, 'instances')).filter((name) => !name.startsWith('.'))

  test('an upgrade of the API is counted, and processes and previews survive it', async () => {
    await sandbox.process.exec({ name: 'survivor', command: 'sleep 600' })
    const preview = await sandbox.previews.create({
      metadata: { name: 'p' },
      spec: { port: 3000, public: true },
    })
    const health = async () =>
      (await (await client.request('/main/sandboxes/box/health')).json()) as {
        status: string
        upgradeCount: number
        lastUpgrade: { status: string; version: string; error?: string }
        version: string
        processes: { running: number }
      }
    const before = await health()
    expect(before).toMatchObject({ status: 'ok', upgradeCount: 0, lastUpgrade: { status: 'idle' } })
    expect(await sandbox.system.upgrade({ version: 'latest' })).toMatchObject({ version: 'latest' })
    const after = await health()
    expect(after).toMatchObject({
      status: 'ok',
      upgradeCount: 1,
      lastUpgrade: { status: 'completed', version: before.version },
      processes: { running: 1 },
    })
    expect((await sandbox.process.get('survivor')).status).toBe('running')
    expect((await sandbox.previews.get('p')).spec?.url).toBe(preview.spec?.url)
    await sandbox.system.upgrade({ version: 'v99.0.0' })
    expect(await health()).toMatchObject({
      upgradeCount: 1,
      lastUpgrade: { status: 'failed', error: expect.stringContaining('v99.0.0 is not here') },
    })
    expect((await client.SandboxInstance.updateMetadata('box', { labels: { a: 'b' } })).status).toBe(
      'DEPLOYED',
    )
    expect((await health()).upgradeCount).toBe(1)
    await sandbox.process.kill('survivor')
  })

  test('processes and previews are listed as the command line of the cloud asks for them', async () => {
    await sandbox.process.exec({ name: 'listed', command: 'true', waitForCompletion: true })
    // It reads the sandbox first, and goes by the address that it finds there, with nothing but the key.
    const { metadata } = (await (await client.request('/v0/sandboxes/box')).json()) as {
      metadata: { url: string }
    }
    const authorization = `Bearer ${client.platform.credentials.apiKey}`
    const processes = await fetch(`${metadata.url}/process`, { headers: { authorization } })
    expect(await processes.json()).toContainEqual(
      expect.objectContaining({ name: 'listed', status: 'completed', exitCode: 0 }),
    )
    const previews = await (await client.request('/v0/sandboxes/box/previews')).json()
    expect(previews).toEqual([
      expect.objectContaining({ metadata: expect.objectContaining({ name: 'p', resourceName: 'box' }) }),
    ])
  })

  test('an archived sandbox takes no machine, and comes back with its files and its processes', async () => {
    const commands = [
      'mkdir -p /srv/deep && echo kept > /srv/deep/file && ln -s file /srv/deep/link',
      'chown 1000:1000 /srv/deep/file && chmod 4750 /srv/deep/file',
      'rm -rf /usr/games && head -c 3000000 /dev/urandom > /srv/random && sha256sum /srv/random > /srv/sum',
    ]
    await sandbox.process.exec({ command: commands.join(' && '), waitForCompletion: true })
    await sandbox.process.exec({
      name: 'server',
      command: 'while :; do echo "$GREETING $OF_SANDBOX" > /tmp/beat; sleep 0.05; done',
      env: { GREETING: 'hello' },
      workingDir: '/srv',
    })
    await sandbox.process.exec({ name: 'ended', command: 'echo said', waitForCompletion: true })
    const [id = ''] = files()
    const answer = await client.SandboxInstance.archive('box', { wait: false })
    expect(answer.status).toBe('ARCHIVING')
    await sandbox.archive({ interval: 20 }).catch((error) => expect(error).toMatchObject({ code: 409 }))
    const archived = await eventually('archived', async () => {
      const found = (await (await client.request('/v0/sandboxes/box')).json()) as {
        status: string
        state?: string
        archive: { size: number; createdAt: string }
      }
      return found.status === 'ARCHIVED' ? found : null
    })
    expect(archived.state).toBeUndefined()
    expect(archived.archive.size).toBeGreaterThan(3_000_000)
    expect(archived.archive.size).toBeLessThan(6_000_000)
    expect(existsSync(join(dataDir, 'instances', id, 'archive'))).toBe(true)
    expect(existsSync(join(dataDir, 'instances', id, 'disk.img'))).toBe(false)
    expect((await sandbox.fs.ls('/srv').catch((error) => error)).status).toBe(404)
    await expect(sandbox.archive()).rejects.toMatchObject({ code: 409 })

    // It rests over a restart of the platform, too.
    await client.platform.close({ keepInstances: true })
    await client[Symbol.asyncDispose]()
    client = await openTestClient({ dataDir })
    expect((await client.SandboxInstance.get('box')).status).toBe('ARCHIVED')

    sandbox = await client.SandboxInstance.get('box')
    await sandbox.unarchive({ interval: 20 })
    expect(sandbox.status).toBe('DEPLOYED')
    expect(await statuses()).toEqual([
      'DEPLOYING',
      'DEPLOYED',
      'ARCHIVING',
      'ARCHIVED',
      'UNARCHIVING',
      'DEPLOYED',
    ])
    const check =
      'sha256sum -c /srv/sum && cat /srv/deep/link && stat -c "%u %g %a" /srv/deep/file && ls /usr/games 2>&1'
    const { stdout } = await sandbox.process.exec({ command: check, waitForCompletion: true })
    expect(stdout).toStartWith('/srv/random: OK\nkept\n1000 1000 4750\n')
    expect(stdout).toContain('No such file')
    expect((await sandbox.process.get('server')).status).toBe('running')
    await eventually('a beat', async () => (await sandbox.fs.read('/tmp/beat')) === 'hello sandbox\n')
    expect((await sandbox.process.logs('ended')).trim()).toBe('said')
    expect(existsSync(join(dataDir, 'instances', id, 'archive'))).toBe(false)
  })

  test('an archived sandbox is deleted like any other', async () => {
    await sandbox.archive({ interval: 20 })
    await sandbox.delete()
    expect(files()).toEqual([])
    await expect(sandbox.unarchive()).rejects.toMatchObject({ code: 404 })
  })
})
