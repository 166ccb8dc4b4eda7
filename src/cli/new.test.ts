import { afterAll, expect, spyOn, test } from 'bun:test'
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { detectProject } from '../lib/project.ts'
import { parseProjectSettings } from '../lib/project-settings.ts'
import { CommandError, parseArguments, UsageError } from './command.ts'
import { newProject } from './new.ts'

const root = mkdtempSync(join(tmpdir(), 'hutch-new-'))
afterAll(() => rmSync(root, { recursive: true, force: true }))

/** Runs it with nobody to ask; answers what it printed as JSON. */
async function make(...argv: string[]): Promise<{ directory: string; name: string; template: string }> {
  let printed = ''
  const write = spyOn(process.stdout, 'write').mockImplementation((text) => {
    printed += text
    return true
  })
  try {
    await newProject.run(parseArguments(newProject, [...argv, '--json']))
  } finally {
    write.mockRestore()
  }
  return JSON.parse(printed)
}

const filesOf = (directory: string) => ({
  has: (path: string) => statSync(join(directory, path), { throwIfNoEntry: false })?.isFile() ?? false,
  read: (path: string) => readFileSync(join(directory, path), 'utf8'),
})

test.each([
  ['agent', 'typescript', 'agent', 'node dist/index.js'],
  ['agent', 'python', 'agent', 'python3 src/main.py'],
  ['mcp', 'ts', 'function', 'node dist/server.js'],
  ['function', 'py', 'function', 'python3 src/server.py'],
])('%s in %s is a project of its type, under its own name', async (type, language, kind, prod) => {
  const { directory, name } = await make(type, join(root, `My ${type}_${language}`), '-l', language)
  expect(name).toBe(`my-${type}-${language}`)
  const files = filesOf(directory)
  expect(detectProject(files)).toMatchObject({ prod })
  const settings = parseProjectSettings(files.read('blaxel.toml'))
  expect(settings).toMatchObject({ name, type: kind })
  expect(files.has('README.md') && files.has('.gitignore')).toBe(true)
  for (const path of readdirSync(directory, { recursive: true, withFileTypes: true }).filter((entry) =>
    entry.isFile(),
  )) {
    expect(readFileSync(join(path.parentPath, path.name), 'utf8')).not.toContain('{{')
  }
})

test.each(['ts', 'py'])(
  'a sandbox in %s has its Dockerfile, and an entrypoint that can be run',
  async (language) => {
    const { directory, template } = await make('sandbox', join(root, `box-${language}`), '-l', language)
    expect(template).toBe(`sandbox-${language}`)
    expect(readFileSync(join(directory, 'Dockerfile'), 'utf8')).toContain('/sandbox-api')
    expect(statSync(join(directory, 'entrypoint.sh')).mode & 0o777).toBe(0o755)
    expect(readdirSync(directory)).toContain('Makefile')
  },
)

test('a template can be named in place of type and language', async () => {
  expect((await make('-t', 'agent-py', join(root, 'named'))).template).toBe('agent-py')
  expect((await make('mcp', join(root, 'both'), '-t', 'mcp-ts')).template).toBe('mcp-ts')
})

test('a folder that holds something is left as it is', async () => {
  const directory = join(root, 'full')
  mkdirSync(directory)
  writeFileSync(join(directory, 'mine.txt'), 'mine')
  await expect(make('agent', directory)).rejects.toThrow(CommandError)
  expect(readdirSync(directory)).toEqual(['mine.txt'])
})

test('one that git made and nothing else is taken', async () => {
  const directory = join(root, 'cloned')
  mkdirSync(join(directory, '.git'), { recursive: true })
  expect((await make('agent', directory)).name).toBe('cloned')
})

test('what is not there is named together with what is', async () => {
  const there = join(root, 'nowhere')
  await expect(make('work', there)).rejects.toThrow(
    new UsageError('TYPE "work" is not one of agent, mcp, sandbox, job'),
  )
  await expect(make('agent', there, '-l', 'go')).rejects.toThrow(
    '--language "go" is not typescript or python',
  )
  await expect(make('-t', 'agent-go', there)).rejects.toThrow('--template "agent-go" is not one of agent-py,')
  await expect(make('mcp', there, '-t', 'agent-py')).rejects.toThrow('is of another type or language')
  expect(statSync(there, { throwIfNoEntry: false })).toBeUndefined()
})
