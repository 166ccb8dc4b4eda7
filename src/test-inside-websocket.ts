/** For tests: an MCP server as they were made before streamable HTTP, on the cloud's own transport over WebSocket. */
import { BlaxelMcpServerTransport } from '@blaxel/core'
import { McpServer } from '@modelcontextprotocol/sdk/server/mcp.js'
import { z } from 'zod'

const server = new McpServer({ name: 'old', version: '1.0.0' })
server.registerTool('shout', { inputSchema: { text: z.string() } }, ({ text }) => ({
  content: [{ type: 'text' as const, text: text.toUpperCase() }],
}))
await server.connect(new BlaxelMcpServerTransport())
