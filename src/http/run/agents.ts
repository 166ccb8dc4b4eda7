import { PlatformError } from '../../errors.ts'
import { type Route, route } from '../route.ts'
import { splitUrl } from '../url.ts'
import { type DeploymentPlane, runDeployment } from './deployments.ts'

/** The data plane of agents: whatever is below an agent's address is a request to its program. */
export function agentRunRoutes(plane: DeploymentPlane): Route[] {
  return [
    route({
      method: 'ALL',
      path: '/{workspace}/agents/{agentName}/{path*}',
      access: 'read',
      isOpen: ({ workspace, agentName }) => plane.deployments.isPublic(workspace, 'agent', agentName),
      errors: 'gateway',
      summary: 'A request to an agent',
      tag: 'run',
      handle(context) {
        const { request, params } = context
        if (request.url.includes('async=') && isAsync(request)) {
          throw new PlatformError(
            'not_implemented',
            'async: requests that are answered later are not possible on this platform yet; leave the parameter out',
          )
        }
        const { workspace, agentName: name } = params
        return runDeployment(context, { workspace, kind: 'agent', name, timed: true }, plane)
      },
    }),
  ]
}

function isAsync({ url }: Request): boolean {
  return new URLSearchParams(splitUrl(url).search).get('async') === 'true'
}
