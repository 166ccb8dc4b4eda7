import { z } from 'zod'
import type { Codegen } from '../../../codegen/index.ts'
import { PlatformError } from '../../../errors.ts'
import { compileLinePattern, Matcher, PatternError } from '../../../lib/patterns/index.ts'
import type { SandboxLease } from '../../../sandboxes/index.ts'
import { parseWith } from '../../body.ts'
import { json, readJsonBody, type SandboxAnswer, type SandboxCall } from './call.ts'
import { fileOperation } from './entries.ts'
import { requestedPath } from './files.ts'
import { type FilePath, shownPath } from './paths.ts'
import { changeText } from './text-files.ts'

/** Of a file that a model merges into: about what the longest context takes. */
const mergedFileCharsMax = 2 * 1024 * 1024
const modelCharsMax = 200
const rankingQueryCharsMax = 100_000
const tokenLimitDefault = 30_000
const tokenLimitMax = 1_000_000
const scoreThresholdDefault = 0.5

const applyBody = z.lazy(() =>
  z.object({
    codeEdit: z.string().min(1),
    model: z.string().max(modelCharsMax).nullish(),
  }),
)

export interface AppliedEdit {
  success: true
  path: string
  originalContent: string
  updatedContent: string
  provider: string
  message: string
}

export async function fastApply(call: SandboxCall, codegen: Codegen, rest: string): Promise<SandboxAnswer> {
  const { lease } = call
  // Whatever else is wrong, without a key nothing can be done.
  codegen.provider(lease)
  const { codeEdit, model } = await readJsonBody(call, applyBody)
  const edit = { edit: codeEdit, ...(model ? { model } : {}) }
  return json(await applyEdit(lease, codegen, requestedPath(call, rest), edit, call.request.signal))
}

const rankingQuery = z.lazy(() =>
  z.object({
    query: z.string().min(1).max(rankingQueryCharsMax),
    scoreThreshold: z.coerce.number().min(0).max(1).optional(),
    tokenLimit: z.coerce.number().int().min(1).max(tokenLimitMax).optional(),
    filePattern: z.string().optional(),
  }),
)

export interface Ranking {
  success: true
  files: { path: string; content: string; score: number }[]
  message: string
}

export async function rerank(call: SandboxCall, codegen: Codegen, rest: string): Promise<SandboxAnswer> {
  const { lease, query } = call
  codegen.provider(lease)
  const given = Object.fromEntries([...query].filter(([, value]) => value !== ''))
  const asked = parseWith(rankingQuery, given, 'query')
  return json(await rankBelow(lease, codegen, requestedPath(call, rest), asked, call.request.signal))
}

/** Files below a directory by their relevance to a question. @throws bad_request without a key, not_found, unprocessable */
export async function rankBelow(
  lease: SandboxLease,
  codegen: Codegen,
  directory: FilePath,
  asked: z.output<typeof rankingQuery>,
  signal: AbortSignal,
): Promise<Ranking> {
  const { query, scoreThreshold = scoreThresholdDefault, tokenLimit = tokenLimitDefault, filePattern } = asked
  const question = {
    query,
    directory: directory.absolute,
    project: lease.workingDir,
    tokensMax: tokenLimit,
    scoreMin: scoreThreshold,
    wanted: pathFilter(filePattern),
    signal,
  }
  const ranking = codegen.rank(lease.instance.guest, lease, question)
  const ranked = await fileOperation(ranking, 'open', directory.absolute)
  const files = ranked.map(({ path, ...file }) => ({ path: shownPath(path, lease.workingDir), ...file }))
  const count = files.length === 1 ? '1 relevant file' : `${files.length} relevant files`
  return { success: true, files, message: `Found ${count}` }
}

/** Linear in the path, whatever the pattern: it runs on the platform's own thread. @throws bad_request */
function pathFilter(pattern: string | undefined): (path: string) => boolean {
  if (!pattern) return () => true
  try {
    const matcher = new Matcher(compileLinePattern(pattern, { syntax: 'regex', ignoreCase: false }).program)
    return (path) => matcher.test(path)
  } catch (error) {
    if (!(error instanceof PatternError)) throw error
    throw new PlatformError('bad_request', `filePattern: ${error.message}`)
  }
}

/** Merges an edit into a file, which is made when there is none. @throws bad_request without a key, unprocessable */
export async function applyEdit(
  lease: SandboxLease,
  codegen: Codegen,
  file: FilePath,
  edit: { edit: string; instructions?: string; model?: string },
  signal: AbortSignal,
): Promise<AppliedEdit> {
  const provider = codegen.provider(lease)
  const merge = (code: string) => {
    checkSize(code, file)
    return provider.apply({ code, ...edit, signal })
  }
  const { before, after } = await changeText(lease, file, signal, merge, { missing: '' })
  const { edit: text, instructions } = edit
  codegen.remember(lease.instance.guest, file.absolute, { before, after, edit: text, instructions })
  return applied(file, before, after, provider.name, 'Code edit applied successfully')
}

/** The last edit of a file once more, by the provider's best model. @throws unprocessable when there was none */
export async function reapplyEdit(
  lease: SandboxLease,
  codegen: Codegen,
  file: FilePath,
  signal: AbortSignal,
): Promise<AppliedEdit> {
  const provider = codegen.provider(lease)
  const { guest } = lease.instance
  const last = codegen.lastEdit(guest, file.absolute)
  if (!last) {
    throw new PlatformError(
      'unprocessable',
      `targetFile: no edit of ${file.absolute} is remembered: make it with codegenEditFile`,
    )
  }
  const { edit, instructions } = last
  const merge = (code: string) => {
    checkSize(code, file)
    // Whoever changed the file meanwhile did so on purpose: then the edit goes on top.
    const base = code === last.after ? last.before : code
    return provider.apply({ code: base, edit, ...(instructions ? { instructions } : {}), best: true, signal })
  }
  const { before, after } = await changeText(lease, file, signal, merge)
  codegen.remember(guest, file.absolute, { before: last.before, after, edit, instructions })
  return applied(file, before, after, provider.name, 'Code edit applied again')
}

function applied(
  file: FilePath,
  originalContent: string,
  updatedContent: string,
  provider: string,
  message: string,
): AppliedEdit {
  return { success: true, path: file.shown, originalContent, updatedContent, provider, message }
}

function checkSize(code: string, file: FilePath): void {
  if (code.length <= mergedFileCharsMax) return
  throw new PlatformError(
    'unprocessable',
    `${file.absolute} is longer than ${mergedFileCharsMax} characters, the most a model is given: use fsEditFile`,
  )
}
