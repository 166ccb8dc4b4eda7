import { z } from 'zod'
import { PlatformError } from '../../../../errors.ts'
import { type McpTool, mcpTool } from '../../../mcp/index.ts'
import { applyEdit, rankBelow, reapplyEdit } from '../codegen.ts'
import { givenPath, readTextFile } from '../text-files.ts'
import type { ToolContext } from './context.ts'

const editRegionsMax = 50
const filesAtOnce = 4

const targetFile = z.string().min(1).describe('The file, absolute or relative to the working directory')
const applied = z.looseObject({
  success: z.boolean(),
  path: z.string(),
  originalContent: z.string(),
  updatedContent: z.string(),
  provider: z.string(),
  message: z.string(),
})

const hasProvider = ({ lease, codegen }: ToolContext) => codegen.isConfigured(lease)

/** Edits that a model of an outside account merges. */
export const applyTools: McpTool<ToolContext>[] = [
  mcpTool({
    name: 'codegenEditFile',
    title: 'Edit a file by a sketch',
    description:
      'Changes a file by a sketch of the new code, which a fast model merges into it. Give the changed lines in order ' +
      'with a little of what stands around them, and "// ... existing code ..." (in the comment style of the language) ' +
      'for every stretch that stays as it is; what you leave out without that comment may be deleted. To delete ' +
      'something, give what stands before and after it. All changes of one file go into one call.',
    input: z.object({
      targetFile,
      instructions: z.string().describe('One sentence: what the change is'),
      codeEdit: z.string().min(1).describe('Only the lines that change, with comments for what stays'),
    }),
    output: applied,
    annotations: { destructiveHint: true, openWorldHint: true },
    available: hasProvider,
    run: ({ targetFile: path, instructions, codeEdit }, { lease, codegen }: ToolContext, { signal }) =>
      applyEdit(lease, codegen, givenPath(lease, path), { edit: codeEdit, instructions }, signal),
  }),
  mcpTool({
    name: 'codegenRerank',
    title: 'Rank files by relevance',
    description:
      'The files below a directory that are relevant to a question or a task, best first, with their content: a first look ' +
      'at a codebase. A model of an outside account ranks them. The query may be short, or the whole conversation.',
    input: z.object({
      path: z.string().min(1).describe('The directory, absolute or relative to the working directory'),
      query: z.string().min(1).max(100_000),
      scoreThreshold: z.number().min(0).max(1).optional().describe('Leave out what is less relevant (0.5)'),
      tokenLimit: z.int().min(1).max(1_000_000).optional().describe('Of all contents together (30000)'),
      filePattern: z
        .string()
        .optional()
        .describe('Regular expression that paths have to match, such as .*\\.ts$'),
    }),
    output: z.looseObject({
      success: z.boolean(),
      files: z.array(z.looseObject({ path: z.string(), content: z.string(), score: z.number() })),
      message: z.string(),
    }),
    annotations: { readOnlyHint: true, openWorldHint: true },
    available: hasProvider,
    run: async ({ path, ...asked }, { lease, codegen }: ToolContext, { signal }) => ({
      ...(await rankBelow(lease, codegen, givenPath(lease, path), asked, signal)),
    }),
  }),
  mcpTool({
    name: 'codegenReapply',
    title: 'Apply the last edit again',
    description:
      'Merges the last codegenEditFile of a file once more, with the best model there is: for when the result was not ' +
      'what the edit said. Starts from the file as it was before that edit, unless it was changed since.',
    input: z.object({ targetFile }),
    output: applied,
    annotations: { destructiveHint: true, openWorldHint: true },
    run: ({ targetFile: path }, { lease, codegen }: ToolContext, { signal }) =>
      reapplyEdit(lease, codegen, givenPath(lease, path), signal),
  }),
  mcpTool({
    name: 'codegenParallelApply',
    title: 'Edit many places by one plan',
    description:
      `Makes a similar change in several places at once, at most ${editRegionsMax}: a model carries out the plan in each ` +
      'region. Files are independent of each other; the answer says of each whether it worked.',
    input: z.object({
      editPlan: z.string().min(1).describe('What is to change, and how, in every region'),
      editRegions: z
        .array(
          z.object({
            relativeWorkspacePath: z.string().min(1),
            startLine: z.int().min(1).max(1_000_000_000).optional().describe('From 1; default: the first'),
            endLine: z
              .int()
              .min(1)
              .max(1_000_000_000)
              .optional()
              .describe('Itself included; default: the last'),
          }),
        )
        .min(1)
        .max(editRegionsMax),
    }),
    output: z.looseObject({
      success: z.boolean().describe('Every file was changed'),
      results: z.array(z.looseObject({ path: z.string(), success: z.boolean(), message: z.string() })),
      message: z.string(),
    }),
    annotations: { destructiveHint: true, openWorldHint: true },
    run: (input, context: ToolContext, call) => applyPlan(input, context, call.signal, call.progress),
  }),
]

