/** Source archives as they are uploaded. Everything in one is a stranger's word: nothing of it is followed on this host. */
import { stat } from 'node:fs/promises'
import { ByteReader } from '../lib/byte-reader.ts'
import { uncompressed } from '../lib/compression.ts'
import { shownPath, TarReader } from '../lib/tar.ts'
import { type ArchiveEntry, archiveEntriesMax, refused } from './entry.ts'
import { walkZip } from './zip.ts'

/** Of one file, written out, and of all together. */
const archiveFileBytesMax = 1024 ** 3
const archiveBytesMax = 4 * 1024 ** 3
/** Bytes written out for each of the archive; one that is smaller than the second may be of any. */
const inflationMax = 200
const inflationFreeBytes = 64 * 1024 * 1024
const pathBytesMax = 2048
const nameBytesMax = 255
const depthMax = 64
const linkBytesMax = 2048

export type ArchiveType = 'zip' | 'tar'

/** The entries of an archive as it has them, checked one by one and in their sum. @throws unprocessable */
export async function* walkArchive(path: string, type: ArchiveType): AsyncGenerator<ArchiveEntry> {
  const { size } = await stat(path)
  const inflatedMax = Math.min(archiveBytesMax, Math.max(inflationFreeBytes, size * inflationMax))
  let entries = 0
  let bytes = 0
  for await (const entry of type === 'zip' ? walkZip(path) : walkTar(path)) {
    if (++entries > archiveEntriesMax) throw refused(`it has more than ${archiveEntriesMax} entries`)
    const clean = cleanPath(entry.path)
    // The root itself: it is there.
    if (clean === '' && entry.type === 'directory') continue
    if (clean === '') throw refused('an entry has no name')
    if (entry.bytes > archiveFileBytesMax) {
      throw refused(`${shownPath(clean)} has ${entry.bytes} bytes, a file may have ${archiveFileBytesMax}`)
    }
    bytes += entry.bytes
    if (bytes > archiveBytesMax) throw refused(`its files have more than ${archiveBytesMax} bytes together`)
    if (bytes > inflatedMax) {
      throw refused(
        `its files have more than ${inflationMax} bytes for each byte of it (${inflatedMax} in all): it grows too much`,
      )
    }
    if (entry.type === 'symlink') checkSymlink(clean, entry.target)
    yield entry.type === 'link'
      ? { ...entry, path: clean, target: cleanPath(entry.target) }
      : { ...entry, path: clean }
  }
}

async function* walkTar(path: string): AsyncGenerator<ArchiveEntry> {
  const tar = new TarReader(new ByteReader(uncompressed(path)))
  for (let entry = await tar.next(); entry !== null; entry = await tar.next()) {
    const { type, path, linkPath: target, size: bytes, mode, modifiedNs } = entry
    if (type === 'other') continue
    if (type === 'fifo' || type === 'character' || type === 'block') {
      throw refused(
        `${shownPath(path)} is a ${type === 'fifo' ? 'named pipe' : 'device'}, which is no source`,
      )
    }
    const sparse = entry.extents !== null
    yield {
      path,
      type,
      mode: mode & 0o777,
      modifiedNs,
      bytes: type === 'file' ? bytes : 0,
      target,
      async *content() {
        if (sparse) throw refused(`${shownPath(path)} has holes: pack it without --sparse`)
        for (let part = await tar.data(); part !== null; part = await tar.data()) yield part.bytes
      },
    }
  }
}

/** Relative, without empty names and `.`. @throws unprocessable for what is absolute, leads out or is too long */
function cleanPath(path: string): string {
  if (path.includes('\0')) throw refused(`a path has NUL: ${shownPath(path)}`)
  if (path.startsWith('/')) throw refused(`the path ${shownPath(path)} is absolute`)
  // Of another system's tools.
  if (/^[A-Za-z]:[\\/]/.test(path) || path.startsWith('\\'))
    throw refused(`the path ${shownPath(path)} is absolute`)
  if (path.includes('\\')) throw refused(`the path ${shownPath(path)} has a backslash: part names by /`)
  const names = path.split('/').filter((name) => name !== '' && name !== '.')
  if (names.includes('..')) throw refused(`the path ${shownPath(path)} leads out by ".."`)
  const clean = names.join('/')
  if (
    clean.length > pathBytesMax ||
    names.length > depthMax ||
    names.some((name) => name.length > nameBytesMax)
  )
    throw refused(`the path ${shownPath(path)} is too long`)
  // Words of the format that layers are written in.
  const mark = names.find((name) => name.startsWith('.wh.'))
  if (mark !== undefined) throw refused(`the path ${shownPath(path)} has a name that begins with ".wh."`)
  return clean
}

/**
 * A link leads up first, if at all, and then down: so it stays below the root whatever other links are on its way, since
 * nothing stands behind a link in the archive itself.
 */
function checkSymlink(path: string, target: string): void {
  const link = `the symbolic link ${shownPath(path)} to ${shownPath(target)}`
  if (target === '' || target.length > linkBytesMax || target.includes('\0'))
    throw refused(`${link} has no target`)
  if (target.startsWith('/')) throw refused(`${link} leads out of the project`)
  const names = target.split('/').filter((name) => name !== '' && name !== '.')
  const up = names.findIndex((name) => name !== '..')
  const ups = up < 0 ? names.length : up
  if (ups > path.split('/').length - 1 || names.slice(ups).includes('..'))
    throw refused(`${link} leads out of the project`)
}
