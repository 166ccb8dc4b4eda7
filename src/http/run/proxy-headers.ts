import { PlatformError } from '../../errors.ts'
import type { AnswerHead, OutgoingRequest } from '../../lib/http1/index.ts'
import type { ProxyOptions } from './proxy.ts'

/** What of a request and its answer is passed on, what is not, and what is told in its place. */

type AddressOptions = Pick<
  ProxyOptions,
  'port' | 'publicOrigin' | 'publicPrefix' | 'consumed' | 'ownCookie' | 'requestHeaders'
>

const hopByHop = [
  'connection',
  'keep-alive',
  'proxy-authenticate',
  'proxy-authorization',
  'proxy-connection',
  'te',
  'trailer',
  'transfer-encoding',
  'upgrade',
]
/** Of a request: told by the platform alone, or by how it is sent. */
const ownOfRequests = new Set([
  ...hopByHop,
  'content-length',
  'expect',
  'forwarded',
  'host',
  'x-blaxel-authorization',
  'x-blaxel-preview-token',
  'x-forwarded-for',
  'x-forwarded-host',
  'x-forwarded-prefix',
  'x-forwarded-proto',
  'x-real-ip',
])
/** Of an answer; the last two say that an error is the platform's, which only the platform may. */
const ownOfAnswers = new Set([...hopByHop, 'x-blaxel-source', 'x-blaxel-error-code'])
/** Would speak for the whole origin, which many programs share when they are addressed by path. */
const originWide = new Set([
  'clear-site-data',
  'service-worker-allowed',
  'strict-transport-security',
  'alt-svc',
  'public-key-pins',
])
const plainPath = /^[\x21-\x7e]+$/
const lengthPattern = /^\d{1,15}$/
const foreignPattern = /[^\t\r\n\x20-\x7e\x80-\xff]/
/** Methods whose requests say that they have no body. */
const withBody = new Set(['POST', 'PUT', 'PATCH'])

/** The request as a program inside gets it: with a body as long as it says, or in chunks. @throws bad_request */
export function outgoingRequest(
  { method, headers }: Request,
  body: ReadableStream<Uint8Array> | null,
  options: Pick<ProxyOptions, 'path'> & AddressOptions,
): OutgoingRequest {
  let head = `${method} ${sendablePath(options.path)} HTTP/1.1\r\n`
  forEachHeader(headers, options, (name, value) => {
    head += `${name}: ${value}\r\n`
  })
  // Told anew, never copied: where it said something else than what follows, the next request would begin in the middle.
  const told = body === null ? null : headers.get('content-length')
  const bodyBytes = told !== null && lengthPattern.test(told) ? Number(told) : null
  if (bodyBytes !== null) head += `content-length: ${bodyBytes}\r\n`
  else if (body !== null) head += 'transfer-encoding: chunked\r\n'
  else if (withBody.has(method)) head += 'content-length: 0\r\n'
  if (foreignPattern.test(head)) {
    throw new PlatformError('bad_request', 'The request has characters in its headers that cannot be sent on')
  }
  return { method, head: `${head}\r\n`, body, bodyBytes }
}

/** Calls `put` with each header that a program inside gets of a request, but for the length of its body. */
export function forEachHeader(
  incoming: Headers,
  options: AddressOptions,
  put: (name: string, value: string) => void,
): void {
  const { publicOrigin, publicPrefix, port, ownCookie } = options
  const listed = listedBy(incoming.get('connection'))
  const consumed = options.consumed.headers
  const set = options.requestHeaders === undefined ? null : new Headers(options.requestHeaders)
  const schemeEnd = publicOrigin.indexOf('://')
  const host = publicOrigin.slice(schemeEnd + 3)
  put('host', publicPrefix === '' ? host : `localhost:${port}`)
  incoming.forEach((value, name) => {
    if (ownOfRequests.has(name) || consumed.includes(name) || listed?.includes(name) || set?.has(name)) return
    const kept = name === 'cookie' && ownCookie !== undefined ? withoutCookie(value, ownCookie) : value
    if (kept !== null) put(name, kept)
  })
  put('x-forwarded-host', host)
  put('x-forwarded-proto', publicOrigin.slice(0, Math.max(schemeEnd, 0)))
  if (publicPrefix !== '') put('x-forwarded-prefix', sendablePath(publicPrefix))
  set?.forEach((value, name) => {
    put(name, value)
  })
}

/** What a client gets of the headers of an answer. */
export function answerHeaders({ headers: came, framing }: AnswerHead, options: AddressOptions): Headers {
  const headers = new Headers()
  const { publicPrefix } = options
  let listed: string[] | null = null
  for (let at = 0; at < came.length; at += 2) {
    if (came[at] === 'connection') listed = [...(listed ?? []), ...(listedBy(came[at + 1] ?? null) ?? [])]
  }
  for (let at = 0; at < came.length; at += 2) {
    const name = came[at] ?? ''
    const value = came[at + 1] ?? ''
    if (ownOfAnswers.has(name) || listed?.includes(name)) continue
    if (publicPrefix !== '' && originWide.has(name)) continue
    if (name === 'set-cookie') headers.append(name, scopedCookie(value, publicPrefix))
    else if (name === 'location') headers.append(name, publicLocation(value, options))
    // Beside chunks it counts for nothing; twice the same is once.
    else if (name === 'content-length') {
      if (framing.kind !== 'chunked') headers.set(name, value)
    } else headers.append(name, value)
  }
  return headers
}

/** Headers that are for this connection alone, null for none. */
function listedBy(connection: string | null): string[] | null {
  if (connection === null || connection === 'keep-alive' || connection === 'close') return null
  return connection.split(',').map((name) => name.trim().toLowerCase())
}

/** As it came; what no request line can hold is encoded. @throws bad_request */
function sendablePath(path: string): string {
  if (plainPath.test(path)) return path
  try {
    return path.replace(/[^\x21-\x7e]+/g, encodeURIComponent)
  } catch (cause) {
    throw new PlatformError('bad_request', 'The path of the request is no text', { cause })
  }
}

/** Null where nothing is left. */
function withoutCookie(cookies: string, name: string): string | null {
  if (!cookies.includes(name)) return cookies
  const kept = cookies.split(';').filter((pair) => pair.split('=', 1)[0]?.trim() !== name)
  return kept.length === 0 ? null : kept.join(';').trim()
}

/** A redirect to the program's own address, as it knows it, leads to where the client reaches it. */
function publicLocation(location: string, { port, publicOrigin, publicPrefix }: AddressOptions): string {
  const own = new RegExp(
    `^http://(localhost|127\\.0\\.0\\.1|0\\.0\\.0\\.0|\\[::1\\]):${port}(?=[/?#]|$)`,
    'i',
  )
  if (own.test(location)) return location.replace(own, `${publicOrigin}${publicPrefix}`)
  if (publicPrefix !== '' && location.startsWith('/') && !location.startsWith('//'))
    return publicPrefix + location
  return location
}

/** Kept to this program's addresses: never to a parent domain, and under its own path where it shares an origin. */
function scopedCookie(cookie: string, publicPrefix: string): string {
  const [pair = '', ...attributes] = cookie.split(';').map((part) => part.trim())
  let path = '/'
  const kept = attributes.filter((attribute) => {
    const [name = '', value = ''] = attribute.split('=')
    if (/^path$/i.test(name)) path = value.startsWith('/') ? value : '/'
    return !/^domain$/i.test(name) && !(publicPrefix !== '' && /^path$/i.test(name))
  })
  if (publicPrefix !== '') kept.push(`Path=${publicPrefix}${path}`)
  return [pair, ...kept].join('; ')
}
