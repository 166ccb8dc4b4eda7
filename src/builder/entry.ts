/** One entry of a source archive, whatever the archive's format. */
import { PlatformError } from '../errors.ts'

export const archiveEntriesMax = 100_000

/** Names are bytes on Linux, of no particular encoding: one byte a character (latin1). */
export interface ArchiveEntry {
  path: string
  type: 'file' | 'directory' | 'symlink' | 'link'
  /** Permission bits without setuid and the like. */
  mode: number
  modifiedNs: bigint
  bytes: number
  /** Of a link: where a symbolic one leads to, the path in the archive that a hard one is of. */
  target: string
  /** Its bytes, as many as it says. To be read before the next entry is asked for. */
  content(): AsyncIterable<Uint8Array>
}

export function refused(what: string, cause?: unknown): PlatformError {
  return new PlatformError(
    'unprocessable',
    `the archive is refused: ${what}`,
    cause === undefined ? {} : { cause },
  )
}
