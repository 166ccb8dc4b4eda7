import type { Codegen } from '../../../codegen/index.ts'
import { PlatformError } from '../../../errors.ts'
import type { Address } from '../../../lib/addresses.ts'
import { type SandboxLease, sandboxApiPorts } from '../../../sandboxes/index.ts'
import type { LargeBodies } from '../../large-bodies.ts'
import type { ConsumedCredentials, RouteContext } from '../../route.ts'
import { WholeBody } from '../../whole-body.ts'
import { begunAndOnceEnded } from '../bodies.ts'
import { isSocketRequest, proxyHttp, proxySocket, withoutParameters } from '../proxy.ts'
import { spoken } from '../spoken.ts'
import { bodyWhileVisiting, type Visit } from '../visited.ts'
import { apiHeaders, decodePath, json, pageNotFound, type SandboxAnswer, type SandboxCall } from './call.ts'
import { fastApply, rerank } from './codegen.ts'
import { changeAttributes, copyFiles, moveFiles } from './copy.ts'
import { listDrives, mountDrive, unmountDrive } from './drives.ts'
import { readFileOrDirectory, removeFileOrDirectory, writeFileOrDirectory } from './files.ts'
import { findFiles, searchContent, searchFiles } from './find.ts'
import { type Build, health, reloadEnvironment, upgrade } from './health.ts'
import { type SandboxMcp, serveMcp } from './mcp.ts'
import { listPorts, monitorPorts, noTunnel, refuseTunnel, stopMonitoring } from './network.ts'
import {
  closeStdin,
  getLogs,
  getProcess,
  killProcess,
  listProcesses,
  startProcess,
  stopProcess,
  streamLogs,
  writeStdin,
} from './processes.ts'
import { connectTerminal, showTerminal } from './terminal.ts'
import { readTree, removeTree, writeTree } from './trees.ts'
import { abortUpload, completeUpload, listParts, listUploads, startUpload, writePart } from './uploads.ts'
import { watchDirectory } from './watch.ts'

/** A request on its way into a sandbox, already allowed to be there. */
export interface SandboxRequest {
  readonly request: Request
  /** Undecoded, from the sandbox's address on: '' or with a leading slash. */
  readonly path: string
  /** Undecoded, '' or with a leading question mark. */
  readonly search: string
  readonly publicOrigin: string
  /** What stands before `path` in the public address. */
  readonly publicPrefix: string
  readonly consumed: ConsumedCredentials
  /** It proved who it is from, so that no page has merely found the way here. */
  readonly credentialed?: boolean
  readonly requestHeaders?: Readonly<Record<string, string>>
  readonly upgrade: RouteContext<unknown, unknown, unknown>['upgrade']
  readonly sendFile?: RouteContext<unknown, unknown, unknown>['sendFile']
  /** By whose leave it is here, where that may end; ended with the exchange. */
  readonly visit?: Visit
}

/** What the API of every sandbox is made of, besides the sandbox. */
export interface SandboxApi {
  readonly bodies: LargeBodies
  readonly build: Build
  readonly mcp: SandboxMcp
  readonly codegen: Codegen
  /** What a host stands for to programs of an instance. */
  readonly addressesOf: (instanceId: string, host: string) => Promise<Address[]>
}

type Verbs = Partial<
  Record<'GET' | 'POST' | 'PUT' | 'DELETE', (call: SandboxCall, part: string, api: SandboxApi) => Handled>
>
type Handled = SandboxAnswer | Promise<SandboxAnswer>

/**
 * The routes of a sandbox's API. Matched on the undecoded path, the first wins; the group is what the handler gets,
 * decoded unless it is a file path. A file path is everything behind its word, from a slash or an escaped one on.
 */
