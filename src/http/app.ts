import {
  type Access,
  accountPrincipal,
  type Identity,
  principalIn,
  workloadKey,
  workspacesOf,
} from '../access/index.ts'
import { PlatformError } from '../errors.ts'
import type { Clock } from '../lib/clock.ts'
import { randomText } from '../lib/ids.ts'
import type { Logger } from '../lib/log.ts'
import { parseWith } from './body.ts'
import {
  consumedCredentials,
  type PresentedCredential,
  presentedCredential,
  requireAccess,
} from './credentials.ts'
import { errorResponse } from './errors.ts'
import { type Authority, type Hosts, refuseForeign } from './host.ts'
import type { LargeBodies } from './large-bodies.ts'
import { apiVersionDefault, parseApiVersion } from './list.ts'
import { openapiRoutes } from './openapi.ts'
import { isOwnPage } from './page.ts'
import { type Connection, Context, type Passage } from './passage.ts'
import { type ConsumedCredentials, jsonBodyBytesMax, type Route, type RouteContext } from './route.ts'
import { type CompiledRoute, RouteTable } from './table.ts'
import { splitUrl } from './url.ts'

export type { Connection } from './passage.ts'

/** What a preview or custom-domain host needs of the request beyond the request itself. */
export interface HostContext {
  /** The platform's own origin, not that of the host asked for. */
  readonly origin: string
  readonly requestId: string
  readonly consumed: ConsumedCredentials
  readonly upgrade: RouteContext<unknown, unknown, unknown>['upgrade']
  readonly sendFile: RouteContext<unknown, unknown, unknown>['sendFile']
}

/**
 * Answers for a host that is not the platform's own; null when the host is unknown to it too. What it throws is the
 * answer of a host that is not.
 */
export type HostHook = (
  request: Request,
  host: string,
  context: HostContext,
) => Response | null | Promise<Response | null>

export interface AppOptions {
  routes: Route[]
  access: Access
  hosts: Hosts
  serveHost?: HostHook
  /** Who comes without a credential to a `keyless` route; absent: nobody. */
  keyless?: (headers: Headers, address: string | null) => Identity | undefined
  bodies: LargeBodies
  clock: Clock
  log: Logger
  /** For /v0/openapi.json. */
  version: string
}

export interface App {
  /** The whole table, the document's own route included. */
  readonly routes: readonly Route[]
  fetch(request: Request, connection?: Connection): Promise<Response>
}

/** The one handler of everything that arrives: hosts, authentication, authorisation, parsing, limits, error shapes. */
export function createApp(options: AppOptions): App {
  const routes = [...options.routes, ...openapiRoutes(() => options.routes, options.version)]
  const handler = new Handler(options, new RouteTable(routes))
  return { routes, fetch: (request, connection) => handler.fetch(request, connection ?? null) }
}

const clientClosedRequest = 499

class Handler {
  readonly #options: AppOptions
  readonly #table: RouteTable
  readonly #hosts: Hosts
  readonly #idPrefix = randomText(8)
  #requests = 0

  constructor(options: AppOptions, table: RouteTable) {
    this.#options = options
    this.#table = table
    this.#hosts = options.hosts
  }

  async fetch(request: Request, connection: Connection | null): Promise<Response> {
    const { clock } = this.#options
    const startedMs = clock.monotonic()
    const passage: Passage = {
      request,
      connection,
      requestId: `${this.#idPrefix}-${(++this.#requests).toString(36)}`,
      path: '',
      search: '',
      shape: 'gateway',
      authority: null,
      compiled: null,
      principal: null,
      previewHost: false,
      open: false,
      whole: null,
    }
    let response: Response
    try {
      const answer = this.#answer(passage)
      response = answer instanceof Promise ? await answer : answer
    } catch (error) {
      response = this.#failure(error, passage)
    } finally {
      passage.whole?.used()
    }
    this.#note(passage, response, clock.monotonic() - startedMs)
    return finish(passage, response)
  }

