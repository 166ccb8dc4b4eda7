import { afterAll, expect, setDefaultTimeout, test } from 'bun:test'
import { mkdtempSync, readFileSync, realpathSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { tar } from '../src/images/test-image.ts'
import { eventually } from '../src/lib/test-eventually.ts'
import { buildIfStale } from './build.ts'
import { canIsolate } from './host.ts'
import { RunningHutch } from './platform.ts'

// Kills dist/hutch while something is deployed: what was accepted is finished, and what served goes on serving.

const settleMsMax = 240_000

setDefaultTimeout(600_000)
await buildIfStale()
const usable = canIsolate()

const directory = realpathSync(mkdtempSync(join(tmpdir(), 'hutch-hosting-recovery-')))
const dataDir = join(directory, 'data')
let platform: RunningHutch | null = null
afterAll(async () => {
  await platform?.[Symbol.asyncDispose]()
  rmSync(directory, { recursive: true, force: true })
})

interface Answer {
  status: number
  headers: Headers
  body: Record<string, unknown>
}

async function call(path: string, init: RequestInit = {}): Promise<Answer> {
  const { apiKey } = JSON.parse(readFileSync(join(dataDir, 'credentials.json'), 'utf8')) as { apiKey: string }
  const response = await fetch(platform!.url.replace('localhost', '127.0.0.1') + path, {
    ...init,
    headers: {
      authorization: `Bearer ${apiKey}`,
      'x-blaxel-workspace': 'main',
      'content-type': 'application/json',
      ...init.headers,
    },
  })
  const text = await response.text()
  const body = text.startsWith('{') ? (JSON.parse(text) as Record<string, unknown>) : { text }
  return { status: response.status, headers: response.headers, body }
}

async function killAndStart(): Promise<void> {
  platform!.child.kill('SIGKILL')
  await platform!.child.exited
  platform = await RunningHutch.start({ dataDir, args: ['--log-level', 'error'] })
}

const settles = <Result>(what: string, look: () => Promise<Result>) => eventually(what, look, settleMsMax)

interface Event {
  revision?: string
  status: string
  message: string
}

/** How far a revision is, by its events. */
async function events(revision: string): Promise<Event[]> {
  const { body } = await call('/v0/agents/hello')
  return (body.events as Event[]).filter((event) => event.revision === revision)
}

const reaches = (revision: string, status: string) =>
  settles(`${revision} ${status}`, async () => {
    const seen = await events(revision)
    const failed = seen.find((event) => event.status === 'FAILED')
    if (failed && status !== 'FAILED') throw new Error(failed.message)
    return seen.some((event) => event.status === status)
  })

/** Asks for an address; answers its path, since the port is another after each start. */
async function ask(method: 'POST' | 'PUT'): Promise<{ revision: string; path: string }> {
  const path = method === 'POST' ? '/v0/agents' : '/v0/agents/hello'
  const answer = await call(`${path}?upload=true`, {
    method,
    body: JSON.stringify({ metadata: { name: 'hello' }, spec: { runtime: { memory: 512 } } }),
  })
  expect(answer.status).toBe(200)
  return {
    revision: answer.headers.get('x-hutch-revision') ?? '',
    path: new URL(answer.headers.get('x-blaxel-upload-url') ?? '').pathname,
  }
}

/** A program that answers `word`; its build and its start may take a moment in which something can happen to it. */
async function send(
  path: string,
  word: string,
  slow: { build?: boolean; start?: boolean } = {},
): Promise<void> {
  const scripts = {
    ...(slow.build ? { build: 'echo building; sleep 2' } : {}),
    start: 'bun index.ts',
  }
  const wait = slow.start ? 'await Bun.sleep(2_000)\n' : ''
  const serve = `Bun.serve({ hostname: process.env.HOST, port: Number(process.env.PORT), fetch: () => new Response('${word}') })`
  const archive = tar([
    { path: 'package.json', content: JSON.stringify({ scripts }) },
    { path: 'index.ts', content: wait + serve },
  ])
  const answer = await call(path, {
    method: 'PUT',
    headers: { 'content-type': 'application/x-tar' },
    body: new Uint8Array(archive),
  })
  expect(answer.status).toBe(200)
}

const said = async () => (await call('/main/agents/hello')).body.text

/** What served before does so until the next one is there, which a slow machine may have brought up by now. */
async function serves(word: string, next: string): Promise<void> {
  const answer = await said()
  const isOver = (await events(next)).some(({ status }) => status === 'DEPLOYED')
  expect(isOver ? [word, await said()] : [word]).toContain(answer)
}

test.skipIf(!usable)('what was accepted of a deployment outlives kill -9 at each step of it', async () => {
  platform = await RunningHutch.start({ dataDir, args: ['--log-level', 'error'] })
  const one = await ask('POST')
  // Its address was answered, and is good.
  await killAndStart()
  await send(one.path, 'one')
  await reaches(one.revision, 'DEPLOYED')
  expect(await said()).toBe('one')

  const two = await ask('PUT')
  await send(two.path, 'two', { build: true })
  await killAndStart()
  await serves('one', two.revision)
  await reaches(two.revision, 'BUILDING')
  await killAndStart()
  await reaches(two.revision, 'DEPLOYED')
  expect(await said()).toBe('two')

  const three = await ask('PUT')
  await send(three.path, 'three', { start: true })
  await reaches(three.revision, 'DEPLOYING')
  await killAndStart()
  await serves('two', three.revision)
  await reaches(three.revision, 'DEPLOYED')
  expect(await said()).toBe('three')

  const back = JSON.stringify({ spec: { revision: { active: one.revision } } })
  expect((await call('/v0/agents/hello', { method: 'PUT', body: back })).status).toBe(200)
  await killAndStart()
  await settles('the first serves again', async () => (await said()) === 'one')

  void call('/v0/agents/hello', { method: 'DELETE' }).catch(() => {})
  await settles('its deletion began', async () => {
    const { status, body } = await call('/v0/agents/hello')
    return status === 404 || body.status === 'DELETING'
  })
  await killAndStart()
  await settles('it is gone', async () => (await call('/v0/agents/hello')).status === 404)
  expect((await call('/main/agents/hello')).status).toBe(404)
  await settles('its images are gone', async () => (await call('/v0/images')).body.text === '[]')
})
