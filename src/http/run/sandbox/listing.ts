import { PlatformError } from '../../../errors.ts'
import type { FileEntry } from '../../../spec/guest.ts'
import type { SandboxCall } from './call.ts'
import { type FileView, fileError, fileView, namesIn } from './entries.ts'
import { type FilePath, joined, nameOf } from './paths.ts'

const directoryEntriesMax = 100_000

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
  const entries: FileEntry[] = []
  try {
    for await (const batch of guest.files.list(path.absolute)) {
      for (const entry of batch) entries.push(entry)
      if (entries.length > directoryEntriesMax) {
        throw new PlatformError(
          'unprocessable',
          `open ${path.absolute}: it has more than ${directoryEntriesMax} entries, which is the most that are listed`,
        )
      }
    }
  } catch (error) {
    throw fileError(error, 'open', path.absolute)
  }
  entries.sort((a, b) => (a.name < b.name ? -1 : 1))
  const known = await names
  const view: DirectoryView = {
    path: path.shown,
    name: nameOf(path.absolute),
    files: [],
    subdirectories: [],
  }
  for (const entry of entries) {
    const entryPath = joined(path.shown, entry.name)
    if (entry.type === 'directory') view.subdirectories.push({ path: entryPath, name: entry.name })
    else view.files.push(fileView(entry, entryPath, entry.name, known))
  }
  return view
}
