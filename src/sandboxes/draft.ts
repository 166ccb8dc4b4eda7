/** From what a client sent to what is stored: limits, defaults, and what an update leaves as it is. */
import type { ResolvedImage } from '../images/index.ts'
import {
  badRequest,
  checkDisplayName,
  checkLabels,
  checkRange,
  checkRegion,
  checkText,
  quoted,
} from '../lib/checks.ts'
import { parseDateMs } from '../lib/date.ts'
import { defined, kept } from '../lib/defined.ts'
import { parseDuration } from '../lib/duration.ts'
import { envsOf, sameEnv } from '../lib/environment.ts'
import type { ProcessRecord, ProcessStart } from './processes.ts'
import type { ProxySecrets, SandboxSpec } from './record.ts'
import type { SandboxInput, SandboxNetwork } from './schema.ts'

const defaultSandboxImage = 'blaxel/base-image:latest'
export const memoryMbDefault = 4096
export const memoryMbMin = 128
export const memoryMbMax = 256 * 1024
export const storageMbMin = 64
export const storageMbMax = 1024 * 1024
export const portsMax = 100
const expirationPoliciesMax = 10
const networkBytesMax = 256 * 1024
/** The sandbox's own API, as sessions know it: a preview of this port is of the API. */
export const sandboxApiPort = 443
/** All ports that the API has. */
export const sandboxApiPorts: readonly number[] = [sandboxApiPort, 8080]
const platformPort = 80
/** Ports inside a sandbox that are the platform's. */
export const reservedPorts: readonly number[] = [platformPort, ...sandboxApiPorts]

const externalIdPattern = /^[A-Za-z0-9-]{1,64}$/

/** What a sandbox is to be, secrets in the clear. */
export interface SandboxDraft {
  displayName?: string
  externalId?: string
  labels: Record<string, string>
  spec: SandboxSpec
  env: Record<string, string>
  proxySecrets: ProxySecrets
  /** Its machine begins with these instead of with an image and empty files. */
  seed?: SandboxSeed
}

/** What a snapshot gives to a machine that is made from it. */
export interface SandboxSeed {
  /** As the runtime calls the snapshot. */
  snapshotId: string
  /** What it stands on. */
  image: ResolvedImage
  /** Of the machine that it was taken of. */
  hostname: string
  /** What ran there. */
  starts: ProcessStart[]
  /** What was known of that, and of what had ended there. */
  records: ProcessRecord[]
  /** They have an environment that is to be another: they are started anew. */
  anew?: true
}

export function checkExternalId(externalId: string): string {
  if (!externalIdPattern.test(externalId)) {
    throw badRequest(
      `metadata.externalId ${quoted(externalId)} is not valid: 1 to 64 letters, digits and hyphens`,
    )
  }
  return externalId
}

/** @throws bad_request where an update gives another name */
export function checkSameName(input: SandboxInput, name: string): void {
  if (!input.metadata?.name || input.metadata.name === name) return
  throw badRequest(`metadata.name: a sandbox cannot be renamed; send "${name}" or leave it out`)
}

/** Credentials for the registry of its image: for one pull, and not kept. */
export function dockerConfigOf(input: SandboxInput): { dockerConfig?: string } {
  const dockerConfig = input.spec?.runtime?.dockerConfig
  return dockerConfig ? { dockerConfig } : {}
}

/**
 * The draft that `input` asks for. With `previous` it is an update: metadata, and those fields of the runtime whose
 * change costs the files (image, memory, storageMb, envs), stay when left out; null clears; the rest of the spec is
 * replaced as a whole.
 * @throws bad_request that names the field
 */
