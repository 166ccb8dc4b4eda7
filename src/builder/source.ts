/** Projects without a Dockerfile: installed and built on top of the host image, in a machine of their own. */
import { createHash } from 'node:crypto'
import { PlatformError } from '../errors.ts'
import type { BuiltImages, HeldLayer } from '../images/index.ts'
import { BoundedMap } from '../lib/bounded-map.ts'
import { detectProject } from '../lib/project.ts'
import type { InstallationSettings } from '../network/index.ts'
import { withoutCredentials, withoutSecrets } from './credentials.ts'
import type { DependencyLayers } from './dependencies.ts'
import { folderMeant, isWorkspace, viewOf } from './folders.ts'
import bundleScript from './inside/bundle.mjs' with { type: 'text' }
import needsScript from './inside/needs.mjs' with { type: 'text' }
import packScript from './inside/pack.mjs' with { type: 'text' }
import type { BuildJob, BuildResult } from './job.ts'
import type { BuildMachine, BuildMachines } from './machine.ts'
import { type Action, type Installation, type Plan, type PlanInput, sourceDir } from './plan.ts'
import { planPython } from './python.ts'
import { asNodePath, lookForTools, type Toolchain } from './toolchain.ts'
import { treeOf } from './tree.ts'
import { planTypeScript } from './typescript.ts'

const scratchDir = '/tmp/hutch-build'
const bun = '/opt/hutch/bin/bun'
const killed = 9
const unprunableMax = 1000
/** What build tools keep for their own next run. */
const cachesOfTools = ['.next/cache', '.turbo', '.npm', '.cache']

export interface SourceBuilderOptions {
  images: BuiltImages
  machines: BuildMachines
  dependencies: DependencyLayers
  registries: InstallationSettings
  memoryMb: number
  storageMb: number
}

export class SourceBuilder {
  readonly #options: SourceBuilderOptions
  /** Of one state of the host: looking for them takes a machine. */
  #tools: { revision: string; tools: Promise<Toolchain> } | null = null

  /** What was tried in vain: the next build is not to take that time again. */
  readonly #unprunable = new BoundedMap<string, true>(unprunableMax)

  constructor(options: SourceBuilderOptions) {
    this.#options = options
  }

