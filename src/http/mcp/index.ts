export { LazyMcpBridge } from './lazy-bridge.ts'
export { McpServer } from './server.ts'
export { joinSessionId, sessionNotFound, splitSessionId } from './session-ids.ts'
export { CallCancelled, type McpTool, mcpTool, type ToolCall } from './tool.ts'
