/** How TypeScript and JavaScript projects are installed, built and started. */
import { PlatformError } from '../errors.ts'
import { programOf, type Scripts } from './commands.ts'
import { type Action, type Installation, type Plan, type PlanInput, sourceDir } from './plan.ts'
import { asNodePath, type Toolchain } from './toolchain.ts'

const manifestNames = [
  'package.json',
  'package-lock.json',
  'npm-shrinkwrap.json',
  'pnpm-lock.yaml',
  'pnpm-workspace.yaml',
  'yarn.lock',
  'bun.lock',
  'bun.lockb',
  'bunfig.toml',
  '.npmrc',
  '.yarnrc',
  '.yarnrc.yml',
]
const dependencyFields = ['dependencies', 'devDependencies', 'optionalDependencies', 'peerDependencies']
/** Of the project itself, by npm, around an installation. They may need all of the source. */
const ownHooks = [
  'preinstall',
  'install',
  'postinstall',
  'prepublish',
  'preprepare',
  'prepare',
  'postprepare',
]
const hooksRun = ['preinstall', 'install', 'postinstall', 'prepare']
const shimDir = '/tmp/hutch-build/bin'
const pnpmStoreDir = '/tmp/hutch-build/pnpm'
/** Where no version is named: those that read the lock files there are. */
const versions = { pnpm: '10', yarnClassic: '1.22.22', yarn: '4' }
/** Of the host image: `bun`. */
const bunPath = '/opt/hutch/bin'

interface Manifest {
  name?: string
  version?: string
  type?: string
  packageManager?: string
  scripts: Record<string, string>
  hasDependencies: boolean
  isWorkspace: boolean
  raw: Record<string, unknown>
}

export function planTypeScript(input: PlanInput): Plan {
  const { tools, text, files, project } = input
  const manifest = readManifest(text('package.json'))
  const installing = input.around ?? input
  const above = input.around === null ? manifest : readManifest(input.around.text('package.json'))
  const manager = managerOf(installing, above)
  const scripts = manifest.scripts
  const line = project.prod
  if (line === null) {
    throw new PlatformError(
      'unprocessable',
      'nothing says how the project is started: give package.json a script "start" or "prod", blaxel.toml [entrypoint] prod = "...", or the project a src/index.ts',
    )
  }
  const actions: Action[] = []
  for (const hook of hooksRun) {
    const script = scripts[hook]
    if (script === undefined || /\bonly-allow\b/.test(script)) continue
    actions.push(runScript(hook, tools))
  }
  if (project.build !== null) actions.push(runScript('build', tools))
  const program = programOf(line, scripts as Scripts)
  return {
    language: 'typescript',
    without: (path) => above.hasDependencies && path.split('/').includes('node_modules'),
    installation:
      above.hasDependencies || manager.lock !== null ? installationOf(installing, above, manager) : null,
    actions: actions.map((action) => ({ ...action, env: { ...action.env, ...manager.env } })),
    bundle: bundleOf(program, tools, files),
    entry: entryOf(withRuntime(program, tools)),
    env: {
      NODE_ENV: 'production',
      ...(manifest.name === undefined ? {} : { npm_package_name: manifest.name }),
      ...(manifest.version === undefined ? {} : { npm_package_version: manifest.version }),
      PATH: imagePath(input),
    },
    program: withRuntime(program, tools),
    notes: manager.notes,
  }
}

/** With no node on the host, what is asked for as `node` is this executable. */
function imagePath({ tools, dir, around }: PlanInput): string {
  const programs = [dir, ...(around === null ? [] : [sourceDir])].map((at) => `${at}/node_modules/.bin`)
  const path = `${programs.join(':')}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:${bunPath}`
  return tools.has('node') ? path : `${path}:${asNodePath}`
}

function withRuntime(program: string[], tools: Toolchain): string[] {
  if (tools.has('node')) return program
  const [first, ...rest] = program
  if (first === 'tsx' || first === 'ts-node' || first === 'node') return ['bun', ...withoutLoader(rest)]
  return program
}

/** Loaders of TypeScript are what this executable is by itself. */
function withoutLoader(args: string[]): string[] {
  const at = args.findIndex(
    (arg, index) => arg === '--import' && /^(?:tsx|ts-node)/.test(args[index + 1] ?? ''),
  )
  return at < 0 ? args : [...args.slice(0, at), ...args.slice(at + 2)]
}