export function draftOf(
  input: SandboxInput,
  previous: SandboxDraft | null,
  nowMs: number,
  memoryMbAllowed = memoryMbMax,
): SandboxDraft {
  const metadata = input.metadata ?? {}
  const spec = input.spec ?? {}
  const runtime = spec.runtime ?? {}
  if (spec.volumes && spec.volumes.length > 0) {
    throw badRequest('spec.volumes: there are no volumes on this platform yet; leave it out')
  }
  const externalId = metadata.externalId === undefined ? input.externalId : metadata.externalId
  const network = networkOf(spec.network ?? undefined, previous)
  const envs =
    runtime.envs === undefined && previous
      ? { envs: previous.spec.envs, env: previous.env }
      : envsOf('spec.runtime.envs', runtime.envs ?? [], previous?.env ?? null)
  return {
    ...defined({
      displayName: kept(metadata.displayName, previous?.displayName, checkDisplayName),
      externalId: kept(externalId, previous?.externalId, checkExternalId),
    }),
    labels: metadata.labels === undefined && previous ? previous.labels : checkLabels(metadata.labels ?? {}),
    spec: {
      image: kept(runtime.image, previous?.spec.image, (image) => image) || defaultSandboxImage,
      memoryMb:
        kept(runtime.memory, previous?.spec.memoryMb, (mb) =>
          // Whoever is out of range is told what the operator allows; who asks for more than that, by which setting.
          checkRange(
            'spec.runtime.memory',
            mb,
            memoryMbMin,
            mb >= memoryMbMin && mb <= memoryMbMax ? memoryMbMax : Math.min(memoryMbAllowed, memoryMbMax),
          ),
        ) ?? memoryMbDefault,
      envs: envs.envs,
      ...defined({
        storageMb: kept(runtime.storageMb, previous?.spec.storageMb, (mb) =>
          checkRange('spec.runtime.storageMb', mb, storageMbMin, storageMbMax),
        ),
        ports: kept(runtime.ports, previous?.spec.ports, portsOf),
        enabled: spec.enabled ?? undefined,
        region: kept(spec.region || undefined, previous?.spec.region, checkRegion),
        vpc: kept(spec.vpc, previous?.spec.vpc, (vpc) => checkText('spec.vpc', vpc, 63)),
        ttl: checkDuration('spec.runtime.ttl', runtime.ttl),
        expires: checkDate('spec.runtime.expires', runtime.expires, previous ? null : nowMs),
        generation: kept(runtime.generation, previous?.spec.generation, (text) =>
          checkText('spec.runtime.generation', text, 16),
        ),
        snapshotEnabled: kept(runtime.snapshotEnabled, previous?.spec.snapshotEnabled, (flag) => flag),
        extraArgs: kept(runtime.extraArgs, previous?.spec.extraArgs, extraArgsOf),
        terminationGracePeriodSeconds: kept(
          runtime.terminationGracePeriodSeconds,
          previous?.spec.terminationGracePeriodSeconds,
          (seconds) => checkRange('spec.runtime.terminationGracePeriodSeconds', seconds, 0, 3600),
        ),
        lifecycle: lifecycleOf(spec.lifecycle ?? undefined),
        network: network.network,
      }),
    },
    env: envs.env,
    proxySecrets: network.secrets,
  }
}

/** Whether only a new instance, with empty files, can be what `next` asks for. */
export function needsNewInstance(previous: SandboxDraft, next: SandboxDraft): boolean {
  const { spec: before } = previous
  const { spec: after } = next
  return (
    before.image !== after.image ||
    before.memoryMb !== after.memoryMb ||
    storageMbOf(before) !== storageMbOf(after) ||
    !sameEnv(previous.env, next.env)
  )
}

export function storageMbOf(spec: SandboxSpec): number {
  return spec.storageMb ?? Math.max(storageMbMin, Math.floor(spec.memoryMb / 2))
}

export function portsOf(
  given: { name?: string | null; target: number; protocol?: string | null }[],
): NonNullable<SandboxSpec['ports']> {
  if (given.length > portsMax)
    throw badRequest(`spec.runtime.ports: ${given.length} ports, at most ${portsMax}`)
  const seen = new Set<number>()
  return given.map(({ name, target, protocol }, index) => {
    const field = `spec.runtime.ports[${index}].target`
    checkRange(field, target, 1, 65535)
    // Naming a port opens nothing, and templates of the cloud name the API's own.
    if (target === platformPort) {
      throw badRequest(`${field}: ${target} is reserved by the platform: use another, such as 3000`)
    }
    if (seen.has(target)) throw badRequest(`${field}: ${target} is listed twice`)
    seen.add(target)
    return {
      ...(name ? { name: checkText(`spec.runtime.ports[${index}].name`, name, 63) } : {}),
      target,
      protocol: (protocol ?? 'HTTP').toUpperCase(),
    }
  })
}

