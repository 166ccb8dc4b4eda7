import { join, relative } from 'node:path'
import { parseDuration } from '../lib/duration.ts'
import type { ProjectType } from '../lib/project-settings.ts'
import { placeOf } from './applying.ts'
import type { ArchiveContent } from './archive.ts'
import { clientFor, withHints } from './client.ts'
import { CommandError, connectionFlags, sameTarget, type Target, UsageError } from './command.ts'
import { deployManifest } from './deploy-manifest.ts'
import { dockerConfigOf, registryFlags } from './docker-config.ts'
import { type EnvironmentInput, Placeholders, plainVariables, readEnvironment } from './environment.ts'
import { at } from './kinds.ts'
import { type Manifest, readManifests } from './manifests.ts'
import { warn } from './output.ts'
import { type ProjectFolder, projectName, projectWarnings, readProject } from './project.ts'
import { ask, canAsk, choose } from './prompt.ts'
import { outputFlag } from './resource-output.ts'

const timeoutMsDefault = 60 * 60 * 1000
const timeoutMsMax = 24 * 60 * 60 * 1000
const manifestFolder = '.blaxel'
const buildEnvFile = '.env.build'

const types: { name: ProjectType; about: string }[] = [
  { name: 'agent', about: 'a program that answers requests' },
  { name: 'function', about: 'an MCP server' },
  { name: 'application', about: 'a public web service' },
  { name: 'sandbox', about: 'an environment, from a Dockerfile' },
  { name: 'job', about: 'a program that is run to its end, task by task' },
]

/** Of `deploy` and `push`: what is sent. */
export const sourceFlags = {
  ...connectionFlags,
  name: {
    kind: 'text',
    value: 'NAME',
    short: 'n',
    about: 'how it is called, where blaxel.toml does not say',
  },
  type: { kind: 'text', value: 'TYPE', short: 't', about: 'agent, function, application, sandbox or job' },
  directory: { kind: 'text', value: 'DIR', short: 'd', about: 'folder of it below this one' },
  'build-env-file': {
    kind: 'text',
    value: 'FILE',
    about: `variables of the build alone (${buildEnvFile}); they are in no image`,
  },
  'skip-build': { kind: 'boolean', about: 'keep the image it has' },
  timeout: { kind: 'text', value: 'TIME', about: 'how long to wait for it, e.g. 10m (1h)' },
  yes: { kind: 'boolean', short: 'y', about: 'ask nothing' },
  ...registryFlags,
  ...outputFlag,
} as const

export interface SourceInput extends Target {
  name?: string | undefined
  type?: string | undefined
  directory?: string | undefined
  'build-env-file'?: string | undefined
  'skip-build'?: boolean | undefined
  timeout?: string | undefined
  yes?: boolean | undefined
  'registry-cred'?: string[] | undefined
  'docker-config'?: string | undefined
}

export interface DeployInput extends SourceInput, EnvironmentInput {
  traffic?: number | undefined
  recursive?: boolean | undefined
  detach?: boolean | undefined
  experimental?: boolean | undefined
}

/** One thing to be deployed: its resource, its manifests beside it, and what is sent of its code. */
export interface Deployment {
  type: ProjectType
  name: string
  manifest: Manifest
  beside: Manifest[]
  /** Null: an image is named instead. */
  content: ArchiveContent | null
}

/** This folder, and the packages that its blaxel.toml names. */
export async function plan(flags: DeployInput): Promise<Deployment[]> {
  const here = process.cwd()
  const root = source(flags, here)
  const { settings } = root.project
  const packages = Object.entries({
    ...withType(settings.agent, 'agent'),
    ...withType(settings.function, 'function'),
    ...withType(settings.job, 'job'),
  })
  if (flags.directory !== undefined || flags.recursive === false || packages.length === 0)
    return [await planOne(flags, root)]
  const deployments = settings.skipRoot ? [] : [await planOne(flags, root)]
  for (const [name, each] of packages) {
    const { traffic, yes, ...rest } = flags
    const own = { ...rest, type: each.type, name, traffic, yes }
    deployments.push(await planOne(own, source(own, join(here, each.path ?? '.'), here)))
  }
  return deployments
}

function withType<Entry extends { type?: string | undefined }>(
  packages: Record<string, Entry>,
  type: string,
): Record<string, Entry & { type: string }> {
  return Object.fromEntries(
    Object.entries(packages).map(([name, entry]) => [name, { ...entry, type: entry.type ?? type }]),
  )
}

export interface Source {
  /** What is archived, when the project is in a folder below it. */
  base: string
  project: ProjectFolder
  secrets: Record<string, string>
  variables: Record<string, string>
  placeholders: Placeholders
}

/** `base`: the folder the command is for; --directory is below it. `above`: where variables may be, too. */
export function source(flags: DeployInput, base: string, above?: string): Source {
  const directory = flags.directory === undefined ? base : join(base, flags.directory)
  const places = [directory, base, ...(above === undefined ? [] : [above])]
  const secrets = readEnvironment(flags, [...new Set(places)])
  const variables = plainVariables(flags)
  const placeholders = new Placeholders({ ...secrets, ...variables })
  return {
    base,
    project: readProject(directory, (text) => placeholders.resolve(text)),
    secrets,
    variables,
    placeholders,
  }
}

