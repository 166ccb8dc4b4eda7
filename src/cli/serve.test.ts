import { afterAll, afterEach, describe, expect, test } from 'bun:test'
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { unusedPorts } from '../lib/test-ports.ts'

const root = mkdtempSync(join(tmpdir(), 'hutch-serve-'))
afterAll(() => rmSync(root, { recursive: true, force: true }))

/** Answers with some of its environment, and says `word`. */
const server = (word: string) => `import { createServer } from 'node:http'
const { HOST, PORT, ...env } = process.env
createServer((_request, response) => response.end(JSON.stringify({ word: ${JSON.stringify(word)}, env })))
  .listen(Number(PORT), HOST, () => console.log('${word} listens'))
`

function project(files: Record<string, string>): string {
  const directory = mkdtempSync(join(root, 'project-'))
  for (const [path, text] of Object.entries(files)) {
    mkdirSync(dirname(join(directory, path)), { recursive: true })
    writeFileSync(join(directory, path), text)
  }
  return directory
}

class Served {
  readonly child: Bun.Subprocess<'ignore', 'pipe', 'pipe'>
  text = ''
  readonly #drained: Promise<unknown>

  constructor(directory: string, args: string[], env: Record<string, string> = {}) {
    const own = Object.fromEntries(
      Object.entries(process.env).filter(([name]) => !/^(BL_|HUTCH_)/.test(name)),
    )
    this.child = Bun.spawn([process.execPath, join(import.meta.dir, '..', 'main.ts'), 'serve', ...args], {
      cwd: directory,
      stdin: 'ignore',
      stdout: 'pipe',
      stderr: 'pipe',
      env: {
        ...own,
        XDG_CONFIG_HOME: join(root, 'none'),
        XDG_DATA_HOME: join(root, 'none'),
        NO_COLOR: '1',
        ...env,
      },
    })
    const drain = async (stream: ReadableStream<Uint8Array>) => {
      const decoder = new TextDecoder()
      for await (const chunk of stream) this.text += decoder.decode(chunk, { stream: true })
    }
    this.#drained = Promise.all([drain(this.child.stdout), drain(this.child.stderr)])
  }

  async says(what: string | RegExp): Promise<void> {
    await eventually(`it says ${what}`, () => this.text.search(what) !== -1)
  }

  async exited(): Promise<number> {
    const code = await this.child.exited
    await this.#drained
    return code
  }
}

const started: Served[] = []
afterEach(async () => {
  for (const served of started.splice(0)) {
    served.child.kill('SIGTERM')
    await served.exited()
  }
})

function serve(directory: string, args: string[], env?: Record<string, string>): Served {
  const served = new Served(directory, args, env)
  started.push(served)
  return served
}

async function eventually(what: string, check: () => boolean | Promise<boolean>): Promise<void> {
  const deadline = performance.now() + 100_000
  while (!(await check())) {
    if (performance.now() > deadline) throw new Error(`never: ${what}\n${started.map(({ text }) => text)}`)
    await Bun.sleep(20)
  }
}

async function ask(port: number): Promise<{ word: string; env: Record<string, string> }> {
  return (await (await fetch(`http://127.0.0.1:${port}`)).json()) as never
}

test('a project is served where it is told to listen, in the environment it will have once deployed', async () => {
  const directory = project({
    'package.json': JSON.stringify({ scripts: { start: 'node server.mjs', dev: 'false' } }),
    'server.mjs': server('one'),
    'blaxel.toml': 'name = "echo"\ntype = "agent"\n[env]\nCITY = "Paris"\nBOTH = "toml"\n',
    '.env': 'SECRET=s3cret\nBOTH=dotenv\n',
  })
  const port = unusedPorts()
  const served = serve(directory, ['-p', String(port), '-s', 'GIVEN=here'], {
    BL_API_URL: 'http://127.0.0.1:9/v0',
    BL_API_KEY: 'bl_key',
    BL_WORKSPACE: 'main',
  })
  await served.says(`serving  http://localhost:${port}`)
  const { word, env } = await ask(port)
  expect(word).toBe('one')
  expect(env).toMatchObject({
    ...{ CITY: 'Paris', BOTH: 'dotenv', SECRET: 's3cret', GIVEN: 'here' },
    ...{ BL_NAME: 'echo', BL_TYPE: 'agent', BL_WORKSPACE: 'main', BL_API_KEY: 'bl_key' },
    ...{ BL_API_URL: 'http://127.0.0.1:9/v0', BL_RUN_URL: 'http://127.0.0.1:9', BL_DISABLE_H2: '1' },
    ...{ BL_SERVER_HOST: '127.0.0.1', BL_SERVER_PORT: String(port) },
  })
  served.child.kill('SIGINT')
  expect(await served.exited()).toBe(130)
  const gone = await ask(port).then(
    () => false,
    () => true,
  )
  expect(gone).toBe(true)
})

