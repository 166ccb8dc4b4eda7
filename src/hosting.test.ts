import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from 'bun:test'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { Agent, ApplicationInstance as ApplicationInstanceOf } from '@blaxel/core'
import { programs, tar, testImage } from './images/test-image.ts'
import { TestRegistry } from './images/test-registry.ts'
import { HurriedClock } from './lib/test-clock.ts'
import { eventually } from './lib/test-eventually.ts'
import { openTestClient, type TestClient, whyNot } from './test-client.ts'

/** Code that becomes something that answers, through the client of the cloud, on real machines. */

setDefaultTimeout(120_000)
const directory = mkdtempSync(join(tmpdir(), 'hutch-hosting-'))
afterAll(() => rmSync(directory, { recursive: true, force: true }))
const why = await whyNot()

type Plural = 'agents' | 'functions' | 'applications'

/** A server that tells what it was given, or what `answer` says. */
const program = (answer: string) => ({
  path: 'index.ts',
  content: `const server = Bun.serve({
  hostname: process.env.HOST,
  port: Number(process.env.PORT),
  async fetch(request) {
    const { pathname } = new URL(request.url)
    if (pathname === '/env') return Response.json(process.env)
    if (pathname === '/headers') return Response.json(Object.fromEntries(request.headers))
    if (pathname === '/slow') await Bun.sleep(400)
    return new Response(${JSON.stringify(answer)})
  },
})`,
})
const manifest = {
  path: 'package.json',
  content: JSON.stringify({ name: 'hello', scripts: { start: 'bun index.ts' } }),
}

