import type { RevisionLease } from '../../deployments/fleet/index.ts'
import { type DeploymentKind, type Passing, stickyCookieName } from '../../deployments/index.ts'
import { PlatformError } from '../../errors.ts'
import type { PortAddress } from '../../spec/runtime.ts'
import type { ConsumedCredentials, RouteContext } from '../route.ts'
import { checkRequestLength, type Exchanges } from './exchanges.ts'
import { isSocketRequest, proxyHttp, proxySocket, withoutParameters } from './proxy.ts'
import { spoken } from './spoken.ts'

/** Of an instance whose connections broke, until its end is heard of. */
const endingMsMax = 300

/** An instance of what is deployed, for one request. */
export interface Acquired {
  lease: RevisionLease
  revisionId: string
  /** Of functions: how the revision speaks. */
  transport: string | null
  /** Of a visitor who is to stay with this revision. */
  setCookie: string | null
}

/** Where requests to deployments find their instances. */
export interface DeploymentSource {
  /** Asked before a credential is; no work. False for one that there is not. */
  isOpen(workspace: string, kind: DeploymentKind, name: string, passing: Passing): boolean
  /** @throws workload_not_found, workload_unavailable */
  acquire(
    workspace: string,
    kind: DeploymentKind,
    name: string,
    request: { cookie: string | null; cookiePath?: string; fits?: (instanceId: string) => boolean },
    /** Its signal is asked for where there is something to wait for. */
    caller?: { readonly signal: AbortSignal },
  ): Acquired | Promise<Acquired>
}

export interface DeploymentPlane {
  deployments: DeploymentSource
  exchanges: Exchanges
}

/** Serves a request that came by the deployment's address in the path. */
export function runDeployment(
  context: Pick<
    RouteContext<unknown, unknown, unknown>,
    'request' | 'path' | 'search' | 'origin' | 'consumed' | 'upgrade'
  >,
  target: Pick<
    DeploymentRequest,
    'workspace' | 'kind' | 'name' | 'timed' | 'acquire' | 'listens' | 'requestHeaders'
  > &
    Partial<Pick<DeploymentRequest, 'path'>>,
  plane: DeploymentPlane,
): Promise<Response> {
  const { request, path, search, origin, consumed, upgrade } = context
  // Behind the workspace, the kind and the name.
  const end = indexOfSlash(path, 4)
  return serveDeployment(
    {
      request,
      path: target.path ?? (path.slice(end) || '/'),
      search,
      publicOrigin: origin,
      publicPrefix: path.slice(0, end),
      consumed,
      upgrade,
      // One by one: copying all of an object costs more than most steps of a request.
      workspace: target.workspace,
      kind: target.kind,
      name: target.name,
      timed: target.timed,
      listens: target.listens,
      acquire: target.acquire,
      requestHeaders: target.requestHeaders,
    },
    plane,
  )
}

/** A request on its way to something deployed. */
export interface DeploymentRequest {
  readonly request: Request
  /** Undecoded, as the program shall see it. */
  readonly path: string
  readonly search: string
  readonly publicOrigin: string
  /** What stands before `path` in the public address. */
  readonly publicPrefix: string
  readonly consumed: ConsumedCredentials
  readonly upgrade: RouteContext<unknown, unknown, unknown>['upgrade']
  readonly workspace: string
  readonly kind: DeploymentKind
  readonly name: string
  /** It may be silent, or take, only so long. */
  readonly timed: boolean
  /** Somebody listens to what may come: keeps the instance awake only while something does. */
  readonly listens?: boolean | undefined
  /** The answer is read here, not passed on: its pieces may be held. */
  readonly holdsPieces?: boolean | undefined
  /** For the program, over what came. */
  readonly requestHeaders?: Record<string, string> | undefined
  /** Finds an instance otherwise than by traffic. */
  readonly acquire?: ((caller: { readonly signal: AbortSignal }) => Acquired | Promise<Acquired>) | undefined
}

