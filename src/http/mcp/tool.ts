import { z } from 'zod'
import { PlatformError } from '../../errors.ts'
import { parseWith } from '../body.ts'

/** How a tool behaves, for clients that ask their user before some of them. */
export interface ToolAnnotations {
  readOnlyHint?: boolean
  /** Of a tool that changes things: it may also destroy some. */
  destructiveHint?: boolean
  idempotentHint?: boolean
  /** It reaches beyond the sandbox. */
  openWorldHint?: boolean
}

export interface ToolProgress {
  progress: number
  total?: number
  message?: string
}

/** One call of a tool. */
export interface ToolCall {
  /** Aborts when the client cancelled the call (`reason` is a CallCancelled) or went away. */
  readonly signal: AbortSignal
  /** Present when the client asked for it. A report that comes soon after another is dropped. */
  readonly progress: ((progress: ToolProgress) => void) | null
}

/** Why a call was aborted: its client no longer wants it. */
export class CallCancelled extends Error {}

export interface ToolDefinition<Context, Input extends z.ZodObject> {
  name: string
  title: string
  /** For the model that chooses among tools. */
  description: string
  input: Input
  output: z.ZodObject
  annotations: ToolAnnotations
  /** Not listed otherwise. A call of one that is not available still reaches `run`, which says what it lacks. */
  available?(context: Context): boolean
  /** The structured result. What it throws is told as the tool's failure, for the model to read. */
  run(input: z.output<Input>, context: Context, call: ToolCall): Promise<object>
}

export type McpTool<Context> = ToolDefinition<Context, z.ZodObject>

/** Identity, for inference of the input from the literal. */
export function mcpTool<Context, Input extends z.ZodObject>(
  definition: ToolDefinition<Context, Input>,
): McpTool<Context> {
  return definition as unknown as McpTool<Context>
}

/** A tool as `tools/list` shows it. */
export interface ListedTool {
  name: string
  title: string
  description: string
  inputSchema: object
  outputSchema: object
  annotations: ToolAnnotations & { title: string }
}

export function listedTool<Context>(tool: McpTool<Context>): ListedTool {
  const { name, title, description, annotations } = tool
  return {
    name,
    title,
    description,
    inputSchema: jsonSchema(tool.input, 'input'),
    outputSchema: jsonSchema(tool.output, 'output'),
    annotations: { title, ...annotations },
  }
}

function jsonSchema(schema: z.ZodObject, io: 'input' | 'output'): object {
  const { $schema: _, ...rest } = z.toJSONSchema(schema, { io })
  return rest
}

/**
 * Models send null for what they leave out. What there is no such argument of is refused: who sends it believes that it was
 * heeded. @throws bad_request that names each argument that is wrong
 */
export function parseArguments(schema: z.ZodObject, given: unknown): Record<string, unknown> {
  if (given !== undefined && (typeof given !== 'object' || given === null || Array.isArray(given))) {
    throw new PlatformError('bad_request', 'arguments: must be an object')
  }
  const present = Object.entries(given ?? {}).filter(([, value]) => value !== null)
  const known = Object.keys(schema.shape)
  const unknown = present.flatMap(([name]) => (known.includes(name) ? [] : JSON.stringify(name.slice(0, 40))))
  if (unknown.length > 0) {
    const there = known.length === 0 ? 'there are none' : `there are ${known.join(', ')}`
    throw new PlatformError(
      'bad_request',
      `arguments: ${unknown.slice(0, 10).join(', ')} is not known; ${there}`,
    )
  }
  return parseWith(schema, Object.fromEntries(present), 'arguments')
}
