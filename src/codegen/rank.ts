import type { Guest } from '../spec/guest.ts'
import type { CodegenProvider, SourceText } from './providers.ts'
import type { CodebaseSearch } from './search/codebase.ts'
import { readSource, type Source, sourcesBelow } from './search/sources.ts'

/** What one request to a provider carries at most. */
const rankedBytesMax = 2 * 1024 * 1024
const rankedFilesMax = 400
const readsAtOnce = 8
/** Of code, near enough for a limit. */
const bytesPerToken = 4

export interface RankQuestion {
  query: string
  /** Absolute, without a slash at the end. */
  directory: string
  /** Where the .gitignore is, if there is one. Absolute. */
  project: string
  /** Of the answer's contents. */
  tokensMax: number
  /** 0 to 1. */
  scoreMin: number
  /** Of a path relative to the directory. */
  wanted: (path: string) => boolean
  signal: AbortSignal
}

export interface RankedText extends SourceText {
  score: number
}

/**
 * Files below a directory that a provider's model finds relevant, best first, as many as fit the tokens. Where there are
 * more files than a request carries, the search of this machine chooses those that are asked about.
 */
export async function rankFiles(
  guest: Guest,
  provider: CodegenProvider,
  search: CodebaseSearch,
  { query, directory, project, tokensMax, scoreMin, wanted, signal }: RankQuestion,
): Promise<RankedText[]> {
  const { sources } = await sourcesBelow(guest.files, { root: directory, project }, signal)
  const below = directory === '/' ? 1 : directory.length + 1
  const fitting = sources.filter(({ path }) => wanted(path.slice(below)))
  const chosen = exceeds(fitting)
    ? await mostLikely(guest, search, { query, directory, project }, fitting, signal)
    : fitting
  const files = await readAll(guest, chosen, signal)
  if (files.length === 0) return []
  const contents = new Map(files.map(({ path, content }) => [path, content]))
  const ranked: RankedText[] = []
  let bytesLeft = tokensMax * bytesPerToken
  for (const { path, score } of await provider.rank(query, files, { tokens: tokensMax, signal })) {
    const content = contents.get(path)
    if (content === undefined || score < scoreMin || content.length > bytesLeft) continue
    bytesLeft -= content.length
    contents.delete(path)
    ranked.push({ path, content, score })
  }
  return ranked
}

function exceeds(sources: Source[]): boolean {
  return sources.length > rankedFilesMax || sources.reduce((sum, { size }) => sum + size, 0) > rankedBytesMax
}

async function mostLikely(
  guest: Guest,
  search: CodebaseSearch,
  { query, directory, project }: Pick<RankQuestion, 'query' | 'directory' | 'project'>,
  fitting: Source[],
  signal: AbortSignal,
): Promise<Source[]> {
  const byPath = new Map(fitting.map((source) => [source.path, source]))
  const question = { query, directories: [directory], project, resultsMax: byPath.size, perFileMax: 1 }
  const { found } = await search.search(guest, question, { signal })
  const chosen: Source[] = []
  let bytes = 0
  for (const { path } of found) {
    const source = byPath.get(path)
    if (!source || bytes + source.size > rankedBytesMax) continue
    if (chosen.length === rankedFilesMax) break
    bytes += source.size
    chosen.push(source)
  }
  return chosen
}

async function readAll(guest: Guest, sources: Source[], signal: AbortSignal): Promise<SourceText[]> {
  const files: SourceText[] = []
  const waiting = [...sources]
  const reader = async () => {
    for (let source = waiting.shift(); source; source = waiting.shift()) {
      const bytes = await readSource(guest.files, source.path, signal)
      if (bytes) files.push({ path: source.path, content: new TextDecoder().decode(bytes) })
    }
  }
  await Promise.all(Array.from({ length: readsAtOnce }, reader))
  return files.sort((a, b) => (a.path < b.path ? -1 : 1))
}
