import { RunningHutch, temporaryDataDir } from '../platform.ts'

const pollMs = 5
const waitMsMax = 120_000

/** A platform of its own, and the plain requests that benches of many sandboxes need. */
export interface Platform extends AsyncDisposable {
  readonly url: string
  request(path: string, init?: RequestInit): Promise<Response>
  create(name: string, memoryMb: number): Promise<void>
  remove(name: string): Promise<void>
  /** Starts `command` as the process `busy`. */
  start(name: string, command: string): Promise<void>
  /** Starts a Node server that answers `ok`. */
  serve(name: string, port: number): Promise<void>
  /** What the server on a port says. */
  port(name: string, port: number): Promise<string>
  /** Waits until all of them are in standby. */
  asleep(names: string[]): Promise<void>
}

/** Answers `ok`; prints its port, once it listens. */
export function nodeServer(port: number): string {
  return (
    `const server = require('http').createServer((_, response) => response.end('ok'))\n` +
    `server.listen(${port}, () => console.log(server.address().port))`
  )
}

export async function platformAt(options: { args: string[] }): Promise<Platform> {
  const stack = new AsyncDisposableStack()
  const dataDir = stack.use(await temporaryDataDir())
  const running = stack.use(await RunningHutch.start({ dataDir: dataDir.path, args: options.args }))
  const { BL_API_KEY, BL_WORKSPACE } = await running.env()
  const headers = {
    authorization: `Bearer ${BL_API_KEY}`,
    'x-blaxel-workspace': BL_WORKSPACE ?? '',
    'content-type': 'application/json',
  }
  const url = running.url.replace('localhost', '127.0.0.1')
  const request: Platform['request'] = async (path, init = {}) => {
    const response = await fetch(url + path, { ...init, headers })
    if (!response.ok) {
      throw new Error(`${path} answered ${response.status}: ${await response.text()}\n${running.log}`)
    }
    return response
  }
  const post = async (path: string, body: object) => {
    await (await request(path, { method: 'POST', body: JSON.stringify(body) })).arrayBuffer()
  }
  return {
    url,
    request,
    create: (name, memory) => post('/v0/sandboxes', { metadata: { name }, spec: { runtime: { memory } } }),
    async remove(name) {
      await (await request(`/v0/sandboxes/${name}`, { method: 'DELETE' })).arrayBuffer()
    },
    start: (name, command) => post(`/main/sandboxes/${name}/process`, { name: 'busy', command }),
    async serve(name, port) {
      const command = `exec node -e "${nodeServer(port).replaceAll('\n', ';')}"`
      await post(`/main/sandboxes/${name}/process`, { name: 'server', command, waitForPorts: [port] })
    },
    port: async (name, port) => await (await request(`/main/sandboxes/${name}/port/${port}/`)).text(),
    async asleep(names) {
      const deadline = performance.now() + waitMsMax
      for (const name of names) {
        for (;;) {
          const { state } = (await (await request(`/v0/sandboxes/${name}`)).json()) as { state: string }
          if (state === 'STANDBY') break
          if (performance.now() > deadline) throw new Error(`${name} does not fall asleep`)
          await Bun.sleep(pollMs)
        }
      }
    },
    [Symbol.asyncDispose]: () => stack.disposeAsync(),
  }
}
