import { expect, test } from 'bun:test'
import { join } from 'node:path'

const compiler = Bun.which(process.env.CC ?? 'cc')

test.skipIf(compiler === null)('the fuzz target compiles, so that scripts/fuzz-helper.sh can run it', () => {
  const source = join(import.meta.dir, 'fuzz.c')
  const { exitCode, stderr } = Bun.spawnSync([
    compiler!,
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
