import { mkdirSync, readdirSync, readFileSync, renameSync, rmSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { buildHelper } from './build-helper.ts'
import { buildPages } from './build-pages.ts'
import { buildTemplates } from './build-templates.ts'
import { capture } from './capture.ts'

/** Makes dist/hutch: the helper, the pages and the templates first, since the executable carries them. */

const root = join(import.meta.dir, '..')
export const executablePath = join(root, 'dist', 'hutch')

/** Extra entry points: files that run as workers and so are loaded by path. */
const workers = [
  'src/stores/sqlite/writer.worker.ts',
  'src/stores/sqlite/folder.worker.ts',
  'src/codegen/search/indexes.worker.ts',
]

export async function build(): Promise<{ path: string; bytes: number }> {
  mkdirSync(join(root, 'dist'), { recursive: true })
  await buildHelper()
  await buildPages()
  buildTemplates()
  const made = join(root, 'dist', `.hutch-${process.pid}`)
  try {
    await run(made)
    checkNoPaths(made)
    // Renamed into place: a running executable cannot be written to.
    renameSync(made, executablePath)
  } finally {
    rmSync(made, { force: true })
  }
  return { path: executablePath, bytes: statSync(executablePath).size }
}

async function run(outfile: string): Promise<void> {
  const result = await capture(
    [
      process.execPath,
      'build',
      '--compile',
      '--minify',
      '--splitting',
      '--bytecode',
      '--format=esm',
      // The executable must not obey the .env or bunfig.toml of the directory it happens to be started in.
      '--no-compile-autoload-dotenv',
      '--no-compile-autoload-bunfig',
      '--define',
      `HUTCH_COMMIT=${JSON.stringify(commit())}`,
      '--root',
      'src',
      'src/main.ts',
      ...workers,
      '--outfile',
      outfile,
    ],
    { cwd: root },
  )
  if (result.code !== 0) throw new Error(`bun build failed:\n${result.stdout}${result.stderr}`)
}

function commit(): string {
  // Sources from an archive have no history, and their machine perhaps no git.
  if (Bun.which('git') === null) return 'unknown'
  const git = Bun.spawnSync(['git', 'rev-parse', '--short=12', 'HEAD'], { cwd: root, stderr: 'ignore' })
  return git.exitCode === 0 ? git.stdout.toString().trim() : 'unknown'
}

/** The directory it was built in is nobody's business. */
function checkNoPaths(path: string): void {
  const content = readFileSync(path)
  for (const folder of ['src', 'node_modules', 'dist']) {
    const at = content.indexOf(join(root, folder))
    if (at === -1) continue
    const found = content
      .subarray(at, at + 120)
      .toString('latin1')
      .replace(/[^\x20-\x7e].*/s, '')
    throw new Error(`the executable holds a path of this machine: ${found}`)
  }
}

/** Builds unless dist/hutch is newer than everything it is made of. */
export async function buildIfStale(): Promise<string> {
  const made = modified(executablePath)
  const sources = [
    'src',
    'templates',
    'package.json',
    'package-lock.json',
    'scripts/build.ts',
    'scripts/build-helper.ts',
    'scripts/build-pages.ts',
    'scripts/build-templates.ts',
  ]
  if (made === 0 || sources.some((path) => newest(join(root, path)) > made)) await build()
  return executablePath
}

function newest(path: string): number {
  const own = modified(path)
  if (!statSync(path).isDirectory()) return own
  // A directory's own time tells of files that were removed.
  return Math.max(own, ...readdirSync(path).map((name) => newest(join(path, name))))
}

function modified(path: string): number {
  return statSync(path, { throwIfNoEntry: false })?.mtimeMs ?? 0
}

if (import.meta.main) {
  const { path, bytes } = await build()
  console.log(`${path}  ${(bytes / 1e6).toFixed(1)} MB`)
}
