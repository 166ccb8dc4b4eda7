/** How Python projects are installed and started. */
import { PlatformError } from '../errors.ts'
import { programOf, shell } from './commands.ts'
import type { Action, Installation, Plan, PlanInput } from './plan.ts'
import { lockedVersions, type PyProject, readPyProject } from './pyproject.ts'

const constraintsFile = 'hutch-constraints.txt'
const requirementsFile = 'hutch-requirements.txt'
const requirementNames = /^[\w.-]*(?:requirements|constraints)[\w.-]*\.(?:txt|in)$/
/** Requirements that are files of the project. */
const localRequirement =
  /^\s*(?:-e\b|--editable\b|-f\b|--find-links\b|\.{0,2}\/|\.\s*$|\.\[|file:|[\w.-]+\s*@\s*(?:file:|\.))/m
const includedFile = /^\s*(?:-r|--requirement|-c|--constraint)[\s=]+(\S+)/gm
/** Objects that a server has to be put in front of. */
const appObject =
  /^(\w+)\s*(?::[^=\n]+)?=\s*(?:[\w.]+\.)?(?:FastAPI|Starlette|Quart|Litestar|Falcon|BlackSheep)\(/m
const wsgiObject = /^(\w+)\s*(?::[^=\n]+)?=\s*(?:[\w.]+\.)?Flask\(/m
const startsItself =
  /__name__\s*==|\buvicorn\.run\(|\.run\(|\bserve\(|\bserve_forever\(|\basyncio\.run\(|\brun_app\(/
const pipFlags = ['--disable-pip-version-check', '--no-input', '--progress-bar', 'off']

export function planPython(input: PlanInput): Plan {
  const { tools, settings, project } = input
  if (!tools.has('python3')) {
    throw new PlatformError(
      'unprocessable',
      'the project is Python, and this host has no python3 in /usr: install it there',
    )
  }
  const pyproject = readPyProject(input.text('pyproject.toml'))
  const installation = installationOf(input, pyproject)
  const actions: Action[] = []
  const own = ownPackage(input, pyproject)
  if (own) actions.push(own)
  // Compiled once here rather than at each start.
  actions.push({
    name: 'compiling',
    argv: ['python3', '-m', 'compileall', '-q', '-x', '/(\\.venv|node_modules)/', input.dir],
  })
  const entry = settings.entrypoint.prod ?? null
  return {
    language: 'python',
    without: (path) =>
      /(?:^|\/)(?:\.venv|venv)(?:\/|$)/.test(path) || /(?:^|\/)__pycache__(?:\/|$)/.test(path),
    installation,
    actions,
    bundle: null,
    entry: null,
    env: {
      PYTHONUNBUFFERED: '1',
      VIRTUAL_ENV: venvOf(input),
      PATH: `${venvOf(input)}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/opt/hutch/bin`,
    },
    program: entry === null ? detectedProgram(input) : programOf(entry, {}),
    notes: notesOf(input, pyproject, project.packageManager),
  }
}

/** The file that the project begins in: run, or given to a server where it only makes an object for one. */
function detectedProgram({ project, text, kind, files }: PlanInput): string[] {
  const preferred = kind === 'function' ? ['src/server.py', 'server.py'] : []
  const path =
    preferred.find((name) => files.has(name)) ?? /^python3 (\S+\.py)$/.exec(project.prod ?? '')?.[1]
  if (path === undefined) {
    throw new PlatformError(
      'unprocessable',
      'nothing says how the project is started: give it a src/main.py (or server.py, app.py), or blaxel.toml [entrypoint] prod = "..."',
    )
  }
  const source = text(path) ?? ''
  // A job is run to its end, whatever it could serve besides.
  if (kind === 'job' || startsItself.test(source)) return ['python', path]
  const slash = path.lastIndexOf('/')
  const [dir, module] = [path.slice(0, Math.max(slash, 0)), path.slice(slash + 1, -'.py'.length)]
  const app = appObject.exec(source)?.[1]
  const at = dir === '' ? '' : ` --app-dir ${dir}`
  if (app) return shell(`exec python -m uvicorn${at} ${module}:${app} --host "$HOST" --port "$PORT"`)
  const wsgi = wsgiObject.exec(source)?.[1]
  if (wsgi)
    return shell(
      `exec python -m flask --app ${dir === '' ? module : `${dir}/${module}`}:${wsgi} run --host "$HOST" --port "$PORT"`,
    )
  return ['python', path]
}

/** Of the project, with its own interpreter in it. */
function venvOf({ dir }: PlanInput): string {
  return `${dir}/.venv`
}

function installationOf(input: PlanInput, pyproject: PyProject): Installation | null {
  const { tools, noticed, text } = input
  const files = new Map<string, Uint8Array>()
  for (const [path, content] of noticed) {
    if (!path.includes('/') && (requirementNames.test(path) || /^(?:pip\.conf|uv\.toml)$/.test(path)))
      files.set(path, content)
  }
  const lock = text('uv.lock')
  const requirements = text('requirements.txt')
  const uvCanSync = tools.has('uv') && lock !== null
  if (uvCanSync) return uvInstallation(input, pyproject, files)
  const lines: string[] = []
  let needsSource = false
  if (requirements !== null) {
    lines.push('-r requirements.txt')
    needsSource ||= requirementsNeedSource(input)
  } else if (pyproject.present) {
    lines.push(...pyproject.dependencies)
    if (pyproject.isOpaque) {
      lines.push('.')
      needsSource = true
    }
    needsSource ||= pyproject.dependencies.some((line) => localRequirement.test(line))
  }
  // Without dependencies there is still an interpreter of the project's own.
  files.set(requirementsFile, Buffer.from(`${lines.join('\n')}\n`))
  const locked = lock === null ? [] : lockedVersions(lock)
  if (lock !== null) files.set(constraintsFile, Buffer.from(`${locked.join('\n')}\n`))
  const constraints = lock === null ? [] : ['-c', constraintsFile]
  const install = ['-r', requirementsFile, ...constraints]
  const actions: Action[] = [makeVenv(input)]
  if (lines.length > 0)
    actions.push(
      pipInstall(input, requirements !== null ? 'pip install -r requirements.txt' : 'pip install', install),
    )
  return {
    dir: input.dir,
    manager: tools.has('uv') ? 'uv' : 'pip',
    actions,
    files,
    needsSource,
    keeps: ['.venv'],
  }
}

function uvInstallation(
  input: PlanInput,
  pyproject: PyProject,
  files: Map<string, Uint8Array>,
): Installation {
  for (const name of ['pyproject.toml', 'uv.lock', '.python-version']) {
    const content = input.noticed.get(name)
    if (content !== undefined) files.set(name, content)
  }
  const env = {
    UV_PROJECT_ENVIRONMENT: venvOf(input),
    UV_CACHE_DIR: '/tmp/hutch-build/uv',
    UV_PYTHON_DOWNLOADS: 'never',
    UV_LINK_MODE: 'copy',
  }
  return {
    dir: input.dir,
    manager: 'uv',
    actions: [
      {
        name: 'uv sync',
        argv: ['uv', 'sync', '--frozen', '--no-dev', '--no-install-project', '--compile-bytecode'],
        env,
      },
    ],
    files,
    needsSource: pyproject.hasLocalSources,
    keeps: ['.venv'],
  }
}

function makeVenv(input: PlanInput): Action {
  const { tools } = input
  const venv = venvOf(input)
  if (tools.has('uv')) return { name: 'uv venv', argv: ['uv', 'venv', '--quiet', venv] }
  // pip of the host installs into it, so that it needs none of its own, which takes seconds to make.
  if (tools.has('pip'))
    return { name: 'python3 -m venv', argv: [tools.pythonPath, '-m', 'venv', '--without-pip', venv] }
  if (tools.has('ensurepip')) return { name: 'python3 -m venv', argv: [tools.pythonPath, '-m', 'venv', venv] }
  throw new PlatformError(
    'unprocessable',
    'the project is Python, and this host has neither pip nor uv nor the venv module in /usr: install python3-venv and python3-pip',
  )
}

function pipInstall(input: PlanInput, name: string, args: string[]): Action {
  const { tools } = input
  const venv = venvOf(input)
  if (tools.has('uv')) {
    const env = { VIRTUAL_ENV: venv, UV_CACHE_DIR: '/tmp/hutch-build/uv', UV_LINK_MODE: 'copy' }
    return {
      name: name.replace('pip', 'uv pip'),
      argv: ['uv', 'pip', 'install', '--compile-bytecode', ...args],
      env,
    }
  }
  const env = { PIP_CACHE_DIR: '/tmp/hutch-build/pip', PIP_ROOT_USER_ACTION: 'ignore' }
  const pip = tools.has('pip')
    ? [tools.pythonPath, '-m', 'pip', '--python', `${venv}/bin/python`]
    : [`${venv}/bin/python`, '-m', 'pip']
  return { name, argv: [...pip, 'install', ...pipFlags, ...args], env }
}

/** A program of the project's own, such as `my-server`, is there once the project itself is installed. */
function ownPackage(input: PlanInput, pyproject: PyProject): Action | null {
  const first = input.settings.entrypoint.prod
    ?.trim()
    .split(/\s+/)[0]
    ?.replace(/^(?:\.?\/?\.venv\/bin\/)/, '')
  if (first === undefined || !pyproject.scripts.includes(first)) return null
  return pipInstall(input, 'pip install --no-deps -e .', ['--no-deps', '-e', '.'])
}

function requirementsNeedSource({ text, noticed }: PlanInput): boolean {
  const seen = new Set<string>()
  const look = (path: string): boolean => {
    if (seen.has(path)) return false
    seen.add(path)
    const content = text(path)
    // Elsewhere than among what was looked at, or in a folder: then all of the source is there.
    if (content === null || path.includes('/') || !noticed.has(path) || !requirementNames.test(path))
      return true
    if (localRequirement.test(content)) return true
    return [...content.matchAll(includedFile)].some((match) => look(match[1]!.replace(/^\.\//, '')))
  }
  return look('requirements.txt')
}

function notesOf({ tools, text }: PlanInput, pyproject: PyProject, manager: string): string[] {
  const notes: string[] = []
  if (manager === 'uv' && !tools.has('uv'))
    notes.push('uv is not on this host: the versions of uv.lock are installed by pip')
  if (pyproject.requiresPython !== null && tools.python !== null)
    notes.push(
      `Python ${tools.python} of this host is used; the project asks for ${pyproject.requiresPython}`,
    )
  const wanted = text('.python-version')?.trim()
  if (wanted && tools.python !== null && !tools.python.startsWith(wanted.replace(/^python-?/, '')))
    notes.push(`.python-version asks for ${wanted.slice(0, 40)}; this host has Python ${tools.python}`)
  return notes
}
