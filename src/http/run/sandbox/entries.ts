import { PlatformError } from '../../../errors.ts'
import type { FileEntry, Guest } from '../../../spec/guest.ts'
import { collect } from '../bodies.ts'

/** A file as listings show it. */
export interface FileView {
  path: string
  name: string
  permissions: string
  size: number
  lastModified: string
  owner: string
  group: string
}

const namesFileBytesMax = 256 * 1024
const namesAgeMsMax = 5000

export function fileView(entry: FileEntry, path: string, name: string, names: Names): FileView {
  return {
    path,
    name,
    permissions: permissionText(entry),
    size: entry.size,
    lastModified: new Date(entry.modifiedMs).toISOString(),
    owner: names.users.get(entry.uid) ?? String(entry.uid),
    group: names.groups.get(entry.gid) ?? String(entry.gid),
  }
}

/** Clients know modes as Go prints them: type and special bits lie above the permissions, elsewhere than in Unix. */
function permissionText({ type, mode }: FileEntry): string {
  let bits = mode & 0o777
  if (mode & 0o4000) bits += 2 ** 23
  if (mode & 0o2000) bits += 2 ** 22
  if (mode & 0o1000) bits += 2 ** 20
  bits += typeBits[type]
  return bits.toString(8)
}

const typeBits: Record<FileEntry['type'], number> = {
  file: 0,
  directory: 2 ** 31,
  symlink: 2 ** 27,
  block: 2 ** 26,
  fifo: 2 ** 25,
  socket: 2 ** 24,
  character: 2 ** 26 + 2 ** 21,
}

/** `0644` and the like; bits beyond the nine are ignored. @throws bad_request */
export function parsePermissions(text: string | undefined): number | undefined {
  if (text === undefined || text === '') return undefined
  if (!/^[0-7]{1,6}$/.test(text)) {
    throw new PlatformError(
      'bad_request',
      `invalid permissions '${text.slice(0, 20)}': send octal digits such as "0644"`,
    )
  }
  return Number.parseInt(text, 8) & 0o777
}

export interface Names {
  users: Map<number, string>
  groups: Map<number, string>
}

const cache = new WeakMap<Guest, { at: number; names: Promise<Names> }>()

/** Who the numbers are, by the sandbox's own passwd and group files. */
export function namesIn(guest: Guest): Promise<Names> {
  const cached = cache.get(guest)
  if (cached && performance.now() - cached.at < namesAgeMsMax) return cached.names
  const names = Promise.all([readIds(guest, '/etc/passwd'), readIds(guest, '/etc/group')]).then(
    ([users, groups]) => ({
      users,
      groups,
    }),
  )
  cache.set(guest, { at: performance.now(), names })
  return names
}

async function readIds(guest: Guest, path: string): Promise<Map<number, string>> {
  const ids = new Map([[0, 'root']])
  try {
    const { body } = await guest.files.read(path, { offset: 0, length: namesFileBytesMax })
    for (const line of new TextDecoder().decode(await collect(body)).split('\n')) {
      const [name, , id] = line.split(':')
      if (name && id && /^\d{1,10}$/.test(id) && !ids.has(Number(id))) ids.set(Number(id), name)
    }
  } catch {
    // A sandbox without these files still has its root.
  }
  return ids
}

const errnoTexts: Record<string, string> = {
  EACCES: 'permission denied',
  EBUSY: 'device or resource busy',
  EEXIST: 'file exists',
  EFBIG: 'file too large',
  EINVAL: 'invalid argument',
  EISDIR: 'is a directory',
  ELOOP: 'too many levels of symbolic links',
  EMFILE: 'too many open files',
  ENAMETOOLONG: 'file name too long',
  ENOENT: 'no such file or directory',
  ENOSPC: 'no space left on device',
  EDQUOT: 'disk quota exceeded',
  ENOTDIR: 'not a directory',
  ENOTEMPTY: 'directory not empty',
  EPERM: 'operation not permitted',
  EROFS: 'read-only file system',
  ETXTBSY: 'text file busy',
  EXDEV: 'invalid cross-device link',
}

/** A failure of the guest's files in the words that clients of this API match: `stat /x: no such file or directory`. */
export function fileError(error: unknown, operation: string, path: string): unknown {
  if (!PlatformError.is(error)) return error
  const errno = String(error.details?.errno ?? '')
  const text = errnoTexts[errno]
  if (!text) return error
  const absent = errno === 'ENOENT' || errno === 'ENOTDIR'
  const code = absent ? 'not_found' : error.code === 'insufficient_storage' ? error.code : 'unprocessable'
  return new PlatformError(code, `${operation} ${path}: ${text}`, { cause: error })
}

/** Awaits a file operation, its failure told as `fileError` does. */
export async function fileOperation<Value>(
  work: Promise<Value>,
  operation: string,
  path: string,
): Promise<Value> {
  try {
    return await work
  } catch (error) {
    throw fileError(error, operation, path)
  }
}

/** For operations that answer with one code whatever is wrong with the path. */
export function asCode(error: unknown, code: 'bad_request' | 'unprocessable'): unknown {
  if (!PlatformError.is(error) || !['not_found', 'conflict', 'unprocessable'].includes(error.code))
    return error
  return new PlatformError(code, error.message, { cause: error })
}
