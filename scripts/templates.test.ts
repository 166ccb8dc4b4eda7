import { afterAll, describe, expect, test } from 'bun:test'
import { cpSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { capture } from './capture.ts'

// What `hutch new` writes is held to what it asks of its user: strict TypeScript, and Python that is one.

const root = join(import.meta.dir, '..')
const directory = mkdtempSync(join(tmpdir(), 'hutch-templates-'))
afterAll(() => rmSync(directory, { recursive: true, force: true }))

/** The one package of theirs that the project itself has not. */
const nodeServer = `declare module '@hono/node-server' {
  export function serve(
    options: { fetch: (request: Request) => Response | Promise<Response>; hostname: string; port: number },
    listening: () => void,
  ): void
}
`

describe('a template in TypeScript', () => {
  test.each([
    ['agent-ts', 'index.js', 'process.env.PORT'],
    ['mcp-ts', 'server.js', 'process.env.PORT'],
    ['job-ts', 'task.js', 'BL_EXECUTION_DATA_URL'],
  ])('%s builds as it stands', async (template, made, word) => {
    const folder = join(directory, template)
    cpSync(join(root, 'templates', template), folder, { recursive: true })
    symlinkSync(join(root, 'node_modules'), join(folder, 'node_modules'))
    writeFileSync(join(folder, 'src', 'node-server.d.ts'), nodeServer)
    const built = await capture([join(root, 'node_modules', '.bin', 'tsc')], { cwd: folder })
    expect(built.stdout + built.stderr).toBe('')
    expect(await Bun.file(join(folder, 'dist', made)).text()).toContain(word)
  })
})

const python = Bun.which('python3')
if (python === null)
  console.warn('skipped, since this host has no python3: whether templates in Python compile')

describe.skipIf(python === null)('a template in Python', () => {
  test.each([
    ['agent-py', ['src/main.py', 'src/agent.py', 'src/model.py']],
    ['mcp-py', ['src/server.py']],
    ['job-py', ['src/main.py', 'src/greet.py', 'src/task.py']],
    ['sandbox-py', ['app/server.py']],
  ])('%s compiles', async (template, paths) => {
    for (const path of paths) {
      const program = 'import ast, sys; ast.parse(sys.stdin.read())'
      const stdin = await Bun.file(join(root, 'templates', template, path)).text()
      expect((await capture([python!, '-c', program], { stdin })).stderr).toBe('')
    }
  })
})

test.each(['sandbox-ts', 'sandbox-py'])(
  'the entrypoint of %s is a script that sh can read',
  async (template) => {
    const read = await capture(['sh', '-n', join(root, 'templates', template, 'entrypoint.sh')])
    expect(read).toMatchObject({ code: 0, stderr: '' })
  },
)

describe('the job of a template', () => {
  const programs: [template: string, argv: string[] | null][] = [
    ['job-ts', [process.execPath, 'src/index.ts']],
    ['job-py', python === null ? null : [python, 'src/main.py']],
  ]
  const there = programs.flatMap(([template, argv]) => (argv === null ? [] : [[template, argv] as const]))
  test.each(there)(
    '%s finds what it was given, on its command line or where it is told',
    async (template, argv) => {
      const cwd = join(root, 'templates', template)
      const given = {
        ...process.env,
        NO_PROXY: '127.0.0.1',
        no_proxy: '127.0.0.1',
        PYTHONDONTWRITEBYTECODE: '1',
      }
      const local = await capture([...argv, '--name', 'John'], { cwd, env: given })
      expect(local).toMatchObject({ code: 0, stdout: 'Hello, John!\n', stderr: '' })
      using server = Bun.serve({
        port: 0,
        hostname: '127.0.0.1',
        fetch: () => Response.json({ tasks: [{ name: 'John' }, { name: 'Jane' }] }),
      })
      const address = { BL_EXECUTION_DATA_URL: server.url.href, BL_TASK_KEY: 'WHICH', WHICH: '1' }
      const env = { ...given, ...address, GREETING: 'Salut' }
      const deployed = await capture([...argv], { cwd, env })
      expect(deployed).toMatchObject({ code: 0, stdout: 'Salut, Jane!\n', stderr: '' })
    },
  )
})
