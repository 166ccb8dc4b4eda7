/**
 * The composition root: the one file that names concrete drivers. Opens in order, closes in reverse. The executable is
 * its first user (`cli/up.ts`), tests are the second.
 */
import { mkdirSync, mkdtempSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Access } from './access/index.ts'
import { type Config, configDefaults, type RuntimeName } from './config.ts'
import { dataDirDefault, readCredentials } from './data-directory.ts'
import { PlatformError } from './errors.ts'
import { type App, createApp } from './http/app.ts'
import { apiKeyRoutes } from './http/control/api-keys.ts'
import { oauthRoutes } from './http/control/oauth.ts'
import { platformRoutes } from './http/control/platform.ts'
import { previewRoutes } from './http/control/previews.ts'
import { sandboxRoutes } from './http/control/sandboxes.ts'
import { serviceAccountRoutes } from './http/control/service-accounts.ts'
import { userRoutes } from './http/control/users.ts'
import { workspaceRoutes } from './http/control/workspaces.ts'
import type { Route } from './http/route.ts'
import { PreviewGateway } from './http/run/previews.ts'
import { sandboxRunRoutes } from './http/run/sandbox.ts'
import { type HttpServer, startServer } from './http/server.ts'
import { HostImage, Images } from './images/index.ts'
import { Instances } from './instances/index.ts'
import { type Clock, systemClock } from './lib/clock.ts'
import { acquireDataLock, type DataLock } from './lib/data-lock.ts'
import { createLogger, type Logger } from './lib/log.ts'
import { createSecretBox, openMasterKey } from './lib/secret-box.ts'
import { extractHelper } from './runtimes/helper-binary.ts'
import { openNamespaceRuntime } from './runtimes/namespace/index.ts'
import { openProcessRuntime } from './runtimes/process/index.ts'
import { Previews, Sandboxes } from './sandboxes/index.ts'
import type { Runtime } from './spec/runtime.ts'
import type { Store } from './spec/store.ts'
import { openSqliteStore } from './stores/sqlite/index.ts'
import { commit, version } from './version.ts'
import { Users, Workspaces } from './workspaces/index.ts'

export interface PlatformOptions extends Partial<Omit<Config, 'runtime'>> {
  /** A driver by name, or one of one's own (a fake). */
  runtime?: RuntimeName | Runtime
  clock?: Clock
  log?: Logger
}

export interface Platform extends AsyncDisposable {
  readonly config: Config
  readonly routes: readonly Route[]
  readonly store: Store
  readonly access: Access
  readonly workspaces: Workspaces
  readonly users: Users
  readonly sandboxes: Sandboxes
  readonly runtime: Runtime
  /** The first admin's. */
  readonly credentials: { workspace: string; apiKey: string }
  /** Answers without a port. `path` may be an absolute URL. */
  request(path: string | Request, init?: RequestInit): Promise<Response>
  /** Accepts connections. @throws conflict when the port is taken */
  listen(): Promise<{ url: string; port: number }>
  /** Idempotent. Instances end, keeping their files, unless `keepInstances`. */
  close(options?: { keepInstances?: boolean }): Promise<void>
}

/** A data directory that is made for this platform and removed with it. */
export const temporaryDataDir = ':memory:'

const firstWorkspace = 'main'
const firstAdminEmail = 'admin@hutch.localhost'
const firstKeyName = 'hutch env'
const requestGraceMs = 2_000

/** @throws conflict when another platform holds the data directory, or it is of a newer version; unavailable when the runtime cannot work here */
export async function createPlatform(options: PlatformOptions = {}): Promise<Platform> {
  const temporary = options.dataDir === temporaryDataDir
  const { runtime: runtimeOption = 'namespace', clock = systemClock, log: givenLog, ...settings } = options
  const dataDir = temporary ? mkdtempSync(join(tmpdir(), 'hutch-')) : (settings.dataDir ?? dataDirDefault())
  const config: Config = {
    ...configDefaults(dataDir),
    ...settings,
    dataDir,
    runtime: typeof runtimeOption === 'string' ? runtimeOption : 'namespace',
  }
  const log = givenLog ?? createLogger({ clock, level: config.logLevel, format: config.logFormat })
  const undo: (() => unknown)[] = []
  if (temporary) undo.push(() => rmSync(config.dataDir, { recursive: true, force: true }))
  try {
    return await open(config, runtimeOption, { clock, log, temporary, undo })
  } catch (error) {
    for (const step of undo.reverse()) await step()
    throw error
  }
}

