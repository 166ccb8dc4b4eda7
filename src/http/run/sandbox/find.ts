import { posix } from 'node:path'
import { PlatformError } from '../../../errors.ts'
import { FuzzyQuery } from '../../../lib/fuzzy.ts'
import type { LineMatch, TreeFilter } from '../../../spec/guest.ts'
import { json, type SandboxAnswer, type SandboxCall } from './call.ts'
import { asCode, fileError } from './entries.ts'
import { requestedPath } from './files.ts'
import { longJson } from './long-json.ts'
import { countParameter, excludedDirectories, flagParameter, limitParameter, listParameter } from './query.ts'

const foundMax = 100_000
const matchesMax = 10_000
/** Of the texts in one answer. */
const matchBytesMax = 32 * 1024 * 1024
const contextLinesMax = 100
const queryCharactersMax = 4096

interface Found {
  path: string
  type: 'file' | 'directory'
}

/** Files and directories by name. */
export async function findFiles(call: SandboxCall, rest: string): Promise<SandboxAnswer> {
  const { query } = call
  const { absolute } = requestedPath(call, rest)
  const type = query.get('type') || null
  if (type !== null && type !== 'file' && type !== 'directory') {
    throw new PlatformError('bad_request', `type: '${type.slice(0, 20)}' is neither file nor directory`)
  }
  const resultsMax = limitParameter(query, 'maxResults', { fallback: 20, max: foundMax })
  const include = listParameter(query, 'patterns') ?? []
  const filter = {
    include,
    excludeDirectories: excludedDirectories(query),
    excludeHidden: flagParameter(query, 'excludeHidden', true),
    types: type === null ? ('all' as const) : type === 'file' ? ('files' as const) : ('directories' as const),
    depthMax: countParameter(query, 'maxDepth', { fallback: 0, max: 4096 }),
  }
  const matches: Found[] = []
  // The directory itself is one of the directories, unless a name was asked for.
  if (type === 'directory' && include.length === 0) matches.push({ path: '.', type })
  const left = resultsMax - matches.length
  const { truncated } = await walked(call, absolute, { ...filter, resultsMax: left }, (found) => {
    matches.push(found)
  })
  return longJson({ matches, total: matches.length, ...(truncated ? { truncated } : {}) })
}

async function walked(
  call: SandboxCall,
  path: string,
  options: TreeFilter & { types?: 'all' | 'files' | 'directories'; depthMax?: number; resultsMax?: number },
  onFound: (found: Found) => void,
): Promise<{ truncated: boolean }> {
  const { files } = call.lease.instance.guest
  const walk = files.walk(path, { ...options, details: false, signal: call.request.signal })
  try {
    for (;;) {
      const next = await walk.next()
      if (next.done) return next.value
      for (const { name, type } of next.value) {
        onFound({ path: name, type: type === 'directory' ? 'directory' : 'file' })
      }
    }
  } catch (error) {
    throw asCode(fileError(error, 'open', path), 'bad_request')
  }
}

/**
 * Files by letters of their paths. The query is `query`; the client sends none and puts what was typed, if anything,
 * in the path: what of it does not exist is the query, below what does.
 */
export async function searchFiles(call: SandboxCall, rest: string): Promise<SandboxAnswer> {
  const { query } = call
  const { absolute } = requestedPath(call, rest)
  const asked = query.get('query')
  if (asked !== null && asked.length > queryCharactersMax) {
    throw new PlatformError('bad_request', `query: must have at most ${queryCharactersMax} characters`)
  }
  const target = asked === null ? await existing(call, absolute) : { directory: absolute, rest: asked }
  const resultsMax = limitParameter(query, 'maxResults', { fallback: 20, max: foundMax })
  const filter = {
    include: listParameter(query, 'patterns') ?? [],
    excludeDirectories: excludedDirectories(query),
    excludeHidden: flagParameter(query, 'excludeHidden', true),
  }
  const fuzzy = new FuzzyQuery(target.rest)
  let best: (Found & { score: number })[] = []
  const { truncated } = await walked(
    call,
    target.directory,
    { ...filter, resultsMax: foundMax * 10 },
    (found) => {
      const score = fuzzy.score(found.path)
      if (score === null) return
      best.push({ path: found.path, score, type: found.type })
      // Kept short while it grows, so that a tree of any size fits.
      if (best.length > 2 * resultsMax + 1000) best = best.sort(byScore).slice(0, resultsMax)
    },
  )
  const matches = best.sort(byScore).slice(0, resultsMax)
  return json({ matches, total: matches.length, ...(truncated ? { truncated } : {}) })
}

