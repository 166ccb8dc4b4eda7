/** From what a client sent to what is stored: limits, defaults, and what an update leaves as it is. */
import { PlatformError } from '../errors.ts'
import {
  badRequest,
  checkDisplayName,
  checkLabels,
  checkPattern,
  checkRange,
  checkRegion,
  checkText,
  quoted,
} from '../lib/checks.ts'
import { defined, kept } from '../lib/defined.ts'
import { type EnvInput, envsOf } from '../lib/environment.ts'
import { type DeploymentKind, type Transport, transports } from './kinds.ts'
import { type ApplicationUrl, type DeploymentSpec, hostOf } from './record.ts'
import type { ApplicationInput, JobInput, RoutingInput, WorkloadInput } from './schema.ts'
import { type TaskSettings, taskSettings } from './task-settings.ts'
import { triggersOf } from './triggers.ts'

const memoryMbDefault = 2048
const memoryMbMin = 128
const maxScaleDefault = 10
const scaleMax = 100
const portsMax = 10
const urlsMax = 50
const policiesMax = 50
const policyCharsMax = 63
const stickySecondsMax = 30 * 24 * 60 * 60
const externalIdPattern = /^[A-Za-z0-9-]{1,64}$/
const generations = ['mk2', 'mk3']

/** What a deployment is to be, secrets in the clear. */
export interface DeploymentDraft {
  displayName?: string
  externalId?: string
  labels: Record<string, string>
  spec: DeploymentSpec
  env: Record<string, string>
  /** Absent: requests are led as they were. */
  routing?: RoutingInput
  dockerConfig?: string
  /** The image is taken as it is here. */
  skipBuild: boolean
}

export interface DraftOptions {
  /** The deployment as it is; null: it is new. */
  previous: DeploymentDraft | null
  /** Its code comes as an upload: an image that is named does not count. */
  upload: boolean
  memoryMbMax: number
}

/** What the kinds write in different places, in one. */
interface Asked {
  metadata: NonNullable<WorkloadInput['metadata']>
  /** How the fields of the runtime are called in messages. */
  runtimeField: string
  enabled?: boolean | null
  public?: boolean | null
  region?: string | null
  policies?: string[] | null
  image?: string | null
  memory?: number | null
  envs?: { name: string; value?: string | number | boolean | null; secret?: boolean | null }[] | null
  minScale?: number | null
  maxScale?: number | null
  port?: number | null
  ports?: { name?: string | null; target: number; protocol?: string | null }[] | null
  transport?: string | null
  /** Of jobs; `before` is what an update that says nothing of it leaves. */
  task?: (before: TaskSettings | undefined) => TaskSettings
  generation?: string | null
  repository?: { type?: string | null; url?: string | null } | null
  triggers?: NonNullable<WorkloadInput['spec']>['triggers']
  routing?: RoutingInput | null
  dockerConfig?: string | null
  skipBuild?: boolean | string | null
}

/** @throws bad_request that names the field, not_implemented */
export function workloadDraft(
  kind: DeploymentKind,
  input: WorkloadInput,
  options: DraftOptions,
): DeploymentDraft {
  const spec = input.spec ?? {}
  const runtime = spec.runtime ?? {}
  refuse('spec.volumes', spec.volumes, 'volumes')
  refuse('spec.integrationConnections', spec.integrationConnections, 'integrations')
  return draftOf(
    kind,
    {
      metadata: input.metadata ?? {},
      runtimeField: 'spec.runtime',
      ...spec,
      ...runtime,
      routing: spec.revision ?? null,
    },
    options,
  )
}

/** @throws bad_request that names the field, not_implemented */
export function jobDraft(input: JobInput, options: DraftOptions): DeploymentDraft {
  const spec = input.spec ?? {}
  const { enabled, region, policies, triggers, revision } = spec
  // What else clients send of a runtime is for what is served.
  const { image, memory, envs, ports, generation, dockerConfig, skipBuild } = spec.runtime ?? {}
  return draftOf(
    'job',
    {
      metadata: input.metadata ?? {},
      runtimeField: 'spec.runtime',
      ...defined({ enabled, region, policies, triggers }),
      ...defined({ image, memory, envs, ports, generation, dockerConfig, skipBuild }),
      task: (before) => taskSettings(spec, before),
      routing: revision ?? null,
    },
    options,
  )
}

