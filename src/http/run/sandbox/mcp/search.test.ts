import { afterAll, beforeAll, expect, test } from 'bun:test'
import { mkdirSync, rmSync, symlinkSync, utimesSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import type { Client } from '@modelcontextprotocol/sdk/client/index.js'
import { makeSandboxApi } from '../../test-machine.ts'
import { called, McpBench, refused } from './test-client.ts'

/** The search of a codebase as a client sees it, with the thread behind it. */

let bench: McpBench
let client: Client
const api = makeSandboxApi()

beforeAll(async () => {
  bench = new McpBench(api)
  client = await bench.client()
  await client.listTools()
  write('src/auth/session.ts', 'export function openSession(user: User): Session {\n  return sign(user)\n}\n')
  write(
    'src/cart/total.ts',
    '/** What the customer has to pay. */\nexport function sum(items: Item[]) {\n  return 0\n}\n',
  )
  write('web/cart.py', 'def render_cart(cart):\n    return template(cart)\n')
  write('node_modules/cart/index.js', 'export function cart() {}\n')
  write('.git/cart.js', 'export function cart() {}\n')
  write('cart.png', 'cart cart cart')
  write('.gitignore', '/web/generated/\n*.out.ts\n')
  write('web/.gitignore', 'made.*\n!made.cart.py\n')
  write('web/generated/cart.ts', 'cart cart cart')
  write('web/cart.out.ts', 'cart cart cart')
  write('web/made.ts', 'cart cart cart')
  write('web/pages/made.cart.py', 'def render_made_cart(cart):\n    return template(cart)\n')
  write('cart.bin2', 'cart\0cart')
  write('cart.min.js', 'function cart(){}')
  mkdirSync(join(bench.root, 'elsewhere'))
  writeFileSync(join(bench.root, 'elsewhere', 'cart.ts'), 'export const secretCart = 1\n')
  symlinkSync(join(bench.root, 'elsewhere'), join(bench.root, 'project', 'linked'))
})

afterAll(async () => {
  api.codegen.close()
  await bench[Symbol.asyncDispose]()
})

function write(path: string, text: string): void {
  const file = join(bench.root, 'project', path)
  mkdirSync(dirname(file), { recursive: true })
  writeFileSync(file, text)
}

interface Result {
  path: string
  startLine: number
  endLine: number
  symbols: string[]
  content: string
}

async function search(query: string, more: Record<string, unknown> = {}) {
  const answer = await called(client, 'codegenCodebaseSearch', { query, ...more })
  const results = answer.results as Result[]
  return { ...answer, results, paths: results.map(({ path }) => path) }
}

test('a question is answered with pieces of code, and nothing that is hidden, linked or made by tools', async () => {
  const { results, files, complete, message } = (await search('how much does the customer pay')) as Awaited<
    ReturnType<typeof search>
  > & { files: number; complete: boolean; message: string }
  expect(results[0]).toMatchObject({
    path: 'src/cart/total.ts',
    startLine: 1,
    symbols: ['sum'],
    content: expect.stringContaining('What the customer has to pay.'),
  })
  expect({ files, complete, message }).toEqual({
    files: 4,
    complete: true,
    message: expect.stringContaining('in 4 files'),
  })
  const cart = await search('cart')
  expect(new Set(cart.paths)).toEqual(new Set(['web/cart.py', 'web/pages/made.cart.py', 'src/cart/total.ts']))
})

test('directories narrow the search, and may lie outside of the working directory', async () => {
  expect((await search('cart', { targetDirectories: ['web'] })).paths.toSorted()).toEqual([
    'web/cart.py',
    'web/pages/made.cart.py',
  ])
  expect((await search('cart', { targetDirectories: ['/elsewhere'] })).paths).toEqual(['/elsewhere/cart.ts'])
  expect((await search('cart', { targetDirectories: ['web', '.', 'src/cart'] })).paths).toHaveLength(3)
  expect(await refused(client, 'codegenCodebaseSearch', { query: 'x', targetDirectories: ['none'] })).toBe(
    'open /project/none: no such file or directory',
  )
})

test('what changed is found as it is now, and only that is read again', async () => {
  await search('cart')
  const { files } = bench.machine.guest
  const read: string[] = []
  const plainRead = files.read
  files.read = (path, range) => {
    if (range && !path.endsWith('/.gitignore')) read.push(path)
    return plainRead.call(files, path, range)
  }
  try {
    await search('cart')
    expect(read).toEqual([])
    write('web/cart.py', 'def render_basket(basket):\n    return template(basket)\n')
    utimesSync(join(bench.root, 'project/web/cart.py'), new Date(), new Date(Date.now() + 5000))
    write('web/fresh.py', 'def fresh_cart():\n    pass\n')
    expect((await search('basket')).paths).toEqual(['web/cart.py'])
    expect(read.sort()).toEqual(['/project/web/cart.py', '/project/web/fresh.py'])
    rmSync(join(bench.root, 'project/web/fresh.py'))
    expect((await search('fresh')).paths).toEqual([])
  } finally {
    files.read = plainRead
  }
})

test('when the thread goes the next search begins anew', async () => {
  expect((await search('customer')).paths).toEqual(['src/cart/total.ts'])
  api.codegen.close()
  expect((await search('customer')).paths).toEqual(['src/cart/total.ts'])
})

test('searches of one machine that arrive together are all answered', async () => {
  api.codegen.close()
  const answers = await Promise.all(Array.from({ length: 8 }, () => search('customer')))
  for (const { paths } of answers) expect(paths).toEqual(['src/cart/total.ts'])
})

test('lines are found by a regular expression, in order, with globs and without case', async () => {
  write('grep/b.ts', 'const Alpha = 1\nconst beta = 2\n')
  write('grep/a.py', 'alpha = 1\n')
  write('grep/dist/made.ts', 'alpha\n')
  const grep = (args: Record<string, unknown>) => called(client, 'codegenGrepSearch', args)
  expect(await grep({ query: 'alpha\\s*=' })).toEqual({
    query: 'alpha\\s*=',
    directory: expect.stringMatching(/\/project$/),
    matches: [
      { path: 'grep/a.py', line: 1, column: 1, text: 'alpha = 1' },
      { path: 'grep/b.ts', line: 1, column: 7, text: 'const Alpha = 1' },
    ],
    total: 2,
    truncated: false,
  })
  expect((await grep({ query: 'alpha', caseSensitive: true })).total).toBe(1)
  expect((await grep({ query: 'alpha', includePattern: '*.ts' })).total).toBe(1)
  expect((await grep({ query: 'alpha', excludePattern: '*.ts' })).total).toBe(1)
  expect(await grep({ query: 'nowhere at all' })).toMatchObject({ matches: [], total: 0 })
  const below = await grep({ query: 'alpha', directory: 'grep' })
  expect(below).toMatchObject({ directory: expect.stringMatching(/\/project\/grep$/), total: 2 })
  expect((below.matches as { path: string }[]).map(({ path }) => path)).toEqual(['a.py', 'b.ts'])
  // An agent would take it for heeded.
  expect(await refused(client, 'codegenGrepSearch', { query: 'alpha', path: '/srv' })).toContain(
    '"path" is not known; there are query, directory, caseSensitive, includePattern, excludePattern',
  )
  expect(await refused(client, 'codegenGrepSearch', { query: '(' })).toContain('pattern')
  write('grep/long.txt', `${'x'.repeat(2000)} needle ${'y'.repeat(2000)}`)
  const [long] = (await grep({ query: 'needle' })).matches as { text: string }[]
  expect(long!.text.length).toBeLessThan(520)
  expect(long!.text).toContain('needle')
  write('grep/many.txt', 'again\n'.repeat(300))
  expect(await grep({ query: 'again' })).toMatchObject({ total: 100, truncated: true })
})

test('files are found by letters of their paths', async () => {
  const find = async (args: Record<string, unknown>) =>
    (await called(client, 'codegenFileSearch', args)).matches as { path: string; type: string }[]
  expect((await find({ query: 'authsess' }))[0]).toMatchObject({ path: 'src/auth/session.ts', type: 'file' })
  expect((await find({ query: 'total', directory: 'src' }))[0]!.path).toBe('cart/total.ts')
  expect(await find({ query: 'zzzz' })).toEqual([])
  write('lots/x', '')
  for (let at = 0; at < 15; at++) write(`lots/same-${at}.txt`, '')
  expect(await find({ query: 'same' })).toHaveLength(10)
  expect(await refused(client, 'codegenFileSearch', { query: 'x', directory: '/none' })).toContain('/none')
})
