import { homedir } from 'node:os'
import { dirname, join } from 'node:path'
import { capture } from './capture.ts'
import { readSources, unusedExports } from './exports.ts'
import { importProblems, readImports, unusedRules } from './imports.ts'

/** The one gate besides the tests, the same here and in CI: types, lint, formatting, imports, and a few promises. */

const root = dirname(import.meta.dir)
const bin = join(root, 'node_modules', '.bin')
const textBytesMax = 4 * 1024 * 1024

interface Step {
  name: string
  run(): Promise<string[]>
}

const steps: Step[] = [
  { name: 'types', run: () => tool(join(bin, 'tsc'), ['--noEmit', '-p', '.']) },
  {
    name: 'lint and format',
    run: () => tool(join(bin, 'biome'), ['ci', '--colors=off', '--error-on-warnings', '.']),
  },
  { name: 'import directions', run: checkImports },
  { name: 'no export that nobody imports', run: async () => unusedExports(await readSources(root)) },
  { name: 'no path of this machine', run: () => checkFiles(pathsOfThisMachine) },
  { name: 'lock file whole, and of no host', run: checkLockFile },
  { name: 'no test left alone with .only', run: () => checkFiles(lonelyTests) },
]

let failed = 0
for (const step of steps) {
  const startedAt = performance.now()
  const problems = await step.run()
  const ms = Math.round(performance.now() - startedAt)
  console.log(
    `${problems.length === 0 ? 'ok   ' : 'FAIL '} ${step.name.padEnd(32)} ${String(ms).padStart(6)} ms`,
  )
  for (const problem of problems) console.log(problem.replace(/^/gm, '     '))
  if (problems.length > 0) failed++
}
console.log(failed === 0 ? 'check passed' : `check failed: ${failed} of ${steps.length}`)
process.exit(failed === 0 ? 0 : 1)

async function tool(program: string, args: string[]): Promise<string[]> {
  const { code, stdout, stderr } = await capture([program, ...args], { cwd: root })
  return code === 0 ? [] : [`${stdout}${stderr}`.trimEnd()]
}

async function checkImports(): Promise<string[]> {
  const imports = await readImports(join(root, 'src'))
  return [
    ...importProblems(imports).map(({ from, to, reason }) => `src/${from} imports ${to}: ${reason}`),
    ...unusedRules(imports).map((rule) => `scripts/imports.ts: nothing needs "${rule}"`),
  ]
}

/** Every file that belongs to the project, by git, so that what it ignores is left out. */
async function projectFiles(): Promise<string[]> {
  if (Bun.which('git') !== null) {
    const listed = await capture(['git', 'ls-files', '-z', '--cached', '--others', '--exclude-standard'], {
      cwd: root,
    })
    if (listed.code === 0) return listed.stdout.split('\0').filter((path) => path !== '')
  }
  const glob = new Bun.Glob('{src,scripts,docs,plugins,fixtures,.ci}/**/*')
  return await Array.fromAsync(glob.scan({ cwd: root, dot: true }))
}

async function checkFiles(problemsOf: (path: string, lines: string[]) => string[]): Promise<string[]> {
  const problems: string[] = []
  for (const path of await projectFiles()) {
    const file = Bun.file(join(root, path))
    if (!(await file.exists()) || file.size > textBytesMax) continue
    const content = await file.text()
    if (!content.includes('\0')) problems.push(...problemsOf(path, content.split('\n')))
  }
  return problems
}

/** Where the project happens to stand, and whoever's home that is, mean nothing elsewhere. */
function pathsOfThisMachine(path: string, lines: string[]): string[] {
  // A root such as /app or /root is an ordinary word in a sandbox's world, and so is a home such as /home/user.
  const places = [root, `${homedir()}/`].filter((place) => place.split('/').filter(Boolean).length > 1)
  return lines.flatMap((line, index) =>
    places.some((place) => line.includes(place)) ? [`${path}:${index + 1} names a path of this machine`] : [],
  )
}

function lonelyTests(path: string, lines: string[]): string[] {
  if (!path.endsWith('.test.ts') && !path.endsWith('.contract.ts')) return []
  return lines.flatMap((line, index) =>
    /^\s*(test|describe|it)\.only\b/.test(line) ? [`${path}:${index + 1} runs alone`] : [],
  )
}

/** `npm ci` refuses a lock that leaves out an optional package of another platform, which `npm install` can write. */
async function checkLockFile(): Promise<string[]> {
  const { packages } = (await Bun.file(join(root, 'package-lock.json')).json()) as {
    packages: Record<string, { resolved?: string; optionalDependencies?: Record<string, string> }>
  }
  const names = new Set(
    Object.keys(packages).map((path) => path.slice(path.lastIndexOf('node_modules/') + 13)),
  )
  return Object.entries(packages).flatMap(([name, entry]) => {
    const missing = Object.keys(entry.optionalDependencies ?? {}).filter((wanted) => !names.has(wanted))
    return [
      ...(entry.resolved ? [`package-lock.json: ${name} names its host, ${entry.resolved}`] : []),
      ...missing.map((wanted) => `package-lock.json: ${wanted}, wanted by ${name}, is left out`),
    ]
  })
}
