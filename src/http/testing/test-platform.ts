import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { z } from 'zod'
import { Access } from '../../access/index.ts'
import type { Logger } from '../../lib/log.ts'
import { createSecretBox } from '../../lib/secret-box.ts'
import { FakeClock } from '../../lib/test-clock.ts'
import type { Store } from '../../spec/store.ts'
import { openSqliteStore } from '../../stores/sqlite/index.ts'
import { Users, Workspaces } from '../../workspaces/index.ts'
import { type App, type AppOptions, createApp } from '../app.ts'
import { apiKeyRoutes } from '../control/api-keys.ts'
import { loginRoutes } from '../control/login.ts'
import { oauthRoutes } from '../control/oauth.ts'
import { platformRoutes } from '../control/platform.ts'
import { regionRoutes } from '../control/regions.ts'
import { serviceAccountRoutes } from '../control/service-accounts.ts'
import { userRoutes } from '../control/users.ts'
import { workspaceRoutes } from '../control/workspaces.ts'
import { Hosts } from '../host.ts'
import { LargeBodies } from '../large-bodies.ts'
import { type Route, route } from '../route.ts'

/** Keeps what was logged. */
class TestLogger implements Logger {
  readonly lines: { level: string; message: string; fields: Record<string, unknown> }[] = []
  debug = (message: string, fields = {}) => this.#add('debug', message, fields)
  info = (message: string, fields = {}) => this.#add('info', message, fields)
  warn = (message: string, fields = {}) => this.#add('warn', message, fields)
  error = (message: string, fields = {}) => this.#add('error', message, fields)
  #add(level: string, message: string, fields: Record<string, unknown>): void {
    this.lines.push({ level, message, fields })
  }
}

/** The HTTP core over a real store, with a few routes of each error shape, and people who may use it. */
export class TestPlatform implements AsyncDisposable {
  readonly app: App
  readonly clock: FakeClock
  readonly log: TestLogger
  readonly store: Store
  readonly access: Access
  readonly users: Users
  readonly workspaces: Workspaces
  readonly adminKey: string
  readonly adminSub: string
  readonly #directory: string

  private constructor(parts: Pick<TestPlatform, PartNames>, directory: string) {
    this.app = parts.app
    this.clock = parts.clock
    this.log = parts.log
    this.store = parts.store
    this.access = parts.access
    this.users = parts.users
    this.workspaces = parts.workspaces
    this.adminKey = parts.adminKey
    this.adminSub = parts.adminSub
    this.#directory = directory
  }

  static async open(options: { routes?: Route[]; app?: Partial<AppOptions> } = {}): Promise<TestPlatform> {
    const directory = mkdtempSync(join(tmpdir(), 'hutch-http-'))
    const clock = new FakeClock(Date.UTC(2026, 0, 1))
    const log = new TestLogger()
    const store = await openSqliteStore({
      path: join(directory, 'hutch.db'),
      clock,
      log,
      durability: 'process',
    })
    const users = new Users({ store, clock })
    const workspaces = new Workspaces({ store, users, heldKinds: ['sandbox'] })
    const secrets = createSecretBox(crypto.getRandomValues(new Uint8Array(32)))
    const access = await Access.open({ store, secrets, users, workspaces, clock, log })
    const app = createApp({
      routes: [
        ...workspaceRoutes(workspaces),
        ...userRoutes(users, access.keys),
        ...apiKeyRoutes(access.keys),
        ...serviceAccountRoutes(access),
        ...oauthRoutes(access),
        ...loginRoutes(access),
        ...platformRoutes({ notReady: () => null }),
        ...regionRoutes({ region: null }),
        ...sampleRoutes(),
        ...(options.routes ?? []),
      ],
      access,
      hosts: new Hosts({ listenHosts: ['127.0.0.1', '::1'], domains: ['localhost'], trustedProxies: [] }),
      bodies: new LargeBodies(clock),
      clock,
      log,
      version: '0.0.0',
      ...options.app,
    })
    const admin = await users.create({ email: 'admin@example.com' })
    await workspaces.create({ name: 'main', ownerSub: admin.sub })
    const { key } = await access.keys.create({
      sub: admin.sub,
      subType: 'user',
      workspace: '',
      name: 'first',
      createdBy: admin.sub,
    })
    const parts = { app, clock, log, store, access, users, workspaces, adminKey: key, adminSub: admin.sub }
    return new TestPlatform(parts, directory)
  }

