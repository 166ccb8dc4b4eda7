import { mkdirSync, readdirSync } from 'node:fs'
import { join } from 'node:path'
import { RunningHutch, temporaryDataDir } from '../platform.ts'

const pollMs = 5
const waitMsMax = 120_000
const agentName = 'hello'
/** As agents have it that name none. */
const memoryMb = 2048

/** Of the agent whose requests are timed: says hello, streams, and tells which process it is and how often it ticked. */
export const agentProgram = `
let ticks = 0
setInterval(() => { ticks++ }, 5)
const id = crypto.randomUUID()
Bun.serve({
  hostname: process.env.HOST,
  port: Number(process.env.PORT),
  idleTimeout: 0,
  fetch(request) {
    const { pathname } = new URL(request.url)
    if (pathname === '/ticks') return new Response(String(ticks))
    if (pathname === '/id') return new Response(id)
    if (pathname !== '/stream') return new Response('hello')
    return new Response(new ReadableStream({
      async start(controller) {
        controller.enqueue('first')
        await Bun.sleep(20)
        controller.enqueue('last')
        controller.close()
      },
    }))
  },
})
`

/** A platform of its own, and one agent on it. */
export interface Hosting extends AsyncDisposable {
  /** Where requests to the agent begin. */
  readonly url: string
  readonly headers: Record<string, string>
  /** Of the platform. */
  readonly origin: string
  readonly pid: number
  /** Builds and serves a revision of the agent; resolves, with its id, once it gets the requests. */
  deploy(program: string): Promise<string>
  /** Gives the requests back to a revision. */
  rollBack(revisionId: string): Promise<void>
  /** The answer of the agent, awaited whole. */
  ask(path?: string): Promise<string>
  /** The socket that leads to the agent's port, past the platform. */
  socket(): string
  /** Resolves when no instance is left. */
  stopped(): Promise<void>
}

/** `runtime`: of the agent, besides its memory. */
export async function hosting(args: string[] = [], runtime: object = {}): Promise<Hosting> {
  const stack = new AsyncDisposableStack()
  const dataDir = stack.use(await temporaryDataDir())
  const running = stack.use(await RunningHutch.start({ dataDir: dataDir.path, args }))
  const { BL_API_KEY } = await running.env()
  const headers = { authorization: `Bearer ${BL_API_KEY}` }
  const origin = running.url.replace('localhost', '127.0.0.1')
  const url = `${origin}/main/agents/${agentName}`
  const instancesDir = join(dataDir.path, 'instances')
  const control = async (method: string, path: string, body: object) => {
    const response = await fetch(`${origin}/v0/agents${path}`, {
      method,
      headers: { ...headers, 'content-type': 'application/json', 'blaxel-version': '2026-04-28' },
      body: JSON.stringify(body),
    })
    if (!response.ok) throw new Error(`${method} ${path}: ${await response.text()}\n${running.log}`)
    return response
  }
  const wanted = (spec: object) => ({ metadata: { name: agentName }, spec })
  let made = false
  return {
    url,
    headers,
    origin,
    pid: running.child.pid,
    async deploy(program) {
      const directory = join(dataDir.path, 'project')
      mkdirSync(directory, { recursive: true })
      await Bun.write(
        join(directory, 'package.json'),
        JSON.stringify({ name: agentName, type: 'module', scripts: { start: 'bun index.ts' } }),
      )
      await Bun.write(join(directory, 'index.ts'), program)
      const spec = wanted({ runtime: { memory: memoryMb, ...runtime } })
      const asked = made
        ? await control('PUT', `/${agentName}?upload=true`, spec)
        : await control('POST', '?upload=true', spec)
      made = true
      const revisionId = asked.headers.get('x-hutch-revision') ?? ''
      const archive = Bun.spawn(['tar', '-C', directory, '-cf', '-', '.'], { stdout: 'pipe' })
      const upload = await fetch(asked.headers.get('x-blaxel-upload-url') ?? '', {
        method: 'PUT',
        headers: { 'content-type': 'application/x-tar' },
        body: await new Response(archive.stdout).bytes(),
      })
      if (!upload.ok) throw new Error(`the upload was answered ${upload.status}: ${await upload.text()}`)
      await until(`revision ${revisionId} to serve`, async () => {
        const answer = await fetch(`${origin}/v0/agents/${agentName}`, { headers })
        const { events = [] } = (await answer.json()) as {
          events?: { revision?: string; status?: string; message?: string }[]
        }
        const own = events.filter(({ revision }) => revision === revisionId)
        const failed = own.find(({ status }) => status === 'FAILED')
        if (failed) throw new Error(failed.message)
        return own.some(({ status }) => status === 'DEPLOYED')
      })
      return revisionId
    },
    async rollBack(revisionId) {
      await control(
        'PUT',
        `/${agentName}`,
        wanted({ runtime: { memory: memoryMb, ...runtime }, revision: { active: revisionId } }),
      )
    },
    async ask(path = '') {
      const response = await fetch(url + path, { headers })
      const text = await response.text()
      if (!response.ok) throw new Error(`${path} answered ${response.status}: ${text}\n${running.log}`)
      return text
    },
    socket() {
      for (const id of readdirSync(instancesDir)) {
        const run = join(instancesDir, id, 'run')
        const port = readdirSync(run).find((name) => /^p\d+$/.test(name))
        if (port) return join(run, port)
      }
      throw new Error('the agent has no instance')
    },
    stopped: () => until('the last instance to go', async () => readdirSync(instancesDir).length === 0),
    [Symbol.asyncDispose]: () => stack.disposeAsync(),
  }
}

async function until(what: string, holds: () => Promise<boolean>): Promise<void> {
  const deadline = performance.now() + waitMsMax
  while (!(await holds())) {
    if (performance.now() > deadline) throw new Error(`waited in vain for ${what}`)
    await Bun.sleep(pollMs)
  }
}