function byScore(a: { path: string; score: number }, b: { path: string; score: number }): number {
  return b.score - a.score || a.path.length - b.path.length || (a.path < b.path ? -1 : 1)
}

/** The deepest directory of a path that there is, and what is left of the path. */
async function existing(call: SandboxCall, path: string): Promise<{ directory: string; rest: string }> {
  const { files } = call.lease.instance.guest
  for (let directory = path; directory !== '/'; directory = posix.dirname(directory)) {
    const entry = await files.stat(directory).catch((error: unknown) => {
      if (PlatformError.is(error) && error.retryable) throw error
      return null
    })
    if (entry?.type === 'directory') return { directory, rest: path.slice(directory.length + 1) }
  }
  return { directory: '/', rest: path.slice(1) }
}

/** Lines of files that contain a text or, with `regex=true`, fit an expression; by path and line. */
export async function searchContent(call: SandboxCall, rest: string): Promise<SandboxAnswer> {
  const { query } = call
  const { absolute } = requestedPath(call, rest)
  const pattern = query.get('query') ?? ''
  if (pattern === '') throw new PlatformError('bad_request', 'query: is missing: send the text to look for')
  const resultsMax = limitParameter(query, 'maxResults', { fallback: 100, max: matchesMax })
  const contextLines = countParameter(query, 'contextLines', { fallback: 0, max: contextLinesMax })
  const options = {
    pattern,
    syntax: flagParameter(query, 'regex', false) ? ('regex' as const) : ('literal' as const),
    ignoreCase: !flagParameter(query, 'caseSensitive', false),
    resultsMax,
    contextBefore: contextLines,
    contextAfter: contextLines,
    include: listParameter(query, 'filePattern') ?? [],
    exclude: listParameter(query, 'excludePattern') ?? [],
    excludeDirectories: excludedDirectories(query),
    excludeHidden: flagParameter(query, 'excludeHidden', false),
    binary: flagParameter(query, 'includeBinary', false),
  }
  const { found, truncated } = await searched(call, absolute, options)
  found.sort((a, b) => (a.path === b.path ? a.line - b.line : a.path < b.path ? -1 : 1))
  const matches = found.map((match) => ({
    path: match.path === '' ? posix.basename(absolute) : match.path,
    line: match.line,
    column: match.column,
    text: match.text,
    ...(contextLines > 0 ? { context: [...match.before, match.text, ...match.after].join('\n') } : {}),
  }))
  return json({ query: pattern, matches, total: matches.length, ...(truncated ? { truncated } : {}) })
}

async function searched(
  call: SandboxCall,
  path: string,
  options: Parameters<SandboxCall['lease']['instance']['guest']['files']['search']>[1],
): Promise<{ found: LineMatch[]; truncated: boolean }> {
  const found: LineMatch[] = []
  let bytes = 0
  const search = call.lease.instance.guest.files.search(path, { ...options, signal: call.request.signal })
  try {
    for (;;) {
      const next = await search.next()
      if (next.done) return { found, truncated: next.value.truncated }
      for (const match of next.value) {
        found.push(match)
        bytes += match.text.length + match.before.join().length + match.after.join().length
      }
      if (bytes > matchBytesMax) return { found, truncated: true }
    }
  } catch (error) {
    throw asCode(fileError(error, 'open', path), 'bad_request')
  } finally {
    await search.return({ entries: 0, bytes: 0, skipped: 0, truncated: true })
  }
}
