import { statSync } from 'node:fs'
import type { ImageInfo } from '../client/index.ts'
import { clientFor, removeEach, withHints } from './client.ts'
import { CommandError, command, connectionFlags, sameTarget, type Target, UsageError } from './command.ts'
import { imageReference } from './image-references.ts'
import { noteNext } from './next.ts'
import { age, note, print, printable, printJson, table } from './output.ts'
import { shellQuote, spelled } from './shell.ts'

const passwordBytesMax = 64 * 1024

export const list = command({
  name: 'images ls',
  summary: 'Lists the images of a workspace; the well-known ones (blaxel/base-image, ...) are always there.',
  flags: connectionFlags,
  async run({ flags }) {
    const images = await withHints(flags, () => clientFor(flags).images.list())
    if (flags.json) {
      printJson(images)
      return 0
    }
    if (images.length === 0) {
      note(`no images; try: ${spelled(sameTarget('hutch images pull docker.io/library/alpine:3', flags))}`)
      return 0
    }
    print(table(['IMAGE', 'STATUS', 'SIZE MB', 'AGE'], imageRows(images)))
    for (const { metadata } of images) {
      const reason = metadata.status === 'FAILED' ? metadata.events?.at(-1)?.message : undefined
      if (reason !== undefined)
        note(`${nameOf(metadata, metadata.events?.at(-1)?.tag)}: ${printable(reason)}`)
    }
    return 0
  },
})

export const pull = command({
  name: 'images pull',
  summary: 'Pulls an image from a registry and waits until it is here.',
  usage: 'IMAGE',
  flags: {
    ...connectionFlags,
    name: { kind: 'text', value: 'NAME', about: 'what it is called here (made of its name there)' },
    tag: { kind: 'text', value: 'TAG', about: 'tag here (the tag there)' },
  },
  positionals: [1, 1],
  notes: ['IMAGE names its registry: docker.io/library/alpine:3, ghcr.io/org/app@sha256:...'],
  async run({ flags, positionals }) {
    const { name, tag } = flags
    const [reference = ''] = positionals
    const host = reference.split('/')[0]!
    // As Docker writes what is on its own registry.
    const isShort = /^[\w-]+(:[\w.-]+)?$/.test(reference)
    const hints: Record<number, string> = { 403: `hutch images login ${shellQuote(host)} -u NAME` }
    if (isShort) hints[400] = `hutch images pull docker.io/library/${reference}`
    const image = await withHints(
      flags,
      () =>
        clientFor(flags).images.pull(reference, {
          ...(name === undefined ? {} : { name }),
          ...(tag === undefined ? {} : { tag }),
        }),
      hints,
    )
    return answer(image, flags)
  },
})

export const importImage = command({
  name: 'images import',
  summary: 'Takes in an image from a file: an OCI archive, or what docker save writes.',
  usage: 'FILE --name NAME',
  flags: {
    ...connectionFlags,
    name: { kind: 'text', value: 'NAME', about: 'what it is called here' },
    tag: { kind: 'text', value: 'TAG', about: 'tag here (latest)' },
    reference: { kind: 'text', value: 'REF', about: 'which image of the file, where there are several' },
  },
  positionals: [1, 1],
  async run({ flags, positionals }) {
    const [file] = positionals
    const { name, tag, reference } = flags
    if (name === undefined) throw new UsageError('--name is missing: hutch images import FILE --name NAME')
    const found = statSync(file!, { throwIfNoEntry: false })
    if (!found) throw new CommandError(`${file} does not exist`)
    if (found.isDirectory()) {
      throw new CommandError(
        `${file} is a directory: an image comes as one file, an OCI archive or a docker save`,
      )
    }
    if (found.size === 0) throw notAnImage(file!, 'it is empty')
    const image = await withHints(
      flags,
      () =>
        clientFor(flags).images.import(Bun.file(file!), {
          name,
          ...(tag === undefined ? {} : { tag }),
          ...(reference === undefined ? {} : { reference }),
        }),
      {},
      { name: '--name', tag: '--tag', reference: '--reference' },
    ).catch((error: unknown) => Promise.reject(ofFile(error, file!)))
    return answer(image, flags)
  },
})

