import { PlatformError } from '../../errors.ts'
import { compileGlobs, PatternError } from '../../lib/patterns/index.ts'
import type { GuestFiles } from '../../spec/runtime.ts'

const ignoreFileBytesMax = 64 * 1024
const patternsMax = 100

/** What a project says is not its own source, as filters of a walk. */
export interface Ignored {
  exclude: string[]
  excludeDirectories: string[]
}

/**
 * From the .gitignore of a project, for a walk that begins in `directory`, in the project or anywhere else; nothing when
 * there is none that can be read.
 */
export async function ignoredIn(files: GuestFiles, project: string, directory: string): Promise<Ignored> {
  const prefix = project === '/' ? '/' : `${project}/`
  const below =
    directory === project ? '' : directory.startsWith(prefix) ? directory.slice(prefix.length) : null
  if (below === null) return ignoredIn(files, directory, directory)
  try {
    const { body } = await files.read(`${prefix}.gitignore`, { offset: 0, length: ignoreFileBytesMax })
    const { exclude, excludeDirectories } = parseIgnored(await new Response(body).text())
    const moved = (globs: string[]) => globs.flatMap((glob) => seenFrom(below, glob))
    return { exclude: moved(exclude), excludeDirectories: moved(excludeDirectories) }
  } catch (error) {
    if (PlatformError.is(error) && error.retryable) throw error
    return { exclude: [], excludeDirectories: [] }
  }
}

/**
 * Where some names are taken back (`!name`), only what lies in directories of their own is left out: it is better to
 * search a file too many than to miss one.
 */
export function parseIgnored(text: string): Ignored {
  const lines = text
    .split('\n')
    .map((line) => line.replace(/(?<!\\)\s+$/, ''))
    .filter((line) => line !== '' && !line.startsWith('#'))
  const takesBack = lines.some((line) => line.startsWith('!'))
  const ignored: Ignored = { exclude: [], excludeDirectories: [] }
  for (const line of lines) {
    if (line.startsWith('!') || ignored.exclude.length + ignored.excludeDirectories.length >= patternsMax)
      continue
    const ofDirectory = line.endsWith('/')
    if (takesBack && !ofDirectory) continue
    const glob = ofDirectory ? line.replace(/\/+$/, '') : line
    if (isGlob(glob)) (ofDirectory ? ignored.excludeDirectories : ignored.exclude).push(glob)
  }
  return ignored
}

/** A glob of paths below the project as one of paths below a directory in it; none when it is about others. */
function seenFrom(below: string, glob: string): string[] {
  const path = glob.replace(/^\//, '')
  if (below === '' || !glob.includes('/') || path.startsWith('**/')) return [glob]
  return path.startsWith(`${below}/`) ? [path.slice(below.length)] : []
}

function isGlob(glob: string): boolean {
  try {
    return compileGlobs([glob]) !== null
  } catch (error) {
    if (error instanceof PatternError) return false
    throw error
  }
}
