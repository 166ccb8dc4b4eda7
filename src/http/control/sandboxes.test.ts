import { afterAll, beforeAll, expect, test } from 'bun:test'
import { maskedValue } from '../../lib/environment.ts'
import { type Platform, temporaryDataDir } from '../../platform.ts'
import { fakeRuntime } from '../../runtimes/fake/index.ts'
import { openTestClient, type TestClient } from '../../test-client.ts'

/** Sandboxes and previews as resources, through the unmodified client. */

let client: TestClient
let platform: Platform

beforeAll(async () => {
  client = await openTestClient({ dataDir: temporaryDataDir, runtime: fakeRuntime() })
  ;({ platform } = client)
}, 120_000)

afterAll(async () => {
  await client?.[Symbol.asyncDispose]()
}, 120_000)

function api(path: string, init: RequestInit = {}): Promise<Response> {
  const headers = new Headers(init.headers)
  headers.set('authorization', `Bearer ${platform.credentials.apiKey}`)
  headers.set('x-blaxel-workspace', platform.credentials.workspace)
  return fetch(`${client.url}/v0${path}`, { ...init, headers })
}

test('create, get, change and delete', async () => {
  const { SandboxInstance } = client
  const created = await SandboxInstance.create({
    name: 'control',
    memory: 1024,
    labels: { team: 'core' },
    envs: [{ name: 'TOKEN', value: 'hidden-value' }],
    ports: [{ target: 3000 }],
    ttl: '1h',
  })
  expect(created.status).toBe('DEPLOYED')
  expect(created.metadata.url).toBe(`${client.url}/main/sandboxes/control`)
  const read = await SandboxInstance.get('control')
  expect(read.spec.runtime?.envs).toEqual([{ name: 'TOKEN', value: maskedValue }])
  expect(read.expiresIn).toBeGreaterThan(3500)
  expect(read.spec.region).toBeUndefined()

  const labelled = await SandboxInstance.updateMetadata('control', { labels: { team: 'edge' } })
  expect(labelled.metadata.labels).toEqual({ team: 'edge' })
  expect(labelled.events).toEqual(read.events!)
  const cleared = await SandboxInstance.updateTtl('control', null as never)
  expect(cleared.expiresIn).toBeUndefined()
  const limited = await SandboxInstance.updateLifecycle('control', {
    expirationPolicies: [{ type: 'ttl-idle', value: '24h', action: 'delete' }],
  })
  expect(limited.spec.lifecycle?.expirationPolicies).toHaveLength(1)
  const networked = await SandboxInstance.updateNetwork('control', { network: { allowedDomains: ['a.com'] } })
  expect(networked.spec.network).toEqual({ allowedDomains: ['a.com'] })

  await created.delete()
  await expect(SandboxInstance.get('control')).rejects.toMatchObject({ code: 404 })
})

test('a name that exists is refused as the client knows it, and createIfNotExists answers it', async () => {
  const { SandboxInstance } = client
  await SandboxInstance.create({ name: 'twice' })
  await expect(SandboxInstance.create({ name: 'twice' })).rejects.toMatchObject({ code: 409 })
  const all = await Promise.all(
    Array.from({ length: 10 }, () => SandboxInstance.createIfNotExists({ name: 'twice' })),
  )
  expect(new Set(all.map(({ metadata }) => metadata.createdAt)).size).toBe(1)
  await SandboxInstance.delete('twice')
  const again = await SandboxInstance.createIfNotExists({ name: 'twice' })
  expect(again.status).toBe('DEPLOYED')
})

test('without a name, and with an external id alone', async () => {
  const { SandboxInstance } = client
  const unnamed = await SandboxInstance.create()
  expect(unnamed.metadata.name).toMatch(/^[a-z0-9-]+$/)
  await SandboxInstance.create({ name: 'external', externalId: 'session-9' })
  expect((await SandboxInstance.getByExternalId('session-9')).metadata.name).toBe('external')
  await expect(SandboxInstance.getByExternalId('nobody')).rejects.toMatchObject({ code: 404 })
  const found = await SandboxInstance.list({ externalId: 'session-9' })
  expect(found.data.map(({ metadata }) => metadata.name)).toEqual(['external'])
})

test('an unknown image is refused and leaves no record', async () => {
  const { SandboxInstance } = client
  const refused = SandboxInstance.create({ name: 'unknown-image', image: 'blaxel/nothing-like-it:latest' })
  await expect(refused).rejects.toMatchObject({
    code: 'INVALID_IMAGE',
    status_code: 400,
    details: { supported_images: expect.arrayContaining(['blaxel/base-image:latest']) },
  })
  await expect(SandboxInstance.get('unknown-image')).rejects.toMatchObject({ code: 404 })
})

