export const roles = ['admin', 'member'] as const
export type Role = (typeof roles)[number]

/** Who makes a request, in the workspace it acts in ('' on routes that act in none). */
export type Principal =
  | { kind: 'user'; id: string; name: string; workspace: string; role: Role }
  | { kind: 'service_account'; id: string; name: string; workspace: string; role: Role }
  | {
      kind: 'workload'
      id: string
      name: string
      workspace: string
      resource: { kind: string; name: string }
      labels: Record<string, string>
    }

/** Whom a credential belongs to, before a workspace is chosen. Shared by all requests: never changed. */
export type Identity =
  | { kind: 'user' | 'service_account'; id: string; name: string; roles: ReadonlyMap<string, Role> }
  | { kind: 'workload'; principal: Extract<Principal, { kind: 'workload' }> }

/** The workspaces an identity can act in. */
export function workspacesOf(identity: Identity): string[] {
  return identity.kind === 'workload' ? [identity.principal.workspace] : [...identity.roles.keys()]
}

/** Null when the identity has no part in the workspace. */
export function principalIn(identity: Identity, workspace: string): Principal | null {
  if (identity.kind === 'workload') {
    return identity.principal.workspace === workspace ? identity.principal : null
  }
  const role = identity.roles.get(workspace)
  if (role === undefined) return null
  return { kind: identity.kind, id: identity.id, name: identity.name, workspace, role }
}

/**
 * The principal of a route that acts in no workspace: in the only one it has, else in none. Null for workloads,
 * which have no account.
 */
export function accountPrincipal(identity: Identity): Principal | null {
  if (identity.kind === 'workload') return null
  const { kind, id, name, roles } = identity
  const [only] = roles.size === 1 ? [...roles] : []
  return { kind, id, name, workspace: only?.[0] ?? '', role: only?.[1] ?? 'member' }
}
