import { posix } from 'node:path'
import { decodePath } from './call.ts'

export interface FilePath {
  /** What the guest is asked for. */
  absolute: string
  /** As answers show it: relative when it was asked for so. */
  shown: string
}

/**
 * The path rule of the sandbox API. `rest` is what follows `/filesystem`, undecoded. With `%2F` anywhere in it the
 * decoded rest is absolute; otherwise one leading slash goes, and what is left is relative to the working directory
 * unless it still starts with a slash. `~` alone or before a slash is the home directory.
 */
export function filePath(rest: string, base: { workingDir: string; home: string }): FilePath {
  if (rest.includes('%2F')) return absolutePath(rest)
  return userPath(decodePath(rest.startsWith('/') ? rest.slice(1) : rest), base)
}

/** A path as people write it, not as it stands in a URL. */
export function userPath(path: string, base: { workingDir: string; home: string }): FilePath {
  if (path.startsWith('/')) return cleaned(path)
  if (path === '~' || path.startsWith('~/')) return cleaned(posix.join(base.home, path.slice(1)))
  const relative = withoutTrailingSlash(posix.normalize(path === '' ? '.' : path))
  const absolute = cleaned(posix.resolve(base.workingDir, relative)).absolute
  return { absolute, shown: relative === '.' ? absolute : relative }
}

/** Always absolute: for the tree and wherever the rule does not apply. */
export function absolutePath(rest: string): FilePath {
  return cleaned(`/${decodePath(rest)}`)
}

/** What a file or directory is called; the root as its path, since it has nothing else. */
export function nameOf(path: string): string {
  return posix.basename(path) || path
}

export function joined(dir: string, name: string): string {
  return dir.endsWith('/') ? dir + name : `${dir}/${name}`
}

export function isBelow(path: string, directory: string): boolean {
  return directory === '/' || path.startsWith(`${directory}/`)
}

/** An absolute path as people who work in a directory would write it. */
export function shownPath(path: string, workingDir: string): string {
  return isBelow(path, workingDir) ? path.slice(workingDir === '/' ? 1 : workingDir.length + 1) : path
}

function cleaned(path: string): FilePath {
  const absolute = withoutTrailingSlash(posix.normalize(path).replace(/^\/+/, '/'))
  return { absolute, shown: absolute }
}

function withoutTrailingSlash(path: string): string {
  return path.length > 1 && path.endsWith('/') ? path.slice(0, -1) : path
}
