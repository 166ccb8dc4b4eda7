import { existsSync, readFileSync } from 'node:fs'
import { isIP } from 'node:net'
import { join, resolve } from 'node:path'
import { z } from 'zod'
import { dataDirDefault, imageDirDefault } from './data-directory.ts'
import { PlatformError } from './errors.ts'
import { isAddressEntry, isEgressEntry } from './lib/addresses.ts'
import { nearest } from './lib/nearest.ts'

/**
 * The platform's configuration: file < HUTCH_* environment < flags. Parsed once, here; everything else sees only
 * the result. One table row a key: its schema, what it allows in words, and how text becomes a value.
 */
export interface Config {
  /** 0: any free port. */
  port: number
  /** Addresses to listen on. */
  hosts: string[]
  dataDir: string
  /** Null: answers carry only a region that the client sent. */
  region: string | null
  /** The address clients use when it is not one of ours (behind a proxy). An origin, no path. */
  url: string | null
  /** Names under which the platform and its previews are reached. */
  domains: string[]
  runtime: RuntimeName
  /** Instances go on running when the platform stops. */
  keepInstances: boolean
  /** Of a static CRIU, which keeps memory in snapshots; 'none': they have files only; null: where its script installs it. */
  criu: string | null
  imageDir: string
  imageSource: ImageSource
  /** The default images have /usr/local of this host; without it an empty one. */
  imageLocal: boolean
  /** Registries that images may be pulled from: hosts with their port, or `*.` and a domain. */
  registries: string[]
  /** Credentials for them, in a file of Docker's config.json format; null: only those that workspaces keep. */
  registryAuthFile: string | null
  /** MiB that one image may have, unpacked. */
  imageMbMax: number
  /** Addresses or CIDR ranges whose forwarded headers count. */
  trustedProxies: string[]
  /** Addresses that are not public and that the platform's own requests may go to, ranges and ports included. */
  privateTargets: string[]
  /** What programs in sandboxes may reach though it is not public: addresses, ranges and names, with ports or without. */
  egressAllow: string[]
  /** Whether sandboxes are given the package registries, proxies and certificates of this host, without credentials. */
  packageSettings: PackageSettings
  /** Programs in sandboxes reach the platform at http://hutch.internal, as their sandbox. */
  platformDoor: boolean
  /** Where programs of this host act that come without a credential, by protocols that know none; null: nowhere. */
  keylessWorkspace: string | null
  /** Until who calls something of AgentField and waits gets no answer. */
  agentfieldSyncSeconds: number
  /** Until what was accepted for a node is given up: of one attempt, and without a word of a node that reports later. */
  agentfieldAsyncSeconds: number
  /** Executions that one node works on at once; 0: as many as come. */
  agentfieldNodeMax: number
  logLevel: 'debug' | 'info' | 'warn' | 'error'
  logFormat: 'text' | 'json'
  /** Sandboxes in the whole platform. */
  sandboxesMax: number
  /** MiB one sandbox may ask for. */
  sandboxMemoryMbMax: number
  /** Without a request, an open stream or a keepAlive process, until a sandbox is frozen; 0: never. */
  standbyAfterSeconds: number
  /** Frozen, until a sandbox gives its memory back to the host; 0: never. */
  reclaimAfterSeconds: number
  /** Without a request, until an instance of something deployed is removed, if it has more than minScale; 0: never. */
  scaleToZeroAfterSeconds: number
  /** Without a word on it, until an open WebSocket keeps a sandbox awake no more; 0: it always does. */
  idleConnectionSeconds: number
  /** Executions of one kind that may wait, in the whole platform. */
  executionsWaitingMax: number
  /** MiB that executions may take on disk, waiting and ended. */
  executionsMbMax: number
  /** How long, and how many of a workspace, executions are kept once they ended. */
  executionsKeptDays: number
  executionsKeptMax: number
  /** Tasks of jobs that run at once, in the whole platform: each is an instance. */
  jobTasksMax: number
}

const runtimeNames = ['namespace', 'process'] as const
export type RuntimeName = (typeof runtimeNames)[number]
const imageSources = ['auto', 'reflink', 'link', 'copy', 'live'] as const
export type ImageSource = (typeof imageSources)[number]
const packageSettingsOptions = ['host', 'none'] as const
export type PackageSettings = (typeof packageSettingsOptions)[number]

