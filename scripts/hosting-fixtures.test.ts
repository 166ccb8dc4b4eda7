import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from 'bun:test'
import { cpSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Glob } from 'bun'
import { TestRegistries } from '../src/builder/test-registries.ts'
import { findDockerfileTool } from '../src/lib/dockerfile-tool.ts'
import { buildIfStale } from './build.ts'
import { type Captured, capture } from './capture.ts'
import { canIsolate } from './host.ts'
import { RunningHutch } from './platform.ts'

// The projects of fixtures/ as people have them: deployed by the command line, asked, changed, rolled back.

setDefaultTimeout(240_000)
await buildIfStale()
const usable = canIsolate()
const root = join(import.meta.dir, '..')
const directory = mkdtempSync(join(tmpdir(), 'hutch-hosting-'))
const registries = new TestRegistries()
/** Of what the Python agent needs, fetched before anything depends on it: the index may be out of reach. */
const whyNoPython = usable ? await fetchWheels(['fastapi>=0.115', 'uvicorn>=0.32']) : 'it cannot isolate'
let platform: RunningHutch

/** An API of a model whose answer the test lets go on, word by word. */
class TestModel implements Disposable {
  readonly asked: { key: string | null; body: { model: string; messages: { content: string }[] } }[] = []
  #goOn = Promise.withResolvers<void>()
  readonly #server = Bun.serve({ port: 0, hostname: '127.0.0.1', fetch: (request) => this.#answer(request) })

  get port(): number {
    return this.#server.port!
  }

  goOn(): void {
    this.#goOn.resolve()
  }

  async #answer(request: Request): Promise<Response> {
    this.asked.push({ key: request.headers.get('authorization'), body: (await request.json()) as never })
    const gate = Promise.withResolvers<void>()
    this.#goOn = gate
    const words = (text: string) => `data: ${JSON.stringify({ choices: [{ delta: { content: text } }] })}\n\n`
    async function* answer() {
      yield words('Once upon')
      await gate.promise
      yield words(' a time.')
      yield 'data: [DONE]\n\n'
    }
    return new Response(answer() as never, { headers: { 'content-type': 'text/event-stream' } })
  }

  [Symbol.dispose](): void {
    void this.#server.stop(true)
  }
}
const model = new TestModel()

beforeAll(async () => {
  if (!usable) return
  const hono = join(root, 'node_modules', 'hono')
  const files: Record<string, string> = {}
  for (const path of new Glob('dist/**/*.js').scanSync(hono))
    files[path] = readFileSync(join(hono, path), 'utf8')
  const manifest = JSON.parse(readFileSync(join(hono, 'package.json'), 'utf8')) as { version: string }
  registries.publish('hono', { version: manifest.version, manifest, files })
  platform = await RunningHutch.start({
    dataDir: join(directory, 'data'),
    args: [model.port, registries.port].flatMap((port) => ['--egress-allow', `127.0.0.1:${port}`]),
    env: {
      ...Object.fromEntries(
        Object.keys(process.env)
          .filter((name) => name.startsWith('PIP_'))
          .map((name) => [name, undefined]),
      ),
      ...registries.pipEnv,
    },
  })
})
afterAll(async () => {
  await platform?.[Symbol.asyncDispose]()
  registries[Symbol.dispose]()
  model[Symbol.dispose]()
  rmSync(directory, { recursive: true, force: true })
})

const { tool, detail: toolDetail } = await findDockerfileTool(process.getuid?.() === 0)
const whyNoDockerfile = tool === null ? toolDetail : ''
if (whyNoDockerfile) console.warn(`skipped: ${whyNoDockerfile}`)

/** Why there are none; '' when they are here. */
async function fetchWheels(names: string[]): Promise<string> {
  const python = '/usr/bin/python3'
  const wheels = join(directory, 'wheels')
  const why = (reason: string) => {
    console.warn(`skipped: ${reason}`)
    return reason
  }
  if (!(await Bun.file(python).exists())) return why(`this host has no ${python}`)
  const got = await capture([
    python,
    '-m',
    'pip',
    'download',
    '--quiet',
    '--only-binary',
    ':all:',
    '-d',
    wheels,
    ...names,
  ])
  if (got.code !== 0)
    return why(`pip cannot fetch ${names.join(' and ')}: ${got.stderr.trim().split('\n').at(-1)}`)
  for (const file of readdirSync(wheels)) registries.addWheel(file, readFileSync(join(wheels, file)))
  return ''
}

/** A fixture in a folder of its own, with files more. */
function fixture(name: string, files: Record<string, string> = {}): string {
  const folder = join(mkdtempSync(join(directory, 'project-')), name)
  cpSync(join(root, 'fixtures', name), folder, { recursive: true })
  for (const [path, text] of Object.entries(files)) writeFileSync(join(folder, path), text)
  return folder
}

