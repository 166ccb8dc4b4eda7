import { serve } from '@hono/node-server'
import { Hono } from 'hono'
import { stream } from 'hono/streaming'
import { agent } from './agent.ts'

const app = new Hono()

app.get('/', (c) => c.text('Ask me: POST {"inputs": "..."} to this address.\n'))

app.post('/', async (c) => {
  const body: { inputs?: unknown; input?: unknown } = await c.req.json().catch(() => ({}))
  // Some clients write one word, some the other.
  const { input, inputs = input } = body
  if (typeof inputs !== 'string') return c.json({ error: 'inputs must be a text: {"inputs": "..."}' }, 400)
  c.header('content-type', 'text/plain; charset=utf-8')
  return stream(c, async (answer) => {
    for await (const piece of agent(inputs)) await answer.write(piece)
  })
})

// The platform says where to listen.
const hostname = process.env.HOST ?? '127.0.0.1'
const port = Number(process.env.PORT ?? 1338)
serve({ fetch: app.fetch, hostname, port }, () => console.log(`the agent listens on ${hostname}:${port}`))
