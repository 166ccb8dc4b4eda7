import type { z } from 'zod'
import type { Principal } from '../access/index.ts'
import type { OpenFile } from '../spec/guest.ts'
import type { WholeBody } from './whole-body.ts'

/**
 * Who may call a route. `public` and `capability` alone skip authentication (a capability route checks the secret
 * in its own address); every other route refuses a request without a valid credential for its workspace.
 * - `read`: every principal of the workspace, workloads included
 * - `write`: users and service accounts of the workspace, member or admin
 * - `workload`: `write`, and workloads too
 * - `deployed`: `write`, and workloads of what is deployed, which sandboxes are not
 * - `admin`: admins of the workspace
 * - `account`: any user or service account, of whatever workspace (to list one's workspaces)
 */
export type RouteAccess =
  | 'public'
  | 'capability'
  | 'read'
  | 'write'
  | 'workload'
  | 'deployed'
  | 'admin'
  | 'account'

/**
 * In which shape errors leave: flat `{error, code, message}`, the same with a word as code where a sandbox is created,
 * the gateway envelope, the sandbox API's `{error}`, or as the protocol says.
 */
export type ErrorShape = 'control' | 'creation' | 'gateway' | 'sandbox' | 'oauth' | 'agentfield' | 'xpander'

export type Method = 'GET' | 'POST' | 'PUT' | 'PATCH' | 'DELETE' | 'HEAD' | 'OPTIONS' | 'ALL'

export interface RouteContext<Params, Query, Body> {
  readonly request: Request
  readonly url: URL
  /** Undecoded, as the next: they are not what `url` makes of them. */
  readonly path: string
  /** '', or from the question mark on. */
  readonly search: string
  readonly params: Params
  readonly query: Query
  readonly body: Body
  /** For a handler that reads the body itself, and wants all of it; who waits for long says when it was `used`. */
  readonly whole: WholeBody
  /** Null only on public and capability routes. */
  readonly principal: Principal | null
  /** The workspace this request acts in; '' on public, capability and account routes. */
  readonly workspace: string
  /** Origin to build addresses from, e.g. `http://localhost:4400`: the request's when it is allowed, else --url. */
  readonly origin: string
  /** `Blaxel-Version` of the request, default 2026-04-16. */
  readonly apiVersion: string
  readonly requestId: string
  /** What authentication consumed: never forwarded to anything behind the platform. */
  readonly consumed: ConsumedCredentials
  /** Takes the connection over as a WebSocket; null where there is none to take over (`platform.request()`). */
  readonly upgrade:
    | ((handler: SocketHandler, options?: { headers?: Record<string, string> }) => Response)
    | null
  /** Answers with a file that the kernel sends; null where that is not possible now. */
  readonly sendFile: SendFile | null
}

/** Takes ownership of the file. `onEnd` is called once, soon after the exchange ended or was given up. */
export type SendFile = (file: OpenFile, headers: Headers, onEnd: () => void) => Response

export interface ConsumedCredentials {
  /** Lower-case header names. */
  headers: string[]
  /** Query parameter names. */
  query: string[]
}

export interface SocketHandler {
  open(socket: Socket): void
  message(socket: Socket, data: string | Uint8Array): void
  close(socket: Socket, code: number, reason: string): void
  /** The peer sent a ping, which is answered already. */
  ping?(socket: Socket): void
  /** The socket can take more after `send` answered false. */
  drain?(socket: Socket): void
}

export interface Socket {
  /** False: accepted, but the peer is slow; send no more until `drain`. */
  send(data: string | Uint8Array): boolean
  close(code?: number, reason?: string): void
}

export interface Route<
  Path extends string = string,
  Query extends z.ZodType = z.ZodType,
  Body extends z.ZodType = z.ZodType,
> {
  method: Method
  /** OpenAPI style, `/v0/sandboxes/{sandboxName}`. A last segment `{path*}` takes the rest, undecoded. */
  path: Path
  access: RouteAccess
  /** Whether what this address leads to is open to all: then no credential is asked for. Absent: never. */
  isOpen?(params: PathParams<Path>, asked: { request: Request; search: string }): boolean | Promise<boolean>
  /**
   * A name in the request that may be a workspace's. Where no workspace is named outright, it counts if the caller belongs
   * to the workspace of that name.
   */
  workspaceHint?(params: PathParams<Path>, headers: Headers): string | null
  /** Its clients come without a credential; the operator may let those of this host (`keylessWorkspace`). */
  keyless?: boolean
  errors: ErrorShape
  /** For /v0/openapi.json and people. */
  summary: string
  tag: string
  query?: Query
  /**
   * The credential may also come as `?token=`, for browsers' WebSockets, which cannot send headers; or as the parameter of
   * this name.
   */
  queryToken?: boolean | string
  /** JSON body. Absent: the handler reads `request.body` itself, if at all. */
  body?: Body
  /** What a handler that reads the body itself takes, by content type; for /v0/openapi.json. */
  readsBody?: Record<string, z.ZodType>
  /** Default jsonBodyBytesMax. */
  bodyBytesMax?: number
  /** Success answer's schema, for /v0/openapi.json. */
  answer?: z.ZodType
  /** Answer's schema where it is 202: taken up, and not done yet. */
  acceptedAnswer?: z.ZodType
  /** Default 200. */
  successStatus?: number
  /** A Response as it is; anything else as JSON with `successStatus`. */
  handle(
    context: RouteContext<PathParams<Path>, z.output<Query>, z.output<Body>>,
  ): Promise<Response | object> | Response | object
}

export type PathParams<Path extends string> = Path extends `${string}{${infer Name}}${infer Rest}`
  ? { [Key in TrimStar<Name>]: string } & PathParams<Rest>
  : unknown
type TrimStar<Name extends string> = Name extends `${infer Bare}*` ? Bare : Name

/** Of answers to who wants something built: where its archive goes. */
export const uploadUrlHeader = 'x-blaxel-upload-url'

export const jsonBodyBytesMax = 4 * 1024 * 1024

/** Identity, for inference of params, query and body from the literal. */
export function route<Path extends string, Query extends z.ZodType, Body extends z.ZodType>(
  definition: Route<Path, Query, Body>,
): Route {
  return definition as unknown as Route
}