/**
 * Passes a request on to an instance: headers as they came but for what authenticated, both bodies streamed, WebSockets
 * joined. One that may be sent twice, to an instance that ended before it answered, goes to another one, once.
 * @throws what `acquire` throws, body_too_large, gateway_timeout, bad_gateway
 */
export async function serveDeployment(
  incoming: DeploymentRequest,
  plane: DeploymentPlane,
  { mayRepeat = true }: { mayRepeat?: boolean } = {},
): Promise<Response> {
  const { deployments, exchanges } = plane
  const { request, path, search, publicOrigin, publicPrefix, consumed, upgrade, workspace, kind, name } =
    incoming
  checkRequestLength(request.headers)
  const isSocket = upgrade !== null && isSocketRequest(request)
  const exchange = exchanges.begin(request, { timed: incoming.timed && !isSocket })
  let acquired: Acquired
  try {
    const cookie = request.headers.get('cookie')
    const cookiePath = publicPrefix || '/'
    const found =
      incoming.acquire?.(exchange) ??
      deployments.acquire(workspace, kind, name, { cookie, cookiePath }, exchange)
    acquired = found instanceof Promise ? await found : found
  } catch (error) {
    exchange.end()
    throw exchange.failure ?? error
  }
  const { lease, setCookie } = acquired
  const { instance, port } = lease
  if (incoming.listens) exchange.stayOpen(lease.asConnection())
  const onEnd = () => {
    exchange.end()
    lease[Symbol.dispose]()
  }
  const options = {
    port,
    path: path + withoutParameters(search, consumed.query),
    publicOrigin,
    publicPrefix,
    consumed,
    requestHeaders: incoming.requestHeaders,
    ownCookie: stickyCookieName(kind, name),
    title: `the ${kind} "${name}"`,
    listening: () => instance.listening(port),
    exchange: isSocket ? undefined : exchange,
    holdsPieces: incoming.holdsPieces,
    onEnd,
  }
  let address: PortAddress
  try {
    const way = instance.address(port)
    address = way instanceof Promise ? await way : way
  } catch (error) {
    onEnd()
    throw error
  }
  let response: Response
  try {
    response = isSocket
      ? await proxySocket(request, spoken(upgrade, lease), address, options)
      : await proxyHttp(request, address, options)
  } catch (error) {
    const elsewhere = mayRepeat && incoming.acquire === undefined && !isSocket && isRepeatable(request, error)
    if (!elsewhere || !(await hasEnded(lease, exchanges))) throw error
    return await serveDeployment(incoming, plane, { mayRepeat: false })
  }
  if (setCookie !== null && response.status !== 101) response.headers.append('set-cookie', setCookie)
  return response
}

/** It may be sent again, and was not answered for want of a program. */
function isRepeatable({ method, body, signal }: Request, error: unknown): boolean {
  if (body !== null || (method !== 'GET' && method !== 'HEAD' && method !== 'OPTIONS')) return false
  const reason = PlatformError.is(error) ? error.details?.reason : undefined
  return (reason === 'port_closed' || reason === 'hung_up') && !signal.aborted
}

/** Whether the instance ended, as is heard of a moment after its connections broke. */
async function hasEnded({ ended }: RevisionLease, { clock }: Exchanges): Promise<boolean> {
  if (ended === undefined) return false
  const late = new AbortController()
  try {
    return await Promise.race([
      ended.then(() => true),
      clock.sleep(endingMsMax, late.signal).then(
        () => false,
        () => false,
      ),
    ])
  } finally {
    late.abort()
  }
}

/** Of the `count`th slash; the length where there are fewer. */
function indexOfSlash(path: string, count: number): number {
  let at = -1
  for (let seen = 0; seen < count; seen++) {
    at = path.indexOf('/', at + 1)
    if (at < 0) return path.length
  }
  return at
}
