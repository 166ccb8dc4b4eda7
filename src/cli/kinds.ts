import type { Client, NodeInfo, Resource } from '../client/index.ts'
import { nearest } from '../lib/nearest.ts'
import { UsageError } from './command.ts'
import { age, bytes } from './output.ts'

type Column = readonly [title: string, cell: (resource: Resource) => string]

/** What the command line knows of a kind of resource. */
export interface Kind {
  /** As manifests write it. */
  kind: string
  singular: string
  plural: string
  aliases: readonly string[]
  /** The collection below the control plane; kinds that belong to another object have their parents' names first. */
  collection(parents: string[]): string
  /** Fields of the metadata, in a manifest, that name the parents. */
  parents: readonly string[]
  columns: readonly Column[]
  /** How `apply` writes one: create first and replace on 409, the other way around, create only, or not at all. */
  apply: 'create' | 'replace' | 'only-create' | null
  /** Whether its programs write logs, and requests can be made to it. */
  runs?: boolean
  /** Whether it has revisions. */
  revisions?: boolean
}

const name: Column = ['NAME', (resource) => text(resource.metadata?.name)]
const status: Column = ['STATUS', (resource) => text(resource.status)]
const created: Column = [
  'AGE',
  (resource) => age((resource.metadata?.createdAt ?? resource.createdAt) as string | undefined),
]
const image: Column = ['IMAGE', (resource) => text(at(resource, 'spec.runtime.image'))]

export const kinds: readonly Kind[] = [
  deployment('Agent', 'agent', ['ag'], 'replace'),
  deployment('Function', 'function', ['fn', 'mcp', 'mcps'], 'replace'),
  deployment('Application', 'application', ['app', 'apps'], 'create'),
  deployment('Job', 'job', ['jb'], 'replace'),
  {
    kind: 'Sandbox',
    singular: 'sandbox',
    plural: 'sandboxes',
    aliases: ['sbx'],
    collection: () => '/sandboxes',
    parents: [],
    columns: [
      name,
      status,
      ['STATE', (resource) => text(resource.state)],
      image,
      ['MEMORY MB', (resource) => text(at(resource, 'spec.runtime.memory'))],
      created,
    ],
    apply: 'create',
    runs: true,
  },
  {
    kind: 'CustomDomain',
    singular: 'customdomain',
    plural: 'customdomains',
    aliases: ['domain', 'domains'],
    collection: () => '/customdomains',
    parents: [],
    columns: [
      name,
      ['STATUS', (resource) => text(at(resource, 'spec.status'))],
      ['TXT RECORD', (resource) => records(resource).join(' ')],
      created,
    ],
    apply: 'create',
  },
  {
    kind: 'Image',
    singular: 'image',
    plural: 'images',
    aliases: ['img'],
    collection: () => '/images',
    parents: [],
    columns: [
      ['NAME', (resource) => `${text(resource.metadata?.resourceType)}/${text(resource.metadata?.name)}`],
      ['STATUS', (resource) => text(resource.metadata?.status)],
      ['SIZE', (resource) => size(at(resource, 'spec.size'))],
      ['TAGS', (resource) => tagNames(resource)],
      created,
    ],
    apply: null,
  },
  {
    kind: 'Snapshot',
    singular: 'snapshot',
    plural: 'snapshots',
    aliases: ['snap'],
    collection: () => '/snapshots',
    parents: [],
    columns: [
      ['SNAPSHOT', (resource) => text(resource.id)],
      ['NAME', (resource) => text(resource.name)],
      ['SOURCE', (resource) => text(at(resource, 'source.name'))],
      status,
      ['SIZE', (resource) => size(resource.size)],
      ['IMAGE', (resource) => text(at(resource, 'spec.image'))],
      created,
    ],
    apply: null,
  },
  {
    kind: 'Preview',
    singular: 'preview',
    plural: 'previews',
    aliases: ['pv'],
    collection: ([sandbox = '']) => `/sandboxes/${encodeURIComponent(sandbox)}/previews`,
    parents: ['resourceName'],
    columns: [
      name,
      ['PORT', (resource) => text(at(resource, 'spec.port'))],
      ['PUBLIC', (resource) => (at(resource, 'spec.public') === true ? 'yes' : 'no')],
      ['URL', (resource) => text(at(resource, 'spec.url'))],
      created,
    ],
    apply: 'replace',
  },
  {
    kind: 'PreviewToken',
    singular: 'previewtoken',
    plural: 'previewtokens',
    aliases: ['pvt', 'token', 'tokens'],
    collection: ([sandbox = '', preview = '']) =>
      `/sandboxes/${encodeURIComponent(sandbox)}/previews/${encodeURIComponent(preview)}/tokens`,
    parents: ['resourceName', 'previewName'],
    columns: [
      name,
      ['EXPIRES', (resource) => text(at(resource, 'spec.expiresAt'))],
      ['EXPIRED', (resource) => (at(resource, 'spec.expired') === true ? 'yes' : 'no')],
    ],
    apply: 'only-create',
  },
]

