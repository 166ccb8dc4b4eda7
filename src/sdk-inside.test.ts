import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from 'bun:test'
import { temporaryDataDir } from './platform.ts'
import { openTestClient, type TestClient, whyNot } from './test-client.ts'
import { bundledFiles, deploy } from './test-hosting.ts'

/** The unmodified client of the cloud inside of what is deployed: it finds everything with nothing configured, and may do what a workload may. */

setDefaultTimeout(120_000)

const reason = await whyNot()

describe.skipIf(reason !== '')('inside of what is deployed', () => {
  let client: TestClient

  beforeAll(async () => {
    client = await openTestClient({ dataDir: temporaryDataDir })
    const agent = await bundledFiles(`${import.meta.dir}/test-inside-agent.ts`)
    const notebook = await bundledFiles(
      `${import.meta.dir}/../fixtures/mcp-stdio/src/server.ts`,
      'type = "function"\n[runtime]\ntransport = "stdio"\n',
    )
    await deploy(client, 'functions', 'notebook', notebook)
    await deploy(client, 'agents', 'first', agent, {
      // What the platform says of itself goes before what its owner says.
      runtime: {
        envs: [
          { name: 'BL_API_KEY', value: 'not-this' },
          { name: 'BL_WORKSPACE', value: 'elsewhere' },
        ],
      },
    })
    await deploy(client, 'agents', 'second', agent)
  })
  afterAll(() => client?.[Symbol.asyncDispose]())

  async function ask(does: string, name = ''): Promise<Record<string, unknown>> {
    const answer = await client.request('/main/agents/first', {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ does, name }),
    })
    return (await answer.json()) as Record<string, unknown>
  }

  test('it knows where it is and who it is', async () => {
    expect(await ask('whoAmI')).toEqual({
      workspace: 'main',
      baseUrl: 'http://hutch.internal/v0',
      runUrl: 'http://hutch.internal',
      name: 'first',
      type: 'agent',
    })
  })

  test('it makes a sandbox, works in it, shows it, and removes it', async () => {
    expect(await ask('sandbox', 'workbench')).toEqual({
      logs: 'from the agent',
      createdBy: 'agent:first',
      token: true,
      session: true,
      snapshot: 'ready',
      tools: true,
    })
    expect((await client.request('/v0/sandboxes/workbench')).status).toBe(404)
  })

  test('it uses the tools of a function, and calls another agent', async () => {
    const { tools, added } = await ask('tools', 'notebook')
    expect(tools).toContain('add_note')
    expect(added).toMatchObject({ content: [{ text: 'note 1' }] })
    expect(await ask('agent', 'second')).toMatchObject({ status: 200, said: { name: 'second' } })
  })

  test('it reads no secrets, and changes nothing that is for people to decide', async () => {
    await client.SandboxInstance.create({ name: 'of-a-person', memory: 512 })
    const spec = JSON.stringify({
      metadata: { name: 'x' },
      spec: { runtime: { image: 'blaxel/base-image' } },
    })
    const attempts: string[][] = [
      ['GET', '/sandboxes/of-a-person?show_secrets=true'],
      ['GET', '/agents/first?show_secrets=true'],
      ['PUT', '/agents/first', spec],
      ['POST', '/agents', spec],
      ['DELETE', '/agents/second'],
      ['POST', '/functions', spec],
      ['DELETE', '/functions/notebook'],
      ['POST', '/applications', spec],
      ['POST', '/images?upload=true', JSON.stringify({ name: 'x', resourceType: 'agent' })],
      ['DELETE', '/sandboxes/of-a-person'],
      ['PUT', '/sandboxes/of-a-person', spec],
      ['POST', '/sandboxes/of-a-person/archive'],
      ['POST', '/service_accounts', '{"name": "x"}'],
      ['GET', '/service_accounts'],
      ['GET', '/users'],
      ['DELETE', '/workspaces/main'],
      ['GET', '/observability/logs?resourceType=agents&workloadIds=second'],
    ]
    const expected = Object.fromEntries(attempts.map(([method, path]) => [`${method} ${path}`, 403]))
    expect(await ask('statuses', JSON.stringify(attempts))).toEqual(expected)
    const allowed = [
      ['GET', '/agents/second'],
      ['GET', '/functions/notebook'],
      ['GET', '/sandboxes/of-a-person'],
    ]
    expect(Object.values(await ask('statuses', JSON.stringify(allowed)))).toEqual([200, 200, 200])
    expect((await client.request('/v0/sandboxes/of-a-person')).status).toBe(200)
  })
})