async function planOne(flags: DeployInput, from: Source): Promise<Deployment> {
  const { project, secrets, variables, placeholders } = from
  const { settings } = project
  const type = await typeOf(flags, project)
  const name = projectName(project, flags.name)
  if (settings.workspace !== undefined && flags.workspace === undefined) noteWorkspace(settings.workspace)
  const dockerConfig = dockerConfigOf(flags, project.directory)
  const image = settings.image ?? (flags['skip-build'] ? await currentImage(flags, type, name) : null)
  if (image === null) await confirmWarnings(flags, name, projectWarnings(project, type))
  const { traffic = null, experimental = false } = flags
  const environment = { secrets, variables, placeholders }
  const request = { type, name, settings, ...environment, image, dockerConfig, traffic, experimental }
  const manifests = join(from.base, manifestFolder)
  return {
    type,
    name,
    manifest: deployManifest(request),
    beside: await readBeside(manifests, placeholders),
    content: image === null ? contentOf(flags, from, dockerConfig) : null,
  }
}

/** @throws UsageError when nothing says what it is, and nobody can be asked */
export async function typeOf(
  flags: SourceInput,
  { settings, dockerfile }: ProjectFolder,
): Promise<ProjectType> {
  const aliases: Record<string, ProjectType> = { mcp: 'function', app: 'application', sbx: 'sandbox' }
  const wanted = flags.type === undefined ? settings.type : (aliases[flags.type] ?? flags.type)
  if (wanted === undefined) {
    if (!flags.yes && canAsk()) return (await choose('What is it?', types)) as ProjectType
    // As the cloud's own command line has it.
    if (dockerfile !== null && /sandbox-api|blaxel-ai\/sandbox/.test(dockerfile)) return 'sandbox'
    throw new UsageError('nothing says what this is: write type = "agent" into blaxel.toml, or give --type')
  }
  const known = types.find(({ name }) => name === wanted)
  if (known !== undefined) return known.name
  const names = types.map(({ name }) => name).join(', ')
  throw new UsageError(`type ${JSON.stringify(wanted)} is none of ${names}`)
}

function noteWorkspace(named: string): void {
  const { BL_WORKSPACE } = process.env
  if (BL_WORKSPACE !== undefined && BL_WORKSPACE !== named)
    warn(
      `blaxel.toml names the workspace ${named}; this goes to ${BL_WORKSPACE} (--workspace says otherwise)`,
    )
}

async function currentImage(flags: Target, type: ProjectType, name: string): Promise<string> {
  const { path } = placeOf({ kind: kindWord(type), metadata: { name }, spec: {}, from: '--skip-build' })
  const resource = await withHints(flags, () => clientFor(flags).resources.get(path), { 404: 'hutch deploy' })
  const image = at(resource, type === 'application' ? 'spec.image' : 'spec.runtime.image')
  if (typeof image === 'string' && image !== '') return image
  throw new CommandError(
    `${name} has no image yet: it is to be built first`,
    sameTarget('hutch deploy', flags),
  )
}

function kindWord(type: ProjectType): string {
  return type[0]?.toUpperCase() + type.slice(1)
}

async function confirmWarnings(flags: SourceInput, name: string, warnings: string[]): Promise<void> {
  for (const text of warnings) warn(`${name}: ${text}`)
  if (warnings.length === 0 || flags.yes || !canAsk()) return
  const answer = await ask('Deploy it all the same? (y/N)')
  if (!/^y(es)?$/i.test(answer)) throw new CommandError('nothing was deployed')
}

/**
 * The folder itself. Of one below, with a Dockerfile, the whole, since that may copy from anywhere: its own Dockerfile and
 * blaxel.toml in the place of those of the whole.
 */
export function contentOf(
  flags: SourceInput,
  { base, project }: Pick<Source, 'base' | 'project'>,
  dockerConfig: string | null,
): ArchiveContent {
  const { directory, dockerfile, settings, hasSettings } = project
  const instead: ArchiveContent['instead'] = {}
  const isBelow = directory !== base && dockerfile !== null && !relative(base, directory).startsWith('..')
  if (isBelow) {
    instead[settings.build.dockerfile] = { file: join(directory, settings.build.dockerfile) }
    if (hasSettings) instead['blaxel.toml'] = { file: join(directory, 'blaxel.toml') }
  }
  const buildEnv = flags['build-env-file']
  const buildEnvPath = join(directory, buildEnv ?? buildEnvFile)
  const hasBuildEnv = Bun.file(buildEnvPath).size > 0
  if (buildEnv !== undefined && !hasBuildEnv)
    throw new CommandError(`${buildEnv} does not exist, or is empty`)
  if (hasBuildEnv) instead[buildEnvFile] = { file: buildEnvPath }
  if (dockerConfig !== null) instead['.docker/config.json'] = { text: dockerConfig }
  return { root: isBelow ? base : directory, instead }
}

async function readBeside(folder: string, placeholders: Placeholders): Promise<Manifest[]> {
  const files = new Bun.Glob('**/*.{yaml,yml,json}')
  const found = await Array.fromAsync(files.scan({ cwd: folder, onlyFiles: true })).catch(() => [])
  return found.length === 0 ? [] : await readManifests(folder, { recursive: true, placeholders })
}

export function timeoutOf({ timeout }: SourceInput): number {
  if (timeout === undefined) return timeoutMsDefault
  try {
    return parseDuration('--timeout', timeout, timeoutMsMax)
  } catch (error) {
    throw new UsageError((error as Error).message)
  }
}