const configFileBytesMax = 1024 * 1024
const loopback = ['127.0.0.1', '::1']

interface Key {
  kind: 'text' | 'number' | 'boolean' | 'list'
  /** In words, for the message that refuses a value. */
  allowed: string
  schema: z.ZodType
}

const hostName = /^(?=.{1,253}$)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*$/
const registryHost =
  /^(\*\.)?[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*(:\d{1,5})?$|^\[[0-9a-f:]+\](:\d{1,5})?$/
/** The public ones that most images come from. None of them is asked for anything unless someone names it. */
const registriesDefault = [
  'docker.io',
  'ghcr.io',
  'quay.io',
  'gcr.io',
  '*.gcr.io',
  '*.pkg.dev',
  'public.ecr.aws',
  'mcr.microsoft.com',
  'registry.k8s.io',
  'registry.gitlab.com',
]
const text = z.string().min(1)
const path = text.refine((value) => !value.includes('\0'))

const keys = {
  port: {
    kind: 'number',
    allowed: 'a whole number 0 to 65535 (0: any free port)',
    schema: z.int().min(0).max(65535),
  },
  host: {
    kind: 'text',
    allowed: 'an IP address to listen on, or localhost (127.0.0.1 and ::1)',
    schema: text.refine((value) => value === 'localhost' || isIP(value) !== 0),
  },
  dataDir: { kind: 'text', allowed: 'a directory', schema: path },
  region: {
    kind: 'text',
    allowed: 'a name of lower-case letters, digits and dashes, such as eu-lon-1',
    schema: z.string().regex(/^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$/),
  },
  url: {
    kind: 'text',
    allowed: 'an address without a path, such as https://hutch.example.com',
    schema: text.refine(isOrigin).transform((value) => new URL(value).origin),
  },
  domains: {
    kind: 'list',
    allowed: 'host names, such as localhost or hutch.example.com (previews are served under preview.NAME)',
    schema: z.array(z.string().toLowerCase().regex(hostName)).min(1).max(64),
  },
  runtime: {
    kind: 'text',
    allowed: 'namespace, or process (no isolation at all: for development only)',
    schema: z.enum(runtimeNames),
  },
  keepInstances: { kind: 'boolean', allowed: 'true or false', schema: z.boolean() },
  criu: { kind: 'text', allowed: 'the path of a static CRIU, or none', schema: path },
  imageDir: { kind: 'text', allowed: 'a directory', schema: path },
  imageSource: { kind: 'text', allowed: 'auto, reflink, link, copy or live', schema: z.enum(imageSources) },
  imageLocal: { kind: 'boolean', allowed: 'true or false', schema: z.boolean() },
  registries: {
    kind: 'list',
    allowed:
      'registry hosts, such as docker.io, localhost:5000 or *.pkg.dev (without encryption on loopback only)',
    schema: z.array(z.string().toLowerCase().regex(registryHost)).max(256),
  },
  registryAuthFile: { kind: 'text', allowed: "a file of Docker's config.json format", schema: path },
  imageMbMax: {
    kind: 'number',
    allowed: 'MiB, a whole number 1 to 1048576',
    schema: z.int().min(1).max(1_048_576),
  },
  trustedProxies: {
    kind: 'list',
    allowed: 'IP addresses or ranges, such as 10.0.0.1 or 10.0.0.0/8',
    schema: z.array(z.string().refine(isAddressRange)).max(64),
  },
  privateTargets: {
    kind: 'list',
    allowed:
      'IP addresses or ranges, a port behind them or not, such as 10.1.2.3:8000, 192.168.0.0/16 or [::1]:80',
    schema: z.array(z.string().refine(isAddressEntry)).max(256),
  },
  egressAllow: {
    kind: 'list',
    allowed:
      'addresses, ranges or names, a port behind them or not, such as 10.0.0.0/8, 127.0.0.1:5432, [fd00::1]:443 or ' +
      'packages.example.com',
    schema: z.array(z.string().refine(isEgressEntry)).max(256),
  },
  packageSettings: {
    kind: 'text',
    allowed:
      'host (sandboxes use the registries, proxies and certificates of this host, without credentials) or none',
    schema: z.enum(packageSettingsOptions),
  },
  platformDoor: { kind: 'boolean', allowed: 'true or false', schema: z.boolean() },
  keylessWorkspace: {
    kind: 'text',
    allowed: 'the name of a workspace, such as main',
    schema: z.string().regex(/^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$/),
  },
  agentfieldSyncSeconds: {
    kind: 'number',
    allowed: 'seconds, 1 to 3600',
    schema: z.number().min(1).max(3600),
  },
  agentfieldAsyncSeconds: {
    kind: 'number',
    allowed: 'seconds, 1 to 2592000',
    schema: z.number().min(1).max(2_592_000),
  },
  agentfieldNodeMax: {
    kind: 'number',
    allowed: 'a whole number 0 to 100000 (0: as many as come)',
    schema: z.int().min(0).max(100_000),
  },
  logLevel: {
    kind: 'text',
    allowed: 'debug, info, warn or error',
    schema: z.enum(['debug', 'info', 'warn', 'error']),
  },
  logFormat: { kind: 'text', allowed: 'text or json', schema: z.enum(['text', 'json']) },
  sandboxesMax: {
    kind: 'number',
    allowed: 'a whole number 1 to 100000',
    schema: z.int().min(1).max(100_000),
  },
  sandboxMemoryMbMax: {
    kind: 'number',
    allowed: 'MiB, a whole number 128 to 1048576',
    schema: z.int().min(128).max(1_048_576),
  },
  standbyAfterSeconds: {
    kind: 'number',
    allowed: 'seconds, 0 to 86400 (0: never)',
    schema: z.number().min(0).max(86_400),
  },
  reclaimAfterSeconds: {
    kind: 'number',
    allowed: 'seconds in standby, 0 to 2592000 (0: never)',
    schema: z.number().min(0).max(2_592_000),
  },
  scaleToZeroAfterSeconds: {
    kind: 'number',
    allowed: 'seconds, 0 to 2592000 (0: never)',
    schema: z.number().min(0).max(2_592_000),
  },
  idleConnectionSeconds: {
    kind: 'number',
    allowed: 'seconds, 0 to 2592000 (0: an open connection always counts)',
    schema: z.number().min(0).max(2_592_000),
  },
  executionsWaitingMax: {
    kind: 'number',
    allowed: 'a whole number 1 to 10000000',
    schema: z.int().min(1).max(10_000_000),
  },
  executionsMbMax: {
    kind: 'number',
    allowed: 'MiB, a whole number 64 to 10000000',
    schema: z.int().min(64).max(10_000_000),
  },
  executionsKeptDays: { kind: 'number', allowed: 'days, 0 to 3650', schema: z.number().min(0).max(3650) },
  executionsKeptMax: {
    kind: 'number',
    allowed: 'a whole number 0 to 10000000',
    schema: z.int().min(0).max(10_000_000),
  },
  jobTasksMax: {
    kind: 'number',
    allowed: 'a whole number 1 to 10000',
    schema: z.int().min(1).max(10_000),
  },
} as const satisfies Record<string, Key>

export type ConfigKey = keyof typeof keys
type Values = { [Name in ConfigKey]?: z.output<(typeof keys)[Name]['schema']> }

export const configKeys = Object.keys(keys) as ConfigKey[]

export interface ConfigSources {
  /** Path of a TOML file. Absent: `hutch.toml` in the data directory, when there is one. */
  file?: string
  env?: Record<string, string | undefined>
  /** By key, as parsed from the command line; an absent or undefined key says nothing. */
  flags?: Partial<Record<ConfigKey, string | string[] | number | boolean | undefined>>
}

/** @throws PlatformError bad_request that names the key, where it came from, the value, and what is allowed */
export function loadConfig(sources: ConfigSources = {}): Config {
  const env = sources.env ?? {}
  const fromFlags = readFlags(sources.flags ?? {})
  const fromEnv = readEnvironment(env)
  const dataDir = resolve(fromFlags.dataDir ?? fromEnv.dataDir ?? dataDirDefault(env))
  const fromFile = readFile(sources.file, join(dataDir, 'hutch.toml'))
  const values: Values = { ...fromFile, ...fromEnv, ...fromFlags }
  if (sources.file === undefined && fromFile.dataDir && resolve(fromFile.dataDir) !== dataDir) {
    throw new PlatformError(
      'bad_request',
      `dataDir: ${join(dataDir, 'hutch.toml')} was found in its data directory and cannot name another; ` +
        'use --data-dir, or give the file by --config',
    )
  }
  return complete(values, dataDir, env)
}

/** What applies where nothing is configured; reads no file and no setting of the environment. */
export function configDefaults(dataDir: string): Config {
  return complete({}, resolve(dataDir), {})
}

function complete(values: Values, dataDir: string, env: Record<string, string | undefined>): Config {
  const host = values.host ?? 'localhost'
  return {
    port: values.port ?? 4400,
    hosts: host === 'localhost' ? loopback : [host],
    dataDir: resolve(values.dataDir ?? dataDir),
    region: values.region ?? null,
    url: values.url ?? null,
    domains: values.domains ?? ['localhost'],
    runtime: values.runtime ?? 'namespace',
    keepInstances: values.keepInstances ?? false,
    criu: values.criu === undefined || values.criu === 'none' ? (values.criu ?? null) : resolve(values.criu),
    imageDir: resolve(values.imageDir ?? imageDirDefault(env)),
    imageSource: values.imageSource ?? 'auto',
    imageLocal: values.imageLocal ?? false,
    registries: values.registries ?? registriesDefault,
    registryAuthFile: values.registryAuthFile === undefined ? null : resolve(values.registryAuthFile),
    imageMbMax: values.imageMbMax ?? 16_384,
    trustedProxies: values.trustedProxies ?? [],
    privateTargets: values.privateTargets ?? [],
    egressAllow: values.egressAllow ?? [],
    packageSettings: values.packageSettings ?? 'host',
    platformDoor: values.platformDoor ?? false,
    keylessWorkspace: values.keylessWorkspace ?? null,
    agentfieldSyncSeconds: values.agentfieldSyncSeconds ?? 90,
    agentfieldAsyncSeconds: values.agentfieldAsyncSeconds ?? 3600,
    agentfieldNodeMax: values.agentfieldNodeMax ?? 0,
    logLevel: values.logLevel ?? 'info',
    logFormat: values.logFormat ?? 'text',
    sandboxesMax: values.sandboxesMax ?? 1000,
    sandboxMemoryMbMax: values.sandboxMemoryMbMax ?? 65_536,
    standbyAfterSeconds: values.standbyAfterSeconds ?? 15,
    reclaimAfterSeconds: values.reclaimAfterSeconds ?? 300,
    scaleToZeroAfterSeconds: values.scaleToZeroAfterSeconds ?? 300,
    idleConnectionSeconds: values.idleConnectionSeconds ?? 900,
    executionsWaitingMax: values.executionsWaitingMax ?? 1_000_000,
    executionsMbMax: values.executionsMbMax ?? 4096,
    executionsKeptDays: values.executionsKeptDays ?? 7,
    executionsKeptMax: values.executionsKeptMax ?? 100_000,
    jobTasksMax: values.jobTasksMax ?? 32,
  }
}

function readFlags(flags: NonNullable<ConfigSources['flags']>): Values {
  const values: Values = {}
  for (const [name, value] of Object.entries(flags)) {
    if (value !== undefined) assign(values, name, value, flagName(name), fromText)
  }
  return values
}

function readEnvironment(env: Record<string, string | undefined>): Values {
  const byVariable = new Map(configKeys.map((key) => [variableName(key), key]))
  const values: Values = {}
  for (const [variable, value] of Object.entries(env)) {
    if (!variable.startsWith('HUTCH_') || value === undefined) continue
    const key = byVariable.get(variable)
    if (!key) throw unknownKey(variable, 'the environment', [...byVariable.keys()])
    assign(values, key, value, variable, fromText)
  }
  return values
}

function readFile(given: string | undefined, fallback: string): Values {
  if (given === undefined && !existsSync(fallback)) return {}
  const file = resolve(given ?? fallback)
  let content: string
  try {
    content = readFileSync(file, 'utf8')
  } catch (cause) {
    const code = (cause as { code?: string }).code ?? 'error'
    throw new PlatformError('bad_request', `config file ${file} cannot be read (${code})`, { cause })
  }
  if (content.length > configFileBytesMax) {
    throw new PlatformError('bad_request', `config file ${file} is larger than ${configFileBytesMax} bytes`)
  }
  const values: Values = {}
  for (const [name, value] of Object.entries(parseToml(content, file)))
    assign(values, name, value, file, fromToml)
  return values
}

function parseToml(content: string, file: string): Record<string, unknown> {
  // Loaded only here: most starts have no file, and this parser costs 30 ms.
  const toml = require('@iarna/toml') as typeof import('@iarna/toml')
  try {
    return toml.parse(content)
  } catch (cause) {
    const { line, col, message } = cause as { line?: number; col?: number; message: string }
    const reason = message.split('\n')[0]?.replace(/ at row .*$/, '') ?? 'not TOML'
    const at = line === undefined ? '' : ` line ${line + 1} column ${(col ?? 0) + 1}`
    throw new PlatformError('bad_request', `config file ${file}${at}: ${reason}`, { cause })
  }
}

function assign(
  values: Values,
  name: string,
  value: unknown,
  source: string,
  read: (kind: Key['kind'], value: unknown) => unknown,
): void {
  if (!Object.hasOwn(keys, name)) throw unknownKey(name, source, configKeys)
  const key: Key = keys[name as ConfigKey]
  const parsed = key.schema.safeParse(read(key.kind, value))
  if (!parsed.success) {
    const from = source === variableName(name) || source === flagName(name) ? source : `${name} in ${source}`
    throw new PlatformError('bad_request', `${from}: ${shown(value)} is not allowed; allowed: ${key.allowed}`)
  }
  Object.assign(values, { [name]: parsed.data })
}

/** TOML says itself what is a number and what is a word. A list of one may be written without brackets. */
function fromToml(kind: Key['kind'], value: unknown): unknown {
  return kind === 'list' && typeof value === 'string' ? [value] : value
}

/** Text of the environment and of flags as the kind that the key wants; what does not fit stays and is refused. */
function fromText(kind: Key['kind'], value: unknown): unknown {
  if (kind === 'list' && typeof value === 'string') return value.split(',').map((item) => item.trim())
  if (typeof value !== 'string') return value
  if (kind === 'number') return /^\d+(\.\d+)?$/.test(value) ? Number(value) : value
  if (kind === 'boolean') {
    if (['true', '1', 'yes', 'on'].includes(value.toLowerCase())) return true
    if (['false', '0', 'no', 'off'].includes(value.toLowerCase())) return false
  }
  return value
}

function unknownKey(name: string, source: string, known: string[]): PlatformError {
  const guess = nearest(name, known)
  const meant = guess ? `; did you mean ${guess}?` : '.'
  return new PlatformError(
    'bad_request',
    `${name} in ${source} is not a setting${meant} Allowed: ${known.join(', ')}`,
  )
}

function shown(value: unknown): string {
  const json = JSON.stringify(value) ?? String(value)
  return json.length > 200 ? `${json.slice(0, 200)}...` : json
}

function variableName(key: string): string {
  return `HUTCH_${key.replace(/[A-Z]/g, (letter) => `_${letter}`).toUpperCase()}`
}

/** The flag of `up` that says it, without its dashes. */
export function flagOf(key: string): string {
  // The list is written --domain a --domain b.
  if (key === 'domains') return 'domain'
  if (key === 'registries') return 'registry'
  return key.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)
}

function flagName(key: string): string {
  return `--${flagOf(key)}`
}

function isOrigin(value: string): boolean {
  const url = URL.canParse(value) ? new URL(value) : null
  if (!url || !['http:', 'https:'].includes(url.protocol)) return false
  return url.pathname === '/' && !url.search && !url.hash && !url.username && !url.password
}

function isAddressRange(value: string): boolean {
  const [address = '', bits, ...rest] = value.split('/')
  const family = isIP(address)
  if (family === 0 || rest.length > 0) return false
  return bits === undefined || (/^\d{1,3}$/.test(bits) && Number(bits) <= (family === 4 ? 32 : 128))
}
