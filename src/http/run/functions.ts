import { type Route, route } from '../route.ts'
import { type DeploymentPlane, runDeployment } from './deployments.ts'

/** The data plane of functions: MCP servers, and whatever else is below a function's address. */
export function functionRunRoutes(plane: DeploymentPlane): Route[] {
  return [
    route({
      method: 'ALL',
      path: '/{workspace}/functions/{functionName}/{path*}',
      access: 'read',
      isOpen: ({ workspace, functionName }) =>
        plane.deployments.isPublic(workspace, 'function', functionName),
      errors: 'gateway',
      summary: 'A request to a function, such as an MCP server',
      tag: 'run',
      handle(context) {
        const { workspace, functionName: name } = context.params
        // What a server has to say by itself may be long in coming.
        const timed = !isEventStream(context.request)
        return runDeployment(context, { workspace, kind: 'function', name, timed }, plane)
      },
    }),
  ]
}

function isEventStream({ method, headers }: Request): boolean {
  return method === 'GET' && (headers.get('accept') ?? '').includes('text/event-stream')
}
