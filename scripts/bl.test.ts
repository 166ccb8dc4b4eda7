import { afterAll, beforeAll, describe, expect, test } from 'bun:test'
import { existsSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { findDockerfileTool } from '../src/lib/dockerfile-tool.ts'
import { HurriedClock } from '../src/lib/test-clock.ts'
import { createPlatform, type Platform, temporaryDataDir } from '../src/platform.ts'
import { whyNot } from '../src/test-client.ts'
import { BlReplay } from './bl-replay.ts'
import { capture } from './capture.ts'
import { canIsolate } from './host.ts'

// The cloud's own command line against a platform: the program itself where scripts/install-bl.sh could get it, and a
// replay of what it asks everywhere.

const root = dirname(import.meta.dir)
const usable = canIsolate()
const noDocker =
  (await whyNot((able) => (able.ownMounts ? '' : 'instances here have no mounts of their own'))) ||
  (await findDockerfileTool(true).then(({ tool, detail }) => (tool === null ? detail : '')))
const bl = [process.env.HUTCH_BL, join(root, 'dist/bl/bl')].find(
  (path) => path !== undefined && existsSync(path),
)

/** Stands still unless it is told to go on: what is told of for some seconds is told of however slow this machine is. */
class HeldClock extends HurriedClock {
  private readonly startedAt = Date.now()
  private aheadMs = 0

  override now(): number {
    return this.startedAt + this.aheadMs
  }

  override advance(ms: number): void {
    this.aheadMs += ms
    super.advance(ms)
  }
}

/** Of real time, for three seconds of the platform's. */
const pollMs = 50
const clock = new HeldClock()
let platform: Platform
let url: string
let directory: string

beforeAll(async () => {
  if (!usable) return
  directory = mkdtempSync(join(tmpdir(), 'hutch-bl-'))
  platform = await createPlatform({ dataDir: temporaryDataDir, port: 0, logLevel: 'error', clock })
  url = (await platform.listen()).url
})

afterAll(async () => {
  if (!usable) return
  await platform.close()
  rmSync(directory, { recursive: true, force: true })
})

const files = {
  'blaxel.toml': 'type = "agent"\nname = "hello"\n',
  'package.json': '{"name":"hello","private":true,"scripts":{"start":"node src/index.js"}}',
  'src/index.js': `
const { createServer } = require('node:http')
createServer((request, response) => {
  let body = ''
  request.on('data', (chunk) => (body += chunk))
  request.on('end', () => {
    console.log('asked for', request.url)
    response.setHeader('content-type', 'application/json')
    response.end(JSON.stringify({ said: JSON.parse(body || '{}').inputs ?? null, path: request.url }))
  })
}).listen(process.env.PORT, process.env.HOST)
`,
}

const replay = () =>
  new BlReplay(
    { apiUrl: `${url}/v0`, runUrl: url, ...platform.credentials },
    {
      now: () => clock.now(),
      // What is waited for takes real time too: a build is no faster for a clock that is ahead.
      async wait(ms) {
        clock.advance(ms)
        await Bun.sleep(pollMs)
      },
    },
  )

/** What a deployment on a terminal sees. That its archive has come may be heard of a moment after it was taken. */
async function told(
  kind: Parameters<BlReplay['deploy']>[0],
  name: string,
  files: Record<string, string>,
  options: Parameters<BlReplay['deploy']>[3],
): Promise<string[]> {
  const { statuses } = await replay().deploy(kind, name, files, options)
  return statuses.filter((status) => status !== 'UPLOADING')
}

describe.skipIf(!usable)('a replay of bl', () => {
  test('deploy on a terminal believes that it is deployed, since it saw it being built', async () => {
    const statuses = await told('agent', 'hello', files, { interactive: true })
    expect([statuses[0], statuses.at(-1)]).toEqual(['BUILDING', 'DEPLOYED'])
    expect((await replay().logs('agent', 'hello')).join('\n')).toContain('node src/index.js')
  })

  test('run and chat are answered, and logs say so', async () => {
    const ran = await replay().run('agent', 'hello', { inputs: 'Hello' })
    expect([ran.status, await ran.json()]).toEqual([200, { said: 'Hello', path: '/' }])
    const chatted = await replay().chat('hello', 'Hi')
    expect(await chatted.json()).toEqual({ said: 'Hi', path: '/?stream=true' })
    let lines: string[] = []
    while (!lines.includes('asked for /?stream=true')) lines = await replay().logs('agent', 'hello')
    expect(lines).toContain('asked for /')
  })

  test('get lists pages, and shows one with its events', async () => {
    const list = (await replay().get('/agents?limit=200&cursor=')) as {
      data: { metadata: object }[]
      meta: object
    }
    expect(list.data.map(({ metadata }) => metadata)).toEqual([expect.objectContaining({ name: 'hello' })])
    expect(list.meta).toMatchObject({ hasMore: false })
    expect(await replay().get('/agents/hello')).toMatchObject({
      status: 'DEPLOYED',
      events: expect.any(Array),
    })
    expect(await replay().get('/agents/hello/revisions')).toEqual([expect.objectContaining({ active: true })])
    expect(await replay().get('/templates')).toEqual(expect.any(Array))
  })

  test('a build that fails is told of, also after one that failed before', async () => {
    const broken = { ...files, 'package.json': '{"scripts":{"build":"exit 7","start":"node src/index.js"}}' }
    for (let again = 0; again < 2; again++) {
      const statuses = await told('agent', 'hello', broken, { interactive: true })
      expect(statuses).toEqual(['BUILDING', 'FAILED'])
      expect((await replay().logs('agent', 'hello')).join('\n')).toContain('npm run build')
    }
    expect((await replay().run('agent', 'hello', { inputs: 'still' })).status).toBe(200)
  })

  test('deploy --wait knows that it is built, by which revision it is served, and whether its build failed', async () => {
    const { events } = (await replay().get('/agents/hello')) as {
      events: { status: string; revision?: string }[]
    }
    const before = events.findLast(({ status }) => status === 'DEPLOYED')?.revision
    const changed = { ...files, 'changed.txt': 'by this' }
    const deployed = await replay().deployAndWait('agent', 'hello', changed)
    expect([deployed.status, deployed.revision === before]).toEqual(['DEPLOYED', false])
    const told = JSON.stringify((await replay().get('/agents/hello')) as object)
    expect(told).toContain('.buildimage.started')
    const broken = { ...files, 'package.json': '{"scripts":{"build":"exit 7","start":"node src/index.js"}}' }
    expect(await replay().deployAndWait('agent', 'hello', broken)).toMatchObject({
      status: 'FAILED',
      phase: 'build',
    })
    const silent = { ...files, 'src/index.js': 'process.exit(3)' }
    expect(await replay().deployAndWait('agent', 'hello', silent)).toMatchObject({
      status: 'FAILED',
      phase: 'rollout',
    })
  })

  test('an application and an image of its own are built as an agent is', async () => {
    const web = { ...files, 'blaxel.toml': 'type = "application"\nname = "web"\n' }
    for (let again = 0; again < 2; again++) {
      const statuses = await told('application', 'web', web, {
        interactive: true,
        env: { A: '1' },
      })
      expect([statuses[0], statuses.at(-1)]).toEqual(['BUILDING', 'DEPLOYED'])
    }
    const { spec } = (await replay().get('/applications/web')) as { spec: { memory: number; envs: object[] } }
    expect([spec.memory, spec.envs]).toEqual([2048, [expect.objectContaining({ name: 'A' })]])
    expect(await replay().push('agent', 'kept', { ...files, 'kept.txt': 'its own' })).toBe('BUILT')
    expect(await replay().get('/images')).toContainEqual(
      expect.objectContaining({ metadata: expect.objectContaining({ name: 'kept', resourceType: 'agent' }) }),
    )
    const summaries = await replay().images('/images', 1)
    expect(summaries).toContainEqual(
      expect.objectContaining({
        metadata: expect.objectContaining({ name: 'kept' }),
        spec: { size: expect.any(Number), tagCount: 2 },
      }),
    )
    expect(summaries).toHaveLength(3)
    const tags = () => replay().images('/images/agent/kept/tags', 1)
    expect(await tags()).toContainEqual(
      expect.objectContaining({ name: 'latest', createdAt: expect.any(String) }),
    )
    await replay().delete('/images/agent/kept:latest')
    expect((await tags()).map(({ name }) => name)).toEqual([expect.not.stringMatching(/^latest$/)])
  })

  test.skipIf(noDocker !== '')('a sandbox is built from a Dockerfile, and believed too', async () => {
    const Dockerfile = [
      'FROM scratch',
      'COPY --from=ghcr.io/blaxel-ai/sandbox:latest /sandbox-api /usr/local/bin/sandbox-api',
      'COPY blaxel.toml /etc/blaxel.toml',
      'ENTRYPOINT ["/usr/local/bin/sandbox-api"]',
    ].join('\n')
    const own = { Dockerfile, 'blaxel.toml': 'type = "sandbox"\nname = "own"\n' }
    const statuses = await told('sandbox', 'own', own, { interactive: true })
    expect([statuses[0], statuses.at(-1)]).toEqual(['BUILDING', 'DEPLOYED'])
    expect((await replay().logs('sandbox', 'own')).join('\n')).toContain('FROM scratch')
    await replay().delete('/sandboxes/own')
  })

  test('a job is deployed, run, looked at and read as bl does it', async () => {
    const job = {
      'blaxel.toml': 'type = "job"\nname = "work"\n[runtime]\nmaxConcurrentTasks = 2\n',
      'package.json': '{"scripts":{"start":"sh work.sh"}}',
      'work.sh': 'echo "task $TASK_INDEX"',
    }
    const statuses = await told('job', 'work', job, { interactive: true })
    expect([statuses[0], statuses.at(-1)]).toEqual(['BUILDING', 'DEPLOYED'])
    const id = await replay().runJob('work', { tasks: [{ name: 'John' }, { name: 'Jane' }] })
    const read = async () => (await replay().get(`/jobs/work/executions/${id}`)) as { status: string }
    while ((await read()).status !== 'succeeded') await Bun.sleep(pollMs)
    const list = (await replay().get('/jobs/work/executions?limit=200&cursor=')) as { data: object[] }
    expect(list.data).toEqual([expect.objectContaining({ status: 'succeeded' })])
    expect(await replay().logs('job', 'work', { executionId: id, taskId: '1' })).toEqual(['task 1'])
    expect(await replay().get('/jobs/work')).toMatchObject({ spec: { runtime: { maxConcurrentTasks: 2 } } })
    await replay().delete('/jobs/work')
  })

  test('apply changes, connect types into a sandbox, delete takes away', async () => {
    const applied = await replay().apply('agent', {
      metadata: { name: 'hello', labels: { team: 'a' } },
      spec: { runtime: { memory: 1024 } },
    })
    expect(applied).toMatchObject({ metadata: { labels: { team: 'a' } } })
    await replay().apply('sandbox', { metadata: { name: 'box' }, spec: {} })
    const screen = await replay().connect('box', 'echo $((6 * 7))is\n', '42is')
    expect(screen).toContain('42is')
    await replay().delete('/agents/hello')
    await replay().delete('/sandboxes/box')
  })
})

describe.skipIf(!usable || bl === undefined)('bl itself', () => {
  const env = () => ({
    PATH: process.env.PATH ?? '',
    HOME: directory,
    BL_API_URL: `${url}/v0`,
    BL_RUN_URL: url,
    BL_APP_URL: url,
    BL_WORKSPACE: platform.credentials.workspace,
    BL_API_KEY: platform.credentials.apiKey,
    DO_NOT_TRACK: '1',
    CI: 'true',
  })
  const run = (args: string[], cwd = directory) =>
    capture([bl ?? '', ...args, '--skip-version-warning'], { cwd, env: env() })

  /** Types into it once it shows something, and waits for what it shows then. */
  async function type(args: string[], typed: string, until: string): Promise<void> {
    const { promise: shown, resolve: show } = Promise.withResolvers<void>()
    const { promise: found, resolve: find } = Promise.withResolvers<void>()
    let screen = ''
    const child = Bun.spawn([bl ?? '', ...args, '--skip-version-warning'], {
      cwd: directory,
      env: { ...env(), CI: '', TERM: 'xterm-256color' },
      terminal: {
        cols: 100,
        rows: 30,
        data(_, bytes) {
          screen += new TextDecoder().decode(bytes)
          show()
          if (screen.includes(until)) find()
        },
      },
    })
    await Promise.race([shown, child.exited])
    child.terminal?.write(typed)
    await Promise.race([found, child.exited])
    child.kill()
    await child.exited
    expect(screen).toContain(until)
  }

  test('logs in, deploys, gets, runs, chats, reads logs, connects, applies and deletes', async () => {
    const folder = join(directory, 'real')
    for (const [path, text] of Object.entries({
      ...files,
      'blaxel.toml': 'type = "agent"\nname = "real"\n',
    })) {
      mkdirSync(dirname(join(folder, path)), { recursive: true })
      writeFileSync(join(folder, path), text)
    }
    expect(await run(['login', platform.credentials.workspace])).toMatchObject({ code: 0 })
    expect(await run(['deploy', '--yes'], folder)).toMatchObject({ code: 0 })
    for (;;) {
      const { stdout } = await run(['get', 'agent', 'real', '-o', 'json'])
      const [{ status }] = JSON.parse(stdout)
      if (status === 'DEPLOYED') break
      expect(['UPLOADING', 'BUILDING', 'DEPLOYING']).toContain(status)
      clock.advance(1_000)
    }
    const ran = await run(['run', 'agent', 'real', '--data', '{"inputs":"Hello"}'])
    expect([ran.code, ran.stdout]).toEqual([0, expect.stringContaining('"said": "Hello"')])
    expect(await run(['logs', 'agent', 'real'])).toMatchObject({ code: 0 })
    await type(['chat', 'real'], 'Greetings\r', '"said"')
    await replay().apply('sandbox', { metadata: { name: 'box' }, spec: {} })
    await type(['connect', 'sandbox', 'box'], 'echo $((6 * 7))is\r', '42is')
    writeFileSync(
      join(directory, 'real.yaml'),
      'apiVersion: blaxel.ai/v1alpha1\nkind: Agent\nmetadata:\n  name: real\n  labels:\n    team: a\nspec:\n  runtime:\n    memory: 1024\n',
    )
    expect(await run(['apply', '-f', 'real.yaml'])).toMatchObject({ code: 0 })
    expect(await run(['delete', 'agent', 'real'])).toMatchObject({ code: 0 })
  }, 300_000)
})

if (!usable) console.warn('skipped, since no instance can be made here')
if (bl === undefined)
  console.warn('skipped, since bl is not installed: scripts/install-bl.sh gets it where Go can')
