import { type Accepted, type Client, ClientError } from '../client/index.ts'
import { CommandError } from './command.ts'
import { type Kind, kinds } from './kinds.ts'
import type { Manifest } from './manifests.ts'
import { callbackSecretsOf, noteSecret } from './triggers.ts'

export interface Applied extends Accepted {
  what: 'created' | 'configured'
  /** By trigger, of those that were made now: what their callbacks are signed with. */
  callbackSecrets: Record<string, string>
}

/** The kind of a manifest with its parents' names. @throws CommandError */
export function placeOf(manifest: Manifest): { kind: Kind; collection: string; path: string } {
  const kind = kinds.find((known) => known.kind === manifest.kind)
  if (kind === undefined) {
    const known = kinds.map((each) => each.kind).join(', ')
    throw new CommandError(`${manifest.from}: kind ${manifest.kind} is none of ${known}`)
  }
  const parents = kind.parents.map((field) => {
    const parent = manifest.metadata[field]
    if (typeof parent !== 'string') throw new CommandError(`${manifest.from}: metadata.${field} is missing`)
    return parent
  })
  const collection = kind.collection(parents)
  return { kind, collection, path: `${collection}/${encodeURIComponent(manifest.metadata.name)}` }
}

/** Nothing is begun that cannot be written as a whole. @throws CommandError that names the first manifest that is no use */
export function checkAppliable(manifests: Iterable<Manifest>): void {
  for (const manifest of manifests) {
    const { kind } = placeOf(manifest)
    if (kind.apply === null)
      throw new CommandError(`${manifest.from}: a ${kind.singular} is not made by a manifest`)
  }
}

/** Makes a resource be what the manifest says, whether it is there or not. */
export async function applyManifest(
  client: Client,
  manifest: Manifest,
  options: { upload?: boolean } = {},
): Promise<Applied> {
  const { kind, collection, path } = placeOf(manifest)
  const body = { metadata: manifest.metadata, spec: manifest.spec }
  const create = async (): Promise<Applied> =>
    told({ ...(await client.resources.create(collection, body, options)), what: 'created' })
  const replace = async (): Promise<Applied> =>
    told({ ...(await client.resources.replace(path, body, options)), what: 'configured' })
  if (kind.apply === 'only-create') return await create()
  if (kind.apply === 'create') return await otherwise(create, [409], replace)
  if (kind.apply === 'replace') return await otherwise(replace, [404, 405], create)
  throw new CommandError(`${manifest.from}: a ${kind.singular} is not made by a manifest`)
}

/** What is answered once is shown at once, whatever comes after it. */
function told(applied: Omit<Applied, 'callbackSecrets'>): Applied {
  const callbackSecrets = callbackSecretsOf(applied.resource)
  for (const [id, secret] of Object.entries(callbackSecrets)) noteSecret(id, secret)
  return { ...applied, callbackSecrets }
}

async function otherwise<Value>(
  first: () => Promise<Value>,
  statuses: number[],
  second: () => Promise<Value>,
): Promise<Value> {
  try {
    return await first()
  } catch (error) {
    if (!(error instanceof ClientError && statuses.includes(error.status))) throw error
    return await second()
  }
}
