import { constants } from 'node:os'
import { type ErrorCode, PlatformError } from '../errors.ts'

const names = new Map(Object.entries(constants.errno).map(([name, number]) => [number, name]))

/** 'ENOENT' of 2. */
export function errnoName(errno: number): string {
  return names.get(errno) ?? `E${errno}`
}

const codes: Record<string, ErrorCode> = {
  ENOENT: 'not_found',
  EEXIST: 'already_exists',
  ENOTEMPTY: 'conflict',
  EISDIR: 'conflict',
  ENOTDIR: 'conflict',
  EBUSY: 'conflict',
  ETXTBSY: 'conflict',
  EACCES: 'forbidden',
  EPERM: 'forbidden',
  EROFS: 'forbidden',
  ENOSPC: 'insufficient_storage',
  EDQUOT: 'insufficient_storage',
  EFBIG: 'insufficient_storage',
  ENAMETOOLONG: 'bad_request',
  EMFILE: 'unavailable',
  ENFILE: 'unavailable',
  ENOMEM: 'unavailable',
  EAGAIN: 'unavailable',
}

const texts: Record<string, string> = {
  ENOENT: 'no such file or directory',
  EEXIST: 'file exists',
  ENOTEMPTY: 'directory not empty',
  EISDIR: 'is a directory',
  ENOTDIR: 'not a directory',
  EBUSY: 'resource busy',
  EACCES: 'permission denied',
  EPERM: 'operation not permitted',
  EROFS: 'read-only file system',
  ENOSPC: 'no space left on device',
  EDQUOT: 'disk quota exceeded',
  EFBIG: 'file too large',
  ENAMETOOLONG: 'file name too long',
  ELOOP: 'too many levels of symbolic links',
  ENXIO: 'no reader or no such device',
  EXDEV: 'cannot move across file systems',
  EINVAL: 'invalid argument',
}

/** What a file operation on `path` failed with. */
export function fileError(errno: number, path: string, message: string): PlatformError {
  const name = errnoName(errno)
  const text = texts[name] ?? (printable(message) || 'file operation failed')
  return new PlatformError(codes[name] ?? 'unprocessable', `${text}: ${path}`, { details: { errno: name } })
}

const messageCharactersMax = 1024

/** Text that came out of a sandbox, fit for an answer or a log line. */
export function printable(text: string): string {
  return text
    .slice(0, messageCharactersMax)
    .replace(/\p{Cc}+/gu, ' ')
    .trim()
}