const routes: { path: RegExp; raw?: boolean; verbs: Verbs }[] = [
  {
    path: /^\/filesystem\/tree((?:\/|%2F).*)?$/s,
    raw: true,
    verbs: { GET: readTree, PUT: writeTree, DELETE: removeTree },
  },
  {
    path: /^\/filesystem((?:\/|%2F).*)?$/s,
    raw: true,
    verbs: { GET: readFileOrDirectory, PUT: writeFileOrDirectory, DELETE: removeFileOrDirectory },
  },
  { path: /^\/filesystem-attributes((?:\/|%2F).*)$/s, raw: true, verbs: { PUT: changeAttributes } },
  { path: /^\/filesystem-find((?:\/|%2F).*)?$/s, raw: true, verbs: { GET: findFiles } },
  { path: /^\/filesystem-search((?:\/|%2F).*)?$/s, raw: true, verbs: { GET: searchFiles } },
  { path: /^\/filesystem-content-search((?:\/|%2F).*)?$/s, raw: true, verbs: { GET: searchContent } },
  { path: /^\/watch\/filesystem((?:\/|%2F).*)?$/s, raw: true, verbs: { GET: watchDirectory } },
  { path: /^\/filesystem-copy\/?$/, verbs: { POST: copyFiles } },
  { path: /^\/filesystem-move\/?$/, verbs: { POST: moveFiles } },
  { path: /^\/filesystem-multipart\/initiate((?:\/|%2F).*)$/s, raw: true, verbs: { POST: startUpload } },
  { path: /^\/filesystem-multipart\/?$/, verbs: { GET: listUploads } },
  { path: /^\/filesystem-multipart\/([^/]+)\/part$/, verbs: { PUT: writePart } },
  { path: /^\/filesystem-multipart\/([^/]+)\/parts$/, verbs: { GET: listParts } },
  { path: /^\/filesystem-multipart\/([^/]+)\/complete$/, verbs: { POST: completeUpload } },
  { path: /^\/filesystem-multipart\/([^/]+)\/abort$/, verbs: { DELETE: abortUpload } },
  { path: /^\/process\/?$/, verbs: { GET: listProcesses, POST: startProcess } },
  { path: /^\/process\/([^/]+)$/, verbs: { GET: getProcess, DELETE: stopProcess } },
  { path: /^\/process\/([^/]+)\/kill$/, verbs: { DELETE: killProcess } },
  { path: /^\/process\/([^/]+)\/logs$/, verbs: { GET: getLogs } },
  { path: /^\/process\/([^/]+)\/logs\/stream$/, verbs: { GET: streamLogs } },
  { path: /^\/process\/([^/]+)\/stdin$/, verbs: { POST: writeStdin, DELETE: closeStdin } },
  {
    path: /^\/codegen\/fastapply((?:\/|%2F).*)$/s,
    raw: true,
    verbs: { PUT: (call, path, { codegen }) => fastApply(call, codegen, path) },
  },
  { path: /^\/network\/process\/([^/]+)\/ports$/, verbs: { GET: listPorts } },
  {
    path: /^\/network\/process\/([^/]+)\/monitor$/,
    verbs: { POST: monitorPorts, DELETE: stopMonitoring },
  },
  { path: /^\/network\/tunnel\/config$/, verbs: { PUT: refuseTunnel } },
  { path: /^\/network\/tunnel$/, verbs: { DELETE: noTunnel } },
  {
    path: /^\/codegen\/reranking((?:\/|%2F).*)$/s,
    raw: true,
    verbs: { GET: (call, path, { codegen }) => rerank(call, codegen, path) },
  },
  { path: /^\/drives\/mount$/, verbs: { GET: listDrives, POST: mountDrive } },
  { path: /^\/drives\/mount\/(.+)$/s, verbs: { DELETE: unmountDrive } },
  { path: /^\/environment\/reload$/, verbs: { POST: reloadEnvironment } },
  { path: /^\/terminal\/?$/, verbs: { GET: showTerminal } },
  { path: /^\/(?:terminal\/ws|ws\/terminal)$/, verbs: { GET: connectTerminal } },
]

const systemPort = 80
const portPath = /^\/port\/([^/?]*)(\/.*)?$/s

/**
 * Answers a request with the sandbox's API, or passes it on to one of its ports. Takes ownership of the lease: it is
 * disposed when the exchange is over, streamed bodies and WebSockets included.
 * @throws what is the platform's failure rather than the sandbox API's answer, e.g. bad_gateway
 */
export async function serveSandbox(
  lease: SandboxLease,
  incoming: SandboxRequest,
  api: SandboxApi,
): Promise<Response> {
  let released = false
  const release = () => {
    if (!released) lease[Symbol.dispose]()
    released = true
    incoming.visit?.end()
  }
  try {
    let target = incoming
    for (let port = portOf(target.path); port; port = portOf(target.path)) {
      if (!sandboxApiPorts.includes(port.number))
        return await servePort(lease, target, port.number, port.path, release)
      target = { ...target, path: port.path, publicPrefix: target.publicPrefix + port.prefix }
    }
    return await serveApi(lease, target, api, release)
  } catch (error) {
    release()
    if (PlatformError.is(error) && isOwnFailure(error)) return errorAnswer(error)
    throw error
  }
}

/** Passes a request on to a port; the path is the program's own. Takes ownership of the lease as `serveSandbox` does. */
export async function serveSandboxPort(
  lease: SandboxLease,
  incoming: SandboxRequest,
  port: number,
): Promise<Response> {
  return servePort(
    lease,
    incoming,
    port,
    incoming.path || '/',
    () => {
      incoming.visit?.end()
      lease[Symbol.dispose]()
    },
    incoming.publicPrefix,
  )
}

