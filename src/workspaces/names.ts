import { PlatformError } from '../errors.ts'

const workspaceNameLengthMax = 63

/** First path segments that the platform itself answers: a workspace of such a name could not be reached. */
const reservedNames = new Set([
  ...['api', 'run', 'oauth', 'login', 'mcp', 'console', 'agents', 'agent-execution', 'agents-metrics'],
  ...['activity', 'events', 'tasks', 'preview', 'healthz', 'readyz', 'metrics', 'assets', '.well-known', '-'],
])
const versionName = /^v\d+$/
const namePattern = /^[a-z0-9]([a-z0-9-]*[a-z0-9])?$/

export interface NameRefusal {
  reason: 'invalid' | 'forbidden_reserved' | 'forbidden_v_prefix'
  message: string
}

/** Whether addresses that begin with it are the platform's own, so that no workspace can be meant. */
export function isReservedWorkspaceName(name: string): boolean {
  return reservedNames.has(name) || versionName.test(name)
}

/** Null for a name that a workspace may have. */
export function workspaceNameRefusal(name: string): NameRefusal | null {
  const shown = name.slice(0, 80)
  if (reservedNames.has(name)) {
    return { reason: 'forbidden_reserved', message: `name: "${shown}" is reserved by the platform` }
  }
  if (versionName.test(name)) {
    return { reason: 'forbidden_v_prefix', message: `name: "${shown}" is reserved for versions of the API` }
  }
  if (name.length > workspaceNameLengthMax || !namePattern.test(name)) {
    return {
      reason: 'invalid',
      message:
        `name: "${shown}" is not a workspace name: 1 to ${workspaceNameLengthMax} characters of a-z, 0-9 and -, ` +
        'beginning and ending with a letter or digit',
    }
  }
  return null
}

/** @throws bad_request */
export function requireWorkspaceName(name: string): void {
  const refusal = workspaceNameRefusal(name)
  if (refusal !== null) {
    throw new PlatformError('bad_request', refusal.message, { details: { reason: refusal.reason } })
  }
}
