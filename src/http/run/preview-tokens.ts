import type { PreviewTarget } from '../../sandboxes/index.ts'
import { withoutParameters } from './proxy.ts'

/** How a visitor of a private preview shows that he may, and keeps showing it. */

const tokenHeader = 'x-blaxel-preview-token'
const tokenParameter = 'bl_preview_token'
/** Also a name that programs use for themselves: it counts as ours only where it opens the preview. */
const plainTokenParameter = 'token'
const cookieName = 'hutch_preview_token'
/** Pages of a parent domain, or of its other hosts, may give the browser more cookies of this name. */
const cookiesMax = 8

export interface Admission {
  admitted: boolean
  /** That opened it; null where none was needed. */
  token: string | null
  /** A token came, be it a wrong one. */
  presented: boolean
  /** What must not reach the program: names of headers and query parameters. */
  consumed: { headers: string[]; query: string[] }
  /** What reaches it in another form: its own cookies, where ours was among them, and where it was come from. */
  headers: Record<string, string>
  /** To be kept by the browser: the page that was asked for has scripts, images and sockets that bring no token. */
  setCookie: string | null
}

export interface VisitedPlace {
  publicOrigin: string
  /** Not '' where the origin is shared with whatever else: there are no cookies then. */
  publicPrefix: string
}

const publicAdmission: Admission = {
  admitted: true,
  token: null,
  presented: false,
  consumed: { headers: [tokenHeader], query: [tokenParameter] },
  headers: {},
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
  const kept = ownSite && !isCrossSite(request, place) ? cookies.tokens : []
  const candidates = [
    { token: request.headers.get(tokenHeader), from: 'header' },
    { token: query.get(tokenParameter), from: 'query' },
    ...kept.map((token) => ({ token, from: 'cookie' }) as const),
    { token: query.get(plainTokenParameter), from: 'plain' },
  ] as const
  const consumed = {
    headers: [...publicAdmission.consumed.headers],
    query: [...publicAdmission.consumed.query],
  }
  const headers: Record<string, string> = {}
  if (cookies.tokens.length > 0) {
    if (cookies.rest === '') consumed.headers.push('cookie')
    else headers.cookie = cookies.rest
  }
  const referer = request.headers.get('referer')
  if (referer !== null) headers.referer = await withoutTokens(referer, admits)
  for (const { token, from } of candidates) {
    if (token === null || token === '' || !(await admits(token))) continue
    const inQuery = from === 'query' || from === 'plain'
    if (from === 'plain') consumed.query.push(plainTokenParameter)
    const setCookie = inQuery && ownSite && isNavigation(request) ? cookieFor(token, place) : null
    return { admitted: true, token, presented: true, consumed, headers, setCookie }
  }
  const presented = candidates.some(({ token, from }) => token !== null && from !== 'plain')
  return { admitted: false, token: null, presented, consumed, headers, setCookie: null }
}

function cookiesOf(request: Request): { tokens: string[]; rest: string } {
  const tokens: string[] = []
  const rest = (request.headers.get('cookie') ?? '').split(';').filter((part) => {
    const [name = '', value = ''] = part.trim().split('=', 2)
    if (name === cookieName && tokens.length < cookiesMax) tokens.push(value)
    return name !== cookieName && name !== ''
  })
  return { tokens, rest: rest.join(';').trim() }
}

/** Pages tell what they load where they are, and the token that opened them is part of their address. */
async function withoutTokens(
  address: string,
  admits: (token: string | null) => Promise<boolean>,
): Promise<string> {
  const question = address.indexOf('?')
  if (question === -1) return address
  const search = address.slice(question)
  const names = [tokenParameter]
  if (await admits(new URLSearchParams(search).get(plainTokenParameter))) names.push(plainTokenParameter)
  return address.slice(0, question) + withoutParameters(search, names)
}

/**
 * A page of another origin that uses the visitor's cookie, were it only to run what it finds here as a script of its own.
 * It may lead the visitor here, or show the preview in a frame. Browsers tell the origin with whatever could change
 * something or be read; the rest they tell apart where they trust the address.
 */
function isCrossSite(request: Request, { publicOrigin }: VisitedPlace): boolean {
  const origin = request.headers.get('origin')
  if (origin !== null && origin !== publicOrigin) return true
  const site = request.headers.get('sec-fetch-site')
  const foreign = site === 'cross-site' || site === 'same-site'
  return foreign && request.headers.get('sec-fetch-mode') !== 'navigate'
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
