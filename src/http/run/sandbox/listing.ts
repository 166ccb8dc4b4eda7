import { PlatformError } from '../../../errors.ts'
import { othersTurn } from '../../../lib/turns.ts'
import type { FileEntry } from '../../../spec/guest.ts'
import type { SandboxCall } from './call.ts'
import { type FileView, fileError, fileView, namesIn } from './entries.ts'
import { type FilePath, joined, nameOf } from './paths.ts'

const directoryEntriesMax = 250_000
/** Of a large directory looked at without a pause. */
const entriesAtOnce = 2000

export interface DirectoryView {
  path: string
  name: string
  files: FileView[]
  subdirectories: { path: string; name: string }[]
}

/** What is in a directory, in the order of names. */
export async function listing(call: SandboxCall, path: FilePath): Promise<DirectoryView> {
  const { guest } = call.lease.instance
  const names = namesIn(guest)
  const batches: FileEntry[][] = []
  let count = 0
  try {
    for await (const batch of guest.files.list(path.absolute)) {
      for (let at = 0; at < batch.length; at += entriesAtOnce) {
        if (count > entriesAtOnce) await othersTurn()
        batches.push(batch.slice(at, at + entriesAtOnce).sort(byName))
      }
      count += batch.length
      if (count > directoryEntriesMax) {
        throw new PlatformError(
          'unprocessable',
          `open ${path.absolute}: it has more than ${directoryEntriesMax} entries, which is the most that are listed`,
        )
      }
    }
  } catch (error) {
    throw fileError(error, 'open', path.absolute)
  }
  const known = await names
  const view: DirectoryView = {
    path: path.shown,
    name: nameOf(path.absolute),
    files: [],
    subdirectories: [],
  }
  for await (const entries of inOrder(batches)) {
    for (const entry of entries) {
      const entryPath = joined(path.shown, entry.name)
      if (entry.type === 'directory') view.subdirectories.push({ path: entryPath, name: entry.name })
      else view.files.push(fileView(entry, entryPath, entry.name, known))
    }
  }
  return view
}

function byName(a: FileEntry, b: FileEntry): number {
  return a.name < b.name ? -1 : 1
}

/** Of sorted batches all entries in their order, a part at a time, between which others have their turn. */
async function* inOrder(batches: FileEntry[][]): AsyncGenerator<FileEntry[]> {
  let sorted = batches
  while (sorted.length > 1) {
    const merged: FileEntry[][] = []
    for (let at = 0; at < sorted.length; at += 2) {
      const [left = [], right = []] = sorted.slice(at, at + 2)
      merged.push(right.length === 0 ? left : await together(left, right))
    }
    sorted = merged
  }
  const [entries = []] = sorted
  for (let at = 0; at < entries.length; at += entriesAtOnce) {
    if (at > 0) await othersTurn()
    yield entries.slice(at, at + entriesAtOnce)
  }
}

async function together(left: FileEntry[], right: FileEntry[]): Promise<FileEntry[]> {
  const both: FileEntry[] = []
  let l = 0
  let r = 0
  while (l < left.length || r < right.length) {
    const [a, b] = [left[l], right[r]]
    if (a !== undefined && (b === undefined || byName(a, b) < 0)) {
      both.push(a)
      l++
    } else if (b !== undefined) {
      both.push(b)
      r++
    }
    if (both.length % entriesAtOnce === 0) await othersTurn()
  }
  return both
}
