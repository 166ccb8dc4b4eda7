import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from 'bun:test'
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { tar } from './images/test-image.ts'
import { eventually } from './lib/test-eventually.ts'
import { unusedPorts } from './lib/test-ports.ts'
import { openTestClient, type TestClient, whyNot } from './test-client.ts'

/** From an upload to an image, through HTTP and with real machines, and with a platform that is killed meanwhile. */

setDefaultTimeout(120_000)
const directory = mkdtempSync(join(tmpdir(), 'hutch-sources-'))
afterAll(() => rmSync(directory, { recursive: true, force: true }))
const why = await whyNot()

const archive = tar([
  { path: 'package.json', content: '{ "name": "tool", "scripts": { "start": "bun index.js" } }' },
  { path: 'index.js', content: "console.log('the tool runs'); setInterval(() => {}, 1e6)\n" },
])

type Ask = (path: string, init?: RequestInit) => Promise<Response>

const begin = async (ask: Ask, name: string): Promise<{ uploadUrl: string; image: string }> => {
  const response = await ask('/v0/images?upload=true', {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ name, resourceType: 'agent' }),
  })
  const { image } = (await response.json()) as { image: string }
  return { uploadUrl: response.headers.get('x-blaxel-upload-url')!, image }
}
const upload = async (uploadUrl: string): Promise<number> => {
  const headers = { 'content-type': 'application/x-tar' }
  const body = archive as Uint8Array<ArrayBuffer>
  return (await fetch(uploadUrl, { method: 'PUT', headers, body })).status
}
const viewOf = async (ask: Ask, name: string) =>
  (await (await ask(`/v0/images/agent/${name}`)).json()) as {
    metadata: { status: string; events?: { message: string }[] }
    spec: { tags: { name: string }[] }
  }
const built = (ask: Ask, name: string) =>
  eventually('the image', async () => {
    const view = await viewOf(ask, name)
    if (view.metadata.status === 'FAILED') throw new Error(view.metadata.events?.[0]?.message)
    return view.metadata.status === 'BUILT' ? view : null
  })

describe.skipIf(why !== '')('images from source', () => {
  let client: TestClient
  beforeAll(async () => {
    client = await openTestClient({ dataDir: join(directory, 'one') })
  })
  afterAll(() => client?.[Symbol.asyncDispose]())

  test('what is uploaded is built, is there under its tag and as the latest, and says so in its log', async () => {
    const { uploadUrl, image } = await begin(client.request, 'tool')
    expect((await viewOf(client.request, 'tool')).metadata.status).toBe('BUILDING')
    expect(await upload(uploadUrl)).toBe(200)
    const { spec } = await built(client.request, 'tool')
    expect(spec.tags.map(({ name }) => `agent/tool:${name}`).sort()).toEqual(
      [image, 'agent/tool:latest'].sort(),
    )
    const path = '/v0/observability/logs?resourceType=agents&workloadIds=tool'
    const logs = (await (await client.request(path)).json()) as { tool: { logs: { message: string }[] } }
    expect(logs.tool.logs[0]?.message).toStartWith(`Built ${image}`)
    expect(await upload(uploadUrl)).toBe(409)
  })

  test('a sandbox of it runs its program, and the logs of the sandbox have what that says', async () => {
    const sandbox = await client.SandboxInstance.create({
      name: 'of-tool',
      image: 'agent/tool:latest',
      memory: 512,
    })
    await sandbox.process.exec({ command: 'echo oops >&2', waitForCompletion: true })
    const path = '/v0/observability/logs?resourceType=sandboxes&workloadIds=of-tool'
    const messages = await eventually('its words', async () => {
      const answer = (await (await client.request(path)).json()) as {
        'of-tool': { logs: { message: string; severity: number }[] }
      }
      const { logs } = answer['of-tool']
      return logs.some(({ message }) => message === 'the tool runs') ? logs : null
    })
    expect(messages).toContainEqual(expect.objectContaining({ message: 'oops', severity: 17 }))
    const following = await client.request(`${path}&follow=true`)
    const reader = following.body!.getReader()
    let text = ''
    const until = async (wanted: string) => {
      while (!text.includes(wanted)) text += new TextDecoder().decode((await reader.read()).value)
    }
    await until('oops')
    await sandbox.process.exec({ command: 'echo later', waitForCompletion: true })
    await until('"later"')
    await reader.cancel()
  })

  test('an upload that was answered is built by the next platform when this one is killed', async () => {
    const dataDir = join(directory, 'killed')
    const port = unusedPorts(1)
    const url = `http://localhost:${port}`
    const start = async () => {
      const hutch = Bun.spawn(
        [
          process.execPath,
          join(import.meta.dir, 'main.ts'),
          'up',
          '--data-dir',
          dataDir,
          '--port',
          String(port),
        ],
        { stdout: 'ignore', stderr: 'ignore', env: { ...process.env, HUTCH_DATA_DIR: dataDir } },
      )
      await eventually('the platform', () =>
        fetch(`${url}/readyz`).then(
          ({ ok }) => ok,
          () => false,
        ),
      )
      return hutch
    }
    const ask: Ask = (path, init = {}) => {
      const { apiKey } = JSON.parse(readFileSync(join(dataDir, 'credentials.json'), 'utf8')) as {
        apiKey: string
      }
      return fetch(url + path, { ...init, headers: { ...init.headers, authorization: `Bearer ${apiKey}` } })
    }
    const first = await start()
    const waiting = await begin(ask, 'waiting')
    const { uploadUrl, image } = await begin(ask, 'killed')
    expect(await upload(uploadUrl)).toBe(200)
    first.kill('SIGKILL')
    await first.exited
    const second = await start()
    try {
      const { spec } = await built(ask, 'killed')
      expect(spec.tags.map(({ name }) => `agent/killed:${name}`)).toContain(image)
      expect(await upload(waiting.uploadUrl)).toBe(200)
      await built(ask, 'waiting')
      await eventually('no archive left', () =>
        readdirSync(join(dataDir, 'builds')).every((name) => !name.endsWith('.archive')),
      )
    } finally {
      second.kill('SIGTERM')
      await second.exited
    }
  })
})
