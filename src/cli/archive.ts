import {
  createReadStream,
  type Dirent,
  mkdtempSync,
  readdirSync,
  readFileSync,
  realpathSync,
  rmSync,
  type Stats,
  statSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Glob } from 'bun'
import { ZipTooLarge, ZipWriter } from '../lib/zip-writer.ts'
import { CommandError } from './command.ts'

const ignoreFile = '.blaxelignore'
/** What is made anew from the rest, or belongs to nobody else. */
const ignoredByDefault = [
  '.blaxel',
  '.docker',
  'dist',
  '.venv',
  'venv',
  'node_modules',
  '.next',
  '__pycache__',
]
/** Whatever the rules say: secrets and history are nobody's to build from. */
const ignoredAlways = ['.git', '.env', '.env.*']
const depthMax = 64

export interface ArchiveContent {
  /** The folder whose content is sent. */
  root: string
  /** Files put at a path of the archive, in the place of what the folder has there. */
  instead: Record<string, { file: string } | { text: string }>
}

export interface ArchivedFile {
  path: string
  bytes: number
}

/** Packs a folder into a new zip file at `target`; answers what is in it, and its size. @throws CommandError */
async function packFolder(
  content: ArchiveContent,
  target: string,
): Promise<{ files: ArchivedFile[]; bytes: number }> {
  const { root, instead } = content
  const verdictOf = ignoreRules(root)
  const files: ArchivedFile[] = []
  await using zip = await ZipWriter.create(target)
  try {
    for (const { path, file, stats } of walk(root, '', verdictOf, [realpathSync(root)])) {
      if (Object.hasOwn(instead, path)) continue
      if (stats.isDirectory()) await zip.addFolder(path, stats.mode, stats.mtime)
      else {
        await zip.addFile(path, createReadStream(file), stats.mode, stats.mtime)
        files.push({ path, bytes: stats.size })
      }
    }
    for (const [path, source] of Object.entries(instead)) {
      const stats = 'file' in source ? statSync(source.file) : null
      const text = 'text' in source ? new TextEncoder().encode(source.text) : null
      const bytes = 'file' in source ? createReadStream(source.file) : once(text ?? new Uint8Array(0))
      await zip.addFile(path, bytes, stats?.mode ?? 0o600, stats?.mtime ?? new Date())
      files.push({ path, bytes: stats?.size ?? text?.length ?? 0 })
    }
    return { files, bytes: await zip.finish() }
  } catch (error) {
    if (!(error instanceof ZipTooLarge)) throw error
    throw new CommandError(
      `${root} cannot be sent: ${error.message}; name what is not needed in ${ignoreFile}`,
    )
  }
}

/** Packs into a file that is gone afterwards. */
export async function packed<Value>(
  content: ArchiveContent,
  work: (archive: {
    path: string
    files: { path: string; bytes: number }[]
    bytes: number
  }) => Promise<Value>,
): Promise<Value> {
  const directory = mkdtempSync(join(tmpdir(), 'hutch-deploy-'))
  const remove = () => rmSync(directory, { recursive: true, force: true })
  process.once('exit', remove)
  try {
    const path = join(directory, 'source.zip')
    return await work({ path, ...(await packFolder(content, path)) })
  } finally {
    remove()
    process.off('exit', remove)
  }
}

interface Walked {
  /** In the archive. */
  path: string
  file: string
  stats: Stats
}

/** Links are followed, but in no circle; what is neither a file nor a folder is left out. */
function* walk(
  root: string,
  below: string,
  verdictOf: (path: string) => Verdict,
  above: string[],
): Iterable<Walked> {
  if (above.length > depthMax)
    throw new CommandError(`${join(root, below)} is more than ${depthMax} folders deep`)
  const entries = readdirSync(join(root, below), { withFileTypes: true })
  for (const entry of entries.sort(byName)) {
    const path = below === '' ? entry.name : `${below}/${entry.name}`
    const verdict = verdictOf(path)
    if (verdict === 'left out with all below') continue
    const file = join(root, path)
    // A link to nowhere is left out, as every tool that reads through it would.
    const stats = statSync(file, { throwIfNoEntry: false })
    if (stats?.isFile() && verdict === 'taken') yield { path, file, stats }
    if (!stats?.isDirectory()) continue
    const real = realpathSync(file)
    if (above.includes(real)) continue
    if (verdict === 'taken') yield { path, file, stats }
    yield* walk(root, path, verdictOf, [...above, real])
  }
}

function byName(one: Dirent, other: Dirent): number {
  return one.name < other.name ? -1 : 1
}

/** Of what is left out alone, something below may be taken back in. */
type Verdict = 'taken' | 'left out' | 'left out with all below'

/**
 * A rule leaves out the file or folder of that path, and those of that name at any depth; one with `*`, `?` or `[` is a
 * pattern of either, and one that begins with `/` means the path alone. `!` before one takes back in what rules before it left out.
 * Rules are the lines of `.blaxelignore`, else the defaults.
 */
function ignoreRules(root: string): (path: string) => Verdict {
  const rules = (readRules(join(root, ignoreFile)) ?? ignoredByDefault).map(parseRule)
  const always = ignoredAlways.map(parseRule)
  const hits = (matches: Rule['matches'], path: string): boolean =>
    matches(path) || (path.includes('/') && hits(matches, path.slice(0, path.lastIndexOf('/'))))
  const leftOut: Verdict = rules.some(({ isException }) => isException)
    ? 'left out'
    : 'left out with all below'
  return (path) => {
    if (always.some(({ matches }) => hits(matches, path))) return 'left out with all below'
    return rules.findLast(({ matches }) => hits(matches, path))?.isException === false ? leftOut : 'taken'
  }
}

interface Rule {
  isException: boolean
  matches(path: string): boolean
}

function parseRule(line: string): Rule {
  const isException = line.startsWith('!')
  const written = isException ? line.slice(1) : line
  const isAnchored = /^\.?\//.test(written)
  const rule = written.replace(/^\.?\//, '').replace(/\/+$/, '')
  const glob = /[*?[]/.test(rule) ? new Glob(rule) : null
  const one = (text: string) => (glob === null ? text === rule : glob.match(text))
  const matches = (path: string) => one(path) || (!isAnchored && one(path.slice(path.lastIndexOf('/') + 1)))
  return { isException, matches }
}

function readRules(path: string): string[] | null {
  let text: string
  try {
    text = readFileSync(path, 'utf8')
  } catch (error) {
    if ((error as { code?: string }).code === 'ENOENT') return null
    throw error
  }
  return text.split('\n').flatMap((line) => {
    const rule = line.replace(/#.*$/, '').trim()
    return /^!?(?:\.?\/)?$/.test(rule) ? [] : [rule]
  })
}

async function* once(bytes: Uint8Array): AsyncIterable<Uint8Array> {
  if (bytes.length > 0) yield bytes
}