const deployed = /^http:\/\/localhost:\d+\/main\/(agents|functions)\/[\w-]+(\/mcp)?$/m

async function deploy(folder: string, ...flags: string[]): Promise<Captured> {
  const done = await platform.run(['deploy', ...flags], { cwd: folder })
  if (done.code !== 0) throw new Error(`deploy of ${folder}: ${done.stderr}${done.stdout}`)
  expect(done.stdout).toMatch(deployed)
  return done
}

async function ask(name: string, inputs: unknown): Promise<Response> {
  const { BL_RUN_URL, BL_WORKSPACE, BL_API_KEY } = await platform.env()
  return await fetch(`${BL_RUN_URL}/${BL_WORKSPACE}/agents/${name}`, {
    method: 'POST',
    headers: { authorization: `Bearer ${BL_API_KEY}`, 'content-type': 'application/json' },
    body: JSON.stringify({ inputs }),
  })
}

describe.skipIf(!usable)('a project is deployed as it stands', () => {
  test('an agent in TypeScript hands on what a model says as it says it', async () => {
    const registry = `host.hutch.internal:${registries.port}/npm/`
    const folder = fixture('agent-typescript', {
      '.npmrc': `registry=http://${registry}\n//${registry}:_authToken=${registries.token}\n`,
      '.env': `MODEL_URL=http://host.hutch.internal:${model.port}\nMODEL_KEY=model-key\n`,
    })
    const built = await deploy(folder)
    expect(built.stdout + built.stderr).not.toContain(registries.token)
    const answer = await ask('storyteller', 'Tell me a story')
    expect(answer.status).toBe(200)
    const reader = answer.body!.pipeThrough(new TextDecoderStream()).getReader()
    let heard = ''
    // The rest is not said before this has come.
    while (heard.length < 'Once upon'.length) {
      const { done, value } = await reader.read()
      if (done) throw new Error(`it ended after ${JSON.stringify(heard)}`)
      heard += value
    }
    expect(heard).toBe('Once upon')
    model.goOn()
    for (let next = await reader.read(); !next.done; next = await reader.read()) heard += next.value
    expect(heard).toBe('Once upon a time.')
    expect(model.asked).toMatchObject([
      { key: 'Bearer model-key', body: { model: 'small', messages: [{ content: 'Tell me a story' }] } },
    ])
    const logs = await platform.run(['logs', 'agent', 'storyteller'])
    expect(logs.stdout).toContain('storyteller listens on')
    expect(logs.stdout).not.toContain('model-key')
  })

  test.skipIf(whyNoPython !== '')('an agent in Python on FastAPI counts', async () => {
    await deploy(fixture('agent-python'))
    const said = await platform.run(['run', 'agent', 'counter', '--data', '{"inputs": 3}'])
    expect(said.stdout).toBe('1 2 3 (agent counter)\n')
    expect((await ask('counter', 0)).status).toBe(422)
  })

  test.skipIf(whyNoDockerfile !== '')(
    'a project with a Dockerfile is built by it, on the host image',
    async () => {
      const folder = fixture('dockerfile')
      await deploy(folder)
      expect(await (await ask('dockerfile', '')).text()).toBe('Good day from an image of its own\n')
      // What fails is told with its step, and what ran before goes on.
      const dockerfile = join(folder, 'Dockerfile')
      const text = readFileSync(dockerfile, 'utf8')
      writeFileSync(dockerfile, text.replace('COPY server.py .', 'RUN echo nearly && false'))
      const failed = await platform.run(['deploy'], { cwd: folder })
      expect(failed.code).not.toBe(0)
      expect(failed.stderr + failed.stdout).toContain('RUN echo nearly && false": exit code 1')
      expect(await (await ask('dockerfile', '')).text()).toBe('Good day from an image of its own\n')
    },
  )

  test('the packages of a monorepo find each other, with no address and no key in them', async () => {
    const folder = fixture('monorepo')
    const { stdout } = await deploy(folder)
    expect(stdout).toContain('/functions/weather-tools')
    expect(await (await ask('weather-agent', 'Paris')).text()).toBe('In Paris: rain\n')

    // Another revision of one of them, and back.
    const tools = join(folder, 'weather-tools', 'src', 'index.mjs')
    writeFileSync(tools, readFileSync(tools, 'utf8').replace("'rain'", "'snow'"))
    await deploy(folder, '--directory', 'weather-tools')
    expect(await (await ask('weather-agent', 'Paris')).text()).toBe('In Paris: snow\n')
    const back = await platform.run(['rollback', 'function', 'weather-tools'])
    expect(back.code).toBe(0)
    expect(await (await ask('weather-agent', 'Paris')).text()).toBe('In Paris: rain\n')
  })
})