  #failure(error: unknown, passage: Passage): Response {
    // The client is gone, and with it whatever was being done for it: nobody reads this, and nothing is wrong here.
    if (passage.request.signal.aborted && !PlatformError.is(error)) {
      return new Response(null, { status: clientClosedRequest })
    }
    return errorResponse(error, passage.shape, {
      log: this.#options.log,
      now: this.#options.clock.now(),
      requestId: passage.requestId,
      route: passage.compiled?.route.path,
    })
  }

  /** A promise only where there is something to wait for, as each of the steps of a request: an answer costs less without. */
  #answer(passage: Passage): Response | Promise<Response> {
    const { request, connection } = passage
    // Nothing here is a proxy for others, and nothing echoes a request with its credentials.
    const { method } = request
    if (method === 'CONNECT' || method === 'TRACE') {
      throw new PlatformError('method_not_allowed', `${method} is not possible on this platform`)
    }
    const { authority: urlAuthority, path, search } = splitUrl(request.url)
    if (urlAuthority === null) throw new PlatformError('bad_request', 'The request has no Host header')
    passage.path = path
    passage.search = search
    const authority = this.#hosts.read(request, urlAuthority, connection)
    passage.authority = authority
    if (authority.kind !== 'base' && this.#options.serveHost !== undefined) {
      return this.#answerHost(passage, authority, urlAuthority, this.#options.serveHost)
    }
    return this.#answerRoute(passage, authority)
  }

  async #answerHost(
    passage: Passage,
    authority: Authority,
    urlAuthority: string,
    serveHost: HostHook,
  ): Promise<Response> {
    const { request, connection } = passage
    passage.previewHost = true
    const answer = await serveHost(request, authority.host, {
      origin: authority.origin || this.#hosts.originFor(portOf(urlAuthority)),
      requestId: passage.requestId,
      consumed: consumedCredentials(request.headers, passage.search, null),
      upgrade: connection?.upgrade ?? null,
      sendFile: connection?.sendFile ?? null,
    })
    if (answer !== null) return answer
    passage.previewHost = false
    return this.#answerRoute(passage, authority)
  }

  #answerRoute(passage: Passage, authority: Authority): Response | Promise<Response> {
    if (isControlPath(passage.path)) passage.shape = 'control'
    refuseForeign(authority)
    const compiled = this.#match(passage)
    if (compiled === null) return preflight(this.#table.allowed(passage.path))
    return this.#run(compiled, passage)
  }

  /** Null for a preflight, which the platform answers itself: browsers send it without the credential. */
  #match(passage: Passage): CompiledRoute | null {
    const { request, path } = passage
    if (request.method === 'OPTIONS') {
      const found = this.#table.any(path)
      const answersItself = found?.route.isOpen === undefined && isPreflight(request, found)
      if (found !== null && (answersItself || !this.#table.allowed(path).includes('OPTIONS'))) return null
    }
    const compiled = this.#matchOrShape(passage)
    if (compiled === null) {
      const message = `${request.method} ${path.slice(0, 200)} is not a route of this platform`
      throw new PlatformError(passage.shape === 'gateway' ? 'route_not_found' : 'not_found', message)
    }
    passage.compiled = compiled
    passage.open = compiled.route.access === 'public' || compiled.route.access === 'capability'
    passage.shape = compiled.route.errors
    return compiled
  }

  #matchOrShape(passage: Passage): CompiledRoute | null {
    try {
      return this.#table.match(passage.request.method, passage.path)
    } catch (error) {
      passage.shape = this.#table.any(passage.path)?.route.errors ?? passage.shape
      throw error
    }
  }

  async #run(compiled: CompiledRoute, passage: Passage): Promise<Response> {
    const { request, path, search } = passage
    const { route } = compiled
    const params = this.#table.params(compiled, path)
    const opening = passage.open ? false : route.isOpen?.(params as never, passage)
    const isOpen = opening instanceof Promise ? await opening : opening
    let used: PresentedCredential | null = null
    let workspace = ''
    if (passage.open) {
      // Whoever comes is nobody to the platform.
    } else if (isOpen) {
      passage.open = true
      used = await this.#ownCredential(route, passage)
    } else if (route.isOpen !== undefined && request.method === 'OPTIONS' && isPreflight(request, compiled)) {
      return preflight(this.#table.allowed(path))
    } else {
      used = presentedCredential(request.headers, search, route.queryToken ?? false)
      const found = this.#identify(used, passage)
      const identity = (found instanceof Promise ? await found : found) ?? this.#keyless(used, route, passage)
      if (identity === undefined) throw missingCredential(route)
      if (route.access === 'account') {
        passage.principal = accountPrincipal(identity)
        requireAccess(identity, route.access, '')
      } else {
        workspace = chooseWorkspace(identity, compiled, params, request, search)
        passage.principal = principalIn(identity, workspace)
        if (passage.principal === null) throw noPart(workspace)
        requireAccess(identity, route.access, workspace)
      }
    }
    const control = route.errors === 'control' || route.errors === 'creation'
    const apiVersion = control ? parseApiVersion(request.headers.get('blaxel-version')) : apiVersionDefault
    const query = route.query === undefined ? {} : parseWith(route.query, readQuery(search), 'query')
    const context = new Context(passage, this.#options.bodies, {
      params,
      query,
      workspace,
      apiVersion,
      consumed: consumedCredentials(request.headers, search, used),
    })
    if (route.body !== undefined) {
      const input = await context.whole.json(route.bodyBytesMax ?? jsonBodyBytesMax)
      context.whole.said = parseWith(route.body, input, 'body')
    }
    const answer = await route.handle(context as never)
    if (answer instanceof Response) return answer
    return Response.json(answer, { status: route.successStatus ?? 200 })
  }

  #identify(
    used: PresentedCredential | null,
    { connection }: Passage,
  ): Identity | undefined | Promise<Identity> {
    const known = connection?.identity
    if (used === null || (known !== undefined && used.credential === workloadKey)) return known
    return this.#options.access.authenticate(used.credential)
  }

  #keyless(used: PresentedCredential | null, route: Route, passage: Passage): Identity | undefined {
    if (used !== null || !route.keyless) return undefined
    return this.#options.keyless?.(passage.request.headers, passage.connection?.address ?? null)
  }

  /** Where none is asked for, a credential may be the program's own; one of ours is still not its to see. */
  async #ownCredential(route: Route, passage: Passage): Promise<PresentedCredential | null> {
    try {
      const used = presentedCredential(passage.request.headers, passage.search, route.queryToken ?? false)
      if (used === null) return null
      return (await this.#identify(used, passage)) === undefined ? null : used
    } catch {
      return null
    }
  }

  /** One line a request, of the route's template only: paths and queries may hold secrets. */
  #note(passage: Passage, response: Response, elapsedMs: number): void {
    this.#options.log.debug('request', {
      requestId: passage.requestId,
      method: passage.request.method,
      route: passage.compiled?.route.path ?? (passage.previewHost ? 'preview host' : 'none'),
      status: response.status,
      elapsedMs: Math.round(elapsedMs * 100) / 100,
      principal: passage.principal?.id,
      workspace: passage.principal?.workspace,
    })
  }
}

