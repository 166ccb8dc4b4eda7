import { clientFor, withHints } from './client.ts'
import { type CommandInput, command, UsageError } from './command.ts'
import { imageReference } from './image-references.ts'
import { print, printJson } from './output.ts'

const shareFlags = {
  'data-dir': { kind: 'text', value: 'DIR', about: 'data directory of the running platform' },
  workspace: { kind: 'text', value: 'NAME', short: 'w', about: 'the other workspace' },
} as const

export const share = command({
  name: 'share image',
  summary: 'Shares an image with another workspace: new tags go there, too. Another account is asked first.',
  usage: 'TYPE/NAME --workspace NAME',
  flags: shareFlags,
  positionals: [1, 1],
  async run(input) {
    const { path, title, target } = shared(input)
    const { resource } = await withHints(
      { 'data-dir': input.flags['data-dir'] },
      () => client(input).create(path, { targetWorkspace: target }),
      { 404: 'hutch get images' },
      { targetWorkspace: '--workspace' },
    )
    if (input.flags.json) printJson(resource)
    else
      print(
        `${title} ${resource.status === 'pending' ? `is offered to ${target}` : `is shared with ${target}`}`,
      )
    return 0
  },
})

export const unshare = command({
  name: 'unshare image',
  summary: 'Takes an image away from a workspace it was shared with.',
  usage: 'TYPE/NAME --workspace NAME',
  flags: shareFlags,
  positionals: [1, 1],
  async run(input) {
    const { path, title, target } = shared(input)
    await withHints(
      { 'data-dir': input.flags['data-dir'] },
      () => client(input).remove(`${path}/${encodeURIComponent(target)}`),
      { 404: 'hutch get images' },
    )
    if (input.flags.json) printJson({ image: title, workspace: target })
    else print(`${title} is not shared with ${target} any more`)
    return 0
  },
})

type ShareInput = CommandInput<typeof shareFlags>

function client({ flags }: ShareInput) {
  return clientFor({ 'data-dir': flags['data-dir'] }).resources
}

function shared({ flags, positionals }: ShareInput): { path: string; title: string; target: string } {
  const { type, name, tag } = imageReference(positionals[0] ?? '')
  if (tag !== undefined) throw new UsageError(`an image is shared whole: ${type}/${name}, without :${tag}`)
  if (flags.workspace === undefined) throw new UsageError('--workspace says with which workspace')
  const path = `/images/${encodeURIComponent(type)}/${encodeURIComponent(name)}/share`
  return { path, title: `${type}/${name}`, target: flags.workspace }
}
