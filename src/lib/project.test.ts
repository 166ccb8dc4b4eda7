import { describe, expect, test } from 'bun:test'
import { detectProject, type ProjectFiles } from './project.ts'

function files(contents: Record<string, string>): ProjectFiles {
  return {
    has: (path) => Object.hasOwn(contents, path),
    read: (path) => contents[path] ?? null,
  }
}

const scripts = (all: Record<string, string>, more: object = {}) =>
  JSON.stringify({ name: 'x', scripts: all, ...more })

describe('a project of TypeScript', () => {
  test('is served by the scripts of its manifest', () => {
    const found = detectProject(
      files({
        'package.json': scripts({
          start: 'tsx src/index.ts',
          prod: 'node dist/index.js',
          dev: 'tsx watch src/index.ts',
          build: 'tsc',
        }),
        'package-lock.json': '{}',
        'src/index.ts': '',
      }),
    )
    expect(found).toEqual({
      language: 'typescript',
      packageManager: 'npm',
      manifest: 'package.json',
      lockFile: 'package-lock.json',
      build: 'tsc',
      prod: 'node dist/index.js',
      start: 'tsx src/index.ts',
      dev: 'tsx watch src/index.ts',
    })
  })

  test('is served as blaxel.toml says, before what the manifest says', () => {
    const found = detectProject(files({ 'package.json': scripts({ start: 'a', dev: 'b' }) }), {
      prod: 'node --enable-source-maps server.js',
      dev: 'nodemon server.js',
    })
    expect(found).toMatchObject({
      prod: 'node --enable-source-maps server.js',
      start: 'a',
      dev: 'nodemon server.js',
    })
  })

  test('without scripts is started from what looks like its entry', () => {
    expect(detectProject(files({ 'package.json': '{}', 'src/server.ts': '' }))).toMatchObject({
      prod: 'bun src/server.ts',
      start: 'bun src/server.ts',
      dev: null,
    })
    expect(detectProject(files({ 'index.mjs': '' }))).toMatchObject({
      manifest: null,
      prod: 'node index.mjs',
    })
    expect(
      detectProject(files({ 'package.json': scripts({ build: 'tsc' }, { main: './dist/main.js' }) })),
    ).toMatchObject({ prod: 'node dist/main.js', start: null })
  })

  test('tells its package manager by the lock file, else by what it names', () => {
    const manager = (contents: Record<string, string>) => detectProject(files(contents))?.packageManager
    expect(manager({ 'package.json': '{}', 'pnpm-lock.yaml': '' })).toBe('pnpm')
    expect(manager({ 'package.json': '{}', 'yarn.lock': '' })).toBe('yarn')
    expect(manager({ 'package.json': '{}', 'bun.lock': '' })).toBe('bun')
    expect(manager({ 'package.json': scripts({}, { packageManager: 'pnpm@9.1.0' }) })).toBe('pnpm')
    expect(manager({ 'package.json': scripts({}, { packageManager: 'cargo' }) })).toBe('npm')
  })

  test('whose manifest cannot be read is told by its other files', () => {
    expect(detectProject(files({ 'package.json': '{', 'index.js': '' }))?.prod).toBe('node index.js')
    expect(detectProject(files({ 'package.json': '[1]', 'index.js': '' }))?.prod).toBe('node index.js')
  })
})

describe('a project of Python', () => {
  test('is served by the file that looks like its entry', () => {
    expect(detectProject(files({ 'pyproject.toml': '', 'uv.lock': '', 'src/main.py': '' }))).toEqual({
      language: 'python',
      packageManager: 'uv',
      manifest: 'pyproject.toml',
      lockFile: 'uv.lock',
      build: null,
      prod: 'python3 src/main.py',
      start: 'python3 src/main.py',
      dev: null,
    })
    expect(detectProject(files({ 'requirements.txt': '', 'agent.py': '', 'server.py': '' }))).toMatchObject({
      packageManager: 'pip',
      lockFile: null,
      prod: 'python3 server.py',
    })
  })

  test('is told from a package.json that is there for tools only', () => {
    const both = { 'requirements.txt': '', 'main.py': '' }
    expect(detectProject(files({ ...both, 'package.json': '{}' }))?.language).toBe('python')
    expect(detectProject(files({ ...both, 'package.json': scripts({ start: 'node .' }) }))?.language).toBe(
      'typescript',
    )
  })
})

test('what is neither is nothing', () => {
  expect(detectProject(files({ Dockerfile: '', 'README.md': '' }))).toBeNull()
})
