import { expect, test } from 'bun:test'
import { join } from 'node:path'

test('the fuzz target compiles, so that scripts/fuzz-helper.sh can run it', () => {
  const source = join(import.meta.dir, 'fuzz.c')
  const { exitCode, stderr } = Bun.spawnSync([
    process.env.CC || 'cc',
    '-std=gnu11',
    '-DHUTCH_FUZZ',
    '-fsyntax-only',
    '-Wall',
    '-Wextra',
    source,
  ])
  expect(stderr.toString()).not.toContain('error:')
  expect(exitCode).toBe(0)
})
