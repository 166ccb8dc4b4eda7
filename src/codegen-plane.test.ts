import { afterAll, beforeAll, expect, test } from 'bun:test'
import type { SandboxInstance as Sandbox } from '@blaxel/core'
import { Client } from '@modelcontextprotocol/sdk/client/index.js'
import { StreamableHTTPClientTransport } from '@modelcontextprotocol/sdk/client/streamableHttp.js'
import { ScriptedProviders } from './codegen/test-providers.ts'
import { temporaryDataDir } from './platform.ts'
import { openTestClient, type TestClient } from './test-client.ts'

/** The whole way of edits and ranking: the unmodified clients, this platform, a real guest, providers that are scripted. */

let cloud: TestClient
let providers: ScriptedProviders
let configured: Sandbox
let plain: Sandbox

beforeAll(async () => {
  providers = new ScriptedProviders()
  cloud = await openTestClient({
    dataDir: temporaryDataDir,
    runtime: 'process',
  })
  const { SandboxInstance } = cloud
  const envs = Object.entries(providers.env('Relace')).map(([name, value]) => ({ name, value }))
  configured = await SandboxInstance.create({ name: 'configured', envs })
  plain = await SandboxInstance.create({ name: 'plain' })
}, 120_000)

afterAll(async () => {
  await cloud?.[Symbol.asyncDispose]()
  await providers?.[Symbol.asyncDispose]()
}, 120_000)

async function homeOf(sandbox: Sandbox): Promise<string> {
  return (await sandbox.process.exec({ command: 'pwd', waitForCompletion: true })).stdout!.trim()
}

test('codegen.fastapply merges into a file, which codegen.reranking then finds', async () => {
  const home = await homeOf(configured)
  await configured.fs.write(`${home}/app/area.ts`, 'export const pi = 3.14\n')
  const applied = await configured.codegen.fastapply(`${home}/app/area.ts`, 'export const tau = 6.28')
  expect(applied).toMatchObject({
    success: true,
    provider: 'Relace',
    originalContent: 'export const pi = 3.14\n',
  })
  const merged = 'export const pi = 3.14\nexport const tau = 6.28\n'
  expect(await configured.fs.read(`${home}/app/area.ts`)).toBe(merged)
  await configured.fs.write(`${home}/app/other.md`, 'nothing of that')
  providers.score = (content) => (content.includes('tau') ? 0.8 : 0.2)
  const ranked = await configured.codegen.reranking(`${home}/app`, 'circles', 0.5, 1000, '.*\\.(ts|md)$')
  expect(ranked).toMatchObject({ success: true, files: [{ content: merged, score: 0.8 }] })
})

test('without a key both are refused once, and not tried again', async () => {
  const before = providers.requests.length
  const refusal = { status: 400, message: expect.stringContaining('RELACE_API_KEY') }
  await expect(plain.codegen.fastapply('/tmp/x.ts', 'x')).rejects.toMatchObject(refusal)
  await expect(plain.codegen.reranking('/tmp', 'x')).rejects.toMatchObject(refusal)
  expect(providers.requests).toHaveLength(before)
})

test('the tools of a sandbox are those its environment makes possible', async () => {
  const names = async (sandbox: Sandbox) => {
    const client = new Client({ name: 'test', version: '1' })
    const transport = new StreamableHTTPClientTransport(new URL(`${sandbox.metadata.url}/mcp`), {
      requestInit: { headers: { authorization: `Bearer ${cloud.platform.credentials.apiKey}` } },
    })
    await client.connect(transport)
    const { tools } = await client.listTools()
    await client.close()
    return new Set(tools.map(({ name }) => name))
  }
  const [all, fewer] = [await names(configured), await names(plain)]
  expect([...all].filter((name) => !fewer.has(name)).sort()).toEqual(['codegenEditFile', 'codegenRerank'])
  expect(fewer.has('codegenCodebaseSearch')).toBe(true)
})
