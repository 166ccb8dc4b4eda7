import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { type Hosting, hosting } from './hosting-client.ts'

const pollMs = 20
const waitMsMax = 300_000

/**
 * The agent whose executions are timed. `/echo`: says what it got. `/start`: notes when it came, by the clock of the
 * host. `/hold`: answers nothing until `/release`.
 */
const agentProgram = `
const starts = {}
const seen = new Set()
let release
let held = new Promise((resolve) => { release = resolve })
Bun.serve({
  hostname: process.env.HOST,
  port: Number(process.env.PORT),
  idleTimeout: 0,
  async fetch(request) {
    const at = performance.timeOrigin + performance.now()
    const { pathname } = new URL(request.url)
    if (pathname === '/starts') return Response.json(starts)
    if (pathname === '/seen') return new Response(String(seen.size))
    if (pathname === '/release') {
      release()
      return new Response('released')
    }
    const id = (await request.text()).slice(0, 40).trim()
    if (pathname === '/start') starts[id] = at
    if (pathname === '/hold') await held
    seen.add(id)
    return new Response(id)
  },
})
`
/** As large as the requests that clients send. */
const padding = ' '.repeat(200)

export interface ExecutionsBench extends AsyncDisposable {
  readonly agent: Hosting
  /** Accepted: its id. Refused: throws. */
  later(path: string, id: string): Promise<string>
  metrics(): Promise<{ waiting: number; running: number; endedTotal: Record<string, number> }>
  /** Resolves once so many of them ended; what became of them. */
  ended(count: number): Promise<Record<string, number>>
}

/** A platform with one agent that takes requests which are answered later. */
export async function executionsBench(args: string[] = []): Promise<ExecutionsBench> {
  // One instance, which knows of all that came.
  const agent = await hosting(args, { maxScale: 1 })
  await agent.deploy(agentProgram)
  await agent.ask('/seen')
  const headers = { ...agent.headers, 'content-type': 'text/plain' }
  const metrics: ExecutionsBench['metrics'] = async () => {
    const response = await fetch(`${agent.origin}/v0/executions/metrics`, { headers: agent.headers })
    const { sources } = (await response.json()) as {
      sources: ({ source: string } & Awaited<ReturnType<ExecutionsBench['metrics']>>)[]
    }
    const found = sources.find(({ source }) => source === 'agent')
    if (!found) throw new Error('there are no metrics of agents')
    return found
  }
  return {
    agent,
    metrics,
    async later(path, id) {
      const response = await fetch(`${agent.url}${path}?async=true`, {
        method: 'POST',
        headers,
        body: id + padding,
      })
      const text = await response.text()
      if (!response.ok) throw new Error(`${response.status}: ${text}`)
      return text
    },
    async ended(count) {
      const deadline = performance.now() + waitMsMax
      for (;;) {
        const { endedTotal } = await metrics()
        const total = Object.values(endedTotal).reduce((sum, one) => sum + one, 0)
        if (total >= count) return endedTotal
        if (performance.now() > deadline)
          throw new Error(`${total} of ${count} ended: ${JSON.stringify(endedTotal)}`)
        await Bun.sleep(pollMs)
      }
    },
    [Symbol.asyncDispose]: () => agent[Symbol.asyncDispose](),
  }
}

/** A server in a process of its own that does no more than insert what it gets into SQLite, with the same durability. */
export async function plainAccepts(): Promise<{ accept(id: string): Promise<void> } & Disposable> {
  const directory = mkdtempSync(join(tmpdir(), 'hutch-bench-'))
  const program = `
    import { Database } from 'bun:sqlite'
    const database = new Database(${JSON.stringify(join(directory, 'plain.db'))}, { create: true })
    database.exec('PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL')
    database.exec('CREATE TABLE work (id TEXT PRIMARY KEY, body TEXT)')
    const insert = database.prepare('INSERT INTO work VALUES (?, ?)')
    const server = Bun.serve({
      port: 0, hostname: '127.0.0.1',
      async fetch(request) {
        const id = crypto.randomUUID()
        insert.run(id, await request.text())
        return Response.json({ id }, { status: 202 })
      },
    })
    console.log(server.port)`
  const child = Bun.spawn([process.execPath, '-e', program], { stdio: ['ignore', 'pipe', 'inherit'] })
  const { value } = await child.stdout.getReader().read()
  const url = `http://127.0.0.1:${new TextDecoder().decode(value).trim()}/`
  return {
    async accept(id) {
      const response = await fetch(url, { method: 'POST', body: id + padding })
      await response.arrayBuffer()
      if (!response.ok) throw new Error(`the plain server answered ${response.status}`)
    },
    [Symbol.dispose]() {
      child.kill('SIGKILL')
      rmSync(directory, { recursive: true, force: true })
    },
  }
}

/** `count` of them, `atOnce` at a time: how many a second. */
export async function closedLoop(
  count: number,
  atOnce: number,
  work: (index: number) => Promise<unknown>,
): Promise<number> {
  let next = 0
  const startedAt = performance.now()
  const client = async () => {
    while (next < count) await work(next++)
  }
  await Promise.all(Array.from({ length: atOnce }, client))
  return (count / (performance.now() - startedAt)) * 1000
}

/** Each at its time, however long those before take: how long each took, in milliseconds. */
export async function openLoop(
  count: number,
  perSecond: number,
  work: (index: number) => Promise<unknown>,
): Promise<number[]> {
  const values: number[] = []
  const startedAt = performance.now()
  const begun: Promise<void>[] = []
  for (let index = 0; index < count; index++) {
    const waitMs = startedAt + (index * 1000) / perSecond - performance.now()
    if (waitMs > 0) await Bun.sleep(waitMs)
    const sentAt = performance.now()
    begun.push(work(index).then(() => void values.push(performance.now() - sentAt)))
  }
  await Promise.all(begun)
  return values
}
