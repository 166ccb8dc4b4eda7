import { serve } from '@hono/node-server'
import { WebStandardStreamableHTTPServerTransport } from '@modelcontextprotocol/sdk/server/webStandardStreamableHttp.js'
import { Hono } from 'hono'
import { createTools } from './tools.ts'

const app = new Hono()

// Each request stands for itself, so that any instance can answer it.
app.all('/mcp', async (c) => {
  const transport = new WebStandardStreamableHTTPServerTransport({ enableJsonResponse: true })
  await createTools().connect(transport)
  return transport.handleRequest(c.req.raw)
})

// The platform says where to listen.
const hostname = process.env.HOST ?? '127.0.0.1'
const port = Number(process.env.PORT ?? 1338)
serve({ fetch: app.fetch, hostname, port }, () =>
  console.log(`the MCP server listens on ${hostname}:${port}/mcp`),
)