/** What the platform says of an archive is about this file. */
function ofFile(error: unknown, file: string): unknown {
  const isOfArchive = error instanceof CommandError && error.message.startsWith('the archive ')
  return isOfArchive ? notAnImage(file, error.message) : error
}

function notAnImage(file: string, why: string): CommandError {
  const message = `${file} cannot be taken in as an OCI archive, or as what docker save writes: ${why}`
  return new CommandError(message, 'hutch images import --help')
}

export const remove = command({
  name: 'images rm',
  summary: 'Deletes images, or single tags of them; those that a sandbox stands on are kept.',
  usage: 'IMAGE...',
  flags: { ...connectionFlags, unused: { kind: 'boolean', about: 'all that no sandbox stands on' } },
  positionals: [0, 1000],
  async run({ flags, positionals }) {
    const { images } = clientFor(flags)
    if (flags.unused) {
      if (positionals.length > 0) throw new UsageError('--unused takes no image')
      const deleted = await withHints(flags, () => images.removeUnused())
      if (flags.json) printJson({ removed: deleted })
      else print(`${deleted} removed`)
      return 0
    }
    if (positionals.length === 0) throw new UsageError('IMAGE is missing; usage: hutch images rm IMAGE...')
    const removal = (image: string) => {
      const { type, name, tag } = imageReference(image)
      return images.remove(type, name, tag)
    }
    return await removeEach(flags, positionals, removal, 'hutch images ls')
  },
})

export const login = command({
  name: 'images login',
  summary: 'Keeps credentials for a registry, sealed; the password is read from standard input.',
  usage: 'HOST --username NAME',
  flags: { ...connectionFlags, username: { kind: 'text', value: 'NAME', short: 'u', about: 'user there' } },
  positionals: [1, 1],
  notes: ['For example: hutch images login ghcr.io -u me < token'],
  async run({ flags, positionals }) {
    const [host] = positionals
    if (flags.username === undefined)
      throw new UsageError('--username is missing: hutch images login HOST -u NAME < password')
    const password = (await passwordFromStdin()).replace(/\r?\n$/, '')
    if (password === '') throw new CommandError('no password came on standard input')
    const { username } = flags
    await withHints(flags, () => clientFor(flags).images.login(host!, { username, password }))
    if (flags.json) printJson({ host, username })
    else print(host!)
    return 0
  },
})

export const logout = command({
  name: 'images logout',
  summary: 'Forgets the credentials for a registry.',
  usage: 'HOST',
  flags: connectionFlags,
  positionals: [1, 1],
  async run({ flags, positionals }) {
    await withHints(flags, () => clientFor(flags).images.logout(positionals[0]!))
    if (flags.json) printJson({ host: positionals[0] })
    else print(positionals[0]!)
    return 0
  },
})

/**
 * A tag that is listed is here; the status of its image tells how the last pull under that name goes or went, which has
 * a row of its own until it is here too.
 */
export function imageRows(images: ImageInfo[]): string[][] {
  return images.flatMap(({ metadata, spec }) => {
    const here = spec.tags.map((tag) => [
      nameOf(metadata, tag.name),
      'BUILT',
      `${Math.ceil(tag.size / 1024 ** 2)}`,
      age(tag.updatedAt),
    ])
    const last = metadata.events?.at(-1)
    const other = [nameOf(metadata, last?.tag), metadata.status, '-', age(last?.time)]
    return metadata.status === 'BUILT' ? here : [...here, other]
  })
}

function nameOf({ resourceType, name }: ImageInfo['metadata'], tag: string | undefined): string {
  return `${resourceType}/${name}${tag === undefined ? '' : `:${tag}`}`
}

function answer(image: ImageInfo, flags: Target & { json?: boolean }): number {
  if (flags.json) printJson(image)
  else {
    print(image.reference ?? image.metadata.name)
    noteNext(`hutch sandbox create --image ${shellQuote(image.reference ?? '')}`, flags)
  }
  return 0
}

async function passwordFromStdin(): Promise<string> {
  if (process.stdin.isTTY) note('password:')
  let text = ''
  for await (const chunk of process.stdin) {
    text += chunk
    if (text.length > passwordBytesMax) throw new CommandError('the password on standard input is too long')
    if (process.stdin.isTTY && text.includes('\n')) break
  }
  return text
}
