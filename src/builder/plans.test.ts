import { describe, expect, test } from 'bun:test'
import { detectProject } from '../lib/project.ts'
import { emptyProjectSettings, parseProjectSettings } from '../lib/project-settings.ts'
import { programOf } from './commands.ts'
import type { Plan, PlanInput } from './plan.ts'
import { planPython } from './python.ts'
import type { Tool, Toolchain } from './toolchain.ts'
import { planTypeScript } from './typescript.ts'

const everything: Tool[] = ['node', 'npm', 'npx', 'python3', 'pip', 'ensurepip']

function tools(...names: Tool[]): Toolchain {
  const has = new Set<string>(names)
  return {
    has: (tool) => has.has(tool),
    node: has.has('node') ? '20.20.2' : null,
    python: has.has('python3') ? '3.11.2' : null,
    pythonPath: '/usr/bin/python3',
    text: names.join(' '),
  }
}

function plan(
  contents: Record<string, string>,
  options: { toml?: string; tools?: Tool[]; kind?: string } = {},
): Plan {
  const settings = options.toml === undefined ? emptyProjectSettings() : parseProjectSettings(options.toml)
  const noticed = new Map(Object.entries(contents).map(([path, text]) => [path, Buffer.from(text)]))
  const read = (path: string) => contents[path] ?? null
  const project = detectProject({ has: (path) => path in contents, read }, settings.entrypoint)
  if (project === null) throw new Error('there is no project')
  const input: PlanInput = {
    dir: '/blaxel',
    project,
    kind: options.kind ?? 'agent',
    settings,
    tools: tools(...(options.tools ?? everything)),
    files: new Map([...noticed].map(([path, content]) => [path, content.length])),
    noticed,
    text: read,
    around: null,
  }
  return project.language === 'python' ? planPython(input) : planTypeScript(input)
}

const packageOf = (more: object) =>
  JSON.stringify({ dependencies: { ms: '2' }, scripts: { start: 'node a.js' }, ...more })
const install = (made: Plan) => made.installation?.actions.at(-1)?.argv.join(' ')

const slim = (made: Plan) => made.installation?.prune?.actions.at(-1)?.argv.join(' ')

