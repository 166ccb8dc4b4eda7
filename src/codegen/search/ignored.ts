import { PlatformError } from '../../errors.ts'
import type { GuestFiles } from '../../spec/guest.ts'
import { IgnoreRules } from './ignore-rules.ts'

const ignoreFileName = '.gitignore'
const ignoreFileBytesMax = 64 * 1024
const ignoreFilesMax = 500
const readsAtOnce = 8

/** What a project says is not its own source, for a walk of one directory. */
export interface Ignored {
  /** For the walk: directories of which nothing is wanted. */
  excludeDirectories: string[]
  /** Of a file by its path below the directory. */
  has(path: string): boolean
  /** Not all that the project says was looked at. */
  readonly incomplete: boolean
}

/**
 * From every .gitignore that counts for files below `directory`: those in it and below, and those above it up to the
 * project where it is part of that. A directory that is asked for is searched even where it is ignored itself.
 */
export async function ignoredIn(
  files: GuestFiles,
  { directory, project }: { directory: string; project: string },
  walk: { excludeDirectories: string[]; depthMax: number; signal: AbortSignal },
): Promise<Ignored> {
  const within = directory === project || directory.startsWith(below(project))
  const top = below(within ? project : directory)
  /** The directory asked for, from the top. */
  const from = directory.slice(top.length)
  const rules = new IgnoreRules(from)
  const steps = from === '' ? [] : from.split('/')
  for (let count = 0; count <= steps.length; count++) await read(steps.slice(0, count).join('/'))
  const inside: string[] = []
  let complete = true
  const entries = files.walk(directory, {
    types: 'files',
    include: [ignoreFileName],
    excludeDirectories: ['.*', ...walk.excludeDirectories, ...rules.prunedDirectories()],
    depthMax: walk.depthMax,
    resultsMax: ignoreFilesMax,
    details: false,
    signal: walk.signal,
  })
  for (;;) {
    const { done, value } = await entries.next()
    if (done) {
      complete = !value.truncated
      break
    }
    for (const { name } of value) {
      if (name.endsWith(`/${ignoreFileName}`)) inside.push(name.slice(0, -ignoreFileName.length - 1))
    }
  }
  const prefix = from === '' ? '' : `${from}/`
  const reader = async () => {
    for (let next = inside.shift(); next !== undefined; next = inside.shift()) await read(prefix + next)
  }
  await Promise.all(Array.from({ length: readsAtOnce }, reader))
  return {
    excludeDirectories: rules.prunedDirectories(),
    has: (path) => rules.ignoresFile(prefix + path),
    get incomplete() {
      return !complete || rules.incomplete
    },
  }

  async function read(place: string): Promise<void> {
    const path = `${top}${place === '' ? '' : `${place}/`}${ignoreFileName}`
    try {
      const { body } = await files.read(path, { offset: 0, length: ignoreFileBytesMax })
      rules.add(place, await new Response(body).text())
    } catch (error) {
      walk.signal.throwIfAborted()
      // None, or one that cannot be read, says nothing.
      if (PlatformError.is(error) && error.retryable) throw error
    }
  }
}

function below(directory: string): string {
  return directory === '/' ? '/' : `${directory}/`
}
