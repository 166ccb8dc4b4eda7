import type { Identity, Principal } from '../access/index.ts'
import type { Authority } from './host.ts'
import type { LargeBodies } from './large-bodies.ts'
import type { ConsumedCredentials, ErrorShape, RouteContext } from './route.ts'
import type { CompiledRoute } from './table.ts'
import { WholeBody } from './whole-body.ts'

/** Where a request came from; absent for `platform.request()`. */
export interface Connection {
  /** The peer's address, null where it has none. */
  readonly address: string | null
  readonly upgrade: RouteContext<unknown, unknown, unknown>['upgrade']
  /** Null while as many files are sent as may be at once. */
  readonly sendFile: RouteContext<unknown, unknown, unknown>['sendFile']
  /** Who is on the other end, where the connection itself says so; a credential that is sent wins, but for `workloadKey`. */
  readonly identity?: Identity | undefined
}

/** A request on its way through; filled in as it goes, so that an error knows what was established before it. */
export interface Passage {
  request: Request
  connection: Connection | null
  requestId: string
  path: string
  search: string
  shape: ErrorShape
  authority: Authority | null
  compiled: CompiledRoute | null
  principal: Principal | null
  previewHost: boolean
  /** No credential is asked for. */
  open: boolean
  /** Made when somebody asks for it. */
  whole: WholeBody | null
}

/** What a route's handler is given of it. */
export class Context implements RouteContext<unknown, unknown, unknown> {
  readonly request: Request
  readonly path: string
  readonly search: string
  readonly params: unknown
  readonly query: unknown
  readonly principal: Principal | null
  readonly workspace: string
  readonly origin: string
  readonly apiVersion: string
  readonly requestId: string
  readonly consumed: ConsumedCredentials
  readonly #passage: Passage
  readonly #bodies: LargeBodies
  #url: URL | null = null

  constructor(
    passage: Passage,
    bodies: LargeBodies,
    parsed: {
      params: unknown
      query: unknown
      workspace: string
      apiVersion: string
      consumed: ConsumedCredentials
    },
  ) {
    this.#passage = passage
    this.#bodies = bodies
    this.request = passage.request
    this.path = passage.path
    this.search = passage.search
    this.params = parsed.params
    this.query = parsed.query
    this.principal = passage.principal
    this.workspace = parsed.workspace
    this.origin = passage.authority?.origin ?? ''
    this.apiVersion = parsed.apiVersion
    this.requestId = passage.requestId
    this.consumed = parsed.consumed
  }

  get upgrade(): RouteContext<unknown, unknown, unknown>['upgrade'] {
    return this.#passage.connection?.upgrade ?? null
  }

  get sendFile(): RouteContext<unknown, unknown, unknown>['sendFile'] {
    return this.#passage.connection?.sendFile ?? null
  }

  get body(): unknown {
    return this.#passage.whole?.said
  }

  get whole(): WholeBody {
    const passage = this.#passage
    passage.whole ??= new WholeBody(this.request, { bodies: this.#bodies, sender: senderOf(passage, this) })
    return passage.whole
  }

  get url(): URL {
    this.#url ??= new URL(this.request.url)
    return this.#url
  }
}

/** Programs that run here count one by one, for they are strangers also to those of their own workspace. */
function senderOf({ principal }: Passage, { workspace }: { workspace: string }): string {
  return principal?.kind === 'workload' ? `instance ${principal.id}` : `workspace ${workspace}`
}
