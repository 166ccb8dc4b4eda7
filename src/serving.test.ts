import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from 'bun:test'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { verifyWebhookFromRequest } from '@blaxel/core'
import { TestReceiver } from './deliveries/test-receiver.ts'
import { tar } from './images/test-image.ts'
import { HurriedClock } from './lib/test-clock.ts'
import { eventually } from './lib/test-eventually.ts'
import { openTestClient, type TestClient, whyNot } from './test-client.ts'

/** What is deployed, on real machines: how its instances come, go, fail, and reach the platform. */

setDefaultTimeout(300_000)
const directory = mkdtempSync(join(tmpdir(), 'hutch-serving-'))
afterAll(() => rmSync(directory, { recursive: true, force: true }))
const why = await whyNot()

const manifest = {
  path: 'package.json',
  content: JSON.stringify({ name: 'served', scripts: { start: 'bun index.ts' } }),
}
const program = {
  path: 'index.ts',
  content: `
const id = crypto.randomUUID()
console.log('begun ' + id)
Bun.serve({
  hostname: process.env.HOST,
  port: Number(process.env.PORT),
  idleTimeout: 0,
  async fetch(request, server) {
    const { pathname } = new URL(request.url)
    if (pathname === '/talk' && server.upgrade(request)) return
    if (pathname === '/headers') return Response.json(Object.fromEntries(request.headers))
    if (pathname === '/say') { console.log(await request.text()); return new Response(id) }
    if (pathname === '/read') await request.text()
    if (pathname === '/die') process.exit(3)
    if (pathname === '/wait') {
      console.log('taken up ' + id)
      await new Promise((resolve) => request.signal.addEventListener('abort', resolve))
      console.log('given up ' + id)
    }
    if (pathname === '/exit') setTimeout(() => process.exit(3), 1)
    if (pathname === '/fill') setTimeout(() => { for (const all = [];;) all.push(new Uint8Array(8e6).fill(1)) }, 1)
    if (pathname === '/platform') {
      const key = { authorization: 'Bearer ' + process.env.BL_API_KEY }
      const other = await fetch(process.env.BL_RUN_URL + '/main/agents/other/headers', { headers: key })
      const keyless = await fetch(process.env.BL_RUN_URL + '/main/agents/other')
      const itself = await fetch(process.env.BL_API_URL + '/agents/' + process.env.BL_NAME, { headers: key })
      const keys = await fetch(process.env.BL_API_URL + '/service_accounts', { headers: key })
      const made = await fetch(process.env.BL_API_URL + '/sandboxes', {
        method: 'POST',
        headers: { ...key, 'content-type': 'application/json' },
        body: JSON.stringify({ metadata: { name: 'made' }, spec: { runtime: { memory: 256 } } }),
      })
      return Response.json({
        other: await other.json(),
        keyless: keyless.status,
        itself: (await itself.json()).metadata?.name,
        keys: keys.status,
        made: (await made.json()).metadata?.createdBy,
      })
    }
    return new Response(id)
  },
  websocket: { message(socket, text) { socket.send(id + ' heard ' + text) } },
})`,
}

/** Two builds at once may take a minute where every processor is busy. */
const deployMsMax = 240_000

interface Failure {
  error: { code: string; message: string }
}