test('without a platform it is served all the same, and that is said', async () => {
  const directory = project({ 'index.mjs': server('alone') })
  const port = unusedPorts()
  const served = serve(directory, ['--port', String(port)])
  await served.says('serving')
  expect(served.text).toContain('without a platform (no platform runs on')
  expect((await ask(port)).env.BL_API_URL).toBeUndefined()
})

test('with --hotreload it starts anew when a source changes, also after one that was broken', async () => {
  const directory = project({
    'package.json': JSON.stringify({ scripts: { start: 'node src/index.mjs' } }),
    'src/index.mjs': server('first'),
  })
  const port = unusedPorts()
  const served = serve(directory, ['--hotreload', '-p', String(port)])
  await served.says('first listens')
  writeFileSync(join(directory, 'src/index.mjs'), 'process.exit(3)')
  await served.says('ended with exit code 3; it starts again once its sources change')
  writeFileSync(join(directory, 'src/index.mjs'), server('second'))
  await served.says('second listens')
  expect((await ask(port)).word).toBe('second')
})

test('what reloads by itself is left to it', async () => {
  const directory = project({
    'package.json': JSON.stringify({ scripts: { start: 'false', dev: 'node dev.mjs' } }),
    'dev.mjs': server('dev'),
  })
  const port = unusedPorts()
  await serve(directory, ['--hotreload', '-p', String(port)]).says('dev listens')
  expect((await ask(port)).word).toBe('dev')
})

test('the packages of a monorepo are served side by side, and find each other here', async () => {
  const [agentPort, toolPort] = [unusedPorts(), unusedPorts()]
  const directory = project({
    'blaxel.toml': `skipRoot = true\n[agent.main-agent]\npath = "agents/main"\nport = ${agentPort}\n[function.my-tools]\npath = "tools"\nport = ${toolPort}\n`,
    'package.json': '{}',
    'agents/main/package.json': JSON.stringify({ scripts: { start: 'node a.mjs' } }),
    'agents/main/a.mjs': server('agent'),
    'tools/index.mjs': server('tools'),
    'tools/blaxel.toml': 'type = "function"\n[env]\nWHAT = "tools"\n',
  })
  const served = serve(directory, [])
  await served.says(`serving  main-agent  http://localhost:${agentPort}`)
  await served.says(`serving  my-tools  http://localhost:${toolPort}`)
  expect((await ask(agentPort)).env).toMatchObject({
    BL_NAME: 'main-agent',
    BL_FUNCTION_MY_TOOLS_URL: `http://localhost:${toolPort}`,
  })
  expect((await ask(toolPort)).env).toMatchObject({ BL_TYPE: 'function', WHAT: 'tools' })
  await served.says('main-agent | agent listens')
})

describe('it says what is wrong', () => {
  test('with a program that ends', async () => {
    const directory = project({ 'package.json': JSON.stringify({ scripts: { start: 'exit 7' } }) })
    const served = serve(directory, ['-p', String(unusedPorts())])
    expect(await served.exited()).toBe(7)
    expect(served.text).toContain('ended with exit code 7')
  })

  test('with a folder that is no project', async () => {
    const served = serve(project({ 'notes.txt': '' }), ['-p', String(unusedPorts())])
    expect(await served.exited()).toBe(1)
    expect(served.text).toContain('has none of package.json, requirements.txt')
  })

  test('with a port that is taken', async () => {
    const taken = Bun.serve({ port: 0, hostname: '127.0.0.1', fetch: () => new Response() })
    const served = serve(project({ 'index.mjs': server('x') }), ['-p', String(taken.port)])
    expect(await served.exited()).toBe(1)
    expect(served.text).toContain(`port ${taken.port} is taken`)
    await taken.stop(true)
  })
})
