import { afterAll, beforeEach, expect, test } from 'bun:test'
import { Dialer } from '../lib/dialer.ts'
import { configuredProvider } from './providers.ts'
import { ScriptedProviders } from './test-providers.ts'

const providers = new ScriptedProviders()
afterAll(() => providers[Symbol.asyncDispose]())

let isOpen: boolean
const dialer = new Dialer({ privateTargets: [], ownPorts: () => [], loopbackOpen: () => isOpen })
beforeEach(() => {
  isOpen = true
})

const merged = (name: 'Morph' | 'Relace', userVariables: string[]) => {
  const settings = { env: providers.env(name), userVariables: new Set(userVariables) }
  const signal = new AbortController().signal
  return configuredProvider(settings, dialer)!.apply({ code: 'a\n', edit: 'b', signal })
}
const refusal = (asked: Promise<string>) =>
  asked.then(
    () => 'none',
    (error: Error) => error.message,
  )

test.each([
  ['Morph', 'MORPH_BASE_URL'],
  ['Relace', 'RELACE_BASE_URL'],
] as const)(
  '%s may be on this machine where a user said so, and the platform is this machine’s alone',
  async (name, variable) => {
    expect(await merged(name, [variable])).toBe('a\nb\n')
    const before = providers.requests.length
    expect(await refusal(merged(name, []))).toContain('is a private address')
    expect(await refusal(merged(name, [`${name.toUpperCase()}_API_KEY`]))).toContain('is a private address')
    isOpen = false
    expect(await refusal(merged(name, [variable]))).toContain('is a private address')
    expect(providers.requests).toHaveLength(before)
  },
)