describe('a project of JavaScript is installed', () => {
  const dev = (more: object = {}) => packageOf({ devDependencies: { typescript: '5' }, ...more })
  test.each([
    ['npm, by taking away', { 'package.json': dev() }, 'npm prune --omit=dev', false],
    [
      'pnpm, by taking away',
      { 'package.json': dev(), 'pnpm-lock.yaml': "lockfileVersion: '9.0'\n" },
      'npx --yes pnpm@10 prune --prod --ignore-scripts --config.modules-cache-max-age=0',
      false,
    ],
    [
      'yarn of old, by itself',
      { 'package.json': dev(), 'yarn.lock': '# yarn lockfile v1\n' },
      'npx --yes --package=yarn@1.22.22 yarn install --non-interactive --frozen-lockfile --production',
      true,
    ],
    [
      'yarn of today, by itself',
      { 'package.json': dev(), 'yarn.lock': '__metadata:\n  version: 8\n' },
      'npx --yes --package=@yarnpkg/cli-dist@4 yarn workspaces focus --all --production',
      true,
    ],
    [
      'bun, by itself',
      { 'package.json': dev(), 'bun.lock': '{}' },
      'bun install --frozen-lockfile --omit=dev',
      true,
    ],
  ])('without what is for development only: %s', (_, contents, argv, isInstallation) => {
    const made = plan(contents as Record<string, string>)
    expect([slim(made)?.startsWith(argv as string), made.installation?.prune?.isInstallation]).toEqual([
      true,
      isInstallation as boolean,
    ])
    expect(
      slim(plan({ ...(contents as Record<string, string>), 'package.json': packageOf({}) })),
    ).toBeUndefined()
  })

  test('with what is for development, where nothing fixes that the rest would be of the same versions', () => {
    for (const packageManager of ['bun@1.2.0', 'yarn@1.22.22'])
      expect(slim(plan({ 'package.json': dev({ packageManager }) }))).toBeUndefined()
  })

  test.each([
    ['npm', { 'package.json': packageOf({}) }, 'npm install --no-audit'],
    ['npm, exactly', { 'package.json': packageOf({}), 'package-lock.json': '{}' }, 'npm ci --no-audit'],
    [
      'the pnpm of its lock file',
      { 'package.json': packageOf({}), 'pnpm-lock.yaml': "lockfileVersion: '6.0'\n" },
      'npx --yes pnpm@8 install --frozen-lockfile',
    ],
    [
      'the pnpm that it names',
      {
        'package.json': packageOf({ packageManager: 'pnpm@9.1.0+sha256.abc' }),
        'pnpm-lock.yaml': "lockfileVersion: '9.0'\n",
      },
      'npx --yes pnpm@9.1.0 install --frozen-lockfile',
    ],
    [
      'yarn of old',
      { 'package.json': packageOf({}), 'yarn.lock': '# yarn lockfile v1\n' },
      'npx --yes --package=yarn@1.22.22 yarn install --non-interactive --frozen-lockfile',
    ],
    [
      'yarn of today',
      { 'package.json': packageOf({}), 'yarn.lock': '__metadata:\n  version: 8\n' },
      'npx --yes --package=@yarnpkg/cli-dist@4 yarn install --immutable',
    ],
    ['bun', { 'package.json': packageOf({}), 'bun.lock': '{}' }, 'bun install --frozen-lockfile'],
  ] as [string, Record<string, string>, string][])('by %s', (_, files, command) => {
    expect(install(plan(files))).toStartWith(command)
  })

  test('by this executable where the host has no node, which then also builds and starts it', () => {
    const manifest = packageOf({
      scripts: { build: 'tsc', start: 'node --import tsx src/index.ts --port 1' },
    })
    const made = plan(
      { 'package.json': manifest, 'package-lock.json': '{}', 'src/index.ts': '' },
      { tools: ['python3'] },
    )
    expect(install(made)).toBe('bun install')
    expect(made.actions.map(({ argv }) => argv.join(' '))).toEqual(['bun --bun run --silent build'])
    expect(made.program).toEqual(['bun', 'src/index.ts', '--port', '1'])
    expect(made.env.PATH).toEndWith(':/opt/hutch/as-node')
    expect(made.notes.join()).toContain('npm is not on this host')
  })

  test('without its own hooks, which run once its source is there', () => {
    const scripts = {
      preinstall: 'npx only-allow npm',
      postinstall: 'prisma generate',
      prepare: 'husky',
      build: 'tsc',
      start: 'node a.js',
    }
    const made = plan({ 'package.json': packageOf({ scripts }) })
    const manifest = JSON.parse(Buffer.from(made.installation!.files.get('package.json')!).toString())
    expect(manifest.scripts).toEqual({ build: 'tsc', start: 'node a.js' })
    expect(made.actions.map(({ name }) => name)).toEqual([
      'npm run postinstall',
      'npm run prepare',
      'npm run build',
    ])
  })

  test('together with its source where its dependencies are files of it', () => {
    const needs = (more: object, files: Record<string, string> = {}) =>
      plan({ 'package.json': packageOf(more), ...files }).installation?.needsSource
    expect(needs({})).toBe(false)
    expect(needs({ devDependencies: { one: 'file:../one' } })).toBe(true)
    expect(needs({ dependencies: { one: 'workspace:*' } })).toBe(true)
    expect(needs({ pnpm: { patchedDependencies: { ms: 'patches/ms.patch' } } })).toBe(true)
    expect(needs({ workspaces: ['a'] })).toBe(true)
    expect(needs({}, { 'pnpm-workspace.yaml': 'packages: []' })).toBe(true)
    expect(needs({ dependencies: { one: 'https://example.com/one.tgz' } })).toBe(false)
  })

  test('not at all without dependencies', () => {
    expect(plan({ 'package.json': '{"scripts":{"start":"node a.js"}}' }).installation).toBeNull()
  })
})

describe('a program of JavaScript is started', () => {
  const scripts = (more: Record<string, string>, line = 'npm start') => programOf(line, more)

  test('by the script itself, without the package manager', () => {
    expect(scripts({ start: 'node dist/index.js --x' })).toEqual(['node', 'dist/index.js', '--x'])
    expect(scripts({ start: 'npm run serve', serve: 'tsx a.ts' })).toEqual(['tsx', 'a.ts'])
    expect(scripts({ start: 'yarn start' })).toEqual(['yarn', 'start'])
    expect(scripts({ prestart: 'node make.js', start: 'node a.js' })).toEqual([
      '/bin/sh',
      '-c',
      'node make.js && node a.js',
    ])
  })

  test.each([
    'A=1 node a.js',
    'node a.js | tee log',
    'node "a b.js"',
    'cd dist && node a.js',
    'node a.js --port $PORT',
    'exec node a.js',
  ])('by a shell where the line is more than words: %s', (line) => {
    expect(programOf(line, {})).toEqual(['/bin/sh', '-c', line])
  })

  test('as blaxel.toml says, else by prod, start, main or the usual files', () => {
    const files = { 'package.json': '{"scripts":{"start":"node a.js","prod":"node b.js"}}' }
    expect(plan(files).program).toEqual(['node', 'b.js'])
    expect(plan(files, { toml: '[entrypoint]\nprod = "node c.js"' }).program).toEqual(['node', 'c.js'])
    expect(plan(files, { toml: '[entrypoint]\nprod = "npm start"' }).program).toEqual(['node', 'a.js'])
    expect(plan({ 'package.json': '{}', 'src/index.js': '' }).program).toEqual(['node', 'src/index.js'])
  })

  test('from a bundle where tsx would compile it each time', () => {
    const files = (start: string) => ({
      'package.json': packageOf({ scripts: { start } }),
      'src/index.ts': '',
    })
    expect(plan(files('tsx ./src/index.ts --x')).bundle).toEqual({ entry: 'src/index.ts', args: ['--x'] })
    expect(plan(files('node --import tsx src/index.ts')).bundle).toEqual({ entry: 'src/index.ts', args: [] })
    expect(plan(files('node dist/index.js')).bundle).toBeNull()
    expect(plan(files('tsx watch src/index.ts')).bundle).toBeNull()
    expect(plan(files('tsx src/index.ts'), { tools: ['python3'] }).bundle).toBeNull()
  })
})

