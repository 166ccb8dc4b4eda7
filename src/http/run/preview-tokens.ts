import type { PreviewTarget } from '../../sandboxes/index.ts'

/** How a visitor of a private preview shows that he may, and keeps showing it. */

const tokenHeader = 'x-blaxel-preview-token'
const tokenParameter = 'bl_preview_token'
/** Also a name that programs use for themselves: it counts as ours only where it opens the preview. */
const plainTokenParameter = 'token'
const cookieName = 'hutch_preview_token'

export interface Admission {
  admitted: boolean
  /** A token came, be it a wrong one. */
  presented: boolean
  /** What must not reach the program: names of headers and query parameters. */
  consumed: { headers: string[]; query: string[] }
  /** The program's own cookies, where ours was among them. */
  cookies: string | null
  /** To be kept by the browser: the page that was asked for has scripts, images and sockets that bring no token. */
  setCookie: string | null
}

export interface VisitedPlace {
  publicOrigin: string
  /** Not '' where the origin is shared with whatever else: there are no cookies then. */
  publicPrefix: string
}

export const publicAdmission: Admission = {
  admitted: true,
  presented: false,
  consumed: { headers: [tokenHeader], query: [tokenParameter] },
  cookies: null,
  setCookie: null,
}

/** The header goes before the parameter, that before the cookie; the first that opens the preview counts. */
export async function admission(
  request: Request,
  search: string,
  preview: PreviewTarget,
  place: VisitedPlace,
  admits: (token: string | null) => Promise<boolean>,
): Promise<Admission> {
  if (preview.public) return publicAdmission
  const query = new URLSearchParams(search)
  const cookies = cookiesOf(request)
  const ownSite = place.publicPrefix === ''
  const candidates = [
    { token: request.headers.get(tokenHeader), from: 'header' },
    { token: query.get(tokenParameter), from: 'query' },
    { token: ownSite && !isCrossSite(request, place) ? cookies.token : null, from: 'cookie' },
    { token: query.get(plainTokenParameter), from: 'plain' },
  ] as const
  const consumed = {
    headers: [...publicAdmission.consumed.headers],
    query: [...publicAdmission.consumed.query],
  }
  if (cookies.token !== null && cookies.rest === '') consumed.headers.push('cookie')
  const kept = cookies.token !== null && cookies.rest !== '' ? cookies.rest : null
  for (const { token, from } of candidates) {
    if (token === null || token === '' || !(await admits(token))) continue
    const inQuery = from === 'query' || from === 'plain'
    if (from === 'plain') consumed.query.push(plainTokenParameter)
    const setCookie = inQuery && ownSite && isNavigation(request) ? cookieFor(token, place) : null
    return { admitted: true, presented: true, consumed, cookies: kept, setCookie }
  }
  const presented = candidates.some(({ token, from }) => token !== null && from !== 'plain')
  return { admitted: false, presented, consumed, cookies: kept, setCookie: null }
}

function cookiesOf(request: Request): { token: string | null; rest: string } {
  let token: string | null = null
  const rest = (request.headers.get('cookie') ?? '').split(';').filter((part) => {
    const [name = '', value = ''] = part.trim().split('=', 2)
    if (name === cookieName) token ??= value
    return name !== cookieName && name !== ''
  })
  return { token, rest: rest.join(';').trim() }
}

/** A page of another origin that uses the visitor's cookie. Browsers tell with whatever could change or read anything. */
function isCrossSite(request: Request, { publicOrigin }: VisitedPlace): boolean {
  const origin = request.headers.get('origin')
  return origin !== null && origin !== publicOrigin
}

function isNavigation(request: Request): boolean {
  if (request.method !== 'GET') return false
  const destination = request.headers.get('sec-fetch-dest')
  if (destination !== null) return /^(?:document|iframe|frame|embed|object)$/.test(destination)
  return (request.headers.get('accept') ?? '').includes('text/html')
}

/**
 * Of this host alone, out of reach of scripts. Where browsers trust the address it also works in a frame of somebody
 * else's page, but for that page only.
 */
function cookieFor(token: string, { publicOrigin }: VisitedPlace): string {
  const { protocol, hostname } = new URL(publicOrigin)
  const trusted = protocol === 'https:' || hostname === 'localhost' || hostname.endsWith('.localhost')
  const reach = trusted ? 'SameSite=None; Secure; Partitioned' : 'SameSite=Lax'
  return `${cookieName}=${token}; Path=/; HttpOnly; ${reach}`
}
