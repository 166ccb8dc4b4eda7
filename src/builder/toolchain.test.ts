import { describe, expect, test } from 'bun:test'
import { asNodePath, lookForTools } from './toolchain.ts'

describe('the tools of a host', () => {
  test('are its own: what stands in for a node that it has not counts for none', async () => {
    const paths: string[] = []
    const machine = {
      output: async ({ argv, env }: { argv: string[]; env?: Record<string, string> }) => {
        paths.push(env?.PATH ?? '')
        const { stdout, exitCode } = Bun.spawnSync(argv, { env: { PATH: env?.PATH ?? '' } })
        return { stdout: stdout.toString(), exitCode, signal: null }
      },
    }
    const tools = await lookForTools(
      machine,
      { PATH: `/nowhere/bin:${asNodePath}` },
      new AbortController().signal,
    )
    expect(paths).toEqual(['/nowhere/bin'])
    expect([tools.has('node'), tools.has('git'), tools.node]).toEqual([false, false, null])
  })
})
