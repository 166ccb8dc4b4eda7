/** The documents that make an image: index, manifest and configuration, of OCI and of Docker. */
import { z } from 'zod'
import { PlatformError } from '../errors.ts'

export const manifestBytesMax = 4 * 1024 * 1024
export const configBytesMax = 8 * 1024 * 1024
/** Of the 128 layers that an instance can have, some are the platform's own. */
export const imageLayersMax = 120
const indexEntriesMax = 1000
const envEntriesMax = 512
const argumentsMax = 1024
/** What Linux lets a program start with as one text. */
const textCharsMax = 128 * 1024 - 1
const pathCharsMax = 4096
/** Of all variables, and of all words, together: they travel to a machine in one message. */
const settingsCharsMax = 256 * 1024

export const manifestTypes = [
  'application/vnd.oci.image.manifest.v1+json',
  'application/vnd.oci.image.index.v1+json',
  'application/vnd.docker.distribution.manifest.v2+json',
  'application/vnd.docker.distribution.manifest.list.v2+json',
]

const digest = z.string().regex(/^sha256:[0-9a-f]{64}$/, 'only sha256 digests are known here')
const size = z.int().min(0)
const descriptor = z.object({
  mediaType: z.string().default(''),
  digest,
  size,
  annotations: z.record(z.string(), z.string()).nullish(),
})
export type Descriptor = z.output<typeof descriptor>

const platform = z.object({
  os: z.string().default(''),
  architecture: z.string().default(''),
  variant: z.string().optional(),
})

const indexSchema = z.object({
  manifests: z.array(descriptor.extend({ platform: platform.nullish() })).max(indexEntriesMax),
})
export type Index = z.output<typeof indexSchema>

const manifestSchema = z.object({
  config: descriptor,
  layers: z.array(descriptor).max(imageLayersMax, `at most ${imageLayersMax} layers are possible here`),
})
export type Manifest = z.output<typeof manifestSchema>

const text = z.string().max(textCharsMax)
const words = z.array(text).max(argumentsMax).nullish()
const configSchema = z.object({
  os: z.string().default('linux'),
  architecture: z.string().default(''),
  created: z.string().nullish(),
  config: z
    .object({
      User: text.nullish(),
      Env: z.array(text).max(envEntriesMax).nullish(),
      Entrypoint: words,
      Cmd: words,
      WorkingDir: z.string().max(pathCharsMax).nullish(),
      ExposedPorts: z.record(z.string(), z.unknown()).nullish(),
      Labels: z.record(z.string(), z.string()).nullish(),
    })
    .nullish(),
  rootfs: z.object({ diff_ids: z.array(digest).max(imageLayersMax).nullish() }),
})

const dockerArchiveSchema = z
  .array(
    z.object({
      Config: z.string(),
      RepoTags: z.array(z.string()).nullish(),
      Layers: z.array(z.string()).max(imageLayersMax).nullish(),
    }),
  )
  .min(1)
  .max(indexEntriesMax)
export type DockerArchive = z.output<typeof dockerArchiveSchema>

/** What an image says about how it wants to be run. */
export interface ImageSettings {
  env: Record<string, string>
  /** Absolute; '' when the image says nothing. */
  workingDir: string
  user: string
  entrypoint: string[]
  command: string[]
  ports: number[]
}

export interface ImageConfig {
  /** Lowest first. */
  diffIds: string[]
  settings: ImageSettings
}

export function parseIndex(bytes: Uint8Array): Index {
  return parse(indexSchema, bytes, 'index')
}

export function parseManifest(bytes: Uint8Array): Manifest {
  return parse(manifestSchema, bytes, 'manifest')
}

export function parseDockerArchive(bytes: Uint8Array): DockerArchive {
  return parse(dockerArchiveSchema, bytes, 'manifest.json')
}

/** Whether a manifest document lists other manifests; told by what is in it when its type is not. */
export function isIndex(mediaType: string, bytes: Uint8Array): boolean {
  if (/manifest\.list|image\.index/.test(mediaType)) return true
  if (/image\.manifest|distribution\.manifest\.v2/.test(mediaType)) return false
  return typeof (json(bytes, 'manifest') as { manifests?: unknown }).manifests === 'object'
}

