import { givenPath } from '../text-files.ts'
import { pathInUrl, type ToolContext } from './context.ts'

export const grepMatchesMax = 100
/** More would fill a model's context with one line. */
const lineCharsMax = 500
const lineCharsBefore = 150

interface Match {
  path: string
  line: number
  column: number
  text: string
}

/** Lines below a directory that match, in the order of paths and lines. */
export async function grep(
  input: {
    query: string
    directory?: string | undefined
    caseSensitive?: boolean | undefined
    includePattern?: string | undefined
    excludePattern?: string | undefined
  },
  { lease, rest }: ToolContext,
  signal: AbortSignal,
): Promise<object> {
  const { absolute: directory } = givenPath(lease, input.directory || '.')
  const answer = await rest.json('GET', `/filesystem-content-search/${pathInUrl(directory)}`, {
    signal,
    query: {
      query: input.query,
      regex: true,
      caseSensitive: input.caseSensitive ?? false,
      filePattern: input.includePattern,
      excludePattern: input.excludePattern,
      excludeHidden: true,
      maxResults: grepMatchesMax,
    },
  })
  const matches = (answer.matches as Match[]).map(({ path, line, column, text }) => ({
    path,
    line,
    column,
    text: around(text, column),
  }))
  return {
    query: input.query,
    directory,
    matches,
    total: matches.length,
    truncated: answer.truncated === true,
  }
}

/** `column` counts bytes, which is near enough to say which part of a long line is meant. */
function around(text: string, column: number): string {
  if (text.length <= lineCharsMax) return text
  const start = Math.max(0, Math.min(column - 1 - lineCharsBefore, text.length - lineCharsMax))
  const end = start + lineCharsMax
  return `${start > 0 ? '...' : ''}${text.slice(start, end)}${end < text.length ? '...' : ''}`
}
