import { existsSync, readFileSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { CommandError } from './command.ts'
import { note } from './output.ts'
import type { ServedProject } from './served-project.ts'
import { shellJoin } from './shell.ts'

/** Of our own environments: what was installed into it. */
const stampName = '.hutch-installed'
const quietly = ['--no-audit', '--no-fund', '--no-update-notifier', '--loglevel=error']

/**
 * Installs what a project needs where nothing of it is there yet, as its author would; what somebody installed by other
 * means is left alone.
 */
export async function installDependencies(
  served: ServedProject,
  env: Record<string, string | undefined>,
): Promise<void> {
  const { directory, project } = served
  if (project.manifest === null) return
  const run = (argv: string[]) => runInstaller(argv, directory, env)
  if (project.language === 'typescript') {
    if (!namesDependencies(directory) || hasModules(directory)) return
    const manager = onPath(project.packageManager, env)
    // The executable is a package manager too.
    if (manager === null) await run([process.execPath, 'install'])
    else await run([manager, 'install', ...(project.packageManager === 'npm' ? quietly : [])])
    return
  }
  if (env.VIRTUAL_ENV) return
  const venv = join(directory, '.venv')
  const stamp = join(venv, stampName)
  const wanted = readFileSync(join(directory, project.manifest), 'utf8')
  if (existsSync(venv) && (!existsSync(stamp) || readFileSync(stamp, 'utf8') === wanted)) return
  const uv = onPath('uv', env)
  if (project.manifest === 'pyproject.toml' && uv !== null) await run([uv, 'sync'])
  else {
    const python = onPath('python3', env)
    if (python === null)
      throw new CommandError('python3 was not found', 'sudo apt-get install -y python3-venv')
    if (!existsSync(join(venv, 'bin', 'pip'))) await run([python, '-m', 'venv', '.venv'])
    const what = project.manifest === 'requirements.txt' ? ['-r', 'requirements.txt'] : dependenciesOf(wanted)
    if (what.length > 0) await run([join(venv, 'bin', 'pip'), 'install', '--quiet', ...what])
  }
  writeFileSync(stamp, wanted)
}

function namesDependencies(directory: string): boolean {
  try {
    const manifest = JSON.parse(readFileSync(join(directory, 'package.json'), 'utf8')) as Record<
      string,
      object
    >
    return ['dependencies', 'devDependencies'].some((key) => Object.keys(manifest[key] ?? {}).length > 0)
  } catch {
    // Whoever runs it is told by the package manager what is wrong with it.
    return true
  }
}

/** Its own, or those of the workspace it is a package of. */
function hasModules(directory: string): boolean {
  for (let at = directory; ; at = dirname(at)) {
    if (existsSync(join(at, 'node_modules'))) return true
    if (existsSync(join(at, '.git')) || at === dirname(at)) return false
  }
}

function dependenciesOf(pyproject: string): string[] {
  const { project } = Bun.TOML.parse(pyproject) as { project?: { dependencies?: unknown } }
  const { dependencies } = project ?? {}
  return Array.isArray(dependencies) ? dependencies.map(String) : []
}

function onPath(name: string, env: Record<string, string | undefined>): string | null {
  return Bun.which(name, { PATH: env.PATH ?? '' })
}

async function runInstaller(
  argv: string[],
  directory: string,
  env: Record<string, string | undefined>,
): Promise<void> {
  const own = argv[0] === process.execPath
  const shown = shellJoin(own ? ['bun', ...argv.slice(1)] : [argv[0]!.split('/').pop()!, ...argv.slice(1)])
  note(`installing what it needs: ${shown}`)
  const child = Bun.spawn(argv, {
    cwd: directory,
    env: own ? { ...env, BUN_BE_BUN: '1' } : env,
    stdin: 'ignore',
    // Whoever pipes the output of `serve` wants the project's.
    stdout: 2,
    stderr: 'inherit',
  })
  const code = await child.exited
  if (code !== 0) throw new CommandError(`${shown} failed with exit code ${code}, in ${directory}`)
}
