import type { Principal } from '../../../access/index.ts'
import { PlatformError } from '../../../errors.ts'
import type { Nodes } from '../../../nodes/index.ts'

/** Who is deployed here speaks for what its own node works on. @throws forbidden */
export async function refuseStrangers(
  principal: Principal | null,
  workspace: string,
  nodeId: string,
  nodes: Nodes,
): Promise<void> {
  if (principal?.kind !== 'workload') return
  const place = (await nodes.find(workspace, nodeId))?.body.place
  const { kind, name } = principal.resource
  const isOwn =
    place === undefined
      ? kind === 'agent' && name === nodeId
      : place.at === 'deployment' && place.kind === kind && place.name === name
  if (isOwn) return
  throw new PlatformError('forbidden', `the node "${nodeId}" is another program, which speaks for itself`)
}
