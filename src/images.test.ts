import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from 'bun:test'
import { mkdtempSync, readdirSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { gzipSync } from 'node:zlib'
import type { SandboxInstance as Sandbox } from '@blaxel/core'
import { dockerArchive, ociArchive, programs, type TestEntry, tar, testImage } from './images/test-image.ts'
import { TestRegistry } from './images/test-registry.ts'
import { eventually } from './lib/test-eventually.ts'
import { openTestClient, type TestClient, whyNot } from './test-client.ts'

/** Images of one's own, from the archive to the program inside, through the client of the cloud. */

setDefaultTimeout(120_000)
const directory = mkdtempSync(join(tmpdir(), 'hutch-own-images-'))
afterAll(() => rmSync(directory, { recursive: true, force: true }))
const isRoot = process.getuid?.() === 0
const why = await whyNot()
const whyNoSnapshots = await whyNot(({ snapshots }) =>
  snapshots ? '' : 'this host can neither freeze sandboxes nor copy disks',
)

const shell = tar([
  ...programs('sh', 'ls', 'cat', 'id', 'env', 'stat', 'sleep'),
  { path: 'project/', uid: 1001 },
])
const accounts: TestEntry = {
  path: 'etc/passwd',
  content: 'root:x:0:0::/root:/bin/sh\napp:x:1001:1002::/home/app:/bin/sh\n',
}

describe.skipIf(why !== '')('images of one’s own', () => {
  let client: TestClient
  let count = 0
  const registry = new TestRegistry()
  afterAll(() => registry[Symbol.dispose]())

  beforeAll(async () => {
    client = await openTestClient({
      registries: [registry.host],
      dataDir: join(directory, 'data'),
      imageDir: join(directory, 'host'),
      imageSource: 'live',
      imageMbMax: 64,
    })
  })
  afterAll(async () => {
    const listed = (await (await client.request('/v0/sandboxes')).json()) as { metadata: { name: string } }[]
    for (const { metadata } of listed)
      await client.request(`/v0/sandboxes/${metadata.name}`, { method: 'DELETE' })
    await client[Symbol.asyncDispose]()
  })

  const importAs = (name: string, archive: Uint8Array, query = '') =>
    client.request(`/-/images/import?name=${name}${query}`, { method: 'PUT', body: Buffer.from(archive) })

  async function imported(layers: Buffer[], config: Record<string, unknown> = {}): Promise<string> {
    const name = `own-${++count}`
    const answer = await importAs(name, ociArchive(testImage(layers, { config })))
    expect(await answer.text()).toContain(`"reference":"sandbox/${name}:latest"`)
    return `sandbox/${name}:latest`
  }

  async function create(image: string, envs: { name: string; value: string }[] = []): Promise<Sandbox> {
    return await client.SandboxInstance.create({
      name: `box-${++count}`,
      image,
      memory: 256,
      region: 'local-1',
      envs,
    })
  }

  async function run(sandbox: Sandbox, command: string): Promise<string> {
    const done = await sandbox.process.exec({ command, waitForCompletion: true })
    return done.logs ?? ''
  }

  /** Process 1 dies, as in a crash of the host's kernel. */
  async function endMachine(sandbox: Sandbox): Promise<void> {
    using lease = await client.platform.sandboxes.acquire('main', sandbox.metadata.name!)
    const { guest } = lease.instance.handle.state as { guest: { pid: number } }
    process.kill(guest.pid, 'SIGKILL')
  }

  const layersDir = () => join(client.platform.config.dataDir, 'images', 'layers')

  test('are stacked: whiteouts, opaque directories, owners, setuid, links and modes are what the image says', async () => {
    const low = tar([
      ...['gone', 'kept', 'opaque/low', 'replaced/low'].map((path) => ({ path, content: 'low' })),
      { path: 'empty-below/' },
    ])
    const high = tar([
      { path: '.wh.gone' },
      { path: 'opaque/', mode: 0o700 },
      { path: 'opaque/.wh..wh..opq' },
      { path: 'opaque/high', content: 'high' },
      { path: '.wh.replaced' },
      { path: 'replaced/high', content: 'high' },
      { path: 'suid', content: 'x', mode: 0o4755, uid: 7, gid: 8 },
      { path: 'hard', type: '1', link: 'suid' },
      { path: 'dev/sda', type: '4' },
      { path: 'huge-owner', uid: 2_000_000 },
    ])
    const sandbox = await create(await imported([shell, low, high]))
    expect(await run(sandbox, 'ls /gone')).toContain('No such file')
    expect(await run(sandbox, 'cat /kept; ls /opaque /replaced; ls /dev/sda')).toMatch(
      /^low\/opaque:\nhigh\n\n\/replaced:\nhigh\n.*No such file/s,
    )
    expect(await run(sandbox, 'stat -c "%a %h" /suid /opaque')).toBe('4755 2\n700 2\n')
    // An ordinary user without subordinate ids has one owner for everything.
    if (isRoot) expect(await run(sandbox, 'stat -c "%u %g" /suid /huge-owner')).toBe('7 8\n65534 0\n')
    expect(
      await run(
        sandbox,
        'cat /etc/resolv.conf /etc/hosts; ls -d /tmp /proc/1; echo made > /etc/new; cat /etc/new',
      ),
    ).toMatch(/nameserver .*127.0.0.1 localhost.*\/proc\/1\n\/tmp\nmade/s)
  })

  test('whose own program cannot start make a sandbox that says why among its events', async () => {
    const sandbox = await create(await imported([shell], { Entrypoint: ['/no/such/program'] }))
    const told = await eventually('it is told', async () => {
      const answer = await client.request(`/v0/sandboxes/${sandbox.metadata.name}`)
      const { events, status } = (await answer.json()) as { events: { message: string }[]; status: string }
      expect(status).toBe('DEPLOYED')
      return events.find(({ message }) => message.includes('ENTRYPOINT'))?.message
    })
    expect(told).toContain('/no/such/program')
    expect(await run(sandbox, 'echo usable')).toBe('usable\n')
  })

  test('are run as they say: ENV, WORKDIR, ENTRYPOINT and CMD, also after their machine ended', async () => {
    const image = await imported([shell], {
      Env: ['FROM_IMAGE=image', 'OVERRIDDEN=image', 'PATH=/bin'],
      WorkingDir: '/project/made/for it',
      Entrypoint: ['/bin/sh', '-c'],
      Cmd: ['echo "$FROM_IMAGE in $(pwd)" > /started; echo up; exec sleep 1000'],
    })
    const sandbox = await create(image, [{ name: 'OVERRIDDEN', value: 'sandbox' }])
    await eventually('the entrypoint runs', async () =>
      (await run(sandbox, 'cat /started')).startsWith('image in /project/made/for it\n'),
    )
    expect(await run(sandbox, 'echo "$OVERRIDDEN $PATH"; pwd')).toBe('sandbox /bin\n/project/made/for it\n')
    const program = await sandbox.process.get('entrypoint')
    expect(program.status).toBe('running')
    expect(await sandbox.process.logs('entrypoint')).toBe('up\n')

    await run(sandbox, 'echo gone > /started')
    await endMachine(sandbox)
    await eventually('the entrypoint runs again', async () =>
      (await run(sandbox, 'cat /started').catch(() => '')).startsWith('image in'),
    )
  })

  test('with something else where their directories have to be start if they can, and say so if not', async () => {
    const layers = [shell, tar([...programs('mv'), { path: 'place', content: 'a file' }])]
    const image = await imported(layers, { WorkingDir: '/place' })
    const sandbox = await create(image)
    const refused = sandbox.process.exec({ command: 'pwd', waitForCompletion: true })
    await expect(refused).rejects.toThrow("folder '/place' does not exist")
    await sandbox.fs.rm('/place')
    await sandbox.fs.mkdir('/place')
    expect(await run(sandbox, 'pwd')).toBe('/place\n')
    const runsAnywhere = { command: 'cd / && ls -d place', workingDir: '/', waitForCompletion: true }
    await sandbox.process.exec({ ...runsAnywhere, command: 'mv /place /moved; echo x > /place' })
    await endMachine(sandbox)
    const answer = await eventually('it is back', () => sandbox.process.exec(runsAnywhere).catch(() => null))
    expect(answer?.logs).toBe('place\n')

    const odd = create(await imported([shell, tar([{ path: 'proc', content: 'a file' }])]))
    await expect(odd).rejects.toMatchObject({ status_code: 422, message: expect.stringContaining('/proc') })
  })

  test.skipIf(!isRoot)(
    'run as root unless their user is asked for; then processes and files are that user’s',
    async () => {
      const image = await imported([shell, tar([accounts])], { User: 'app', WorkingDir: '/project' })
      expect(await run(await create(image), 'id -u; echo $HOME')).toBe('0\n/root\n')

      const asked = await create(image, [{ name: 'BL_SANDBOX_USER_ENABLED', value: 'true' }])
      expect(await run(asked, 'id; echo $HOME $USER; echo x > /project/mine; echo x > /etc/theirs')).toMatch(
        /^uid=1001\(app\) gid=1002.*\/home\/app app\n.*Permission denied/s,
      )
      await asked.fs.write('/project/by-api', 'x')
      expect(await run(asked, 'stat -c %u /project/by-api')).toBe('1001\n')
      await expect(asked.fs.write('/etc/by-api', 'x')).rejects.toThrow()

      for (const user of ['nobody-here', 'root', '0']) {
        const refused = client.SandboxInstance.create({
          name: 'never-made',
          region: 'local-1',
          image,
          envs: [
            { name: 'BL_SANDBOX_USER', value: user },
            { name: 'BL_SANDBOX_USER_ENABLED', value: 'true' },
          ],
        })
        await expect(refused).rejects.toMatchObject({ status_code: 400 })
      }
      expect((await client.request('/v0/sandboxes/never-made')).status).toBe(404)
    },
  )

  test.skipIf(isRoot)('have one user only where the host gives no more', async () => {
    const image = await imported([shell, tar([accounts])], { User: 'app' })
    const refused = create(image, [{ name: 'BL_SANDBOX_USER_ENABLED', value: 'true' }])
    await expect(refused).rejects.toMatchObject({ message: expect.stringContaining('only one user') })
  })

  test('without a shell run commands that need none, and say so of the others', async () => {
    const image = await imported([tar(programs('ls', 'cat'))])
    const sandbox = await create(image)
    expect(await run(sandbox, 'cat /etc/hostname')).toBe(`${sandbox.metadata.name}\n`)
    expect(await run(sandbox, 'cat /etc/hosts')).toEndWith(`\n127.0.1.1 ${sandbox.metadata.name}\n`)
    await expect(run(sandbox, 'cat /etc/hostname | cat')).rejects.toThrow('cannot start')
    await sandbox.fs.write('/tmp/by-api', 'works')
    expect(await sandbox.fs.read('/tmp/by-api')).toBe('works')
  })

  test('made for the cloud bring its sandbox API, for which something stands in', async () => {
    const api: TestEntry = { path: 'usr/local/bin/sandbox-api', mode: 0o755, content: 'not a program' }
    const accountsOfHost = tar([accounts])
    const script = '/usr/local/bin/sandbox-api & echo up > /started; wait'
    const served = await create(
      await imported([shell, tar([api])], { Entrypoint: ['/bin/sh', '-c', script] }),
    )
    await eventually('the entrypoint runs', async () => (await run(served, 'cat /started')) === 'up\n')
    expect((await served.process.get('entrypoint')).status).toBe('running')

    const plain = await create(
      await imported([shell, accountsOfHost, tar([api])], { Entrypoint: ['/usr/local/bin/sandbox-api'] }),
    )
    expect(await plain.process.list()).toEqual([])
    const started = await create(
      await imported([shell, accountsOfHost, tar([api])], {
        WorkingDir: '/srv',
        Entrypoint: ['/usr/local/bin/sandbox-api', '--disable-telemetry', '-c', 'pwd > /started; sleep 600'],
      }),
    )
    await eventually('its command runs', async () => (await run(started, 'cat /started')) === '/\n')
    expect((await started.process.get('entrypoint')).status).toBe('running')
    if (!isRoot) return
    const config = { Cmd: ['sandbox-api', '--user', 'app'] }
    expect(await run(await create(await imported([shell, accountsOfHost], config)), 'id -u')).toBe('1001\n')
    const both = { Cmd: ['sandbox-api', '-user=app', '--command=id -u > /tmp/started; sleep 600'] }
    const dropped = await create(await imported([shell, accountsOfHost], both))
    await eventually('its command runs', async () => (await run(dropped, 'cat /tmp/started')) === '1001\n')
  })

  test.skipIf(!isRoot)(
    'whose script hands the sandbox over to a user stay root in the script alone, also over a restart and in forks',
    async () => {
      const api: TestEntry = { path: 'usr/local/bin/sandbox-api', mode: 0o755, content: 'not a program' }
      const script = (user: string): TestEntry => ({
        path: 'start.sh',
        mode: 0o755,
        content: `#!/bin/sh\n# sandbox-api --user root\nAPP=app\nTEMPLATE="\${BL_SANDBOX_USER:-app}"\nid -u > /of-script\necho $HOME >> /of-script\n/usr/local/bin/sandbox-api \\\n  --log x --user ${user} &\nwait\n`,
      })
      const config = { Env: ['PATH=/bin'], Entrypoint: ['/start.sh'] }
      const layers = (user: string) => [shell, tar([accounts]), tar([api, script(user)])]
      const sandbox = await create(await imported(layers('app'), config))
      /** The script writes it anew in each life of a machine. */
      const handedOver = (of: Sandbox) =>
        eventually('the script ran, and nothing else as root', async () => {
          const said = await run(of, 'id -u; echo $HOME; cat /of-script').catch(() => '')
          return said === '1001\n/home/app\n0\n/root\n'
        })
      await handedOver(sandbox)
      await sandbox.fs.write('/tmp/by-api', 'x')
      expect(await run(sandbox, 'stat -c %u /tmp/by-api')).toBe('1001\n')
      const refusal: unknown = await sandbox.fs.write('/etc/by-api', 'x').catch((error) => error)
      expect(String(refusal)).toContain('permission denied')

      await endMachine(sandbox)
      await handedOver(sandbox)
      if (whyNoSnapshots === '') {
        await sandbox.fork('handed-over')
        await handedOver(await client.SandboxInstance.get('handed-over'))
      }

      for (const user of [
        '"$APP"',
        `"\${BL_SANDBOX_USER:-app}"`,
        `"\${OWN-app}"`,
        `\${OTHER:=app}`,
        '$TEMPLATE',
      ]) {
        const named = await create(await imported(layers(user), config))
        expect([user, await run(named, 'id -u')]).toEqual([user, '1001\n'])
      }
      const told = await imported(layers('$TEMPLATE'), config)
      for (const [value, id] of [
        ['', '1002\n'],
        ['1001:7', '7\n'],
      ] as const) {
        const by = await create(told, [{ name: 'BL_SANDBOX_USER', value }])
        expect(await run(by, 'id -g')).toBe(id)
      }
      for (const [user, reason] of [
        ['root', 'is root'],
        ['nobody-here', 'does not exist'],
        ['$WHO', 'sandbox-api --user $WHO'],
      ] as const) {
        const refused: unknown = await create(await imported(layers(user), config)).catch((error) => error)
        expect(refused).toMatchObject({ status_code: 400, message: expect.stringContaining(reason) })
      }
    },
  )

  test('share their layers on disk, and lose them when nothing needs them any more', async () => {
    const before = readdirSync(layersDir()).length
    const own = tar([{ path: `only-${++count}` }])
    const first = await imported([shell, own])
    const second = await imported([shell, own, tar([{ path: `more-${++count}` }])])
    expect(readdirSync(layersDir())).toHaveLength(before + 2)

    const sandbox = await create(second)
    const nameOf = (reference: string) => reference.split(/[/:]/)[1]
    const remove = (reference: string) =>
      client.request(`/v0/images/sandbox/${nameOf(reference)}`, { method: 'DELETE' })
    const refused = await remove(second)
    expect(refused.status).toBe(400)
    expect(await refused.text()).toMatch(/is used by the sandbox box-\d+:/)
    expect((await remove(first)).status).toBe(200)
    expect((await remove(first)).status).toBe(404)
    await run(sandbox, 'ls /')
    await sandbox.delete()
    expect((await remove(second)).status).toBe(200)
    await eventually('unneeded layers are gone', () => readdirSync(layersDir()).length === before)
  })

  test.skipIf(whyNoSnapshots !== '')(
    'stay while a snapshot stands on them, and not a moment longer',
    async () => {
      const image = await imported([shell, tar([{ path: `only-${++count}` }])])
      const remove = () =>
        client.request(`/v0/images/sandbox/${image.split(/[/:]/)[1]}`, { method: 'DELETE' })
      const sandbox = await create(image)
      const { id } = await sandbox.snapshot('on-it')
      await sandbox.delete()
      expect(await (await remove()).text()).toContain(`(${id}): delete that first`)
      expect((await client.request(`/v0/snapshots/${id}`, { method: 'DELETE' })).status).toBe(204)
      expect((await remove()).status).toBe(200)
    },
  )

  test('are listed, shown and deleted by tag through the client', async () => {
    const sdk = await import('@blaxel/core')
    const archive = ociArchive(testImage([shell]))
    for (const tag of ['v1', 'v2'])
      expect((await importAs('tagged', archive, `&tag=${tag}`)).status).toBe(200)
    const path = { resourceType: 'sandboxes', imageName: 'tagged' }
    const { data: shown } = await sdk.getImage({ path })
    expect(shown).toMatchObject({
      metadata: { name: 'tagged', resourceType: 'sandbox', workspace: 'main', status: 'BUILT' },
      spec: { tags: [{ name: 'v1' }, { name: 'v2' }] },
    })
    expect((await sdk.listImages()).data?.map((one) => one.metadata.name)).toContain('tagged')
    const page = async (path: string) => {
      const headers = { 'blaxel-version': '2026-09-22' }
      return (await (await client.request(`/v0/images${path}`, { headers })).json()) as {
        data: { name: string; metadata: { name: string }; spec: object }[]
        meta: { hasMore: boolean; nextCursor: string; total: number }
      }
    }
    const summary = { size: expect.any(Number), tagCount: 2 }
    expect((await page('?q=tagge')).data.map(({ metadata, spec }) => [metadata.name, spec])).toEqual([
      ['tagged', summary],
    ])
    expect((await page('?q=agged')).data).toEqual([])
    const first = await page('/sandbox/tagged/tags?limit=1&sort=name:desc')
    expect([first.data[0]?.name, first.meta]).toEqual([
      'v2',
      { hasMore: true, nextCursor: expect.any(String), total: 2 },
    ])
    const second = await page(`/sandbox/tagged/tags?limit=1&sort=name:desc&cursor=${first.meta.nextCursor}`)
    expect([second.data[0]?.name, second.meta.hasMore]).toEqual(['v1', false])
    expect(await page(`/sandbox/tagged/tags?cursor=${first.meta.nextCursor}`)).toMatchObject({ code: 400 })
    expect((await page('/sandbox/tagged/tags?name=v1')).data.map(({ name }) => name)).toEqual(['v1'])
    await sdk.deleteImageTag({ path: { ...path, tagName: 'v1' } })
    expect((await sdk.getImage({ path })).data?.spec.tags?.map(({ name }) => name)).toEqual(['v2'])
    expect((await sdk.deleteImageTag({ path: { ...path, tagName: 'v1' } })).response.status).toBe(404)
    const { data: cleaned } = await sdk.cleanupImages()
    expect(cleaned?.deleted).toBeGreaterThan(0)
    expect((await sdk.getImage({ path })).response.status).toBe(404)
    const { data: hub } = await sdk.listSandboxHubDefinitions()
    expect(hub?.map(({ image }) => image)).toContain('blaxel/base-image:latest')
  })

  test('come compressed or not, in archives of both kinds', async () => {
    for (const compression of ['gzip', 'zstd', 'none'] as const) {
      const archive = ociArchive(testImage([shell], { compression }))
      expect((await importAs(`made-${compression}`, archive)).status).toBe(200)
    }
    const saved = dockerArchive(testImage([shell, tar([{ path: 'docker', content: 'saved' }])]), ['some:tag'])
    expect((await importAs('docker', gzipSync(saved))).status).toBe(200)
    expect(await run(await create('docker'), 'cat /docker')).toBe('saved')
    expect((await importAs('docker', saved, '&reference=other:tag')).status).toBe(400)
  })

  test.each([
    ['is empty', Buffer.alloc(0), 400, 'no body'],
    ['is no archive', Buffer.from('hello '.repeat(500)), 422, 'not a tar archive'],
    ['is another archive', tar([{ path: 'README' }]), 422, 'is not an image'],
    [
      'is for another machine',
      ociArchive(testImage([shell], { architecture: 'riscv64' })),
      422,
      'for linux/riscv64',
    ],
    ['is cut off', ociArchive(testImage([shell])).subarray(0, 100_000), 422, 'in the middle'],
    ['has a damaged part', damaged(ociArchive(testImage([shell], { compression: 'none' }))), 422, 'damaged'],
    ['leads out of its root', ociArchive(testImage([tar([{ path: '../up' }])])), 422, 'a path with'],
    [
      'is a bomb',
      ociArchive(testImage([tar([{ path: 'zeros', content: Buffer.alloc(80 << 20) }])])),
      422,
      'bytes',
    ],
  ])('an archive that %s is refused, and nothing of it stays', async (_, archive, status, message) => {
    const answer = await importAs('refused', archive)
    expect(await answer.text()).toContain(message)
    expect(answer.status).toBe(status)
    expect(readdirSync(join(layersDir(), '..', 'partial'))).toEqual([])
  })

  describe('of a registry', () => {
    const push = (name: string, ...layers: Buffer[]) => {
      registry.push(name, 'v1', testImage([shell, ...layers], { config: { Env: [`NAME=${name}`] } }))
      return `${registry.host}/${name}:v1`
    }

    test('are pulled when a sandbox is made from them, once for all who ask, and not again', async () => {
      const image = push('demand', tar([{ path: 'only-here' }]))
      const before = registry.blobsAsked
      const sandboxes = await Promise.all([create(image), create(image), create(image)])
      for (const sandbox of sandboxes)
        expect(await run(sandbox, 'echo $NAME; ls /only-here')).toBe('demand\n/only-here\n')
      // One configuration and two layers, of which others may have brought the first.
      expect(registry.blobsAsked - before).toBeLessThanOrEqual(3)
      const asked = registry.asked.length
      await create(image)
      expect(registry.asked.length).toBe(asked)
      expect(
        (await client.request(`/v0/images/sandbox/localhost-${registry.host.split(':')[1]}-demand`)).status,
      ).toBe(200)
    })

    test('show in the sandbox’s status and events while they come, and can be called off by deleting it', async () => {
      const image = push('slow', tar([{ path: 'slow' }]))
      const gate = Promise.withResolvers<void>()
      registry.behaviour.gate = gate.promise
      const creating = ['kept', 'deleted'].map((name) =>
        client.SandboxInstance.create({ name, image, memory: 256, region: 'local-1' }).catch(
          (error) => error,
        ),
      )
      const status = async (name: string) =>
        (await (await client.request(`/v0/sandboxes/${name}`)).json()) as {
          status: string
          events: { message: string }[]
        }
      for (const name of ['kept', 'deleted']) {
        await eventually('the pull shows', async () => (await status(name)).status === 'DEPLOYING')
        expect((await status(name)).events[0]?.message).toContain(`pulling ${image}`)
      }
      const listed = (await (await client.request('/v0/images')).json()) as { metadata: { status: string } }[]
      expect(listed.map(({ metadata }) => metadata.status)).toContain('BUILDING')
      expect((await client.request('/v0/sandboxes/deleted', { method: 'DELETE' })).status).toBe(200)
      gate.resolve()
      registry.behaviour.gate = null
      const [kept, deleted] = await Promise.all(creating)
      expect(kept.status).toBe('DEPLOYED')
      expect((await status('kept')).events.map(({ message }) => message)).toEqual([
        `Deployment started: pulling ${image}`,
        'Deployment successful',
      ])
      expect(deleted).toMatchObject({ code: 409 })
      expect((await client.request('/v0/sandboxes/deleted')).status).toBe(404)
    })

    test('that cannot be had fail the creation, saying why, and leave no record', async () => {
      push('damaged', tar([{ path: 'damaged' }]))
      for (const [image, code] of [
        [`${registry.host}/no/such:image`, 404],
        ['docker.io/library/alpine:3', 400],
        ['169.254.169.254/latest:meta', 400],
      ] as const) {
        const answer = client.SandboxInstance.create({ name: 'not-had', region: 'local-1', image })
        await expect(answer).rejects.toMatchObject({ status_code: code })
      }
      registry.behaviour.damaged = true
      const answer = client.SandboxInstance.create({
        name: 'not-had',
        region: 'local-1',
        image: `${registry.host}/damaged:v1`,
      })
      await expect(answer).rejects.toMatchObject({ status_code: 422 })
      registry.behaviour.damaged = false
      expect((await client.request('/v0/sandboxes/not-had')).status).toBe(404)
      expect(readdirSync(join(layersDir(), '..', 'partial'))).toEqual([])
    })

    test('are pulled with the credentials that the workspace keeps, or that come along', async () => {
      const image = push('private')
      registry.behaviour.auth = 'bearer'
      const pull = (body: object = {}) =>
        client.request('/-/images/pull', {
          method: 'POST',
          headers: { 'content-type': 'application/json' },
          body: JSON.stringify({ image, ...body }),
        })
      expect((await pull()).status).toBe(403)
      const { username, password } = registry.behaviour
      const auth = Buffer.from(`${username}:${password}`).toString('base64')
      const dockerConfig = JSON.stringify({ auths: { [`https://${registry.host}/v1/`]: { auth } } })
      expect((await pull({ dockerConfig })).status).toBe(200)

      const keep = (body: object) =>
        client.request(`/-/registries/${encodeURIComponent(registry.host)}`, {
          method: 'PUT',
          headers: { 'content-type': 'application/json' },
          body: JSON.stringify(body),
        })
      expect((await keep({ username, password: 'wrong-one' })).status).toBe(200)
      const refused = await pull()
      expect(refused.status).toBe(403)
      expect(await refused.text()).not.toContain('wrong-one')
      expect((await keep({ username, password })).status).toBe(200)
      expect((await pull()).status).toBe(200)
      const listed = await (await client.request('/-/registries')).text()
      expect(listed).toContain(username)
      for (const file of ['hutch.db', 'hutch.db-wal']) {
        const stored = await Bun.file(join(client.platform.config.dataDir, file)).text()
        expect(stored).not.toContain(password)
      }
      await client.request(`/-/registries/${encodeURIComponent(registry.host)}`, { method: 'DELETE' })
      expect((await pull()).status).toBe(403)
      registry.behaviour.auth = 'none'
    })

    test('are registered by push under a name of their own', async () => {
      const image = push('pushed')
      const answer = await client.request('/v0/images?skip-build=true', {
        method: 'POST',
        headers: { 'content-type': 'application/json' },
        body: JSON.stringify({ resourceType: 'sandbox', name: 'my-push', image }),
      })
      expect(await answer.json()).toMatchObject({ image: 'sandbox/my-push:v1', build: false })
      expect(await run(await create('sandbox/my-push:v1'), 'echo $NAME')).toBe('pushed\n')
      await expect(create('my-push')).rejects.toMatchObject({
        message: expect.stringContaining('Its tags here: v1'),
      })
    })
  })

  test('that nobody knows fail a creation clearly, and leave no record', async () => {
    for (const image of ['sandbox/nothing:v1', 'nothing', 'registry.example.com/a/b:c']) {
      const answer = client.SandboxInstance.create({ name: 'unknown-image', region: 'local-1', image })
      await expect(answer).rejects.toMatchObject({ code: 'INVALID_IMAGE' })
    }
    expect((await client.request('/v0/sandboxes/unknown-image')).status).toBe(404)
  })

  test('volumes are refused by name until there are any', async () => {
    const answer = client.SandboxInstance.create({
      name: 'with-volume',
      region: 'local-1',
      volumes: [{ name: 'data', mountPath: '/data' }],
    })
    await expect(answer).rejects.toMatchObject({ message: expect.stringContaining('volumes') })
    expect((await client.request('/v0/sandboxes/with-volume')).status).toBe(404)
  })
})

describe.skipIf(why !== '')('the program of an image', () => {
  test('goes on over a restart of the platform, and is started again with its machine', async () => {
    const options = { dataDir: join(directory, 'restarted'), imageDir: join(directory, 'host') }
    const starts = async (client: TestClient): Promise<number> => {
      const box = await client.SandboxInstance.get('box')
      const { logs } = await box.process.exec({ command: 'cat /starts', waitForCompletion: true })
      return (logs ?? '').split('up').length - 1
    }
    {
      await using client = await openTestClient({ ...options, keepInstances: true })
      const config = { Cmd: ['/bin/sh', '-c', 'echo up >> /starts; exit 3'] }
      const archive = new Uint8Array(ociArchive(testImage([shell], { config })))
      const answer = await client.request('/-/images/import?name=short', { method: 'PUT', body: archive })
      expect(answer.status).toBe(200)
      await client.SandboxInstance.create({ name: 'box', image: 'short', memory: 256, region: 'local-1' })
      await eventually('it has run', async () => (await starts(client)) === 1)
    }
    {
      // It has ended, but in this life of the machine: it is not started again. This time the machine goes too.
      await using client = await openTestClient({ ...options, keepInstances: false })
      const box = await client.SandboxInstance.get('box')
      expect(await box.process.get('entrypoint')).toMatchObject({ status: 'failed', exitCode: 3 })
      expect(await starts(client)).toBe(1)
    }
    await using client = await openTestClient(options)
    await eventually('it has run again', async () => (await starts(client).catch(() => 0)) === 2)
    expect((await client.request('/v0/sandboxes/box', { method: 'DELETE' })).status).toBe(200)
  })
})

/** A byte in the middle of a program is another. */
function damaged(archive: Buffer): Buffer {
  const copy = Buffer.from(archive)
  const at = Math.floor(copy.length / 2)
  copy[at] = copy[at]! ^ 1
  return copy
}
