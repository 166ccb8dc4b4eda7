export { McpServer, type McpServerOptions } from './server.ts'
export { CallCancelled, type McpTool, mcpTool, type ToolCall } from './tool.ts'
export { type McpAnswer, protocolVersions } from './wire.ts'
