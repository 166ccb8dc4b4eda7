import { existsSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { CommandError, command, connectionFlags, type Target, UsageError } from './command.ts'
import { installDependencies } from './dependencies.ts'
import { environmentFlags, plainVariables, readEnvironment } from './environment.ts'
import { platformVariables, StandInPrograms, type Variables } from './local-environment.ts'
import { note, warn } from './output.ts'
import { addressOf, listens, ServedProgram } from './served-program.ts'
import {
  lineOf,
  type ProjectPlace,
  pathOf,
  readProject,
  readSettings,
  type ServedProject,
} from './served-project.ts'
import { SourceWatch } from './source-watch.ts'

const portDefault = 1338
const hostDefault = '127.0.0.1'
const portMax = 65_535
const interruptedExitCode = 130

interface ServeFlags extends Target {
  'env-file'?: string[]
  secrets?: string[]
}

export const serve = command({
  name: 'serve',
  summary: 'Runs the project of a folder on this machine, as it would be run once it is deployed.',
  flags: {
    ...connectionFlags,
    ...environmentFlags,
    port: { kind: 'number', short: 'p', value: 'N', about: `where it listens (${portDefault})` },
    host: { kind: 'text', short: 'H', value: 'HOST', about: `address it listens on (${hostDefault})` },
    hotreload: { kind: 'boolean', about: 'start it anew when its sources change' },
    recursive: { kind: 'boolean', short: 'r', about: 'also the packages that blaxel.toml names (true)' },
    directory: { kind: 'text', short: 'd', value: 'DIR', about: 'folder of the project (.)' },
  },
  notes: [
    'It runs `start` of package.json, with --hotreload `dev`, or what looks like the entry; [entrypoint] of blaxel.toml says otherwise.',
    'HOST and PORT say where to listen; BL_* point at the platform that commands speak to, when there is one.',
    'What it needs is installed where nothing is installed yet (npm install, or .venv for Python).',
  ],
  async run({ flags }) {
    const root = resolve(flags.directory ?? '.')
    const port = flags.port ?? portDefault
    if (port < 1 || port > portMax) throw new UsageError(`--port ${port} is not a port: 1 to ${portMax}`)
    const places = placesOf(root, flags.recursive !== false, port)
    for (const one of places) {
      if (!(await listens(hostDefault, one.port))) continue
      throw new CommandError(`port ${one.port} is taken`, `hutch serve --port ${one.port + places.length}`)
    }
    const serving = new Serving({
      ...{ root, places },
      host: flags.host ?? hostDefault,
      hot: flags.hotreload === true,
      flags: flags as ServeFlags,
    })
    return await serving.run()
  },
})

interface Place extends ProjectPlace {
  port: number
}

/** The folder itself and the packages that it names, each with its port. */
function placesOf(root: string, recursive: boolean, port: number): Place[] {
  if (!existsSync(root)) throw new UsageError(`--directory ${root}: no such directory`)
  const settings = readSettings(root)
  const packages = (['function', 'agent'] as const).flatMap((kind) =>
    Object.entries(settings[kind]).map(([name, one]) => ({ kind, name, path: one.path, port: one.port })),
  )
  const places: Place[] = []
  const servesRoot = !(
    recursive &&
    packages.length > 0 &&
    (settings.skipRoot || readProject({ directory: root }) === null)
  )
  if (servesRoot) places.push({ directory: root, port })
  let next = servesRoot ? port + 1 : port
  for (const one of recursive ? packages : []) {
    places.push({
      directory: resolve(root, one.path ?? one.name),
      name: one.name,
      kind: one.kind,
      port: one.port ?? next++,
    })
  }
  for (const { directory } of places) {
    const served = readProject({ directory })
    if (served?.kind === 'job')
      throw new CommandError(`${directory} is a job, which is run, not served`, 'hutch run job --local')
    if (served !== null) continue
    const has = existsSync(join(directory, 'Dockerfile'))
      ? 'has a Dockerfile, which hutch deploy builds, and none of'
      : 'has none of'
    throw new CommandError(
      `${directory} ${has} package.json, requirements.txt, pyproject.toml, src/index.ts and src/main.py`,
      'hutch new agent my-agent',
    )
  }
  return places
}

class Serving {
  readonly #root: string
  readonly #places: Place[]
  readonly #host: string
  readonly #hot: boolean
  readonly #flags: ServeFlags
  readonly #running = new Map<Place, ServedProgram>()
  readonly #stopped = Promise.withResolvers<number>()
  #turn: Promise<void> = Promise.resolve()
  #stopping = false

  constructor(options: { root: string; places: Place[]; host: string; hot: boolean; flags: ServeFlags }) {
    this.#root = options.root
    this.#places = options.places
    this.#host = options.host
    this.#hot = options.hot
    this.#flags = options.flags
  }

  async run(): Promise<number> {
    const platform = platformVariables(this.#flags, this.#root)
    using programs = new StandInPrograms()
    for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
      process.on(signal, () => this.#stop(signal === 'SIGINT' ? interruptedExitCode : 0))
    }
    const watches: SourceWatch[] = []
    try {
      for (const place of this.#places) {
        // Before the program starts, so that no change is missed.
        if (this.#hot && !reloadsItself(place)) {
          const restart = () => this.#restart(place, platform, programs)
          watches.push(new SourceWatch([place.directory], restart))
        }
        // In turn with restarts: a change may come while its dependencies are installed.
        await this.#inTurn(() => this.#start(place, platform, programs))
      }
      return await this.#stopped.promise
    } finally {
      this.#stopping = true
      for (const watch of watches) watch[Symbol.dispose]()
      await this.#turn
      await Promise.all([...this.#running.values()].map((program) => program.stop()))
    }
  }

  async #start(place: Place, platform: Variables, programs: StandInPrograms): Promise<void> {
    const served = readProject(place)
    if (served === null) throw new CommandError(`${place.directory} is no project any more`)
    const { line } = lineOf(served, this.#hot)
    const env = this.#environment(served, place, platform, programs)
    await installDependencies(served, env)
    if (this.#stopping) return
    const program = new ServedProgram({
      ...{ name: served.name, line, directory: served.directory },
      env: { ...env, PATH: programs.after(pathOf(served.directory, process.env.PATH)) },
      ...{ host: this.#host, port: place.port },
      labelled: this.#places.length > 1,
    })
    this.#running.set(place, program)
    void program.exited.then((code) => this.#ended(place, program, served.name, code))
  }

  #ended(place: Place, program: ServedProgram, name: string, code: number): void {
    if (this.#running.get(place) !== program) return
    this.#running.delete(place)
    if (this.#stopping) return
    if (this.#hot) note(`${name} ended with exit code ${code}; it starts again once its sources change`)
    else {
      if (code !== 0) note(`${name} ended with exit code ${code}`)
      // One of several takes the others along: they may need it.
      this.#stop(code)
    }
  }

  #restart(place: Place, platform: Variables, programs: StandInPrograms): void {
    void this.#inTurn(async () => {
      if (this.#stopping) return
      const program = this.#running.get(place)
      this.#running.delete(place)
      await program?.stop()
      try {
        await this.#start(place, platform, programs)
      } catch (error) {
        // Half a change, perhaps: the next one is waited for.
        warn(error instanceof Error ? error.message : String(error))
      }
    })
  }

  #inTurn(work: () => Promise<void>): Promise<void> {
    const done = this.#turn.then(work)
    this.#turn = done.catch(() => {})
    return done
  }

  #stop(code: number): void {
    this.#stopping = true
    this.#stopped.resolve(code)
  }

  #environment(
    served: ServedProject,
    place: Place,
    platform: Variables,
    programs: StandInPrograms,
  ): Variables {
    const { directory, settings, name, kind } = served
    const own = directory === this.#root ? [directory] : [directory, this.#root]
    return {
      ...settings.env,
      ...process.env,
      ...readEnvironment(this.#flags, own),
      ...plainVariables(this.#flags),
      ...platform,
      ...this.#neighbours(place),
      BL_NAME: name,
      BL_TYPE: kind,
      HOST: this.#host,
      PORT: String(place.port),
      BL_SERVER_HOST: this.#host,
      BL_SERVER_PORT: String(place.port),
      PATH: programs.after(process.env.PATH ?? ''),
    }
  }

  /** Where the SDK finds the others that are served along: here, not on the platform. */
  #neighbours(place: Place): Variables {
    const others = this.#places.filter((other) => other !== place && other.name !== undefined)
    return Object.fromEntries(
      others.map(({ kind = '', name = '', port }) => [
        `BL_${kind.toUpperCase()}_${name.toUpperCase().replaceAll('-', '_')}_URL`,
        addressOf(this.#host, port),
      ]),
    )
  }
}

function reloadsItself(place: Place): boolean {
  const served = readProject(place)
  return served !== null && lineOf(served, true).reloads
}
