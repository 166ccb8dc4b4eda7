import { PlatformError } from '../../../../errors.ts'
import type { ToolCall } from '../../../mcp/index.ts'
import { fileError } from '../entries.ts'
import { isBelow, shownPath } from '../paths.ts'
import { givenPath, readTextFile } from '../text-files.ts'
import type { ToolContext } from './context.ts'

const resultsMax = 12
const resultsOfOneFileMax = 3
const contentLinesMax = 60
const contentCharsMax = 4000

/** Ranked pieces of the files below some directories, with their text. */
export async function searchCodebase(
  { query, targetDirectories }: { query: string; targetDirectories?: string[] | undefined },
  { lease, codegen }: ToolContext,
  call: ToolCall,
): Promise<object> {
  const given = targetDirectories?.length ? targetDirectories : ['.']
  const directories = given.map((directory) => givenPath(lease, directory).absolute)
  const distinct = directories.filter(
    (directory) => !directories.some((other) => other !== directory && isBelow(directory, other)),
  )
  const { guest } = lease.instance
  const question = {
    query,
    directories: [...new Set(distinct)],
    project: lease.workingDir,
    resultsMax,
    perFileMax: resultsOfOneFileMax,
  }
  const progress = (read: number, total: number) =>
    call.progress?.({ progress: read, total, message: 'reading files' })
  const { found, files, complete } = await codegen.search
    .search(guest, question, { signal: call.signal, progress })
    .catch((error: unknown) => {
      throw fileError(error, 'open', directories.join(', '))
    })
  const results: object[] = []
  for (const { path, startLine, endLine, symbols, score } of found) {
    const file = { absolute: path, shown: path }
    const text = await readTextFile(lease, file, call.signal).then(
      (read) => read.text,
      (error) => {
        if (PlatformError.is(error) && !error.retryable) return null
        throw error
      },
    )
    // Gone since it was indexed.
    if (text === null) continue
    const last = Math.min(endLine, startLine + contentLinesMax - 1)
    const content = text
      .split('\n')
      .slice(startLine - 1, last)
      .join('\n')
      .slice(0, contentCharsMax)
    results.push({ path: shownPath(path, lease.workingDir), startLine, endLine, symbols, score, content })
  }
  return { results, files, complete, message: summary(results.length, files, complete) }
}

function summary(results: number, files: number, complete: boolean): string {
  const searched = `${results} ${results === 1 ? 'result' : 'results'} in ${files} ${files === 1 ? 'file' : 'files'}`
  return complete
    ? searched
    : `${searched}; not all files were searched: name a smaller directory, or search again`
}