/**
 * The path's workspace, else the header's or the query's, else one that the request hints at, else the only one there is. A workspace that does not
 * exist and one that the caller has no part in get the same answer, so that names cannot be probed.
 */
function chooseWorkspace(
  identity: Identity,
  compiled: CompiledRoute,
  params: Record<string, string>,
  request: Request,
  search: string,
): string {
  if (compiled.workspaceParam !== null) return params[compiled.workspaceParam] ?? ''
  const fromHeader = request.headers.get('x-blaxel-workspace') || null
  const fromQuery = search.includes('workspace=')
    ? new URLSearchParams(search).get('workspace') || null
    : null
  if (fromHeader !== null && fromQuery !== null && fromHeader !== fromQuery) {
    throw new PlatformError('bad_request', 'x-blaxel-workspace and ?workspace= name different workspaces')
  }
  const named = fromHeader ?? fromQuery
  if (named !== null) return named
  const hint = compiled.route.workspaceHint?.(params as never, request.headers) ?? null
  if (hint !== null && principalIn(identity, hint) !== null) return hint
  const own = workspacesOf(identity)
  if (own.length === 1) return own[0]!
  throw new PlatformError(
    'bad_request',
    `x-blaxel-workspace: missing, and this credential belongs to ${own.length} workspaces: name one`,
  )
}

