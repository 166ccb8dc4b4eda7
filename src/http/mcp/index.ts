export { type McpAnswer, McpServer, type McpServerOptions, protocolVersions } from './server.ts'
export { CallCancelled, type McpTool, mcpTool, type ToolCall } from './tool.ts'
