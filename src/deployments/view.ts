/** Deployments as they are answered. */
import { defined } from '../lib/defined.ts'
import { type EnvEntry, maskedValue } from '../lib/environment.ts'
import { isLoopbackHost } from '../lib/loopback.ts'
import { platformOrigin } from './fleet/index.ts'
import { kindFacts } from './kinds.ts'
import {
  type DeploymentBody,
  type DeploymentStatus,
  kindOf,
  type Revision,
  revisionOf,
  type StoredDeployment,
} from './record.ts'
import type {
  ApplicationRevisionView,
  ApplicationView,
  JobView,
  RevisionView,
  TriggerView,
  WorkloadView,
} from './schema.ts'
import { revisionStatus, statusOf } from './status.ts'
import { taskLimits } from './task-settings.ts'
import type { StoredTrigger } from './triggers.ts'

const hostLabelCharsMax = 63

export interface DeploymentViewOptions {
  origin: string
  /** Below which applications are. */
  domains: string[]
  nowMs: number
  /** Told when the client named none; absent: none is. */
  region?: string
  /** Absent: values are masked. */
  env?: Record<string, string>
  /** Of callbacks, by trigger; those that are not told are masked. */
  callbackSecrets?: Record<string, string>
  /** Lists leave events out. */
  events: boolean
}

/** Who polls one waits to see it being built; lists, which nobody waits by, say how it stands. */
function toldStatus(body: DeploymentBody, { events, nowMs }: DeploymentViewOptions): DeploymentStatus {
  return statusOf(body, events ? nowMs : Number.POSITIVE_INFINITY)
}

/** An agent or a function. */
export function workloadView(deployment: StoredDeployment, options: DeploymentViewOptions): WorkloadView {
  const { body } = deployment
  const { spec } = body
  return {
    metadata: metadataOf(deployment, options.origin),
    spec: {
      enabled: spec.enabled,
      public: spec.public,
      ...defined({
        region: spec.region ?? options.region,
        policies: spec.policies,
        repository: spec.repository,
        revision: routingOf(body),
      }),
      runtime: {
        ...defined({ image: imageOf(body) }),
        memory: spec.memoryMb,
        ...defined({ envs: envsView(spec.envs, options.env) }),
        minScale: spec.minScale,
        maxScale: spec.maxScale,
        generation: spec.generation ?? 'mk3',
        ...defined({ transport: spec.transport, ports: spec.ports }),
      },
      ...defined({ triggers: spec.triggers?.map((trigger) => triggerView(body, trigger, options)) }),
    },
    status: toldStatus(body, options),
    ...(options.events ? { events: body.events } : {}),
  }
}

export function jobView(deployment: StoredDeployment, options: DeploymentViewOptions): JobView {
  const { body } = deployment
  const { spec } = body
  const limits = taskLimits(spec.task, body.revisions.at(-1)?.built?.task)
  const { volumes } = limits
  return {
    metadata: metadataOf(deployment, options.origin),
    spec: {
      enabled: spec.enabled,
      ...defined({
        region: spec.region ?? options.region,
        policies: spec.policies,
        revision: routingOf(body),
      }),
      runtime: {
        ...defined({ image: imageOf(body) }),
        memory: spec.memoryMb,
        ...defined({ envs: envsView(spec.envs, options.env) }),
        generation: spec.generation ?? 'mk3',
        timeout: limits.timeoutSeconds,
        maxRetries: limits.maxRetries,
        ...defined({
          maxConcurrentTasks: limits.maxConcurrentTasks ?? undefined,
          diskPercent: spec.task?.diskPercent,
          ports: spec.ports,
        }),
      },
      ...defined({
        triggers: spec.triggers?.map((trigger) => triggerView(body, trigger, options)),
        volumes: volumes.length > 0 ? volumes.map((volume) => ({ ...volume, type: 'ephemeral' })) : undefined,
      }),
    },
    status: toldStatus(body, options),
    ...(options.events ? { events: body.events } : {}),
  }
}

/** As a client may send it back. */
export function triggerView(
  { triggerStates = {} }: DeploymentBody,
  trigger: StoredTrigger,
  { callbackSecrets = {} }: Pick<DeploymentViewOptions, 'callbackSecrets'>,
): TriggerView {
  const { id, configuration, ...rest } = trigger
  const hasSecret = Object.hasOwn(triggerStates, id) && (triggerStates[id]?.secrets.length ?? 0) > 0
  const callbackSecret = Object.hasOwn(callbackSecrets, id) ? callbackSecrets[id] : maskedValue
  return {
    id,
    ...rest,
    ...(configuration === undefined
      ? {}
      : { configuration: { ...configuration, ...(hasSecret ? { callbackSecret } : {}) } }),
  }
}