interface Region {
  relativeWorkspacePath: string
  startLine?: number | undefined
  endLine?: number | undefined
}

async function applyPlan(
  { editPlan, editRegions }: { editPlan: string; editRegions: Region[] },
  context: ToolContext,
  signal: AbortSignal,
  progress: ((made: { progress: number; total: number; message: string }) => void) | null,
): Promise<object> {
  context.codegen.provider(context.lease)
  const byFile = new Map<string, Region[]>()
  for (const region of editRegions) {
    const { startLine = 1, endLine = startLine } = region
    if (endLine < startLine) {
      throw new PlatformError(
        'bad_request',
        `editRegions: endLine ${endLine} lies before startLine ${startLine}`,
      )
    }
    const { absolute } = givenPath(context.lease, region.relativeWorkspacePath)
    byFile.set(absolute, [...(byFile.get(absolute) ?? []), region])
  }
  const waiting = [...byFile.values()]
  const total = waiting.length
  const results: { path: string; success: boolean; message: string }[] = []
  const worker = async () => {
    for (let regions = waiting.shift(); regions; regions = waiting.shift()) {
      const result = await applyToFile(editPlan, regions, context, signal)
      results.push(result)
      progress?.({ progress: results.length, total, message: result.path })
    }
  }
  await Promise.all(Array.from({ length: filesAtOnce }, worker))
  results.sort((a, b) => (a.path < b.path ? -1 : 1))
  const changed = results.filter(({ success }) => success).length
  return { success: changed === total, results, message: `${changed} of ${total} files changed` }
}

async function applyToFile(
  plan: string,
  regions: Region[],
  { lease, codegen }: ToolContext,
  signal: AbortSignal,
): Promise<{ path: string; success: boolean; message: string }> {
  const file = givenPath(lease, regions[0]!.relativeWorkspacePath)
  try {
    const { text } = await readTextFile(lease, file, signal)
    const edit = sketch(plan, regions, text.split('\n'), commentIn(file.absolute))
    const { message } = await applyEdit(lease, codegen, file, { edit, instructions: plan }, signal)
    return { path: file.shown, success: true, message }
  } catch (error) {
    signal.throwIfAborted()
    if (!PlatformError.is(error)) throw error
    return { path: file.shown, success: false, message: error.message }
  }
}

/** The regions as they are, each under the plan, for the model to rewrite where they stand. */
function sketch(plan: string, regions: Region[], lines: string[], comment: string): string {
  const keep = `${comment} ... existing code ...`
  const inOrder = [...regions].sort((a, b) => (a.startLine ?? 1) - (b.startLine ?? 1))
  const parts = inOrder.map(({ startLine = 1, endLine = lines.length }) => {
    const wanted = plan
      .split('\n')
      .map((line) => `${comment} CHANGE: ${line}`)
      .join('\n')
    return `${wanted}\n${lines.slice(startLine - 1, endLine).join('\n')}`
  })
  return [keep, ...parts.flatMap((part) => [part, keep])].join('\n')
}

/** How a line of comment begins in a file of this name. */
function commentIn(path: string): string {
  if (
    /\.(?:py|pyi|rb|sh|bash|zsh|ya?ml|toml|pl|r|jl|ex|exs|nix|tf|mk|cfg|conf)$|\/(?:Makefile|Dockerfile)$/i.test(
      path,
    )
  )
    return '#'
  return /\.(?:sql|lua|hs|elm|adb|ads)$/i.test(path) ? '--' : '//'
}