test('lists are pages, or bare arrays before there were pages', async () => {
  const { SandboxInstance } = client
  for (const name of ['page-a', 'page-b', 'page-c']) await SandboxInstance.create({ name })
  const first = await SandboxInstance.list({ limit: 1 })
  const all = await first.autoPagingToArray({ limit: 100 })
  const names = all.map(({ metadata }) => metadata.name)
  expect(new Set(names).size).toBe(names.length)
  expect(names).toEqual(expect.arrayContaining(['page-a', 'page-b', 'page-c']))
  const bare = await (await api('/sandboxes')).json()
  expect(Array.isArray(bare)).toBe(true)
  expect(bare).toHaveLength(names.length)
})

test('secrets are for admins who ask', async () => {
  await client.SandboxInstance.create({ name: 'secretive', envs: [{ name: 'K', value: 'plain-value' }] })
  const shown = await (await api('/sandboxes/secretive?show_secrets=true')).json()
  expect(shown.spec.runtime.envs).toEqual([{ name: 'K', value: 'plain-value' }])
})

test('one from source answers with where the source is to be uploaded, also for one that runs', async () => {
  const ask = async (method: string, path: string, body: object) => {
    const headers = { 'content-type': 'application/json' }
    const response = await api(`${path}?upload=true`, { method, body: JSON.stringify(body), headers })
    const { status } = (await response.json()) as { status: string }
    return [response.status, status, response.headers.get('x-blaxel-upload-url')]
  }
  const address = expect.stringMatching(new RegExp(`^${client.url}/-/uploads/[\\w-]{43}$`))
  const spec = { runtime: { memory: 512 } }
  expect((await ask('PUT', '/sandboxes/built', { spec }))[0]).toBe(404)
  const created = await ask('POST', '/sandboxes', { metadata: { name: 'built' }, spec })
  expect(created).toEqual([200, 'UPLOADING', address])
  expect((await ask('POST', '/sandboxes', { metadata: { name: 'built' }, spec }))[0]).toBe(409)
  expect(await ask('PUT', '/sandboxes/built', { spec })).toEqual([200, 'UPLOADING', address])
  await client.SandboxInstance.create({ name: 'running' })
  expect(await ask('PUT', '/sandboxes/running', { spec })).toEqual([200, 'UPLOADING', address])
  const image = await api('/images?upload=true', {
    method: 'POST',
    body: JSON.stringify({ name: 'tool', resourceType: 'agent', labels: {}, generation: 'mk3' }),
    headers: { 'content-type': 'application/json' },
  })
  expect(image.headers.get('x-blaxel-upload-url')).toEqual(address)
  expect(await image.json()).toMatchObject({
    name: 'tool',
    resourceType: 'agent',
    image: expect.stringMatching(/^agent\/tool:build-[a-z0-9]{12}$/),
    build: true,
  })
  const view = (await (await api('/images/agent/tool')).json()) as object
  expect(view).toMatchObject({ metadata: { status: 'BUILDING', events: [{ status: 'UPLOADING' }] } })
  expect(await (await api('/images')).json()).toMatchObject([{ metadata: { name: 'tool' } }])
  const remove = () => api('/images/agent/tool', { method: 'DELETE' })
  expect([(await remove()).status, (await remove()).status]).toEqual([200, 404])
  expect(await (await api('/images')).json()).toEqual([])
  for (const name of ['built', 'running']) await client.SandboxInstance.delete(name)
})

test('previews, their tokens and sessions', async () => {
  const { SandboxInstance } = client
  const sandbox = await SandboxInstance.create({ name: 'previewed' })
  const preview = await sandbox.previews.createIfNotExists({
    metadata: { name: 'app' },
    spec: { port: 3000, public: false, prefixUrl: 'shop' },
  })
  expect(preview.spec.url).toMatch(/^http:\/\/shop-main-[a-z0-9]{16}\.preview\.localhost:\d+$/)
  expect(preview.metadata.resourceName).toBe('previewed')
  const token = await preview.tokens.create(new Date(Date.now() + 60_000))
  expect(token.value).toMatch(/^[A-Za-z0-9_-]+$/)
  expect((await preview.tokens.list()).map(({ value }) => value)).toEqual([token.value])
  await preview.tokens.delete(token.value)
  expect(await preview.tokens.list()).toEqual([])

  const again = await sandbox.previews.createIfNotExists({ metadata: { name: 'app' }, spec: { port: 3000 } })
  expect(again.spec.url).toBe(preview.spec.url!)
  expect((await sandbox.previews.list()).map(({ name }) => name)).toEqual(['app'])
  await sandbox.previews.delete('app')
  await expect(sandbox.previews.get('app')).rejects.toMatchObject({ code: 404 })
  const remade = await sandbox.previews.create({
    metadata: { name: 'app' },
    spec: { port: 3000, prefixUrl: 'shop' },
  })
  expect(remade.spec.url).toBe(preview.spec.url!)

  const session = await sandbox.sessions.create()
  expect(session.url).toMatch(new RegExp(`^${client.url}/-/preview/[a-z0-9]{16}$`))
  const listed = await sandbox.sessions.list()
  expect(listed.map(({ token: value }) => value)).toEqual([session.token])
  await sandbox.sessions.delete(session.name)
  expect(await sandbox.sessions.list()).toEqual([])
})
