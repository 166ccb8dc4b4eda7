import { closeSync, mkdirSync, openSync, rmSync } from 'node:fs'
import type { Identity } from '../access/index.ts'
import { PlatformError } from '../errors.ts'
import type { Clock } from '../lib/clock.ts'
import { randomText } from '../lib/ids.ts'
import type { Logger } from '../lib/log.ts'
import type { Doors } from '../network/index.ts'
import type { Sandboxes, SandboxLease } from '../sandboxes/index.ts'
import type { App, Connection } from './app.ts'
import { errorResponse } from './errors.ts'
import { type SandboxApi, serveSandbox } from './run/sandbox/api.ts'
import { callsFromInsideMax } from './run/sandbox/call.ts'
import { serveUnixSocket } from './server.ts'
import { splitUrl } from './url.ts'

export interface InstanceDoorsOptions {
  /** Made when missing; nothing else is in it. */
  dir: string
  /** What an instance belongs to; null when it is not known (yet). */
  ownerOf: (instanceId: string) => { kind: string; workspace: string; name: string } | null
  sandboxes: Pick<Sandboxes, 'acquireFromInside' | 'get'>
  /** What runs in an instance of a revision; null for every other instance. */
  workloadOf: (instanceId: string) => DeployedWorkload | null
  /** Sandboxes reach the platform at `hutch.internal`; what is deployed always does. */
  platformDoor: boolean
  api: SandboxApi
  app: Pick<App, 'fetch'>
  clock: Clock
  log: Logger
}

/** As what something deployed speaks to the platform. */
export interface DeployedWorkload {
  kind: string
  workspace: string
  name: string
  labels: Record<string, string>
}

interface Door {
  path: string
  server: { stop(): Promise<void> }
}

const sandboxKind = 'sandbox'
/** Owners of instances in which something deployed runs. */
const deployedKinds = ['revision', 'task']
const ownNames = /^(?:localhost|127(?:\.\d{1,3}){3}|\[::1?\]|0\.0\.0\.0|10\.201\.0\.2)$/

/**
 * Where connections of instances arrive that are meant for the platform: a socket for each instance and purpose, so that
 * the connection alone says who is there.
 */
export class InstanceDoors implements Doors {
  readonly #options: InstanceDoorsOptions
  readonly #doors = new Map<string, Door>()
  /** Calls from inside that are not over, by instance. */
  readonly #calls = new Map<string, number>()
  readonly #idPrefix = randomText(8)
  /** Sockets are made through it, for their paths may have 107 bytes only. */
  #dirFile: number
  #requests = 0
  #closed = false

  constructor(options: InstanceDoorsOptions) {
    this.#options = options
    // Those of a platform that was killed lead nowhere.
    rmSync(options.dir, { recursive: true, force: true })
    mkdirSync(options.dir, { recursive: true, mode: 0o700 })
    this.#dirFile = openSync(options.dir, 'r')
  }

