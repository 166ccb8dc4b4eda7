import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'bun:test'
import { existsSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import type { Client } from '@modelcontextprotocol/sdk/client/index.js'
import { ScriptedProviders } from '../../../../codegen/test-providers.ts'
import { makeSandboxApi } from '../../test-machine.ts'
import { called, McpBench, refused } from './test-client.ts'

/** Fast-apply, by the routes and by the tools, against providers that are scripted. */

let providers: ScriptedProviders
let bench: McpBench
let client: Client

beforeAll(async () => {
  providers = new ScriptedProviders()
  bench = new McpBench(makeSandboxApi({ privateTargets: [providers.target] }))
  client = await bench.client()
})

afterAll(async () => {
  await bench[Symbol.asyncDispose]()
  await providers[Symbol.asyncDispose]()
})

beforeEach(() => {
  providers.requests.length = 0
  providers.fail = null
  providers.finishReason = 'stop'
  providers.merge = (code, edit) => `${code}${edit}\n`
})

const inside = (path: string) => join(bench.root, path)
const use = (provider: 'Morph' | 'Relace' | null, more: Record<string, string> = {}) => {
  bench.machine.env = { HOME: '/home', ...(provider ? providers.env(provider) : {}), ...more }
}
const put = (path: string, body: object) =>
  fetch(`${bench.url}/codegen/fastapply/${path}`, { method: 'PUT', body: JSON.stringify(body) })

describe.each(['Relace', 'Morph'] as const)('%s', (provider) => {
  test('merges an edit into a file, and the answer has both texts', async () => {
    use(provider)
    writeFileSync(inside('/work/app.js'), 'one\n')
    const response = await put('app.js', { codeEdit: 'two' })
    expect(response.status).toBe(200)
    expect(await response.json()).toEqual({
      success: true,
      path: 'app.js',
      originalContent: 'one\n',
      updatedContent: 'one\ntwo\n',
      provider,
      message: 'Code edit applied successfully',
    })
    expect(readFileSync(inside('/work/app.js'), 'utf8')).toBe('one\ntwo\n')
    // A file that is not there yet is made, and an absolute path is one.
    expect((await put('%2Fmade%2Fnew.ts', { codeEdit: 'first', model: 'my-model' })).status).toBe(200)
    expect(readFileSync(inside('/made/new.ts'), 'utf8')).toBe('first\n')
    expect(providers.requests.at(-1)!.body.model).toBe('my-model')
    await Bun.file(inside('/made/new.ts')).delete()
  })

  test('is told what the edit is about, and asked again with its best model', async () => {
    use(provider)
    await client.listTools()
    writeFileSync(inside('/work/again.js'), 'base\n')
    const edited = await called(client, 'codegenEditFile', {
      targetFile: 'again.js',
      instructions: 'Say hello',
      codeEdit: 'hello',
    })
    expect(edited).toMatchObject({ success: true, provider, updatedContent: 'base\nhello\n' })
    expect(JSON.stringify(providers.requests[0]!.body)).toContain('Say hello')
    providers.merge = (code, edit) => `${edit} ${code}`
    expect(await called(client, 'codegenReapply', { targetFile: 'again.js' })).toMatchObject({
      originalContent: 'base\nhello\n',
      updatedContent: 'hello base\n',
    })
    const models = providers.requests.map(({ body }) => body.model)
    expect(models).toEqual(
      provider === 'Morph' ? ['morph-v2', 'morph-v3-large'] : ['relace-apply-3', 'relace-apply-3'],
    )
    expect(await refused(client, 'codegenReapply', { targetFile: 'never.js' })).toContain('no edit of')
  })

  test('that fails leaves the file alone and says why, without the key', async () => {
    use(provider)
    const key = Object.values(providers.env(provider))[0]!
    writeFileSync(inside('/work/safe.js'), 'precious\n')
    const failures: [() => Response, string][] = [
      [
        () => Response.json({ error: { message: `quota of ${key} used up` } }, { status: 429 }),
        '429: quota of ***',
      ],
      [() => new Response('oops', { status: 500 }), `${provider} answered 500`],
      [() => new Response('<html>'), 'not JSON'],
      [() => Response.json({}), 'without a merged text'],
      [() => Response.redirect('http://169.254.169.254/', 302), `${provider} answered 302`],
    ]
    for (const [failure, message] of failures) {
      providers.fail = failure
      const response = await put('safe.js', { codeEdit: 'x' })
      const { error } = (await response.json()) as { error: string }
      expect([response.status, error]).toEqual([422, expect.stringContaining(message)])
      expect(error).not.toContain(key)
    }
    providers.fail = null
    providers.merge = () => '  \n'
    expect(((await (await put('safe.js', { codeEdit: 'x' })).json()) as { error: string }).error).toContain(
      'empty text',
    )
    use(provider, { [provider === 'Morph' ? 'MORPH_API_KEY' : 'RELACE_API_KEY']: 'wrong' })
    expect(((await (await put('safe.js', { codeEdit: 'x' })).json()) as { error: string }).error).toContain(
      `refused the key in ${provider.toUpperCase()}_API_KEY`,
    )
    expect(readFileSync(inside('/work/safe.js'), 'utf8')).toBe('precious\n')
  })

  test('carries out a plan in many files, of each of which is said whether it worked', async () => {
    use(provider)
    await client.listTools()
    for (const name of ['a', 'b']) writeFileSync(inside(`/work/${name}.plan`), `1\n2\n3\n`)
    providers.merge = (code, edit) =>
      edit.includes('// CHANGE: double it\n2\n') ? code.replace('2', '4') : code
    const result = await called(client, 'codegenParallelApply', {
      editPlan: 'double it',
      editRegions: [
        { relativeWorkspacePath: 'a.plan', startLine: 2, endLine: 2 },
        { relativeWorkspacePath: 'missing.plan' },
        { relativeWorkspacePath: 'b.plan', startLine: 2, endLine: 2 },
        { relativeWorkspacePath: './a.plan', startLine: 3, endLine: 3 },
      ],
    })
    expect(result).toMatchObject({
      success: false,
      message: '2 of 3 files changed',
      results: [
        { path: 'a.plan', success: true },
        { path: 'b.plan', success: true },
        {
          path: 'missing.plan',
          success: false,
          message: 'open /work/missing.plan: no such file or directory',
        },
      ],
    })
    expect(readFileSync(inside('/work/a.plan'), 'utf8')).toBe('1\n4\n3\n')
    expect(existsSync(inside('/work/missing.plan'))).toBe(false)
    expect(providers.requests).toHaveLength(2)
  })
})

test('Morph breaking off in the middle is no merge', async () => {
  use('Morph')
  writeFileSync(inside('/work/long.js'), 'all of it\n')
  providers.finishReason = 'length'
  expect((await put('long.js', { codeEdit: 'x' })).status).toBe(422)
  expect(readFileSync(inside('/work/long.js'), 'utf8')).toBe('all of it\n')
})

test('where both keys are set Relace is asked', async () => {
  bench.machine.env = { ...providers.env('Morph'), ...providers.env('Relace') }
  writeFileSync(inside('/work/both.js'), '')
  expect(await (await put('both.js', { codeEdit: 'x' })).json()).toMatchObject({ provider: 'Relace' })
})

test('without a key every way says which variables there are, and nothing is sent', async () => {
  use(null)
  const { tools } = await client.listTools()
  expect(tools.map(({ name }) => name)).not.toContain('codegenEditFile')
  const response = await put('app.js', { codeEdit: 'x' })
  expect(response.status).toBe(400)
  expect(((await response.json()) as { error: string }).error).toStartWith('codegen tools are not configured')
  for (const [name, args] of [
    ['codegenEditFile', { targetFile: 'app.js', instructions: '', codeEdit: 'x' }],
    ['codegenReapply', { targetFile: 'app.js' }],
    ['codegenParallelApply', { editPlan: 'x', editRegions: [{ relativeWorkspacePath: 'app.js' }] }],
  ] as const) {
    const said = await refused(client, name, args)
    expect(said).toContain('RELACE_API_KEY')
    expect(said).toContain('MORPH_API_KEY')
  }
  expect(providers.requests).toEqual([])
})

test('an address that the operator did not open is not asked, wherever it is written', async () => {
  const closed = new McpBench(makeSandboxApi())
  try {
    closed.machine.env = { HOME: '/home', ...providers.env('Relace') }
    const response = await fetch(`${closed.url}/codegen/fastapply/x.js`, {
      method: 'PUT',
      body: JSON.stringify({ codeEdit: 'x' }),
    })
    expect(response.status).toBe(400)
    expect(((await response.json()) as { error: string }).error).toContain('privateTargets')
    expect(providers.requests).toEqual([])
  } finally {
    await closed[Symbol.asyncDispose]()
  }
})
