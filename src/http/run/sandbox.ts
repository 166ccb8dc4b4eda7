import type { Sandboxes } from '../../sandboxes/index.ts'
import { type Route, type RouteContext, route } from '../route.ts'
import { splitUrl } from '../url.ts'
import { type SandboxApi, serveSandbox } from './sandbox/api.ts'

/**
 * The data plane of sandboxes: everything below a sandbox's address. One route, since the API inside has path rules of
 * its own; what it serves is the table in sandbox/api.ts. Its errors are the sandbox API's once the sandbox is reached,
 * the gateway's before.
 */
export function sandboxRunRoutes(sandboxes: Pick<Sandboxes, 'acquire'>, api: SandboxApi): Route[] {
  const serve = async (context: SandboxContext) => {
    const { request, params } = context
    const { path, search } = splitUrl(request.url)
    // Behind the origin come '', the workspace, `sandboxes` and the name.
    const rest = path.split('/').slice(4).join('/')
    const prefix = path.split('/').slice(0, 4).join('/')
    const lease = await sandboxes.acquire(context.workspace, params.sandboxName, request.signal)
    return serveSandbox(
      lease,
      {
        request,
        path: rest === '' ? '' : `/${rest}`,
        search,
        publicOrigin: context.origin,
        publicPrefix: prefix,
        consumed: context.consumed,
        credentialed: true,
        upgrade: context.upgrade,
        sendFile: context.sendFile,
      },
      api,
    )
  }
  const terminal = (path: string, summary: string) =>
    route({
      method: 'GET',
      path: `/{workspace}/sandboxes/{sandboxName}/${path}`,
      access: 'workload',
      errors: 'gateway',
      summary,
      tag: 'run',
      queryToken: true,
      handle: (context) => serve(context as SandboxContext),
    })
  return [
    route({
      method: 'ALL',
      path: '/{workspace}/sandboxes/{sandboxName}/{path*}',
      access: 'workload',
      errors: 'gateway',
      summary: 'The API of a sandbox: files, processes and ports',
      tag: 'run',
      handle: (context) => serve(context),
    }),
    terminal('terminal', 'A page with a terminal in the sandbox'),
    terminal('terminal/ws', 'A terminal in the sandbox, as a WebSocket'),
    terminal('ws/terminal', 'The same, by its other name'),
  ]
}

type SandboxContext = RouteContext<{ workspace: string; sandboxName: string }, unknown, unknown>