/** @throws bad_request that names the field, not_implemented */
export function applicationDraft(input: ApplicationInput, options: DraftOptions): DeploymentDraft {
  const spec = input.spec ?? {}
  refuse('spec.extensions', Object.keys(spec.extensions ?? {}), 'extensions of applications')
  if (spec.proxy) {
    throw new PlatformError(
      'not_implemented',
      'spec.proxy: an application cannot stand before a sandbox here; a preview of the sandbox does that',
    )
  }
  // What some clients write as a revision, since it has no id, is what the next one is to be.
  const next = spec.revisions?.findLast(({ id }) => !id)
  const { enabled, region } = spec
  const draft = draftOf(
    'application',
    {
      metadata: input.metadata ?? {},
      runtimeField: 'spec',
      ...defined({ enabled: enabled ?? undefined, region: region ?? undefined }),
      image: spec.image || next?.image,
      memory: spec.memory ?? next?.memory,
      port: spec.port ?? next?.port,
      envs: spec.envs ?? next?.envs,
      public: true,
      routing: spec.revision ?? null,
    },
    options,
  )
  // A deployment of the code is none of where it is reached.
  const urls = spec.urls ? urlsOf(spec.urls) : options.previous?.spec.urls
  return { ...draft, spec: { ...draft.spec, ...defined({ urls }) } }
}

/**
 * Who names an image or uploads code says all of the deployment: what is left out gets its default. Any other update
 * leaves what it does not name as it is.
 */
function draftOf(kind: DeploymentKind, asked: Asked, options: DraftOptions): DeploymentDraft {
  const { previous, upload } = options
  const { metadata, runtimeField } = asked
  const whole = previous === null || upload || Boolean(asked.image)
  const before = whole ? null : previous
  const image = upload ? null : asked.image || (previous?.spec.image ?? null)
  const envs =
    asked.envs || before === null
      ? envsOf(`${runtimeField}.envs`, envInputOf(asked.envs ?? []), previous?.env ?? null)
      : { envs: before.spec.envs, env: before.env }
  const ports = asked.ports ? portsOf(asked.ports) : before?.spec.ports
  const generation = asked.generation || previous?.spec.generation || 'mk3'
  if (!generations.includes(generation))
    throw badRequest(
      `${runtimeField}.generation: ${quoted(generation)} is not one of ${generations.join(', ')}`,
    )
  if (previous?.spec.generation !== undefined && generation !== previous.spec.generation) {
    throw badRequest(
      `${runtimeField}.generation: it is ${previous.spec.generation} and cannot become ${generation}: delete the ${kind} first`,
    )
  }
  const minScale = scaleOf(runtimeField, 'minScale', asked.minScale, before?.spec.minScale ?? 0, 0)
  const maxScale = scaleOf(
    runtimeField,
    'maxScale',
    asked.maxScale,
    before?.spec.maxScale ?? Math.max(maxScaleDefault, minScale),
    1,
  )
  if (minScale > maxScale)
    throw badRequest(`${runtimeField}.minScale: ${minScale} is more than maxScale, ${maxScale}`)
  const port = asked.port ?? ports?.[0]?.target ?? before?.spec.port
  const sticky = asked.routing?.stickySessionTtl
  return {
    ...defined({
      displayName: kept(metadata.displayName, previous?.displayName, checkDisplayName),
      externalId: kept(metadata.externalId, previous?.externalId, (text) =>
        checkPattern('metadata.externalId', text, externalIdPattern, '1 to 64 letters, digits and hyphens'),
      ),
    }),
    labels: metadata.labels || !previous ? checkLabels(metadata.labels ?? {}) : previous.labels,
    spec: {
      enabled: asked.enabled ?? before?.spec.enabled ?? true,
      public: asked.public ?? before?.spec.public ?? false,
      image,
      memoryMb: checkRange(
        `${runtimeField}.memory`,
        asked.memory ?? before?.spec.memoryMb ?? Math.min(memoryMbDefault, options.memoryMbMax),
        memoryMbMin,
        options.memoryMbMax,
      ),
      minScale,
      maxScale,
      generation,
      envs: envs.envs,
      stickySessionTtl:
        sticky === undefined || sticky === null
          ? (previous?.spec.stickySessionTtl ?? 0)
          : checkRange('spec.revision.stickySessionTtl', sticky, 0, stickySecondsMax),
      ...defined({
        port: port === undefined ? undefined : checkRange(`${runtimeField}.port`, port, 1, 65535),
        ports,
        task: asked.task?.(before?.spec.task),
        transport: asked.transport ? transportOf(asked.transport) : before?.spec.transport,
        region: kept(asked.region || undefined, before?.spec.region, checkRegion),
        policies: kept(asked.policies, before?.spec.policies, policiesOf),
        repository: asked.repository ? repositoryOf(asked.repository) : before?.spec.repository,
        // Those that were added meanwhile outlive code that says nothing of triggers.
        triggers: asked.triggers ? triggersOf(kind, asked.triggers) : previous?.spec.triggers,
      }),
    },
    env: envs.env,
    skipBuild: asked.skipBuild === true || asked.skipBuild === 'true',
    ...(asked.routing ? { routing: asked.routing } : {}),
    ...(asked.dockerConfig ? { dockerConfig: asked.dockerConfig } : {}),
  }
}

