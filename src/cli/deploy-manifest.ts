import type { ProjectSettings, ProjectType } from '../lib/project-settings.ts'
import type { Placeholders } from './environment.ts'
import type { Manifest } from './manifests.ts'
import { warn } from './output.ts'

/** The platform sets these for every program: what a file of variables says of them would count for nothing. */
const reserved = new Set([
  'HOST',
  'PORT',
  'BL_API_KEY',
  'BL_API_URL',
  'BL_CLIENT_CREDENTIALS',
  'BL_NAME',
  'BL_RUN_URL',
  'BL_TYPE',
  'BL_WORKSPACE',
])
/** Tells whoever looks that an archive follows. */
const uploadLabel = 'x-blaxel-auto-generated'
const experimentalLabel = 'x-blaxel-experimental'
const applicationMemoryMb = 2048

export interface DeployRequest {
  type: ProjectType
  name: string
  settings: ProjectSettings
  /** Of `.env` and of -s, which are nobody's to read again. */
  secrets: Record<string, string>
  /** Of the command line, over all else. */
  variables: Record<string, string>
  placeholders: Placeholders
  /** Taken as it is, instead of an archive. */
  image: string | null
  /** As Docker keeps them, for a registry. */
  dockerConfig: string | null
  traffic: number | null
  experimental: boolean
}

const kindOf: Record<ProjectType, string> = {
  agent: 'Agent',
  function: 'Function',
  job: 'Job',
  sandbox: 'Sandbox',
  application: 'Application',
  'volume-template': 'VolumeTemplate',
}

/** The resource of a project, as it is sent before its archive. */
export function deployManifest(request: DeployRequest): Manifest {
  const { type, name, settings, image, experimental } = request
  const labels = {
    ...settings.labels,
    ...(image === null ? { [uploadLabel]: 'true' } : {}),
    ...(experimental ? { [experimentalLabel]: 'true' } : {}),
  }
  const spec = type === 'application' ? applicationSpec(request) : workloadSpec(request)
  return {
    kind: kindOf[type],
    metadata: { name, labels },
    spec: {
      ...spec,
      ...(request.traffic === null ? {} : { revision: { traffic: request.traffic } }),
      ...(settings.region === undefined ? {} : { region: settings.region }),
    },
    from: 'blaxel.toml',
  }
}

function workloadSpec({
  type,
  settings,
  image,
  dockerConfig,
  ...request
}: DeployRequest): Record<string, unknown> {
  if (type === 'volume-template')
    return settings.defaultSize === undefined ? {} : { defaultSize: settings.defaultSize }
  const { runtime, triggers, volumes, policies, githubRunner } = settings
  return {
    runtime: {
      ...runtime,
      envs: envsOf(settings, request),
      ...(type === 'function' ? { type: 'mcp' } : {}),
      ...(image === null ? {} : { image }),
      ...(dockerConfig !== null && image !== null ? { dockerConfig } : {}),
    },
    ...(triggers.length > 0 ? { triggers } : {}),
    ...(volumes.length > 0 && type !== 'function' ? { volumes } : {}),
    ...(githubRunner !== undefined && type === 'job' ? { githubRunner } : {}),
    ...(policies !== undefined && policies.length > 0 ? { policies } : {}),
    ...(settings.public === undefined ? {} : { public: settings.public }),
  }
}

function applicationSpec({ settings, image, ...request }: DeployRequest): Record<string, unknown> {
  const region = settings.region ?? settings.deploy?.region
  return {
    enabled: true,
    memory: settings.deploy?.memory ?? settings.memory ?? settings.runtime.memory ?? applicationMemoryMb,
    envs: envsOf(settings, request),
    ...(settings.port === undefined ? {} : { port: settings.port }),
    ...(region === undefined ? {} : { region }),
    ...(image === null ? {} : { image }),
  }
}

/** Variables of the command line over secrets over `[env]`; each name once. */
function envsOf(
  settings: ProjectSettings,
  { secrets, variables, placeholders }: Pick<DeployRequest, 'secrets' | 'variables' | 'placeholders'>,
): { name: string; value: string; secret?: true }[] {
  const envs = new Map<string, { value: string; secret?: true }>()
  for (const [name, value] of Object.entries(settings.env)) {
    const isOver = Object.hasOwn(secrets, name) || Object.hasOwn(variables, name)
    if (!isOver) envs.set(name, { value: placeholders.resolve(value) })
  }
  for (const [name, value] of Object.entries(secrets)) envs.set(name, { value, secret: true })
  for (const [name, value] of Object.entries(variables)) envs.set(name, { value })
  const left = [...envs.keys()].filter((name) => reserved.has(name)).sort()
  if (left.length > 0)
    warn(`${left.join(', ')} ${left.length === 1 ? 'is' : 'are'} set by the platform, and not sent`)
  for (const name of left) envs.delete(name)
  return [...envs].map(([name, env]) => ({ name, ...env }))
}
