import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from 'bun:test'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { eventually } from './lib/test-eventually.ts'
import { openTestClient, type TestClient, whyNot } from './test-client.ts'

/**
 * What programs written for the cloud count on without being told, through the unmodified client. What policies,
 * standby, files, streams and previews promise is tested in the files of those names.
 */

setDefaultTimeout(120_000)
const directory = mkdtempSync(join(tmpdir(), 'hutch-promises-'))
afterAll(() => rmSync(directory, { recursive: true, force: true }))
const why = await whyNot()

interface Stored {
  metadata: object
  spec: { runtime: { envs: { name: string; value: string }[] }; network?: object }
}

describe.skipIf(why !== '')('a client may count on it that', () => {
  let client: TestClient
  let SandboxInstance: TestClient['SandboxInstance']

  beforeAll(async () => {
    // Without one the client warns at each creation.
    process.env.BL_REGION = 'eu-lon-1'
    client = await openTestClient({ dataDir: directory })
    SandboxInstance = client.SandboxInstance
  })
  afterAll(async () => {
    delete process.env.BL_REGION
    await client?.[Symbol.asyncDispose]()
  })

  const names = async () => {
    const found: (string | undefined)[] = []
    for await (const { metadata } of await SandboxInstance.list()) found.push(metadata.name)
    return found
  }
  const put = async (name: string, change: (sandbox: Stored) => object) => {
    const sandbox = (await (await client.request(`/v0/sandboxes/${name}`)).json()) as Stored
    const response = await client.request(`/v0/sandboxes/${name}`, {
      method: 'PUT',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify(change(sandbox)),
    })
    return { status: response.status, body: await response.json() }
  }

  test('a sandbox answers from the moment that create does', async () => {
    const sandbox = await SandboxInstance.create({ name: 'at-once' })
    const answers = await Promise.all(
      Array.from({ length: 20 }, (_, at) =>
        sandbox.process.exec({ command: `echo ${at}`, waitForCompletion: true }),
      ),
    )
    expect(answers.map(({ stdout }) => stdout)).toEqual(Array.from({ length: 20 }, (_, at) => `${at}\n`))
  })

  test('who races for one name gets one sandbox, also while the last of that name is being deleted', async () => {
    const made = await Promise.allSettled(
      Array.from({ length: 10 }, () => SandboxInstance.create({ name: 'raced' })),
    )
    expect(made.filter(({ status }) => status === 'fulfilled')).toHaveLength(1)
    for (const result of made) if (result.status === 'rejected') expect(result.reason.code).toBe(409)
    for (let round = 0; round < 3; round++) {
      const deleting = SandboxInstance.delete('raced')
      const found = await Promise.all(
        Array.from({ length: 10 }, () => SandboxInstance.createIfNotExists({ name: 'raced' })),
      )
      await deleting
      for (const sandbox of found) expect(sandbox.metadata.name).toBe('raced')
      const sandbox = await SandboxInstance.createIfNotExists({ name: 'raced' })
      expect((await sandbox.process.exec({ command: 'echo in', waitForCompletion: true })).stdout).toBe(
        'in\n',
      )
      expect((await names()).filter((name) => name === 'raced')).toHaveLength(1)
    }
  })

  test('an outer id finds its sandbox while it lives, moves by an update, and an unknown one is a 404 in numbers', async () => {
    const named = async (externalId: string) =>
      (await SandboxInstance.list({ externalId })).data.map(({ metadata }) => metadata.name)
    const outer = await SandboxInstance.create({ name: 'outer', externalId: 'order-1' })
    expect((await SandboxInstance.getByExternalId('order-1')).metadata.name).toBe('outer')
    const moved = await put('outer', ({ metadata, spec }) => ({
      metadata: { ...metadata, externalId: 'order-2' },
      spec,
    }))
    expect(moved.status).toBe(200)
    expect(await named('order-2')).toEqual(['outer'])
    await SandboxInstance.updateMetadata('outer', { labels: { kept: 'id' } })
    expect((await SandboxInstance.getByExternalId('order-2')).metadata.labels).toEqual({ kept: 'id' })
    await expect(SandboxInstance.getByExternalId('order-1')).rejects.toMatchObject({ code: 404 })
    await outer.delete()
    await expect(SandboxInstance.getByExternalId('order-2')).rejects.toMatchObject({ code: 404 })
    expect(await named('order-2')).toEqual([])
    for (const externalId of ['x'.repeat(65), 'with space', 'a_b']) {
      await expect(SandboxInstance.create({ name: 'refused', externalId })).rejects.toMatchObject({
        code: 'BAD_REQUEST',
        status_code: 400,
      })
    }
    expect(await names()).not.toContain('refused')
  })

  test('an image is echoed as it was given, and one that nobody knows leaves no record', async () => {
    expect((await SandboxInstance.create({ name: 'bare' })).spec.runtime?.image).toBe(
      'blaxel/base-image:latest',
    )
    const untagged = await SandboxInstance.create({ name: 'untagged', image: 'blaxel/base-image' })
    expect(untagged.spec.runtime?.image).toBe('blaxel/base-image')
    for (const image of ['nobody/nothing:latest', 'blaxel/base-image:no-such-tag', '::', 'UPPER/case']) {
      await expect(SandboxInstance.create({ name: 'unknown', image })).rejects.toMatchObject({
        code: 'INVALID_IMAGE',
        status_code: 400,
        details: { requested_image: image },
      })
      await expect(SandboxInstance.get('unknown')).rejects.toMatchObject({ code: 404 })
    }
  })

  test('labels change nothing else: not the status, not the events, not the files', async () => {
    const sandbox = await SandboxInstance.create({ name: 'labelled' })
    await sandbox.fs.write('/kept', 'kept')
    const before = await SandboxInstance.get('labelled')
    const after = await SandboxInstance.updateMetadata('labelled', { labels: { team: 'a' } })
    expect([after.status, after.events]).toEqual(['DEPLOYED', before.events])
    expect(await sandbox.fs.read('/kept')).toBe('kept')
  })

  test('another environment is a new machine with empty files, other settings keep them', async () => {
    const sandbox = await SandboxInstance.create({
      name: 'environs',
      envs: [{ name: 'MODE', value: 'one' }, { name: 'SECRET', value: 'hidden', secret: true } as never],
    })
    await sandbox.fs.write('/kept', 'kept')
    await SandboxInstance.updateTtl('environs', '1h')
    expect(await sandbox.fs.read('/kept')).toBe('kept')
    const changed = await put('environs', ({ metadata, spec }) => {
      const { runtime } = spec
      const envs = runtime.envs.map((env) => (env.name === 'MODE' ? { ...env, value: 'two' } : env))
      return { metadata, spec: { ...spec, runtime: { ...runtime, envs } } }
    })
    expect(changed.status).toBe(200)
    const seen = await (await SandboxInstance.get('environs')).process.exec({
      // The value that a read had masked came back with the update, and is not what counts.
      command: 'echo $MODE $SECRET; ls /kept',
      waitForCompletion: true,
    })
    expect(seen.stdout).toBe('two hidden\n')
    expect(seen.exitCode).not.toBe(0)
  })

  test('a network that is replaced is replaced whole', async () => {
    const network = { allowedDomains: ['a.example'], forbiddenDomains: ['b.example'] }
    await SandboxInstance.create({ name: 'networked', network } as never)
    await SandboxInstance.updateNetwork('networked', { network: { allowedDomains: ['c.example'] } } as never)
    const { spec } = (await (await client.request('/v0/sandboxes/networked')).json()) as Stored
    expect(spec.network).toEqual({ allowedDomains: ['c.example'] })
  })

  test('secrets of a network are told to who creates it, and to nobody who reads it', async () => {
    const route = { destinations: ['a.example'], headers: { 'X-Key': '{{SECRET:key}}' } }
    const network = { proxy: { routing: [{ ...route, secrets: { key: 'hidden' } }] } }
    const created = await SandboxInstance.create({ name: 'secretive', network } as never)
    expect(created.spec.network?.proxy?.routing).toEqual(network.proxy.routing)
    const routing = async () => (await SandboxInstance.get('secretive')).spec.network?.proxy?.routing
    expect(await routing()).toEqual([route])
    await SandboxInstance.updateMetadata('secretive', { labels: { read: 'back' } })
    expect(await routing()).toEqual([route])
    // Nor to who asks for one in case there is none, nor to who may read the environment.
    const found = await SandboxInstance.createIfNotExists({ name: 'secretive', network } as never)
    expect(found.spec.network?.proxy?.routing).toEqual([route])
    const asked = await client.request('/v0/sandboxes?createIfNotExist=true', {
      method: 'POST',
      body: JSON.stringify({ metadata: { name: 'secretive' }, spec: {} }),
    })
    expect(await asked.text()).not.toContain('hidden')
    for (const path of ['', '?show_secrets=true'])
      expect(await (await client.request(`/v0/sandboxes/secretive${path}`)).text()).not.toContain('hidden')
    const list = await client.request('/v0/sandboxes?show_secrets=true')
    expect(await list.text()).not.toContain('hidden')
  })

  test('a page after the other holds every sandbox once', async () => {
    const made = Array.from({ length: 5 }, (_, at) => `paged-${at}`)
    await Promise.all(made.map((name) => SandboxInstance.create({ name, labels: { paged: 'yes' } })))
    const list = async (query: string) => {
      const headers = { 'blaxel-version': '2026-04-28' }
      const response = await client.request(`/v0/sandboxes?${query}`, { headers })
      return (await response.json()) as {
        data: { metadata: { name: string } }[]
        meta: { nextCursor?: string }
      }
    }
    const seen: string[] = []
    let cursor = ''
    do {
      const page = await list(`limit=1${cursor && `&cursor=${cursor}`}`)
      expect(page.data.length).toBeLessThanOrEqual(1)
      seen.push(...page.data.map(({ metadata }) => metadata.name))
      cursor = encodeURIComponent(page.meta.nextCursor ?? '')
    } while (cursor)
    expect(new Set(seen).size).toBe(seen.length)
    expect(seen).toEqual(expect.arrayContaining(made))
    const names = async (query: string) => (await list(query)).data.map(({ metadata }) => metadata.name)
    expect(await names('q=AGED-3')).toEqual(['paged-3'])
    expect((await names('q=paged&sort=name:asc&limit=5')).sort()).toEqual(made)
    expect(await names('anchor=end&limit=1')).toEqual(seen.slice(-1))
  })

  test('a command runs in a shell, is named when nobody names it, and keeps its last newline', async () => {
    const sandbox = await SandboxInstance.createIfNotExists({ name: 'at-once' })
    const run = (command: string) => sandbox.process.exec({ command, waitForCompletion: true })
    const plain = await run('echo test')
    expect(plain.name).toMatch(/^proc-/)
    expect(await sandbox.process.logs(plain.name ?? '', 'all')).toBe('test\n')
    expect(await sandbox.process.logs(plain.pid ?? '', 'stdout')).toBe('test\n')
    expect((await run('exit 42')).exitCode).toBe(42)
    expect((await run('X=1; echo $X >&2')).stderr).toBe('1\n')
  })

  test('the end of a process is replayed once to who comes late, and closing early stops it', async () => {
    const sandbox = await SandboxInstance.createIfNotExists({ name: 'at-once' })
    await sandbox.process.exec({ name: 'ended', command: 'seq 3', waitForCompletion: true })
    const lines: string[] = []
    const late = sandbox.process.streamLogs('ended', { onLog: (line) => lines.push(line) })
    await late.wait?.()
    expect(lines).toEqual(['1', '2', '3'])
    await sandbox.process.exec({ name: 'ticks', command: 'while :; do echo tick; sleep 0.01; done' })
    let ticks = 0
    const early = sandbox.process.streamLogs('ticks', {
      onLog: () => {
        ticks++
      },
    })
    await eventually('a tick', () => ticks > 0)
    early.close()
    const said = async () => (await sandbox.process.logs('ticks')).split('\n').length
    // What was on its way has come by now.
    const saidAtClose = await said()
    const closedAt = ticks
    await eventually('more ticks', async () => (await said()) > saidAtClose + 20)
    expect(ticks).toBe(closedAt)
    await sandbox.process.kill('ticks')
    await eventually('its end', async () => (await sandbox.process.get('ticks')).status === 'killed')
  })

  test('a preview keeps its address over its own deletion', async () => {
    const sandbox = await SandboxInstance.createIfNotExists({ name: 'at-once' })
    const preview = () =>
      sandbox.previews.create({
        metadata: { name: 'stable' },
        spec: { port: 4001, public: true, prefixUrl: 'shop' },
      })
    const { url } = (await preview()).spec
    expect(url).toContain('preview')
    expect(url).toContain('shop')
    await sandbox.previews.delete('stable')
    await expect(sandbox.previews.get('stable')).rejects.toMatchObject({ code: 404 })
    expect((await preview()).spec.url).toBe(url)
  })
})
