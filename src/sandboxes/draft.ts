/** From what a client sent to what is stored: limits, defaults, and what an update leaves as it is. */
import { PlatformError } from '../errors.ts'
import type { ResolvedImage } from '../images/index.ts'
import { parseDateMs } from '../lib/date.ts'
import { parseDuration } from '../lib/duration.ts'
import type { ProcessStart } from './processes.ts'
import { defined, maskedValue, type ProxySecrets, type SandboxSpec } from './record.ts'
import type { SandboxInput, SandboxNetwork } from './schema.ts'

const defaultSandboxImage = 'blaxel/base-image:latest'
export const memoryMbDefault = 4096
export const memoryMbMin = 128
export const memoryMbMax = 256 * 1024
export const storageMbMin = 64
export const storageMbMax = 1024 * 1024
const labelsMax = 64
const labelNameCharsMax = 128
const labelValueCharsMax = 1024
const envsMax = 512
const envNameCharsMax = 256
/** Longest single `NAME=value` that Linux lets a program start with. */
const envBytesMax = 128 * 1024 - 1
/** All of them together: they travel to the instance in one message of at most 1 MiB. */
const envTotalBytesMax = 512 * 1024
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

const namePattern = /^[a-z0-9](?:[a-z0-9-]{0,47}[a-z0-9])?$/
const externalIdPattern = /^[A-Za-z0-9-]{1,64}$/
const regionPattern = /^[a-z0-9][a-z0-9-]{0,62}$/
const shownCharsMax = 80

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
}

export function checkSandboxName(name: string): string {
  if (!namePattern.test(name)) {
    throw bad(
      `metadata.name ${show(name)} is not valid: 1 to 49 lower-case letters, digits and hyphens, beginning and ending with a letter or digit`,
    )
  }
  return name
}

