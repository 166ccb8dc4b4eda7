import { PlatformError } from '../../../errors.ts'
import { KeyedLock } from '../../../lib/keyed-lock.ts'
import type { SandboxLease } from '../../../sandboxes/index.ts'
import type { FileEntry, Guest } from '../../../spec/guest.ts'
import { fileOperation } from './entries.ts'
import { type FilePath, userPath } from './paths.ts'

/** Of a file that is edited or read in ranges: it is held in memory. */
const textFileBytesMax = 16 * 1024 * 1024
const changeAttemptsMax = 3

/** A path that came in a body rather than in a URL. @throws bad_request */
export function givenPath(lease: SandboxLease, path: string): FilePath {
  if (path.includes('\0')) throw new PlatformError('bad_request', 'path: must not contain NUL')
  return userPath(path, { workingDir: lease.workingDir, home: lease.env.HOME ?? '/' })
}

/** A whole text file. @throws not_found, unprocessable for what is too large, not a file or not UTF-8 */
export async function readTextFile(
  lease: SandboxLease,
  { absolute }: FilePath,
  signal: AbortSignal,
): Promise<{ text: string; entry: FileEntry }> {
  const { files } = lease.instance.guest
  const { entry, body } = await fileOperation(files.read(absolute), 'open', absolute)
  const chunks: Uint8Array[] = []
  let bytes = 0
  // The size was told by the sandbox: what arrives is counted.
  const reader = body.getReader()
  try {
    for (;;) {
      signal.throwIfAborted()
      const { done, value } = await fileOperation(reader.read(), 'read', absolute)
      if (done) break
      bytes += value.length
      if (bytes > textFileBytesMax) {
        throw new PlatformError(
          'unprocessable',
          `read ${absolute}: larger than ${textFileBytesMax} bytes, the most that is read as one text`,
        )
      }
      chunks.push(value)
    }
  } catch (error) {
    await reader.cancel().catch(() => {})
    throw error
  }
  try {
    const text = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(
      Buffer.concat(chunks, bytes),
    )
    return { text, entry }
  } catch (cause) {
    throw new PlatformError('unprocessable', `read ${absolute}: not a text file (its bytes are not UTF-8)`, {
      cause,
    })
  }
}

const locks = new WeakMap<Guest, KeyedLock>()

/**
 * Reads a text file, changes it, writes it back; changes of one file through here wait for each other, so that none
 * undoes another. What others write meanwhile is not lost: then the change is made once more, to what is there now. With
 * `missing` a file that does not exist counts as that text, and is made.
 * @throws as `readTextFile`, and conflict when others do not stop writing
 */
export async function changeText(
  lease: SandboxLease,
  file: FilePath,
  signal: AbortSignal,
  change: (text: string) => string | Promise<string>,
  options: { missing?: string } = {},
): Promise<{ before: string; after: string }> {
  const { guest } = lease.instance
  const lock = locks.get(guest) ?? new KeyedLock()
  locks.set(guest, lock)
  const read = async () => {
    signal.throwIfAborted()
    try {
      return (await readTextFile(lease, file, signal)).text
    } catch (error) {
      const isMissing = PlatformError.is(error) && error.code === 'not_found'
      if (isMissing && options.missing !== undefined) return options.missing
      throw error
    }
  }
  return lock.run(file.absolute, async () => {
    let before = await read()
    for (let attempt = 1; attempt <= changeAttemptsMax; attempt++) {
      const after = await change(before)
      // A merge takes seconds, in which others may have written.
      const now = await read()
      if (now === before) {
        await fileOperation(guest.files.write(file.absolute, Buffer.from(after)), 'open', file.absolute)
        return { before, after }
      }
      before = now
    }
    throw new PlatformError('conflict', `${file.absolute} is being written by others: try again`)
  })
}
