/** Which revision a request goes to. */
import type { DeploymentKind } from './kinds.ts'
import type { Traffic } from './record.ts'

/** The cookie by which a client stays with a revision. */
export function stickyCookieName(kind: DeploymentKind, name: string): string {
  return `hutch-revision-${kind}-${name}`
}

/**
 * The canary for as many of 100 requests as it is to get, else the active one; a client that met one of them keeps to it.
 * `chance` is in [0, 1). Null while nothing is served.
 */
export function pick(traffic: Traffic, sticky: string | null, chance: number): string | null {
  const { active, canary, canaryPercent } = traffic
  if (sticky !== null && (sticky === active || (sticky === canary && canaryPercent > 0))) return sticky
  return canary !== null && chance * 100 < canaryPercent ? canary : active
}

export function stickyValue(cookie: string | null, cookieName: string): string | null {
  for (const part of (cookie ?? '').split(';')) {
    const at = part.indexOf('=')
    if (at > 0 && part.slice(0, at).trim() === cookieName) return part.slice(at + 1).trim()
  }
  return null
}

export function stickyCookie(
  cookieName: string,
  revisionId: string,
  options: { ttlSeconds: number; path: string },
): string {
  const { ttlSeconds, path } = options
  return `${cookieName}=${revisionId}; Path=${path}; Max-Age=${ttlSeconds}; HttpOnly; SameSite=Lax`
}
