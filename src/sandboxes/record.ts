import { buildingShownMs } from '../builds/index.ts'
import type { Clock } from '../lib/clock.ts'
import { parseDateMs } from '../lib/date.ts'
import { defined } from '../lib/defined.ts'
import { parseDuration } from '../lib/duration.ts'
import { maskedValue } from '../lib/environment.ts'
import type { Resource } from '../spec/store.ts'
import type { SandboxEvent, SandboxNetwork, SandboxStatus, SandboxView } from './schema.ts'
import type { Upgrades } from './upgrades.ts'

export const sandboxKind = 'sandbox'
const eventsMax = 50
const failureShownMs = 60_000
const terminatedRetentionMsDefault = 5 * 60_000

/** How a sandbox rests in the store. */
export interface SandboxBody {
  /** Unique for ever; binds the sealed texts to this record. */
  uid: string
  displayName?: string
  externalId?: string
  labels: Record<string, string>
  createdBy: string
  updatedBy: string
  spec: SandboxSpec
  /** name -> value, sealed */
  sealedEnv: string
  /** One map for each routing rule of the proxy, sealed; absent when there are none. */
  sealedProxySecrets?: string
  status: SandboxStatus
  events: SandboxEvent[]
  instanceId: string | null
  terminatedAt?: number
  upgrades?: Upgrades
  /** What ran in the snapshot that it was made from, sealed, until it was started here. */
  sealedStarts?: string
  /** While its image is built from source, and after that failed. */
  source?: SandboxSource
  /** When the source came that its image was built from. */
  uploadedAt?: number
  /** While it is archived, or on the way there or back. */
  archive?: {
    startedAt: number
    createdAt?: number
    bytes?: number
    restoreStartedAt?: number
    /** What ran, to be started again. */
    sealedStarts: string
  }
}

/** A sandbox to be, of an image to be. One that has a machine goes on as it is meanwhile. */
export interface SandboxSource {
  /** Of the image, and of nothing else. */
  tag: string
  phase: 'UPLOADING' | 'BUILDING' | 'DEPLOYING' | 'FAILED'
  /** Milliseconds since the epoch. */
  failedAt?: number
  /** A `SandboxDraft`, sealed. */
  sealedDraft: string
  actor: string
}

export interface SandboxSpec {
  enabled?: boolean
  region?: string
  vpc?: string
  image: string
  memoryMb: number
  /** Absent: by default. */
  storageMb?: number
  ports?: { name?: string; target: number; protocol: string }[]
  envs: { name: string; secret?: boolean }[]
  ttl?: string
  expires?: string
  generation?: string
  snapshotEnabled?: boolean
  extraArgs?: Record<string, string>
  terminationGracePeriodSeconds?: number
  lifecycle?: NonNullable<SandboxView['spec']['lifecycle']>
  /** Without the secrets of its proxy. */
  network?: SandboxNetwork
}

export type StoredSandbox = Resource<SandboxBody>

/** What is remembered and no longer runs may be created over. */
export function isReplaceable(status: SandboxStatus): boolean {
  return status === 'TERMINATED' || status === 'FAILED'
}

export function indexesOf(body: SandboxBody): Record<string, string> {
  return { status: body.status, ...(body.externalId === undefined ? {} : { externalId: body.externalId }) }
}

export function withEvent(body: SandboxBody, nowMs: number, event: NewEvent): SandboxBody {
  return { ...noted(body, nowMs, event), status: event.status }
}

interface NewEvent {
  type: string
  status: SandboxStatus
  message: string
}

/**
 * With an event that says so, where what programs may reach is to be ruled: the rules are kept for clients, and nothing here
 * applies them. Said again when they change. Its status stays.
 */
export function notedRules(body: SandboxBody, nowMs: number, before?: SandboxNetwork): SandboxBody {
  const { network } = body.spec
  if (!hasRules(network) || JSON.stringify(network) === JSON.stringify(before)) return body
  const message =
    'spec.network: rules of domains, firewalls and the proxy are kept, and not applied by this version: programs reach whatever sandboxes may reach here'
  return noted(body, nowMs, { type: 'network', status: body.status, message })
}

