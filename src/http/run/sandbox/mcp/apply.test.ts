import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'bun:test'
import { existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import type { Client } from '@modelcontextprotocol/sdk/client/index.js'
import { ScriptedProviders } from '../../../../codegen/test-providers.ts'
import { makeSandboxApi } from '../../test-machine.ts'
import type { SandboxApi } from '../api.ts'
import { called, McpBench, refused } from './test-client.ts'

/** Fast-apply, by the routes and by the tools, against providers that are scripted. */

let providers: ScriptedProviders
let bench: McpBench
let client: Client
let api: SandboxApi

beforeAll(async () => {
  providers = new ScriptedProviders()
  api = makeSandboxApi({ privateTargets: [providers.target] })
  bench = new McpBench(api)
  client = await bench.client()
})

afterAll(async () => {
  api.codegen.close()
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
    writeFileSync(inside('/project/app.js'), 'one\n')
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
    expect(readFileSync(inside('/project/app.js'), 'utf8')).toBe('one\ntwo\n')
    // A file that is not there yet is made, and an absolute path is one.
    expect((await put('%2Fmade%2Fnew.ts', { codeEdit: 'first', model: 'my-model' })).status).toBe(200)
    expect(readFileSync(inside('/made/new.ts'), 'utf8')).toBe('first\n')
    expect(providers.requests.at(-1)!.body.model).toBe('my-model')
    await Bun.file(inside('/made/new.ts')).delete()
  })

  test('is told what the edit is about, and asked again with its best model', async () => {
    use(provider)
    await client.listTools()
    writeFileSync(inside('/project/again.js'), 'base\n')
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
    writeFileSync(inside('/project/safe.js'), 'precious\n')
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
    expect(readFileSync(inside('/project/safe.js'), 'utf8')).toBe('precious\n')
  })

  test('carries out a plan in many files, of each of which is said whether it worked', async () => {
    use(provider)
    await client.listTools()
    for (const name of ['a.js', 'b.py']) writeFileSync(inside(`/project/plan-${name}`), `1\n2\n3\n`)
    providers.merge = (code, edit) =>
      /^(\/\/|#) CHANGE: double it\n2\n\1 \.\.\. existing/m.test(edit) ? code.replace('2', '4') : code
    const result = await called(client, 'codegenParallelApply', {
      editPlan: 'double it',
      editRegions: [
        { relativeWorkspacePath: 'plan-a.js', startLine: 2, endLine: 2 },
        { relativeWorkspacePath: 'plan-missing.js' },
        { relativeWorkspacePath: 'plan-b.py', startLine: 2, endLine: 2 },
        { relativeWorkspacePath: './plan-a.js', startLine: 3, endLine: 3 },
      ],
    })
    expect(result).toMatchObject({
      success: false,
      message: '2 of 3 files changed',
      results: [
        { path: 'plan-a.js', success: true },
        { path: 'plan-b.py', success: true },
        {
          path: 'plan-missing.js',
          success: false,
          message: 'open /project/plan-missing.js: no such file or directory',
        },
      ],
    })
    expect(readFileSync(inside('/project/plan-a.js'), 'utf8')).toBe('1\n4\n3\n')
    expect(existsSync(inside('/project/plan-missing.js'))).toBe(false)
    expect(providers.requests).toHaveLength(2)
  })
})

