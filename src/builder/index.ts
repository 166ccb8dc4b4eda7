/** Builds: from an uploaded archive of source code to an image. */
import { totalmem } from 'node:os'
import { PlatformError } from '../errors.ts'
import type { Images } from '../images/index.ts'
import type { Instances } from '../instances/index.ts'
import type { Clock } from '../lib/clock.ts'
import { parseDotenv } from '../lib/dotenv.ts'
import { formatDuration } from '../lib/duration.ts'
import type { Logger } from '../lib/log.ts'
import {
  dockerfileDefault,
  emptyProjectSettings,
  type ProjectSettings,
  parseProjectSettings,
} from '../lib/project-settings.ts'
import type { InstallationSettings } from '../network/index.ts'
import type { RuntimeCapabilities } from '../spec/runtime.ts'
import type { BatchStep, Store } from '../spec/store.ts'
import { DependencyLayers } from './dependencies.ts'
import type { DockerfileBuilds } from './dockerfile/index.ts'
import type { BuildJob, BuildRequest, BuildResult } from './job.ts'
import { BuildMachines } from './machine.ts'
import type { SourceBuilder } from './source.ts'

export type { BuildRequest, BuildResult } from './job.ts'

/** Of one build, whoever asked for it and however often it was begun. */
const buildMsMax = 15 * 60 * 1000
const buildMemoryMbMin = 512
const buildMemoryMbMax = 4096
const buildStorageMb = 10 * 1024
/** Base images and the layers of every step lie there, too. */
const dockerfileStorageMb = 20 * 1024

export interface BuilderOptions {
  store: Store
  instances: Instances
  images: Images
  /** Of the host's registries, with their credentials. */
  registries?: InstallationSettings
  /** For builds with a Dockerfile; absent: there are none. */
  dockerfiles?: {
    capabilities: Pick<RuntimeCapabilities, 'ownMounts'>
    /** For parts of base images; made when missing. */
    dir: string
    /** What stands in for the cloud's own sandbox API. */
    standInPath: string
  }
  clock: Clock
  log: Logger
}

export class Builder {
  readonly #options: BuilderOptions
  readonly #dependencies: DependencyLayers
  readonly #machines: BuildMachines
  #source: Promise<SourceBuilder> | null = null
  #dockerfiles: Promise<DockerfileBuilds> | null = null

  constructor(options: BuilderOptions) {
    this.#options = options
    const { store, images, clock, log } = options
    this.#dependencies = new DependencyLayers({ store, images: images.built, clock, log })
    this.#machines = new BuildMachines(options)
  }

  /** At start, once the instances are known: takes away what a platform before this one left. */
  open(): void {
    this.#machines.removeLeft()
  }

  /** Ends machines that are kept for a next build. Before the instances close. */
  async close(): Promise<void> {
    const dockerfiles = await this.#dockerfiles?.catch(() => null)
    await dockerfiles?.close()
  }

  /** Steps that forget what is kept of a workspace, for the batch that removes it. */
  async removal(workspace: string): Promise<BatchStep[]> {
    const dockerfiles = await this.#dockerfiles?.catch(() => null)
    await dockerfiles?.forget(workspace)
    return await this.#dependencies.removal(workspace)
  }

  /**
   * Makes an image of an archive. What it takes meanwhile is gone when it ends, whichever way.
   * @throws unprocessable, whose message names the step that failed and has its last lines; the signal's reason
   */
  async build(request: BuildRequest): Promise<BuildResult> {
    // Only who builds needs what reads archives.
    const [{ survey }, { Steps, secretsOf }] = await Promise.all([import('./tree.ts'), import('./steps.ts')])
    const ended = new AbortController()
    const late = new AbortController()
    void this.#options.clock.sleep(buildMsMax, ended.signal).then(
      () => late.abort(),
      () => {},
    )
    const signal = AbortSignal.any([request.signal, late.signal])
    let steps = new Steps({ onLine: request.onLine, secrets: request.redact ?? [] })
    try {
      const found = await survey(request.archivePath, request.archiveType, signal)
      const own = parseDotenv(found.buildEnvText ?? '')
      const { buildSecretsOf, credentialsIn } = await import('./credentials.ts')
      const credentials = [
        ...(this.#options.registries?.secrets ?? []),
        ...[...found.noticed].flatMap(([path, content]) => credentialsIn(path, content)),
      ]
      const hidden = [...(request.redact ?? []), ...secretsOf(own), ...credentials]
      steps = new Steps({ onLine: request.onLine, secrets: hidden })
      const settings = settingsOf(found.noticed.get('blaxel.toml'))
      const buildEnv = { ...settings.build.args, ...own }
      const secrets = [...credentials, ...buildSecretsOf(own)]
      const job: BuildJob = { request, survey: found, settings, buildEnv, secrets, steps, signal }
      return { ...(await this.#run(job)), settings }
    } catch (error) {
      if (late.signal.aborted && !request.signal.aborted)
        throw steps.failed(`not done after ${formatDuration(buildMsMax)}`)
      throw error
    } finally {
      ended.abort()
    }
  }

  async #run(job: BuildJob): Promise<Omit<BuildResult, 'settings'>> {
    const { dockerfile } = job.settings.build
    const isThere = job.survey.files.has(dockerfile)
    if (!isThere && dockerfile !== dockerfileDefault)
      throw new PlatformError(
        'unprocessable',
        `build.dockerfile of blaxel.toml names "${dockerfile}", which was not sent`,
      )
    if (isThere) {
      this.#dockerfiles ??= this.#openDockerfiles()
      return await (await this.#dockerfiles).build(job)
    }
    this.#source ??= this.#openSource()
    return await (await this.#source).build(job)
  }

  async #openDockerfiles(): Promise<DockerfileBuilds> {
    const { images, dockerfiles, clock } = this.#options
    if (!dockerfiles)
      throw new PlatformError(
        'unprocessable',
        'this platform cannot build with a Dockerfile: that takes the namespace runtime',
      )
    const { DockerfileBuilds } = await import('./dockerfile/index.ts')
    return new DockerfileBuilds({
      ...{ images, clock, ...dockerfiles },
      machines: this.#machines,
      memoryMb: buildMemoryMb(),
      storageMb: dockerfileStorageMb,
    })
  }

  async #openSource(): Promise<SourceBuilder> {
    const { SourceBuilder } = await import('./source.ts')
    return new SourceBuilder({
      images: this.#options.images.built,
      machines: this.#machines,
      dependencies: this.#dependencies,
      registries: this.#options.registries ?? { env: {}, npmrc: '', secrets: [] },
      memoryMb: buildMemoryMb(),
      storageMb: buildStorageMb,
    })
  }
}

function buildMemoryMb(): number {
  return Math.min(buildMemoryMbMax, Math.max(buildMemoryMbMin, Math.floor(totalmem() / 1024 ** 2 / 2)))
}

/** @throws unprocessable */
function settingsOf(content: Uint8Array | undefined): ProjectSettings {
  if (content === undefined) return emptyProjectSettings()
  try {
    return parseProjectSettings(Buffer.from(content).toString('utf8'))
  } catch (error) {
    throw PlatformError.is(error)
      ? new PlatformError('unprocessable', error.message, { cause: error })
      : error
  }
}