describe.skipIf(why !== '')('an instance of what is deployed', () => {
  const clock = new HurriedClock()
  let client: TestClient
  const open = async () => {
    client = await openTestClient({ dataDir: directory, clock })
  }
  beforeAll(async () => {
    await open()
    await Promise.all([deploy('served', { memory: 512, maxScale: 2 }), deploy('other', { memory: 512 })])
  })
  afterAll(() => client?.[Symbol.asyncDispose]())

  const ask = (path: string, init?: RequestInit) => client.request(`/main/agents/${path}`, init)
  const say = async (path: string, init?: RequestInit) => await (await ask(path, init)).text()

  async function deploy(name: string, runtime: object, files = [manifest, program]) {
    const asked = await client.request('/v0/agents?upload=true', {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ metadata: { name }, spec: { runtime } }),
    })
    expect(asked.status).toBe(200)
    await fetch(asked.headers.get('x-blaxel-upload-url') ?? '', {
      method: 'PUT',
      headers: { 'content-type': 'application/x-tar' },
      body: new Uint8Array(tar(files)),
    })
    const { status, message } = await eventually(
      `the end of the deployment of ${name}`,
      async () => {
        const answer = await client.request(`/v0/agents/${name}`)
        const { events } = (await answer.json()) as { events: { status: string; message: string }[] }
        return events.find(({ status: state }) => state === 'DEPLOYED' || state === 'FAILED')
      },
      deployMsMax,
    )
    expect([status, message]).toEqual(['DEPLOYED', expect.any(String)])
  }

  test('is reached by its WebSocket, too', async () => {
    const id = await say('served')
    const Client = WebSocket as unknown as new (url: string, init: object) => WebSocket
    const { authorization } = { authorization: `Bearer ${client.platform.credentials.apiKey}` }
    const socket = new Client(`${client.url.replace('http', 'ws')}/main/agents/served/talk`, {
      headers: { authorization },
    })
    const heard = Promise.withResolvers<string>()
    socket.addEventListener('message', ({ data }) => heard.resolve(String(data)))
    socket.addEventListener('error', () => heard.reject(new Error('the WebSocket failed')))
    socket.addEventListener('open', () => socket.send('hello'))
    expect(await heard.promise).toBe(`${id} heard hello`)
    socket.close()
  })

  test('reaches the platform by its door, as the workload that it is, and shows no credential to anybody', async () => {
    const seen = (await (await ask('served/platform')).json()) as {
      other: Record<string, string>
      keyless: number
      itself: string
      keys: number
      made: string
    }
    expect(seen).toMatchObject({ keyless: 200, itself: 'served', keys: 403, made: 'agent:served' })
    expect(seen.other).not.toHaveProperty('authorization')
    expect(JSON.stringify(await (await ask('other/headers')).json())).not.toContain(
      client.platform.credentials.apiKey,
    )
    await client.request('/v0/sandboxes/made', { method: 'DELETE' })
    // What stands for a key inside is none anywhere else.
    const outside = await fetch(`${client.url}/main/agents/other`, {
      headers: { authorization: 'Bearer hutch-workload' },
    })
    expect(outside.status).toBe(401)
  })

  test('gets another one beside it when it has enough to do', async () => {
    const bodies: ReadableStreamDefaultController<Uint8Array>[] = []
    const held = Array.from({ length: 100 }, () => {
      const body = new ReadableStream<Uint8Array>({ start: (controller) => void bodies.push(controller) })
      return say('served/read', { method: 'POST', body })
    })
    const ids = new Set<string>()
    await eventually('two instances', async () => ids.add(await say('served')).size === 2)
    for (const body of bodies) body.close()
    for (const id of await Promise.all(held)) expect(ids).toContain(id)
  })

  test('goes when nobody uses it, and the next request finds a new one', async () => {
    const before = await say('other')
    expect(await say('other')).toBe(before)
    await eventually('it to go', async () => {
      clock.advance(300_000)
      return (await say('other')) !== before
    })
  })

  test('is found again by a later life of the platform, and is made anew after a stop', async () => {
    const id = await say('other/say', { method: 'POST', body: 'said before' })
    const lines = async () => {
      const asked = 'resourceType=agents&workloadIds=other&search=said&limit=10'
      const answer = await client.request(`/v0/observability/logs?${asked}`)
      const { other } = (await answer.json()) as { other: { logs: { message: string }[] } }
      return other.logs.map(({ message }) => message)
    }
    await eventually('what it said', async () => (await lines()).length === 1)
    await client.platform.close({ keepInstances: true })
    await client[Symbol.asyncDispose]()
    await open()
    expect(await say('other/say', { method: 'POST', body: 'said after' })).toBe(id)
    await eventually('what it says', async () => (await lines()).length > 1)
    expect(await lines()).toEqual(['said after', 'said before'])
    await client[Symbol.asyncDispose]()
    await open()
    expect(await say('other')).not.toBe(id)
  })

  test('that ends is replaced, and one that used too much memory is told of', async () => {
    const before = await say('other')
    await say('other/exit')
    await eventually('another one', async () => {
      const answer = await ask('other')
      return answer.ok && (await answer.text()) !== before
    })
    await say('other/fill')
    const told = await eventually('the reason in the logs', async () => {
      const asked = 'resourceType=agents&workloadIds=other&search=memory&limit=10'
      const answer = await client.request(`/v0/observability/logs?${asked}`)
      return ((await answer.json()) as { other: { logs: { message: string }[] } }).other.logs[0]
    })
    expect(told.message).toContain('used more memory than its 512 MB')
  })

  test('is asked later, and by the clock, and what came of it is told', async () => {
    await using receiver = new TestReceiver()
    const json = async (path: string, init?: { method?: string; body?: object }) => {
      const headers = { 'content-type': 'application/json' }
      const body = init?.body === undefined ? {} : { body: JSON.stringify(init.body) }
      const answer = await client.request(path, { method: init?.method ?? 'GET', headers, ...body })
      return (await answer.json()) as { [field: string]: unknown; configuration?: Record<string, string> }
    }
    const added = await json('/v0/agents/served/triggers', {
      method: 'POST',
      body: { id: 'later', type: 'http-async', configuration: { callbackUrl: receiver.url } },
    })
    const secret = added.configuration?.callbackSecret ?? ''
    const later = async (path: string, body = '') => {
      const asked = await client.request(`/main/agents/served/${path}?async=true`, { method: 'POST', body })
      expect([asked.status, await asked.json()]).toEqual([202, { success: true }])
      return asked.headers.get('x-hutch-execution') ?? ''
    }
    const told = async (count: number) => {
      const received = await receiver.nth(count)
      expect(verifyWebhookFromRequest(received, secret, 1e9)).toBe(true)
      return JSON.parse(received.body) as {
        status_code: number
        response_body: string
        response_length: number
      }
    }
    await later('say', 'asked later')
    const first = await told(1)
    expect(first).toMatchObject({ status_code: 200, response_length: 36 })
    expect(first.response_body).toMatch(/^[0-9a-f-]{36}$/)

    // A program that dies, and one whose request is called off.
    await later('die')
    expect(await told(2)).toMatchObject({
      status_code: 502,
      response_body: expect.stringContaining('BAD_GATEWAY'),
    })
    const id = await later('wait')
    const said = (what: string) =>
      eventually(what, async () => {
        const asked = `resourceType=agents&workloadIds=served&search=${encodeURIComponent(what)}&limit=10`
        const { served } = await json(`/v0/observability/logs?${asked}`)
        return (served as { totalCount: number } | undefined)?.totalCount
      })
    await said('taken up')
    await json(`/v0/executions/${id}/cancel`, { method: 'POST', body: { reason: 'enough' } })
    expect(await told(3)).toMatchObject({ status_code: 499 })
    await said('given up')

    await json('/v0/agents/served/triggers', {
      method: 'POST',
      body: { id: 'clock', type: 'cron', configuration: { schedule: '* * * * *', path: '/headers' } },
    })
    // Within a minute there is a moment, and no more is needed: what runs has its own time.
    clock.advance(60_000)
    await eventually('it is asked by the clock', async () => {
      const { data } = await json('/v0/executions?label=trigger=clock')
      return (data as { status: string }[]).some(({ status }) => status === 'succeeded')
    })
    await json('/v0/agents/served/triggers/clock', { method: 'DELETE' })
    const revisions = await client.request('/v0/agents/served/revisions')
    expect((await revisions.json()) as object[]).toHaveLength(1)
  })

  test('that cannot work says why to whoever asks', async () => {
    const fails = `const port = Number(process.env.PORT)
      Bun.serve({ hostname: process.env.HOST, port, fetch() { console.error('no such table: notes'); process.exit(4) } })`
    await deploy('broken', { memory: 512 }, [manifest, { path: 'index.ts', content: fails }])
    const failure = await eventually('the refusal', async () => {
      const answer = await ask('broken')
      return answer.status === 404 ? ((await answer.json()) as Failure) : null
    })
    expect(failure.error.code).toBe('WORKLOAD_UNAVAILABLE')
    expect(failure.error.message).toMatch(/ended with exit code 4.*no such table: notes/s)
    const noted = await eventually('the event', async () => {
      const answer = await client.request('/v0/agents/broken')
      const { events } = (await answer.json()) as { events: { type: string; message: string }[] }
      return events.find(({ type }) => type === 'instance')
    })
    expect(noted.message).toMatch(/^Crashed 3 times in a row\. .*no such table: notes/s)
  })
})
