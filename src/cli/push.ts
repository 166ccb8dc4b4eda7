import type { Client } from '../client/index.ts'
import { type ArchiveContent, packed } from './archive.ts'
import { clientFor, withHints } from './client.ts'
import { CommandError, command, sameTarget, UsageError } from './command.ts'
import { contentOf, type SourceInput, source, sourceFlags, timeoutOf, typeOf } from './deploy-plan.ts'
import { dockerConfigOf } from './docker-config.ts'
import { follow } from './following.ts'
import { Interruption } from './interruption.ts'
import { kindNamed, kinds } from './kinds.ts'
import { noteNext } from './next.ts'
import { bytes, print, printJson } from './output.ts'
import { Progress } from './progress.ts'
import { projectName } from './project.ts'
import { formatOf } from './resource-output.ts'
import { upload } from './uploading.ts'

export const push = command({
  name: 'push',
  summary: 'Builds an image of the code of this folder, and serves nothing.',
  flags: {
    ...sourceFlags,
    image: { kind: 'text', value: 'IMAGE', about: 'take this image of a registry, instead of building one' },
  },
  notes: ['Where a sandbox, an agent or the like names it: spec.runtime.image, or image in blaxel.toml.'],
  async run({ flags }) {
    timeoutOf(flags)
    const structured = ['json', 'yaml'].includes(formatOf(flags) ?? '')
    const from = source(flags, process.cwd())
    const type = await typeOf(flags, from.project)
    const name = projectName(from.project, flags.name, { asked: true })
    const dockerConfig = dockerConfigOf(flags, from.project.directory)
    const image = flags.image ?? from.project.settings.image ?? null
    const client = clientFor(flags)
    using progress = new Progress(structured)
    using interruption = new Interruption(progress, flags)
    const path = `/images/${encodeURIComponent(type)}/${encodeURIComponent(name)}`
    const built = await withHints(
      flags,
      async () => {
        const request: PushRequest = {
          name,
          resourceType: type,
          ...generationOf(from.project.settings.runtime),
        }
        const since = new Date().toISOString()
        const wait =
          image === null
            ? await send(client, progress, interruption, request, contentOf(flags, from, dockerConfig))
            : await take(
                client,
                { ...request, image, ...(dockerConfig === null ? {} : { dockerConfig }) },
                flags,
              )
        interruption.watch = `hutch get image ${type}/${name} --watch`
        if (!wait) return await client.resources.get(path)
        const title = `the image ${type}/${name}`
        const followed = {
          title,
          path,
          resourceType: kindNamed(type, kinds)?.plural ?? `${type}s`,
          name,
          revision: null,
          since,
        }
        const outcome = await follow(client, followed, progress, timeoutOf(flags))
        if (outcome.status === 'BUILT') return outcome.resource
        progress.fail()
        throw new CommandError(
          `${title} was not built: ${outcome.message ?? outcome.status}`,
          sameTarget(`hutch logs ${type} ${name} --build`, flags),
        )
      },
      { 404: 'hutch get images' },
      { name: '--name', resourceType: '--type', image: '--image' },
    )
    progress.done(`Built the image ${type}/${name}`)
    if (structured) printJson(built)
    else {
      print(`${type}/${name}`)
      noteNext(`hutch get image ${type}/${name}`, flags)
    }
    return 0
  },
})

interface PushRequest {
  name: string
  resourceType: string
  generation?: string
  image?: string
  dockerConfig?: string
}

function generationOf({ generation }: { generation?: string | undefined }): { generation?: string } {
  return generation === undefined ? {} : { generation }
}

/** Answers whether there is something to wait for. */
async function send(
  client: Client,
  progress: Progress,
  interruption: Interruption,
  request: PushRequest,
  content: ArchiveContent,
): Promise<boolean> {
  progress.start(`Packing ${request.name}`)
  return await packed(content, async (archive) => {
    progress.done(`Packed ${archive.files.length} files, ${bytes(archive.bytes)}`)
    progress.start(`Sending ${bytes(archive.bytes)}`, `Sent ${bytes(archive.bytes)}`)
    const ask = async () => (await client.resources.create('/images', request, { upload: true })).uploadUrl
    const address = await ask()
    interruption.begun = true
    if (address === null) throw new CommandError('the platform named no address for the archive')
    await upload(client, { path: archive.path, contentType: 'application/zip' }, address, ask)
    progress.done()
    return true
  })
}

async function take(client: Client, request: PushRequest, flags: SourceInput): Promise<boolean> {
  if (request.image === undefined) throw new UsageError('--image is missing')
  const query = flags['skip-build'] ? '?skip-build=true' : ''
  const { resource } = await client.resources.create(`/images${query}`, request)
  return resource.build === true
}