  /** As the admin of `main`, unless headers say otherwise. */
  request(path: string, init: RequestInit & { json?: unknown; key?: string | null } = {}): Promise<Response> {
    const { json, key = this.adminKey, ...rest } = init
    const headers = new Headers(rest.headers)
    if (key !== null) headers.set('authorization', `Bearer ${key}`)
    if (json !== undefined) headers.set('content-type', 'application/json')
    const body = json === undefined ? rest.body : JSON.stringify(json)
    return this.app.fetch(new Request(`http://localhost:4400${path}`, { ...rest, headers, body }))
  }

  /** A user of `workspace`, with a key. */
  async member(role: 'admin' | 'member', workspace = 'main'): Promise<{ sub: string; key: string }> {
    const { sub } = await this.users.create({ email: `${crypto.randomUUID()}@example.com` })
    await this.users.add(workspace, sub, role)
    const { key } = await this.access.keys.create({ sub, subType: 'user', workspace: '', createdBy: sub })
    return { sub, key }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.access[Symbol.asyncDispose]()
    await this.store[Symbol.asyncDispose]()
    rmSync(this.#directory, { recursive: true, force: true })
  }
}

type PartNames =
  | 'app'
  | 'clock'
  | 'log'
  | 'store'
  | 'access'
  | 'users'
  | 'workspaces'
  | 'adminKey'
  | 'adminSub'

function sampleRoutes(): Route[] {
  const shared = { tag: 'samples', summary: 'A sample' }
  return [
    route({
      ...shared,
      method: 'POST',
      path: '/v0/samples',
      access: 'write',
      errors: 'control',
      body: z.object({
        metadata: z.object({ name: z.string().max(10), secretNote: z.string().max(3).optional() }),
        size: z.int().min(1).max(10).optional(),
        kind: z.enum(['a', 'b']).optional(),
      }),
      bodyBytesMax: 2000,
      successStatus: 201,
      handle: ({ body, workspace, principal }) => ({ body, workspace, principal }),
    }),
    route({
      ...shared,
      method: 'GET',
      path: '/v0/failure',
      access: 'read',
      errors: 'control',
      handle() {
        throw new Error('the database password is hunter2')
      },
    }),
    route({
      ...shared,
      method: 'GET',
      path: '/{workspace}/sandboxes/{sandboxName}/filesystem/{path*}',
      access: 'workload',
      errors: 'sandbox',
      handle: ({ params, workspace, consumed, principal, origin, url }) => ({
        params,
        workspace,
        consumed,
        principal,
        origin,
        pathname: url.pathname,
      }),
    }),
    route({
      ...shared,
      method: 'GET',
      path: '/{workspace}/sandboxes/{sandboxName}/terminal/ws',
      access: 'write',
      errors: 'sandbox',
      queryToken: true,
      handle: ({ consumed, upgrade }) =>
        upgrade === null
          ? { consumed }
          : upgrade({
              open: (socket) => void socket.send('hello'),
              message: (socket, data) => void socket.send(data),
              close() {},
            }),
    }),
    route({
      ...shared,
      method: 'ALL',
      path: '/{workspace}/sandboxes/{sandboxName}/port/{port}/{path*}',
      access: 'write',
      errors: 'gateway',
      handle: ({ request, params }) => ({ method: request.method, params }),
    }),
    route({
      ...shared,
      method: 'ALL',
      path: '/{workspace}/samples/{sampleName}/{path*}',
      access: 'read',
      isOpen: ({ sampleName }) => sampleName === 'open',
      errors: 'gateway',
      handle: ({ request, consumed, principal, workspace }) => ({
        method: request.method,
        consumed,
        principal,
        workspace,
      }),
    }),
    route({
      ...shared,
      method: 'ALL',
      path: '/-/preview/{previewId}/{path*}',
      access: 'capability',
      errors: 'gateway',
      handle: ({ consumed, principal }) => ({ consumed, principal }),
    }),
  ]
}
