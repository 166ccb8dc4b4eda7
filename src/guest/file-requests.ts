import { PlatformError } from '../errors.ts'
import type { FileEntry, FileType } from '../spec/guest.ts'
import type { EntryRecord } from './codec.ts'
import { FrameTooLargeError, type FrameType, FrameWriter } from './frame.ts'

/** What requests about files are made of, checked before they are sent. */

const pathBytesMax = 4096
const keepMode = 0xffff_ffff
const newFileModeBit = 0x8000_0000

const fileTypes: Record<EntryRecord['type'], FileType> = {
  f: 'file',
  d: 'directory',
  l: 'symlink',
  p: 'fifo',
  s: 'socket',
  c: 'character',
  b: 'block',
}

export function modeBits({ mode, newFileMode }: { mode?: number; newFileMode?: number }): number {
  const given = mode ?? newFileMode
  if (given === undefined) return keepMode
  checkMode(given)
  return mode === undefined ? newFileModeBit + given : given
}

export function frame(type: FrameType, fill: (writer: FrameWriter) => FrameWriter): Uint8Array {
  try {
    return fill(new FrameWriter(type, 0, 128)).finish()
  } catch (error) {
    if (error instanceof FrameTooLargeError) throw new PlatformError('bad_request', 'path is too long')
    throw error
  }
}

export function fileEntry(record: EntryRecord): FileEntry {
  const { type, linkTarget, ...rest } = record
  return linkTarget === ''
    ? { ...rest, type: fileTypes[type] }
    : { ...rest, type: fileTypes[type], linkTarget }
}

export function checkPath(path: string) {
  if (!path.startsWith('/'))
    throw invalid(`path ${JSON.stringify(path.slice(0, 200))} is not absolute`, 'EINVAL')
  if (path.includes('\0')) throw invalid('path contains NUL', 'EINVAL')
  if (Buffer.byteLength(path) >= pathBytesMax) {
    throw invalid(`path is longer than ${pathBytesMax - 1} bytes`, 'ENAMETOOLONG')
  }
}

export function checkMode(mode: number) {
  if (!Number.isInteger(mode) || mode < 0 || mode > 0o7777) {
    throw invalid(`mode ${mode} is not between 0 and 07777`, 'EINVAL')
  }
}

export function checkRange(range: { offset?: number; length?: number }) {
  for (const [field, value] of Object.entries(range)) {
    if (value !== undefined && (!Number.isSafeInteger(value) || value < 0)) {
      throw invalid(`${field} ${value} is not a count of bytes`, 'EINVAL')
    }
  }
}

export function invalid(message: string, errno: string): PlatformError {
  return new PlatformError('bad_request', message, { details: { errno } })
}
