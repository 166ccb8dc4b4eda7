import { type Client, ClientError, type Resource } from '../client/index.ts'
import { applyManifest, checkAppliable, placeOf } from './applying.ts'
import { clientFor, withHints } from './client.ts'
import { CommandError, command, connectionFlags } from './command.ts'
import {
  type EnvironmentInput,
  environmentFlags,
  Placeholders,
  plainVariables,
  readEnvironment,
} from './environment.ts'
import { at, type Kind } from './kinds.ts'
import { fileFlag, type Manifest, readManifests } from './manifests.ts'
import { note, paint, print, printable } from './output.ts'
import { formatOf, outputFlag, printManifests } from './resource-output.ts'

const usage = 'hutch apply -f FILE'

export const manifestFlags = {
  filename: { kind: 'text', value: 'FILE', short: 'f', about: 'YAML file, a directory of them, or -' },
  recursive: { kind: 'boolean', short: 'R', about: 'of a directory, those below it too' },
} as const

export const apply = command({
  name: 'apply',
  summary: 'Makes resources be what manifests say: what is missing is created, the rest is replaced.',
  usage: '-f FILE',
  flags: { ...connectionFlags, ...manifestFlags, ...environmentFlags, ...outputFlag },
  notes: [
    'A manifest is YAML: apiVersion, kind, metadata (with its name) and spec; --- parts several in one file.',
    `In values, $NAME, \${NAME}, \${NAME:default} and $secrets.NAME stand for variables of this shell, of -s and of`,
    'the files of -e.',
  ],
  async run({ flags }) {
    const manifests = await manifestsOf(flags, fileFlag(flags.filename, usage))
    checkAppliable(manifests)
    const format = formatOf(flags)
    const client = clientFor(flags)
    const failures: string[] = []
    const applied = new Map<Kind, Resource[]>()
    for (const manifest of manifests) {
      const { kind } = placeOf(manifest)
      const title = `${kind.singular}/${printable(manifest.metadata.name)}`
      try {
        const { resource, what } = await withConnection(flags, () => applyManifest(client, manifest))
        if (format === null || format === 'table') print(`${title} ${what}`)
        else applied.set(kind, [...(applied.get(kind) ?? []), resource])
        const address = format === null ? await previewAddress(client, manifest, resource) : null
        if (address !== null) print(address)
      } catch (error) {
        if (!(error instanceof ClientError)) throw error
        failures.push(`${title}: ${error.message}`)
        note(`${paint('red', 'failed', process.stderr)} ${title}: ${error.message}`)
      }
    }
    if (format !== null && format !== 'table') printManifests(applied, format)
    if (failures.length === 0) return 0
    throw new CommandError(`${failures.length} of ${manifests.length} could not be applied`)
  },
})

interface ManifestInput extends EnvironmentInput {
  recursive?: boolean | undefined
}

export async function manifestsOf(flags: ManifestInput, file: string): Promise<Manifest[]> {
  return await readManifests(file, {
    recursive: flags.recursive === true,
    placeholders: new Placeholders({ ...readEnvironment(flags), ...plainVariables(flags) }),
  })
}

/** A platform that does not answer, or takes no key, ends the whole command; what it refuses, only the one manifest. */
async function withConnection<Value>(
  flags: Parameters<typeof withHints>[0],
  work: () => Promise<Value>,
): Promise<Value> {
  try {
    return await work()
  } catch (error) {
    if (!(error instanceof ClientError && [0, 401].includes(error.status))) throw error
    return await withHints(flags, () => Promise.reject(error))
  }
}

/** Where a preview is reached with the token that was just made; null for what is no token. */
async function previewAddress(client: Client, manifest: Manifest, made: Resource): Promise<string | null> {
  const token = at(made, 'spec.token')
  if (manifest.kind !== 'PreviewToken' || typeof token !== 'string') return null
  const { resourceName, previewName } = manifest.metadata
  const collection = `/sandboxes/${encodeURIComponent(String(resourceName))}/previews`
  const preview = await client.resources.get(`${collection}/${encodeURIComponent(String(previewName))}`)
  return `${at(preview, 'spec.url')}?bl_preview_token=${token}`
}
