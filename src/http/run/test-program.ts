import { mkdtempSync, openSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { splitUrl } from '../url.ts'
import { HostMachine } from './test-machine.ts'

/** A sandbox with a program on a port, which answers as a test says and notes what it was asked. */
export class TestProgram {
  readonly port = 3000
  readonly machine: HostMachine
  calls: string[] = []
  /** Answers and sockets that whoever asked did not wait for. */
  cancelled = 0
  readonly socketPath: string
  readonly #dir = mkdtempSync(join(tmpdir(), 'hutch-proxy-'))
  #server: Bun.Server<undefined> | null = null

  constructor() {
    this.machine = new HostMachine(this.#dir)
    this.socketPath = join(this.#dir, 'app')
    // As the namespace runtime has it: a path through an open directory, whose length does not matter.
    this.machine.sockets.set(this.port, `/proc/self/fd/${openSync(this.#dir, 'r')}/app`)
  }

  serve(handle: (request: Request, path: string) => Response | Promise<Response>): void {
    this.#server = Bun.serve({
      unix: this.socketPath,
      fetch: (request, server) => {
        const { path, search } = splitUrl(request.url)
        this.calls.push(`${request.method} ${path}${search}`)
        if (request.headers.get('upgrade')) {
          if (path === '/refuse') return new Response('no', { status: 403 })
          const headers = { 'sec-websocket-protocol': 'second' }
          if (server.upgrade(request, request.headers.has('sec-websocket-protocol') ? { headers } : {}))
            return undefined
        }
        return handle(request, path)
      },
      websocket: {
        open: (ws) => void ws.send('welcome'),
        message(ws, data) {
          if (data === 'close') ws.close(4001, 'as you wish')
          else ws.send(data)
        },
        close: () => void this.cancelled++,
      },
    })
  }

  /** Nobody listens, and nothing was asked. */
  reset(): void {
    this.#server?.stop(true)
    this.#server = null
    rmSync(this.socketPath, { force: true })
    this.calls = []
    this.cancelled = 0
  }

  async close(): Promise<void> {
    this.reset()
    await this.machine.close()
    rmSync(this.#dir, { recursive: true, force: true })
  }
}