describe('a project of Python', () => {
  test('is installed by pip into an environment of its own, or by uv where that is there', () => {
    const files = { 'requirements.txt': 'fastapi', 'main.py': '' }
    const commands = (made: Plan) => made.installation!.actions.map(({ argv }) => argv.join(' '))
    expect(commands(plan(files))[0]).toBe('/usr/bin/python3 -m venv --without-pip /blaxel/.venv')
    expect(commands(plan(files))[1]).toContain('-m pip --python /blaxel/.venv/bin/python install')
    expect(commands(plan(files, { tools: ['python3', 'uv'] }))).toEqual([
      'uv venv --quiet /blaxel/.venv',
      'uv pip install --compile-bytecode -r hutch-requirements.txt',
    ])
    const locked = { 'pyproject.toml': '[project]\nname="a"', 'uv.lock': '', 'main.py': '' }
    expect(commands(plan(locked, { tools: ['python3', 'uv'] }))[0]).toStartWith('uv sync --frozen --no-dev')
  })

  test('says what is missing where the host has no Python', () => {
    expect(() => plan({ 'main.py': '' }, { tools: ['node'] })).toThrow('this host has no python3')
    expect(() => plan({ 'main.py': '' }, { tools: ['python3'] })).toThrow('neither pip nor uv')
  })

  test('is installed together with its source where its requirements are files of it', () => {
    const needs = (text: string, more: Record<string, string> = {}) =>
      plan({ 'requirements.txt': text, 'main.py': '', ...more }).installation?.needsSource
    expect(needs('fastapi\n# -e .\n')).toBe(false)
    expect(needs('-e .')).toBe(true)
    expect(needs('./wheels/one.whl')).toBe(true)
    expect(needs('-r requirements-more.txt', { 'requirements-more.txt': 'a' })).toBe(false)
    expect(needs('-r requirements-more.txt', { 'requirements-more.txt': '-e ./b' })).toBe(true)
    expect(needs('-r folder/requirements.txt')).toBe(true)
    expect(
      plan({ 'pyproject.toml': '[tool.poetry]\nname = "a"', 'main.py': '' }).installation?.needsSource,
    ).toBe(true)
  })

  test.each([
    [
      'the file itself',
      { 'src/main.py': 'if __name__ == "__main__":\n  serve()' },
      ['python', 'src/main.py'],
    ],
    [
      'a server, where the file only makes an object for one',
      { 'src/main.py': 'from fastapi import FastAPI\napp = FastAPI()\n' },
      ['/bin/sh', '-c', 'exec python -m uvicorn --app-dir src main:app --host "$HOST" --port "$PORT"'],
    ],
    [
      'another server',
      { 'app.py': 'web: Flask = Flask(__name__)\n' },
      ['/bin/sh', '-c', 'exec python -m flask --app app:web run --host "$HOST" --port "$PORT"'],
    ],
  ] as [string, Record<string, string>, string[]][])('is started by %s', (_, files, program) => {
    expect(plan(files).program).toEqual(program)
  })

  test('is started as blaxel.toml says', () => {
    const toml = '[entrypoint]\nprod = ".venv/bin/python3 src/server.py"'
    expect(plan({ 'src/server.py': '' }, { toml }).program).toEqual(['.venv/bin/python3', 'src/server.py'])
  })

  test('of an MCP server begins in server.py', () => {
    const files = { 'src/main.py': '', 'src/server.py': '' }
    expect(plan(files, { kind: 'function' }).program).toEqual(['python', 'src/server.py'])
    expect(plan(files).program).toEqual(['python', 'src/main.py'])
  })
})
