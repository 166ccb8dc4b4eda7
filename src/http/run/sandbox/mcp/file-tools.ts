import { z } from 'zod'
import { PlatformError } from '../../../../errors.ts'
import { type McpTool, mcpTool } from '../../../mcp/index.ts'
import { fileOperation } from '../entries.ts'
import { changeText, givenPath } from '../text-files.ts'
import { pathInUrl, type ToolContext } from './context.ts'

const path = z
  .string()
  .min(1)
  .describe('Absolute, or relative to the working directory; ~ is the home directory')
const done = z.looseObject({ path: z.string(), message: z.string() })
const fileView = z.looseObject({
  path: z.string(),
  name: z.string(),
  permissions: z.string(),
  size: z.number(),
  lastModified: z.string(),
  owner: z.string(),
  group: z.string(),
})
export const directoryView = z.looseObject({
  path: z.string(),
  name: z.string(),
  files: z.array(fileView),
  subdirectories: z.array(z.looseObject({ path: z.string(), name: z.string() })),
})

export function routeOf(file: string): string {
  return `/filesystem/${pathInUrl(file)}`
}

export const fileTools: McpTool<ToolContext>[] = [
  mcpTool({
    name: 'fsGetWorkingDirectory',
    title: 'Get the working directory',
    description: 'The directory that relative paths of the file tools start from.',
    input: z.object({}),
    output: z.looseObject({ workingDirectory: z.string() }),
    annotations: { readOnlyHint: true },
    run: async (_, { lease }: ToolContext) => ({ workingDirectory: lease.workingDir }),
  }),
  mcpTool({
    name: 'fsListDirectory',
    title: 'List a directory',
    description: 'Files and directories in one directory.',
    input: z.object({ path }),
    output: directoryView,
    annotations: { readOnlyHint: true },
    async run(input, { rest }: ToolContext, { signal }) {
      const found = await rest.json('GET', routeOf(input.path), { signal })
      if (!Array.isArray(found.files)) throw wrongKind(input.path, 'a file', 'fsReadFile')
      return found
    },
  }),
  mcpTool({
    name: 'fsReadFile',
    title: 'Read a file',
    description: 'The whole content of a text file. For a part of a large one: codegenReadFileRange.',
    input: z.object({ path }),
    output: fileView.extend({ content: z.string() }),
    annotations: { readOnlyHint: true },
    async run(input, { rest }: ToolContext, { signal }) {
      const found = await rest.json('GET', routeOf(input.path), { signal })
      if (Array.isArray(found.files)) throw wrongKind(input.path, 'a directory', 'fsListDirectory')
      return found
    },
  }),
  mcpTool({
    name: 'fsWriteFile',
    title: 'Write a file',
    description: 'Makes or replaces a file, or makes a directory. Missing parent directories are made.',
    input: z.object({
      path,
      content: z.string().optional().describe('Default: empty'),
      permissions: z.string().optional().describe('Octal, such as "0644"'),
      isDirectory: z.boolean().optional().describe('Make a directory'),
    }),
    output: done,
    annotations: { destructiveHint: true, idempotentHint: true },
    run: ({ path: file, ...body }, { rest }: ToolContext, { signal }) =>
      rest.json('PUT', routeOf(file), { body, signal }),
  }),
  mcpTool({
    name: 'fsEditFile',
    title: 'Edit a file',
    description:
      'Replaces text in a file. oldString must occur exactly once, so include enough around it, or set replaceAll.',
    input: z.object({
      path,
      oldString: z
        .string()
        .min(1)
        .describe('Exactly as it stands in the file, spaces and line ends included'),
      newString: z.string(),
      replaceAll: z.boolean().optional().describe('Replace every occurrence'),
    }),
    output: done.extend({ replacements: z.int() }),
    annotations: { destructiveHint: true },
    run: (input, context: ToolContext, { signal }) => edit(input, context, signal),
  }),
  mcpTool({
    name: 'fsDeleteFileOrDirectory',
    title: 'Delete a file or directory',
    description: 'Removes a file, an empty directory, or with recursive a directory and all that is in it.',
    input: z.object({
      path,
      isDirectory: z.boolean().optional().describe('What is expected there; anything else is left alone'),
      recursive: z.boolean().optional(),
    }),
    output: done,
    annotations: { destructiveHint: true },
    async run(input, { lease, rest }: ToolContext, { signal }) {
      if (input.isDirectory !== undefined) {
        const { files } = lease.instance.guest
        const { absolute } = givenPath(lease, input.path)
        const { type } = await fileOperation(files.stat(absolute, { follow: false }), 'stat', absolute)
        if ((type === 'directory') !== input.isDirectory) {
          throw new PlatformError(
            'unprocessable',
            `remove ${absolute}: it is a ${type}, but isDirectory is ${input.isDirectory}`,
          )
        }
      }
      return rest.json('DELETE', routeOf(input.path), { query: { recursive: input.recursive }, signal })
    },
  }),
]

function wrongKind(given: string, kind: string, tool: string): PlatformError {
  return new PlatformError('unprocessable', `path: '${given.slice(0, 200)}' is ${kind}, use ${tool}`)
}

async function edit(
  input: { path: string; oldString: string; newString: string; replaceAll?: boolean | undefined },
  { lease }: ToolContext,
  signal: AbortSignal,
): Promise<object> {
  const { oldString, newString } = input
  let replacements = 0
  const file = givenPath(lease, input.path)
  await changeText(lease, file, signal, (content) => {
    if (oldString === newString) {
      throw new PlatformError('unprocessable', 'newString: is the same as oldString, nothing would change')
    }
    const parts = content.split(oldString)
    replacements = parts.length - 1
    if (replacements === 0) {
      throw new PlatformError(
        'unprocessable',
        `oldString: does not occur in ${file.absolute}: read the file again, spaces and line ends count`,
      )
    }
    if (replacements > 1 && !input.replaceAll) {
      throw new PlatformError(
        'unprocessable',
        `oldString: occurs ${replacements} times in ${file.absolute}: include more around it, or set replaceAll`,
      )
    }
    return parts.join(newString)
  })
  return { path: file.shown, message: 'File edited successfully', replacements }
}
