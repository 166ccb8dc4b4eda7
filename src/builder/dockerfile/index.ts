/**
 * Builds with a Dockerfile. What runs is a stranger's, and so may be the base images: the tool works inside an instance of
 * the host image, with mounts of its own, whose network is judged as any sandbox's. The platform fetches the base images,
 * brings everything in, and takes the layers out.
 */
import { existsSync } from 'node:fs'
import { PlatformError } from '../../errors.ts'
import type { Images } from '../../images/index.ts'
import type { Clock } from '../../lib/clock.ts'
import { type DockerfileTool, findDockerfileTool } from '../../lib/dockerfile-tool.ts'
import type { RootFilesystem, RuntimeCapabilities } from '../../spec/runtime.ts'
import type { BuildJob, BuildResult } from '../job.ts'
import type { BuildMachine, BuildMachines } from '../machine.ts'
import { treeOf } from '../tree.ts'
import { BaseImages, isHostName } from './base-images.ts'
import { bringBun, bringContext, bringImage, linkHost } from './bringing.ts'
import { type DockerfileImage, dockerfileBytesMax, imagesOf } from './file.ts'
import { KeptMachines, type Workbench } from './kept-machines.ts'
import { builtImage } from './output.ts'
import {
  buildCommand,
  builtDir,
  type Carried,
  carriedSettings,
  contextName,
  handOutCommand,
  hostDir,
  type LocalBase,
  ToolOutput,
  toolDir,
  toolDirs,
  toolEnv,
  toolFiles,
} from './tool.ts'

/** Used on the disk of a machine: with more it is not kept for the next build. */
const cachedBytesMax = 8 * 1024 ** 3
const killed = 9
const killedExitCode = 137

export interface DockerfileBuildsOptions {
  images: Pick<Images, 'open' | 'install' | 'built'>
  machines: BuildMachines
  capabilities: Pick<RuntimeCapabilities, 'ownMounts'>
  /** Theirs alone. */
  dir: string
  /** What stands in for the cloud's own sandbox API. */
  standInPath: string
  memoryMb: number
  storageMb: number
  clock: Clock
}

export class DockerfileBuilds {
  readonly #options: DockerfileBuildsOptions
  readonly #bases: BaseImages
  readonly #kept: KeptMachines

  constructor(options: DockerfileBuildsOptions) {
    this.#options = options
    const { images, dir, standInPath, clock } = options
    this.#bases = new BaseImages({ images, dir, standInPath, clock })
    this.#kept = new KeptMachines({ clock })
  }

  async close(): Promise<void> {
    await this.#kept.close()
  }

  /** Ends what is kept for a workspace. */
  async forget(workspace: string): Promise<void> {
    await this.#kept.forget(`${workspace}/`)
  }