function hasRules(network: SandboxNetwork | undefined): boolean {
  if (network === undefined) return false
  const { allowedDomains, forbiddenDomains, firewall, proxy, egress } = network
  const lists = [
    ...[allowedDomains, forbiddenDomains, firewall?.rulesets],
    ...[proxy?.allowedDomains, proxy?.forbiddenDomains, proxy?.routing],
  ]
  return lists.some((list) => (list?.length ?? 0) > 0) || Boolean(egress?.gateway ?? egress?.mode)
}

/** Its status stays. */
export function noted(body: SandboxBody, nowMs: number, event: NewEvent): SandboxBody {
  const events = [...body.events, { time: new Date(nowMs).toISOString(), ...event }]
  return { ...body, events: events.slice(-eventsMax) }
}

/**
 * As clients are told. Those that uploaded a source look every few seconds, and believe that it is deployed only after they saw it
 * being built; what takes less is told of for that long where one is looked at, and not in lists. Nothing else waits for it. That it failed is told for a while, too, of a
 * sandbox that goes on: others take one that is FAILED for lost.
 */
function toldStatus(
  { status, source, uploadedAt }: SandboxBody,
  nowMs: number,
  mayBePolled: boolean,
): SandboxStatus {
  if (status !== 'DEPLOYED' && status !== 'FAILED' && source === undefined) return status
  if (source?.phase === 'UPLOADING' || source?.phase === 'BUILDING') return source.phase
  if (mayBePolled && uploadedAt !== undefined && nowMs < uploadedAt + buildingShownMs) return 'BUILDING'
  if (source?.phase !== 'FAILED') return source?.phase ?? status
  return nowMs < (source.failedAt ?? 0) + failureShownMs ? 'FAILED' : status
}

/** Its machine runs. */
export function deployed(body: SandboxBody, nowMs: number, message: string): SandboxBody {
  return withEvent(body, nowMs, { type: 'deployment', status: 'DEPLOYED', message })
}

/** It has no machine that runs, and gets none by itself. */
export function failed(body: SandboxBody, nowMs: number, reason: string, type = 'instance'): SandboxBody {
  return withEvent(body, nowMs, { type, status: 'FAILED', message: `Failed: ${reason}` })
}

/** Whether policies end a sandbox of this status. */
export function mayExpire(status: SandboxStatus): boolean {
  return status === 'DEPLOYED' || status === 'FAILED' || status === 'ARCHIVED'
}

/**
 * When its policies end it, in milliseconds since the epoch; null: never. An archived sandbox is there to be kept
 * without being used, so that idleness does not count.
 */
export function expiresAtMs(sandbox: StoredSandbox, lastUsedAt: number): number | null {
  const { spec } = sandbox.body
  const archived = sandbox.body.status === 'ARCHIVED'
  const moments: (number | null)[] = []
  const after = (start: number, duration: string | undefined) => {
    return duration === undefined ? null : start + parseDuration('duration', duration)
  }
  moments.push(after(sandbox.createdAt, spec.ttl))
  moments.push(spec.expires === undefined ? null : parseDateMs(spec.expires))
  for (const policy of spec.lifecycle?.expirationPolicies ?? []) {
    if (policy.type === 'ttl-max-age') moments.push(after(sandbox.createdAt, policy.value))
    else if (policy.type === 'ttl-idle') moments.push(archived ? null : after(lastUsedAt, policy.value))
    else moments.push(parseDateMs(policy.value))
  }
  const known = moments.filter((moment) => moment !== null)
  return known.length === 0 ? null : Math.min(...known)
}

export function retentionMs(sandbox: StoredSandbox): number {
  const text = sandbox.body.spec.lifecycle?.terminatedRetention
  return text === undefined ? terminatedRetentionMsDefault : parseDuration('terminatedRetention', text)
}

