import { PlatformError } from '../../errors.ts'
import type { HostContext } from '../app.ts'
import { type Route, route } from '../route.ts'
import { splitUrl } from '../url.ts'
import { type DeploymentPlane, runDeployment, serveDeployment } from './deployments.ts'
import { applicationPage, wantsPage } from './gateway-pages.ts'

const kind = 'application'
const hyphensMax = 63
/** They are open as a whole, or not at all. */
const anyRequest = { path: '', method: 'GET', isAsync: false }

/** The data plane of applications, by path and by host name. */
export class ApplicationGateway {
  readonly #plane: DeploymentPlane
  readonly #suffixes: string[]
  readonly #findHost: (host: string) => { workspace: string; name: string } | null

  /** Applications by host name are `<name>-<workspace>.app.<domain>`; `findHost` knows those by hosts of their own. */
  constructor({
    domains,
    findHost,
    ...plane
  }: DeploymentPlane & {
    domains: string[]
    findHost?(host: string): { workspace: string; name: string } | null
  }) {
    this.#plane = plane
    this.#findHost = findHost ?? (() => null)
    this.#suffixes = domains.map((domain) => `.app.${domain.toLowerCase()}`)
  }

  routes(): Route[] {
    const plane = this.#plane
    return [
      route({
        method: 'ALL',
        path: '/{workspace}/applications/{applicationName}/{path*}',
        access: 'read',
        isOpen: ({ workspace, applicationName }) =>
          plane.deployments.isOpen(workspace, kind, applicationName, anyRequest),
        errors: 'gateway',
        summary: 'A request to an application',
        tag: 'run',
        handle(context) {
          const { workspace, applicationName: name } = context.params
          return runDeployment(context, { workspace, kind, name, timed: false }, plane)
        },
      }),
    ]
  }

  /** Answers a request for an application's host name; null for every other host. `host` without port, in lower case. */
  async serveHost(request: Request, host: string, context: HostContext): Promise<Response | null> {
    const suffix = this.#suffixes.find((candidate) => host.endsWith(candidate))
    const found = suffix === undefined ? this.#findHost(host) : this.#find(host.slice(0, -suffix.length))
    if (suffix === undefined && found === null) return null
    try {
      return await this.#serve(request, host, found, context)
    } catch (error) {
      const page = PlatformError.is(error) && wantsPage(request) ? applicationPage(error) : null
      if (page === null) throw error
      return page
    }
  }

  async #serve(
    request: Request,
    host: string,
    found: { workspace: string; name: string } | null,
    context: HostContext,
  ): Promise<Response> {
    if (found === null) {
      throw new PlatformError(
        'workload_not_found',
        'there is no such application: it was deleted or never was',
      )
    }
    const { protocol, port } = new URL(context.origin)
    const { path, search } = splitUrl(request.url)
    return await serveDeployment(
      {
        request,
        path: path || '/',
        search,
        publicOrigin: `${protocol}//${host}${port === '' ? '' : `:${port}`}`,
        publicPrefix: '',
        consumed: context.consumed,
        upgrade: context.upgrade,
        ...found,
        kind,
        timed: false,
      },
      this.#plane,
    )
  }

  /** Both names may have hyphens: of several that would do it is the one with the longest name. */
  #find(label: string): { workspace: string; name: string } | null {
    const words = label.split('-')
    if (words.length > hyphensMax) return null
    for (let at = words.length - 1; at > 0; at--) {
      const [name, workspace] = [words.slice(0, at).join('-'), words.slice(at).join('-')]
      if (this.#plane.deployments.isOpen(workspace, kind, name, anyRequest)) return { workspace, name }
    }
    return null
  }
}