function deployment(kind: string, singular: string, aliases: string[], apply: 'create' | 'replace'): Kind {
  const plural = `${singular}s`
  return {
    kind,
    singular,
    plural,
    aliases,
    collection: () => `/${plural}`,
    parents: [],
    columns: [
      ...[name, status],
      ['IMAGE', (resource) => text(imageOf(resource))],
      ['URL', (resource) => text(resource.metadata?.url)],
      created,
    ],
    apply,
    runs: true,
    revisions: true,
  }
}

/** The TXT records that show whose a domain is, `NAME VALUE` each. */
export function records(resource: Resource): string[] {
  const found = at(resource, 'spec.txtRecords') ?? {}
  return Object.entries(found as Record<string, string>).map(([name, value]) => `${name} ${value}`)
}

/** Of what serves, which after a rollback is not what was deployed last; else what is to be. */
export function imageOf(resource: Resource): unknown {
  return (
    at(resource, 'spec.revision.activeImage') ??
    at(resource, 'spec.runtime.image') ??
    at(resource, 'spec.image')
  )
}

export interface Catalogue extends Pick<Kind, 'kind' | 'plural' | 'aliases' | 'collection' | 'columns'> {
  /** What is no collection of the control plane; `name` null: all of it. */
  read?(client: Client, name: string | null): Promise<Resource[]>
}

/** What is read, never changed: catalogues of the platform, and what came by itself. */
export const catalogues: readonly Catalogue[] = [
  {
    kind: 'Node',
    plural: 'nodes',
    aliases: ['node'],
    collection: () => '/nodes',
    read: async ({ nodes }, name) =>
      (name === null ? await nodes.list() : [await nodes.get(name)]).map(nodeResource),
    columns: [
      ...[name, status],
      ['REASONERS', (resource) => text(at(resource, 'spec.reasoners'))],
      ['SKILLS', (resource) => text(at(resource, 'spec.skills'))],
      ['ADDRESS', (resource) => text(resource.metadata?.url)],
      ['HEARD', (resource) => age(resource.heardAt as string | undefined)],
      created,
    ],
  },
  {
    kind: 'SandboxDefinition',
    plural: 'sandbox-hub',
    aliases: ['sandboxhub'],
    collection: () => '/sandbox/hub',
    columns: [
      ['NAME', (resource) => text(resource.name)],
      ['IMAGE', (resource) => text(resource.image)],
      ['MEMORY MB', (resource) => text(resource.memory)],
      ['DESCRIPTION', (resource) => text(resource.description)],
    ],
  },
  {
    kind: 'McpDefinition',
    plural: 'mcp-hub',
    aliases: ['mcphub'],
    collection: () => '/mcp/hub',
    columns: [
      ['NAME', (resource) => text(resource.name)],
      ['DESCRIPTION', (resource) => text(resource.description)],
    ],
  },
  {
    kind: 'Template',
    plural: 'templates',
    aliases: ['template'],
    collection: () => '/templates',
    columns: [
      ['NAME', (resource) => text(resource.name)],
      ['TOPICS', (resource) => ((resource.topics ?? []) as string[]).join(', ') || '-'],
      ['DESCRIPTION', (resource) => text(resource.description)],
    ],
  },
  {
    kind: 'Workspace',
    plural: 'workspaces',
    aliases: ['workspace', 'ws'],
    collection: () => '/workspaces',
    columns: [
      ['NAME', (resource) => text(resource.name)],
      ['DISPLAY NAME', (resource) => text(resource.displayName)],
      ['STATUS', (resource) => text(resource.status)],
      created,
    ],
  },
  {
    kind: 'Location',
    plural: 'locations',
    aliases: ['location', 'regions'],
    collection: () => '/locations',
    columns: [
      ['LOCATION', (resource) => text(resource.location)],
      ['STATUS', status[1]],
      ['CONTINENT', (resource) => text(resource.continent)],
      ['COUNTRY', (resource) => text(resource.country)],
    ],
  },
]

