import { z } from 'zod'
import type { Codegen } from '../../../codegen/index.ts'
import { PlatformError } from '../../../errors.ts'
import type { SandboxLease } from '../../../sandboxes/index.ts'
import { json, readJsonBody, type SandboxAnswer, type SandboxCall } from './call.ts'
import { requestedPath } from './files.ts'
import type { FilePath } from './paths.ts'
import { changeText } from './text-files.ts'

/** Of a file that a model merges into: about what the longest context takes. */
const mergedFileCharsMax = 2 * 1024 * 1024
/** A path is long, but no text. */
const modelCharsMax = 200

const applyBody = z.object({
  codeEdit: z.string().min(1),
  model: z.string().max(modelCharsMax).nullish(),
})

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
  codegen.provider(lease.env)
  const { codeEdit, model } = await readJsonBody(call, applyBody)
  const edit = { edit: codeEdit, ...(model ? { model } : {}) }
  return json(await applyEdit(lease, codegen, requestedPath(call, rest), edit, call.request.signal))
}

/** Merges an edit into a file, which is made when there is none. @throws bad_request without a key, unprocessable */
export async function applyEdit(
  lease: SandboxLease,
  codegen: Codegen,
  file: FilePath,
  edit: { edit: string; instructions?: string; model?: string },
  signal: AbortSignal,
): Promise<AppliedEdit> {
  const provider = codegen.provider(lease.env)
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
  const provider = codegen.provider(lease.env)
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
