/** The API of an AgentField control plane, for its SDKs and whoever calls it with curl. */
import { PlatformError } from '../../../errors.ts'
import type { Clock } from '../../../lib/clock.ts'
import type { Dialer } from '../../../lib/dialer.ts'
import type { Logger } from '../../../lib/log.ts'
import type { Memory } from '../../../memory/index.ts'
import type { Nodes } from '../../../nodes/index.ts'
import { type Route, route } from '../../route.ts'
import { discoveryRoutes } from './discovery.ts'
import { memoryRoutes } from './memory.ts'
import { nodeRoutes } from './nodes.ts'
import { tag, timeText } from './wire.ts'

export interface AgentFieldOptions {
  nodes: Nodes
  memory: Memory
  isDeployed: (workspace: string, name: string) => boolean
  dialer: Dialer
  /** Of the platform. */
  version: string
  clock: Clock
  log: Logger
}

/** Identities and credentials of the web of trust: SDKs ask for them, and go on without. */
const identityPaths = [
  ['POST', '/api/v1/did/{path*}'],
  ['GET', '/api/v1/did/{path*}'],
  ['POST', '/api/v1/execution/vc'],
] as const

export function agentFieldRoutes(options: AgentFieldOptions): Route[] {
  const { nodes, memory, isDeployed, dialer, version, clock, log } = options
  return [
    ...nodeRoutes({ nodes, isDeployed, dialer, clock, replaced: async () => {} }),
    ...discoveryRoutes({ nodes, clock }),
    ...memoryRoutes({ memory, log }),
    ...(['/health', '/api/v1/health'] as const).map((path) =>
      route({
        method: 'GET',
        path,
        access: 'public',
        errors: 'agentfield',
        summary: 'Say whether the control plane answers',
        tag,
        handle: () => ({ status: 'healthy', timestamp: timeText(clock.now()), version }),
      }),
    ),
    ...identityPaths.map(([method, path]) =>
      route({
        method,
        path,
        access: 'read',
        errors: 'agentfield',
        keyless: true,
        summary: 'Refuse: this platform issues no decentralised identities',
        tag,
        handle() {
          throw new PlatformError(
            'not_found',
            'this platform issues no decentralised identities: go on without',
          )
        },
      }),
    ),
  ]
}