async function servePort(
  lease: SandboxLease,
  incoming: SandboxRequest,
  port: number,
  path: string,
  release: () => void,
  prefix = `${incoming.publicPrefix}/port/${port}`,
): Promise<Response> {
  const { instance } = lease
  const { request, upgrade } = incoming
  let address: Awaited<ReturnType<typeof instance.address>>
  try {
    address = await instance.address(port)
  } catch (error) {
    release()
    throw error
  }
  const options = {
    port,
    path: path + withoutParameters(incoming.search, incoming.consumed.query),
    publicOrigin: incoming.publicOrigin,
    publicPrefix: prefix,
    consumed: incoming.consumed,
    ...(incoming.requestHeaders ? { requestHeaders: incoming.requestHeaders } : {}),
    listening: () => instance.listening(port),
    ...(incoming.visit ? { visit: incoming.visit } : {}),
    onEnd: release,
  }
  if (upgrade && isSocketRequest(request)) {
    return proxySocket(request, spoken(upgrade, lease), address, options)
  }
  return proxyHttp(request, address, options)
}

async function serveApi(
  lease: SandboxLease,
  { request, path, search, credentialed = false, upgrade, sendFile = null, visit }: SandboxRequest,
  api: SandboxApi,
  release: () => void,
): Promise<Response> {
  const query = new URLSearchParams(search)
  const sender = `sandbox ${lease.workspace}/${lease.name}`
  const whole = new WholeBody(request, { bodies: api.bodies, sender })
  const call: SandboxCall = {
    request,
    whole,
    lease,
    path,
    query,
    credentialed,
    upgrade: upgrade && spoken(upgrade, lease),
    sendFile,
    onEnd: release,
  }
  const answer = await handle(call, api).finally(() => whole.used())
  const response = answer instanceof Response ? answer : answer.streaming
  if (request.method === 'HEAD') {
    await response.body?.cancel()
    release()
    return new Response(null, response)
  }
  if (answer instanceof Response) {
    release()
    return response
  }
  const guarded = (body: ReadableStream<Uint8Array>) =>
    visit === undefined ? body : bodyWhileVisiting(body, visit)
  if (!response.body) return response
  if (answer.endsItself)
    return visit === undefined ? response : new Response(guarded(response.body), response)
  // A server copies what it is given before it asks for more; whoever else reads an answer may hold all of it.
  const freeing = answer.handsOver === true && upgrade !== null
  return new Response(guarded(await begunAndOnceEnded(response.body, release, { freeing })), response)
}

async function handle(call: SandboxCall, api: SandboxApi): Promise<SandboxAnswer> {
  const { path, request } = call
  if (request.method === 'OPTIONS') return preflight()
  if (path === '' || path === '/') return about()
  const verb = (request.method === 'HEAD' ? 'GET' : request.method) as keyof Verbs
  if (path === '/health') return verb === 'GET' ? health(call, api.build) : pageNotFound()
  if (path === '/upgrade') return verb === 'POST' ? upgrade(call, api.build) : pageNotFound()
  // It says itself which methods it has.
  if (path === '/mcp' || path === '/mcp/') return serveMcp(call, api, (inner) => handle(inner, api))
  for (const route of routes) {
    const match = route.path.exec(path)
    if (!match) continue
    const run = route.verbs[verb]
    if (!run) return pageNotFound()
    const part = match[1] ?? ''
    return run(call, route.raw ? part : decodePath(part), api)
  }
  return pageNotFound()
}

function about(): Response {
  return json({
    message: `This is the API of a sandbox, which has its ports ${sandboxApiPorts.join(' and ')}: let a server of yours listen on another`,
    documentation: '/health, /filesystem/{path}, /process, /port/{port}/{path}, /terminal and /mcp',
    description: 'Files, processes and ports of one sandbox',
  })
}

function preflight(): Response {
  return new Response(null, {
    status: 204,
    headers: {
      ...apiHeaders,
      'access-control-allow-methods': 'GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS',
      'access-control-allow-headers': '*, Authorization',
      'access-control-max-age': '600',
    },
  })
}

function portOf(path: string): { number: number; path: string; prefix: string } | null {
  const match = portPath.exec(path)
  if (!match) return null
  const text = match[1] ?? ''
  const number = Number(text)
  if (!/^\d{1,5}$/.test(text) || number < 1 || number > 65535) {
    throw new PlatformError('bad_request', `port: '${text.slice(0, 20)}' is not a port: send 1 to 65535`)
  }
  if (number === systemPort)
    throw new PlatformError(
      'bad_request',
      'port: 80 is reserved by the platform: let the server listen on another port, such as 3000',
    )
  return { number, path: match[2] ?? '/', prefix: `/port/${text}` }
}

/** What the sandbox API says itself; anything else is the platform's to tell. */
const ownFailures = new Set([
  'bad_request',
  'not_found',
  'conflict',
  'already_exists',
  'forbidden',
  'body_too_large',
  'unsupported_media_type',
  'unprocessable',
  'insufficient_storage',
])

function isOwnFailure({ code, details }: PlatformError): boolean {
  return ownFailures.has(code) || typeof details?.code === 'string'
}

function errorAnswer(error: PlatformError): Response {
  const { errno: _, path: __, ...details } = error.details ?? {}
  return json({ error: error.message, ...details }, error.status)
}
