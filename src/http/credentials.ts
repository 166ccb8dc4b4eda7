import { type Identity, looksLikeApiKey } from '../access/index.ts'
import { PlatformError } from '../errors.ts'
import type { ConsumedCredentials, RouteAccess } from './route.ts'

export interface PresentedCredential {
  credential: string
  from: { header: string } | { query: string }
}

const bearerHeaders = ['x-blaxel-authorization', 'authorization'] as const

/**
 * The one credential that counts: x-blaxel-authorization before Authorization before x-api-key, and `?token=`, or
 * a parameter of another name, only where the route takes it. A header that is present but wrong is not made up for by another.
 * @throws authentication_failed for an Authorization that is no bearer
 */
export function presentedCredential(
  headers: Headers,
  search: string,
  queryToken: boolean | string,
): PresentedCredential | null {
  for (const header of bearerHeaders) {
    const value = headers.get(header)
    if (value === null) continue
    const credential = bearer(value)
    if (credential === null) {
      throw new PlatformError(
        'authentication_failed',
        `${header}: send "Bearer" and an API key or access token`,
      )
    }
    return { credential, from: { header } }
  }
  const apiKey = headers.get('x-api-key')
  if (apiKey !== null) return { credential: apiKey, from: { header: 'x-api-key' } }
  const name = queryToken === true ? 'token' : queryToken
  const token = name === false ? null : new URLSearchParams(search).get(name)
  return name === false || token === null ? null : { credential: token, from: { query: name } }
}

/** What must not reach anything behind the platform: what authenticated, and whatever else is a key of ours. */
export function consumedCredentials(
  headers: Headers,
  search: string,
  used: PresentedCredential | null,
): ConsumedCredentials {
  const consumed: ConsumedCredentials = {
    // Never forwarded, whatever they hold.
    headers: ['x-blaxel-authorization', 'x-blaxel-preview-token'],
    query: ['bl_preview_token'],
  }
  if (isConsumed('authorization', headers, used)) consumed.headers.push('authorization')
  if (isConsumed('x-api-key', headers, used)) consumed.headers.push('x-api-key')
  if (search.includes('token=')) {
    const token = new URLSearchParams(search).get('token')
    if (token !== null && (token === used?.credential || looksLikeApiKey(token))) consumed.query.push('token')
  }
  return consumed
}

/** Whether an identity may use a route, in the workspace where it plays the role. @throws forbidden */
export function requireAccess(identity: Identity, access: RouteAccess, workspace: string): void {
  if (identity.kind === 'workload') {
    if (access === 'read' || access === 'workload') return
    if (access === 'deployed' && identity.principal.resource.kind !== 'sandbox') return
    throw new PlatformError(
      'forbidden',
      'Workloads may not do this: use the key of a user or service account',
    )
  }
  if (access === 'admin' && identity.roles.get(workspace) !== 'admin') {
    throw new PlatformError('forbidden', `Only admins of workspace "${workspace}" may do this`)
  }
}

function isConsumed(header: string, headers: Headers, used: PresentedCredential | null): boolean {
  if (used !== null && 'header' in used.from && used.from.header === header) return true
  const value = headers.get(header)
  if (value === null) return false
  const text = bearer(value) ?? value
  return text === used?.credential || looksLikeApiKey(text)
}

function bearer(header: string): string | null {
  const match = /^bearer +([^\s]+) *$/i.exec(header)
  return match?.[1] ?? null
}
