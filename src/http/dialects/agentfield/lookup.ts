import { PlatformError } from '../../../errors.ts'
import type { Execution, Executions } from '../../../executions/index.ts'
import type { AgentNode, Nodes } from '../../../nodes/index.ts'
import { innerSource, runSource } from './sources.ts'
import { innerId } from './view.ts'

/** The node that a call by this name is for; null: none, or the agent that is deployed under it, whatever else took the name before. */
export async function nodeCalled(
  { nodes, isDeployed }: { nodes: Nodes; isDeployed: (workspace: string, name: string) => boolean },
  workspace: string,
  name: string,
): Promise<AgentNode | null> {
  const found = await nodes.find(workspace, name)
  const place = found?.body.place
  const isOther = place?.at === 'deployment' && !(place.kind === 'agent' && place.name === name)
  return isOther && isDeployed(workspace, name) ? null : found
}

/** One of this protocol's, or one that an agent told of by its own name for it. */
export function findExecution(executions: Executions, workspace: string, id: string): Execution | null {
  const found = executions.get(workspace, id) ?? executions.get(workspace, innerId(workspace, id))
  return found !== null && (found.source === runSource || found.source === innerSource) ? found : null
}

/** @throws not_found, as this protocol says it */
export function requireExecution(executions: Executions, workspace: string, id: string): Execution {
  const found = findExecution(executions, workspace, id)
  if (found === null) throw new PlatformError('not_found', 'execution not found')
  return found
}
