import { PlatformError } from '../../errors.ts'
import type { Logger } from '../../lib/log.ts'
import type { Previews, PreviewTarget, Sandboxes } from '../../sandboxes/index.ts'
import { errorResponse } from '../errors.ts'
import { type ConsumedCredentials, type Route, type RouteContext, route } from '../route.ts'
import { type SandboxApi, serveSandbox, serveSandboxPort } from './sandbox/api.ts'
import { splitUrl } from './sandbox.ts'
import { waitingPage } from './waiting-page.ts'

/** A preview of this port is of the sandbox's own API: a session. */
const apiPort = 443
const tokenHeader = 'x-blaxel-preview-token'
const tokenParameter = 'bl_preview_token'
/** Also a name that programs use for themselves: it counts as ours only where a token is needed and none other came. */
const plainTokenParameter = 'token'

export interface PreviewGatewayOptions {
  previews: Pick<Previews, 'resolve' | 'admits'>
  sandboxes: Pick<Sandboxes, 'acquire'>
  /** Previews by host name are `<label>.preview.<domain>`. */
  domains: string[]
  api: SandboxApi
  log: Logger
}

/** What the gateway needs of a request besides the request. */
export interface PreviewConnection {
  readonly origin: string
  readonly consumed: ConsumedCredentials
  readonly upgrade: RouteContext<unknown, unknown, unknown>['upgrade']
  readonly sendFile: RouteContext<unknown, unknown, unknown>['sendFile']
}

/** Serves ports of sandboxes to whoever has the address or, for private previews, a token. */
export class PreviewGateway {
  private readonly suffixes: string[]

  constructor(private readonly options: PreviewGatewayOptions) {
    this.suffixes = options.domains.map((domain) => `.preview.${domain.toLowerCase()}`)
  }

  /** Answers a request for a preview's host name; null for every other host. `host` without port, in lower case. */
  serveHost(request: Request, host: string, connection: PreviewConnection): Promise<Response> | null {
    const suffix = this.suffixes.find((candidate) => host.endsWith(candidate))
    if (!suffix) return null
    const label = host.slice(0, -suffix.length)
    const { path } = splitUrl(request.url)
    const { protocol, port } = new URL(connection.origin)
    const publicOrigin = `${protocol}//${host}${port === '' ? '' : `:${port}`}`
    return this.serve(request, label, path, connection, { publicOrigin, publicPrefix: '' })
  }

  /** Previews by path, for programs that resolve no such host names. */
  routes(): Route[] {
    const base = '/-/preview/'
    return [
      route({
        method: 'ALL',
        path: '/-/preview/{label}/{path*}',
        access: 'public',
        errors: 'gateway',
        summary: 'A preview, by path',
        tag: 'run',
        handle: (context) => {
          const { path } = splitUrl(context.request.url)
          const [label = '', ...rest] = path.slice(base.length).split('/')
          return this.serve(context.request, label, rest.length === 0 ? '' : `/${rest.join('/')}`, context, {
            publicOrigin: context.origin,
            publicPrefix: base + label,
          })
        },
      }),
    ]
  }

  private async serve(
    request: Request,
    label: string,
    path: string,
    connection: PreviewConnection,
    place: { publicOrigin: string; publicPrefix: string },
  ): Promise<Response> {
    const preview = await this.options.previews.resolve(label)
    if (!preview)
      throw new PlatformError(
        'route_not_found',
        'there is no such preview: it was deleted, has ended or never was',
      )
    try {
      return dressed(await this.answer(request, preview, path, connection, place), preview)
    } catch (error) {
      if (!PlatformError.is(error)) throw error
      if (error.code === 'bad_gateway' && wantsPage(request))
        return dressed(waitingPage(preview.port), preview)
      const failure = errorResponse(error, 'gateway', {
        log: this.options.log,
        now: Date.now(),
        requestId: '',
      })
      return dressed(failure, preview)
    }
  }

  private async answer(
    request: Request,
    preview: PreviewTarget,
    path: string,
    connection: PreviewConnection,
    place: { publicOrigin: string; publicPrefix: string },
  ): Promise<Response> {
    const { search } = splitUrl(request.url)
    const presented = presentedToken(request, search, preview)
    if (!(await this.options.previews.admits(preview, presented.token))) {
      // Browsers ask whether they may send the token before they send it.
      if (isPreflight(request)) return new Response(null, { status: 204 })
      throw refusal(presented.token)
    }
    const lease = await this.options.sandboxes.acquire(preview.workspace, preview.sandbox, request.signal)
    const incoming = {
      request,
      path,
      search,
      ...place,
      consumed: {
        headers: [...connection.consumed.headers, tokenHeader],
        query: [...connection.consumed.query, tokenParameter, ...presented.parameters],
      },
      credentialed: !preview.public,
      requestHeaders: preview.requestHeaders,
      upgrade: connection.upgrade,
      sendFile: connection.sendFile,
    }
    return preview.port === apiPort
      ? serveSandbox(lease, incoming, this.options.api)
      : serveSandboxPort(lease, incoming, preview.port)
  }
}

function presentedToken(
  request: Request,
  search: string,
  preview: PreviewTarget,
): { token: string | null; parameters: string[] } {
  const query = new URLSearchParams(search)
  const token = request.headers.get(tokenHeader) ?? query.get(tokenParameter)
  if (token !== null || preview.public) return { token, parameters: [] }
  return { token: query.get(plainTokenParameter), parameters: [plainTokenParameter] }
}

function refusal(token: string | null): PlatformError {
  if (token !== null) {
    const message = 'this token does not open this preview: it is wrong, was deleted or has expired'
    return new PlatformError('authentication_failed', message)
  }
  const message = `this preview is private: send a token as the header X-Blaxel-Preview-Token or as ?${tokenParameter}=`
  return new PlatformError('authentication_required', message)
}

/** With the headers that the preview's owner wants on every answer. */
function dressed(response: Response, preview: PreviewTarget): Response {
  if (response.status === 101) return response
  for (const [name, value] of Object.entries(preview.responseHeaders)) response.headers.set(name, value)
  return response
}

function isPreflight(request: Request): boolean {
  return request.method === 'OPTIONS' && request.headers.has('origin')
}

function wantsPage(request: Request): boolean {
  return request.method === 'GET' && (request.headers.get('accept') ?? '').includes('text/html')
}