export function applicationView(
  deployment: StoredDeployment,
  options: DeploymentViewOptions,
): ApplicationView {
  const { body } = deployment
  const { spec } = body
  return {
    metadata: {
      ...metadataOf(deployment, options.origin),
      ...defined({ url: applicationAddress(deployment, options) }),
    },
    spec: {
      enabled: spec.enabled,
      ...defined({ region: spec.region ?? options.region, image: imageOf(body) }),
      memory: spec.memoryMb,
      ...defined({
        port: spec.port,
        envs: envsView(spec.envs, options.env),
        revision: routingOf(body),
        revisions: body.revisions.length > 0 ? body.revisions.map(applicationRevisionView) : undefined,
        urls: spec.urls,
      }),
    },
    nodeGeneration: 'mk3.1',
    status: toldStatus(body, options),
    ...(options.events ? { events: body.events } : {}),
  }
}

export function applicationRevisionView(revision: Revision): ApplicationRevisionView {
  const { id, spec, image, snapshotId } = revision
  return {
    id,
    image: spec.image ?? image ?? '',
    memory: spec.memoryMb,
    ...defined({ port: spec.port, envs: envsView(spec.envs, undefined), snapshot: snapshotId }),
    createdAt: new Date(revision.createdAt).toISOString(),
    createdBy: revision.createdBy,
  }
}

export function revisionView({ traffic, previousActive }: DeploymentBody, revision: Revision): RevisionView {
  const { id } = revision
  const active = traffic.active === id
  const canary = traffic.canary === id
  return {
    id,
    active,
    canary,
    previousActive: previousActive === id,
    trafficPercent: canary
      ? traffic.canaryPercent
      : active
        ? 100 - (traffic.canary === null ? 0 : traffic.canaryPercent)
        : 0,
    status: revisionStatus(revision),
    createdAt: new Date(revision.createdAt).toISOString(),
    createdBy: revision.createdBy,
  }
}

function metadataOf(deployment: StoredDeployment, origin: string): WorkloadView['metadata'] {
  const { workspace, name, body } = deployment
  return {
    name,
    ...defined({ displayName: body.displayName, externalId: body.externalId }),
    ...(Object.keys(body.labels).length > 0 ? { labels: body.labels } : {}),
    workspace,
    url: `${origin}/${workspace}/${kindFacts[kindOf(deployment)].plural}/${name}`,
    plan: 'self-hosted',
    createdAt: new Date(deployment.createdAt).toISOString(),
    updatedAt: new Date(deployment.updatedAt).toISOString(),
    createdBy: body.createdBy,
    updatedBy: body.updatedBy,
  }
}

/**
 * A host of its own, since pages name what they load from the root of one. Undefined where whoever asks would not reach it by
 * that name: from inside, by an address, or with names that are too long together.
 */
function applicationAddress(
  { workspace, name }: StoredDeployment,
  { origin, domains }: DeploymentViewOptions,
): string | undefined {
  const { protocol, hostname, port } = new URL(origin)
  if (hostname === new URL(platformOrigin).hostname) return undefined
  const isReached = (domain: string) =>
    hostname === domain ||
    hostname.endsWith(`.${domain}`) ||
    (domain === 'localhost' ? isLoopbackHost(hostname) : !isLoopbackHost(hostname))
  const domain = domains.find(isReached)
  const label = `${name}-${workspace}`
  if (domain === undefined || label.length > hostLabelCharsMax) return undefined
  return `${protocol}//${label}.app.${domain}${port === '' ? '' : `:${port}`}`
}

/** As it was named, else what was built last. */
function imageOf({ spec, revisions }: DeploymentBody): string | undefined {
  return spec.image ?? revisions.findLast(({ image }) => image !== undefined)?.image
}

/** What a client may send back without changing anything: so what is under way is told, and no `traffic`. */
function routingOf(body: DeploymentBody): WorkloadView['spec']['revision'] {
  const { traffic, wanted, spec } = body
  const { active, canary, canaryPercent } = wanted ?? traffic
  const serving = revisionOf(body, active)
  const routing = defined({
    active: active ?? undefined,
    activeImage: serving && (serving.spec.image ?? serving.image),
    canary: canary ?? undefined,
    canaryPercent: canary === null ? undefined : canaryPercent,
    stickySessionTtl: spec.stickySessionTtl > 0 ? spec.stickySessionTtl : undefined,
  })
  return Object.keys(routing).length > 0 ? routing : undefined
}

function envsView(
  envs: EnvEntry[],
  values: Record<string, string> | undefined,
): { name: string; value: string; secret?: boolean }[] | undefined {
  if (envs.length === 0) return undefined
  return envs.map((env) => ({ ...env, value: values?.[env.name] ?? maskedValue }))
}
