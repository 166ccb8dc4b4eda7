import { manifestFlags, manifestsOf } from './apply.ts'
import { placeOf } from './applying.ts'
import { clientFor, removeEach } from './client.ts'
import { command, connectionFlags, UsageError } from './command.ts'
import { environmentFlags } from './environment.ts'
import { imageReference } from './image-references.ts'
import { type Kind, kinds, knownKind } from './kinds.ts'

export const remove = command({
  name: 'delete',
  summary: 'Deletes resources, by name or those that manifests name. There is no way back.',
  usage: 'KIND NAME...',
  flags: { ...connectionFlags, ...manifestFlags, ...environmentFlags },
  positionals: [0, 1000],
  notes: [
    'For example: hutch delete agent one two; hutch delete image agent/one:tag; hutch delete -f manifests -R',
    'What belongs to another is reached by it: hutch delete preview SANDBOX PREVIEW.',
  ],
  async run({ flags, positionals }) {
    const removal = (path: string) => clientFor(flags).resources.remove(path)
    if (flags.filename !== undefined) {
      if (positionals.length > 0) throw new UsageError('--filename takes no KIND and NAME beside it')
      // What was made last may need what was made first.
      const manifests = (await manifestsOf(flags, flags.filename)).reverse()
      const paths = new Map(
        manifests.map((manifest) => {
          const { kind, path } = placeOf(manifest)
          return [`${kind.singular}/${manifest.metadata.name}`, path]
        }),
      )
      return await removeEach(
        flags,
        [...paths.keys()],
        (title) => removal(paths.get(title) ?? ''),
        'hutch status',
      )
    }
    const [word, ...rest] = positionals
    if (word === undefined)
      throw new UsageError('KIND is missing; usage: hutch delete KIND NAME... (or -f FILE)')
    const kind = knownKind(word, kinds)
    const parents = rest.slice(0, kind.parents.length)
    const names = rest.slice(kind.parents.length)
    if (names.length === 0)
      throw new UsageError(`NAME is missing; usage: hutch delete ${kind.singular} ${namesOf(kind)}`)
    const collection = kind.collection(parents)
    const listing = `hutch get ${[kind.plural, ...parents].join(' ')}`
    return await removeEach(flags, names, (name) => removal(itemPath(kind, collection, name)), listing)
  },
})

function namesOf(kind: Kind): string {
  return [...kind.parents.map((field) => (field === 'resourceName' ? 'SANDBOX' : 'PREVIEW')), 'NAME...'].join(
    ' ',
  )
}

function itemPath(kind: Kind, collection: string, name: string): string {
  if (kind.kind !== 'Image') return `${collection}/${encodeURIComponent(name)}`
  const image = imageReference(name)
  const tag = image.tag === undefined ? '' : `/tags/${encodeURIComponent(image.tag)}`
  return `${collection}/${encodeURIComponent(image.type)}/${encodeURIComponent(image.name)}${tag}`
}