  /** @throws unprocessable with the step that failed, and what else is in the way; the signal's reason */
  async build(job: BuildJob): Promise<Omit<BuildResult, 'settings'>> {
    const { request, survey, signal } = job
    const { workspace, kind, name, archivePath, archiveType } = request
    const dockerfile = survey.noticed.get(job.settings.build.dockerfile)
    if (dockerfile === undefined || dockerfile.length > dockerfileBytesMax)
      throw new PlatformError('unprocessable', `the Dockerfile has more than ${dockerfileBytesMax} bytes`)
    const tool = await this.#tool()
    const wanted = imagesOf(Buffer.from(dockerfile).toString('utf8'), job.buildEnv)
    const host = await this.#options.images.built.onHost([], signal)
    const carried = carriedSettings(host.env, existsSync)
    const whole = wanted.some(({ text }) => isHostName(text))
      ? (await this.#options.images.built.wholeHost(signal)).root
      : null
    const key = `${workspace}/${kind}/${name}`
    const bench =
      (await this.#kept.take(key, whole?.digest ?? null, signal)) ??
      (await this.#newBench(job, host.root, whole))
    let isSound = false
    try {
      const { machine } = bench
      await bringContext(machine, treeOf(archivePath, archiveType, survey, { into: contextName }), signal)
      const bases = await this.#bringBases(bench, tool, job, wanted)
      // Layers of steps that went well serve the next attempt, too.
      isSound = true
      await this.#run(machine, tool, job, bases, carried)
      return { image: await this.#takeOut(machine, tool, job, carried), language: 'docker' }
    } catch (error) {
      if (signal.aborted) isSound = false
      throw error
    } finally {
      const used = isSound ? await bench.machine.instance.stats().catch(() => null) : null
      const fits = used !== null && (used.diskBytes ?? 0) <= cachedBytesMax
      if (fits) await this.#kept.keep(key, bench)
      else await bench.machine[Symbol.asyncDispose]()
    }
  }

  async #tool(): Promise<DockerfileTool> {
    const { tool, detail, remedy } = await findDockerfileTool(this.#options.capabilities.ownMounts)
    if (tool !== null) return tool
    throw new PlatformError(
      'unprocessable',
      `this host cannot build with a Dockerfile: ${detail}. What helps: ${remedy}`,
    )
  }

  async #newBench(
    { request, signal }: BuildJob,
    host: RootFilesystem,
    whole: RootFilesystem | null,
  ): Promise<Workbench> {
    const { machines, memoryMb, storageMb } = this.#options
    const { workspace, name } = request
    const [mask, source] = whole?.layers ?? []
    const root =
      mask !== undefined && source !== undefined
        ? { ...host, mounts: [...host.mounts, { source, mask, target: hostDir, kind: 'overlay' as const }] }
        : host
    const machine = await machines.open(
      { workspace, name, root, memoryMb, storageMb, env: {}, workingDir: '/', ownMounts: toolDir },
      signal,
    )
    try {
      for (const path of toolDirs) await machine.instance.guest.files.makeDirectory(path, { parents: true })
      await machine.write(toolFiles.map(([path, content]) => ({ path, data: Buffer.from(content) })))
      if (whole !== null) await bringBun(machine, signal)
      return { machine, bases: new Map(), host: whole?.digest ?? null }
    } catch (error) {
      await machine[Symbol.asyncDispose]()
      throw error
    }
  }

  /** Those that the tool's store does not have yet. */
  async #bringBases(
    bench: Workbench,
    tool: DockerfileTool,
    { request, survey, steps, signal }: BuildJob,
    wanted: readonly DockerfileImage[],
  ): Promise<LocalBase[]> {
    const { dockerConfig } = survey
    const fetched = async (image: DockerfileImage) => {
      steps.step(`fetching ${image.text}`)
      using base = await this.#bases.fetch(request.workspace, image, { dockerConfig, signal })
      const present = bench.bases.get(base.digest)
      if (present !== undefined) return present
      const local = `localhost/hutch-base-${bench.bases.size}:latest`
      await bringImage(bench.machine, tool, base, local, signal)
      if (isHostName(image.text)) await linkHost(bench.machine, signal)
      bench.bases.set(base.digest, local)
      return local
    }
    const bases: LocalBase[] = []
    for (const image of wanted) {
      const { written, text } = image
      const known = bases.find((base) => base.text === text)
      bases.push({ written, text, local: known?.local ?? (await fetched(image)) })
    }
    return bases
  }

  async #run(
    machine: BuildMachine,
    tool: DockerfileTool,
    { buildEnv, settings, steps, signal }: BuildJob,
    bases: LocalBase[],
    carried: Carried,
  ): Promise<void> {
    const { memoryMb, storageMb } = this.#options
    if (carried.certificates !== null) {
      const { from, to } = carried.certificates
      await machine.output({ argv: ['cp', '--', from, to], env: toolEnv({}), workingDir: '/' }, signal)
    }
    const output = new ToolOutput(steps, bases)
    const exit = await machine.run(
      {
        argv: buildCommand(tool, {
          dockerfile: settings.build.dockerfile,
          buildArgs: buildEnv,
          bases,
          env: carried.env,
        }),
        env: toolEnv(carried.proxies),
        workingDir: '/',
        onLine: (line) => output.line(line),
      },
      signal,
    )
    if (exit.exitCode === 0) return output.succeeded()
    const how = output.failure(exit)
    const isKilled = exit.signal === killed || how === `exit code ${killedExitCode}`
    let hint = ''
    if (output.fullDisk) hint = `(the disk of a build has ${storageMb} MiB)`
    else if (isKilled) hint = `(a build has ${memoryMb} MiB of memory)`
    throw steps.failed(how, hint)
  }

  async #takeOut(
    machine: BuildMachine,
    tool: DockerfileTool,
    job: BuildJob,
    carried: Carried,
  ): Promise<string> {
    const { request, steps, signal } = job
    const { workspace, kind: type, name, tag } = request
    steps.step('packing the image')
    const output = new ToolOutput(steps, [])
    const exit = await machine.run(
      {
        argv: handOutCommand(tool),
        env: toolEnv({}),
        workingDir: '/',
        onLine: (line) => output.line(line),
      },
      signal,
    )
    if (exit.exitCode !== 0) throw steps.failed(output.failure(exit))
    const { onHost, ...parts } = await builtImage(machine, builtDir, { withoutEnv: carried.env, signal })
    const target = { type, name, tag, signal, ...(onHost ? { base: 'host-whole' as const } : {}) }
    const reference = await this.#options.images.install(workspace, target, parts)
    await machine.instance.guest.files.remove(builtDir, { recursive: true })
    return reference
  }
}