/** Of the ports that are named, those on which its programs can listen. */
export function programPorts({ ports = [] }: Pick<SandboxSpec, 'ports'>): number[] {
  return ports.map(({ target }) => target).filter((port) => !sandboxApiPorts.includes(port))
}

function extraArgsOf(given: Record<string, string>): Record<string, string> {
  const allowed = ['iptables', 'nfs', 'tun']
  for (const [name, value] of Object.entries(given)) {
    if (!allowed.includes(name) || (value !== 'enabled' && value !== 'disabled')) {
      throw badRequest(
        `spec.runtime.extraArgs: ${quoted(name)}: ${quoted(value)} is not known; allowed are ${allowed.join(', ')}, "enabled" or "disabled"`,
      )
    }
  }
  return given
}

type LifecycleInput = NonNullable<NonNullable<NonNullable<SandboxInput['spec']>['lifecycle']>>

function lifecycleOf(given: LifecycleInput | undefined): SandboxSpec['lifecycle'] {
  if (given === undefined) return undefined
  const policies = given.expirationPolicies ?? []
  if (policies.length > expirationPoliciesMax) {
    throw badRequest(
      `spec.lifecycle.expirationPolicies: ${policies.length} policies, at most ${expirationPoliciesMax}`,
    )
  }
  const lifecycle = defined({
    expirationPolicies: given.expirationPolicies
      ? policies.map(({ type, value, action }, index) => {
          const field = `spec.lifecycle.expirationPolicies[${index}].value`
          if (type === 'date') checkDate(field, value, null)
          else checkDuration(field, value)
          return { type, value, action: action ?? 'delete' }
        })
      : undefined,
    terminatedRetention: checkDuration('spec.lifecycle.terminatedRetention', given.terminatedRetention),
  })
  return Object.keys(lifecycle).length > 0 ? lifecycle : undefined
}

/**
 * Takes the secrets of the proxy out of the network, rule by rule. A rule sent back without secrets, as it was read,
 * keeps those of the rule in its place with the same destinations.
 */
function networkOf(
  given: SandboxNetwork | undefined,
  previous: SandboxDraft | null,
): { network: SandboxNetwork | undefined; secrets: ProxySecrets } {
  if (given === undefined) return { network: undefined, secrets: [] }
  if (Buffer.byteLength(JSON.stringify(given)) > networkBytesMax) {
    throw badRequest(`spec.network: larger than ${networkBytesMax} bytes`)
  }
  const routing = given.proxy?.routing
  if (!given.proxy || !routing) return { network: given, secrets: [] }
  const before = previous?.spec.network?.proxy?.routing ?? []
  const secrets: ProxySecrets = routing.map((rule, index) => {
    if (rule.secrets !== undefined) return rule.secrets
    const same = JSON.stringify(before[index]?.destinations) === JSON.stringify(rule.destinations)
    return (same && previous?.proxySecrets[index]) || null
  })
  const bare = routing.map(({ secrets: _, ...rule }) => rule)
  return { network: { ...given, proxy: { ...given.proxy, routing: bare } }, secrets }
}

function checkDuration(field: string, text: string | null | undefined): string | undefined {
  if (text === null || text === undefined || text === '') return undefined
  parseDuration(field, text)
  return text
}

function checkDate(
  field: string,
  text: string | null | undefined,
  afterMs: number | null,
): string | undefined {
  if (text === null || text === undefined || text === '') return undefined
  const ms = parseDateMs(text)
  if (ms === null) throw badRequest(`${field}: ${quoted(text)} is not a date like 2030-12-31T23:59:59Z`)
  if (afterMs !== null && ms <= afterMs) {
    throw badRequest(`${field}: ${quoted(text)} is in the past; it is ${new Date(afterMs).toISOString()} now`)
  }
  return text
}
