import { expect, test } from 'bun:test'
import { importProblems, readImports, unusedRules } from '../scripts/imports.ts'

test('imports of the sources run one way, and enter a folder by its door', async () => {
  const imports = await readImports(import.meta.dir)
  expect(imports.length).toBeGreaterThan(20)
  expect(importProblems(imports).map(({ from, to, reason }) => `${from} -> ${to}: ${reason}`)).toEqual([])
  expect(unusedRules(imports)).toEqual([])
})

test('a rule that no import needs any more is told of', () => {
  expect(unusedRules([{ from: 'http/app.ts', to: 'errors.ts' }])).toContain('cli/up.ts -> platform')
})

test.each([
  ['lib/ids.ts', 'spec/store.ts', 'lib may not import spec'],
  ['instances/index.ts', 'runtimes/namespace/index.ts', 'instances may not import runtimes'],
  ['sandboxes/index.ts', 'http/app.ts', 'sandboxes may not import http'],
  ['cli/env.ts', 'platform.ts', 'cli may not import platform'],
  ['http/app.ts', 'access/keys.ts', 'access is entered by its index.ts'],
  ['errors.ts', '../scripts/build.ts', 'leaves src'],
  ['novelty/index.ts', 'lib/ids.ts', 'no place in the order'],
])('%s importing %s is refused', (from, to, reason) => {
  expect(importProblems([{ from, to }])).toEqual([{ from, to, reason: expect.stringContaining(reason) }])
})

test.each([
  ['cli/up.ts', 'platform.ts'],
  ['platform.ts', 'runtimes/namespace/index.ts'],
  ['access/keys.ts', 'access/principals.ts'],
  ['runtimes/namespace/helper.ts', '../dist/hutch-guest'],
])('%s importing %s is allowed', (from, to) => {
  expect(importProblems([{ from, to }])).toEqual([])
})