/** The architecture of this host, as images name it. */
export function hostArchitecture(): string {
  return process.arch === 'x64' ? 'amd64' : process.arch
}

/** The manifest for this host. @throws unprocessable, naming what there is */
export function forThisHost(index: Index): Descriptor {
  const architecture = hostArchitecture()
  const fitting = index.manifests.filter(
    (one) => one.platform?.os === 'linux' && one.platform.architecture === architecture,
  )
  // Of several the plainest: variants are for processors that have more.
  const chosen = fitting.find((one) => !one.platform?.variant) ?? fitting[0]
  if (chosen) return chosen
  const only = index.manifests.length === 1 ? index.manifests[0] : undefined
  if (only && !only.platform?.architecture) return only
  const known = index.manifests
    .map((one) => `${one.platform?.os || '?'}/${one.platform?.architecture || '?'}`)
    .filter((name) => name !== 'unknown/unknown')
  throw new PlatformError(
    'unprocessable',
    `the image is not for this host (linux/${architecture}); it is there for ${known.slice(0, 20).join(', ') || 'no platform'}`,
  )
}

/** @throws unprocessable when it is not for this host or not well-formed */
export function parseConfig(bytes: Uint8Array): ImageConfig {
  const { os, architecture, config, rootfs } = parse(configSchema, bytes, 'configuration')
  const host = hostArchitecture()
  if (os !== 'linux' || (architecture !== '' && architecture !== host)) {
    throw new PlatformError(
      'unprocessable',
      `the image is for ${os}/${architecture || '?'}; this host runs linux/${host}`,
    )
  }
  const env: Record<string, string> = {}
  for (const entry of config?.Env ?? []) {
    const equals = entry.indexOf('=')
    if (equals > 0 && !entry.includes('\0')) env[entry.slice(0, equals)] = entry.slice(equals + 1)
  }
  const settings: ImageSettings = {
    env,
    workingDir: workingDirOf(config?.WorkingDir ?? ''),
    user: withoutNul(config?.User ?? ''),
    entrypoint: (config?.Entrypoint ?? []).map(withoutNul),
    command: (config?.Cmd ?? []).map(withoutNul),
    ports: portsOf(Object.keys(config?.ExposedPorts ?? {})),
  }
  for (const [what, texts] of [
    ['environment', config?.Env ?? []],
    ['command', [...settings.entrypoint, ...settings.command]],
  ] as const) {
    if (texts.join('').length > settingsCharsMax) {
      throw new PlatformError(
        'unprocessable',
        `the ${what} of the image has more than ${settingsCharsMax} characters`,
      )
    }
  }
  return { diffIds: rootfs.diff_ids ?? [], settings }
}

function workingDirOf(path: string): string {
  if (path === '' || path.includes('\0')) return ''
  const names: string[] = []
  for (const name of path.split('/')) {
    if (name === '..') names.pop()
    else if (name !== '' && name !== '.') names.push(name)
  }
  return `/${names.join('/')}`
}

function withoutNul(value: string): string {
  if (!value.includes('\0')) return value
  throw new PlatformError('unprocessable', 'the configuration of the image has NUL in a text')
}

function portsOf(exposed: string[]): number[] {
  const ports = exposed
    .map((text) => /^(\d{1,5})(?:\/tcp)?$/.exec(text)?.[1])
    .filter((port) => port !== undefined)
  return [...new Set(ports.map(Number))].filter((port) => port > 0 && port < 65_536)
}

function parse<Schema extends z.ZodType>(schema: Schema, bytes: Uint8Array, what: string): z.output<Schema> {
  const parsed = schema.safeParse(json(bytes, what))
  if (parsed.success) return parsed.data
  const issue = parsed.error.issues[0]
  throw new PlatformError(
    'unprocessable',
    `the ${what} of the image is not right: ${issue?.path.join('.') || 'it'}: ${issue?.message}`,
  )
}

function json(bytes: Uint8Array, what: string): unknown {
  try {
    return JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(bytes))
  } catch (cause) {
    throw new PlatformError('unprocessable', `the ${what} of the image is not JSON`, { cause })
  }
}
