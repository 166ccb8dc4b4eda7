import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Client } from '@modelcontextprotocol/sdk/client/index.js'
import { StreamableHTTPClientTransport } from '@modelcontextprotocol/sdk/client/streamableHttp.js'
import { PlatformError } from '../../../../errors.ts'
import { splitUrl } from '../../../url.ts'
import { HostMachine, sandboxApi } from '../../test-machine.ts'
import { type SandboxApi, serveSandbox } from '../api.ts'

/** A sandbox's API over HTTP, without the platform around it, and real MCP clients of it. */
export class McpBench implements AsyncDisposable {
  readonly root = mkdtempSync(join(tmpdir(), 'hutch-mcp-'))
  readonly machine = new HostMachine(this.root)
  readonly #server: ReturnType<typeof Bun.serve>
  readonly #clients: Client[] = []
  /** Of the requests to come. */
  credentialed = true

  constructor(api: SandboxApi = sandboxApi) {
    this.#server = Bun.serve({
      port: 0,
      hostname: '127.0.0.1',
      idleTimeout: 0,
      fetch: async (request) => {
        const { path, search } = splitUrl(request.url)
        try {
          return await serveSandbox(
            await this.machine.lease('main', 'box'),
            {
              request,
              path,
              search,
              publicOrigin: this.url,
              publicPrefix: '',
              consumed: { headers: [], query: [] },
              credentialed: this.credentialed,
              upgrade: null,
            },
            api,
          )
        } catch (error) {
          if (!PlatformError.is(error)) throw error
          return Response.json({ platform: error.code, message: error.message }, { status: error.status })
        }
      },
    })
  }

  get url(): string {
    return `http://127.0.0.1:${this.#server.port}`
  }

  async client(): Promise<Client> {
    const client = new Client({ name: 'test', version: '1.0.0' })
    await client.connect(new StreamableHTTPClientTransport(new URL(`${this.url}/mcp`)))
    this.#clients.push(client)
    return client
  }

  /** One message by hand. */
  post(message: unknown, headers: Record<string, string> = {}): Promise<Response> {
    return fetch(`${this.url}/mcp`, {
      method: 'POST',
      headers: {
        'content-type': 'application/json',
        accept: 'application/json, text/event-stream',
        ...headers,
      },
      body: typeof message === 'string' ? message : JSON.stringify(message),
    })
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const client of this.#clients) await client.close()
    await this.#server.stop(true)
    await this.machine.close()
    rmSync(this.root, { recursive: true, force: true })
  }
}

export interface CallResult {
  isError?: boolean
  content: { type: string; text: string }[]
  structuredContent?: Record<string, unknown>
}

/** The structured result of a call that has to succeed. */
export async function called(
  client: Client,
  name: string,
  args: Record<string, unknown> = {},
): Promise<Record<string, unknown>> {
  const result = (await client.callTool({ name, arguments: args })) as unknown as CallResult
  if (result.isError) throw new Error(`${name} failed: ${result.content[0]?.text}`)
  return result.structuredContent!
}

/** The text of a call that has to fail. */
export async function refused(
  client: Client,
  name: string,
  args: Record<string, unknown> = {},
): Promise<string> {
  const result = (await client.callTool({ name, arguments: args })) as unknown as CallResult
  if (!result.isError) throw new Error(`${name} did not fail: ${result.content[0]?.text}`)
  return result.content[0]!.text
}