function bundleOf(program: string[], tools: Toolchain, files: ReadonlyMap<string, number>): Plan['bundle'] {
  if (!tools.has('node')) return null
  const [first, ...rest] = program
  const args = first === 'tsx' ? rest : first === 'node' ? withoutLoader(rest) : null
  if (args === null || (first === 'node' && args.length === rest.length)) return null
  const [entry, ...more] = args
  const path = entry?.replace(/^\.\//, '')
  if (path === undefined || !/\.m?ts$/.test(path) || !files.has(path)) return null
  return { entry: path, args: more }
}

/** Of a program that an interpreter alone starts. */
function entryOf([first, entry]: string[]): string | null {
  if (entry === undefined || !['node', 'bun'].includes(first ?? '')) return null
  return /^[^-/].*\.[cm]?[jt]sx?$/.test(entry) && !entry.split('/').includes('..') ? entry : null
}

function runScript(name: string, tools: Toolchain): Action {
  const said = tools.has('npm') ? `npm run ${name}` : `bun run ${name}`
  const argv = tools.has('npm') ? ['npm', 'run', '--silent', name] : ['bun', '--bun', 'run', '--silent', name]
  return { name: said, argv }
}

interface Manager {
  name: 'npm' | 'pnpm' | 'yarn' | 'bun'
  /** "pnpm@10.1.0" */
  said: string
  lock: string | null
  install: string[]
  /** Takes away what is for development only. */
  prune: string[] | null
  /** Installs all else, for those that take nothing away (bun), or fetch everything anew for that (yarn). */
  installSlim: string[] | null
  env: Record<string, string>
  /** Programs of its name, for scripts that call it. */
  shims: Record<string, string>
  notes: string[]
}

function managerOf({ project, tools, text }: PlanInput, manifest: Manifest): Manager {
  const name = project.packageManager as Manager['name']
  const lock = project.lockFile
  const wanted = /^(?:npm|pnpm|yarn|bun)@([\w.-]+)/.exec(manifest.packageManager ?? '')?.[1]
  const common = {
    npm_config_cache: '/tmp/hutch-build/npm',
    npm_config_progress: 'false',
    npm_config_fund: 'false',
    npm_config_audit: 'false',
    npm_config_update_notifier: 'false',
    BUN_INSTALL_CACHE_DIR: '/tmp/hutch-build/bun',
    YARN_CACHE_FOLDER: '/tmp/hutch-build/yarn',
    YARN_GLOBAL_FOLDER: '/tmp/hutch-build/yarn-global',
    YARN_ENABLE_TELEMETRY: '0',
    YARN_NODE_LINKER: 'node-modules',
  }
  const made = (
    said: string,
    install: string[],
    slim: { prune: string[] } | { installSlim: string[] },
    { shims = {}, notes = [] }: Partial<Pick<Manager, 'shims' | 'notes'>> = {},
  ): Manager => ({
    name,
    said,
    lock,
    install,
    prune: null,
    installSlim: null,
    ...slim,
    env: common,
    shims,
    notes,
  })
  const fallback = (): Manager => {
    const install = ['bun', 'install', ...(name === 'bun' && lock !== null ? ['--frozen-lockfile'] : [])]
    const note = `${name} is not on this host: its packages are installed by bun, which reads ${lock ?? 'package.json'}`
    return made(
      'bun',
      install,
      { installSlim: [...install, '--omit=dev'] },
      { notes: name === 'bun' ? [] : [note] },
    )
  }
  switch (name) {
    case 'npm':
      if (!tools.has('npm')) return fallback()
      return made(
        'npm',
        ['npm', lock === null ? 'install' : 'ci', '--no-audit', '--no-fund', '--loglevel=error'],
        { prune: ['npm', 'prune', '--omit=dev', '--ignore-scripts', '--loglevel=error'] },
      )
    case 'pnpm': {
      const args = [
        'install',
        lock === null ? '--no-frozen-lockfile' : '--frozen-lockfile',
        '--reporter=append-only',
        `--store-dir=${pnpmStoreDir}`,
      ]
      // What is linked nowhere any more would lie there for a week.
      const pruning = ['prune', '--prod', '--ignore-scripts', '--config.modules-cache-max-age=0']
      const prune = [...pruning, `--config.store-dir=${pnpmStoreDir}`]
      if (tools.has('pnpm')) return made('pnpm', ['pnpm', ...args], { prune: ['pnpm', ...prune] })
      if (!tools.has('npx')) return fallback()
      const version = wanted ?? pnpmVersionOf(text('pnpm-lock.yaml'))
      const said = `pnpm@${version}`
      const npx = ['npx', '--yes', said]
      return made(said, [...npx, ...args], { prune: [...npx, ...prune] }, { shims: { pnpm: said } })
    }
    case 'yarn': {
      const classic = wanted?.startsWith('1.') ?? !/^__metadata:/m.test(text('yarn.lock') ?? '')
      const args = classic
        ? ['install', '--non-interactive', ...(lock === null ? [] : ['--frozen-lockfile'])]
        : ['install', lock === null ? '--no-immutable' : '--immutable']
      const slim = classic ? [...args, '--production'] : ['workspaces', 'focus', '--all', '--production']
      const by = (...yarn: string[]) => ({ installSlim: [...yarn, ...slim] })
      const own = yarnPathOf(text('.yarnrc.yml'))
      if (!classic && own !== null && tools.has('node'))
        return made('yarn', ['node', own, ...args], by('node', own))
      if (classic && tools.has('yarn')) return made('yarn', ['yarn', ...args], by('yarn'))
      if (!tools.has('npx')) return fallback()
      const version = wanted ?? (classic ? versions.yarnClassic : versions.yarn)
      const program = classic ? `yarn@${version}` : `@yarnpkg/cli-dist@${version}`
      const npx = ['npx', '--yes', `--package=${program}`, 'yarn']
      return made(`yarn@${version}`, [...npx, ...args], by(...npx), { shims: { yarn: program } })
    }
    default:
      return fallback()
  }
}

function pnpmVersionOf(lock: string | null): string {
  const format = /^lockfileVersion:\s*['"]?(\d+)/m.exec(lock ?? '')?.[1]
  if (format === '5') return '7'
  return format === '6' ? '8' : versions.pnpm
}

function yarnPathOf(settings: string | null): string | null {
  const path = /^yarnPath:\s*['"]?([\w./@-]+)/m.exec(settings ?? '')?.[1]
  return path === undefined || path.includes('..') ? null : path
}

function installationOf(
  { dir, noticed, text }: PlanInput,
  manifest: Manifest,
  manager: Manager,
): Installation {
  const files = new Map<string, Uint8Array>()
  for (const name of manifestNames) {
    const content = noticed.get(name)
    if (content !== undefined) files.set(name, content)
  }
  // Its own hooks run later, with all of the source.
  const scripts = Object.fromEntries(
    Object.entries(manifest.scripts).filter(([name]) => !ownHooks.includes(name)),
  )
  const raw = { ...manifest.raw, scripts }
  files.set('package.json', Buffer.from(`${JSON.stringify(raw, null, 2)}\n`))
  const shims = Object.entries(manager.shims).map(
    ([name, program]) =>
      `printf '#!/bin/sh\\nexec npx --yes --package=${program} ${name} "$@"\\n' > ${shimDir}/${name}; chmod 755 ${shimDir}/${name}`,
  )
  const preparing: Action[] =
    shims.length === 0
      ? []
      : [{ name: 'preparing', argv: ['/bin/sh', '-c', `mkdir -p ${shimDir}; ${shims.join('; ')}`] }]
  const action = (argv: string[], name: string): Action => ({ name, argv, env: manager.env })
  const { install, prune, installSlim } = manager
  // Without a lock it could be of other versions than what the project was built with.
  const slim = prune ?? (manager.lock === null ? null : installSlim)
  return {
    dir,
    manager: manager.said,
    actions: [...preparing, action(install, install.slice(0, 4).join(' '))],
    files,
    needsSource: needsSource(manifest, text),
    keeps: ['node_modules'],
    ...(slim !== null && Object.keys((manifest.raw.devDependencies as object | undefined) ?? {}).length > 0
      ? {
          prune: {
            actions: [...(prune === null ? preparing : []), action(slim, slim.join(' '))],
            isInstallation: prune === null,
          },
        }
      : {}),
  }
}

/** Whether an installation depends on more than manifests and locks. */
function needsSource({ raw, isWorkspace }: Manifest, text: (path: string) => string | null): boolean {
  if (isWorkspace || text('pnpm-workspace.yaml') !== null) return true
  if (yarnPathOf(text('.yarnrc.yml')) !== null) return true
  const own = [
    raw.pnpm,
    raw.patchedDependencies,
    ...[...dependencyFields, 'overrides', 'resolutions'].map((field) => raw[field]),
  ]
  return textsOf(own).some((value) =>
    /^(?:file|link|portal|workspace|patch):|^(?:\.\.?|~)?\/|\.patch$/.test(value),
  )
}

function textsOf(value: unknown): string[] {
  if (typeof value === 'string') return [value]
  return typeof value === 'object' && value !== null ? Object.values(value).flatMap(textsOf) : []
}

function readManifest(text: string | null): Manifest {
  let raw: Record<string, unknown> = {}
  try {
    const read: unknown = JSON.parse(text ?? '{}')
    if (typeof read !== 'object' || read === null || Array.isArray(read)) throw new Error('it is no object')
    raw = read as Record<string, unknown>
  } catch (cause) {
    throw new PlatformError('unprocessable', `package.json is not JSON: ${(cause as Error).message}`, {
      cause,
    })
  }
  const record = (value: unknown) => (typeof value === 'object' && value !== null ? value : {})
  const textOf = (value: unknown) => (typeof value === 'string' ? value : undefined)
  const scripts = Object.fromEntries(
    Object.entries(record(raw.scripts)).filter(
      (entry): entry is [string, string] => typeof entry[1] === 'string',
    ),
  )
  const [name, version, type, packageManager] = [raw.name, raw.version, raw.type, raw.packageManager].map(
    textOf,
  )
  return {
    ...(name === undefined ? {} : { name }),
    ...(version === undefined ? {} : { version }),
    ...(type === undefined ? {} : { type }),
    ...(packageManager === undefined ? {} : { packageManager }),
    scripts,
    hasDependencies:
      dependencyFields.some((field) => Object.keys(record(raw[field])).length > 0) ||
      raw.workspaces !== undefined,
    isWorkspace: raw.workspaces !== undefined,
    raw,
  }
}
