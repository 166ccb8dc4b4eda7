import { posix } from 'node:path'
import { z } from 'zod'
import { PlatformError } from '../../../errors.ts'
import type { FileEntry } from '../../../spec/guest.ts'
import { collect } from '../bodies.ts'
import { json, readJsonBody, type SandboxAnswer, type SandboxCall } from './call.ts'
import { asCode, type FileView, fileError, fileOperation, fileView, namesIn } from './entries.ts'
import { directoryMode, fileJsonBytesMax, removePath } from './files.ts'
import { readFlatTree } from './flat-tree.ts'
import { listing } from './listing.ts'
import { longJson } from './long-json.ts'
import { absolutePath, type FilePath, joined, nameOf } from './paths.ts'
import { countParameter, flagParameter, limitParameter, listParameter } from './query.ts'

const entriesDefault = 10_000
const entriesMax = 100_000
const depthMax = 4096
/** With `content=true`, of one file and of all. Others are listed without. */
const contentBytesMax = 1024 * 1024
const contentsBytesMax = 32 * 1024 * 1024

/** A directory with all below it: each subdirectory is one of these. */
interface TreeView {
  path: string
  name: string
  files: (FileView & { content?: string })[]
  subdirectories: TreeView[]
}

/**
 * A whole tree, level by level up to `limit` entries; `truncated` says that there is more. Directories come with what is
 * in them, even nothing; `recursive=false` is the directory alone, `recursive=true` a list of all files.
 */
export async function readTree(call: SandboxCall, rest: string): Promise<SandboxAnswer> {
  const { query } = call
  const root = absolutePath(rest)
  const recursive = flagParameter(query, 'recursive', true)
  if (recursive && query.get('recursive')) return await readFlatTree(call, root)
  const options = {
    depthMax: recursive ? countParameter(query, 'depth', { fallback: 0, max: depthMax }) : 1,
    resultsMax: limitParameter(query, 'limit', { fallback: entriesDefault, max: entriesMax }),
    include: listParameter(query, 'patterns') ?? [],
    excludeDirectories: listParameter(query, 'excludeDirs') ?? [],
    excludeHidden: flagParameter(query, 'excludeHidden', false),
  }
  try {
    const { entries, truncated } = await walkedTree(call, root, options)
    const view = await treeView(call, root, entries)
    if (flagParameter(query, 'content', false)) await addContents(call, view)
    return json({ ...view, ...(truncated ? { truncated } : {}) })
  } catch (error) {
    throw asCode(error, 'bad_request')
  }
}

async function walkedTree(
  call: SandboxCall,
  root: FilePath,
  options: {
    depthMax: number
    resultsMax: number
    include: string[]
    excludeDirectories: string[]
    excludeHidden: boolean
  },
): Promise<{ entries: FileEntry[]; truncated: boolean }> {
  const entries: FileEntry[] = []
  const { files } = call.lease.instance.guest
  const walk = files.walk(root.absolute, { ...options, signal: call.request.signal })
  try {
    for (;;) {
      const next = await walk.next()
      if (next.done) return { entries, truncated: next.value.truncated }
      for (const entry of next.value) entries.push(entry)
    }
  } catch (error) {
    throw fileError(error, 'open', root.absolute)
  }
}

async function treeView(call: SandboxCall, root: FilePath, entries: FileEntry[]): Promise<TreeView> {
  const names = await namesIn(call.lease.instance.guest)
  const whole = emptyTree(root.shown, nameOf(root.absolute))
  const trees = new Map([['', whole]])
  /** With patterns, directories on the way to what fits them are not among the entries. */
  const treeOf = (path: string): TreeView => {
    const known = trees.get(path)
    if (known) return known
    const made = emptyTree(joined(root.shown, path), posix.basename(path))
    trees.set(path, made)
    treeOf(parentOf(path)).subdirectories.push(made)
    return made
  }
  for (const entry of entries) {
    if (entry.type === 'directory') {
      treeOf(entry.name)
      continue
    }
    const view = fileView(entry, joined(root.shown, entry.name), posix.basename(entry.name), names)
    treeOf(parentOf(entry.name)).files.push(view)
  }
  return whole
}

function parentOf(path: string): string {
  return path.slice(0, Math.max(0, path.lastIndexOf('/')))
}

function emptyTree(path: string, name: string): TreeView {
  return { path, name, files: [], subdirectories: [] }
}

/** Text of the files that are small and text enough, as long as there is room. */
async function addContents(call: SandboxCall, tree: TreeView): Promise<void> {
  let bytesLeft = contentsBytesMax
  const { files } = call.lease.instance.guest
  const add = async (view: FileView & { content?: string }) => {
    if (view.size > Math.min(contentBytesMax, bytesLeft)) return
    const read = await files.read(view.path, { length: contentBytesMax }).catch((error: unknown) => {
      if (PlatformError.is(error) && error.retryable) throw error
      return null
    })
    if (!read) return
    const bytes = await collect(read.body)
    if (bytes.includes(0)) return
    bytesLeft -= bytes.length
    view.content = new TextDecoder('utf-8', { ignoreBOM: true }).decode(bytes)
  }
  const visit = async (part: TreeView): Promise<void> => {
    for (const view of part.files) await add(view)
    for (const below of part.subdirectories) await visit(below)
  }
  await visit(tree)
}

const treeBody = z.lazy(() => z.object({ files: z.record(z.string(), z.string()).nullish() }))

/** Writes every file, each whole. Directories are made as needed. */
export async function writeTree(call: SandboxCall, rest: string): Promise<SandboxAnswer> {
  const root = absolutePath(rest)
  const { files: contents } = await readJsonBody(call, treeBody, fileJsonBytesMax)
  const { files } = call.lease.instance.guest
  const writes = Object.entries(contents ?? {}).map(([name, content]) => {
    if (name === '' || name.includes('\0')) {
      throw new PlatformError('bad_request', 'files: a name must not be empty and must not contain NUL')
    }
    return { path: posix.join(root.absolute, name), data: Buffer.from(content) }
  })
  const making = files.makeDirectory(root.absolute, { parents: true, mode: directoryMode })
  await fileOperation(making, 'mkdir', root.absolute)
  try {
    await files.writeAll(writes)
  } catch (error) {
    const path = String((PlatformError.is(error) && error.details?.path) || root.absolute)
    throw asCode(fileError(error, 'open', path), 'unprocessable')
  }
  return longJson({ ...(await listing(call, root)) })
}

export async function removeTree(call: SandboxCall, rest: string): Promise<SandboxAnswer> {
  const path = absolutePath(rest)
  try {
    await removePath(call, path.absolute, true)
  } catch (error) {
    throw asCode(error, 'unprocessable')
  }
  return json({ path: path.shown, message: 'Directory deleted successfully' })
}
