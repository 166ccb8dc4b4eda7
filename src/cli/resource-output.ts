import type { Resource } from '../client/index.ts'
import { outputFormats, UsageError } from './command.ts'
import { at, imageOf, imageSize, imageTags, type Kind, records } from './kinds.ts'
import { age, paint, print, printable, printJson, span, table } from './output.ts'

export type Format = 'table' | 'json' | 'yaml' | 'pretty'

const apiVersion = 'blaxel.ai/v1alpha1'
const eventsShownMax = 10

export const outputFlag = {
  output: { kind: 'text', value: 'FORMAT', short: 'o', about: `one of ${outputFormats.join(', ')}` },
} as const

/** What --output and --json ask for; null when nothing is. @throws UsageError */
export function formatOf(flags: { output?: string | undefined; json?: boolean | undefined }): Format | null {
  const { output } = flags
  if (output === undefined) return flags.json ? 'json' : null
  if (!outputFormats.includes(output)) {
    throw new UsageError(`--output ${JSON.stringify(output)} is none of ${outputFormats.join(', ')}`)
  }
  return output as Format
}

type Shown = Pick<Kind, 'kind' | 'columns'>

/**
 * Resources of one kind. As JSON they are always an array, also a single one, and as YAML documents, each as a manifest
 * that `apply` takes.
 */
export function printResources(kind: Shown, resources: Resource[], format: Format): void {
  if (format === 'table') {
    const titles = kind.columns.map(([title]) => title)
    print(
      table(
        titles,
        resources.map((resource) => kind.columns.map(([, cell]) => cell(resource))),
      ),
    )
    return
  }
  printManifests(new Map([[kind, resources]]), format)
}

/** Resources of several kinds, as JSON or YAML. */
export function printManifests(byKind: ReadonlyMap<Shown, Resource[]>, format: Format): void {
  const manifests = [...byKind].flatMap(([kind, resources]) =>
    resources.map((resource) => ({ apiVersion, kind: kind.kind, ...resource })),
  )
  if (format === 'json') {
    printJson(manifests)
    return
  }
  for (const manifest of manifests) {
    const yaml = `---\n${Bun.YAML.stringify(manifest, null, 2)}`
    print(format === 'pretty' ? coloured(yaml) : yaml)
  }
}

/** One resource for people: what matters, a line each, then its last events. */
export function describe(resource: Resource): void {
  const { metadata } = resource
  const labels = Object.entries((metadata?.labels ?? {}) as Record<string, string>)
  const expiresIn = resource.expiresIn as number | undefined
  const rows: [string, unknown][] = [
    ['name', metadata?.name ?? resource.name],
    ['status', statusOf(resource) ?? metadata?.status ?? at(resource, 'spec.status')],
    ['state', resource.state],
    ['serves', routing(at(resource, 'spec.revision'))],
    ['image', imageOf(resource)],
    ['size', imageSize(resource)],
    ['tags', imageTags(resource)],
    ['memory', megabytes(at(resource, 'spec.runtime.memory') ?? at(resource, 'spec.memory'))],
    ['disk', megabytes(at(resource, 'spec.runtime.storageMb'))],
    ['port', at(resource, 'spec.port')],
    ['public', at(resource, 'spec.public')],
    ['region', at(resource, 'spec.region')],
    ['external id', metadata?.externalId],
    ['reasoners', at(resource, 'spec.reasoners')],
    ['skills', at(resource, 'spec.skills')],
    ['labels', labels.map(([key, value]) => `${key}=${value}`).join(', ')],
    ['url', metadata?.url ?? at(resource, 'spec.url')],
    ['urls', hosts(at(resource, 'spec.urls'))],
    ['txt record', records(resource).join(', ')],
    ['error', at(resource, 'spec.verificationError')],
    ['created', metadata?.createdAt ?? resource.createdAt],
    ['updated', metadata?.updatedAt],
    ['deleted', expiresIn === undefined ? undefined : `in ${span(expiresIn)}`],
  ]
  for (const [title, value] of rows) {
    if (value === undefined || value === null || value === '') continue
    print(`${title.padEnd(12)} ${printable(String(value))}`)
  }
  const events = [...(resource.events ?? [])].sort((one, other) => one.time.localeCompare(other.time))
  const shown = events.slice(-eventsShownMax)
  const agesChars = Math.max(...shown.map(({ time }) => age(time).length))
  const statusesChars = Math.max(...shown.map(({ status, type }) => (status ?? type).length))
  for (const event of shown) {
    const status = (event.status ?? event.type).padEnd(statusesChars)
    const what = [status, event.revision, event.message].filter(Boolean).join('  ').trimEnd()
    const [line = '', ...more] = what.split('\n')
    print(`${'event'.padEnd(12)} ${age(event.time).padStart(agesChars)} ago  ${printable(line)}`)
    for (const other of more) print(`${' '.repeat(13)}${printable(other)}`)
  }
}

/**
 * A deployment is said to be built for some seconds when it is deployed already, for clients that would not believe it
 * otherwise: its events know.
 */
function statusOf({ status, events = [] }: Resource): string | undefined {
  const own = events.filter(({ type }) => type === 'deployment')
  const last = own.toSorted((one, other) => one.time.localeCompare(other.time)).at(-1)?.status
  return status === 'BUILDING' && (last === 'DEPLOYED' || last === 'FAILED') ? last : status
}

/** Which revisions get the requests. */
function routing(revision: unknown): string | undefined {
  const {
    active,
    canary,
    canaryPercent = 0,
  } = (revision ?? {}) as {
    active?: string
    canary?: string
    canaryPercent?: number
  }
  if (active === undefined) return undefined
  return canary === undefined ? active : `${active}, and ${canary} ${canaryPercent}% of the requests`
}

function hosts(urls: unknown): string | undefined {
  if (!Array.isArray(urls)) return undefined
  return urls.map(({ domain, subdomain }) => (subdomain ? `${subdomain}.${domain}` : domain)).join(', ')
}

function megabytes(count: unknown): string | undefined {
  return typeof count === 'number' ? `${count} MB` : undefined
}

function coloured(yaml: string): string {
  return yaml
    .split('\n')
    .map((line) => {
      const [, before = '', key, rest = ''] = /^(\s*(?:- )?)([\w.-]+:)(.*)$/.exec(line) ?? []
      return key === undefined ? line : `${before}${paint('bold', key)}${rest}`
    })
    .join('\n')
}
