import { expect, test } from 'bun:test'
import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { CodeInterpreter, SandboxInstance, SandboxPreview } from '@blaxel/core'

/** What the client can do is read from the client itself, so that a newer one with more to it fails here. */

/** How methods of the client work among themselves. Everything else of it is for programs. */
const inner = new Set([
  'attachH2Session',
  'edgeDomainForRegion',
  'refreshFrom',
  'waitForArchiveStatus',
  'waitAfterCreateGatewayTimeout',
  'waitWhileSandboxDying',
  'fs.formatPath',
  'fs.uploadWithMultipart',
  'process.execWithStreaming',
  'previews.waitForDeletion',
  'sessions.getToken',
])

const methodsOf = (value: object): string[] =>
  Object.entries(Object.getOwnPropertyDescriptors(value))
    .filter(([name, { value: member }]) => typeof member === 'function' && /^[a-z]/.test(name))
    .map(([name]) => name)
    .filter((name) => name !== 'constructor')

const sandbox = new SandboxInstance({ metadata: { name: 'box' }, spec: {} })
const preview = new SandboxPreview({ metadata: { name: 'web' }, spec: {} })
const parts = Object.entries({ ...sandbox, tokens: preview.tokens }).filter(
  ([name, part]) => typeof part === 'object' && part !== null && name !== 'sandbox',
)
const methods = new Set([
  ...methodsOf(SandboxInstance),
  ...methodsOf(SandboxInstance.prototype),
  ...methodsOf(CodeInterpreter.prototype),
  ...parts.flatMap(([name, part]) => methodsOf(Object.getPrototypeOf(part)).map((own) => `${name}.${own}`)),
])

/** Tests that call the client: those of the platform as a whole. */
const tests = readdirSync(import.meta.dir)
  .filter((name) => name.endsWith('.test.ts') && name !== 'client-methods.test.ts')
  .map((name) => readFileSync(join(import.meta.dir, name), 'utf8'))
  .join('\n')

test('every method of the client that is for programs is called by a test', () => {
  expect(methods.size).toBeGreaterThan(70)
  const untested = [...methods]
    .filter((method) => !inner.has(method))
    .filter((method) => !new RegExp(`\\b${method.replace('.', '\\??\\s*\\.')}\\(`).test(tests))
  expect(untested).toEqual([])
})

test('what is left out is still there', () => {
  expect([...inner].filter((method) => !methods.has(method))).toEqual([])
})
