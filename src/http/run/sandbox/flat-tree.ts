import { posix } from 'node:path'
import { PlatformError } from '../../../errors.ts'
import type { FileEntry, WalkOptions } from '../../../spec/guest.ts'
import { collect } from '../bodies.ts'
import { json, type SandboxAnswer, type SandboxCall } from './call.ts'
import { asCode, type FileView, fileError, fileView, namesIn } from './entries.ts'
import { type FilePath, joined, nameOf } from './paths.ts'
import { boundedParameter, flagParameter, listParameter } from './query.ts'

const filesDefault = 10_000
const filesMax = 100_000
/** Files and directories together. */
const entriesMax = 2 * filesMax
const contentBytesDefault = 32 * 1024 * 1024
const contentBytesMax = 256 * 1024 * 1024
/** Whatever the client would take: an answer is one text in memory. */
const answerContentBytesMax = 64 * 1024 * 1024
const readersMax = 8

type FileWithText = FileView & { content?: string }

/**
 * `recursive=true`, as newer clients read a whole tree: every file below in one list, with `content=true` as text. More
 * files than `maxFiles`, or more content than `maxBytes`, is refused instead of cut off.
 * @throws bad_request, unprocessable
 */
export async function readFlatTree(call: SandboxCall, root: FilePath): Promise<SandboxAnswer> {
  const { query } = call
  const withContent = flagParameter(query, 'content', false)
  const most = boundedParameter(query, 'maxFiles', { fallback: filesDefault, max: filesMax })
  const mostBytes = Math.min(
    boundedParameter(query, 'maxBytes', { fallback: contentBytesDefault, max: contentBytesMax }),
    answerContentBytesMax,
  )
  const options = {
    include: listParameter(query, 'patterns') ?? [],
    excludeDirectories: listParameter(query, 'excludeDirs') ?? [],
    excludeHidden: flagParameter(query, 'excludeHidden', false),
    resultsMax: entriesMax,
  }
  const { entries, complete } = await walked(call, root, options, most)
  if (!complete) throw tooMuch(`there are more than ${most} files`)
  const names = await namesIn(call.lease.instance.guest)
  const files: FileWithText[] = []
  const texts: FileWithText[] = []
  const directories = new Set<string>()
  for (const entry of entries) {
    // With patterns, directories on the way to what fits them are not among the entries.
    let directory = entry.type === 'directory' ? entry.name : posix.dirname(entry.name)
    for (; directory !== '.' && !directories.has(directory); directory = posix.dirname(directory)) {
      directories.add(directory)
    }
    if (entry.type === 'directory') continue
    const view = fileView(entry, joined(root.shown, entry.name), posix.basename(entry.name), names)
    files.push(view)
    if (entry.type === 'file' || entry.type === 'symlink') texts.push(view)
  }
  if (withContent) await addTexts(call, texts, mostBytes)
  return json({
    path: root.shown,
    name: nameOf(root.absolute),
    recursive: true,
    files,
    subdirectories: [...directories]
      .sort()
      .map((path) => ({ path: joined(root.shown, path), name: posix.basename(path) })),
  })
}

/** Not `complete`: there are more files than `filesMost`, and the walk was left there. */
async function walked(
  call: SandboxCall,
  root: FilePath,
  options: WalkOptions,
  filesMost: number,
): Promise<{ entries: FileEntry[]; complete: boolean }> {
  const { guest } = call.lease.instance
  const entries: FileEntry[] = []
  let filesCount = 0
  try {
    const walk = guest.files.walk(root.absolute, { ...options, signal: call.request.signal })
    for (;;) {
      const next = await walk.next()
      if (next.done) return { entries, complete: !next.value.truncated }
      for (const entry of next.value) {
        entries.push(entry)
        if (entry.type !== 'directory') filesCount++
      }
      if (filesCount > filesMost) {
        await walk.return?.({ entries: 0, bytes: 0, skipped: 0, truncated: true })
        return { entries, complete: false }
      }
    }
  } catch (error) {
    throw asCode(fileError(error, 'open', root.absolute), 'bad_request')
  }
}

/** What is no regular file in the end has none; one that goes away meanwhile has none either. */
async function addTexts(call: SandboxCall, views: FileWithText[], bytesMax: number): Promise<void> {
  const { files } = call.lease.instance.guest
  let bytesLeft = bytesMax
  let next = 0
  const read = async (view: FileWithText) => {
    const opened = await files.read(view.path, { length: bytesLeft + 1 }).catch((error: unknown) => {
      if (PlatformError.is(error) && error.retryable) throw error
      return null
    })
    if (!opened) return
    const bytes = opened.entry.size > bytesLeft ? null : await collect(opened.body)
    bytesLeft -= bytes?.length ?? 0
    if (bytes === null || bytesLeft < 0) {
      if (bytes === null) await opened.body.cancel()
      throw tooMuch(`the files hold more than ${bytesMax} bytes`)
    }
    view.content = new TextDecoder('utf-8', { ignoreBOM: true }).decode(bytes)
  }
  const readOn = async () => {
    try {
      for (let view = views[next++]; view; view = views[next++]) await read(view)
    } catch (error) {
      next = views.length
      throw error
    }
  }
  const readers = await Promise.allSettled(Array.from({ length: readersMax }, readOn))
  for (const reader of readers) if (reader.status === 'rejected') throw reader.reason
}

function tooMuch(what: string): PlatformError {
  return new PlatformError(
    'unprocessable',
    `limit exceeded: ${what}; narrow it with patterns or excludeDirs, or raise maxFiles or maxBytes`,
  )
}