function noPart(workspace: string): PlatformError {
  return new PlatformError(
    'forbidden',
    `This credential has no access to workspace "${workspace.slice(0, 80)}"`,
  )
}

function missingCredential({ keyless }: Route): PlatformError {
  const keys =
    'send "Authorization: Bearer", "X-Blaxel-Authorization: Bearer" or "X-API-Key" with an API key or access token'
  const without = '; programs of this host need none with "hutch up --keyless-workspace NAME"'
  return new PlatformError('authentication_required', `No credential: ${keys}${keyless ? without : ''}`)
}

function readQuery(search: string): Record<string, string | string[]> {
  const query: Record<string, string | string[]> = {}
  for (const [name, value] of new URLSearchParams(search)) {
    if (name === '__proto__') continue
    const before = query[name]
    if (before === undefined) query[name] = value
    else query[name] = Array.isArray(before) ? [...before, value] : [before, value]
  }
  return query
}

function isControlPath(path: string): boolean {
  return path === '/v0' || path.startsWith('/v0/')
}

function portOf(authority: string): number {
  const port = /:(\d+)$/.exec(authority)?.[1]
  return port === undefined ? 80 : Number(port)
}

/** Routes open to all answer their own preflights: what they lead to may have rules of its own. */
function isPreflight(request: Request, compiled: CompiledRoute | null): boolean {
  const access = compiled?.route.access
  if (access === 'public' || access === 'capability') return false
  return request.headers.has('access-control-request-method') && request.headers.has('origin')
}

const preflightSecondsMax = 600

function preflight(allowed: string[]): Response {
  const allow = [...new Set([...allowed, 'OPTIONS'])].join(', ')
  const headers = {
    allow,
    'access-control-allow-methods': allow,
    'access-control-allow-headers': '*, Authorization',
    'access-control-max-age': String(preflightSecondsMax),
  }
  return new Response(null, { status: 204, headers })
}

/** Headers that every answer carries. */
function finish(passage: Passage, response: Response): Response {
  if (passage.previewHost || response.status === 101) return response
  const { request, shape, compiled } = passage
  let answer = response
  if (request.method === 'HEAD' && response.body !== null && compiled?.route.method !== 'ALL') {
    response.body.cancel().catch(() => {})
    answer = new Response(null, response)
  }
  const headers = answer.headers
  headers.set('x-request-id', passage.requestId)
  // Of what a program gave no type, the browser is to look what it is; it gets no part of this origin, see below.
  if (headers.has('content-type') || answer.body === null || compiled?.route.method !== 'ALL')
    headers.set('x-content-type-options', 'nosniff')
  const { open } = passage
  // Without credentials on both sides: a page may call the API with a key it holds, never with the browser's own.
  if (!open && !headers.has('access-control-allow-origin')) headers.set('access-control-allow-origin', '*')
  // A page from inside a sandbox must not run with the platform's origin.
  const contained = (shape === 'gateway' || shape === 'sandbox') && !isOwnPage(response)
  if (contained) headers.append('content-security-policy', 'sandbox')
  return answer
}