export interface ViewOptions {
  origin: string
  clock: Clock
  lastUsedAt: number | null
  standby: boolean
  /** Where it runs, as the operator calls it; told when the client named no region. */
  region?: string
  /** Absent: values are masked. */
  env?: Record<string, string>
  /** Absent: left out. */
  proxySecrets?: ProxySecrets
  /** Lists leave events out. */
  events: boolean
}

export type ProxySecrets = (Record<string, string> | null)[]

/** A sandbox as it is answered. */
export function sandboxView(sandbox: StoredSandbox, options: ViewOptions): SandboxView {
  const { body } = sandbox
  const { spec } = body
  const alive = body.status === 'DEPLOYED'
  const lastUsedAt = options.lastUsedAt ?? sandbox.updatedAt
  const expiresAt = mayExpire(body.status) ? expiresAtMs(sandbox, lastUsedAt) : null
  return {
    metadata: {
      name: sandbox.name,
      ...defined({ displayName: body.displayName, externalId: body.externalId }),
      ...(Object.keys(body.labels).length > 0 ? { labels: body.labels } : {}),
      workspace: sandbox.workspace,
      url: `${options.origin}/${sandbox.workspace}/sandboxes/${sandbox.name}`,
      plan: 'self-hosted',
      createdAt: new Date(sandbox.createdAt).toISOString(),
      updatedAt: new Date(sandbox.updatedAt).toISOString(),
      createdBy: body.createdBy,
      updatedBy: body.updatedBy,
    },
    spec: {
      ...defined({ enabled: spec.enabled, region: spec.region ?? options.region, vpc: spec.vpc }),
      runtime: {
        image: spec.image,
        memory: spec.memoryMb,
        ...defined({ storageMb: spec.storageMb, ports: spec.ports }),
        ...(spec.envs.length === 0
          ? {}
          : { envs: spec.envs.map((env) => ({ ...env, value: options.env?.[env.name] ?? maskedValue })) }),
        ...defined({
          ttl: spec.ttl,
          expires: spec.expires,
          generation: spec.generation,
          snapshotEnabled: spec.snapshotEnabled,
          extraArgs: spec.extraArgs,
          terminationGracePeriodSeconds: spec.terminationGracePeriodSeconds,
        }),
      },
      ...defined({
        lifecycle: spec.lifecycle,
        network: withProxySecrets(spec.network, options.proxySecrets),
      }),
    },
    status: toldStatus(body, options.clock.now(), options.events),
    ...(alive ? { state: options.standby ? ('STANDBY' as const) : ('RUNNING' as const) } : {}),
    ...(body.archive ? { archive: archiveView(sandbox.id, body.archive) } : {}),
    ...(options.events ? { events: body.events } : {}),
    lastUsedAt: new Date(lastUsedAt).toISOString(),
    ...(expiresAt === null
      ? {}
      : { expiresIn: Math.max(0, Math.ceil((expiresAt - options.clock.now()) / 1000)) }),
  }
}

function archiveView(key: string, archive: NonNullable<SandboxBody['archive']>): SandboxView['archive'] {
  const { startedAt, createdAt, bytes, restoreStartedAt } = archive
  const at = (ms: number | undefined) => (ms === undefined ? undefined : new Date(ms).toISOString())
  return defined({
    key,
    startedAt: createdAt === undefined ? at(startedAt) : undefined,
    createdAt: at(createdAt),
    size: bytes,
    restoreStartedAt: at(restoreStartedAt),
    restore: restoreStartedAt === undefined ? undefined : { state: 'extracting' as const, totalBytes: bytes },
  })
}

function withProxySecrets(
  network: SandboxNetwork | undefined,
  secrets: ProxySecrets | undefined,
): SandboxNetwork | undefined {
  if (!network?.proxy?.routing || !secrets) return network
  const routing = network.proxy.routing.map((rule, index) => {
    const own = secrets[index]
    return own ? { ...rule, secrets: own } : rule
  })
  return { ...network, proxy: { ...network.proxy, routing } }
}