  async build(job: BuildJob): Promise<Omit<BuildResult, 'settings'>> {
    const { request, survey, steps, signal } = job
    const plan = await this.#plan(job)
    for (const note of plan.notes) steps.line(note, 'stdout')
    const replaced = new Set<string>()
    using source = await this.#options.images.addLayer(
      treeOf(request.archivePath, request.archiveType, survey, {
        into: sourceDir.slice(1),
        without: plan.without,
        replace: (path, content) => {
          const clean = withoutCredentials(path, content)
          if (clean) replaced.add(path)
          return clean
        },
      }),
      signal,
    )
    using dependencies = plan.installation && (await this.#install(job, plan.installation, source))
    const below = dependencies === null ? [source] : [dependencies, source]
    using made = await this.#make(job, plan, below, replaced)
    using pruned =
      made.alone && plan.installation && dependencies !== null
        ? await this.#prune(job, plan.installation, dependencies)
        : null
    const under = pruned === null ? below : [pruned, source]
    steps.step('packing the image')
    const image = await this.#options.images.add(request.workspace, {
      type: request.kind,
      name: request.name,
      tag: request.tag,
      layers: made.layer === null ? under : [...under, made.layer],
      settings: {
        env: plan.env,
        workingDir: plan.dir,
        user: '',
        entrypoint: made.program,
        command: [],
        ports: [],
      },
    })
    steps.line(`It starts with: ${made.program.join(' ')}`, 'stdout')
    return { image, language: plan.language }
  }

  async #plan(job: BuildJob): Promise<Plan & { dir: string }> {
    const { request, survey, settings, steps } = job
    const root = viewOf(survey, '')
    const folder = folderMeant(survey, settings, root)
    const view = folder === '' ? root : viewOf(survey, folder)
    const project = detectProject(view, settings.entrypoint)
    if (project === null) {
      throw new PlatformError(
        'unprocessable',
        'there is nothing here that could be built: the archive has no Dockerfile, no package.json, pyproject.toml or requirements.txt at its root, and no src/index.ts or src/main.py',
      )
    }
    steps.step('looking at the project')
    if (folder !== '') steps.line(`The project is in ${folder}`, 'stdout')
    const tools = await this.#toolchain(job)
    const shared = { settings, tools, kind: request.kind }
    const inRoot = folder === '' ? null : detectProject(root)
    const around: PlanInput | null =
      inRoot !== null && isWorkspace(root)
        ? { ...shared, ...root, dir: sourceDir, project: inRoot, text: root.read, around: null }
        : null
    const dir = folder === '' ? sourceDir : `${sourceDir}/${folder}`
    const input: PlanInput = { ...shared, ...view, dir, project, text: view.read, around }
    const plan = project.language === 'python' ? planPython(input) : planTypeScript(input)
    const by = plan.installation === null ? 'no dependencies' : plan.installation.manager
    steps.line(`${plan.language === 'python' ? 'Python' : 'TypeScript'}, ${by}`, 'stdout')
    return { ...plan, dir }
  }

  async #toolchain(job: BuildJob): Promise<Toolchain> {
    const revision = await this.#options.images.hostRevision()
    if (this.#tools?.revision === revision) {
      const found = await this.#tools.tools.catch(() => null)
      // Who failed was another build, e.g. because it was called off: this one looks itself.
      if (found !== null) return found
      job.signal.throwIfAborted()
    }
    const look = async () => {
      await using opened = await this.#machine(job, [])
      return await lookForTools(opened.machine, opened.env, job.signal)
    }
    const known = { revision, tools: look() }
    this.#tools = known
    known.tools.catch(() => {
      if (this.#tools === known) this.#tools = null
    })
    return await known.tools
  }

  /** The layer with the dependencies: the one that is kept, where nothing changed that they depend on. */
  async #install(job: BuildJob, installation: Installation, source: HeldLayer): Promise<HeldLayer> {
    const { request, steps, signal, buildEnv } = job
    const { dependencies, registries } = this.#options
    const parts = await this.#partsOf(job, installation, source)
    const make = async () => {
      await using opened = await this.#machine(job, installation.needsSource ? [source] : [])
      const { machine, env } = opened
      await machine.write(this.#filesOf(installation))
      for (const action of installation.actions)
        await this.#act(job, machine, action, installation.dir, { ...env, ...registries.env, ...buildEnv })
      const out = await this.#pack(job, machine, { mode: 'pack', names: installation.keeps })
      return await this.#keep(job, machine, out)
    }
    const { layer, wasHere } = await dependencies.get(request.workspace, parts, make, signal)
    if (wasHere) steps.line('The dependencies are as they were: nothing is installed', 'stdout')
    return layer
  }

  /**
   * The dependencies without what is for development only, kept like them; null where there is nothing of that, or it cannot
   * be taken away: then they are all in the image.
   */
  async #prune(job: BuildJob, installation: Installation, whole: HeldLayer): Promise<HeldLayer | null> {
    const { prune, dir } = installation
    if (prune === undefined) return null
    const commands = prune.actions.map(({ argv }) => argv)
    const attempt = JSON.stringify([whole.diffId, commands])
    if (this.#unprunable.get(attempt)) return null
    const { request, steps, signal, buildEnv } = job
    const { dependencies, registries } = this.#options
    const make = async () => {
      await using opened = await this.#machine(job, prune.isInstallation ? [] : [whole])
      const { machine, env } = opened
      await machine.write(this.#filesOf(installation))
      for (const action of prune.actions)
        await this.#act(job, machine, action, dir, { ...env, ...registries.env, ...buildEnv })
      return await this.#keep(
        job,
        machine,
        await this.#pack(job, machine, { mode: 'pack', names: installation.keeps }),
      )
    }
    try {
      const parts = [await this.#partsOf(job, installation, whole), 'pruned', commands, whole.diffId]
      return (await dependencies.get(request.workspace, parts, make, signal)).layer
    } catch (error) {
      signal.throwIfAborted()
      if (!PlatformError.is(error) || error.code !== 'unprocessable') throw error
      steps.line('What is for development only stays in the image: it could not be taken away', 'stdout')
      this.#unprunable.set(attempt, true)
      return null
    }
  }

  /** What decides what an installation makes. */
  async #partsOf(job: BuildJob, installation: Installation, source: HeldLayer): Promise<unknown[]> {
    const { signal, buildEnv } = job
    const { images, registries } = this.#options
    return [
      [...installation.files].map(([path, content]) => [path, sha256(content)]).sort(),
      installation.actions.map(({ argv, env }) => [argv, env ?? {}]),
      installation.keeps,
      (await this.#toolchain(job)).text,
      await images.hostRevision(),
      Object.entries((await images.onHost([], signal)).env).sort(),
      sha256(Buffer.from(JSON.stringify([Object.entries(buildEnv).sort(), registries]))),
      installation.needsSource ? source.diffId : null,
    ]
  }

  #filesOf(installation: Installation): { path: string; data: Uint8Array; mode?: number }[] {
    const { npmrc } = this.#options.registries
    return [
      ...[...installation.files].map(([path, data]) => ({ path: `${installation.dir}/${path}`, data })),
      ...(npmrc === '' ? [] : [{ path: '/root/.npmrc', data: Buffer.from(npmrc), mode: 0o600 }]),
    ]
  }

  /** What the project's own build makes of it, as a layer on top; null where it has none. */
  async #make(
    job: BuildJob,
    plan: Plan & { dir: string },
    below: HeldLayer[],
    replaced: ReadonlySet<string>,
  ): Promise<{ layer: HeldLayer | null; program: string[]; alone: boolean } & Disposable> {
    const nothing = { layer: null, program: plan.program, alone: false, [Symbol.dispose]() {} }
    // Also a program that nothing is made of is looked at, where that may make its image smaller.
    const isSlim = job.settings.build.slim && isPrunable(plan.installation)
    if (plan.actions.length === 0 && plan.bundle === null && !(isSlim && plan.entry !== null)) return nothing
    const { survey, buildEnv } = job
    await using opened = await this.#machine(job, below)
    const { machine, env } = opened
    const folder = plan.dir.slice(sourceDir.length + 1)
    const skip = [...replaced, ...cachesOfTools.map((name) => (folder === '' ? name : `${folder}/${name}`))]
    const noted = await this.#pack(job, machine, { mode: 'note', skip })
    await machine.write(
      [...replaced].map((path) => ({
        path: `${sourceDir}/${Buffer.from(path, 'latin1').toString('utf8')}`,
        data: survey.noticed.get(path)!,
      })),
    )
    for (const action of plan.actions)
      await this.#act(job, machine, action, plan.dir, { ...env, ...buildEnv })
    const bundled = plan.bundle === null ? null : await this.#bundle(job, machine, plan.bundle, plan.dir, env)
    const entry = bundled?.entry ?? plan.entry
    const alone = isSlim && entry !== null && (await this.#isAlone(job, machine, entry, plan.dir))
    if (bundled === null && plan.actions.length === 0) return { ...nothing, alone }
    const out = await this.#pack(job, machine, { mode: 'changes', noted, skip })
    const layer = await this.#keep(job, machine, out)
    return {
      layer,
      program: bundled?.program ?? plan.program,
      alone,
      [Symbol.dispose]: () => layer[Symbol.dispose](),
    }
  }

  /** Whether a program loads nothing that is for development only, as far as its files say. */
  async #isAlone(job: BuildJob, machine: BuildMachine, entry: string, dir: string): Promise<boolean> {
    const script = `${scratchDir}/needs.mjs`
    await machine.write([{ path: script, data: Buffer.from(needsScript) }])
    const { exitCode, stdout } = await machine.output(
      {
        argv: ['/bin/sh', bun, 'run', script, dir, entry],
        env: { PATH: '/usr/bin:/bin', HOME: '/root' },
        workingDir: '/',
      },
      job.signal,
    )
    const said = stdout.trim().split('\n').at(-1) ?? ''
    if (exitCode === 0 && said === 'alone') return true
    const why = said.replace(/^not alone: /, '') || 'it could not be looked through'
    job.steps.line(`What is for development only stays in the image: ${why}`, 'stdout')
    return false
  }

  /** The program that starts a bundle instead of sources; null where that could be something else. */
  async #bundle(
    job: BuildJob,
    machine: BuildMachine,
    { entry, args }: NonNullable<Plan['bundle']>,
    dir: string,
    env: Record<string, string>,
  ): Promise<{ program: string[]; entry: string } | null> {
    const script = `${scratchDir}/bundle.mjs`
    await machine.write([{ path: script, data: Buffer.from(bundleScript) }])
    const argv = ['node', script, dir, entry]
    const { exitCode, stdout } = await machine.output(
      { argv, env: { ...env, NODE_ENV: 'production' }, workingDir: dir },
      job.signal,
    )
    const said = stdout.split('\n').at(-1) ?? ''
    const path = exitCode === 0 ? /^bundled (\S+)$/.exec(said)?.[1] : undefined
    if (path === undefined) {
      job.steps.line(
        `It is started from its sources: ${said.replace(/^not bundled: /, '') || 'no bundle could be made'}`,
        'stdout',
      )
      return null
    }
    return { program: ['node', '--enable-source-maps', path, ...args], entry: path }
  }

  async #act(
    job: BuildJob,
    machine: BuildMachine,
    action: Action,
    workingDir: string,
    env: Record<string, string>,
  ): Promise<void> {
    const { steps, signal } = job
    steps.step(action.name)
    const { exitCode, signal: endedBy } = await machine.run(
      {
        argv: action.argv,
        env: { ...env, ...action.env },
        workingDir,
        onLine: (line, stream) => steps.line(line, stream),
      },
      signal,
    )
    if (exitCode === 0) return
    if (exitCode !== null) throw steps.failed(`exit code ${exitCode}`)
    const hint =
      endedBy === killed
        ? `It may have needed more than the ${this.#options.memoryMb} MiB of memory that a build has.`
        : ''
    throw steps.failed(`ended by signal ${endedBy}`, hint)
  }

  async #keep({ secrets, steps, signal }: BuildJob, machine: BuildMachine, path: string): Promise<HeldLayer> {
    let told = false
    const found = () => {
      if (!told) steps.line('A program of the build wrote a credential down: it is painted over', 'stderr')
      told = true
    }
    const content = withoutSecrets(machine.read(path, signal), secrets, found)
    return await this.#options.images.addLayer(content, signal)
  }

  /** Runs the packer inside; answers the path of what it wrote. */
  async #pack(job: BuildJob, machine: BuildMachine, what: Record<string, unknown>): Promise<string> {
    const out = `${scratchDir}/${what.mode}.out`
    const settings = `${scratchDir}/${what.mode}.json`
    const script = `${scratchDir}/pack.mjs`
    await machine.write([
      { path: script, data: Buffer.from(packScript) },
      { path: settings, data: Buffer.from(JSON.stringify({ root: sourceDir, skip: [], ...what, out })) },
    ])
    const lines: string[] = []
    const { exitCode } = await machine.run(
      {
        argv: ['/bin/sh', bun, 'run', script, settings],
        env: { PATH: '/usr/bin:/bin', HOME: '/root' },
        workingDir: '/',
        onLine: (line) => lines.push(line),
      },
      job.signal,
    )
    if (exitCode === 0) return out
    for (const line of lines) job.steps.line(line, 'stderr')
    throw job.steps.failed('what it made could not be packed')
  }

  async #machine(
    job: BuildJob,
    layers: HeldLayer[],
  ): Promise<{ machine: BuildMachine; env: Record<string, string> } & AsyncDisposable> {
    const { request, signal } = job
    const { images, machines, memoryMb, storageMb } = this.#options
    const { root, env: hostEnv } = await images.onHost(layers, signal)
    const path = `${scratchDir}/bin:${sourceDir}/node_modules/.bin:${hostEnv.PATH}:${asNodePath}`
    const env = { ...hostEnv, PATH: path, HOME: '/root', CI: '1', NO_COLOR: '1', TMPDIR: '/tmp' }
    const machine = await machines.open(
      {
        workspace: request.workspace,
        name: `${request.kind}/${request.name}`,
        ...{ root, memoryMb, storageMb, env },
        workingDir: sourceDir,
      },
      signal,
    )
    return { machine, env, [Symbol.asyncDispose]: () => machine[Symbol.asyncDispose]() }
  }
}

function isPrunable(installation: Installation | null): boolean {
  return installation?.prune !== undefined && !installation.needsSource
}

function sha256(content: Uint8Array): string {
  return createHash('sha256').update(content).digest('hex')
}
