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
  'deployments',
  'sandboxes',
  'jobs',
  'triggers',
  'models',
  'policies',
  'volumes',
  'drives',
  'images',
  'network',
  'codegen',
  'telemetry',
  'integrations',
]
const domain = [...seams, 'instances', 'config', ...nouns]
const everything = [...domain, 'http', 'guest', 'runtimes', 'stores', 'platform', 'plugin']

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
  plugin: everything,
  platform: everything,
  client: ground,
  cli: [...ground, 'client', 'config'],
  main: [...ground, 'cli'],
  index: everything,
  testing: everything,
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
  'sandboxes/previews.ts': 'previews of a sandbox, a noun of their own',
  'runtimes/helper-binary.ts': 'the helper belongs to every driver',
  'runtimes/embedded-helper.ts': 'the helper belongs to every driver',
}

/** Whole folders that one file may enter anywhere, each with its reason. */
const composers: Record<string, string> = {
  'platform.ts -> http': 'names every route group, so that all of them stand on one screen',
}

/** What only tests use, without a name that says so. */
const testSupport = new Set(['http/run/host-machine.ts', 'sandboxes/processes/scripted-guest.ts'])

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

function isTest(file: string): boolean {
  return (
    /\.(test|contract)\.ts$|(^|\/)test-[^/]+\.ts$/.test(file) ||
    file === 'testing.ts' ||
    testSupport.has(file)
  )
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
