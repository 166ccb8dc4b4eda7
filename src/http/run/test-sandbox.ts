import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { PlatformError } from '../../errors.ts'
import { splitUrl } from '../url.ts'
import { serveSandbox } from './sandbox/api.ts'
import { HostMachine, sandboxApi } from './test-machine.ts'

/** The API of one sandbox, whose machine is a directory of this host. */
export class ServedSandbox {
  readonly root = mkdtempSync(join(tmpdir(), 'hutch-sandbox-api-'))
  readonly machine = new HostMachine(this.root)
  readonly #server = Bun.serve({
    port: 0,
    hostname: '127.0.0.1',
    idleTimeout: 0,
    maxRequestBodySize: Number.MAX_SAFE_INTEGER,
    fetch: async (request) => {
      const { path, search } = splitUrl(request.url)
      try {
        return await serveSandbox(
          await this.machine.lease('main', 'box'),
          {
            request,
            path,
            search,
            publicOrigin: new URL(request.url).origin,
            publicPrefix: '',
            consumed: { headers: ['authorization'], query: [] },
            upgrade: null,
          },
          sandboxApi,
        )
      } catch (error) {
        if (!PlatformError.is(error)) throw error
        return Response.json({ platform: error.code, message: error.message }, { status: error.status })
      }
    },
  })
  readonly base = `http://127.0.0.1:${this.#server.port}`

  async close(): Promise<void> {
    this.#server.stop(true)
    await this.machine.close()
    rmSync(this.root, { recursive: true, force: true })
  }
}
