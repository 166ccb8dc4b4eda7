import { PlatformError } from '../../errors.ts'
import type { Logger } from '../../lib/log.ts'
import { type Previews, type PreviewTarget, type Sandboxes, sandboxApiPort } from '../../sandboxes/index.ts'
import { errorResponse } from '../errors.ts'
import { type ConsumedCredentials, type Route, type RouteContext, route } from '../route.ts'
import { splitUrl } from '../url.ts'
import { gatewayPage, wantsPage } from './gateway-pages.ts'
import { admission, type VisitedPlace } from './preview-tokens.ts'
import { type SandboxApi, serveSandbox, serveSandboxPort } from './sandbox/api.ts'
import { type Visit, whileVisiting } from './visited.ts'

/** The general advice names the API key, which opens no preview. */
const tokenAdvice = {
  action:
    "Send a token of this preview as the header X-Blaxel-Preview-Token or as ?bl_preview_token=; the sandbox's owner makes one.",
  doNot: 'Send an API key: it opens no preview.',
}
const preflightSecondsMax = 600

export interface PreviewGatewayOptions {
  previews: Pick<Previews, 'resolve' | 'resolveHost' | 'admits'> & {
    visit(target: PreviewTarget, token: string | null): Visit
  }
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

  /**
   * Answers a request for a preview's host name, one of ours or its owner's; null for every other host. `host` without
   * port, in lower case.
   */
  async serveHost(request: Request, host: string, connection: PreviewConnection): Promise<Response | null> {
    const { previews } = this.options
    const suffix = this.suffixes.find((candidate) => host.endsWith(candidate))
    const preview = suffix
      ? await previews.resolve(host.slice(0, -suffix.length))
      : await previews.resolveHost(host)
    if (!suffix && preview === null) return null
    const { path } = splitUrl(request.url)
    const { protocol, port } = new URL(connection.origin)
    const publicOrigin = `${protocol}//${host}${port === '' ? '' : `:${port}`}`
    return this.serve(request, preview, path, connection, { publicOrigin, publicPrefix: '' })
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
        handle: async (context) => {
          const { path } = splitUrl(context.request.url)
          const [label = '', ...rest] = path.slice(base.length).split('/')
          const preview = await this.options.previews.resolve(label)
          return this.serve(
            context.request,
            preview,
            rest.length === 0 ? '' : `/${rest.join('/')}`,
            context,
            {
              publicOrigin: context.origin,
              publicPrefix: base + label,
            },
          )
        },
      }),
    ]
  }

  private async serve(
    request: Request,
    preview: PreviewTarget | null,
    path: string,
    connection: PreviewConnection,
    place: VisitedPlace,
  ): Promise<Response> {
    if (!preview) {
      const error = new PlatformError(
        'route_not_found',
        'there is no such preview: it was deleted, has ended or never was',
      )
      const page = wantsPage(request) ? gatewayPage(error, null) : null
      if (page) return page
      throw error
    }
    try {
      return dressed(await this.answer(request, preview, path, connection, place), preview)
    } catch (error) {
      if (!PlatformError.is(error)) throw error
      const page =
        wantsPage(request) && preview.port !== sandboxApiPort ? gatewayPage(error, preview.port) : null
      if (page) return dressed(page, preview)
      const failure = errorResponse(error, 'gateway', {
        log: this.options.log,
        now: Date.now(),
        requestId: '',
        ...(error.status === 401 ? { advice: tokenAdvice } : {}),
      })
      // As on every answer of the sandbox's API, so that a page with a session can read what is wrong.
      if (preview.port === sandboxApiPort) failure.headers.set('access-control-allow-origin', '*')
      return dressed(failure, preview)
    }
  }

  private async answer(
    request: Request,
    preview: PreviewTarget,
    path: string,
    connection: PreviewConnection,
    place: VisitedPlace,
  ): Promise<Response> {
    const { search } = splitUrl(request.url)
    const { previews, sandboxes, api } = this.options
    const shown = await admission(request, search, preview, place, (token) => previews.admits(preview, token))
    if (!shown.admitted) {
      if (isPreflight(request)) return preflight(request)
      throw refusal(shown.presented)
    }
    const visit = previews.visit(preview, shown.token)
    const lease = await sandboxes
      .acquire(preview.workspace, preview.sandbox, request.signal)
      .catch((error) => {
        visit.end()
        throw error
      })
    const incoming = {
      request,
      path,
      search,
      ...place,
      consumed: {
        headers: [...connection.consumed.headers, ...shown.consumed.headers],
        query: [...connection.consumed.query, ...shown.consumed.query],
      },
      credentialed: !preview.public,
      requestHeaders: {
        ...shown.headers,
        ...preview.requestHeaders,
      },
      upgrade: connection.upgrade && whileVisiting(connection.upgrade, visit),
      sendFile: connection.sendFile,
      visit,
    }
    if (preview.port === sandboxApiPort) return serveSandbox(lease, incoming, api)
    const answer = await serveSandboxPort(lease, incoming, preview.port)
    if (shown.setCookie !== null && answer.status !== 101)
      answer.headers.append('set-cookie', shown.setCookie)
    return answer
  }
}

function refusal(presented: boolean): PlatformError {
  if (presented) {
    const message = 'this token does not open this preview: it is wrong, was deleted or has expired'
    return new PlatformError('authentication_failed', message)
  }
  const message =
    'this preview is private: send a token as the header X-Blaxel-Preview-Token or as ?bl_preview_token='
  return new PlatformError('authentication_required', message)
}

/** With the headers that the preview's owner wants on every answer. */
function dressed(response: Response, preview: PreviewTarget): Response {
  if (response.status === 101) return response
  for (const [name, value] of Object.entries(preview.responseHeaders)) response.headers.set(name, value)
  return response
}

/**
 * Browsers ask whether they may send the token before they send it. The program cannot be asked without one; whether a
 * page may read the answer is still its, or its owner's, to say.
 */
function preflight(request: Request): Response {
  return new Response(null, {
    status: 204,
    headers: {
      'access-control-allow-origin': request.headers.get('origin') ?? '*',
      'access-control-allow-methods': 'GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS',
      'access-control-allow-headers': request.headers.get('access-control-request-headers') ?? '*',
      'access-control-max-age': String(preflightSecondsMax),
      vary: 'Origin, Access-Control-Request-Headers',
    },
  })
}

function isPreflight(request: Request): boolean {
  return request.method === 'OPTIONS' && request.headers.has('origin')
}