describe.skipIf(why !== '')('hosting', () => {
  const clock = new HurriedClock()
  const registry = new TestRegistry()
  const txt = new Map<string, string[][]>()
  let client: TestClient
  let sdk: typeof import('@blaxel/core')
  let ApplicationInstance: typeof ApplicationInstanceOf

  beforeAll(async () => {
    const resolveTxt = async (name: string) => txt.get(name) ?? []
    client = await openTestClient({ dataDir: directory, clock, registries: [registry.host], resolveTxt })
    sdk = await import('@blaxel/core')
    ApplicationInstance = sdk.ApplicationInstance
  })
  afterAll(async () => {
    await client?.[Symbol.asyncDispose]()
    registry[Symbol.dispose]()
  })

  const json = (method: string, body: object): RequestInit => ({
    method,
    headers: { 'content-type': 'application/json', 'blaxel-version': '2026-04-28' },
    body: JSON.stringify(body),
  })
  /** As the command lines do: PUT, POST where there is none; then the archive. */
  async function upload(plural: Plural, name: string, files: { path: string; content: string }[], spec = {}) {
    const body = { metadata: { name }, spec }
    let asked = await client.request(`/v0/${plural}/${name}?upload=true`, json('PUT', body))
    if (asked.status === 404) asked = await client.request(`/v0/${plural}?upload=true`, json('POST', body))
    expect(asked.status).toBe(200)
    const address = asked.headers.get('x-blaxel-upload-url') ?? ''
    const revision = asked.headers.get('x-hutch-revision') ?? ''
    expect(((await asked.json()) as Agent).status).toBe('UPLOADING')
    const sent = await fetch(address, {
      method: 'PUT',
      headers: { 'content-type': 'application/x-tar' },
      body: new Uint8Array(tar(files)),
    })
    expect(sent.status).toBe(200)
    return { revision, address }
  }
  const read = async (plural: Plural, name: string) =>
    (await (await client.request(`/v0/${plural}/${name}`)).json()) as Agent
  /** How a revision ended, by its events. */
  const outcome = (plural: Plural, name: string, revision: string) =>
    eventually(`the end of ${revision}`, async () =>
      (await read(plural, name)).events?.find(
        (event) => event.revision === revision && (event.status === 'DEPLOYED' || event.status === 'FAILED'),
      ),
    )
  async function deploy(plural: Plural, name: string, files: { path: string; content: string }[], spec = {}) {
    const { revision } = await upload(plural, name, files, spec)
    const { status, message } = await outcome(plural, name, revision)
    expect([status, message]).toEqual(['DEPLOYED', expect.any(String)])
    return revision
  }
  const ask = async (path: string, headers: Record<string, string> = {}) =>
    await (await client.request(`/main/${path}`, { headers })).text()
  const statusOf = async (plural: Plural, name: string) => (await read(plural, name)).status

  test('code is uploaded, built and served, as clients that poll are told it', async () => {
    const { address, revision } = await upload(
      'agents',
      'hello',
      [
        manifest,
        program('one'),
        { path: 'blaxel.toml', content: '[env]\nFROM_TOML = "toml"\nBOTH = "toml"\n' },
        { path: '.env', content: 'LEAKED=yes' },
      ],
      {
        runtime: {
          memory: 512,
          envs: [
            { name: 'BOTH', value: 'client' },
            { name: 'KEY', value: 's3cret', secret: true },
          ],
        },
      },
    )
    expect(await outcome('agents', 'hello', revision)).toMatchObject({ status: 'DEPLOYED' })
    // Served already, though whoever polls may still be shown the build.
    expect(await ask('agents/hello')).toBe('one')
    clock.advance(9_000)
    expect(await statusOf('agents', 'hello')).toBe('DEPLOYED')

    const env = JSON.parse(await ask('agents/hello/env'))
    expect(env).toMatchObject({
      FROM_TOML: 'toml',
      BOTH: 'client',
      KEY: 's3cret',
      BL_NAME: 'hello',
      BL_TYPE: 'agent',
      BL_WORKSPACE: 'main',
      HOST: expect.any(String),
      PORT: expect.any(String),
    })
    expect(env.LEAKED).toBeUndefined()
    const headers = JSON.parse(await ask('agents/hello/headers', { 'x-thread-id': 'mine' }))
    expect(headers).toMatchObject({ 'x-thread-id': 'mine' })
    expect(JSON.stringify(headers)).not.toContain(client.platform.credentials.apiKey)
    expect((await fetch(`${client.url}/main/agents/hello`)).status).toBe(401)
    // The address was good for once.
    const again = await fetch(address, { method: 'PUT', body: 'x' })
    expect(again.status).toBeGreaterThanOrEqual(400)
  })

  test('the generated functions of the client list, read, change and delete', async () => {
    const { data: list } = await sdk.listAgents({ throwOnError: true })
    const items = Array.isArray(list) ? list : (list.data ?? [])
    expect(items.map(({ metadata }: Agent) => metadata.name)).toEqual(['hello'])
    const { data: agent } = await sdk.getAgent({ path: { agentName: 'hello' }, throwOnError: true })
    expect(agent).toMatchObject({
      metadata: { name: 'hello', url: `${client.url}/main/agents/hello`, workspace: 'main' },
      spec: { enabled: true, public: false, runtime: { memory: 512, generation: 'mk3' } },
      status: 'DEPLOYED',
    })
    expect(JSON.stringify(agent)).not.toContain('s3cret')
    const shown = await client.request('/v0/agents/hello?show_secrets=true')
    expect(await shown.text()).toContain('s3cret')
    const { data: revisions } = await sdk.listAgentRevisions({
      path: { agentName: 'hello' },
      throwOnError: true,
    })
    expect(revisions).toMatchObject([{ active: true, trafficPercent: 100, status: 'DEPLOYED' }])

    const changed = await sdk.updateAgent({
      path: { agentName: 'hello' },
      body: { ...agent, spec: { ...agent.spec, public: true } },
      throwOnError: true,
    })
    expect(changed.data.spec.public).toBe(true)
    expect(await (await fetch(`${client.url}/main/agents/hello`)).text()).toBe('one')
    expect(
      await sdk.createAgent({ body: { metadata: { name: 'hello' }, spec: {} } }).then(({ error }) => error),
    ).toMatchObject({ code: 409 })
    expect(await sdk.getAgent({ path: { agentName: 'nobody' } }).then(({ error }) => error)).toMatchObject({
      code: 404,
    })
  })

  test('what fails to build or to start says why, and what was served before goes on', async () => {
    const first = await deploy('functions', 'tool', [manifest, program('first')])
    const broken = await upload('functions', 'tool', [
      {
        path: 'package.json',
        content: JSON.stringify({ scripts: { build: 'echo about to fail; exit 3', start: 'bun index.ts' } }),
      },
      program('broken'),
    ])
    const build = await outcome('functions', 'tool', broken.revision)
    expect(build).toMatchObject({ status: 'FAILED', message: expect.stringContaining('about to fail') })
    expect(await ask('functions/tool')).toBe('first')
    const crashing = await upload('functions', 'tool', [
      manifest,
      { path: 'index.ts', content: `console.error('no such database'); process.exit(7)` },
    ])
    const start = await outcome('functions', 'tool', crashing.revision)
    expect(start.status).toBe('FAILED')
    expect(start.message).toContain('no such database')
    expect(start.message).toContain(`The revision ${first} goes on serving.`)
    expect(await ask('functions/tool')).toBe('first')
    clock.advance(9_000)
    expect(await statusOf('functions', 'tool')).toBe('FAILED')
    const { data: revisions } = await sdk.listFunctionRevisions({
      path: { functionName: 'tool' },
      throwOnError: true,
    })
    expect(revisions?.map(({ id, active, status }) => [id, active, status])).toEqual([
      [crashing.revision, false, 'FAILED'],
      [broken.revision, false, 'FAILED'],
      [first, true, 'DEPLOYED'],
    ])
  })

  test('no request fails while one revision follows the other, and one that began is answered', async () => {
    const first = await deploy('agents', 'busy', [manifest, program('v1')])
    const seen = new Set<string>()
    const all = new Set<string>()
    let stop = false
    const asking = Array.from({ length: 4 }, async () => {
      while (!stop) {
        const answer = await ask('agents/busy/slow')
        seen.add(answer)
        all.add(answer)
      }
    })
    const second = await deploy('agents', 'busy', [manifest, program('v2')])
    await eventually('v2 answers', () => seen.has('v2'))
    await client.request('/v0/agents/busy', json('PUT', { spec: { revision: { active: first } } }))
    await eventually('requests are led back', async () => {
      const { data } = await sdk.listAgentRevisions({ path: { agentName: 'busy' }, throwOnError: true })
      return data?.some(({ id, active }) => id === first && active)
    })
    seen.clear()
    await eventually('v1 answers again', () => seen.has('v1'))
    stop = true
    await Promise.all(asking)
    expect([...all].sort()).toEqual(['v1', 'v2'])
    const { data: revisions } = await sdk.listAgentRevisions({
      path: { agentName: 'busy' },
      throwOnError: true,
    })
    expect(revisions).toMatchObject([
      { id: second, active: false, previousActive: true, trafficPercent: 0 },
      { id: first, active: true, trafficPercent: 100 },
    ])

    // A new revision gets nothing by itself now; half of the requests when that is asked for.
    const third = await deploy('agents', 'busy', [manifest, program('v3')])
    expect(await ask('agents/busy')).toBe('v1')
    const canary = { active: first, canary: third, canaryPercent: 50, stickySessionTtl: 60 }
    await client.request('/v0/agents/busy', json('PUT', { spec: { revision: canary } }))
    const met = await eventually('the canary is met', async () => {
      const response = await client.request('/main/agents/busy')
      return (await response.text()) === 'v3' ? response : null
    })
    const cookie = met.headers.get('set-cookie')?.split(';')[0] ?? ''
    for (let count = 0; count < 20; count++) expect(await ask('agents/busy', { cookie })).toBe('v3')
    const headers = await ask('agents/busy/headers', { cookie: `a=b; ${cookie}` })
    expect(headers).not.toContain(third)

    // By number also one that gets no requests, as clients of xpander ask for it.
    const invoke = async (how: string) =>
      await client.request(`/v1/agents/busy/invoke${how}`, json('POST', { input: { text: 'which?' } }))
    const resultOf = async (how: string) => ((await (await invoke(how)).json()) as { result: string }).result
    expect(await resultOf('?version=2')).toBe('v2')
    expect(await resultOf('?version=draft')).toBe('v3')
    expect(await resultOf('?version=latest')).toMatch(/^v[13]$/)
    expect(await resultOf(`?version=${first}`)).toBe('v1')
    expect(await resultOf('')).toMatch(/^v[13]$/)
    expect((await invoke('?version=9')).status).toBe(422)
    const told = (await (await invoke('/stream?version=1')).text()).matchAll(/^data: (.*)$/gm)
    const events = [...told].map(([, data]) => JSON.parse(data ?? ''))
    expect(events.map(({ type }) => type)).toEqual(['task_created', 'task_updated', 'chunk', 'task_finished'])
    expect(events[3].data).toMatchObject({ status: 'completed', result: 'v1', agent_version: first })

    await client.request('/v0/agents/busy', json('PUT', { spec: { enabled: false } }))
    await eventually('deactivated', async () => (await statusOf('agents', 'busy')) === 'DEACTIVATED')
    const refused = await client.request('/main/agents/busy')
    expect([refused.status, refused.headers.get('x-blaxel-error-code')]).toEqual([
      404,
      'WORKLOAD_UNAVAILABLE',
    ])
    await client.request('/v0/agents/busy', json('PUT', { spec: { enabled: true } }))
    expect(
      await eventually('it answers again', async () => {
        const response = await client.request('/main/agents/busy')
        return response.status === 200 && (await response.text())
      }),
    ).toMatch(/^v[13]$/)
  })

  test('an application is public, under its path and its own host name, and read by its class of the client', async () => {
    await deploy('applications', 'site', [manifest, program('page')], { memory: 512 })
    const site = await ApplicationInstance.get('site')
    expect([site.spec.enabled, site.spec.memory]).toEqual([true, 512])
    expect(site.spec.image).toMatch(/^application\/site:rev_/)
    expect(await (await fetch(`${client.url}/main/applications/site/`)).text()).toBe('page')
    const { port } = new URL(client.url)
    expect(site.metadata.url).toBe(`http://site-main.app.localhost:${port}`)
    const byHost = await fetch(`http://127.0.0.1:${port}/`, {
      headers: { host: `site-main.app.localhost:${port}` },
    })
    expect(await byHost.text()).toBe('page')
    const byOwn = (host: string) => fetch(`http://127.0.0.1:${port}/`, { headers: { host } })
    expect((await byOwn('www.example.org')).status).toBe(421)
    const registered = await client.request(
      '/v0/applications/site/customdomains',
      json('POST', { metadata: { name: 'example.org' }, spec: { type: 'applications' } }),
    )
    const { spec: domain } = (await registered.json()) as { spec: { txtRecords: Record<string, string> } }
    const url = { domain: 'example.org', subdomain: 'www' }
    const urls = json('PUT', { spec: { urls: [url] } })
    expect((await client.request('/v0/applications/site', urls)).status).toBe(400)
    for (const [name, value] of Object.entries(domain.txtRecords)) txt.set(name, [[value]])
    expect((await client.request('/v0/customdomains/example.org/verify', json('POST', {}))).status).toBe(200)
    const addressed = await client.request('/v0/applications/site', urls)
    expect(await addressed.json()).toMatchObject({ spec: { urls: [url] } })
    for (const host of ['www.example.org', 'WWW.Example.org:8080', 'example.org'])
      expect(await (await byOwn(host)).text()).toBe('page')
    expect((await byOwn('other.example.org')).status).toBe(421)
    expect((await client.request('/v0/customdomains/example.org', { method: 'DELETE' })).status).toBe(409)
    const updated = await site.update({ envs: [{ name: 'NEW', value: '1' }] })
    await eventually('the next revision serves', async () => {
      const env = await (await fetch(`${client.url}/main/applications/site/env`)).json()
      return (env as Record<string, string>).NEW === '1'
    })
    expect(await updated.listRevisions()).toMatchObject([
      { memory: 512, image: expect.any(String), envs: [{ name: 'NEW' }] },
      { memory: 512 },
    ])
    expect((await ApplicationInstance.list()).map(({ name }) => name)).toEqual(['site'])
    const image = site.spec.image ?? ''
    expect((await ApplicationInstance.get('site')).spec.urls).toEqual([url])
    const again = await ApplicationInstance.create({ name: 'twin', image, memory: 512 })
    const taken = await client.request('/v0/applications/twin', urls)
    expect([taken.status, await taken.text()]).toEqual([
      409,
      expect.stringContaining('application \\"site\\"'),
    ])
    expect(again.name).toBe('twin')
    await eventually(
      'the twin answers',
      async () => (await (await fetch(`${client.url}/main/applications/twin/`)).text()) === 'page',
    )
    await ApplicationInstance.delete('twin')
    await site.delete()
    expect((await byOwn('www.example.org')).status).toBe(421)
    expect((await client.request('/v0/customdomains/example.org', { method: 'DELETE' })).status).toBe(200)
    const gone = await client.request('/v0/applications/site')
    expect(gone.status).toBe(404)
  })

  test("an image of a registry is pulled for each revision, which keeps it when the registry's tag moves", async () => {
    const shell = tar(programs('sh'))
    const push = (word: string) => {
      const own = tar([{ path: 'own', content: word }])
      const config = { Entrypoint: ['sh', '-c', `echo this is ${word} >&2; exit 3`] }
      registry.push('app', 'v1', testImage([shell, own], { config }))
    }
    const image = `${registry.host}/app:v1`
    const body = { metadata: { name: 'pulled' }, spec: { runtime: { image, memory: 256 } } }
    const put = async (method: 'POST' | 'PUT') => {
      const path = method === 'POST' ? '/v0/agents' : '/v0/agents/pulled'
      const response = await client.request(path, json(method, body))
      expect(response.status).toBe(200)
      return response.headers.get('x-hutch-revision') ?? ''
    }
    push('first')
    // It ends at once, and what it says last tells which it was.
    const first = await outcome('agents', 'pulled', await put('POST'))
    expect(first.message).toContain('this is first')
    push('second')
    const second = await outcome('agents', 'pulled', await put('PUT'))
    expect(second.message).toContain('this is second')
    expect((await read('agents', 'pulled')).spec.runtime?.image).toBe(image)
    const tags = async () => {
      const response = await client.request('/v0/images/agent/pulled')
      const { spec } = (await response.json()) as { spec?: { tags: { name: string }[] } }
      return spec?.tags.map(({ name }) => name).toSorted()
    }
    expect(await tags()).toEqual([first.revision ?? '', second.revision ?? ''].toSorted())
    const application = { metadata: { name: 'far' }, spec: { image } }
    const refused = await client.request('/v0/applications', json('POST', application))
    expect([refused.status, await refused.text()]).toEqual([400, expect.stringContaining('images pull')])
    await client.request('/v0/agents/pulled', { method: 'DELETE' })
    expect(await tags()).toBeUndefined()
  })

  test('what is deleted leaves nothing: no record, no instance, no image, no log', async () => {
    for (const [plural, name] of [
      ['agents', 'hello'],
      ['agents', 'busy'],
      ['functions', 'tool'],
    ] as const) {
      expect((await client.request(`/v0/${plural}/${name}`, { method: 'DELETE' })).status).toBe(200)
      expect((await client.request(`/v0/${plural}/${name}`)).status).toBe(404)
      expect((await client.request(`/main/${plural}/${name}`)).status).toBe(404)
    }
    const images = (await (await client.request('/v0/images')).json()) as object[]
    expect(images).toEqual([])
    await eventually('no machine left', async () => (await client.platform.runtime.list()).length === 0)
    const logs = await client.request('/v0/observability/logs?resourceType=agents&workloadIds=hello')
    expect(await logs.json()).toMatchObject({ hello: { logs: [], totalCount: 0 } })
  })
})
