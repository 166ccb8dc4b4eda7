import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from 'bun:test'
import type { Snapshot as SnapshotOf } from '@blaxel/core'
import { eventually } from './lib/test-eventually.ts'
import { temporaryDataDir } from './platform.ts'
import { fakeRuntime } from './runtimes/fake/index.ts'
import { snapshotsPerSandboxMax } from './sandboxes/snapshots/taking.ts'
import { openTestClient, type TestClient } from './test-client.ts'

/** Snapshots as the client of the cloud sees them, and what it is refused. */

setDefaultTimeout(60_000)

const refusal = (work: Promise<unknown>): Promise<{ code: unknown; error?: string; message?: string }> =>
  work.then(
    () => Promise.reject(new Error('it was not refused')),
    (error) => error,
  )

describe('what there is, what is refused', () => {
  let client: TestClient
  let SandboxInstance: TestClient['SandboxInstance']
  let Snapshot: typeof SnapshotOf

  beforeAll(async () => {
    client = await openTestClient({ dataDir: temporaryDataDir, runtime: fakeRuntime() })
    ;({ SandboxInstance } = client)
    ;({ Snapshot } = await import('@blaxel/core'))
  })
  afterAll(() => client?.[Symbol.asyncDispose]())

  test('a snapshot has the shape of the contract, and is found by id and by name', async () => {
    const envs = [{ name: 'TOKEN', value: 'hidden', secret: true }]
    const ports = [{ target: 3000, protocol: 'HTTP' as const }]
    const sandbox = await SandboxInstance.create({
      name: 'shapes',
      memory: 512,
      envs,
      ports,
      region: 'eu-lon-1',
    })
    const named = await sandbox.snapshots.create('before')
    expect(named.id).toMatch(/^snap_[a-z0-9]+$/)
    expect(named.source).toEqual({ kind: 'sandbox', name: 'shapes', deleted: false })
    expect(named.spec).toEqual({
      image: 'blaxel/base-image:latest',
      memory: 512,
      ports: [{ target: 3000, protocol: 'HTTP' }],
      region: 'eu-lon-1',
      generation: 'mk3',
    })
    expect([named.name, named.status, named.workspace]).toEqual(['before', 'ready', 'main'])
    const old = await sandbox.snapshot('older-way')
    expect(old).toMatchObject({
      sandboxName: 'shapes',
      name: 'older-way',
      status: 'ready',
      workspace: 'main',
      createdBy: expect.any(String),
    })
    expect(Math.abs(Date.parse(old.createdAt) - Date.now())).toBeLessThan(60_000)
    const unnamed = await sandbox.snapshots.create()
    expect(unnamed.name).toMatch(/^snapshot-[a-z0-9]{10}$/)

    expect((await sandbox.snapshots.list()).map(({ id }) => id)).toEqual([unnamed.id, old.id, named.id])
    const bare = await (await client.request('/v0/sandboxes/shapes/snapshots')).json()
    expect(bare).toBeArrayOfSize(3)
    for (const one of bare as object[]) expect(one).toMatchObject({ size: expect.any(Number) })
    expect((await sandbox.snapshots.get('before')).id).toBe(named.id)
    expect((await Snapshot.get(named.id)).name).toBe('before')
    const all = await Snapshot.list({ limit: 2, sort: 'name:asc' })
    expect(all.meta).toMatchObject({ hasMore: true, total: 3 })
    expect((await all.autoPagingToArray({ limit: 10 })).map(({ name }) => name)).toEqual([
      'before',
      'older-way',
      unnamed.name,
    ])
    expect(await (await client.request('/v0/snapshots')).json()).toBeArrayOfSize(3)
    const { events } = await SandboxInstance.get('shapes')
    expect(events?.filter(({ type }) => type === 'snapshot')).toBeArrayOfSize(3)
    expect(JSON.stringify([bare, events])).not.toContain('hidden')

    // Without a word in the request, too: all of it may be left out.
    const asked = await client.request('/v0/sandboxes/shapes/snapshots', { method: 'POST' })
    const { name } = (await asked.json()) as { name: string }
    expect([asked.status, name]).toEqual([200, expect.stringMatching(/^snapshot-/)])
    await sandbox.snapshots.delete(name)

    await sandbox.snapshots.delete('before')
    await sandbox.deleteSnapshot(old.id)
    const response = await client.request(`/v0/snapshots/${unnamed.id}`, { method: 'DELETE' })
    expect([response.status, await response.text()]).toEqual([204, ''])
    expect(await sandbox.listSnapshots()).toEqual([])
    expect(await refusal(Snapshot.get(named.id))).toMatchObject({ code: 404 })
    expect(await refusal(sandbox.snapshots.delete('before'))).toMatchObject({ code: 404 })
    expect(await client.platform.runtime.snapshots?.list()).toEqual([])
  })

  test('what is wrong with a request is said', async () => {
    const sandbox = await SandboxInstance.create({ name: 'wrong', memory: 512 })
    const other = await SandboxInstance.create({ name: 'other', memory: 512 })
    const snapshot = await sandbox.snapshots.create('one')
    const expectRefusal = async (work: Promise<unknown>, code: number, said: string | RegExp) => {
      const error = await refusal(work)
      expect([error.code, error.message]).toEqual([code, expect.stringMatching(said)])
    }
    await expectRefusal(sandbox.snapshots.create('one'), 409, 'has a snapshot "one" already')
    await expectRefusal(sandbox.snapshots.create('snap_mine'), 400, 'begins as the ids')
    await expectRefusal(sandbox.snapshots.create('x'.repeat(64)), 400, '64 characters long, at most 63')
    await expectRefusal(Snapshot.create({ source: { name: 'nobody' } }), 404, 'no sandbox "nobody"')
    await expectRefusal(sandbox.restore('snap_none'), 404, 'no snapshot "snap_none" of this sandbox')
    await expectRefusal(other.restore(snapshot.id), 404, 'of this sandbox')
    await expectRefusal(other.snapshots.delete(snapshot.id), 404, 'of this sandbox')
    await expectRefusal(other.fork('copy', { snapshotId: snapshot.id }), 404, 'of this sandbox')
    await expectRefusal(sandbox.fork('other', { snapshotId: snapshot.id }), 409, '"other" exists already')
    await expectRefusal(sandbox.fork('other'), 409, '"other" exists already')
    await expectRefusal(sandbox.fork('No Name'), 400, 'metadata.name "No Name" is not valid')
    await expectRefusal(sandbox.fork('app', { targetType: 'application' }), 400, 'nothing ran in the sandbox')
    await expectRefusal(
      sandbox.fork('app', { targetType: 'application', prefix: 'www' }),
      400,
      'prefix: it stands before customDomain',
    )
    await expectRefusal(
      snapshot.fork('app', { targetType: 'application' }),
      400,
      'nothing ran in the sandbox',
    )
    await expectRefusal(sandbox.fork('copy', { traffic: 10 }), 400, 'traffic: applications alone')
    await expectRefusal(sandbox.fork('copy', { port: 80 }), 400, '80 is reserved')
    const post = (path: string, body: object) =>
      client.request(path, {
        method: 'POST',
        headers: { 'content-type': 'application/json' },
        body: JSON.stringify(body),
      })
    expect((await post('/v0/sandboxes/wrong/fork', { targetType: 'sandbox' })).status).toBe(400)
    expect((await post('/v0/sandboxes/wrong/fork', { targetName: 'x', targetType: 'pod' })).status).toBe(400)
    expect((await post('/v0/snapshots', { name: 'two' })).status).toBe(400)
    expect((await post('/v0/snapshots', { source: { name: 'wrong', kind: 'job' } })).status).toBe(400)
    // Nothing came of any of it.
    expect((await sandbox.snapshots.list()).map(({ name }) => name)).toEqual(['one'])
    expect(await other.snapshots.list()).toEqual([])
    expect(await client.platform.runtime.snapshots?.list()).toBeArrayOfSize(1)
    // The same name may be that of another sandbox's; then the name alone does not say which.
    await other.snapshots.create('one')
    await expectRefusal(Snapshot.get('one'), 409, 'several sandboxes')
    expect((await other.snapshots.get('one')).source?.name).toBe('other')
    for (const { id } of [...(await sandbox.snapshots.list()), ...(await other.snapshots.list())])
      await Snapshot.delete(id)
  })

  test('another workspace sees and touches nothing of it', async () => {
    const sandbox = await SandboxInstance.create({ name: 'mine', memory: 512 })
    const snapshot = await sandbox.snapshots.create('secret')
    const { platform } = client
    const stranger = await platform.users.create({ email: 'stranger@example.com' })
    await platform.workspaces.create({ name: 'theirs', ownerSub: stranger.sub })
    const { key } = await platform.access.keys.create({
      sub: stranger.sub,
      subType: 'user',
      workspace: '',
      createdBy: stranger.sub,
    })
    const as =
      (workspace: string) =>
      (path: string, method = 'GET') =>
        client.request(path, {
          method,
          headers: {
            authorization: `Bearer ${key}`,
            'x-blaxel-workspace': workspace,
            'content-type': 'application/json',
          },
          ...(method === 'POST'
            ? { body: JSON.stringify({ targetName: 'stolen', targetType: 'sandbox' }) }
            : {}),
        })
    const requests: [path: string, method: string][] = [
      [`/v0/snapshots/${snapshot.id}`, 'GET'],
      [`/v0/snapshots/${snapshot.id}`, 'DELETE'],
      [`/v0/snapshots/${snapshot.id}/fork`, 'POST'],
      ['/v0/sandboxes/mine/snapshots', 'GET'],
      ['/v0/sandboxes/mine/snapshots', 'POST'],
      ['/v0/sandboxes/mine/fork', 'POST'],
      [`/v0/sandboxes/mine/snapshots/${snapshot.id}`, 'DELETE'],
      [`/v0/sandboxes/mine/snapshots/${snapshot.id}/restore`, 'POST'],
    ]
    for (const [path, method] of requests) {
      expect([path, (await as('theirs')(path, method)).status]).toEqual([path, 404])
      expect([401, 403]).toContain((await as('main')(path, method)).status)
    }
    expect(await (await as('theirs')('/v0/snapshots')).json()).toEqual([])
    expect((await sandbox.snapshots.get('secret')).id).toBe(snapshot.id)
    // It keeps the workspace from being deleted, as sandboxes do.
    await sandbox.delete()
    const held = await client.request('/v0/workspaces/main?force=true', { method: 'DELETE' })
    expect([held.status, await held.text()]).toEqual([409, expect.stringMatching(/snapshots: 1\b/)])
    await Snapshot.delete(snapshot.id)
  })

  test('a sandbox has no more snapshots than there can be; those of forks are few and go with it', async () => {
    const sandbox = await SandboxInstance.create({ name: 'many', memory: 512 })
    for (let count = 0; count < snapshotsPerSandboxMax; count++) await sandbox.snapshots.create()
    expect(await refusal(sandbox.snapshots.create())).toMatchObject({ code: 402 })
    const forks: (string | undefined)[] = []
    for (const name of ['a', 'b', 'c', 'd', 'e']) forks.push((await sandbox.fork(`fork-${name}`)).snapshotId)
    const implicit = async () =>
      (await Array.fromAsync(await Snapshot.list({ limit: 200 }))).filter(({ name }) =>
        name.startsWith('fork-'),
      )
    expect((await implicit()).map(({ id }) => id)).toEqual(forks.slice(-3).reverse() as string[])
    await sandbox.delete()
    expect(await implicit()).toEqual([])
    const left = await Array.fromAsync(await Snapshot.list({ limit: 200 }))
    expect(left).toBeArrayOfSize(snapshotsPerSandboxMax)
    expect(left.every(({ source }) => source?.deleted === true)).toBe(true)
    await eventually(
      'their files gone',
      async () => (await client.platform.runtime.snapshots?.list())?.length === snapshotsPerSandboxMax,
    )
    for (const one of left) await one.delete()
    await eventually('all gone', async () => (await client.platform.runtime.snapshots?.list())?.length === 0)
  })
})
