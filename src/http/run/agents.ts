import type { Passage, Passing } from '../../deployments/index.ts'
import { PlatformError } from '../../errors.ts'
import { type Route, route } from '../route.ts'
import { type DeploymentPlane, type DeploymentSource, runDeployment } from './deployments.ts'
import { acceptLater, type LaterCalls } from './later.ts'
import { keptBodies, tried } from './tried.ts'

export interface AgentPlane extends DeploymentPlane {
  deployments: DeploymentSource & {
    /** Where a request goes, by the triggers of what it is for. */
    passage(workspace: string, kind: 'agent', name: string, passing: Passing): Passage
  }
  /** Requests that are answered later. */
  later: LaterCalls
}

/** The data plane of agents: whatever is below an agent's address is a request to its program. */
export function agentRunRoutes(plane: AgentPlane): Route[] {
  const { clock } = plane.exchanges
  const kept = keptBodies()
  return [
    route({
      method: 'ALL',
      path: '/{workspace}/agents/{agentName}/{path*}',
      access: 'read',
      isOpen: ({ workspace, agentName, path }, { request, search }) =>
        plane.deployments.isOpen(workspace, 'agent', agentName, passing(path, request.method, search)),
      errors: 'gateway',
      summary: 'A request to an agent; with async=true it is answered at once and made after that',
      tag: 'run',
      handle(context) {
        const { request, params, search } = context
        const { workspace, agentName: name } = params
        const how = passing(params.path, request.method, search)
        const { later, path, tries } = plane.deployments.passage(workspace, 'agent', name, how)
        if (later !== null) return acceptLater(context, { workspace, name, ...later, path }, plane.later)
        const target = { workspace, kind: 'agent', name, timed: true } as const
        const there = path === null ? target : { ...target, path }
        if (tries === undefined) return runDeployment(context, there, plane)
        return tried(context, tries, (again) => runDeployment(again, there, plane), { clock, kept })
      },
    }),
  ]
}

/** @throws bad_request for one that is to be answered later and is no POST */
function passing(path: string, method: string, search: string): Passing {
  const isAsync = search.includes('async=') && new URLSearchParams(search).get('async') === 'true'
  if (isAsync && method !== 'POST' && method !== 'OPTIONS') {
    throw new PlatformError('bad_request', `async=true: only a POST is answered later, not a ${method}`)
  }
  return { path, method, isAsync: isAsync && method === 'POST' }
}