function policiesOf(names: string[]): string[] | undefined {
  if (names.length > policiesMax)
    throw badRequest(`spec.policies: ${names.length} policies, at most ${policiesMax}`)
  for (const name of names) checkText('spec.policies', name, policyCharsMax)
  return names.length === 0 ? undefined : names
}

function refuse(field: string, given: readonly unknown[] | null | undefined, what: string): void {
  if (!given || given.length === 0) return
  throw new PlatformError(
    'not_implemented',
    `${field}: there are no ${what} on this platform yet; leave it out`,
  )
}

function envInputOf(given: NonNullable<Asked['envs']>): EnvInput {
  return given.map(({ name, value, secret }) => ({
    name,
    value: value === null || value === undefined ? '' : String(value),
    secret: secret ?? false,
  }))
}

function scaleOf(
  runtimeField: string,
  name: string,
  given: number | null | undefined,
  otherwise: number,
  min: number,
): number {
  // Clients that write every field write 0 for "by default".
  const scale = given === null || given === undefined || (given === 0 && min > 0) ? otherwise : given
  return checkRange(`${runtimeField}.${name}`, scale, min, scaleMax)
}

function transportOf(given: string): Transport {
  const transport = transports.find((one) => one === given)
  if (!transport)
    throw badRequest(`spec.runtime.transport: ${quoted(given)} is not one of ${transports.join(', ')}`)
  return transport
}

function urlsOf(given: { domain: string; subdomain?: string | null }[]): ApplicationUrl[] {
  if (given.length > urlsMax) throw badRequest(`spec.urls: ${given.length} urls, at most ${urlsMax}`)
  const urls = given.map(({ domain, subdomain }) => ({
    domain: domain.toLowerCase(),
    ...defined({ subdomain: subdomain?.toLowerCase() || undefined }),
  }))
  const seen = new Set<string>()
  for (const host of urls.map(hostOf)) {
    if (seen.has(host)) throw badRequest(`spec.urls: ${quoted(host)} is there twice`)
    seen.add(host)
  }
  return urls
}

function portsOf(given: NonNullable<Asked['ports']>): NonNullable<DeploymentSpec['ports']> {
  if (given.length > portsMax)
    throw badRequest(`spec.runtime.ports: ${given.length} ports, at most ${portsMax}`)
  return given.map(({ name, target, protocol }, index) => ({
    ...(name ? { name: checkText(`spec.runtime.ports[${index}].name`, name, 63) } : {}),
    target: checkRange(`spec.runtime.ports[${index}].target`, target, 1, 65535),
    protocol: checkText(`spec.runtime.ports[${index}].protocol`, protocol ?? 'HTTP', 16).toUpperCase(),
  }))
}

function repositoryOf(given: NonNullable<Asked['repository']>): { type?: string; url?: string } {
  return defined({
    type: given.type ? checkText('spec.repository.type', given.type, 63) : undefined,
    url: given.url ? checkText('spec.repository.url', given.url, 2048) : undefined,
  })
}
