import { PlatformError } from '../../../errors.ts'
import type { Execution, Executions } from '../../../executions/index.ts'
import { innerSource, runSource } from './sources.ts'
import { innerId } from './view.ts'

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
