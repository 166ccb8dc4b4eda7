import { PlatformError } from '../errors.ts'
import { randomText } from '../lib/ids.ts'

const referenceCharsMax = 512
export const tagDefault = 'latest'
const builtTagChars = 12
/** Kinds of workload that images are kept for; the cloud's clients write them in the singular and in the plural. */
const resourceTypes = ['sandbox', 'agent', 'function', 'job', 'application'] as const
export type ResourceType = (typeof resourceTypes)[number]

const imageName = /^[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*$/
const repositoryPath = /^[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*(?:\/[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*)*$/
const tagPattern = /^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$/
const digestPattern = /^sha256:[0-9a-f]{64}$/
const hostPattern =
  /^(?:[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?(?:\.[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?)*|\[[0-9a-fA-F:]+\])(?::\d{1,5})?$/
const imageNameCharsMax = 128
const dockerHubNames = new Set(['docker.io', 'index.docker.io', 'registry-1.docker.io'])

/** An image of a registry. */
export interface RegistryReference {
  /** With its port if it has one; Docker's own is `docker.io`. */
  host: string
  repository: string
  tag: string | null
  digest: string | null
}

/** What `spec.runtime.image` can name. */
export type ImageReference =
  /** `blaxel/base-image:latest`, `sandbox/mine:v1`, `mine:v1` */
  { kind: 'catalogue'; name: string; tag: string } | ({ kind: 'registry' } & RegistryReference)

/**
 * A first part with a dot or a port, or `localhost`, names a registry, as everywhere; everything else is a name here.
 * @throws bad_request
 */
export function parseReference(text: string, field: string): ImageReference {
  if (text.length > referenceCharsMax) throw malformed(text, field)
  const slash = text.indexOf('/')
  const first = slash < 0 ? '' : text.slice(0, slash)
  if (first.includes('.') || first.includes(':') || first === 'localhost') {
    return { kind: 'registry', ...parseRegistryReference(text, field) }
  }
  const { path, tag, digest } = splitReference(text)
  if (!repositoryPath.test(path) || digest !== null || (tag !== null && !tagPattern.test(tag)))
    throw malformed(text, field)
  return { kind: 'catalogue', name: path, tag: tag ?? tagDefault }
}

/** @throws bad_request */
export function parseRegistryReference(text: string, field: string): RegistryReference {
  const slash = text.indexOf('/')
  if (text.length > referenceCharsMax || slash < 0) throw malformed(text, field)
  const host = normalHost(text.slice(0, slash))
  const { path, tag, digest } = splitReference(text.slice(slash + 1))
  const repository = host === 'docker.io' && !path.includes('/') ? `library/${path}` : path
  const proper = hostPattern.test(host) && repositoryPath.test(repository) && repository.length <= 255
  if (!proper || (tag !== null && !tagPattern.test(tag)) || (digest !== null && !digestPattern.test(digest)))
    throw malformed(text, field)
  return { host, repository, tag: tag ?? (digest === null ? tagDefault : null), digest }
}

/** In full, the same for every spelling. */
export function referenceText({ host, repository, tag, digest }: RegistryReference): string {
  return `${host}/${repository}${tag === null ? '' : `:${tag}`}${digest === null ? '' : `@${digest}`}`
}

export function normalHost(host: string): string {
  const lower = host.toLowerCase()
  return dockerHubNames.has(lower) ? 'docker.io' : lower
}

/** The name that a registry's image gets here: of `docker.io/library/alpine` it is `alpine`. */
export function localName({ host, repository }: RegistryReference): string {
  const path = host === 'docker.io' ? repository.replace(/^library\//, '') : `${host}/${repository}`
  return path
    .toLowerCase()
    .replace(/[^a-z0-9]+/g, '-')
    .replace(/^-+|-+$/g, '')
    .slice(0, imageNameCharsMax)
}

/** What a pull by digest is tagged as. */
export function tagOfDigest(digest: string | null): string {
  return digest === null ? tagDefault : digest.slice('sha256:'.length, 'sha256:'.length + 12)
}

/** @throws bad_request */
export function checkImageName(name: string, field: string): string {
  if (name.length <= imageNameCharsMax && imageName.test(name)) return name
  throw new PlatformError(
    'bad_request',
    `${field} ${shown(name)} is not an image name: lower-case letters and digits, parted by ".", "_" or "-", at most ${imageNameCharsMax}`,
  )
}

/** @throws bad_request */
export function checkTag(tag: string, field: string): string {
  if (tagPattern.test(tag)) return tag
  throw new PlatformError(
    'bad_request',
    `${field} ${shown(tag)} is not a tag: letters, digits, "_", "." and "-", at most 128`,
  )
}

/** For an image that is to be built, and has no tag by its owner. */
export function newBuiltTag(): string {
  return `build-${randomText(builtTagChars)}`
}

export function isBuiltTag(tag: string): boolean {
  return tag.startsWith('build-') && tag.length === 'build-'.length + builtTagChars
}

/** @throws bad_request */
export function checkResourceType(type: string, field: string): ResourceType {
  const singular = type.endsWith('s') ? type.slice(0, -1) : type
  const known = singular === 'sandboxe' ? 'sandbox' : singular === 'app' ? 'application' : singular
  if ((resourceTypes as readonly string[]).includes(known)) return known as ResourceType
  throw new PlatformError('bad_request', `${field} ${shown(type)} is not one of ${resourceTypes.join(', ')}`)
}

function splitReference(text: string): { path: string; tag: string | null; digest: string | null } {
  const at = text.indexOf('@')
  const digest = at < 0 ? null : text.slice(at + 1)
  const named = at < 0 ? text : text.slice(0, at)
  const colon = named.indexOf(':', named.lastIndexOf('/') + 1)
  return {
    path: colon < 0 ? named : named.slice(0, colon),
    tag: colon < 0 ? null : named.slice(colon + 1),
    digest,
  }
}

function malformed(text: string, field: string): PlatformError {
  return new PlatformError(
    'bad_request',
    `${field} ${shown(text)} is not an image reference: write name:tag of an image here, such as blaxel/base-image:latest, or host/name:tag of a registry`,
  )
}

function shown(text: string): string {
  return JSON.stringify(text.slice(0, 120))
}
