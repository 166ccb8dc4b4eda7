const reasons: Record<string, string> = {
  EACCES: 'permission denied',
  EPERM: 'this user may not do that',
  ENOENT: 'no such file or directory',
  ENOTDIR: 'part of the path is no directory',
  EISDIR: 'it is a directory',
  EEXIST: 'something else is in its place',
  ENOSPC: 'no space is left on the disk',
  EROFS: 'the file system is read-only',
}

/** What went wrong, for people: the file and the reason, where the system names both. */
export function failureMessage(error: unknown): string {
  const { code, path, message } = error as { code?: string; path?: string; message?: string }
  const reason = code === undefined ? undefined : reasons[code]
  if (reason !== undefined && path !== undefined) return `${path}: ${reason}`
  return message ?? String(error)
}