  hasPlatform(instanceId: string): boolean {
    const kind = this.#options.ownerOf(instanceId)?.kind ?? sandboxKind
    return deployedKinds.includes(kind) || (kind === sandboxKind && this.#options.platformDoor)
  }

  open(instanceId: string, door: 'api' | 'platform'): string | null {
    if (this.#closed || (door === 'platform' && !this.hasPlatform(instanceId))) return null
    const name = `${instanceId}.${door}`
    const known = this.#doors.get(name)
    if (known) return known.path
    const fetch: App['fetch'] =
      door === 'api'
        ? (request, connection) => this.#serveApi(instanceId, request, connection ?? null)
        : (request, connection) => this.#servePlatform(instanceId, request, connection ?? null)
    const { log, dir } = this.#options
    const server = serveUnixSocket(`/proc/self/fd/${this.#dirFile}/${name}`, { app: { fetch }, log })
    const path = `${dir}/${name}`
    this.#doors.set(name, { path, server })
    return path
  }

  close(instanceId: string): void {
    for (const door of ['api', 'platform']) void this.#close(`${instanceId}.${door}`)
  }

  async #close(name: string): Promise<void> {
    const door = this.#doors.get(name)
    if (!door) return
    this.#doors.delete(name)
    await door.server.stop()
    rmSync(door.path, { force: true })
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#closed) return
    this.#closed = true
    await Promise.all([...this.#doors.keys()].map((name) => this.#close(name)))
    closeSync(this.#dirFile)
  }

  /** The sandbox's own API, for its own programs: without a key, and no use of the sandbox. */
  async #serveApi(instanceId: string, request: Request, connection: Connection | null): Promise<Response> {
    const { log, clock, api } = this.#options
    const startedMs = clock.monotonic()
    const requestId = `${this.#idPrefix}-${(++this.#requests).toString(36)}`
    let response: Response
    try {
      const { path, search } = splitUrl(request.url)
      const { workspace, name } = this.#sandboxOf(instanceId)
      refusePages(request, name)
      const leave = this.#enter(instanceId)
      const lease = await this.#options.sandboxes
        .acquireFromInside(workspace, name, request.signal)
        .catch((error) => {
          leave()
          throw error
        })
      response = await serveSandbox(
        endingWith(lease, leave),
        {
          request,
          path: path === '/' ? '' : path,
          search,
          publicOrigin: new URL(request.url).origin,
          publicPrefix: '',
          consumed: { headers: [], query: [] },
          // Whoever is inside has what this API gives.
          credentialed: true,
          upgrade: connection?.upgrade ?? null,
          sendFile: connection?.sendFile ?? null,
        },
        api,
      )
    } catch (error) {
      if (request.signal.aborted && !PlatformError.is(error)) return new Response(null, { status: 499 })
      response = errorResponse(error, 'sandbox', { log, now: clock.now(), requestId })
    }
    const elapsedMs = Math.round((clock.monotonic() - startedMs) * 100) / 100
    log.debug('request from inside', {
      requestId,
      method: request.method,
      status: response.status,
      elapsedMs,
    })
    return response
  }

  /** @throws too_many_requests. What it answers is to be called when the call is over, once or more. */
  #enter(instanceId: string): () => void {
    const calls = this.#calls.get(instanceId) ?? 0
    if (calls >= callsFromInsideMax) {
      throw new PlatformError(
        'too_many_requests',
        `this sandbox has ${callsFromInsideMax} calls to its own API open, the most allowed: end one first`,
        { retryAfterSeconds: 1 },
      )
    }
    this.#calls.set(instanceId, calls + 1)
    let left = false
    return () => {
      if (left) return
      left = true
      const others = (this.#calls.get(instanceId) ?? 1) - 1
      if (others > 0) this.#calls.set(instanceId, others)
      else this.#calls.delete(instanceId)
    }
  }

  #sandboxOf(instanceId: string): { workspace: string; name: string } {
    const owner = this.#options.ownerOf(instanceId)
    if (owner === null || owner.kind !== sandboxKind) {
      throw new PlatformError('unavailable', 'This sandbox is not ready yet', { retryAfterSeconds: 1 })
    }
    return owner
  }

  async #servePlatform(
    instanceId: string,
    request: Request,
    connection: Connection | null,
  ): Promise<Response> {
    const identity = await this.#identityOf(instanceId).catch(() => undefined)
    return await this.#options.app.fetch(request, {
      address: null,
      upgrade: connection?.upgrade ?? null,
      sendFile: connection?.sendFile ?? null,
      identity,
    })
  }

  async #identityOf(instanceId: string): Promise<Identity> {
    const deployed = this.#options.workloadOf(instanceId)
    if (deployed !== null) return identityOf(instanceId, deployed)
    const { workspace, name } = this.#sandboxOf(instanceId)
    const { body } = await this.#options.sandboxes.get(workspace, name)
    return identityOf(instanceId, { kind: sandboxKind, workspace, name, labels: body.labels })
  }
}

function identityOf(id: string, { kind, workspace, name, labels }: DeployedWorkload): Identity {
  const principal = { kind: 'workload' as const, id, name, workspace, resource: { kind, name }, labels }
  return { kind: 'workload', principal }
}

/**
 * A browser inside shows pages of strangers, and this API asks for no key: a page of another origin may not use it, nor
 * one that had its name point here.
 */
function refusePages(request: Request, sandbox: string): void {
  // It is the host name inside, too, and one that nobody else's name server is asked for.
  const isOwn = (name: string) => ownNames.test(name) || name === sandbox
  const host = request.headers.get('host') ?? ''
  if (!isOwn(host.toLowerCase().replace(/:\d{1,5}$/, ''))) {
    throw new PlatformError(
      'misdirected',
      `Host: inside, this API is called localhost, 127.0.0.1 or ${sandbox}`,
    )
  }
  const origin = request.headers.get('origin')
  if (origin === null) return
  const url = URL.parse(origin)
  if (url !== null && isOwn(url.hostname)) return
  throw new PlatformError(
    'forbidden',
    'Origin: pages of other sites cannot use the API of the sandbox they are shown in',
  )
}

function endingWith(lease: SandboxLease, end: () => void): SandboxLease {
  const { workspace, name, instance, processes, workingDir, env, upgrades } = lease
  return {
    ...{ workspace, name, instance, processes, workingDir, env, upgrades },
    // What its programs ask for is no user's wish.
    userVariables: new Set(),
    asConnection: () => lease.asConnection(),
    [Symbol.dispose]: () => {
      lease[Symbol.dispose]()
      end()
    },
  }
}
