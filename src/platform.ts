/**
 * The composition root: the one file that names concrete drivers. Opens in order, closes in reverse. The executable is
 * its first user (`cli/up.ts`), tests are the second.
 */
import { existsSync, mkdtempSync, rmSync, statfsSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Access, FirstCredentials } from './access/index.ts'
import { Builder } from './builder/index.ts'
import { Builds, ImageBuilds } from './builds/index.ts'
import { Codegen } from './codegen/index.ts'
import { type Config, configDefaults, type RuntimeName } from './config.ts'
import { dataDirDefault } from './data-directory.ts'
import { Deliveries, newCallbackSecret } from './deliveries/index.ts'
import { Fleet } from './deployments/fleet/index.ts'
import { Deployments, deploymentKinds, RevisionImages } from './deployments/index.ts'
import type { StdioProbes } from './deployments/stdio/index.ts'
import { Domains, lookUpTxt } from './domains/index.ts'
import { PlatformError } from './errors.ts'
import { Executions } from './executions/index.ts'
import { AgentField } from './http/dialects/agentfield/index.ts'
import { composeCallback, performer } from './http/dialects/xpander/index.ts'
import { Hosts } from './http/host.ts'
import { LargeAnswers } from './http/large-answers.ts'
import type { Route } from './http/route.ts'
import { Exchanges } from './http/run/exchanges.ts'
import { agentCaller } from './http/run/later.ts'
import { type HttpServer, loopbackHosts, startServer } from './http/server.ts'
import { HostImage, Images } from './images/index.ts'
import { Instances } from './instances/index.ts'
import { Jobs } from './jobs/index.ts'
import { type Clock, systemClock } from './lib/clock.ts'
import { acquireDataLock } from './lib/data-lock.ts'
import { Dialer } from './lib/dialer.ts'
import { DiskReserve } from './lib/disk-reserve.ts'
import { createLogger, type Logger } from './lib/log.ts'
import { isLoopbackAddress, isLoopbackHost } from './lib/loopback.ts'
import { createSecretBox, openMasterKey } from './lib/secret-box.ts'
import { Memory } from './memory/index.ts'
import { hostRegistries, Network } from './network/index.ts'
import { Nodes, Notes } from './nodes/index.ts'
import { helperPathIn, layersFor, openRuntime, openStore } from './platform/drivers.ts'
import { openHttp } from './platform/http.ts'
import { Previews, Sandboxes, Schedules, Snapshots, snapshotReference } from './sandboxes/index.ts'
import type { Runtime } from './spec/runtime.ts'
import type { Store } from './spec/store.ts'
import { Logs } from './telemetry/index.ts'
import { Agents, Threads, Workers } from './threads/index.ts'
import { Triggers } from './triggers/index.ts'
import { version } from './version.ts'
import { Users, Workspaces } from './workspaces/index.ts'

export interface PlatformOptions extends Partial<Omit<Config, 'runtime'>> {
  /** A driver by name, or one of one's own (a fake). */
  runtime?: RuntimeName | Runtime
  clock?: Clock
  log?: Logger
  /** Looks up TXT records by which domains are verified; default: with the resolvers of this host. */
  resolveTxt?: (name: string) => Promise<string[][]>
}