export function checkExternalId(externalId: string): string {
  if (!externalIdPattern.test(externalId)) {
    throw bad(`metadata.externalId ${show(externalId)} is not valid: 1 to 64 letters, digits and hyphens`)
  }
  return externalId
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
    throw bad('spec.volumes: there are no volumes on this platform yet; leave it out')
  }
  const externalId = metadata.externalId === undefined ? input.externalId : metadata.externalId
  const network = networkOf(spec.network ?? undefined, previous)
  const envs =
    runtime.envs === undefined && previous
      ? { envs: previous.spec.envs, env: previous.env }
      : envsOf(runtime.envs ?? [], previous)
  return {
    ...defined({
      displayName: kept(metadata.displayName, previous?.displayName, (text) =>
        checkText('metadata.displayName', text, 63),
      ),
      externalId: kept(externalId, previous?.externalId, checkExternalId),
    }),
    labels: metadata.labels === undefined && previous ? previous.labels : labelsOf(metadata.labels ?? {}),
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
        region: kept(spec.region || undefined, previous?.spec.region, (region) =>
          checkPattern('spec.region', region, regionPattern, 'a name like eu-lon-1'),
        ),
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

function sameEnv(left: Record<string, string>, right: Record<string, string>): boolean {
  const names = Object.keys(left)
  return (
    names.length === Object.keys(right).length &&
    names.every((name) => Object.hasOwn(right, name) && right[name] === left[name])
  )
}

/** Left out: as before. Null: cleared. */
function kept<Given, Stored>(
  given: Given | null | undefined,
  previous: Stored | undefined,
  read: (given: Given) => Stored,
): Stored | undefined {
  if (given === undefined) return previous
  return given === null ? undefined : read(given)
}

function labelsOf(given: Record<string, string | number | boolean>): Record<string, string> {
  const entries = Object.entries(given)
  if (entries.length > labelsMax) throw bad(`metadata.labels: ${entries.length} labels, at most ${labelsMax}`)
  return Object.fromEntries(
    entries.map(([name, value]) => {
      checkText(`metadata.labels: the name ${show(name)}`, name, labelNameCharsMax)
      if (name === '') throw bad('metadata.labels: a label without a name')
      return [
        name,
        checkText(`metadata.labels.${name.slice(0, shownCharsMax)}`, String(value), labelValueCharsMax),
      ]
    }),
  )
}

export type EnvInput = NonNullable<NonNullable<NonNullable<SandboxInput['spec']>['runtime']>['envs']>

export function envsOf(
  given: EnvInput,
  previous: SandboxDraft | null,
): { envs: SandboxSpec['envs']; env: Record<string, string> } {
  if (given.length > envsMax) throw bad(`spec.runtime.envs: ${given.length} variables, at most ${envsMax}`)
  const envs = new Map<string, { name: string; secret?: boolean }>()
  const env: Record<string, string> = Object.create(null)
  let totalBytes = 0
  for (const { name, value, secret } of given) {
    if (name === '' || name.length > envNameCharsMax || /[=\0]/.test(name)) {
      throw bad(
        `spec.runtime.envs: the name ${show(name)} is not valid: 1 to ${envNameCharsMax} characters without "="`,
      )
    }
    const masked = value === maskedValue && previous !== null && Object.hasOwn(previous.env, name)
    const text = masked ? previous.env[name]! : (value ?? '')
    if (text.includes('\0'))
      throw bad(`spec.runtime.envs: the value of ${show(name)} has a NUL character in it`)
    const bytes = Buffer.byteLength(name) + Buffer.byteLength(text) + 1
    if (bytes > envBytesMax) {
      throw bad(`spec.runtime.envs: ${show(name)} takes ${bytes} bytes, at most ${envBytesMax}`)
    }
    totalBytes += bytes
    envs.set(name, secret ? { name, secret } : { name })
    env[name] = text
  }
  if (totalBytes > envTotalBytesMax) {
    throw bad(`spec.runtime.envs: ${totalBytes} bytes in all, at most ${envTotalBytesMax}`)
  }
  return { envs: [...envs.values()], env: { ...env } }
}

export function portsOf(
  given: { name?: string | null; target: number; protocol?: string | null }[],
): NonNullable<SandboxSpec['ports']> {
  if (given.length > portsMax) throw bad(`spec.runtime.ports: ${given.length} ports, at most ${portsMax}`)
  const seen = new Set<number>()
  return given.map(({ name, target, protocol }, index) => {
    const field = `spec.runtime.ports[${index}].target`
    checkRange(field, target, 1, 65535)
    if (reservedPorts.includes(target)) {
      throw bad(
        `${field}: ${target} is reserved: ${platformPort} by the platform, ${sandboxApiPorts.join(' and ')} by the sandbox's own API; use another, such as 3000`,
      )
    }
    if (seen.has(target)) throw bad(`${field}: ${target} is listed twice`)
    seen.add(target)
    return {
      ...(name ? { name: checkText(`spec.runtime.ports[${index}].name`, name, 63) } : {}),
      target,
      protocol: (protocol ?? 'HTTP').toUpperCase(),
    }
  })
}

function extraArgsOf(given: Record<string, string>): Record<string, string> {
  const allowed = ['iptables', 'nfs', 'tun']
  for (const [name, value] of Object.entries(given)) {
    if (!allowed.includes(name) || (value !== 'enabled' && value !== 'disabled')) {
      throw bad(
        `spec.runtime.extraArgs: ${show(name)}: ${show(value)} is not known; allowed are ${allowed.join(', ')}, "enabled" or "disabled"`,
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
    throw bad(
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
    throw bad(`spec.network: larger than ${networkBytesMax} bytes`)
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
  if (ms === null) throw bad(`${field}: ${show(text)} is not a date like 2030-12-31T23:59:59Z`)
  if (afterMs !== null && ms <= afterMs) {
    throw bad(`${field}: ${show(text)} is in the past; it is ${new Date(afterMs).toISOString()} now`)
  }
  return text
}

function checkRange(field: string, value: number, min: number, max: number): number {
  if (!Number.isInteger(value) || value < min || value > max) {
    throw bad(`${field}: ${value} is out of range, allowed are whole numbers from ${min} to ${max}`)
  }
  return value
}

export function checkText(field: string, text: string, charsMax: number): string {
  if (text.length > charsMax) throw bad(`${field} is ${text.length} characters long, at most ${charsMax}`)
  if (hasControlCharacter(text)) throw bad(`${field} has control characters in it`)
  return text
}

function hasControlCharacter(text: string): boolean {
  for (let index = 0; index < text.length; index++) {
    const code = text.charCodeAt(index)
    if (code < 32 || code === 127) return true
  }
  return false
}

function checkPattern(field: string, text: string, pattern: RegExp, right: string): string {
  if (!pattern.test(text)) throw bad(`${field}: ${show(text)} is not ${right}`)
  return text
}

function show(text: string): string {
  return JSON.stringify(text.length > shownCharsMax ? `${text.slice(0, shownCharsMax)}...` : text)
}

function bad(message: string): PlatformError {
  return new PlatformError('bad_request', message)
}