interface Surroundings {
  clock: Clock
  log: Logger
  temporary: boolean
  /** What to undo when opening fails, and, in reverse, to close. */
  undo: (() => unknown)[]
}

async function open(config: Config, driver: RuntimeName | Runtime, around: Surroundings): Promise<Platform> {
  const { clock, log, undo } = around
  const { dataDir } = config
  const lock = acquireDataLock(dataDir, { pid: process.pid })
  undo.push(() => lock[Symbol.dispose]())
  const secrets = createSecretBox(openMasterKey(dataDir))

  const opening = openRuntime(config, driver, { clock, log })
  opening.catch(() => {})
  const store = await openSqliteStore({ path: join(dataDir, 'hutch.db'), clock, log }).catch(
    async (error) => {
      // Whatever was opened beside it must not stay behind.
      if (typeof driver === 'string')
        await opening.then((runtime) => runtime[Symbol.asyncDispose]()).catch(() => {})
      throw error
    },
  )
  undo.push(() => store[Symbol.asyncDispose]())
  const runtime = await opening
  // A driver that was handed in stays its owner's.
  const ownsRuntime = typeof driver === 'string'
  if (ownsRuntime) undo.push(() => runtime[Symbol.asyncDispose]())

  const users = new Users({ store, clock })
  const workspaces = new Workspaces({ store, users, heldKinds: ['sandbox'] })
  const access = await Access.open({ store, secrets, users, workspaces, clock, log })
  undo.push(() => access[Symbol.asyncDispose]())
  const credentials = await firstCredentials(dataDir, { users, workspaces, access })

  const host = new HostImage({
    imageDir: config.imageDir,
    dataDir,
    source: config.imageSource,
    executablePath: process.execPath,
    clock,
    log,
  })
  undo.push(() => host.close())
  const images = new Images({ host })
  const instances = new Instances({ store, runtime, secrets, clock, log })
  const limits = { sandboxesMax: config.sandboxesMax, memoryMbMax: config.sandboxMemoryMbMax }
  const sandboxes = new Sandboxes({ store, instances, images, secrets, clock, log, dataDir, limits })
  const domain = config.domains[0] ?? 'localhost'
  const previews = new Previews({ store, sandboxes, secrets, clock, log, domain })
  await instances.recover()
  await sandboxes.open()
  await previews.open()
  host.start()

  const build = { version, gitCommit: commit }
  const gateway = new PreviewGateway({ previews, sandboxes, domains: config.domains, build, log })
  const app = createApp({
    routes: [
      ...platformRoutes({ region: config.region, notReady: () => null }),
      ...oauthRoutes(access),
      ...workspaceRoutes(workspaces),
      ...userRoutes(users, access.keys),
      ...apiKeyRoutes(access.keys),
      ...serviceAccountRoutes(access),
      ...sandboxRoutes({ sandboxes, log }),
      ...previewRoutes({ previews }),
      ...gateway.routes(),
      ...sandboxRunRoutes(sandboxes, build),
    ],
    access,
    host: {
      listenHosts: config.hosts,
      domains: config.domains,
      trustedProxies: config.trustedProxies,
      ...(config.url === null ? {} : { publicUrl: config.url }),
    },
    hosts: (request, hostName, context) => gateway.serveHost(request, hostName, context),
    clock,
    log,
    version,
  })

  return new RunningPlatform({
    config,
    app,
    lock,
    store,
    access,
    workspaces,
    users,
    sandboxes,
    previews,
    instances,
    runtime,
    ownsRuntime,
    host,
    credentials,
    clock,
    log,
    temporary: around.temporary,
  })
}

interface Parts {
  config: Config
  app: App
  lock: DataLock
  store: Store
  access: Access
  workspaces: Workspaces
  users: Users
  sandboxes: Sandboxes
  previews: Previews
  instances: Instances
  runtime: Runtime
  ownsRuntime: boolean
  host: HostImage
  credentials: { workspace: string; apiKey: string }
  clock: Clock
  log: Logger
  temporary: boolean
}

class RunningPlatform implements Platform {
  readonly config: Config
  readonly routes: readonly Route[]
  readonly store: Store
  readonly access: Access
  readonly workspaces: Workspaces
  readonly users: Users
  readonly sandboxes: Sandboxes
  readonly runtime: Runtime
  readonly credentials: { workspace: string; apiKey: string }
  readonly #parts: Parts
  #server: HttpServer | null = null
  #closed: Promise<void> | null = null

