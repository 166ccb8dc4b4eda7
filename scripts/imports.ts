import { dirname, join, relative } from 'node:path'
import { Glob } from 'bun'

/**
 * Which folder of src may import which. Imports run one way: main and cli, platform, http, the domain's nouns,
 * instances, spec; runtimes and stores hang below spec; lib and errors are under all.
 */

const ground = ['lib', 'errors', 'data-directory', 'version']
const seams = [...ground, 'spec']
const nouns = [
  'access',
  'workspaces',
  'sandboxes',
  'images',
  'network',
  'codegen',
  'telemetry',
  'builds',
  'deployments',
  'domains',
  'builder',
  'jobs',
  'memory',
  'nodes',
  'executions',
  'deliveries',
  'triggers',
  'threads',
]
const domain = [...seams, 'instances', 'config', ...nouns]
const everything = [...domain, 'http', 'guest', 'runtimes', 'stores', 'platform']

const mayImport: Record<string, string[]> = {
  errors: [],
  lib: ['errors'],
  'data-directory': [],
  version: [],
  config: ground,
  spec: ground,
  guest: seams,
  runtimes: [...seams, 'guest'],
  stores: seams,
  instances: seams,
  ...Object.fromEntries(nouns.map((noun) => [noun, domain])),
  http: domain,
  platform: everything,
  client: ground,
  cli: [...ground, 'client', 'config'],
  main: [...ground, 'cli'],
  index: everything,
}

/** Single edges that the table would refuse, each with its reason. */
const exceptions: Record<string, string> = {
  'cli/up.ts -> platform': 'the one command that opens a platform',
  'cli/doctor.ts -> runtimes': 'asks the drivers what this host can do',
}

/** Folders whose files are each a door: many small things rather than one. */
const openFolders = new Set(['lib', 'spec', 'cli'])

/** Files that other folders may import besides a folder's index.ts, each with its reason. */
const doors: Record<string, string> = {
  'http/route.ts': 'the shape of a route, which every noun with routes builds on',
  'sandboxes/processes.ts': 'processes of a sandbox, a noun of their own',
  'runtimes/helper-binary.ts': 'the helper belongs to every driver',
  'runtimes/embedded-helper.ts': 'the helper belongs to every driver',
}

/** Whole folders that one file may enter anywhere, each with its reason. */
const composers: Record<string, string> = {
  'platform.ts -> http': 'opens what nouns need of it, and the server',
  'platform/http.ts -> http': 'names every route group, so that all of them stand on one screen',
}

export interface Import {
  /** Relative to src. */
  from: string
  to: string
}

export interface Problem {
  from: string
  to: string
  reason: string
}

/** Every relative import of the sources; tests and contract suites may reach anywhere. */
export async function readImports(src: string): Promise<Import[]> {
  const imports: Import[] = []
  for await (const file of new Glob('**/*.ts').scan(src)) {
    if (isTest(file)) continue
    const content = await Bun.file(join(src, file)).text()
    const named = new Set<string>()
    // By text rather than by a parser, which leaves out imports of types: they bind just as much.
    for (const match of content.matchAll(/(?:\bfrom|\bimport|\brequire)\s*\(?\s*['"]([^'"\n]+)['"]/g))
      named.add(match[1]!)
    for (const path of named) {
      if (!path.startsWith('.')) continue
      imports.push({ from: file, to: relative(src, join(src, dirname(file), path)) })
    }
  }
  return imports
}

export function importProblems(imports: Import[]): Problem[] {
  const problems: Problem[] = []
  for (const { from, to } of imports) {
    // Outside of src only package.json and the built helper are imported.
    if (to.startsWith('..')) {
      if (!/^\.\.\/(package\.json|dist\/[^/]+)$/.test(to)) problems.push({ from, to, reason: 'leaves src' })
      continue
    }
    const [source, target] = [folderOf(from), folderOf(to)]
    if (source === target) continue
    const allowed = mayImport[source]
    if (!allowed) {
      problems.push({
        from,
        to,
        reason: `${source} has no place in the order of layers (scripts/imports.ts)`,
      })
      continue
    }
    if (!allowed.includes(target) && !exceptions[`${from} -> ${target}`]) {
      problems.push({ from, to, reason: `${source} may not import ${target}` })
    } else if (!isDoor(to) && !composers[`${from} -> ${target}`])
      problems.push({ from, to, reason: `${target} is entered by its index.ts` })
  }
  return problems
}

/** What the rules above name and no import bears out: a permission nobody needs is one that nobody looked at. */
export function unusedRules(imports: Import[]): string[] {
  const folders = new Set(imports.flatMap(({ from, to }) => [folderOf(from), folderOf(to)]))
  const edges = new Set(
    imports.flatMap(({ from, to }) => [
      `${from} -> ${to.replace(/\.ts$/, '')}`,
      `${from} -> ${folderOf(to)}`,
    ]),
  )
  const entered = new Set(
    imports.filter(({ from, to }) => folderOf(from) !== folderOf(to)).map(({ to }) => to),
  )
  return [
    ...Object.keys(mayImport).filter((folder) => !folders.has(folder)),
    ...[...Object.keys(exceptions), ...Object.keys(composers)].filter((edge) => !edges.has(edge)),
    ...Object.keys(doors).filter((door) => !entered.has(door)),
  ]
}

function isTest(file: string): boolean {
  return /\.(test|contract)\.ts$|(^|\/)test-[^/]+\.ts$|(^|\/)testing\//.test(file) || file === 'testing.ts'
}

/** First part of the path, without the extension of a file that stands by itself. */
function folderOf(path: string): string {
  return path.split('/')[0]!.replace(/\.ts$/, '')
}

function isDoor(to: string): boolean {
  const parts = to.split('/')
  if (parts.length === 1 || openFolders.has(parts[0]!)) return true
  return Object.hasOwn(doors, to) || parts.at(-1) === 'index.ts'
}
