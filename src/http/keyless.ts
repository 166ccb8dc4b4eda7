import type { Identity } from '../access/index.ts'
import { plainAddress } from '../lib/addresses.ts'
import { isLoopbackAddress } from '../lib/loopback.ts'

/** What browsers and proxies add: a page of strangers, or somebody behind a proxy, is not a program of this host. */
const tellsOfOthers = ['origin', 'referer', 'sec-fetch-site', 'x-forwarded-for', 'forwarded', 'via']

/**
 * Lets programs of this host in without a credential, as a member of one workspace, where a route says so. For clients of
 * protocols that know none; the operator asks for it, and only a platform that listens on loopback alone has it.
 */
export function keylessAccess(
  workspace: string,
): (headers: Headers, address: string | null) => Identity | undefined {
  const identity: Identity = {
    kind: 'service_account',
    id: 'keyless',
    name: 'keyless',
    roles: new Map([[workspace, 'member']]),
  }
  return (headers, address) => {
    if (address === null || !isLoopbackAddress(plainAddress(address))) return undefined
    return tellsOfOthers.some((name) => headers.has(name)) ? undefined : identity
  }
}
