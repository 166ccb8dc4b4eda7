import type { BatchStep, ResourceKey } from '../spec/store.ts'

export function workspaceKey(name: string): ResourceKey {
  return { kind: 'workspace', workspace: '', name }
}

/**
 * Goes into the batch that makes something in a workspace: where the workspace is being deleted at the same time,
 * nothing may be left for whoever takes its name next.
 */
export function inWorkspace(name: string): BatchStep {
  return { op: 'require', key: workspaceKey(name) }
}
