import { describe, expect, test } from 'bun:test'
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import fc from 'fast-check'
import { IgnoreRules } from './ignore-rules.ts'

function rulesOf(files: Record<string, string>, from = ''): IgnoreRules {
  const rules = new IgnoreRules(from)
  for (const [directory, text] of Object.entries(files)) rules.add(directory, text)
  return rules
}

function left(files: Record<string, string>, paths: string[], from = ''): string[] {
  const rules = rulesOf(files, from)
  return paths.filter((path) => !rules.ignoresFile(path))
}

test('names count at any depth, paths from their file on, and a slash at the end means directories', () => {
  const paths = ['a.log', 'x/a.log', 'out', 'x/out/b', 'x/made', 'made', 'x/y/made/z', 'docs/x/made']
  expect(left({ '': '*.log\n' }, paths)).toEqual(paths.filter((path) => !path.endsWith('.log')))
  expect(left({ '': 'out/\n' }, paths)).toEqual(paths.filter((path) => path !== 'x/out/b'))
  expect(left({ '': '/made\n' }, paths)).toEqual(paths.filter((path) => path !== 'made'))
  expect(left({ '': 'x/made\n' }, paths)).toEqual(paths.filter((path) => path !== 'x/made'))
  expect(left({ '': '**/x/made\n' }, paths)).toEqual(
    paths.filter((path) => path !== 'x/made' && path !== 'docs/x/made'),
  )
  expect(left({ '': '# out\n\n   \n' }, paths)).toEqual(paths)
})

test('the last rule decides, the nearest file before the others', () => {
  const paths = ['keep.log', 'b.log', 'x/keep.log', 'x/b.log', 'x/y/b.log']
  expect(left({ '': '*.log\n!keep.log\n' }, paths)).toEqual(['keep.log', 'x/keep.log'])
  expect(left({ '': '!keep.log\n*.log\n' }, paths)).toEqual([])
  expect(left({ '': '*.log\n', x: '!*.log\n' }, paths)).toEqual(['x/keep.log', 'x/b.log', 'x/y/b.log'])
  expect(left({ '': '*.log\n', x: '!*.log\n', 'x/y': 'b.*\n' }, paths)).toEqual(['x/keep.log', 'x/b.log'])
})

test('below an ignored directory nothing is taken back', () => {
  const paths = ['data/a.ts', 'data/keep/b.ts', 'other/a.ts']
  expect(left({ '': 'data/\n!data/keep/\n!a.ts\n', data: '!*\n' }, paths)).toEqual(['other/a.ts'])
  expect(left({ '': 'data/*\n!data/keep/\n' }, paths)).toEqual(['data/keep/b.ts', 'other/a.ts'])
})

test('a directory that is asked for is searched, though it is ignored, and what it ignores itself is left out', () => {
  const files = { '': 'build/\n*.tmp\n', 'build/x': 'made.ts\n' }
  const paths = ['build/x/a.ts', 'build/x/a.tmp', 'build/x/made.ts', 'build/x/build/b.ts']
  expect(left(files, paths)).toEqual([])
  expect(left(files, paths, 'build/x')).toEqual(['build/x/a.ts'])
})

test('a walk need not look into directories of which nothing is taken back', () => {
  const files = { '': 'cache/\nlogs\n/made/up/\n*.x/\nkept/\n!kept/\nmore[1]\n', 'pack{a}': 'tmp/\n/lib/\n' }
  const globs = ['cache', 'logs', '/made/up', '/pack\\{a\\}/**/tmp', '/pack\\{a\\}/lib']
  expect(rulesOf(files).prunedDirectories().toSorted()).toEqual(globs.toSorted())
  expect(rulesOf(files, 'pack{a}').prunedDirectories().toSorted()).toEqual(
    ['/lib', 'cache', 'logs', 'tmp'].toSorted(),
  )
  expect(rulesOf({ '': 'cache/\n!c*\n' }).prunedDirectories()).toEqual([])
})

test('rules made to be slow cost no more than they may, and what was not looked at is told', () => {
  const slow = `${'*a'.repeat(400)}b\n`
  const rules = rulesOf({ '': slow.repeat(80), x: `${'**/a/'.repeat(150)}b\n` })
  for (let at = 0; at < 20_000; at++) rules.ignoresFile(`x/${'a/'.repeat(30)}${'a'.repeat(200)}${at}`)
  expect(rules.incomplete).toBe(true)
  expect(rulesOf({ '': 'a\n' }).incomplete).toBe(false)
})

const git = Bun.which('git')
if (git === null) console.warn('skipped: there is no git here to compare with')

describe.skipIf(git === null)('what git says', () => {
  const paths = ['a', 'b', 'ab', 'a.b', 'c/a', 'c/b', 'c/ab', 'c/d/a', 'c/d/b', 'd/c/a', 'd/a.b', 'd/d/ab']
  // Two stars within a name mean to git what lies before its pattern in memory.
  const name = fc
    .array(fc.constantFrom('a', 'b', 'c', 'd', '.', '*', '?', '[ab]', '[!a]', '\\a'), {
      minLength: 1,
      maxLength: 3,
    })
    .map((parts) => parts.join('').replace(/\*+/g, '*'))
  const line = fc
    .record({
      negated: fc.boolean(),
      first: fc.constantFrom('', '', '/', '**/', 'c/**/'),
      names: fc.array(name, { minLength: 1, maxLength: 3 }),
      last: fc.constantFrom('', '', '/', '/**', ' '),
    })
    .map(({ negated, first, names, last }) => (negated ? '!' : '') + first + names.join('/') + last)
  const file = fc.array(line, { maxLength: 4 }).map((lines) => `${lines.join('\n')}\n`)

  test('of any rules is what we say', () => {
    const root = mkdtempSync(join(tmpdir(), 'hutch-ignore-'))
    const run = (...argv: string[]) => {
      const { stdout, exitCode } = Bun.spawnSync([git ?? '', ...argv], {
        cwd: root,
        env: { HOME: root, GIT_CONFIG_NOSYSTEM: '1' },
      })
      expect(exitCode).toBe(0)
      return stdout.toString()
    }
    try {
      run('init', '--quiet')
      for (const path of paths) {
        mkdirSync(dirname(join(root, path)), { recursive: true })
        writeFileSync(join(root, path), '')
      }
      fc.assert(
        fc.property(fc.record({ '': file, c: file, 'c/d': file, d: file }), (files) => {
          for (const [directory, text] of Object.entries(files))
            writeFileSync(join(root, directory, '.gitignore'), text)
          const listed = run('ls-files', '-z', '--others', '--exclude-per-directory=.gitignore').split('\0')
          const rules = rulesOf(files)
          const ours = paths.filter((path) => !rules.ignoresFile(path))
          expect(ours).toEqual(paths.filter((path) => listed.includes(path)))
        }),
        { numRuns: 500, seed: 20_261_122 },
      )
    } finally {
      rmSync(root, { recursive: true, force: true })
    }
  })
})
