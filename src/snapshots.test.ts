import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from 'bun:test'
import { existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { SandboxInstance as Sandbox, Snapshot as SnapshotOf } from '@blaxel/core'
import { ociArchive, programs, tar, testImage } from './images/test-image.ts'
import { eventually } from './lib/test-eventually.ts'
import { openTestClient, type TestClient, whyNot } from './test-client.ts'

/** Snapshots, and what is made of them, through the client of the cloud. */

setDefaultTimeout(60_000)

const refusal = (work: Promise<unknown>): Promise<{ code: unknown; error?: string; message?: string }> =>
  work.then(
    () => Promise.reject(new Error('it was not refused')),
    (error) => error,
  )

const directory = mkdtempSync(join(tmpdir(), 'hutch-snapshots-'))
afterAll(() => rmSync(directory, { recursive: true, force: true }))
const why = await whyNot(({ snapshots }) =>
  snapshots ? '' : 'this host can neither freeze sandboxes nor copy disks',
)

describe.skipIf(why !== '')('real machines', () => {
  const dataDir = join(directory, 'data')
  let client: TestClient
  let sandbox: Sandbox
  let Snapshot: typeof SnapshotOf

  beforeAll(async () => {
    mkdirSync(dataDir)
    client = await openTestClient({ dataDir, standbyAfterSeconds: 0.2 })
    ;({ Snapshot } = await import('@blaxel/core'))
    sandbox = await client.SandboxInstance.create({
      name: 'box',
      memory: 512,
      envs: [
        { name: 'KEPT', value: 'kept' },
        { name: 'CHANGED', value: 'before' },
      ],
      ports: [{ target: 3000 }],
      labels: { of: 'box' },
      ttl: '1h',
    })
    await run(sandbox, 'mkdir -p /srv/deep && echo one > /srv/deep/file && chown 1000:1000 /srv/deep/file')
    await sandbox.process.exec({
      name: 'server',
      command: 'while :; do echo "$GREETING $KEPT $CHANGED $BL_NAME" > /tmp/beat; sleep 0.05; done',
      env: { GREETING: 'hello' },
      workingDir: '/srv',
    })
  })
  afterAll(() => client?.[Symbol.asyncDispose]())

  const run = async (box: Sandbox, command: string) =>
    (await box.process.exec({ command, waitForCompletion: true })).stdout
  const beat = (box: Sandbox, text: string) =>
    eventually(
      `a beat of ${text}`,
      async () => (await box.fs.read('/tmp/beat').catch(() => '')) === `${text}\n`,
    )
  const kept = (name: string) =>
    readdirSync(join(dataDir, `instances${name}`)).filter((one) => !one.startsWith('.'))

  test('a running sandbox is captured while it goes on, and gets its files and processes back', async () => {
    const before = await sandbox.process.get('server')
    const snapshot = await sandbox.snapshots.create('first')
    expect(snapshot.status).toBe('ready')
    expect(kept('.snapshots')).toBeArrayOfSize(1)
    const after = await sandbox.process.get('server')
    expect([after.pid, after.status]).toEqual([before.pid, 'running'])
    const preview = await sandbox.previews.create({
      metadata: { name: 'p' },
      spec: { port: 3000, public: true },
    })
    await run(sandbox, 'echo two > /srv/deep/file; rm -rf /usr/games; touch /srv/later')
    await client.SandboxInstance.updateMetadata('box', { labels: { of: 'changed' } })

    expect(await sandbox.snapshots.restore('first')).toEqual({ name: 'box', snapshotId: snapshot.id })
    const restored = await client.SandboxInstance.get('box')
    expect(restored.status).toBe('DEPLOYED')
    expect(restored.metadata.labels).toEqual({ of: 'changed' })
    expect(restored.events?.map(({ message }) => message ?? '')).toContainEqual(
      expect.stringContaining(`Restored from the snapshot "first" (${snapshot.id})`),
    )
    expect(await run(sandbox, 'cat /srv/deep/file; stat -c %u /srv/deep/file; ls /srv; hostname')).toBe(
      'one\n1000\ndeep\nbox\n',
    )
    await beat(sandbox, 'hello kept before box')
    expect(await sandbox.process.get('server')).toMatchObject({ status: 'running', workingDir: '/srv' })
    expect((await sandbox.previews.get('p')).spec?.url).toBe(preview.spec?.url)
    await eventually('the old machine gone', () => kept('').length === 1)
  })

  test('one that rests, and one that is archived, are captured as well', async () => {
    const resting = await client.SandboxInstance.create({ name: 'resting', memory: 512 })
    await resting.fs.write('/srv/file', 'resting')
    await eventually(
      'it rests',
      async () =>
        ((await (await client.request('/v0/sandboxes/resting')).json()) as { state: string }).state ===
        'STANDBY',
    )
    const first = await resting.snapshots.create('resting')
    await resting.archive({ interval: 20 })
    const second = await Snapshot.create({ name: 'archived', source: { name: 'resting', kind: 'sandbox' } })
    expect([first.status, second.status]).toEqual(['ready', 'ready'])
    for (const [index, snapshot] of [first, second].entries()) {
      await snapshot.fork(`of-${index}`)
      const copy = await client.SandboxInstance.get(`of-${index}`)
      expect(await copy.fs.read('/srv/file')).toBe('resting')
      await copy.delete()
    }
    // An archived sandbox is brought back by being restored, too.
    await resting.snapshots.restore('archived')
    expect((await client.SandboxInstance.get('resting')).status).toBe('DEPLOYED')
    expect(await resting.fs.read('/srv/file')).toBe('resting')
    await resting.delete()
    for (const one of [first, second]) await one.delete()
  })

  test('a fork into an application serves what ran in the sandbox, and holds its snapshot while it is there', async () => {
    const box = await client.SandboxInstance.create({
      name: 'web',
      memory: 512,
      envs: [{ name: 'GREETING', value: 'hello' }],
      ports: [{ target: 8080 }, { target: 8123 }],
    })
    const server = `Bun.serve({ port: 8123, fetch: async (request) => new Response(
      process.env.GREETING + ' ' + process.env.OWN + ' ' + await Bun.file('/srv/page').text()) })`
    await box.fs.write('/srv/page', 'one')
    await box.fs.write('/srv/server.ts', server)
    await box.process.exec({
      name: 'server',
      command: 'bun server.ts',
      workingDir: '/srv',
      env: { OWN: "it's" },
      waitForPorts: [8123],
    })
    const answer = await box.fork('site', { targetType: 'application' })
    expect(answer).toMatchObject({ type: 'application', name: 'site' })
    await box.fs.write('/srv/page', 'two')
    const { ApplicationInstance } = await import('@blaxel/core')
    const deployed = (count: number) =>
      eventually(`${count} revisions deployed`, async () => {
        const { status, spec, events } = await ApplicationInstance.get('site')
        if (status === 'FAILED') throw new Error(events?.at(-1)?.message)
        return status === 'DEPLOYED' && spec.revisions?.length === count ? spec : null
      })
    const { revisions } = await deployed(1)
    expect(revisions?.[0]).toMatchObject({ snapshot: answer.snapshotId, port: 8123, memory: 512 })
    const page = async () => await (await client.request('/main/applications/site/')).text()
    expect(await page()).toBe("hello it's one")
    const { snapshotId = '' } = answer
    const held = await refusal(Snapshot.delete(snapshotId))
    expect([held.code, held.message]).toEqual([409, expect.stringContaining('the application site')])

    const elsewhere = await refusal(
      box.fork('site', { targetType: 'application', customDomain: 'example.org', prefix: 'www' }),
    )
    expect([elsewhere.code, elsewhere.message]).toEqual([400, expect.stringContaining('register it first')])
    const second = await box.fork('site', { targetType: 'application', traffic: 100 })
    await deployed(2)
    expect(await page()).toBe("hello it's two")
    // Another environment, of the same files.
    const site = await ApplicationInstance.get('site')
    await site.update({ envs: [{ name: 'GREETING', value: 'bye' }] })
    await deployed(3)
    expect(await page()).toBe("bye it's two")
    await box.delete()
    expect(await page()).toBe("bye it's two")
    await site.delete()
    for (const id of [snapshotId, second.snapshotId ?? ''])
      expect(await refusal(Snapshot.get(id))).toMatchObject({ code: 404 })
  })

  test('a fork has files, image, memory, ports and environment, and its own name', async () => {
    await sandbox.fs.write('/srv/file', 'live')
    const answer = await sandbox.fork('copy', { port: 5173, envs: [{ name: 'CHANGED', value: 'after' }] })
    const { snapshotId = '' } = answer
    expect(answer).toEqual({ type: 'sandbox', name: 'copy', snapshotId })
    const copy = await client.SandboxInstance.get('copy')
    expect(copy.status).toBe('DEPLOYED')
    expect(copy.spec.runtime).toMatchObject({
      image: 'blaxel/base-image:latest',
      memory: 512,
      ports: [
        { target: 3000, protocol: 'HTTP' },
        { target: 5173, protocol: 'HTTP' },
      ],
    })
    expect(copy.spec.runtime?.envs?.map(({ name }) => name).toSorted()).toEqual(['CHANGED', 'KEPT'])
    expect([copy.metadata.labels, copy.spec.runtime?.ttl]).toEqual([undefined, undefined])
    expect(await copy.fs.read('/srv/file')).toBe('live')
    expect(await run(copy, 'hostname; cat /etc/hostname; grep 127.0.1.1 /etc/hosts')).toBe(
      'copy\ncopy\n127.0.1.1 copy\n',
    )
    await beat(copy, 'hello kept after copy')
    await copy.fs.write('/srv/file', 'of the copy')
    expect(await sandbox.fs.read('/srv/file')).toBe('live')
    expect((await Snapshot.get(snapshotId)).source).toMatchObject({ name: 'box' })
    await copy.delete()
  })

  test('what is asked of a sandbox while it is captured is answered, and nothing of it is in the snapshot', async () => {
    await run(sandbox, 'head -c 30000000 /dev/urandom > /srv/large; sha256sum /srv/large > /srv/sum')
    const taking = sandbox.snapshots.create('large')
    const answers: string[] = []
    let taken = false
    void taking.finally(() => {
      taken = true
    })
    while (!taken) answers.push((await run(sandbox, 'echo here')) ?? '')
    const snapshot = await taking
    expect(new Set(answers)).toEqual(new Set(['here\n']))
    await run(sandbox, 'rm /srv/large /srv/sum')
    await snapshot.fork('large')
    const copy = await client.SandboxInstance.get('large')
    expect(await run(copy, 'sha256sum -c /srv/sum')).toBe('/srv/large: OK\n')
    await copy.delete()
    await snapshot.delete()
  })

  test('a snapshot outlives its sandbox and a restart of the platform, and others are made of it', async () => {
    const doomed = await client.SandboxInstance.create({ name: 'doomed', memory: 512 })
    await doomed.fs.write('/srv/file', 'outlived')
    const { id } = await doomed.snapshots.create('last')
    await doomed.delete()
    await client.SandboxInstance.create({ name: 'doomed', memory: 512 })
    await client.platform.close({ keepInstances: true })
    await client[Symbol.asyncDispose]()
    client = await openTestClient({ dataDir })
    const snapshot = await Snapshot.get(id)
    expect(snapshot.source).toEqual({ kind: 'sandbox', name: 'doomed', deleted: true })
    const namesake = await client.SandboxInstance.get('doomed')
    expect(await namesake.snapshots.list()).toEqual([])
    expect(await refusal(namesake.restore(id))).toMatchObject({ code: 404 })
    await Promise.all(['one', 'two', 'three'].map((name) => snapshot.fork(name)))
    for (const name of ['one', 'two', 'three']) {
      const copy = await client.SandboxInstance.get(name)
      expect(await copy.fs.read('/srv/file')).toBe('outlived')
      await copy.delete()
    }
    await snapshot.delete()
    await eventually('its files gone', () => !existsSync(join(dataDir, 'instances.snapshots', id.slice(5))))
    await namesake.delete()
  })

  test('the program and the user of an image are those of a fork, and the image stays while the snapshot is', async () => {
    const accounts = 'root:x:0:0::/root:/bin/sh\napp:x:1001:1002::/home/app:/bin/sh\n'
    const layers = [
      tar([
        ...programs('sh', 'cat', 'sleep', 'id'),
        { path: 'etc/passwd', content: accounts },
        { path: 'project/', uid: 1001 },
      ]),
    ]
    const config = {
      Entrypoint: ['/bin/sh', '-c', 'id -u > /project/ran; sleep 1000'],
      User: 'app',
      WorkingDir: '/project',
      Env: ['BL_SANDBOX_USER_ENABLED=true', 'PATH=/bin', 'OF_IMAGE=image'],
    }
    const own = '/v0/images/sandbox/own'
    const image = Buffer.from(ociArchive(testImage(layers, { config })))
    await client.request('/-/images/import?name=own', { method: 'PUT', body: image })
    const box = await client.SandboxInstance.create({ name: 'imaged', image: 'sandbox/own', memory: 256 })
    await eventually('it ran', () => box.fs.read('/project/ran').catch(() => ''))
    await box.fs.write('/project/file', 'kept')
    const snapshot = await box.snapshots.create()
    await box.delete()
    const refused = await client.request(own, { method: 'DELETE' })
    expect([refused.status, await refused.text()]).toEqual([
      400,
      expect.stringContaining(`is used by the snapshot \\"${snapshot.name}\\" (${snapshot.id})`),
    ])
    await snapshot.fork('of-image', { envs: [{ name: 'MORE', value: 'more' }] })
    const copy = await client.SandboxInstance.get('of-image')
    expect(await run(copy, 'cat /project/file; echo " $OF_IMAGE $MORE $BL_NAME"; id -u')).toBe(
      'kept image more of-image\n1001\n',
    )
    expect(await copy.process.get('entrypoint')).toMatchObject({ status: 'running' })
    await copy.delete()
    await snapshot.delete()
    await eventually('the image can go', async () => (await client.request(own, { method: 'DELETE' })).ok)
  })

  test('a restore that cannot be done leaves the sandbox as it is', async () => {
    const box = await client.SandboxInstance.get('box')
    await box.fs.write('/srv/now', 'now')
    const snapshot = await box.snapshots.create('broken')
    rmSync(join(dataDir, 'instances.snapshots', snapshot.id.slice(5)), { recursive: true })
    expect((await refusal(box.restore(snapshot.id))).code).toBe(404)
    expect((await refusal(snapshot.fork('never'))).code).toBe(404)
    expect(await box.fs.read('/srv/now')).toBe('now')
    expect((await box.process.get('server')).status).toBe('running')
    expect((await refusal(client.SandboxInstance.get('never'))).code).toBe(404)
    await snapshot.delete()
  })
})
