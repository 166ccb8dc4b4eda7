import { z } from 'zod'
import { PlatformError } from '../../../../errors.ts'
import { type McpTool, mcpTool } from '../../../mcp/index.ts'
import { givenPath, readTextFile } from '../text-files.ts'
import { pathInUrl, type ToolContext } from './context.ts'
import { directoryView, routeOf } from './file-tools.ts'
import { grep, grepMatchesMax } from './grep.ts'
import { searchCodebase } from './search.ts'

/** Lines of one codegenReadFileRange. */
const rangeLinesMax = 250
const pathMatchesMax = 10

const targetFile = z.string().min(1).describe('The file, absolute or relative to the working directory')

export const codegenTools: McpTool<ToolContext>[] = [
  mcpTool({
    name: 'codegenCodebaseSearch',
    title: 'Search the codebase',
    description:
      'Finds the pieces of code that a question in plain words is about, best first: definitions, methods, sections. ' +
      'It compares words, their stems and related words (login for authentication) with names, paths, comments and code; ' +
      'it does not understand either, so name things as the code might. For exact text use codegenGrepSearch.',
    input: z.object({
      query: z.string().min(1).max(2000).describe('A question, or the words that matter'),
      targetDirectories: z
        .array(z.string().min(1))
        .max(20)
        .optional()
        .describe('Only below these, absolute or relative; default: the working directory'),
    }),
    output: z.looseObject({
      results: z.array(
        z.looseObject({
          path: z.string(),
          startLine: z.int(),
          endLine: z.int(),
          symbols: z.array(z.string()).describe('What is defined there, outermost first'),
          score: z.number().describe('1 for the best'),
          content: z.string(),
        }),
      ),
      files: z.int().describe('That were searched'),
      complete: z.boolean().describe('False when there were more files than were searched'),
      message: z.string(),
    }),
    annotations: { readOnlyHint: true },
    run: (input, context: ToolContext, call) => searchCodebase(input, context, call),
  }),
  mcpTool({
    name: 'codegenFileSearch',
    title: 'Search for a file',
    description:
      'Finds files and directories by letters of their paths, in order, as one types when one knows part of a name ' +
      `("srvtest" for src/server.test.ts). At most ${pathMatchesMax}, best first.`,
    input: z.object({
      query: z.string().min(1).max(4096),
      directory: z.string().optional().describe('Where to look; default: the working directory'),
    }),
    output: z.looseObject({
      matches: z.array(
        z.looseObject({
          path: z.string().describe('Relative to the directory'),
          type: z.string().describe('file or directory'),
          score: z.number(),
        }),
      ),
      total: z.int(),
    }),
    annotations: { readOnlyHint: true },
    run: ({ query, directory }, { rest }: ToolContext, { signal }) =>
      rest.json('GET', `/filesystem-search/${pathInUrl(directory || '.')}`, {
        query: { query, maxResults: pathMatchesMax },
        signal,
      }),
  }),
  mcpTool({
    name: 'codegenGrepSearch',
    title: 'Search for text',
    description:
      'Finds the lines below a directory that match a regular expression, as ripgrep has them: fast and exact. ' +
      `Escape what is meant as itself. At most ${grepMatchesMax} lines; hidden files, binaries and directories made by ` +
      'tools (node_modules, dist, ...) are left out.',
    input: z.object({
      query: z.string().min(1).max(4096).describe('The regular expression'),
      directory: z
        .string()
        .optional()
        .describe('Where to look, absolute or relative; default: the working directory'),
      caseSensitive: z.boolean().optional().describe('Default: false'),
      includePattern: z.string().max(1000).optional().describe('Glob of files to search, such as *.ts'),
      excludePattern: z.string().max(1000).optional().describe('Glob of files to leave out'),
    }),
    output: z.looseObject({
      query: z.string(),
      directory: z.string().describe('Where it looked'),
      matches: z.array(
        z.looseObject({
          path: z.string().describe('Relative to the directory'),
          line: z.int(),
          column: z.int().describe('In bytes, from 1'),
          text: z.string().describe('The line; a long one around the match'),
        }),
      ),
      total: z.int().describe('Of the matches given'),
      truncated: z.boolean().describe('There are more'),
    }),
    annotations: { readOnlyHint: true },
    run: (input, context: ToolContext, { signal }) => grep(input, context, signal),
  }),
  mcpTool({
    name: 'codegenListDir',
    title: 'List a directory',
    description: 'Files and directories in one directory: a quick look before anything more targeted.',
    input: z.object({
      relativeWorkspacePath: z
        .string()
        .describe('Relative to the working directory, or absolute; . for itself'),
    }),
    output: directoryView,
    annotations: { readOnlyHint: true },
    async run(input, { rest }: ToolContext, { signal }) {
      const found = await rest.json('GET', routeOf(input.relativeWorkspacePath), { signal })
      if (Array.isArray(found.files)) return found
      throw new PlatformError(
        'unprocessable',
        `relativeWorkspacePath: '${input.relativeWorkspacePath.slice(0, 200)}' is a file`,
      )
    },
  }),
  mcpTool({
    name: 'codegenReadFileRange',
    title: 'Read a range of lines',
    description: `Lines of a text file, at most ${rangeLinesMax} at a time; the answer says how many there are.`,
    input: z.object({
      targetFile,
      startLineOneIndexed: z.int().min(1).max(1_000_000_000).describe('First line, from 1'),
      endLineOneIndexedInclusive: z.int().min(1).max(1_000_000_000).describe('Last line, itself included'),
    }),
    output: z.looseObject({
      path: z.string(),
      content: z.string(),
      startLine: z.int(),
      endLine: z.int().describe('startLine - 1 when there are no such lines'),
      totalLines: z.int(),
      truncated: z.boolean().describe('More lines were asked for than are given at a time'),
    }),
    annotations: { readOnlyHint: true },
    async run(input, { lease }: ToolContext, { signal }) {
      const { startLineOneIndexed: start, endLineOneIndexedInclusive: end } = input
      if (end < start) {
        throw new PlatformError(
          'bad_request',
          `endLineOneIndexedInclusive: ${end} lies before startLineOneIndexed, ${start}`,
        )
      }
      const file = givenPath(lease, input.targetFile)
      const { text } = await readTextFile(lease, file, signal)
      const lines = text.split('\n')
      // What ends in a line break has no further, empty line.
      if (lines.at(-1) === '') lines.pop()
      const last = Math.min(end, start + rangeLinesMax - 1, lines.length)
      return {
        path: file.shown,
        content: lines.slice(start - 1, last).join('\n'),
        startLine: start,
        endLine: Math.max(last, start - 1),
        totalLines: lines.length,
        truncated: Math.min(end, lines.length) > last,
      }
    },
  }),
]
