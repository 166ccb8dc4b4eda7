import { afterAll, expect, setDefaultTimeout, test } from 'bun:test'
import { mkdtempSync, readFileSync, realpathSync, rmSync } from 'node:fs'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { text } from 'node:stream/consumers'
import { tar } from '../src/images/test-image.ts'
import { eventually } from '../src/lib/test-eventually.ts'
import { buildIfStale } from './build.ts'
import { canIsolate } from './host.ts'
import { RunningHutch } from './platform.ts'
import { seededChoices } from './seeded-choices.ts'

// Kills dist/hutch again and again while requests are accepted that are answered later, and while their callbacks are
// delivered: nothing that was accepted is lost, done with twice, or told under two ids.

/** HUTCH_TEST_ROUNDS=20 kills it twenty times, in 2,000 executions. */
const rounds = Number(process.env.HUTCH_TEST_ROUNDS ?? 3)
const perRound = 100
const clients = 16
const retryMs = 20
const settleMsMax = 240_000

setDefaultTimeout(600_000 + rounds * 60_000)
await buildIfStale()
const usable = canIsolate()

const directory = realpathSync(mkdtempSync(join(tmpdir(), 'hutch-executions-recovery-')))
const dataDir = join(directory, 'data')
let platform: RunningHutch | null = null
afterAll(async () => {
  await platform?.[Symbol.asyncDispose]()
  receiver.stop()
  rmSync(directory, { recursive: true, force: true })
})

const { seed, below, random } = seededChoices()
const receiver = await flakyReceiver()

/** Ids of the callbacks of each execution that were taken, however often they came. */
interface Told {
  ids: Set<string>
  bodies: Set<string>
  /** Answered with success. */
  taken: boolean
}

/** Fails some callbacks the first time: refuses them, or takes them and breaks off before it says so. */
async function flakyReceiver() {
  const told = new Map<string, Told>()
  const server = createServer(async (request, response) => {
    const header = (name: string) => String(request.headers[name] ?? 'none')
    const execution = header('x-hutch-execution')
    const known = told.get(execution)
    const one = known ?? { ids: new Set(), bodies: new Set(), taken: false }
    told.set(execution, one)
    one.ids.add(header('webhook-id'))
    try {
      one.bodies.add(await text(request))
    } catch {
      // Its sender was killed half-way.
      return
    }
    const whim = known ? 1 : random()
    if (whim < 0.15) {
      response.writeHead(503).end('not now')
    } else if (whim < 0.3) {
      // It was taken, and its sender cannot know.
      request.socket.destroy()
    } else {
      one.taken = true
      response.end('thanks')
    }
  })
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  const { port } = server.address() as AddressInfo
  return {
    told,
    url: `http://127.0.0.1:${port}/hook`,
    stop() {
      server.close()
      server.closeAllConnections()
    },
  }
}

async function call(path: string, init: RequestInit = {}): Promise<Response> {
  const { apiKey } = JSON.parse(readFileSync(join(dataDir, 'credentials.json'), 'utf8')) as { apiKey: string }
  return await fetch(platform!.url.replace('localhost', '127.0.0.1') + path, {
    ...init,
    headers: {
      authorization: `Bearer ${apiKey}`,
      'x-blaxel-workspace': 'main',
      'content-type': 'application/json',
      ...init.headers,
    },
  })
}

async function start(): Promise<void> {
  platform = await RunningHutch.start({ dataDir, args: ['--log-level', 'error'] })
}

const settles = (what: string, holds: () => Promise<boolean> | boolean) =>
  eventually(`${what} (seed ${seed})`, holds, settleMsMax)