describe.each(['Relace', 'Morph'] as const)('ranking by %s', (provider) => {
  const files = {
    'rank/cart.ts': 'add to cart',
    'rank/deep/pay.ts': 'pay the cart',
    'rank/pay.md': 'how to pay',
  }
  const rank = async (query: Record<string, string>, path = 'rank') => {
    const response = await fetch(`${bench.url}/codegen/reranking/${path}?${new URLSearchParams(query)}`)
    const body = (await response.json()) as Record<string, unknown>
    return { ...body, status: response.status } as Record<string, unknown>
  }

  beforeAll(() => {
    for (const [path, content] of Object.entries(files)) {
      mkdirSync(dirname(inside(`/project/${path}`)), { recursive: true })
      writeFileSync(inside(`/project/${path}`), content)
    }
    providers.score = (content) => (content.includes('pay the') ? 0.9 : content.includes('pay') ? 0.6 : 0.1)
  })

  test('gives the relevant files with their content, best first', async () => {
    use(provider)
    expect(await rank({ query: 'payment' })).toEqual({
      status: 200,
      success: true,
      files: [
        { path: 'rank/deep/pay.ts', content: 'pay the cart', score: 0.9 },
        { path: 'rank/pay.md', content: 'how to pay', score: 0.6 },
      ],
      message: 'Found 2 relevant files',
    })
    expect(await rank({ query: 'payment', scoreThreshold: '0' })).toMatchObject({
      message: 'Found 3 relevant files',
    })
    expect((await rank({ query: 'payment', scoreThreshold: '0', tokenLimit: '4' })).files).toHaveLength(1)
    expect((await rank({ query: 'payment', filePattern: '.*\\.md$' })).files).toHaveLength(1)
    expect(await rank({ query: 'payment', filePattern: '^none' })).toMatchObject({ files: [] })
    await client.listTools()
    expect(await called(client, 'codegenRerank', { path: 'rank', query: 'payment' })).toMatchObject({
      message: 'Found 2 relevant files',
    })
  })

  test('refuses what makes no sense, before anyone is asked', async () => {
    use(provider)
    expect(await rank({})).toMatchObject({ status: 400, error: 'query: missing: must be a string' })
    expect(await rank({ query: 'x', tokenLimit: '0' })).toMatchObject({ status: 400 })
    expect(await rank({ query: 'x', scoreThreshold: 'high' })).toMatchObject({ status: 400 })
    expect(await rank({ query: 'x', filePattern: '(' })).toMatchObject({ status: 400 })
    expect(await rank({ query: 'x' }, 'none')).toMatchObject({ status: 404 })
    expect(providers.requests).toEqual([])
  })

  test('of more files than a request carries, asks about those that the words point to', async () => {
    use(provider)
    mkdirSync(inside('/project/many'), { recursive: true })
    for (let at = 0; at < 450; at++)
      writeFileSync(inside(`/project/many/noise${at}.ts`), `export const noise = ${at}`)
    writeFileSync(inside('/project/many/signal.ts'), 'export function pay() { /* pay the bill */ }')
    expect((await rank({ query: 'pay the bill' }, 'many')).files).toMatchObject([{ path: 'many/signal.ts' }])
    const { body } = providers.requests[0]!
    const sent = (body.codebase ?? body.documents) as unknown[]
    expect(sent).toHaveLength(1)
    rmSync(inside('/project/many'), { recursive: true })
  })
})

test('what is written into the file while it is merged is merged too, not lost', async () => {
  use('Relace')
  writeFileSync(inside('/project/shared.js'), 'one\n')
  providers.fail = async () => {
    if (providers.requests.length === 1) writeFileSync(inside('/project/shared.js'), 'one\nby another\n')
    return null
  }
  const answer = (await (await put('shared.js', { codeEdit: 'two' })).json()) as Record<string, unknown>
  expect(answer.originalContent).toBe('one\nby another\n')
  expect(readFileSync(inside('/project/shared.js'), 'utf8')).toBe('one\nby another\ntwo\n')
  providers.fail = async () => {
    writeFileSync(inside('/project/shared.js'), `${providers.requests.length}\n`)
    return null
  }
  expect((await put('shared.js', { codeEdit: 'two' })).status).toBe(409)
  expect(readFileSync(inside('/project/shared.js'), 'utf8')).toBe(`${providers.requests.length}\n`)
})

test('Morph breaking off in the middle is no merge', async () => {
  use('Morph')
  writeFileSync(inside('/project/long.js'), 'all of it\n')
  providers.finishReason = 'length'
  expect((await put('long.js', { codeEdit: 'x' })).status).toBe(422)
  expect(readFileSync(inside('/project/long.js'), 'utf8')).toBe('all of it\n')
})

test('where both keys are set Relace is asked', async () => {
  bench.machine.env = { ...providers.env('Morph'), ...providers.env('Relace') }
  writeFileSync(inside('/project/both.js'), '')
  expect(await (await put('both.js', { codeEdit: 'x' })).json()).toMatchObject({ provider: 'Relace' })
})

test('without a key every way says which variables there are, and nothing is sent', async () => {
  use(null)
  const { tools } = await client.listTools()
  expect(tools.map(({ name }) => name)).not.toContain('codegenEditFile')
  expect((await fetch(`${bench.url}/codegen/reranking/%2Fwork?query=x`)).status).toBe(400)
  const response = await put('app.js', { codeEdit: 'x' })
  expect(response.status).toBe(400)
  expect(((await response.json()) as { error: string }).error).toStartWith('codegen tools are not configured')
  for (const [name, args] of [
    ['codegenEditFile', { targetFile: 'app.js', instructions: '', codeEdit: 'x' }],
    ['codegenReapply', { targetFile: 'app.js' }],
    ['codegenRerank', { path: '.', query: 'x' }],
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
