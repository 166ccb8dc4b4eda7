import type { McpTool } from '../../../mcp/index.ts'
import { applyTools } from './apply-tools.ts'
import { codegenTools } from './codegen-tools.ts'
import type { ToolContext } from './context.ts'
import { fileTools } from './file-tools.ts'
import { processTools } from './process-tools.ts'

/** In the order in which they are listed. */
export const tools: McpTool<ToolContext>[] = [...processTools, ...fileTools, ...codegenTools, ...applyTools]