/** An agent that echoes after a moment, so that a kill finds some of it under way. */
async function deploy(): Promise<void> {
  const asked = await call('/v0/agents?upload=true', {
    method: 'POST',
    body: JSON.stringify({
      metadata: { name: 'echo' },
      spec: {
        runtime: { memory: 512, maxScale: 1 },
        triggers: [{ id: 'later', type: 'http-async', configuration: { callbackUrl: receiver.url } }],
      },
    }),
  })
  expect(asked.status).toBe(200)
  const program = `Bun.serve({ hostname: process.env.HOST, port: Number(process.env.PORT), async fetch(request) {
    const body = await request.text()
    await Bun.sleep(Math.random() * 30)
    return new Response(body)
  } })`
  const archive = tar([
    { path: 'package.json', content: JSON.stringify({ scripts: { start: 'bun index.ts' } }) },
    { path: 'index.ts', content: program },
  ])
  const { pathname } = new URL(asked.headers.get('x-blaxel-upload-url') ?? '')
  const sent = await call(pathname, {
    method: 'PUT',
    headers: { 'content-type': 'application/x-tar' },
    body: new Uint8Array(archive),
  })
  expect(sent.status).toBe(200)
  await settles('the agent serves', async () => {
    const { events } = (await (await call('/v0/agents/echo')).json()) as { events: { status: string }[] }
    if (events.some(({ status }) => status === 'FAILED')) throw new Error(JSON.stringify(events))
    return events.some(({ status }) => status === 'DEPLOYED')
  })
}

/** Asks until somebody says that it is accepted, as a client does that minds; answers the execution's id. */
async function accepted(key: string): Promise<string> {
  for (;;) {
    const response = await call('/main/agents/echo?async=true', {
      method: 'POST',
      headers: { 'idempotency-key': key },
      body: JSON.stringify({ key }),
    }).catch(() => null)
    if (response?.status === 202) return response.headers.get('x-hutch-execution') ?? ''
    if (response && response.status < 500) throw new Error(`${response.status}: ${await response.text()}`)
    await Bun.sleep(retryMs)
  }
}

interface Listed {
  id: string
  status: string
  result: { bytes: number } | null
}

async function executions(query: string): Promise<Listed[]> {
  const listed: Listed[] = []
  let cursor = ''
  do {
    const response = await call(
      `/v0/executions?limit=200&${query}${cursor === '' ? '' : `&cursor=${cursor}`}`,
    )
    const page = (await response.json()) as { data: Listed[]; meta: { nextCursor: string } }
    listed.push(...page.data)
    cursor = page.meta.nextCursor
  } while (cursor !== '')
  return listed
}

test.skipIf(!usable)(
  'what is accepted ends once and is told under one id, whenever the platform is killed',
  async () => {
    await start()
    await deploy()
    const idOf = new Map<string, string>()
    for (let round = 0; round < rounds; round++) {
      const keys = Array.from({ length: perRound }, (_, index) => `${round}-${index}`)
      const killAt = below(perRound)
      let killing: Promise<void> | null = null
      const client = async () => {
        for (let key = keys.shift(); key !== undefined; key = keys.shift()) {
          const id = await accepted(key)
          idOf.set(key, id)
          if (idOf.size % perRound !== killAt || killing) continue
          platform!.child.kill('SIGKILL')
          killing = platform!.child.exited.then(start)
        }
      }
      await Promise.all(Array.from({ length: clients }, client))
      if (!killing) {
        platform!.child.kill('SIGKILL')
        killing = platform!.child.exited.then(start)
      }
      await killing
    }
    const total = rounds * perRound
    const ids = [...idOf.values()]
    expect(new Set(ids).size).toBe(total)

    await settles('every execution ended', async () => {
      return (await executions('status=queued,running,waiting')).length === 0
    })
    // Each once, none beside those that were accepted, and all of them done.
    const ended = await executions('')
    expect(ended.map(({ id }) => id).sort()).toEqual(ids.sort())
    expect(ended.filter(({ status, result }) => status !== 'succeeded' || result === null)).toEqual([])

    await settles('every callback arrived', () => ids.every((id) => receiver.told.get(id)?.taken))
    expect([...receiver.told.keys()].sort()).toEqual(ids)
    const twice = [...receiver.told].filter(
      ([, { ids: told, bodies }]) => told.size !== 1 || bodies.size !== 1,
    )
    expect(twice).toEqual([])
    for (const key of ['0-0', `${rounds - 1}-${perRound - 1}`])
      expect(await accepted(key)).toBe(idOf.get(key)!)
  },
)
