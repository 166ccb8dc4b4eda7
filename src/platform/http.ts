import { join } from 'node:path'
import type { Access } from '../access/index.ts'
import type { Builds, ImageBuilds } from '../builds/index.ts'
import type { Codegen } from '../codegen/index.ts'
import type { Config } from '../config.ts'
import type { Deliveries } from '../deliveries/index.ts'
import type { Fleet } from '../deployments/fleet/index.ts'
import { ApplicationForks, type Deployments } from '../deployments/index.ts'
import type { Domains } from '../domains/index.ts'
import type { Executions } from '../executions/index.ts'
import { type App, createApp } from '../http/app.ts'
import { apiKeyRoutes } from '../http/control/api-keys.ts'
import { deliveryRoutes } from '../http/control/deliveries.ts'
import { deploymentRoutes } from '../http/control/deployments.ts'
import { domainRoutes } from '../http/control/domains.ts'
import { executionRoutes } from '../http/control/executions.ts'
import { imageRoutes } from '../http/control/images.ts'
import { jobRoutes } from '../http/control/jobs.ts'
import { loginRoutes } from '../http/control/login.ts'
import { oauthRoutes } from '../http/control/oauth.ts'
import { observabilityRoutes } from '../http/control/observability.ts'
import { platformRoutes } from '../http/control/platform.ts'
import { previewRoutes } from '../http/control/previews.ts'
import { regionRoutes } from '../http/control/regions.ts'
import { sandboxRoutes } from '../http/control/sandboxes.ts'
import { schedulesRoutes } from '../http/control/schedules.ts'
import { serviceAccountRoutes } from '../http/control/service-accounts.ts'
import { snapshotRoutes } from '../http/control/snapshots.ts'
import { templateRoutes } from '../http/control/templates.ts'
import { triggerRoutes } from '../http/control/triggers.ts'
import { userRoutes } from '../http/control/users.ts'
import { workspaceRoutes } from '../http/control/workspaces.ts'
import type { AgentField } from '../http/dialects/agentfield/index.ts'
import { xpanderRoutes } from '../http/dialects/xpander/index.ts'
import { InstanceDoors } from '../http/doors.ts'
import { frontPageRoutes } from '../http/front-page.ts'
import type { Hosts } from '../http/host.ts'
import { keylessAccess } from '../http/keyless.ts'
import { LargeBodies } from '../http/large-bodies.ts'
import { LazyMcpBridge } from '../http/mcp/index.ts'
import { Readiness } from '../http/readiness.ts'
import type { Route } from '../http/route.ts'
import { agentRunRoutes } from '../http/run/agents.ts'
import { ApplicationGateway } from '../http/run/applications.ts'
import type { DeploymentPlane } from '../http/run/deployments.ts'
import type { Exchanges } from '../http/run/exchanges.ts'
import { executionDataRoutes } from '../http/run/executions.ts'
import { functionRunRoutes } from '../http/run/functions.ts'
import { PreviewGateway } from '../http/run/previews.ts'
import type { SandboxApi } from '../http/run/sandbox/api.ts'
import { createSandboxMcp } from '../http/run/sandbox/mcp.ts'
import { sandboxRunRoutes } from '../http/run/sandbox.ts'
import { uploadRoutes } from '../http/run/uploads.ts'
import type { Images } from '../images/index.ts'
import type { Instances } from '../instances/index.ts'
import type { Jobs } from '../jobs/index.ts'
import type { Clock } from '../lib/clock.ts'
import type { Logger } from '../lib/log.ts'
import type { Network } from '../network/index.ts'
import type { Previews, Sandboxes, Schedules, Snapshots } from '../sandboxes/index.ts'
import type { Runtime } from '../spec/runtime.ts'
import type { Store } from '../spec/store.ts'
import type { Logs } from '../telemetry/index.ts'
import type { Agents, Threads, Workers } from '../threads/index.ts'
import type { Triggers } from '../triggers/index.ts'
import { commit, version } from '../version.ts'
import type { Users, Workspaces } from '../workspaces/index.ts'

/** What requests are about. */
export interface Nouns {
  access: Access
  workspaces: Workspaces
  users: Users
  sandboxes: Sandboxes
  snapshots: Snapshots
  previews: Previews
  schedules: Schedules
  deployments: Deployments
  domains: Domains
  executions: Executions
  triggers: Triggers
  deliveries: Deliveries
  images: Images
  imageBuilds: ImageBuilds
  jobs: Jobs
  builds: Builds
  logs: Logs
  agentField: AgentField
  threads: Threads
  agents: Agents
  workers: Workers
  codegen: Codegen
}

/** What they come by. */
export interface Surroundings {
  config: Config
  store: Store
  runtime: Runtime
  instances: Instances
  fleet: Fleet
  network: Network
  hosts: Hosts
  exchanges: Exchanges
  clock: Clock
  log: Logger
  /** Whatever is opened here closes with it. */
  opened: AsyncDisposableStack
}

