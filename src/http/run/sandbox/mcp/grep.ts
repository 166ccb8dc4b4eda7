import { PlatformError } from '../../../../errors.ts'
import type { SandboxLease } from '../../../../sandboxes/index.ts'
import { fileError } from '../entries.ts'

export const grepMatchesMax = 100
/** More would fill a model's context with one line. */
const lineCharsMax = 500
const lineCharsBefore = 150
const toolDirectories = 'node_modules vendor .git dist build target __pycache__ .venv .next coverage'.split(
  ' ',
)

interface Match {
  path: string
  line: number
  column: number
  text: string
}

/** Lines below the working directory that match, in the order of paths and lines. */
export async function grep(
  input: {
    query: string
    caseSensitive?: boolean | undefined
    includePattern?: string | undefined
    excludePattern?: string | undefined
  },
  { instance, workingDir }: SandboxLease,
  signal: AbortSignal,
): Promise<object> {
  const matches: Match[] = []
  const search = instance.guest.files.search(workingDir, {
    pattern: input.query,
    syntax: 'regex',
    ignoreCase: !input.caseSensitive,
    ...(input.includePattern ? { include: [input.includePattern] } : {}),
    ...(input.excludePattern ? { exclude: [input.excludePattern] } : {}),
    excludeDirectories: toolDirectories,
    excludeHidden: true,
    resultsMax: grepMatchesMax,
    signal,
  })
  let truncated = false
  try {
    for (;;) {
      const { done, value } = await search.next()
      if (done) {
        truncated = value.truncated
        break
      }
      for (const { path, line, column, text } of value) {
        matches.push({ path, line, column, text: around(text, column) })
      }
    }
  } catch (error) {
    throw named(fileError(error, 'open', workingDir))
  }
  matches.sort((a, b) => (a.path === b.path ? a.line - b.line : a.path < b.path ? -1 : 1))
  return { query: input.query, matches, total: matches.length, truncated }
}

/** The guest's fields go by other names than the tool's. */
function named(error: unknown): unknown {
  if (!PlatformError.is(error) || error.code !== 'bad_request') return error
  const message = error.message.replace(/^\w+(?=:)/, (field) => toolFields[field] ?? field)
  return new PlatformError('bad_request', message, { cause: error })
}

const toolFields: Record<string, string> = {
  pattern: 'query',
  include: 'includePattern',
  exclude: 'excludePattern',
}

/** `column` counts bytes, which is near enough to say which part of a long line is meant. */
function around(text: string, column: number): string {
  if (text.length <= lineCharsMax) return text
  const start = Math.max(0, Math.min(column - 1 - lineCharsBefore, text.length - lineCharsMax))
  const end = start + lineCharsMax
  return `${start > 0 ? '...' : ''}${text.slice(start, end)}${end < text.length ? '...' : ''}`
}