function nodeResource(node: NodeInfo): Resource {
  const { id, base_url: url, health_status: health, lifecycle_status: lifecycle, version } = node
  const names = (of: { id: string }[]) => of.map((one) => one.id).join(', ')
  return {
    metadata: { name: id, url, createdAt: node.registered_at },
    spec: {
      reasoners: names(node.reasoners),
      skills: names(node.skills),
      version,
      type: node.deployment_type,
    },
    status: health === 'active' ? lifecycle : health,
    heardAt: node.last_heartbeat,
  }
}

export function kindNamed<Known extends Pick<Kind, 'plural' | 'aliases'> & { singular?: string }>(
  word: string,
  known: readonly Known[],
): Known | null {
  const wanted = word.toLowerCase()
  return (
    known.find(
      ({ singular, plural, aliases }) => singular === wanted || plural === wanted || aliases.includes(wanted),
    ) ?? null
  )
}

/** @throws UsageError that says which kinds there are */
export function knownKind(word: string, known: readonly Kind[]): Kind {
  const kind = kindNamed(word, known)
  if (kind === null) throw unknownKind(word, known)
  return kind
}

/** @throws UsageError that says which kinds there are */
export function unknownKind(
  word: string,
  known: readonly { plural: string; singular?: string; aliases: readonly string[] }[],
): UsageError {
  const names = known.map(({ plural }) => plural)
  const spellings = known.flatMap(({ plural, singular, aliases }) => [plural, singular ?? plural, ...aliases])
  const near = nearest(word.toLowerCase(), spellings)
  const meant = near === null || near === undefined ? '' : `; did you mean ${near}?`
  return new UsageError(`unknown kind ${word}${meant || `; there are ${names.join(', ')}`}`)
}

/** The field at a dotted path; undefined where part of the path is missing. */
export function at(resource: Resource, path: string): unknown {
  let value: unknown = resource
  for (const key of path.split('.')) {
    if (typeof value !== 'object' || value === null) return undefined
    value = (value as Record<string, unknown>)[key]
  }
  return value
}

function text(value: unknown): string {
  return value === undefined || value === null || value === '' ? '-' : String(value)
}

/** Of an image; undefined for what is none. */
export function imageSize(resource: Resource): string | undefined {
  const found = at(resource, 'spec.size')
  return typeof found === 'number' ? bytes(found) : undefined
}

export function imageTags(resource: Resource): string | undefined {
  return Array.isArray(at(resource, 'spec.tags')) ? tagNames(resource) : undefined
}

function size(value: unknown): string {
  return typeof value === 'number' ? bytes(value) : '-'
}

function tagNames(resource: Resource): string {
  const tags = (at(resource, 'spec.tags') ?? []) as { name: string }[]
  return tags.map((tag) => tag.name).join(', ') || '-'
}
