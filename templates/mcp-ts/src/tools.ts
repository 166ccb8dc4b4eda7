import { McpServer } from '@modelcontextprotocol/sdk/server/mcp.js'
import { z } from 'zod'

/** The tools of this server. Names, descriptions and schemas are what an agent chooses by. */
export function createTools(): McpServer {
  const server = new McpServer({ name: '{{name}}', version: '0.1.0' })

  server.registerTool(
    'greet',
    { description: 'Greets somebody by name', inputSchema: { name: z.string().default('World') } },
    ({ name }) => text(`${process.env.GREETING ?? 'Hello'}, ${name}!`),
  )

  server.registerTool(
    'count_words',
    { description: 'Counts the words of a text', inputSchema: { text: z.string() } },
    ({ text: given }) => text(String(given.split(/\s+/).filter(Boolean).length)),
  )

  return server
}

function text(answer: string) {
  return { content: [{ type: 'text' as const, text: answer }] }
}
