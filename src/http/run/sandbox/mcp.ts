import type { Codegen } from '../../../codegen/index.ts'
import type { Logger } from '../../../lib/log.ts'
import { McpServer } from '../../mcp/index.ts'
import type { Keepalive } from '../bodies.ts'
import { keptAlive } from '../bodies.ts'
import { apiHeaders, type SandboxAnswer, type SandboxCall } from './call.ts'
import { fileJsonBytesMax } from './files.ts'
import { SandboxRest, type ToolContext } from './mcp/context.ts'

/** Comments, which clients skip. */
const keepalive: Keepalive = { text: ': keepalive\n\n', everyMs: 15_000 }

export type SandboxMcp = () => Promise<McpServer<ToolContext>>

/**
 * The MCP server of every sandbox: one object, since what differs comes with each request. It and its tools are loaded and
 * made when a client first asks for them.
 */
export function createSandboxMcp(options: { version: string; log: Logger }): SandboxMcp {
  let opening: Promise<McpServer<ToolContext>> | null = null
  return () => {
    opening ??= import('./mcp/tools.ts').then(
      ({ tools }) =>
        new McpServer<ToolContext>({
          name: 'Sandbox API Server',
          title: 'Sandbox',
          version: options.version,
          instructions:
            'Files and processes of one sandbox, a machine of its own. Paths are absolute or relative to its working ' +
            'directory (fsGetWorkingDirectory). Start servers with processExecute and waitForPorts.',
          tools,
          bodyBytesMax: fileJsonBytesMax,
          log: options.log,
        }),
    )
    return opening
  }
}

/** `handle` answers the sandbox's other routes, for the tools that go through them. */
export async function serveMcp(
  call: SandboxCall,
  { mcp, codegen }: { mcp: SandboxMcp; codegen: Codegen },
  handle: (call: SandboxCall) => Promise<SandboxAnswer>,
): Promise<SandboxAnswer> {
  const { lease } = call
  const gone = new AbortController()
  const server = await mcp()
  const answer = await server.handle({
    request: call.request,
    whole: call.whole,
    signal: AbortSignal.any([call.request.signal, gone.signal]),
    context: { lease, codegen, rest: new SandboxRest(call, handle) },
    place: `${lease.workspace}/${lease.name}`,
    credentialed: call.credentialed,
  })
  if (answer instanceof Response) {
    for (const [name, value] of Object.entries(apiHeaders)) answer.headers.set(name, value)
    answer.headers.set('access-control-expose-headers', 'Mcp-Session-Id')
    return answer
  }
  const body = keptAlive(answer.messages, keepalive, () => {
    gone.abort()
    call.onEnd()
  })
  return {
    streaming: new Response(body, { headers: { ...apiHeaders, ...answer.headers } }),
    endsItself: true,
  }
}
