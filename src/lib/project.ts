/** What a folder of code is, read off its files: how to install, build and start it. Nothing here touches a disk. */

export type ProjectLanguage = 'typescript' | 'python'
export type PackageManager = 'npm' | 'pnpm' | 'yarn' | 'bun' | 'pip' | 'uv'

/** The files of a project, by their path below its root. */
export interface ProjectFiles {
  has(path: string): boolean
  /** Null when there is no such file. */
  read(path: string): string | null
}

/** `[entrypoint]` of blaxel.toml. */
export interface Entrypoint {
  prod?: string | undefined
  dev?: string | undefined
}

/**
 * Commands are lines for a shell in the project's root, with `node_modules/.bin` and `.venv/bin` on its path. Null
 * where the project names none and none could be guessed.
 */
export interface Project {
  language: ProjectLanguage
  packageManager: PackageManager
  /** Where dependencies are named, or null when nowhere. */
  manifest: 'package.json' | 'pyproject.toml' | 'requirements.txt' | null
  lockFile: string | null
  build: string | null
  /** What serves it once it is deployed. */
  prod: string | null
  /** What serves it from its sources, without a build. */
  start: string | null
  /** Like `start`, and reloads by itself what changes. */
  dev: string | null
}

/** Of a monorepo's root the manager of the packages below. */
const locksOfScripts: [file: string, manager: PackageManager][] = [
  ['pnpm-lock.yaml', 'pnpm'],
  ['yarn.lock', 'yarn'],
  ['bun.lock', 'bun'],
  ['bun.lockb', 'bun'],
  ['package-lock.json', 'npm'],
  ['npm-shrinkwrap.json', 'npm'],
]

const pythonEntries = ['main', 'server', 'app', 'api', 'index', 'agent', '__main__']
const pythonFolders = ['src/', '', 'app/']
const scriptEntries = ['index', 'main', 'server', 'app', 'agent']
const scriptFolders = ['src/', '']

/** Null when it is neither TypeScript (or JavaScript) nor Python. */
export function detectProject(files: ProjectFiles, entrypoint: Entrypoint = {}): Project | null {
  const python = pythonProject(files, entrypoint)
  const scripts = scriptProject(files, entrypoint)
  if (python === null || scripts === null) return scripts ?? python
  // Both: a package.json without a way to start anything is there for its tools.
  const serves = Object.keys(manifestOf(files).scripts).some((name) =>
    ['prod', 'start', 'dev'].includes(name),
  )
  return serves ? scripts : python
}

function scriptProject(files: ProjectFiles, entrypoint: Entrypoint): Project | null {
  const hasManifest = files.has('package.json')
  const source = firstOf(files, scriptFolders, scriptEntries, ['.ts', '.mts', '.js', '.mjs'])
  if (!hasManifest && source === null) return null
  const manifest = manifestOf(files)
  const { scripts } = manifest
  const [lockFile, manager] = locksOfScripts.find(([file]) => files.has(file)) ?? [null, null]
  const fromSource = source === null ? null : runOf(source)
  return {
    language: 'typescript',
    packageManager: manager ?? namedManager(manifest.packageManager) ?? 'npm',
    manifest: hasManifest ? 'package.json' : null,
    lockFile,
    build: scripts.build ?? null,
    prod: entrypoint.prod ?? scripts.prod ?? scripts.start ?? builtMain(manifest, files) ?? fromSource,
    start: scripts.start ?? entrypoint.prod ?? fromSource ?? scripts.dev ?? null,
    dev: entrypoint.dev ?? scripts.dev ?? null,
  }
}

function pythonProject(files: ProjectFiles, entrypoint: Entrypoint): Project | null {
  const manifest = (['pyproject.toml', 'requirements.txt'] as const).find((name) => files.has(name)) ?? null
  const source = firstOf(files, pythonFolders, pythonEntries, ['.py'])
  if (manifest === null && source === null) return null
  const hasLock = manifest === 'pyproject.toml' && files.has('uv.lock')
  const fromSource = source === null ? null : `python3 ${source}`
  return {
    language: 'python',
    packageManager: hasLock ? 'uv' : 'pip',
    manifest,
    lockFile: hasLock ? 'uv.lock' : null,
    build: null,
    prod: entrypoint.prod ?? fromSource,
    start: entrypoint.prod ?? fromSource,
    dev: entrypoint.dev ?? null,
  }
}

interface Manifest {
  scripts: Record<string, string>
  main: string | null
  packageManager: string | null
}

/** Of package.json what matters here; of a broken one nothing. */
function manifestOf(files: ProjectFiles): Manifest {
  const empty: Manifest = { scripts: {}, main: null, packageManager: null }
  try {
    const read = JSON.parse(files.read('package.json') ?? '{}') as Record<string, unknown>
    if (typeof read !== 'object' || read === null) return empty
    const scripts = typeof read.scripts === 'object' && read.scripts !== null ? read.scripts : {}
    return {
      scripts: Object.fromEntries(
        Object.entries(scripts).filter(
          (entry): entry is [string, string] => typeof entry[1] === 'string' && entry[1].trim() !== '',
        ),
      ),
      main: typeof read.main === 'string' ? read.main : null,
      packageManager: typeof read.packageManager === 'string' ? read.packageManager : null,
    }
  } catch {
    return empty
  }
}

/** `pnpm@9.1.0` of package.json's `packageManager`. */
function namedManager(value: string | null): PackageManager | null {
  const name = value?.split('@')[0]
  return (['npm', 'pnpm', 'yarn', 'bun'] as const).find((manager) => manager === name) ?? null
}

/** What `main` of package.json names, where a build makes it or it is there. */
function builtMain(manifest: Manifest, files: ProjectFiles): string | null {
  if (manifest.main === null) return null
  const path = manifest.main.replace(/^\.\//, '')
  if (!/^[\w./@-]+\.(js|mjs|cjs|ts|mts)$/.test(path)) return null
  return manifest.scripts.build !== undefined || files.has(path) ? runOf(path) : null
}

/** Sources of TypeScript run by themselves in Bun, which is in every image and in the executable. */
function runOf(path: string): string {
  return /\.m?ts$/.test(path) ? `bun ${path}` : `node ${path}`
}

function firstOf(files: ProjectFiles, folders: string[], names: string[], endings: string[]): string | null {
  for (const folder of folders)
    for (const name of names)
      for (const ending of endings) {
        const path = `${folder}${name}${ending}`
        if (files.has(path)) return path
      }
  return null
}
