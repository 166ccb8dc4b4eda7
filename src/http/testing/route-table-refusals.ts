import type { App } from '../app.ts'
import type { Route } from '../route.ts'

export interface RefusalCredentials {
  /** The workspace that the valid credentials below belong to. */
  workspace: string
  expiredKey: string
  /** Valid, of a user or service account that is in another workspace only. */
  foreignKey: string
  /** A user of the workspace who is no admin. */
  memberKey: string
  /** Of a sandbox in the workspace. */
  workloadToken: string
  /** Of an instance of something deployed in the workspace. */
  deployedToken: string
}

/**
 * Walks a whole route table and lists every route that lets somebody in who should be refused; [] is what to expect.
 * No handler runs for a refused request, so nothing is changed by the walk. Public and capability routes are left out:
 * `publicPaths` lists them, so that a test can pin them down.
 */
export async function routeTableRefusals(
  app: Pick<App, 'fetch' | 'routes'>,
  credentials: RefusalCredentials,
): Promise<string[]> {
  const violations: string[] = []
  for (const route of app.routes) {
    if (isOpen(route)) continue
    for (const attempt of attemptsOn(route, credentials)) {
      const response = await app.fetch(requestFor(route, attempt.workspace, attempt.headers))
      const body = await response.text()
      if (response.status !== attempt.status) {
        violations.push(
          `${route.method} ${route.path} with ${attempt.name}: ${response.status} ${body.slice(0, 200)}`,
        )
      } else if (!shapeMatches(route, body)) {
        violations.push(
          `${route.method} ${route.path} with ${attempt.name}: wrong error shape ${body.slice(0, 200)}`,
        )
      }
    }
  }
  return violations
}

/** `METHOD path` of the routes that need no credential. */
export function publicPaths(routes: readonly Route[]): string[] {
  return routes
    .filter(isOpen)
    .map((route) => `${route.method} ${route.path}`)
    .sort()
}

interface Attempt {
  name: string
  workspace: string
  headers: Record<string, string>
  status: number
}

function attemptsOn(route: Route, credentials: RefusalCredentials): Attempt[] {
  const { workspace, expiredKey, foreignKey, memberKey, workloadToken, deployedToken } = credentials
  const own = { 'x-blaxel-workspace': workspace }
  const bearer = (credential: string) => ({ ...own, authorization: `Bearer ${credential}` })
  const wrongKey = `bl_${'0'.repeat(48)}`
  const attempts: Attempt[] = [
    { name: 'no key', workspace, headers: own, status: 401 },
    { name: 'a wrong key', workspace, headers: bearer(wrongKey), status: 401 },
    { name: 'a wrong key as x-api-key', workspace, headers: { ...own, 'x-api-key': wrongKey }, status: 401 },
    { name: 'an expired key', workspace, headers: bearer(expiredKey), status: 401 },
    { name: 'a cookie', workspace, headers: { ...own, cookie: `token=${memberKey}` }, status: 401 },
  ]
  if (route.access !== 'account') {
    attempts.push(
      { name: "another workspace's key", workspace, headers: bearer(foreignKey), status: 403 },
      {
        name: 'a key for a workspace that is not there',
        workspace: 'no-such-workspace',
        headers: { ...bearer(memberKey), 'x-blaxel-workspace': 'no-such-workspace' },
        status: 403,
      },
    )
  }
  if (route.access !== 'read' && route.access !== 'workload') {
    attempts.push({ name: 'a sandbox', workspace, headers: bearer(workloadToken), status: 403 })
    if (route.access !== 'deployed') {
      attempts.push({ name: 'something deployed', workspace, headers: bearer(deployedToken), status: 403 })
    }
  }
  if (route.access === 'admin') {
    attempts.push({ name: 'a member', workspace, headers: bearer(memberKey), status: 403 })
  }
  return attempts
}

function requestFor(route: Route, workspace: string, headers: Record<string, string>): Request {
  const path = route.path.replace(/\{([^}*]+)\*?\}/g, (_, name: string) =>
    name === 'workspace' || name === 'workspaceName' ? workspace : name === 'port' ? '3000' : 'x',
  )
  const method = route.method === 'ALL' ? 'GET' : route.method
  return new Request(`http://localhost${path}`, { method, headers })
}

function isOpen(route: Route): boolean {
  return route.access === 'public' || route.access === 'capability'
}

function shapeMatches(route: Route, text: string): boolean {
  // The answer to HEAD has no body to judge.
  if (route.method === 'HEAD') return true
  // A page for people is no error's shape.
  if (text.startsWith('<')) return false
  const body = JSON.parse(text) as { error?: unknown; code?: unknown; message?: unknown; detail?: unknown }
  switch (route.errors) {
    case 'control':
      return (
        typeof body.error === 'string' && typeof body.code === 'number' && typeof body.message === 'string'
      )
    case 'creation':
      return (
        typeof body.error === 'string' && typeof body.code === 'string' && typeof body.message === 'string'
      )
    case 'gateway':
      return typeof body.error === 'object' && body.error !== null && 'origin' in body.error
    case 'xpander':
      return typeof body.detail === 'string' || Array.isArray(body.detail)
    case 'sandbox':
    case 'agentfield':
    case 'oauth':
      return typeof body.error === 'string'
  }
}