export interface Platform extends AsyncDisposable {
  readonly config: Config
  readonly routes: readonly Route[]
  readonly store: Store
  readonly access: Access
  readonly workspaces: Workspaces
  readonly users: Users
  readonly sandboxes: Sandboxes
  readonly executions: Executions
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

const requestGraceMs = 2_000
/** Disk that is kept for the platform's own writing on a full one, and what else must be free for it to be taken. */
const diskReserveMb = 64
const diskFreeMbMin = 256

/**
 * Opens a platform; nothing of it stays behind when it rejects.
 * @throws conflict when another platform holds the data directory, or it is of a newer version; unavailable when the
 * runtime cannot work here
 */
export async function createPlatform(options: PlatformOptions = {}): Promise<Platform> {
  const {
    runtime: driver = 'namespace',
    clock = systemClock,
    log: givenLog,
    resolveTxt = lookUpTxt,
    ...settings
  } = options
  const temporary = options.dataDir === temporaryDataDir
  const dataDir = temporary ? mkdtempSync(join(tmpdir(), 'hutch-')) : (settings.dataDir ?? dataDirDefault())
  const config: Config = {
    ...configDefaults(dataDir),
    ...settings,
    dataDir,
    runtime: typeof driver === 'string' ? driver : 'namespace',
  }
  const log = givenLog ?? createLogger({ clock, level: config.logLevel, format: config.logFormat })
  if (config.keylessWorkspace !== null && !isOfThisHostAlone(config)) {
    throw new PlatformError(
      'bad_request',
      'keylessWorkspace: not where others can connect: listen on localhost, without a proxy in front, or leave it out',
    )
  }
  let keepInstances = config.keepInstances

  // Whatever opens puts its own closing here: closed in reverse, also when a later step fails.
  await using opened = new AsyncDisposableStack()
  if (temporary) opened.defer(() => rmSync(dataDir, { recursive: true, force: true }))
  const reserve = opened.use(
    new DiskReserve({
      path: join(dataDir, 'reserve'),
      bytes: diskReserveMb * 1024 * 1024,
      freeBytesMin: diskFreeMbMin * 1024 * 1024,
      clock,
      log,
    }),
  )
  const lock = opened.use(
    acquireDataLock(dataDir, { pid: process.pid }, () => {
      if (freeBytesOf(dataDir) < diskReserveMb * 1024 * 1024) reserve.giveUp()
    }),
  )
  const extracting = typeof driver === 'string' ? helperPathIn(config.dataDir) : null
  extracting?.catch(() => {})
  const secrets = createSecretBox(openMasterKey(dataDir))

  const carried = config.packageSettings === 'host' ? hostRegistries() : null
  const network = new Network({
    allow: [...config.egressAllow, ...(carried?.addresses ?? [])],
    registryNames: carried?.names ?? [],
    dir: join(dataDir, 'network'),
    clock,
    log,
  })
  network.setOwnPorts([config.port])
  opened.defer(() => network.close())
  if (carried !== null && carried.withoutCredential.length > 0) {
    log.info('settings of this host are used in sandboxes without their credentials', {
      settings: carried.withoutCredential,
    })
  }

  // The runtime's own processes look at the host while the database opens, which takes this thread.
  const helperPath = await extracting
  const openingRuntime = helperPath
    ? openRuntime(driver as RuntimeName, config, helperPath, network, { clock, log, temporary })
    : null
  opened.defer(async () => {
    // A driver that was handed in stays its owner's. One that failed to open has been told of already.
    const runtime = await openingRuntime?.catch(() => null)
    await runtime?.[Symbol.asyncDispose]()
  })
  const store = opened.use(await openStore(dataDir, { clock, log, makeRoom: () => reserve.giveUp() }))
  const runtime = openingRuntime ? await openingRuntime : (driver as Runtime)

  const users = new Users({ store, clock })
  const workspaces = new Workspaces({ store, users, heldKinds: ['sandbox', 'snapshot', ...deploymentKinds] })
  const access = opened.use(await Access.open({ store, secrets, users, workspaces, clock, log }))
  const credentials = opened.use(await FirstCredentials.open({ dataDir, users, workspaces, access, log }))

  const layers = layersFor(driver, helperPath)
  const host = new HostImage({
    imageDir: config.imageDir,
    dataDir,
    source: config.imageSource,
    usrLocal: config.imageLocal,
    layers,
    executablePath: process.execPath,
    clock,
    log,
  })
  opened.defer(() => host.close())
  let server: HttpServer | null = null
  const dialer = new Dialer({
    privateTargets: config.privateTargets,
    ownPorts: () => (server === null ? [config.port] : [server.port]),
    loopbackOpen: () => isOfThisHostAlone(config),
  })
  const { registryAuthFile } = config
  if (registryAuthFile !== null && !existsSync(registryAuthFile)) {
    log.warn('there is no such file of credentials for registries: no image can be pulled', {
      registryAuthFile,
    })
  }
  const images = new Images({
    host,
    hostEnv: carried?.env ?? {},
    store,
    secrets,
    clock,
    log,
    dir: join(dataDir, 'images'),
    layers,
    ...(helperPath ? { standInPath: helperPath } : {}),
    registries: config.registries,
    registryAuthFile,
    imageBytesMax: config.imageMbMax * 1024 * 1024,
    dialer,
    workspaces,
    *inUse() {
      yield* instances.roots()
      yield* snapshots.roots()
      yield* deployments.roots()
    },
  })
  opened.defer(async () => {
    if (temporary) await images.removeAll()
  })
  workspaces.onDelete((workspace) => images.removal(workspace))
  const logs = new Logs({ dir: join(dataDir, 'telemetry'), clock, log })
  opened.defer(() => logs.close())
  logs.start()
  workspaces.onDelete(async (workspace) => {
    await logs.removeWorkspace(workspace)
    return []
  })
  const standby = {
    freezeAfterMs: config.standbyAfterSeconds > 0 ? config.standbyAfterSeconds * 1000 : null,
    reclaimAfterMs: config.reclaimAfterSeconds > 0 ? config.reclaimAfterSeconds * 1000 : null,
    connectionIdleMs: config.idleConnectionSeconds > 0 ? config.idleConnectionSeconds * 1000 : null,
  }
  const instances = new Instances({ store, runtime, secrets, clock, log, standby })
  opened.defer(async () => {
    await instances.close({ keepInstances: keepInstances && !temporary })
    if (temporary) for (const id of await runtime.list()) await runtime.destroy(id)
  })
  const limits = { sandboxesMax: config.sandboxesMax, memoryMbMax: config.sandboxMemoryMbMax }
  const region = config.region === null ? {} : { region: config.region }
  const builder = new Builder({
    ...{ store, instances, images, clock, log },
    ...(carried === null ? {} : { registries: carried.installations }),
    ...(layers && helperPath
      ? {
          dockerfiles: {
            capabilities: runtime.capabilities,
            dir: join(dataDir, 'base-images'),
            standInPath: helperPath,
          },
        }
      : {}),
  })
  opened.defer(() => builder.close())
  workspaces.onDelete((workspace) => builder.removal(workspace))
  const builds = new Builds({ store, secrets, builder, logs, clock, log, dir: join(dataDir, 'builds') })
  workspaces.onDelete((workspace) => builds.removal(workspace))
  const imageBuilds = new ImageBuilds({ builds, images })
  const sandboxes = new Sandboxes({
    ...{ store, instances, images, builds, logs, secrets, clock, log, dataDir, limits },
    ...region,
  })
  const userOf = (workspace: string, image: string) =>
    deployments.userOf(workspace, image) ?? jobs.userOf(workspace, image)
  const snapshots = new Snapshots({
    ...{ store, sandboxes, instances, secrets, clock, log },
    ...region,
    userOf: (workspace, id) => userOf(workspace, snapshotReference(id)),
  })
  const revisionImages = new RevisionImages({ images, snapshots, userOf })
  let probes: StdioProbes | null = null
  const fleet = new Fleet({
    ...{ store, instances, images: revisionImages, logs, clock, log },
    ...region,
    idleMs: config.scaleToZeroAfterSeconds > 0 ? config.scaleToZeroAfterSeconds * 1000 : null,
    crashed: (run, message) => deployments.noteCrash(run, message),
    async probeStdio(...probed) {
      probes ??= new (await import('./deployments/stdio/index.ts')).StdioProbes({ clock, logs })
      await probes.probe(...probed)
    },
  })
  opened.defer(() => fleet.close())
  const deployments = new Deployments({
    ...{ store, fleet, builds, images: revisionImages, logs, secrets, clock, log },
    memoryMbMax: config.sandboxMemoryMbMax,
    domains: config.domains,
    ending: (deployment) => jobs.endAll(deployment),
    callbacks: {
      checkAddress: (field, url) => deliveries.checkAddress(field, url, { loopback: true }),
      newSecret: newCallbackSecret,
    },
    checkUrls: (workspace, urls) => domains.checkUrls(workspace, urls),
    ...region,
  })
  opened.defer(() => deployments.close())
  const executions = new Executions({
    ...{ queue: store.queue, clock, log },
    waitingMax: config.executionsWaitingMax,
    bytesMax: config.executionsMbMax * 1024 * 1024,
    keptMs: config.executionsKeptDays * 24 * 60 * 60 * 1000,
    keptMax: config.executionsKeptMax,
  })
  workspaces.onDelete(async (workspace) => {
    await executions.removal(workspace)
    return []
  })
  const jobs = new Jobs({
    ...{ store, instances, executions, deployments, images: revisionImages, logs, secrets, clock, log },
    tasksMax: config.jobTasksMax,
    ...region,
  })
  const deliveries = new Deliveries({ executions, dialer, secrets, clock, version })
  const nodes = new Nodes({ store, clock })
  const notes = new Notes({ store, clock })
  const memory = new Memory({ store, clock })
  for (const owner of [nodes, notes, memory]) workspaces.onDelete((workspace) => owner.removal(workspace))
  const answers = new LargeAnswers(clock)
  const agentField = new AgentField({
    ...{
      executions,
      answers,
      deliveries,
      deployments,
      nodes,
      notes,
      memory,
      dialer,
      logs,
      clock,
      log,
      version,
    },
    syncMs: config.agentfieldSyncSeconds * 1000,
    asyncMs: config.agentfieldAsyncSeconds * 1000,
    nodeRunningMax: config.agentfieldNodeMax > 0 ? config.agentfieldNodeMax : null,
  })
  const domain = config.domains[0] ?? 'localhost'
  const hosts = new Hosts({
    listenHosts: config.hosts,
    domains: config.domains,
    trustedProxies: config.trustedProxies,
    ...(config.url === null ? {} : { publicUrl: config.url }),
  })
  const ownsHost = (host: string) => hosts.owns(host)
  const domains = new Domains({
    ...{ store, clock, ownsHost },
    resolveTxt,
    userOf: (workspace, name) => deployments.domainUser(workspace, name),
  })
  workspaces.onDelete((workspace) => domains.removal(workspace))
  const heldElsewhere = (workspace: string, host: string) =>
    ![null, workspace].includes(domains.holderOf(host)?.workspace ?? null)
  const previews = new Previews({
    ...{ store, sandboxes, secrets, clock, log, domain, ownsHost, heldElsewhere },
  })
  const schedules = new Schedules({ store, sandboxes, secrets, clock, log })
  opened.defer(() => previews.close())
  opened.defer(() => sandboxes.close())
  opened.defer(() => snapshots.close())
  opened.defer(() => schedules.close())
  // First: a sandbox that waits for its image would be waited for.
  opened.defer(() => images.close())
  // Before that: what is built goes on at the next start.
  opened.defer(() => builds.close())
  opened.defer(() => agentField.close())
  await instances.recover()
  await snapshots.open()
  // What instances and snapshots of an earlier life stand on must not go while another platform of this host freezes anew.
  await host.retain([...instances.roots(), ...snapshots.roots()].map(({ root }) => root))
  builder.open()
  await domains.open()
  await deployments.load()
  fleet.open()
  await deployments.open()
  await sandboxes.open()
  await previews.open()
  await schedules.open()
  host.start()
  images.start()
  await builds.open()
  agentField.open()
  const codegen = new Codegen({ dialer, log })
  opened.defer(() => codegen.close())
  const plane = { deployments, exchanges: opened.use(new Exchanges({ clock })) }
  const origin = () => config.url ?? server?.url ?? `http://localhost:${config.port}`
  const triggers = new Triggers({
    ...{ store, deployments, jobs, executions, deliveries, secrets, clock, log },
    call: agentCaller({ plane: () => plane, answers, clock, log }),
    origin,
  })
  const agents = new Agents({ store, deployments })
  const threads = new Threads({ store, executions, secrets, clock, log })
  const workers = new Workers({ threads, clock, log })
  threads.performer(performer({ agents, workers, threads, plane, answers, deployments, origin }), (task) =>
    workers.ended(task),
  )
  executions.callbacks('xpander', composeCallback(deliveries))
  workspaces.onDelete((workspace) => agents.removalSteps(workspace))
  workspaces.onDelete((workspace) => threads.removal(workspace))
  opened.defer(() => threads.close())
  opened.defer(() => workers.close())
  await threads.open()
  await workers.open()
  const app = openHttp(
    {
      ...{ access, workspaces, users, sandboxes, snapshots, previews, schedules, deployments, domains },
      ...{ executions, triggers, deliveries, images, imageBuilds, jobs, builds, logs, agentField },
      ...{ threads, agents, workers, codegen },
    },
    {
      ...{ config, store, runtime, instances, fleet, network, hosts, clock, log, opened },
      exchanges: plane.exchanges,
    },
  )
  // Closed first: what is under way ends as cut off, not as what fails since the rest is gone.
  opened.defer(() => executions.close())
  await jobs.open()
  await executions.open()
  opened.defer(() => triggers.close())
  await triggers.open()

  // One that goes with its platform has nothing to be kept for.
  if (!temporary) reserve.keep()

  let closing: Promise<void> | null = null
  const parts = opened.move()
  parts.defer(() => server?.stop(requestGraceMs))
  const close: Platform['close'] = (closeOptions = {}) => {
    keepInstances = closeOptions.keepInstances ?? keepInstances
    closing ??= parts.disposeAsync()
    return closing
  }
  return {
    config,
    routes: app.routes,
    store,
    access,
    workspaces,
    users,
    sandboxes,
    executions,
    runtime,
    get credentials() {
      return credentials.current
    },
    close,
    [Symbol.asyncDispose]: () => close(),

    async request(path, init) {
      const port = config.port === 0 ? '' : `:${config.port}`
      const base = server?.url ?? `http://localhost${port}`
      return await app.fetch(typeof path === 'string' ? new Request(new URL(path, base), init) : path)
    },

    async listen() {
      if (closing) throw new PlatformError('unavailable', 'the platform is closed')
      server ??= startServer({ app, port: config.port, hosts: config.hosts, log })
      const { port } = server
      network.setOwnPorts([port])
      const loopback = loopbackHosts.every((address) => config.hosts.includes(address))
      const url = loopback ? `http://localhost:${port}` : server.url
      lock.publish({
        pid: process.pid,
        url,
        startedAt: new Date(clock.now()).toISOString(),
        runtime: runtime.name,
        isolation: runtime.capabilities.isolation,
        ...region,
        ...(config.url === null ? {} : { publicUrl: config.url }),
        ...(config.criu === null ? {} : { criu: config.criu }),
      })
      return { url, port }
    },
  }
}

/** Whether nobody elsewhere can connect: it listens on loopback, and nothing says that something is in front. */
function isOfThisHostAlone({ hosts, trustedProxies, url }: Config): boolean {
  return (
    hosts.every(isLoopbackAddress) &&
    trustedProxies.length === 0 &&
    (url === null || isLoopbackHost(new URL(url).host))
  )
}

function freeBytesOf(directory: string): number {
  const { bavail, bsize } = statfsSync(directory)
  return bavail * bsize
}