  constructor(parts: Parts) {
    this.#parts = parts
    this.config = parts.config
    this.routes = parts.app.routes
    this.store = parts.store
    this.access = parts.access
    this.workspaces = parts.workspaces
    this.users = parts.users
    this.sandboxes = parts.sandboxes
    this.runtime = parts.runtime
    this.credentials = parts.credentials
  }

  async request(path: string | Request, init?: RequestInit): Promise<Response> {
    const port = this.config.port === 0 ? '' : `:${this.config.port}`
    const base = this.#server?.url ?? `http://localhost${port}`
    const request = typeof path === 'string' ? new Request(new URL(path, base), init) : path
    return await this.#parts.app.fetch(request)
  }

  async listen(): Promise<{ url: string; port: number }> {
    const { config, app, lock, clock, log } = this.#parts
    if (this.#closed) throw new PlatformError('unavailable', 'the platform is closed')
    this.#server ??= startServer({ app, port: config.port, hosts: config.hosts, log })
    const { port } = this.#server
    const loopback = config.hosts.includes('127.0.0.1') && config.hosts.includes('::1')
    const url = loopback ? `http://localhost:${port}` : this.#server.url
    lock.publish({
      pid: process.pid,
      url,
      startedAt: new Date(clock.now()).toISOString(),
      ...(config.region === null ? {} : { region: config.region }),
    })
    return { url, port }
  }

  close(options: { keepInstances?: boolean } = {}): Promise<void> {
    this.#closed ??= this.#close(options.keepInstances ?? this.config.keepInstances)
    return this.#closed
  }

  async #close(keepInstances: boolean): Promise<void> {
    const parts = this.#parts
    await this.#server?.stop(requestGraceMs)
    await parts.sandboxes.close()
    parts.previews.close()
    await parts.instances.close({ keepInstances: keepInstances && !parts.temporary })
    if (parts.temporary) for (const id of await parts.runtime.list()) await parts.runtime.destroy(id)
    await parts.host.close()
    await parts.access[Symbol.asyncDispose]()
    if (parts.ownsRuntime) await parts.runtime[Symbol.asyncDispose]()
    await parts.store[Symbol.asyncDispose]()
    parts.lock[Symbol.dispose]()
    if (parts.temporary) rmSync(parts.config.dataDir, { recursive: true, force: true })
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close()
  }
}

async function openRuntime(
  config: Config,
  driver: RuntimeName | Runtime,
  { clock, log }: { clock: Clock; log: Logger },
): Promise<Runtime> {
  if (typeof driver !== 'string') return driver
  const { helperSource } = await import('./runtimes/embedded-helper.ts')
  const helperPath = await extractHelper(Bun.file(helperSource), join(config.dataDir, 'bin'))
  const options = { instancesDir: join(config.dataDir, 'instances'), helperPath, log, clock }
  return driver === 'process' ? await openProcessRuntime(options) : await openNamespaceRuntime(options)
}

/** The workspace, the admin and the key that `hutch env` prints; made by the first `up`. */
async function firstCredentials(
  dataDir: string,
  { users, workspaces, access }: { users: Users; workspaces: Workspaces; access: Access },
): Promise<{ workspace: string; apiKey: string }> {
  const known = readCredentials(dataDir)
  if (known !== null) return known
  const admin =
    (await users.getByEmail(firstAdminEmail)) ??
    (await users.create({ email: firstAdminEmail, givenName: 'Admin' }))
  if (!(await workspaces.namesOf(admin.sub)).includes(firstWorkspace)) {
    await workspaces.create({ name: firstWorkspace, displayName: 'Main', ownerSub: admin.sub })
  }
  const { key } = await access.keys.create({
    sub: admin.sub,
    subType: 'user',
    workspace: '',
    name: firstKeyName,
    createdBy: admin.sub,
  })
  const credentials = { workspace: firstWorkspace, apiKey: key }
  mkdirSync(dataDir, { recursive: true })
  const path = join(dataDir, 'credentials.json')
  writeFileSync(`${path}.draft`, `${JSON.stringify(credentials)}\n`, { mode: 0o600 })
  renameSync(`${path}.draft`, path)
  return credentials
}
