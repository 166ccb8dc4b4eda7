import { PlatformError } from '../../errors.ts'
import type { Logs } from '../../telemetry/index.ts'
import type { BridgeAnswer } from '../mcp/bridge/index.ts'
import { joinSessionId, type LazyMcpBridge, sessionNotFound, splitSessionId } from '../mcp/index.ts'
import { type Route, type RouteContext, route } from '../route.ts'
import { keptAlive } from './bodies.ts'
import { type Acquired, type DeploymentPlane, type DeploymentSource, runDeployment } from './deployments.ts'
import { checkRequestLength } from './exchanges.ts'

export interface FunctionPlane extends DeploymentPlane {
  deployments: DeploymentSource & {
    /** That instance and no other; null when it is gone, or not of this deployment. */
    acquireInstance(
      workspace: string,
      kind: 'function',
      name: string,
      instanceId: string,
      caller?: { readonly signal: AbortSignal },
    ): Promise<Acquired | null>
  }
  /** To servers that speak by their standard streams. */
  bridge: LazyMcpBridge
  logs: Pick<Logs, 'append'>
}

type FunctionContext = RouteContext<
  { workspace: string; functionName: string; path: string },
  unknown,
  unknown
>

const sessionHeader = 'mcp-session-id'
/** Where a server that has no port of its own is. */
const mcpPath = 'mcp'
const keepalive = { text: ': keepalive\n\n', everyMs: 15_000 }

/** The data plane of functions: MCP servers, and whatever else is below a function's address. */
export function functionRunRoutes(plane: FunctionPlane): Route[] {
  return [
    route({
      method: 'ALL',
      path: '/{workspace}/functions/{functionName}/{path*}',
      access: 'read',
      isOpen: ({ workspace, functionName, path }, { request: { method } }) =>
        plane.deployments.isOpen(workspace, 'function', functionName, { path, method, isAsync: false }),
      errors: 'gateway',
      summary: 'A request to a function, such as an MCP server',
      tag: 'run',
      handle: (context) => runFunction(context, plane),
    }),
  ]
}

/**
 * A session stays with the instance that it began in, whose id stands in the session's own; so a server finds what it kept,
 * however many instances there are, and whatever revision is served by now.
 */
async function runFunction(context: FunctionContext, plane: FunctionPlane): Promise<Response> {
  const { request, params } = context
  const { workspace, functionName: name } = params
  checkRequestLength(request.headers)
  const sessionId = splitSessionId(request.headers.get(sessionHeader))
  const acquired =
    sessionId === null
      ? await plane.deployments.acquire(workspace, 'function', name, requestOf(context, plane), request)
      : await plane.deployments.acquireInstance(workspace, 'function', name, sessionId.instanceId, request)
  if (acquired === null) return sessionNotFound()
  if (acquired.transport === 'stdio') return await runBridged(context, acquired, plane)
  const { instance } = acquired.lease
  const listens = isEventStream(request)
  const response = await runDeployment(
    context,
    {
      ...{ workspace, kind: 'function', name },
      // What a server has to say by itself may be long in coming.
      timed: !listens,
      listens,
      acquire: () => acquired,
      requestHeaders: sessionId === null ? {} : { [sessionHeader]: sessionId.session },
    },
    plane,
  )
  const session = response.headers.get(sessionHeader)
  if (session !== null) {
    response.headers.set(sessionHeader, joinSessionId({ instanceId: instance.id, session }))
  }
  return response
}

async function runBridged(
  { request, params, whole }: FunctionContext,
  { lease, revisionId }: Acquired,
  { bridge, logs }: FunctionPlane,
): Promise<Response> {
  const { workspace, functionName: name } = params
  const { instance, program } = lease
  if (params.path !== mcpPath) {
    lease[Symbol.dispose]()
    throw new PlatformError(
      'route_not_found',
      `the function "${name}" is an MCP server: it is at /mcp, and nowhere else`,
    )
  }
  const source = { workspace, kind: 'functions' as const, name, revision: revisionId, instance: instance.id }
  let answer: BridgeAnswer
  try {
    const opened = await bridge.open()
    answer = await opened.handle({
      ...{ request, whole, lease },
      place: `${workspace}/${name}`,
      sessionId: splitSessionId(request.headers.get(sessionHeader)),
      machine: { instance, program, onLine: (line, stream) => logs.append({ ...source, stream }, line) },
    })
  } catch (error) {
    lease[Symbol.dispose]()
    throw error
  }
  const headers = { 'access-control-expose-headers': 'Mcp-Session-Id' }
  if (answer instanceof Response) {
    for (const [header, value] of Object.entries(headers)) answer.headers.set(header, value)
    return answer
  }
  const body = keptAlive(answer.messages, keepalive, () => answer.release())
  return new Response(body, { headers: { ...headers, ...answer.headers } })
}

function requestOf({ request }: FunctionContext, { bridge }: FunctionPlane) {
  return {
    cookie: request.headers.get('cookie'),
    fits: (instanceId: string) => bridge.fits(instanceId),
  }
}

function isEventStream({ method, headers }: Request): boolean {
  return method === 'GET' && (headers.get('accept') ?? '').includes('text/event-stream')
}
