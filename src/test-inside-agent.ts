/** For tests: an agent on the unmodified client of the cloud, which does what it is asked for and says what came of it. */
import { createServer } from 'node:http'
import { blAgent, getTool, SandboxInstance, settings } from '@blaxel/core'

interface Asked {
  does: keyof typeof deeds
  name: string
}

const deeds = {
  async whoAmI() {
    const { workspace, baseUrl, runUrl } = settings
    return { workspace, baseUrl, runUrl, name: process.env.BL_NAME, type: process.env.BL_TYPE }
  },

  async sandbox(name: string) {
    const sandbox = await SandboxInstance.create({ name, memory: 512 })
    await sandbox.fs.write('/tmp/note', 'from the agent')
    const { logs } = await sandbox.process.exec({ command: 'cat /tmp/note', waitForCompletion: true })
    const preview = await sandbox.previews.create({
      metadata: { name: 'web' },
      spec: { port: 3000, public: false },
    })
    const token = await preview.tokens.create(new Date(Date.now() + 60_000))
    const { sessions } = { sessions: await sandbox.sessions.create({}) }
    const snapshot = await sandbox.snapshots.create('before')
    const tools = await getTool(`sandboxes/${name}`)
    const createdBy = sandbox.metadata?.createdBy
    await sandbox.delete()
    return {
      logs,
      createdBy,
      token: token.value !== '',
      session: sessions.token !== '',
      snapshot: snapshot.status,
      tools: tools.some((tool) => tool.name === 'processExecute'),
    }
  },

  async tools(name: string) {
    const tools = await getTool(name)
    const add = tools.find((tool) => tool.name === 'add_note')
    return { tools: tools.map((tool) => tool.name), added: await add?.call({ text: 'from the agent' }) }
  },

  async agent(name: string) {
    const agent = blAgent(name)
    const answer = await agent.call(agent.url, { does: 'whoAmI' })
    return { status: answer.status, said: await answer.json() }
  },

  /** What comes of requests that are none of its business. */
  async statuses(name: string) {
    const ask = async ([method = '', path = '', body]: string[]) => {
      const headers = { ...settings.headers, 'content-type': 'application/json' }
      const answer = await fetch(`${settings.baseUrl}${path}`, {
        method,
        headers: headers as Record<string, string>,
        ...(body === undefined ? {} : { body }),
      })
      await answer.arrayBuffer()
      return [`${method} ${path}`, answer.status]
    }
    return Object.fromEntries(await Promise.all((JSON.parse(name) as string[][]).map(ask)))
  },
}

createServer(async (request, response) => {
  const chunks: Buffer[] = []
  for await (const chunk of request) chunks.push(chunk as Buffer)
  const { does, name } = JSON.parse(Buffer.concat(chunks).toString()) as Asked
  const said = await deeds[does](name).catch((error: unknown) => ({
    failed: error instanceof Error ? (error.stack ?? error.message) : error,
  }))
  response.setHeader('content-type', 'application/json')
  response.end(JSON.stringify(said))
}).listen(Number(process.env.PORT), process.env.HOST)
