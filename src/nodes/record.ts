import type { DeploymentKind } from '../deployments/index.ts'
import { PlatformError } from '../errors.ts'
import type { Resource } from '../spec/store.ts'

export const nodeKind = 'node'

/** Something a node does, as it described it. */
export interface Capability {
  id: string
  description?: string
  tags: string[]
  inputSchema?: unknown
  outputSchema?: unknown
  examples?: unknown
}

/** Where its program is: at an address that somebody gave, or in instances of something deployed here and nowhere else. */
export type NodePlace =
  | {
      at: 'address' /** A user's credential named it, so that it may be on this machine. */
      loopback: boolean
    }
  | { at: 'deployment'; kind: DeploymentKind; name: string; members: NodeMember[] }

/** One instance of a deployment, that registered itself. */
export interface NodeMember {
  /** The platform's. */
  instanceId: string
  /** That its program listens on. */
  port: number
  /** What its process calls itself; '' when it does not say. */
  processId: string
}

export const lifecycles = ['starting', 'ready', 'degraded', 'offline'] as const
export type Lifecycle = (typeof lifecycles)[number]

export interface NodeBody {
  /** As given, or as chosen among what was given; no slash at its end. */
  baseUrl: string
  place: NodePlace
  /** Of the process at an address: another one means that the one before is gone, with what it was doing. */
  processId: string
  version: string
  deploymentType: string
  teamId: string
  reasoners: Capability[]
  skills: Capability[]
  tags: string[]
  lifecycle: Lifecycle
  healthScore: number | null
  /** Between two signs of life, as it says; null when it does not. */
  heartbeatMs: number | null
  /** What it says besides, told to who asks for it. */
  described: Record<string, unknown>
  registeredAt: number
}

export type AgentNode = Resource<NodeBody>

const idPattern = /^[A-Za-z0-9_][\w:@-]{0,127}$/

/** @throws bad_request */
export function checkNodeId(id: string): string {
  if (idPattern.test(id)) return id
  throw new PlatformError(
    'bad_request',
    `id: ${JSON.stringify(id.slice(0, 60))} is no name of a node: 1 to 128 letters, digits, dashes and underscores`,
  )
}

export function unknownNode(id: string): PlatformError {
  return new PlatformError('not_found', `node not found: there is no node "${id.slice(0, 60)}" here`)
}