interface Gateways {
  api: SandboxApi
  plane: DeploymentPlane & { deployments: Deployments }
  bridge: LazyMcpBridge
  applications: ApplicationGateway
  previewed: PreviewGateway
  readiness: Readiness
}

/** All that answers requests of a platform, from outside and from its instances. */
export function openHttp(nouns: Nouns, around: Surroundings): App {
  const { access, sandboxes, previews, deployments, jobs } = nouns
  const { config, instances, fleet, network, hosts, clock, log, opened } = around
  const api = {
    bodies: new LargeBodies(clock),
    codegen: nouns.codegen,
    addressesOf: (instanceId: string, host: string) => network.addressesOf(instanceId, host),
    build: { version, gitCommit: commit },
    mcp: createSandboxMcp({ version, log }),
  }
  const plane = { deployments, exchanges: around.exchanges }
  const bridge = opened.use(new LazyMcpBridge({ clock, log }))
  const applications = new ApplicationGateway({
    ...plane,
    domains: config.domains,
    findHost: (host) => applicationAt(nouns, host),
  })
  const previewed = new PreviewGateway({ previews, sandboxes, domains: config.domains, api, log })
  const readiness = new Readiness({ store: around.store, runtime: around.runtime, clock, log })
  const app = createApp({
    routes: routesOf(nouns, around, { api, plane, bridge, applications, previewed, readiness }),
    access,
    hosts,
    bodies: api.bodies,
    ...(config.keylessWorkspace === null ? {} : { keyless: keylessAccess(config.keylessWorkspace) }),
    serveHost: async (request, hostName, context) =>
      (await applications.serveHost(request, hostName, context)) ??
      (await previewed.serveHost(request, hostName, context)),
    clock,
    log,
    version,
  })
  const doors = opened.use(
    new InstanceDoors({
      dir: join(config.dataDir, 'doors'),
      ownerOf: (instanceId) => instances.ownerOf(instanceId),
      sandboxes,
      workloadOf: (instanceId) => fleet.workloadOf(instanceId) ?? jobs.workloadOf(instanceId),
      platformDoor: config.platformDoor,
      api,
      app,
      clock,
      log,
    }),
  )
  network.useDoors(doors)
  return app
}

/** Every route group there is, on one screen. */
function routesOf(
  nouns: Nouns,
  { config, clock, log }: Surroundings,
  { api, plane, bridge, applications, previewed, readiness }: Gateways,
): Route[] {
  const { access, workspaces, users, sandboxes, snapshots, previews, schedules, deployments } = nouns
  const { domains, executions, triggers, deliveries, images, imageBuilds, jobs, builds, logs } = nouns
  const { agentField, threads, agents, workers } = nouns
  return [
    ...platformRoutes({ notReady: () => readiness.reason() }),
    ...regionRoutes({ region: config.region }),
    ...templateRoutes(),
    ...frontPageRoutes(),
    ...oauthRoutes(access),
    ...loginRoutes(access),
    ...workspaceRoutes(workspaces),
    ...userRoutes(users, access.keys),
    ...apiKeyRoutes(access.keys),
    ...serviceAccountRoutes(access),
    ...sandboxRoutes({ sandboxes, log }),
    ...snapshotRoutes({
      snapshots,
      sandboxes,
      applications: new ApplicationForks({ deployments, snapshots }),
    }),
    ...previewRoutes({ previews }),
    ...schedulesRoutes({ schedules, clock, log }),
    ...deploymentRoutes({ deployments, log }),
    ...domainRoutes({
      domains,
      requireApplication: (workspace, name) => deployments.get(workspace, 'application', name),
    }),
    ...executionRoutes({ executions }),
    ...triggerRoutes({ deployments, log }),
    ...deliveryRoutes(deliveries),
    ...imageRoutes(images, imageBuilds),
    ...jobRoutes(jobs),
    ...executionDataRoutes(jobs),
    ...uploadRoutes(builds),
    ...observabilityRoutes({ logs, sandboxes }),
    ...previewed.routes(),
    ...sandboxRunRoutes(sandboxes, api),
    ...agentRunRoutes({ ...plane, later: triggers.agents }),
    ...functionRunRoutes({ ...plane, deployments, bridge, logs }),
    ...applications.routes(),
    ...agentField.routes(),
    ...xpanderRoutes({ threads, agents, workers, callbacks: deliveries, access, clock }),
  ]
}

/** The application that a host leads to, which its workspace has shown to be its own. */
function applicationAt({ domains, deployments }: Nouns, host: string) {
  const holder = domains.holderOf(host)
  if (holder === null) return null
  const { workspace, application } = holder
  const own = host === holder.domain ? application : null
  const name = deployments.applicationAt(workspace, host) ?? own
  return name !== null && deployments.isKnown(workspace, 'application', name) ? { workspace, name } : null
}
